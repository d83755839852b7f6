r"""Losses of any module as functions of its weights.

A loss comes, in this order, from the ``loss_fn`` argument, from a method ``per_sample_loss(batch)`` on the module, or
from a LightningModule's ``training_step``. Sampling needs the batch mean only; losses per sample are derived from
``training_step`` when they are asked for, one sample at a time, and checked once against the batch loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree

from lightning_slt.boundary import HOW_TO_WRITE_A_LOSS, batch_index, check_loss_fn, describe, ready_made
from lightning_slt.precision import Precision, autocast_rules, check_network, forward_context
from lightning_slt.sharding import InPlace, at_rest, casts_of, local, shard_axis, shards_of
from lightning_slt.types import Batch, LossFn, Params


def derive_loss(module: nn.Module, loss_fn: LossFn | None = None) -> LossFn:
    """The loss that sampling uses: the first that exists of ``loss_fn``, ``per_sample_loss``, ``training_step``.

    Args:
        module: The network.
        loss_fn: The user's own, ``loss_fn(module, batch)`` -> losses ``[sample]``, ``[sample, token]`` or mean ``[]``.

    Returns:
        A loss function of (module, batch).

    Raises:
        TypeError: If there is no loss to be had; the message shows the lines to write.
    """
    if loss_fn is not None:
        check_loss_fn(loss_fn)
        return loss_fn
    if callable(getattr(module, "per_sample_loss", None)):
        return lambda module, batch: module.per_sample_loss(batch)  # type: ignore[operator]
    if not callable(getattr(module, "training_step", None)):
        raise TypeError(f"{type(module).__name__} has no training_step to take a loss from; {ready_made()}")
    if not getattr(module, "automatic_optimization", True):
        raise TypeError(
            f"{type(module).__name__} uses manual optimization: its training_step would step the optimizers and has "
            f"no one loss to sample; {HOW_TO_WRITE_A_LOSS}"
        )
    return training_step_loss


def training_step_loss(module: nn.Module, batch: Batch) -> Tensor:
    """Loss of a LightningModule's ``training_step`` on one batch.

    Raises:
        TypeError: If ``training_step`` takes an iterator, or returns neither a tensor nor a dict with ``loss``.
    """
    step: Callable[..., Any] = module.training_step  # type: ignore[assignment]
    function = getattr(step, "__func__", step)
    index, named = batch_index(function, bound=function is not step)
    output = step(batch, *index, **named)
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"training_step returned {type(output).__name__}, expected a loss tensor or a dict with the key 'loss'; "
            f"{HOW_TO_WRITE_A_LOSS}"
        )
    return loss


class ModuleLoss:
    r"""``(weights, batch) -> losses`` for one module, without touching it.

    Weights that are not given stay as they were when this object was made, buffers too: both are copies, so that
    neither in-place updates nor later training steps reach them. Half-precision modules are evaluated with float32
    copies, because 1 + 1e-3 == 1 in bfloat16 and a sampler's steps would be lost.

    Of a sharded module the weights are this process's shards, and all processes evaluate together, on the same batch,
    inside :func:`lightning_slt.isolation.isolated`: see :mod:`lightning_slt.sharding`.

    Args:
        module: The network; evaluated with other weights in the place of its own.
        loss_fn: See :func:`derive_loss`.
        context: Makes the context of each evaluation, such as the Trainer's autocast.
        precision: Of each evaluation, in the place of that context; None leaves it to the context.

    Raises:
        TypeError: If there is no loss to be had.
        ValueError: If the network computes in something else, whatever the precision.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFn | None = None,
        *,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        precision: Precision | None = None,
    ) -> None:
        """Copy the weights and the buffers."""
        self.loss_fn = derive_loss(module, loss_fn)
        self.dtype, self.precision = sampling_dtype(module), precision
        check_network(precision, dtype=self.dtype, casts=casts_of(module))
        with at_rest(module):
            parameters = dict(module.named_parameters())
            self.shards = shards_of(module)
            self._axes = {name: shard_axis(p) for name, p in parameters.items()}
            self.weights: Params = {
                name: self._copy(p) for name, p in parameters.items() if not isinstance(p, nn.UninitializedParameter)
            }
        self._in_place = InPlace(module, self.shards)
        self.module, self._bound = module, _Bound(module)
        self._names = {n: f"module.{n}" for n, _ in _named_tensors(module)}
        self._tied = len(self._names) < len(_named_tensors(module, remove_duplicate=False))
        self._buffers = {name: self._copy(b) for name, b in module.named_buffers()}
        self._pristine = {name: b.clone() for name, b in self._buffers.items()}
        self._context = context if precision is None else partial(forward_context, precision, self.device.type)

    def _copy(self, tensor: Tensor) -> Tensor:
        copied = local(tensor).detach().clone()
        return copied.to(self.dtype) if copied.is_floating_point() else copied

    def __call__(self, weights: Params, batch: Batch) -> Tensor:
        """Losses of one batch at the given weights, as the user's loss returns them but at least float32.

        Args:
            weights: By parameter name; names left out stay at the anchor.
            batch: One collated batch.

        Returns:
            ``[]``, ``[sample]`` or ``[sample, token]``, in nats.
        """
        if self.shards.spread:
            return self._evaluate_in_place({**self.weights, **weights}, batch)
        tensors = {**self.weights, **weights, **self._buffers}
        versions = [b._version for b in self._buffers.values()]
        with self._context(), autocast_rules(self.device.type):
            bound = {self._names[name]: value for name, value in tensors.items()}
            losses = functional_call(self._bound, bound, (self.loss_fn, batch), tie_weights=self._tied)
        if versions != [b._version for b in self._buffers.values()]:
            self._reset_buffers()
        return _checked(losses)

    def _evaluate_in_place(self, weights: Params, batch: Batch) -> Tensor:
        def run() -> Tensor:
            with self._context(), autocast_rules(self.device.type):
                return _checked(self.loss_fn(self.module, batch))

        return self._in_place(run, weights, self._pristine)

    def cut(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of masks of whole parameters, by name, the parts that belong to this process's shards."""
        return {name: self.shards.cut(mask, self._axes[name]) for name, mask in masks.items()}

    def with_loss(self, loss_fn: LossFn) -> ModuleLoss:
        """The same weights and buffers with another loss."""
        other = copy.copy(self)
        other.loss_fn, other._in_place = loss_fn, InPlace(self.module, self.shards)
        return other

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.weights.values())).device

    @property
    def buffers(self) -> Params:
        """The copies of the buffers, as they were."""
        return self._pristine

    def set_buffers(self, buffers: Params) -> None:
        """Evaluate with other buffers, of the same names and shapes."""
        for name, value in buffers.items():
            self._pristine[name].copy_(value)
        self._reset_buffers()

    def _reset_buffers(self) -> None:
        for name, value in self._pristine.items():
            self._buffers[name] = value.clone()


