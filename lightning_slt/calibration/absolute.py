r"""The absolute target: λ̂ at nβ = n/log n and small γ, by momentum with a step that follows the curvature.

Directions that γ alone holds need about ``λ_max/γ`` steps of SGLD. Underdamped Langevin dynamics crosses them in the
square root of that, as long as minibatch noise does not force its friction up. Two numbers limit its step h, both
measured where the chains *are*: at the anchor they mislead (the curvature is γ at a normal crossing, and grows several
times along the chain in deep linear networks).

* ``Λ``, the largest curvature of ``U = nβ L + (γ/2)‖w − w*‖²``: BAOAB is accurate for ``h² Λ`` well below 4;
* ``S``, the largest variance of ``nβ g`` over minibatches: it heats a direction by the share ``h S / (2η)``.

.. math:: h^2 = \min(0.06/\Lambda,\; 4\tau/S), \qquad \eta = \max(2\sqrt\gamma,\; h S/(2\tau)), \qquad \tau = 0.03

Where S would cost more than momentum gains, minibatches are enlarged instead. A run at 2h beside the one at h shows
what is left of the discretization. Windows double until every test passes, or the steps are used up.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_slt.calibration.walk import Advance, Walk
from lightning_slt.chains import Ensemble, Setting
from lightning_slt.data import SamplingData
from lightning_slt.diagnostics import ess_bulk, rhat
from lightning_slt.health import trace_values
from lightning_slt.posterior import LocalPosterior
from lightning_slt.samplers import UnderdampedLangevin
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import Estimate, Health

HEAT = 0.03
"""τ: the share by which minibatch noise may heat a direction."""

ACCURACY = 0.06
"""``h² Λ`` to aim for."""

AFFORDABLE_FRICTION = 8.0
"""η in units of ``2√γ``, up to which minibatch noise may drive the friction before minibatches are enlarged."""

FIRST_WINDOW = 400
GROWN, RESTARTS = 1.7, 8
"""A window starts again, so many times at most, where the curvature has grown by that much since its step was set."""

TESTS: Mapping[str, float] = {"rhat": 1.1, "drift": 2.0, "stderr": 0.03, "doubled": 0.1, "negative": 2.0, "below": 0.5}
"""What a window is held against: see :func:`judge_window`."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """The longest window of a run towards the absolute target.

    Attributes:
        setting: Posterior and sampler.
        batch_size: Samples a minibatch, enlarged where noise asked for it.
        estimate: λ̂ of the window's last half, with its traces; its health holds the tests that refused it.
        doubled: The same at twice the step, untested.
        curvature: Λ.
        noise: S.
        window: Steps of the window; the first half is its burn-in.
        steps: Steps of a chain in all.
    """

    setting: Setting
    batch_size: int
    estimate: Estimate
    doubled: Estimate
    curvature: float
    noise: float
    window: int
    steps: int


def attempt_absolute(
    posterior: LocalPosterior,
    data: SamplingData,
    config: SamplingConfig,
    *,
    anchor_losses: Tensor | None = None,
    max_steps: int,
    on_step: Advance | None = None,
) -> Attempt:
    """Find step and friction, and run until λ̂ can be relied on or the steps are used up.

    Args:
        posterior: At the nβ and γ of the target; γ must be positive.
        data: Samples.
        config: Chains (32 and more make the tests sharp), smallest batch size, seed, route.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known.
        max_steps: Of one chain.
        on_step: Called after every step with the number of chains that made it.

    Returns:
        The last window, accepted where its health is ok.

    Raises:
        ValueError: If the loss has no finite curvature at the anchor.
    """
    with torch.no_grad():
        walk = Walk(posterior, data, config, anchor_losses, on_step)
        curvature, position = walk.pilot()
        config, noise = _enlarge(config, walk.noise(position), curvature, posterior, len(data))
        walk.config = config
        return _windows(walk, position, curvature, noise, max_steps)


def pace(curvature: float, noise: float, localization: float) -> tuple[float, float]:
    r"""Step h and friction η of the module's formula, from Λ, S and γ.

    >>> h, friction = pace(600.0, 0.0, 1.0)
    >>> round(h, 4), friction
    (0.01, 2.0)
    """
    h = math.sqrt(min(ACCURACY / curvature, 4 * HEAT / noise if noise else math.inf))
    return h, max(2 * math.sqrt(localization), h * noise / (2 * HEAT))


def judge_window(rise: Tensor, doubled: Tensor, nbeta: float) -> tuple[Estimate, Estimate]:
    r"""λ̂ of a window, with the tests that it has to pass.

    * ``rhat``: split R̂ below 1.1, which sees slow directions held by γ alone;
    * ``drift``: the last two quarters differ by less than 2 standard errors, or 1 %;
    * ``stderr``: standard error below 3 % of the value;
    * ``doubled``: the value at 2h differs by less than 10 %;
    * ``negative``: not below zero by more than 2 standard errors, and ``below``: most draws above the loss at the
      anchor, else the anchor is no minimum.

    Args:
        rise: Loss above the anchor at h ``[chain, draw]``, in nats.
        doubled: The same at 2h.
        nbeta: nβ.

    Returns:
        The estimate, and that at 2h.
    """
    single, twice = _value(rise, nbeta), _value(doubled, nbeta)
    mean, stderr = single.mean, single.stderr
    trace = trace_values(rise)
    values = {
        "rhat": rhat(rise),
        "drift": abs(trace["drift"]),
        "stderr": stderr / abs(mean) if mean else math.inf,
        "doubled": abs(twice.mean / mean - 1) if mean else math.inf,
        "negative": -mean / stderr if stderr else math.nan,
        "below": trace["below_anchor"],
    }
    failed = tuple(name for name, bound in TESTS.items() if not values[name] < bound)
    values["ess_bulk"] = ess_bulk(rise)
    return replace(single, health=Health(ok=not failed, failed=failed, values=values)), twice


def _value(rise: Tensor, nbeta: float) -> Estimate:
    per_chain = nbeta * rise.mean(1)
    stderr = float(per_chain.std()) / math.sqrt(len(per_chain))
    untested = Health(ok=True)
    return Estimate(
        mean=float(per_chain.mean()), stderr=stderr, per_chain=per_chain, health=untested, traces={"loss": rise}
    )


def _windows(walk: Walk, start: Tensor, curvature: float, noise: float, max_steps: int) -> Attempt:
    """Run windows of doubling length, at h and 2h side by side."""
    ensemble: Ensemble | None = None
    for restart in range(RESTARTS + 1):
        h, friction = pace(curvature, noise, walk.posterior.localization)
        samplers = [UnderdampedLangevin(step_size=k * h, friction=friction) for k in (1, 2)]
        settings = [Setting(posterior=walk.posterior, sampler=s) for s in samplers]
        ensemble = ensemble or walk.ensemble(samplers)
        ensemble.use(settings)
        ensemble.position.copy_(start)
        for window, rises in _doubling(walk, ensemble, max_steps):
            now = walk.curvature(ensemble.position[0])
            finite = bool(rises[..., -1].isfinite().all()) and math.isfinite(now)
            if restart < RESTARTS and not (finite and now < GROWN * curvature):
                start = ensemble.position[0].clone() if finite else start
                curvature = now if finite and now > curvature else 2 * curvature
                break
            single, twice = rises[..., window // 2 :]
            estimate, doubled = judge_window(single, twice, walk.posterior.nbeta)
            attempt = Attempt(
                setting=settings[0],
                batch_size=walk.config.batch_size,
                estimate=estimate,
                doubled=doubled,
                curvature=curvature,
                noise=noise,
                window=window,
                steps=walk.steps,
            )
            if estimate.health.ok:
                return attempt
        else:
            return attempt
    raise AssertionError("the last restart cannot break off")


def _doubling(walk: Walk, ensemble: Ensemble, max_steps: int) -> Iterator[tuple[int, Tensor]]:
    """Windows of doubling length, each with the rises of all its steps ``[setting, chain, step]``; one at least."""
    done, window = 0, FIRST_WINDOW
    parts: list[Tensor] = []
    while done == 0 or walk.steps + window - done <= max_steps:
        parts.append(walk.advance(ensemble, window - done))
        yield window, torch.cat(parts, 2)
        done, window = window, 2 * window


def _enlarge(
    config: SamplingConfig, noise: float, curvature: float, posterior: LocalPosterior, count: int
) -> tuple[SamplingConfig, float]:
    r"""Minibatches large enough for ``η ≤ 8·2√γ`` at the step that Λ allows, and their S.

    Without replacement ``S ∝ 1/B − 1/n``. Above half of the samples all of them are taken: the last step is exact.
    """
    root = math.sqrt(posterior.localization)
    allowed = min(2 * curvature, AFFORDABLE_FRICTION * 2 * root * 2 * HEAT / math.sqrt(ACCURACY / curvature))
    if noise <= allowed:
        return config, noise
    share = 1 / config.batch_size - 1 / count
    size = math.ceil(1 / (allowed / noise * share + 1 / count))
    if 2 * size >= count:
        return replace(config, batch_size=count), 0.0
    return replace(config, batch_size=size), noise * (1 / size - 1 / count) / share
