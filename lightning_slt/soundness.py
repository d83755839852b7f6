"""What a loss must be, found out once at set-up: a mean over samples, finite on every sample, no bare output."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from lightning_slt.boundary import HOW_TO_WRITE_A_LOSS, warn_user
from lightning_slt.data import SamplingData
from lightning_slt.preflight import PreflightError
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import Batch, FunctionalLoss, Params

AT_MOST = 256
"""Samples that are repeated; three times these are no more than a minibatch, so that they fit where that does."""

NEAR = 0.05
"""How near to k the loss of every sample k times must come, in units of k, to be taken for a sum.

A sum gives k up to rounding, up to a few percent where a term of the weights alone is added. A mean over samples gives
1. In a contrastive loss of value a, the copies are further candidates: ``a + log k``. That may be 2a, or 3a, but is
not both within 5 %.
"""

_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, LookupError, AssertionError)


def check_mean(loss: FunctionalLoss, anchor: Params, data: SamplingData, config: SamplingConfig) -> None:
    """Refuse a loss that is a sum over the samples of a minibatch: its scale, and so nβ, would hang on the batch size.

    Evaluates some samples once, twice and three times. A network that takes no other batch size gives no answer, and
    is let pass.

    Args:
        loss: Function of (weights, batch).
        anchor: All weights.
        data: Samples.
        config: Gives the batch size.

    Raises:
        PreflightError: For a sum; the message says what to write.
    """
    index = torch.arange(min(max(2, config.batch_size // 3), len(data), AT_MOST))
    # beside the anchor: at the anchor itself the loss of a perfect fit is zero, and so is the sum
    weights = {name: 1.01 * w for name, w in anchor.items() if w.is_floating_point()}
    once, *several = (_mean(loss, weights, data, index.repeat(k)) for k in (1, 2, 3))
    if once and all(abs(value / once - k) <= NEAR * k for value, k in zip(several, (2, 3), strict=True)):
        raise PreflightError(
            f"the loss is {once:.6g} on {len(index)} samples and {several[0]:.6g} with each of them twice: it is a sum "
            "over samples, expected their mean. Write reduction='mean' in place of 'sum', or divide by the number of "
            f"samples; or {HOW_TO_WRITE_A_LOSS}"
        )


def check_finite(
    loss: FunctionalLoss, anchor: Params, moving: Collection[str], data: SamplingData, config: SamplingConfig
) -> None:
    """Refuse samples with NaN or infinity in them, unless the loss masks these.

    Args:
        loss: Function of (weights, batch).
        anchor: All weights.
        moving: Names of those that chains will move.
        data: Samples.
        config: Gives the batch size.

    Raises:
        PreflightError: If the loss of such samples, or its gradient, is not finite at the anchor.
    """
    index = data.not_finite()[: config.batch_size]
    if not len(index):
        return
    weights = {name: w.detach().requires_grad_(name in moving) for name, w in anchor.items()}
    try:
        value = loss(weights, data.batch(index)).mean()
        slopes = torch.autograd.grad(value, [weights[name] for name in moving], allow_unused=True)
    except _REFUSALS:
        return
    if not all(bool(t.isfinite().all()) for t in (value, *slopes) if t is not None):
        raise PreflightError(
            f"the loss is {float(value.detach()):.6g} on samples with NaN or infinity in them, and its gradient is not "
            f"finite: {_listed(index)} of {len(data)}. Leave them out of the data, or what is missing out of the loss"
        )


def warn_of_bare_output(loss: FunctionalLoss, anchor: Params, module: nn.Module, batch: Batch) -> None:
    """Warn where a loss per sample is what a part of the network returned, with values of both signs: logits, say.

    Only a warning: a network may well return log densities per token, of both signs.

    Args:
        loss: Function of (weights, batch).
        anchor: All weights.
        module: The network that the loss runs.
        batch: A minibatch.
    """
    seen: list[Tensor] = []

    def note(part: nn.Module, inputs: Any, output: Any) -> None:
        output = getattr(output, "logits", output)
        if isinstance(output, Tensor):
            seen.append(output)

    parts = [part for part in module.modules() if not isinstance(part, nn.modules.loss._Loss)]
    handles = [part.register_forward_hook(note) for part in parts]
    try:
        with torch.no_grad():
            losses = loss(anchor, batch)
    finally:
        for handle in handles:
            handle.remove()
    both_signs = losses.ndim > 1 and bool((losses < 0).any() and (losses > 0).any())
    if both_signs and any(o.shape == losses.shape and torch.equal(o.to(losses.dtype), losses) for o in seen):
        warn_user(
            f"the loss is the network's own output of shape {tuple(losses.shape)}, with values of both signs: it looks "
            f"like predictions rather than losses; {HOW_TO_WRITE_A_LOSS}"
        )


@torch.no_grad()
def _mean(loss: FunctionalLoss, weights: Params, data: SamplingData, index: Tensor) -> float:
    """Zero where the loss, or the function that collates, takes no batch of this size."""
    try:
        return float(loss(weights, data.batch(index)).mean())
    except _REFUSALS:
        return 0.0


def _listed(index: Tensor) -> str:
    shown = ", ".join(str(i) for i in index[:5].tolist())
    return f"{shown}, …" if len(index) > 5 else shown
