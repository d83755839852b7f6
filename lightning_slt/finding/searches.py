"""The two searches on a snapshot: a sweep for the relative target, a walk for the absolute one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from lightning_slt.calibration import NBETA, Settings, curvatures
from lightning_slt.calibration.absolute import Attempt, attempt_absolute
from lightning_slt.calibration.sweep import CONDITIONS, NBETAS, STABILITIES, Trial, build_grid, choose, sweep
from lightning_slt.components import Component
from lightning_slt.finding.result import Calibration
from lightning_slt.preflight import anchor_losses, fit_chunk
from lightning_slt.samplers import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.snapshot import Snapshot
from lightning_slt.types import is_amount

Grids = Mapping[str, list[float] | None]
Amounts = float | list[float] | tuple[float, ...] | None

FEWEST_CHAINS = 8
"""Chains of the absolute target where memory binds."""

MOST_DRAWS = 1000
"""Draws of the suggestion for the absolute target; the rest is thinning."""


def search(
    snapshot: Snapshot,
    resolved: SamplingConfig,
    asked: SamplingConfig,
    sampler: Sampler,
    grids: Grids,
    on_step: Callable[[int], None] | None,
) -> Calibration:
    """Sweep for the relative target; call inside ``isolated``.

    Args:
        snapshot: The network and the data.
        resolved: Counts, with the route found out.
        asked: Counts as the user gave them, for the suggestion.
        sampler: Whose step size is varied.
        grids: Values to try of ``step_size``, ``nbeta`` and ``localization``; None for the default.
        on_step: Called after every step with the number of chains that made it.
    """
    component, curvature = _stiffest(snapshot, resolved)
    if grids["localization"] is None and not 0 < curvature < math.inf:
        raise ValueError(
            f"the loss has curvature {curvature:.3g} at the anchor, so no grid can be derived from it; give "
            "localization= and step_size= (published values: localization 100 to 300 at nbeta=30)"
        )
    grid = build_grid(
        curvature,
        sampler,
        step_sizes=grids["step_size"],
        nbetas=grids["nbeta"],
        localizations=grids["localization"],
    )
    known = anchor_losses(snapshot.loss, snapshot.module_loss.weights, snapshot.data, resolved)
    trials = sweep(
        snapshot.posterior,
        component,
        snapshot.data,
        resolved,
        grid,
        curvature=curvature,
        anchor_losses=known,
        on_step=on_step,
    )
    choice = choose(trials)
    settings = None
    if choice.trial is not None:
        kept = asked.num_draws * asked.thinning
        settings = _settings(choice.trial, replace(asked, num_burnin=kept), curvature)
    return Calibration(
        target="relative",
        trials=tuple(trials),
        chosen=choice.trial,
        settings=settings,
        reason=choice.reason,
        curvature=curvature,
    )


def reach_absolute(
    snapshot: Snapshot,
    resolved: SamplingConfig,
    asked: SamplingConfig,
    grids: Grids,
    max_steps: int,
    on_step: Callable[[int], None] | None,
) -> Calibration:
    """Walk until the absolute target is reached or given up; call inside ``isolated``. Arguments as `search`."""
    component, curvature = _stiffest(snapshot, resolved)
    total = snapshot.data.total
    nbeta = _single("nbeta", grids) or total / math.log(max(total, 2))
    gamma = _single("localization", grids) or 1.0
    posterior = snapshot.posterior(component, nbeta=nbeta, localization=gamma)
    rows = replace(resolved, num_chains=4 * resolved.num_chains)  # h and 2h; curvature looks to both sides
    fitting = (fit_chunk(posterior, snapshot.batch(resolved), rows).chunk_size or 1) // 4
    config = replace(resolved, num_chains=max(FEWEST_CHAINS, min(resolved.num_chains, fitting)))
    attempt = attempt_absolute(
        posterior,
        snapshot.data,
        config,
        anchor_losses=anchor_losses(snapshot.loss, snapshot.module_loss.weights, snapshot.data, config),
        max_steps=max_steps,
        on_step=on_step,
    )
    trials = tuple(_attempted(attempt, doubled=doubled) for doubled in (False, True))
    estimate = attempt.estimate
    if not estimate.health.ok:
        failing = ", ".join(f"{name} {estimate.health.values[name]:.3g}" for name in estimate.health.failed)
        reason = f"after {attempt.steps} steps λ̂ = {estimate.mean:.4g} cannot be relied on: {failing}"
        return Calibration(
            target="absolute", trials=trials, chosen=None, settings=None, reason=reason, curvature=curvature
        )
    kept = attempt.window // 2
    thinning = math.ceil(kept / MOST_DRAWS)
    counts = replace(
        asked,
        num_chains=config.num_chains,
        batch_size=attempt.batch_size,
        num_burnin=attempt.steps - kept,
        num_draws=kept // thinning,
        thinning=thinning,
    )
    return Calibration(
        target="absolute",
        trials=trials,
        chosen=trials[0],
        settings=_settings(trials[0], counts, curvature),
        reason=f"every test passed in a window of {attempt.window} steps; at twice the step λ̂ is "
        f"{attempt.doubled.mean:.4g}",
        curvature=curvature,
    )


def _attempted(attempt: Attempt, *, doubled: bool) -> Trial:
    posterior, sampler = attempt.setting.posterior, attempt.setting.sampler
    estimate = attempt.doubled if doubled else attempt.estimate
    return Trial(
        sampler=replace(sampler, step_size=2 * sampler.step_size) if doubled else sampler,
        nbeta=posterior.nbeta,
        localization=posterior.localization,
        condition=attempt.curvature / posterior.localization,
        estimate=estimate,
        trace=estimate.traces["loss"],
        refused=tuple(f"{name} {estimate.health.values[name]:.3g}" for name in estimate.health.failed),
    )


def _settings(trial: Trial, sampling: SamplingConfig, curvature: float) -> Settings:
    return Settings(
        sampler=trial.sampler,
        nbeta=trial.nbeta,
        localization=trial.localization,
        sampling=sampling,
        curvature=curvature,
        stability=trial.sampler.stability(trial.nbeta * curvature + trial.localization),
        calibrated=("sampler", "nbeta", "localization", "num_burnin"),
    )


def _stiffest(snapshot: Snapshot, config: SamplingConfig) -> tuple[Component, float]:
    """The component with the largest curvature, and that curvature."""
    found = curvatures(snapshot.posterior, snapshot.components, snapshot.data, config, nbeta=NBETA)
    name = max(found, key=lambda n: found[n].value)
    return snapshot.components[name], found[name].value


def grid_values(*, step_size: Amounts, nbeta: Amounts, localization: Amounts) -> Grids:
    """What the user wants to be tried, as lists.

    Raises:
        ValueError: For values that are no positive numbers.
    """
    given = {"step_size": step_size, "nbeta": nbeta, "localization": localization}
    return {name: _amounts(name, value) for name, value in given.items()}


def grid_size(grids: Grids) -> int:
    """How many settings a sweep tries."""
    defaults = {"step_size": STABILITIES, "nbeta": NBETAS, "localization": CONDITIONS}
    return math.prod(len(grids[name] or default) for name, default in defaults.items())


def _amounts(name: str, given: Amounts) -> list[float] | None:
    """A list of positive numbers, from one or several; None stays None."""
    if given is None:
        return None
    values = list(given) if isinstance(given, list | tuple) else [given]
    if not values or not all(is_amount(v) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive number or several, such as {name}=[1e-4, 1e-3], got {given!r}")
    return [float(v) for v in values]


def _single(name: str, grids: Grids) -> float | None:
    values = grids[name]
    if values is None:
        return None
    if len(values) > 1:
        raise ValueError(f"the absolute target is defined by one {name}, got {list(values)}")
    return values[0]
