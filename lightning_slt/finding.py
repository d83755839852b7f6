"""Settings found by experiment: ``calibrate`` sweeps, or walks until a value can be relied on, and says why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from lightning_slt.calibration import NBETA, Settings, curvatures
from lightning_slt.calibration.absolute import Attempt, attempt_absolute
from lightning_slt.calibration.sweep import Trial, build_grid, choose, sweep
from lightning_slt.components import Component, resolve_components
from lightning_slt.data import load_data
from lightning_slt.functional import ModuleLoss, cast_batch
from lightning_slt.isolation import isolated
from lightning_slt.plan import Snapshot, check_settings, prepare, take_snapshot
from lightning_slt.preflight import anchor_losses, fit_chunk
from lightning_slt.reporting.calibration import calibration_figure, calibration_table
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed
from lightning_slt.sources import source_parts
from lightning_slt.types import LossFn, is_amount

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Literal["relative", "absolute"]
Amounts = float | list[float] | tuple[float, ...] | None

ABSOLUTE_CHAINS = 64
"""Chains of the absolute target where the user names none: its tests are only as sharp as they are many."""

FEWEST_CHAINS = 8
"""Chains of the absolute target where memory binds."""

MOST_DRAWS = 1000
"""Draws of the suggestion for the absolute target; the rest is thinning."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a search found.

    Attributes:
        target: "relative" or "absolute".
        trials: Every setting tried, with its estimate and trace; of the absolute target the last one at h and at 2h.
        chosen: The trial that is suggested; None where none can be relied on.
        settings: All that a reading needs; None where nothing is suggested.
        reason: Why this one, or why none.
        curvature: λ_max at the anchor.
    """

    target: Target
    trials: tuple[Trial, ...]
    chosen: Trial | None
    settings: Settings | None
    reason: str
    curvature: float

    @property
    def accepted(self) -> bool:
        """Whether there is a suggestion."""
        return self.settings is not None

    def keywords(self) -> dict[str, Any]:
        """Keywords for monitors and ``estimate``: ``LLCMonitor(**calibration.keywords())``.

        Returns:
            ``sampler``, ``nbeta``, ``localization`` and ``sampling``.

        Raises:
            ValueError: If nothing is suggested; says why.
        """
        if self.settings is None:
            raise ValueError(f"the calibration suggests nothing: {self.reason}")
        found = self.settings
        return {
            "sampler": found.sampler,
            "nbeta": found.nbeta,
            "localization": found.localization,
            "sampling": found.sampling,
        }

    def plot(self) -> Figure:
        """The sweep as a picture; needs matplotlib (``pip install lightning_slt[plot]``)."""
        return calibration_figure(self.trials, self.chosen, title=f"{self.target} target: {self.reason}")

    def table(self) -> str:
        """All trials as a Markdown table."""
        return calibration_table(self.trials, self.chosen)

    def __str__(self) -> str:
        """The suggestion and its reason."""
        if self.chosen is None:
            return f"no suggestion ({self.target} target): {self.reason}"
        estimate = self.chosen.estimate
        return (
            f"{self.chosen.sampler}, nbeta={self.chosen.nbeta:.4g}, localization={self.chosen.localization:.4g}: "
            f"LLC {estimate.mean:.4g} ± {estimate.stderr:.2g}; {self.reason}"
        )


def calibrate(
    module: nn.Module,
    data: Any,
    *,
    target: Target = "relative",
    sampler: Sampler | None = None,
    step_size: Amounts = None,
    nbeta: Amounts = None,
    localization: Amounts = None,
    sampling: SamplingConfig | None = None,
    components: str | Mapping[str, Component] | Component | None = None,
    loss_fn: LossFn | None = None,
    max_steps: int = 50_000,
    on_step: Callable[[int], None] | None = None,
) -> Calibration:
    r"""Find sampler settings for a module at its present weights, without changing it.

    * ``target="relative"``: a curve that can be compared over a run at small cost. Sweeps ε × nβ × γ, all settings as
      one batch of chains; refuses those that do not converge or whose steps are too long; suggests the finest
      resolution γ/nβ that is left, an nβ on the plateau of λ̂(nβ) and the longest unbiased ε.
    * ``target="absolute"``: λ̂ close to λ, at nβ = n/log n and γ = 1, by underdamped Langevin dynamics with a step that
      follows the curvature along the chains. Takes thousands of steps; for small networks and ground truth.

    Args:
        module: The network, on its device.
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
        target: Which of the two.
        sampler: Of the sweep, its step size varied; None is SGLD. The absolute target has its own.
        step_size: ε to try, one or several; None for a grid derived from the curvature.
        nbeta: nβ to try; None is (10, 30, 100), or n/log n for the absolute target.
        localization: γ to try; None is nβ λ_max over (3, 10, 30), or 1 for the absolute target.
        sampling: Counts. A sweep makes as many steps of burn-in as it keeps; the absolute target decides on its own
            how long it runs and takes chains and smallest batch size from here (64 chains where nothing is given).
        components: What moves; of several the one with the largest curvature is calibrated on.
        loss_fn: ``loss_fn(module, batch)``; None derives it.
        max_steps: Of one chain, for the absolute target.
        on_step: Called after every step with the number of chains that made it, for a progress display.

    Returns:
        The suggestion with its reason, or none with the reason; and everything that was tried.

    Raises:
        TypeError: If there is no loss to be had, or data cannot be indexed.
        ValueError: For settings, data or losses that cannot be sampled.

    >>> import torch
    >>> import lightning_slt as slt
    >>> from torch.utils.data import TensorDataset
    >>> net = nn.Linear(3, 1)
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> found = calibrate(net, TensorDataset(x, net(x).detach()), nbeta=30.0, step_size=[2e-3, 4e-3], localization=10.0,
    ...                   loss_fn=slt.losses.regression)
    >>> found.accepted, sorted(found.keywords())
    (True, ['localization', 'nbeta', 'sampler', 'sampling'])
    """
    check_settings(sampler=sampler, nbeta=None, localization=None, sampling=sampling)
    grids = {
        name: _amounts(name, value)
        for name, value in (("step_size", step_size), ("nbeta", nbeta), ("localization", localization))
    }
    if target not in ("relative", "absolute"):
        raise ValueError(f"target must be 'relative' or 'absolute', got {target!r}")
    if target == "absolute" and (sampler is not None or step_size is not None):
        raise ValueError("the absolute target finds its own sampler and step size; leave sampler= and step_size= out")
    config = sampling or SamplingConfig(num_chains=ABSOLUTE_CHAINS if target == "absolute" else 8)
    with isolated(module, seed=derive_seed(config.seed, "reading"), also=(loss_fn, source_parts(data)[1])):
        module_loss = ModuleLoss(module, loss_fn)
        device, dtype = module_loss.device, module_loss.dtype
        samples = load_data(data, to_device=lambda b: cast_batch(b, device=device, dtype=dtype), seed=config.seed)
        snapshot = take_snapshot(module_loss, samples, resolve_components(module, components), config)
        resolved = prepare(snapshot, config, localization=1.0)
        if target == "absolute":
            return _absolute(snapshot, resolved, config, grids, max_steps, on_step)
        return search(snapshot, resolved, config, sampler or SGLD(step_size=1.0), grids, on_step)


def search(
    snapshot: Snapshot,
    resolved: SamplingConfig,
    asked: SamplingConfig,
    sampler: Sampler,
    grids: Mapping[str, Sequence[float] | None],
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


def _absolute(
    snapshot: Snapshot,
    resolved: SamplingConfig,
    asked: SamplingConfig,
    grids: Mapping[str, Sequence[float] | None],
    max_steps: int,
    on_step: Callable[[int], None] | None,
) -> Calibration:
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


def _amounts(name: str, given: Amounts) -> list[float] | None:
    """A list of positive numbers, from one or several; None stays None."""
    if given is None:
        return None
    values = list(given) if isinstance(given, list | tuple) else [given]
    if not values or not all(is_amount(v) and v > 0 for v in values):
        raise ValueError(f"{name} must be a positive number or several, such as {name}=[1e-4, 1e-3], got {given!r}")
    return [float(v) for v in values]


def _single(name: str, grids: Mapping[str, Sequence[float] | None]) -> float | None:
    values = grids[name]
    if values is None:
        return None
    if len(values) > 1:
        raise ValueError(f"the absolute target is defined by one {name}, got {list(values)}")
    return values[0]
