r"""How some operations run for many chains at once, where ``torch.vmap`` has no rule or one of another kind.

Attention has a fused CPU kernel without a batching rule: the chain axis is folded into the batch. Convolutions become
one grouped convolution, whose rounding changes with the number of groups: on the CPU they run chain by chain, which is
as fast and makes the bits of a chain independent of its company. A linear map of inputs that do not lie in order, as in
``nn.TransformerEncoderLayer(batch_first=True)``, would copy each chain's weights for every sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})
_PRODUCTS = frozenset({F.linear, torch.matmul, Tensor.matmul})


def _opened(function: Any) -> FunctionType:
    """A function of ``torch.nn.functional`` that does not hand itself to a mode, so that one sees what it calls."""
    names = {**function.__globals__, "has_torch_function": lambda tensors: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


_open_attention = _opened(F.multi_head_attention_forward)


class ChainRules(TorchFunctionMode):
    """Inside, attention, convolutions, batch norm and linear maps under ``vmap`` follow the rules of this file."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Divert these, pass everything else on."""
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        if func in _CONVOLUTIONS:
            return _convolution(func, *args, **(kwargs or {}))
        if func is F.batch_norm:
            return _batch_norm(*args, **(kwargs or {}))
        if func in _PRODUCTS and len(args) > 1:
            return _product(func, *args, **(kwargs or {}))
        if func is F.multi_head_attention_forward:
            with self:
                return _open_attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _convolution(
    function: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    if input.device.type != "cpu":
        return function(input, weight, bias, *args, **kwargs)

    def convolve(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        with torch._C.DisableTorchFunction():
            return function(x, w, b, *args, **kwargs)

    output: Tensor = _ChainConvolution.apply(input, weight, bias, convolve)  # type: ignore[no-untyped-call]
    return output


class _ChainConvolution(torch.autograd.Function):
    """Chain by chain where chains have weights of their own."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, convolve: Callable[..., Tensor]) -> Tensor:
        return convolve(input, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        convolve: Callable[..., Tensor],
    ) -> tuple[Tensor, int]:
        if in_dims[1] is None and in_dims[2] is None:  # frozen, or an axis of samples: one larger batch
            x = input.movedim(in_dims[0], 0)
            batched = x.ndim > weight.ndim
            output = convolve(x.flatten(0, 1) if batched else x, weight, bias)
            return output.view(*x.shape[: 1 + batched], *output.shape[1:]), 0

        def rows(tensor: Tensor | None, dim: int | None) -> Sequence[Tensor | None]:
            return [tensor] * info.batch_size if tensor is None or dim is None else tensor.unbind(dim)

        columns = [rows(t, dim) for t, dim in zip((input, weight, bias), in_dims[:3], strict=True)]
        return torch.stack([convolve(x, w, b) for x, w, b in zip(*columns, strict=True)]), 0


def _product(function: Callable[..., Tensor], input: Tensor, matrix: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Many rows times one matrix, as one product a chain."""
    if input.ndim < 3 or matrix.ndim != 2 or input.is_contiguous():
        return function(input, matrix, *args, **kwargs)
    rows = function(input.reshape(-1, input.shape[-1]), matrix, *args, **kwargs)
    return rows.view(*input.shape[:-1], rows.shape[-1])


def _batch_norm(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Under ``vmap`` torch refuses half-precision inputs beside float32 statistics, which is what autocast gives."""
    exact = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
    with torch._C.DisableTorchFunction():
        return F.batch_norm(exact, *args, **kwargs).to(input.dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    options = (dropout_p, is_causal, scale, enable_gqa)
    output: Tensor = _ChainAttention.apply(query, key, value, attn_mask, options)  # type: ignore[no-untyped-call]
    return output


class _ChainAttention(torch.autograd.Function):
    """Only ever reached under ``vmap``, whose rule hands the folded tensors to the ordinary function."""

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: tuple[Any, ...]) -> Tensor:
        return _plain_attention(query, key, value, mask, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        options: tuple[Any, ...],
    ) -> tuple[Tensor, int]:
        chains = info.batch_size
        inner = max(t.ndim - (dim is not None) for t, dim in zip((query, key, value), in_dims[:3], strict=True))

        def stack(tensor: Tensor, dim: int | None) -> Tensor:
            stacked = tensor.expand(chains, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
            return stacked.reshape(chains, *[1] * (inner + 1 - stacked.ndim), *stacked.shape[1:])

        q, k, v = (stack(t, dim) for t, dim in zip((query, key, value), in_dims[:3], strict=True))
        plain = mask is None or (in_dims[3] is None and mask.ndim <= 2)
        m = mask if mask is None or plain else stack(mask, in_dims[3])
        if inner < 4:  # the chain axis takes a free place: that of the batch, or of the heads
            return _plain_attention(q, k, v, m, options), 0
        batch = max(t.shape[1] for t in (q, k, v))

        def fold(tensor: Tensor) -> Tensor:
            return tensor.expand(-1, batch, *tensor.shape[2:]).flatten(0, 1)

        output = _plain_attention(fold(q), fold(k), fold(v), m if m is None or plain else fold(m), options)
        return output.view(chains, batch, *output.shape[1:]), 0


def _plain_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: tuple[Any, ...]
) -> Tensor:
    dropout, causal, scale, grouped = options
    with torch._C.DisableTorchFunction():
        return F.scaled_dot_product_attention(
            query, key, value, mask, dropout_p=dropout, is_causal=causal, scale=scale, enable_gqa=grouped
        )
