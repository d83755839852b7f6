r"""The largest curvature of the loss, as the chains see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.components import Component
from lightning_slt.data import SamplingData
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import generator

PROBE_SAMPLES = 256
"""Samples on which the curvature is measured, or ..."""

PROBE_BATCHES = 32
"""... so many minibatches, where these are small."""

ITERATIONS = 12
"""Of the power method from a random direction, the same at every anchor: λ_max to about 5 %.

Starting from the direction of an earlier anchor takes a third of them, but then a reading would depend on which ones
came before: not the same live, after a resume, and from saved checkpoints.
"""


class PosteriorFactory(Protocol):
    """Makes the posterior of one component at given constants."""

    def __call__(self, component: Component, *, nbeta: float, localization: float) -> LocalPosterior:
        """The posterior."""
        ...


class Curvature(NamedTuple):
    """λ_max of the loss and its direction ``[1, coordinate]``."""

    value: float
    direction: Tensor


def curvatures(
    posterior: PosteriorFactory,
    components: Mapping[str, Component],
    data: SamplingData,
    sampling: SamplingConfig,
    *,
    nbeta: float,
) -> dict[str, Curvature]:
    """λ_max at the anchor for each component."""
    return {
        name: leading_curvature(posterior(component, nbeta=nbeta, localization=0.0), data, sampling)
        for name, component in components.items()
    }


def largest_curvature(posterior: LocalPosterior, data: SamplingData, sampling: SamplingConfig) -> float:
    """Largest absolute eigenvalue λ_max of the Hessian of the mean loss at the anchor; see `leading_curvature`."""
    return leading_curvature(posterior, data, sampling).value


def leading_curvature(posterior: LocalPosterior, data: SamplingData, sampling: SamplingConfig) -> Curvature:
    r"""Largest absolute eigenvalue of the Hessian of the mean loss at the anchor, by power iteration.

    Hessian-vector products are central differences of gradients, ``Hv ≈ (g(w* + δv) − g(w* − δv)) / 2δ``, which need
    no second derivatives of the user's operations. δ is a third of the width that the posterior has in a direction of
    that curvature: kinks (of ReLUs, say) are seen as smoothed as the chains see them, not as spikes, and a flat anchor
    shows the curvature that it has as far out as the chains go.

    Args:
        posterior: Gives loss and anchor.
        data: Up to ``PROBE_SAMPLES`` of them are used, the same at every call.
        sampling: Gives batch size, seed and route.

    Returns:
        λ_max ≥ 0, to about 5 %, and its direction.
    """
    row, g = posterior.anchor_row, generator(posterior.shards.own_seed(sampling.seed), "curvature")
    values, vectors = curvature_at(
        posterior,
        row,
        _probe_batches(data, sampling),
        sampling,
        torch.randn(row.shape, generator=g, dtype=row.dtype).to(row.device),
        iterations=ITERATIONS,
    )
    return Curvature(float(values), vectors)


def curvature_at(
    posterior: LocalPosterior,
    position: Tensor,
    batches: Sequence[ChainBatch],
    sampling: SamplingConfig,
    start: Tensor,
    *,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    """Largest absolute eigenvalue of the Hessian of the mean loss at some places, as :func:`leading_curvature`.

    Args:
        posterior: Gives the loss.
        position: The places ``[place, coordinate]``.
        batches: What the loss is averaged over, shared by all places.
        sampling: Gives the route.
        start: First guess of each direction ``[place, coordinate]``.
        iterations: Of the power method.

    Returns:
        Eigenvalues ``[place]``, and directions ``[place, coordinate]``, not normalized.
    """
    slopes = _one_side_after_another if sampling.chain_method == "sequential" else _both_sides_together
    vector = start
    del start  # rows are as long as the weights: none is held for longer than it is needed
    value = width = position.new_ones(len(position))
    for _ in range(iterations):
        vector = vector / posterior.shards.norm(vector)[:, None]
        delta = _reach(posterior, width)[:, None]
        product = slopes(posterior, position, vector, delta, batches).div_(2 * delta * len(batches))
        value = posterior.shards.norm(product)
        alive = (value.isfinite() & (value > 0))[:, None]
        vector = torch.where(alive, product, vector)
        del product
        # the value alone would swing for ever where the curvature grows with the reach
        width = torch.where(alive[:, 0], width ** (2 / 3) * value ** (1 / 3), width)
    return value, vector


def _both_sides_together(
    posterior: LocalPosterior, position: Tensor, vector: Tensor, delta: Tensor, batches: Sequence[ChainBatch]
) -> Tensor:
    """Gradients at ``position + delta · vector`` less those at ``position − delta · vector``, summed over batches."""
    offset = delta * vector
    passes = VectorizedPasses(posterior, torch.cat([position + offset, position - offset]))
    gradient = _add_up(passes, batches, torch.zeros_like(passes.position))
    return gradient[: len(position)] - gradient[len(position) :]


def _one_side_after_another(
    posterior: LocalPosterior, position: Tensor, vector: Tensor, delta: Tensor, batches: Sequence[ChainBatch]
) -> Tensor:
    """The same in less than half of the memory, where running together gains nothing."""
    gradient = torch.zeros_like(position)
    for side in (1.0, -1.0):
        passes = SequentialPasses(posterior, (side * delta * vector).add_(position))
        _add_up(passes, batches, gradient, scale=side)
    return gradient


def _add_up(passes: Passes, batches: Sequence[ChainBatch], gradient: Tensor, *, scale: float = 1.0) -> Tensor:
    for batch in batches:
        passes.loss_and_gradient(batch)[1].add_to(gradient, scale=scale)
    return gradient


def _reach(posterior: LocalPosterior, curvature: Tensor) -> Tensor:
    """A third of the posterior's standard deviation in a direction of this curvature."""
    return 0.3 / (max(posterior.nbeta, 1.0) * curvature.clamp(min=1e-6) + posterior.localization).sqrt()


def _probe_batches(data: SamplingData, sampling: SamplingConfig) -> list[ChainBatch]:
    """Minibatches of the size that chains will see: some networks take no other."""
    size = min(sampling.batch_size, len(data))
    count = min(len(data), max(size, min(PROBE_SAMPLES, PROBE_BATCHES * size)))
    order = torch.randperm(len(data), generator=generator(sampling.seed, "curvature data"))[:count]
    return [data.chain_batch(order[i : i + size]) for i in range(0, count - size + 1, size)]