def _checked(losses: Any) -> Tensor:
    if not isinstance(losses, Tensor):
        raise TypeError(f"the loss must be a tensor, got {_no_loss(losses)}; {HOW_TO_WRITE_A_LOSS}")
    return losses.float() if losses.dtype in (torch.float16, torch.bfloat16) else losses


def _no_loss(given: Any) -> str:
    """What a loss function returned in place of a tensor, and what of it may be the loss."""
    if isinstance(getattr(given, "loss", None), Tensor):
        return f"{describe(given)}: return its .loss"
    if isinstance(given, Mapping):
        return f"{describe(given)}: return one of them, or what training minimizes of them"
    return describe(given)


def _named_tensors(module: nn.Module, *, remove_duplicate: bool = True) -> list[tuple[str, Tensor]]:
    return [
        *module.named_parameters(remove_duplicate=remove_duplicate),
        *module.named_buffers(remove_duplicate=remove_duplicate),
    ]


class _Bound(nn.Module):
    """Lets ``functional_call`` run any function of the module rather than its ``forward``."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, loss_fn: LossFn, batch: Batch) -> Tensor:
        return loss_fn(self.module, batch)


def sampling_dtype(module: nn.Module) -> torch.dtype:
    """float64 for a double module, float32 for any other, half precision included.

    Raises:
        TypeError: If a parameter is complex.
    """
    if (name := next((n for n, p in module.named_parameters() if p.is_complex()), None)) is not None:
        raise TypeError(
            f"the parameter {name!r} is complex, in which chains cannot move: keep real and imaginary parts in a real "
            "parameter of shape (…, 2) and write torch.view_as_complex(parameter) in forward"
        )
    dtypes = {p.dtype for p in module.parameters()}
    return torch.float64 if torch.float64 in dtypes else torch.float32


def cast_batch(batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Batch:
    """Move tensors to a device, floating-point ones to a dtype too; everything else stays as it is."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, dtype) if leaf.is_floating_point() else leaf.to(device)

    return pytree.tree_map(move, batch)


