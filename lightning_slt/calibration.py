r"""Settings without the user: the relative target, a curve comparable over one run at small cost.

With ``λ_max`` the largest curvature of the loss at the anchor, two numbers decide:

* the *stability number* ``s = ε (nβ λ_max + γ)``: SGLD diverges at 4, and its values are right within a few percent
  below 0.4;
* the *condition* ``κ = nβ λ_max / γ``: a chain needs about ``κ / s`` steps to reach equilibrium, and directions with
  curvature below the *resolution* ``γ / nβ`` do not count.

So nβ = 30, γ from λ_max by a fixed κ, ε from s, and the burn-in from ``1 / (ε γ)``. nβ and γ define the posterior and
stay fixed for a run. λ_max changes several times over in training, so ε and the number of steps follow it: where s
would pass 0.4 the step is cut and the steps per draw are raised in proportion, up to a cap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.components import Component
from lightning_slt.data import SamplingData
from lightning_slt.passes import SequentialPasses, VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import generator

NBETA = 30.0
"""Default nβ: with n/log n a chain keeps training a network that still learns, and does not converge."""

STABILITY = 0.4
"""Aim for ``ε (nβ λ_max + γ)``: below it SGLD's values are biased by a few percent at most."""

MAX_STRETCH = 8
"""How many times more steps a reading may take where the curvature has grown."""

RELAXATIONS = 3.0
"""Burn-in in units of ``1/(εγ)``, the time in which the variance of the slowest direction settles."""

