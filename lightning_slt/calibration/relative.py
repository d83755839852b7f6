r"""Settings without the user: the relative target, a curve comparable over one run at small cost.

With ``λ_max`` the largest curvature of the loss at the anchor, two numbers decide:

* the *stability number* ``s = ε (nβ λ_max + γ)``: SGLD diverges at 4, and its values are right within a few percent
  below 0.2;
* the *condition* ``κ = nβ λ_max / γ``: a chain needs about ``κ / s`` steps to reach equilibrium, and directions with
  curvature below the *resolution* ``γ / nβ`` do not count.

So nβ = 30, γ from λ_max by a fixed κ, ε from s, and the burn-in from ``1 / (ε γ)``. nβ and γ define the posterior and
stay fixed for a run. λ_max changes several times over in training, so ε and the number of steps follow it: where s
would pass 0.2 the step is cut and the steps per draw are raised in proportion, up to a cap.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from lightning_slt.calibration.curvature import PosteriorFactory, curvatures
from lightning_slt.calibration.settings import Settings
from lightning_slt.components import Component
from lightning_slt.data import SamplingData
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig

NBETA = 30.0
"""Default nβ: with n/log n a chain keeps training a network that still learns, and does not converge."""

STABILITY = 0.2
"""Aim for ``ε (nβ λ_max + γ)``. On digits with minibatches of 64, SGLD's values were 4 to 8 % too high at 0.2, and 8 to
17 % at 0.4: length of step and minibatch noise together."""

MAX_STRETCH = 8
"""How many times more steps a reading may take where the curvature has grown."""

OUTGROWN = 30.0
"""κ at which a run has outgrown its γ: its chains would not converge in the steps of a reading any more."""

RENEWED_CONDITION = 5.0
"""κ with which it goes on: between 3 and 10 curves converge and count enough directions."""

RELAXATIONS = 3.0
"""Burn-in in units of ``1/(εγ)``, the time in which the variance of the slowest direction settles."""


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
    known = sampler is not None and sampling.num_burnin is not None and math.isnan(sampler.stability(1.0))
    if sampler is not None and localization is not None and known:  # λ_max would tell nothing
        return Settings(sampler=sampler, nbeta=nbeta, localization=localization, sampling=sampling)
    curvature = max(c.value for c in curvatures(posterior, components, data, sampling, nbeta=nbeta).values())
    if localization is None:
        localization = _localization(nbeta, curvature, condition)
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


def renew(settings: Settings, curvature: float, sampling: SamplingConfig) -> Settings:
    r"""Another posterior for a run that has outgrown its own: γ from the present curvature, nβ as before.

    Args:
        settings: Of the run so far.
        curvature: λ_max now.
        sampling: Counts as the user gave them.

    Returns:
        Settings with κ = ``RENEWED_CONDITION`` at that curvature.
    """
    gamma = _localization(settings.nbeta, curvature, RENEWED_CONDITION)
    renewed = replace(
        settings,
        sampler=SGLD(step_size=STABILITY / (settings.nbeta * curvature + gamma)),
        localization=gamma,
        sampling=sampling,
        curvature=curvature,
        stability=STABILITY,
        steps=1.0,
    )
    return replace(renewed, sampling=replace(sampling, num_burnin=_burnin(renewed)))


def _localization(nbeta: float, curvature: float, condition: float) -> float:
    if nbeta == 0:
        raise ValueError("at nbeta=0 nothing but the localization holds the chains; give localization=")
    if not 0 < curvature < math.inf:
        raise ValueError(
            f"the loss has curvature {curvature:.3g} at the anchor, so no localization can be derived from it; "
            "give localization= (published values: 100 to 300 at nbeta=30)"
        )
    return nbeta * curvature / condition


def follow_curvature(settings: Settings, curvature: float) -> Settings:
    r"""The same posterior at an anchor of another curvature: ε is cut where s would pass 0.2, steps are raised.

    Args:
        settings: Of the run, as calibrated at its first reading.
        curvature: λ_max at this anchor.

    Returns:
        Settings of this reading. ε is never raised, and a larger s that a search found safe is kept. Where the
        curvature asks for more than ``MAX_STRETCH`` times the steps, those are capped, and the health check ``steps``
        says so.
    """
    sampler, sampling = settings.sampler, settings.sampling
    limit = max(STABILITY, settings.stability) if math.isfinite(settings.stability) else STABILITY
    stability = sampler.step_size * (settings.nbeta * curvature + settings.localization)
    if stability > limit:
        needed = stability / limit
        stretch = min(needed, MAX_STRETCH)
        sampler = replace(sampler, step_size=sampler.step_size * limit / stability)
        burnin = math.ceil((sampling.num_burnin or 0) * stretch)
        sampling = replace(sampling, num_burnin=burnin, thinning=round(sampling.thinning * stretch))
        settings = replace(settings, sampler=sampler, sampling=sampling, steps=stretch / needed)
        stability = limit
    return replace(settings, curvature=curvature, stability=stability)


def _burnin(settings: Settings) -> int:
    """Given, or ``RELAXATIONS / (ε γ)`` steps of SGLD, at most ten times the kept ones; else as many as are kept."""
    if settings.sampling.num_burnin is not None:
        return settings.sampling.num_burnin
    kept = settings.sampling.num_draws * settings.sampling.thinning
    if not isinstance(settings.sampler, SGLD):
        return kept
    rate = settings.sampler.step_size * settings.localization
    return min(math.ceil(RELAXATIONS / rate), 10 * kept) if rate > 0 else kept
