r"""The largest curvature of the loss, as the chains see it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.components import Component
from lightning_slt.data import SamplingData
from lightning_slt.passes import SequentialPasses, VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import generator

PROBE_SAMPLES = 256
"""Samples on which the curvature is measured."""


class PosteriorFactory(Protocol):
    """Makes the posterior of one component at given constants."""

    def __call__(self, component: Component, *, nbeta: float, localization: float) -> LocalPosterior:
        """The posterior."""
        ...


class Curvature(NamedTuple):
    """λ_max of the loss and its direction ``[1, coordinate]``, from which the next measurement starts."""

    value: float
    direction: Tensor


def curvatures(
    posterior: PosteriorFactory,
    components: Mapping[str, Component],
    data: SamplingData,
    sampling: SamplingConfig,
    *,
    nbeta: float,
    start: Mapping[str, Curvature] | None = None,
) -> dict[str, Curvature]:
    """λ_max at the anchor for each component, started from those of an earlier anchor where there are any."""
    return {
        name: leading_curvature(
            posterior(component, nbeta=nbeta, localization=0.0),
            data,
            sampling,
            start=None if start is None else start[name].direction,
        )
        for name, component in components.items()
    }


def largest_curvature(posterior: LocalPosterior, data: SamplingData, sampling: SamplingConfig) -> float:
    """Largest absolute eigenvalue λ_max of the Hessian of the mean loss at the anchor; see `leading_curvature`."""
    return leading_curvature(posterior, data, sampling).value


def leading_curvature(
    posterior: LocalPosterior, data: SamplingData, sampling: SamplingConfig, *, start: Tensor | None = None
) -> Curvature:
    r"""Largest absolute eigenvalue of the Hessian of the mean loss at the anchor, by power iteration.

    Hessian-vector products are central differences of gradients, ``Hv ≈ (g(w* + δv) − g(w* − δv)) / 2δ``, which need
    no second derivatives of the user's operations. δ is a third of the width that the posterior has in a direction of
    that curvature: kinks (of ReLUs, say) are seen as smoothed as the chains see them, not as spikes, and a flat anchor
    shows the curvature that it has as far out as the chains go.

    Args:
        posterior: Gives loss and anchor.
        data: Up to ``PROBE_SAMPLES`` of them are used, the same at every call.
        sampling: Gives batch size, seed and route.
        start: Direction found at an earlier anchor; a third of the iterations suffices from there.

    Returns:
        λ_max ≥ 0, to about 5 %, and its direction.
    """
    row = posterior.anchor_row
    batches = _probe_batches(data, sampling)
    route = SequentialPasses if sampling.chain_method == "sequential" else VectorizedPasses
    value, vector, iterations = 1.0, start, 4
    width = value
    if vector is None:
        noise = torch.randn(row.shape, generator=generator(sampling.seed, "curvature"), dtype=row.dtype)
        vector, iterations = noise.to(row.device), 12
    for _ in range(iterations):
        vector = vector / vector.norm()
        delta = _reach(posterior.nbeta, width)
        passes = route(posterior, torch.cat([row + delta * vector, row - delta * vector]))
        gradient = torch.zeros_like(passes.position)
        for batch in batches:
            passes.loss_and_gradient(batch)[1].add_to(gradient, scale=1.0)
        product = (gradient[:1] - gradient[1:]) / (2 * delta * len(batches))
        value = float(product.norm())
        if not math.isfinite(value) or value == 0:
            return Curvature(value, vector)
        vector = product
        width = width ** (2 / 3) * value ** (1 / 3)  # value alone would swing where the curvature grows with the reach
    return Curvature(value, vector)


def _reach(nbeta: float, curvature: float) -> float:
    """A third of the posterior's standard deviation in a direction of this curvature."""
    return 0.3 / math.sqrt(max(nbeta, 1.0) * curvature)


def _probe_batches(data: SamplingData, sampling: SamplingConfig) -> list[ChainBatch]:
    count = min(len(data), PROBE_SAMPLES)
    order = torch.randperm(len(data), generator=generator(sampling.seed, "curvature data"))[:count]
    size = min(max(sampling.batch_size, 64), count)
    return [data.chain_batch(order[i : i + size]) for i in range(0, count - size + 1, size)]