PROBE_SAMPLES = 256
"""Samples on which the curvature is measured."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    r"""Everything that a reading runs with.

    Attributes:
        sampler: With the step size of this reading.
        nbeta: nβ, fixed for a run.
        localization: γ, fixed for a run.
        sampling: Counts of this reading, burn-in resolved.
        curvature: λ_max at the anchor where it was measured, else NaN.
        stability: The sampler's own number of that curvature, ``ε (nβ λ_max + γ)`` for SGLD; NaN where unknown.
        steps: Share of the steps that this anchor's curvature asks for; below 1 where the cap on them was met.
        calibrated: Which of these were found rather than given.
    """

    sampler: Sampler
    nbeta: float
    localization: float
    sampling: SamplingConfig
    curvature: float = math.nan
    stability: float = math.nan
    steps: float = 1.0
    calibrated: tuple[str, ...] = ()

    @property
    def resolution(self) -> float:
        """Curvature ``γ/nβ`` below which a direction does not count; infinite without the loss."""
        return self.localization / self.nbeta if self.nbeta else math.inf

    @property
    def num_steps(self) -> int:
        """Sampler steps of one chain: adaptation + burn-in + draws × thinning."""
        return self.sampler.adaptation_steps + self.sampling.num_steps

    @property
    def condition(self) -> float:
        """``κ = nβ λ_max / γ``."""
        return self.nbeta * self.curvature / self.localization if self.localization else math.inf


class PosteriorFactory(Protocol):
    """Makes the posterior of one component at given constants."""

    def __call__(self, component: Component, *, nbeta: float, localization: float) -> LocalPosterior:
        """The posterior."""
        ...


def calibrate_relative(
    posterior: PosteriorFactory,
    components: Mapping[str, Component],
    data: SamplingData,
    sampling: SamplingConfig,
    *,
    sampler: Sampler | None,
    nbeta: float | None,
    localization: float | None,
    condition: float = 10.0,
) -> Settings:
    r"""Fill in what the user left open.

    Args:
        posterior: Makes posteriors.
        components: What moves; the largest curvature among them counts.
        data: Samples.
        sampling: Counts; ``num_burnin=None`` is resolved here.
        sampler: The user's, or None for SGLD.
        nbeta: The user's nβ, or None.
        localization: The user's γ, or None.
        condition: κ to aim for at this anchor; γ = nβ λ_max / κ.

    Returns:
        Complete settings, with λ_max and s where a step size, γ or burn-in had to be found.

    Raises:
        ValueError: If γ must be found and the loss has no curvature at the anchor, or nβ is 0.
    """
    left_open = {"sampler": sampler, "nbeta": nbeta, "localization": localization, "num_burnin": sampling.num_burnin}
    calibrated = tuple(name for name, value in left_open.items() if value is None)
    nbeta = NBETA if nbeta is None else nbeta
    if sampler is not None and localization is not None and sampling.num_burnin is not None:
        return Settings(sampler=sampler, nbeta=nbeta, localization=localization, sampling=sampling)
    curvature = max(c.value for c in curvatures(posterior, components, data, sampling, nbeta=nbeta).values())
    if localization is None:
        if nbeta == 0:
            raise ValueError("at nbeta=0 nothing but the localization holds the chains; give localization=")
        if not 0 < curvature < math.inf:
            raise ValueError(
                f"the loss has curvature {curvature:.3g} at the anchor, so no localization can be derived from it; "
                "give localization= (published values: 100 to 300 at nbeta=30)"
            )
        localization = nbeta * curvature / condition
    if sampler is None:
        sampler = SGLD(step_size=STABILITY / max(nbeta * curvature + localization, 1e-12))
    settings = Settings(
        sampler=sampler,
        nbeta=nbeta,
        localization=localization,
        sampling=sampling,
        curvature=curvature,
        stability=sampler.stability(nbeta * curvature + localization),
        calibrated=calibrated,
    )
    return replace(settings, sampling=replace(sampling, num_burnin=_burnin(settings)))


def follow_curvature(settings: Settings, curvature: float) -> Settings:
    r"""The same posterior at an anchor of another curvature: ε is cut where s would pass 0.4, steps are raised.

    Args:
        settings: Of the run, as calibrated at its first reading.
        curvature: λ_max at this anchor.

    Returns:
        Settings of this reading. ε is never raised. Where the curvature asks for more than ``MAX_STRETCH`` times the
        steps, those are capped, and the health check ``steps`` says so.
    """
    sampler, sampling = settings.sampler, settings.sampling
    stability = sampler.step_size * (settings.nbeta * curvature + settings.localization)
    if stability > STABILITY:
        needed = stability / STABILITY
        stretch = min(needed, MAX_STRETCH)
        sampler = replace(sampler, step_size=sampler.step_size * STABILITY / stability)
        burnin = math.ceil((sampling.num_burnin or 0) * stretch)
        sampling = replace(sampling, num_burnin=burnin, thinning=round(sampling.thinning * stretch))
        settings = replace(settings, sampler=sampler, sampling=sampling, steps=stretch / needed)
        stability = STABILITY
    return replace(settings, curvature=curvature, stability=stability)


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
    that curvature: kinks (of ReLUs, say) are seen as smoothed as the chains see them, not as spikes.

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
    if vector is None:
        noise = torch.randn(row.shape, generator=generator(sampling.seed, "curvature"), dtype=row.dtype)
        vector, iterations = noise.to(row.device), 12
    for _ in range(iterations):
        vector = vector / vector.norm()
        delta = _reach(posterior.nbeta, value)
        passes = route(posterior, torch.cat([row + delta * vector, row - delta * vector]))
        gradient = torch.zeros_like(passes.position)
        for batch in batches:
            passes.loss_and_gradient(batch)[1].add_to(gradient, scale=1.0)
        product = (gradient[:1] - gradient[1:]) / (2 * delta * len(batches))
        value = float(product.norm())
        if not math.isfinite(value) or value == 0:
            return Curvature(value, vector)
        vector = product
    return Curvature(value, vector)


def _reach(nbeta: float, curvature: float) -> float:
    """A third of the posterior's standard deviation in a direction of this curvature."""
    return 0.3 / math.sqrt(max(nbeta, 1.0) * max(curvature, 1e-6))


def _probe_batches(data: SamplingData, sampling: SamplingConfig) -> list[ChainBatch]:
    count = min(len(data), PROBE_SAMPLES)
    order = torch.randperm(len(data), generator=generator(sampling.seed, "curvature data"))[:count]
    size = min(max(sampling.batch_size, 64), count)
    return [data.chain_batch(order[i : i + size]) for i in range(0, count - size + 1, size)]


def _burnin(settings: Settings) -> int:
    """Given, or ``RELAXATIONS / (ε γ)`` steps of SGLD, at most ten times the kept ones; else as many as are kept."""
    if settings.sampling.num_burnin is not None:
        return settings.sampling.num_burnin
    kept = settings.sampling.num_draws * settings.sampling.thinning
    if not isinstance(settings.sampler, SGLD):
        return kept
    rate = settings.sampler.step_size * settings.localization
    return min(math.ceil(RELAXATIONS / rate), 10 * kept) if rate > 0 else kept
