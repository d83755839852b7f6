r"""In which arithmetic the passes run; positions, noise and whatever is summed keep theirs.

``"bf16"`` is autocast of the forward pass, whose backward pass follows the types of the forward one. ``"tf32"`` leaves
everything in float32 and lets matrix products and convolutions round their factors to 10 bits of mantissa where the
hardware can. That switch belongs to the whole process: it is set for a pass and put back to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_slt.types import Batch, FunctionalLoss, Params

Precision = Literal["float32", "tf32", "bf16"]
"""What the passes can run in."""

_MEANT = {"bfloat16": "bf16", "bf16-mixed": "bf16", "32-true": "float32", "32": "float32", "fp32": "float32"}
_HALF = ("float16", "fp16", "half", "16", "16-mixed", "16-true")

_KERNELS: dict[str, tuple[str, bool]] = {"float32": ("highest", False), "tf32": ("high", True)}
"""Of matrix products, as ``torch.set_float32_matmul_precision`` takes it, and whether cuDNN may use TF32."""

_PLACES: list[Any] = [
    place
    for backend in (torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn)
    for place in (getattr(backend, name, None) for name in ("matmul", "conv", "rnn"))
    if hasattr(place, "fp32_precision")
]
"""Where newer versions of torch keep the same, one for each kind of operation."""


_COARSE = frozenset({F.linear, F.bilinear, F.conv1d, F.conv2d, F.conv3d})
_COARSE |= {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d}
"""Layers with a bias."""

_EXACT = frozenset({F.cross_entropy, F.nll_loss, F.kl_div, F.binary_cross_entropy_with_logits, F.cosine_similarity})
_EXACT |= {F.log_softmax, torch.log_softmax, Tensor.log_softmax, F.softmax, torch.softmax, Tensor.softmax}
_EXACT |= {F.layer_norm, F.group_norm, F.normalize, torch.layer_norm, torch.group_norm}
"""Functions that autocast runs in float32, and that are made of others."""


def check_precision(given: object) -> None:
    """Refuse what is no precision of passes.

    Raises:
        ValueError: For anything but None and the three words.

    >>> check_precision("bf16")
    """
    if given is None or (isinstance(given, str) and given in get_args(Precision)):
        return
    name = str(given).removeprefix("torch.")
    if name in _HALF:
        raise ValueError(
            f"SamplingConfig.precision cannot be {given!r}: small gradients vanish in float16 without a gradient "
            "scaler, which a chain does not have. Write precision='bf16', which has the range of float32"
        )
    hint = f"; write precision={_MEANT[name]!r}" if name in _MEANT else ""
    raise ValueError(
        f"SamplingConfig.precision must be 'float32', 'tf32', 'bf16', or None for that of training, got {given!r}{hint}"
    )


def check_network(precision: Precision | None, *, dtype: torch.dtype, casts: Collection[torch.dtype]) -> None:
    """Refuse networks that compute in something else, whatever is asked for.

    Args:
        precision: Of the passes.
        dtype: Of the weights that chains move.
        casts: What parts of a sharded network cast their weights to.

    Raises:
        ValueError: If the network is double, or its shards are cast to something else.
    """
    if precision is not None and dtype == torch.float64:
        raise ValueError(
            f"SamplingConfig.precision is {precision!r}, but the network has float64 weights, which neither autocast "
            "nor TF32 reaches: write precision=None, or make the network float32 with .float()"
        )
    own = torch.bfloat16 if precision == "bf16" else torch.float32
    others = sorted(str(cast) for cast in casts if cast != own)
    if precision is not None and others:
        raise ValueError(
            f"SamplingConfig.precision is {precision!r}, but fully_shard casts the weights to {', '.join(others)} "
            "whenever they are gathered: write precision=None, or leave param_dtype out of its MixedPrecisionPolicy"
        )


def forward_context(precision: Precision, device_type: str) -> AbstractContextManager[Any]:
    """Of a forward pass: autocast for ``"bf16"``, none of it for the others, whatever training has."""
    if precision == "bf16":
        return torch.autocast(device_type, torch.bfloat16)
    return _exactly(precision, device_type)


@contextmanager
def _exactly(precision: Precision, device_type: str) -> Iterator[None]:
    with torch.autocast(device_type, enabled=False), kernels(precision):
        yield


@contextmanager
def kernels(precision: Precision | None) -> Iterator[None]:
    """Of a forward and a backward pass: which float32 kernels of matrix products and convolutions torch takes.

    >>> before = torch.get_float32_matmul_precision()
    >>> with kernels("tf32"):
    ...     torch.get_float32_matmul_precision()
    'high'
    >>> torch.get_float32_matmul_precision() == before
    True
    """
    wanted = None if precision is None else _KERNELS.get(precision)
    before = None if wanted is None else _switches()
    if wanted is None or before == wanted:
        yield
        return
    each = [place.fp32_precision for place in _PLACES]
    try:
        if before is not None:
            _set_switches(wanted)
        _set_each(["tf32" if precision == "tf32" else "ieee"] * len(_PLACES))
        yield
    finally:
        if before is not None:
            _set_switches(before)
        _set_each(each)


def _switches() -> tuple[str, bool] | None:
    """None where single kinds of operations were set apart: torch then refuses to say these."""
    try:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _set_switches(values: tuple[str, bool]) -> None:
    matmul, convolution = values
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


def _set_each(values: Sequence[str]) -> None:
    for place, value in zip(_PLACES, values, strict=True):
        if place.fp32_precision != value:
            place.fp32_precision = value


class _AutocastRules(TorchFunctionMode):
    """Casts what functions are given, as autocast does, before ``torch.vmap`` takes them apart.

    Autocast would only meet the parts. A bias added apart makes float32 of a product; and a cross-entropy of bfloat16
    logits, whose log-softmax then runs in bfloat16, comes in steps of a hundredth of a nat.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func in _COARSE:
            args, given = _cast(args, given, torch.float32, self._dtype)
        elif func in _EXACT:
            args, given = _cast(args, given, self._dtype, torch.float32)
        return func(*args, **given)


def _cast(
    args: Sequence[Any], kwargs: Mapping[str, Any], before: torch.dtype, after: torch.dtype
) -> tuple[list[Any], dict[str, Any]]:
    def cast(value: Any) -> Any:
        return value.to(after) if isinstance(value, Tensor) and value.dtype == before else value

    return [cast(value) for value in args], {name: cast(value) for name, value in kwargs.items()}


def autocast_rules(device_type: str) -> AbstractContextManager[Any]:
    """What a forward pass needs beside autocast, where there is any, for many chains to round as one does.

    And without casts from before: autocast's cache goes by identity, and the sampler moves weights in place.
    """
    if not torch.is_autocast_enabled(device_type):
        return nullcontext()
    torch.clear_autocast_cache()
    return _AutocastRules(torch.get_autocast_dtype(device_type))


def in_precision(loss: FunctionalLoss, precision: Precision | None) -> FunctionalLoss:
    """A loss whose evaluations run in some precision, on the device of the weights that it gets."""
    if precision is None:
        return loss

    def run(weights: Params, batch: Batch) -> Tensor:
        device = next(iter(weights.values())).device.type
        with forward_context(precision, device), autocast_rules(device):
            losses = loss(weights, batch)
        return losses.float() if losses.dtype == torch.bfloat16 else losses

    return run