def batch_length(batch: Batch) -> int:
    """Number of samples in a batch: the length that its tensors share along their first axis.

    Raises:
        TypeError: If the batch has no tensor with a first axis, or lengths differ.
    """
    lengths = {leaf.shape[0] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(lengths) != 1:
        raise TypeError(
            f"cannot tell the samples of this batch apart: its tensors have first axes {sorted(lengths)}; "
            f"{HOW_TO_WRITE_A_LOSS}"
        )
    return int(lengths.pop())


def per_sample_losses(loss: Callable[[Params, Batch], Tensor], weights: Params, batch: Batch) -> Tensor:
    """Losses of every sample of a batch at one set of weights.

    Where the loss returns them itself they are taken as they are. A mean loss is evaluated on every sample alone,
    under ``torch.vmap`` or, where that is refused, in a loop; the mean of the results must agree with the batch loss,
    which fails for losses that mix samples (contrastive ones, batch statistics in train mode).

    Args:
        loss: Function of (weights, batch).
        weights: By parameter name.
        batch: One collated batch.

    Returns:
        ``[sample]`` or ``[sample, token]``, in nats.

    Raises:
        TypeError: If the losses of single samples do not average to the batch loss; the message shows what to write.
    """
    together = loss(weights, batch)
    count = batch_length(batch)
    if together.ndim:
        if together.shape[0] != count:
            raise TypeError(f"the loss has shape {tuple(together.shape)} for {count} samples; {HOW_TO_WRITE_A_LOSS}")
        return together
    alone = one_by_one(loss, weights, batch)
    tolerance = 1e-4 * alone.abs().mean() + 1e-6
    if not bool((alone.mean() - together).abs() <= tolerance):
        raise TypeError(
            f"the losses of single samples average to {float(alone.mean()):.6g}, the batch loss is "
            f"{float(together):.6g}: it is no mean over samples; {HOW_TO_WRITE_A_LOSS}"
        )
    return alone


def one_by_one(loss: Callable[[Params, Batch], Tensor], weights: Params, batch: Batch) -> Tensor:
    """Mean loss of every sample alone ``[sample]``, under ``torch.vmap`` or, where that is refused, in a loop."""
    count = batch_length(batch)
    leaves, spec = pytree.tree_flatten(batch)
    sliced = [isinstance(leaf, Tensor) and leaf.ndim > 0 for leaf in leaves]
    dims = tuple(0 if s else None for s in sliced)

    def single(*values: Any) -> Tensor:
        alone = [v.unsqueeze(0) if s else v for v, s in zip(values, sliced, strict=True)]
        return loss(weights, pytree.tree_unflatten(alone, spec))

    try:
        return vmap(single, in_dims=dims, randomness="same")(*leaves)
    except (RuntimeError, ValueError, TypeError, NotImplementedError):
        rows = ([v[i] if s else v for v, s in zip(leaves, sliced, strict=True)] for i in range(count))
        return torch.stack([single(*row) for row in rows])
