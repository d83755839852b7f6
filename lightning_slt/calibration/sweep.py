r"""A sweep over step sizes, nβ and γ, all settings as one batch of chains, and the choice among them.

The default grid is dimensionless. With λ_max the largest curvature at the anchor, each ``κ = nβ λ_max / γ`` gives a γ
and each ``s`` (:meth:`Sampler.stability`, ``ε (nβ λ_max + γ)`` for SGLD) a step size. Directions with curvature below
the resolution ``γ/nβ = λ_max/κ`` do not count, so λ̂ grows with κ; at one κ it should depend little on nβ, and on ε not
at all: two plateaus, which the sweep shows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lightning_slt.calibration.curvature import PosteriorFactory
from lightning_slt.chains import Ensemble, Setting
from lightning_slt.components import Component
from lightning_slt.data import SamplingData
from lightning_slt.estimators import LLC
from lightning_slt.estimators.base import Accumulator, Run
from lightning_slt.health import Thresholds
from lightning_slt.preflight import fit_chunk
from lightning_slt.samplers import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import Estimate

NBETAS = (10.0, 30.0, 100.0)
CONDITIONS = (3.0, 10.0, 30.0)
STABILITIES = (0.05, 0.1, 0.2, 0.4, 0.8)
"""The default grid."""

PLATEAU = 0.1
"""Values are on a plateau where they differ by less than this share, or by less than 2 standard errors."""

ACCEPTED = 0.8
"""Least probability with which a Metropolis correction would accept a step: below, λ̂ was 5 to 15 % too high."""

PREFERRED_NBETA = 30.0

LOOKS = 8
"""How often the acceptance is measured."""

CONVERGED = Thresholds(rhat=(None, 1.1), drift=(None, 2.5), step_size=(None, 1.0))
"""Stricter than those of a reading: a setting that is to serve a whole run should leave nothing to warn of."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting of a sweep.

    Attributes:
        sampler: With its step size.
        nbeta: nβ.
        localization: γ.
        condition: κ = nβ λ_max / γ at the anchor.
        estimate: λ̂ of the second half of the steps.
        trace: Loss above the anchor from the first step on ``[chain, step]``, in nats.
        refused: Why it is no candidate; empty where it is one.
    """

    sampler: Sampler
    nbeta: float
    localization: float
    condition: float
    estimate: Estimate
    trace: Tensor = field(repr=False)
    refused: tuple[str, ...] = ()

    @property
    def acceptance(self) -> float:
        """Probability of acceptance of a Metropolis correction; NaN where the sampler proposes nothing."""
        return self.estimate.health.values.get("acceptance", math.nan)


def build_grid(
    curvature: float,
    sampler: Sampler,
    *,
    step_sizes: Sequence[float] | None = None,
    nbetas: Sequence[float] | None = None,
    localizations: Sequence[float] | None = None,
) -> list[tuple[Sampler, float, float]]:
    """Sampler, nβ and γ of every setting: all combinations of what is given and, for the rest, of the default grid.

    Args:
        curvature: λ_max at the anchor.
        sampler: Of which only the step size is varied.
        step_sizes: ε; None for those of ``STABILITIES``.
        nbetas: nβ; None for ``NBETAS``.
        localizations: γ; None for those of ``CONDITIONS``.

    Raises:
        ValueError: For a sampler whose stability cannot be told from a curvature, without step sizes.
    """
    grid = []
    for nbeta in NBETAS if nbetas is None else nbetas:
        for gamma in [nbeta * curvature / k for k in CONDITIONS] if localizations is None else localizations:
            precision = nbeta * curvature + gamma
            steps = [stable_step(sampler, precision, s) for s in STABILITIES] if step_sizes is None else step_sizes
            grid += [(replace(sampler, step_size=step), float(nbeta), float(gamma)) for step in steps]
    return grid


def stable_step(sampler: Sampler, precision: float, stability: float) -> float:
    """Step size at which :meth:`Sampler.stability` has a value; it is a power of the step size.

    Raises:
        ValueError: For a sampler whose stability cannot be told from a curvature.

    >>> from lightning_slt.samplers import SGLD, UnderdampedLangevin
    >>> stable_step(SGLD(step_size=1.0), 100.0, 0.4)
    0.004
    >>> stable_step(UnderdampedLangevin(step_size=1.0, friction=1.0), 100.0, 0.04)
    0.02
    """
    once, twice = (replace(sampler, step_size=e).stability(precision) for e in (1.0, 2.0))
    if not once > 0:
        raise ValueError(
            f"{type(sampler).__name__} has no step size that follows from a curvature; write step_sizes=[…], "
            "e.g. step_sizes=[1e-5, 1e-4, 1e-3]"
        )
    return float((stability / once) ** (1 / math.log2(twice / once)))


def sweep(
    posterior: PosteriorFactory,
    component: Component,
    data: SamplingData,
    config: SamplingConfig,
    grid: Sequence[tuple[Sampler, float, float]],
    *,
    curvature: float,
    anchor_losses: Tensor | None = None,
    on_step: Callable[[int], None] | None = None,
) -> list[Trial]:
    """Run every setting with the same noise and minibatches, as many together as memory allows.

    Args:
        posterior: Makes posteriors.
        component: What moves.
        data: Samples.
        config: Counts; half of ``num_draws × thinning`` twice over: as many steps of burn-in as are kept.
        grid: Sampler, nβ and γ of every setting.
        curvature: λ_max at the anchor.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known.
        on_step: Called after every step with the number of chains that made it.

    Returns:
        One trial a setting, in order.
    """
    settings = [Setting(posterior=posterior(component, nbeta=n, localization=g), sampler=s) for s, n, g in grid]
    rows = replace(config, num_chains=config.num_chains * len(settings))
    batch = data.chain_batch(torch.arange(min(config.batch_size, len(data))))
    fitting = fit_chunk(settings[0].posterior, batch, rows).chunk_size or 1
    size = max(1, fitting // config.num_chains)
    trials = []
    with torch.no_grad():
        for start in range(0, len(settings), size):
            chunk = settings[start : start + size]
            trials += _run_together(chunk, data, config, curvature, anchor_losses, on_step)
    return trials


def _run_together(
    settings: Sequence[Setting],
    data: SamplingData,
    config: SamplingConfig,
    curvature: float,
    anchor_losses: Tensor | None,
    on_step: Callable[[int], None] | None,
) -> list[Trial]:
    ensemble = Ensemble(settings, data, config, anchor_losses=anchor_losses)
    kept = config.num_draws * config.thinning
    burnin = kept + max(s.sampler.adaptation_steps for s in settings)
    accumulators = [_accumulator(s, config, curvature, ensemble.position.device) for s in settings]
    rises, every = [], max(1, kept // LOOKS)
    for step in range(burnin + kept):
        index = (step - burnin) // config.thinning
        look = step >= burnin and (step - burnin) % every == 0
        draws = ensemble.draws(max(index, 0), look=look)
        rises.append(torch.stack([d.loss.double() - d.anchor_loss.double() for d in draws]))
        if step >= burnin and (step - burnin) % config.thinning == 0:
            for accumulator, draw in zip(accumulators, draws, strict=True):
                accumulator.update(draw)
        ensemble.move(look=step + 1 >= burnin and (step + 1 - burnin) % every == 0)
        if on_step is not None:
            on_step(len(settings) * config.num_chains)
    traces = torch.stack(rises, 2).cpu()
    return [
        _trial(setting, accumulator.compute(), trace, curvature)
        for setting, accumulator, trace in zip(settings, accumulators, traces, strict=True)
    ]


def _accumulator(setting: Setting, config: SamplingConfig, curvature: float, device: torch.device) -> Accumulator:
    posterior = setting.posterior
    run = Run(
        num_chains=config.num_chains,
        num_draws=config.num_draws,
        nbeta=posterior.nbeta,
        localization=posterior.localization,
        dimension=posterior.dimension,
        share_batches=config.share_batches,
        stability=setting.sampler.stability(posterior.nbeta * curvature + posterior.localization),
        device=device,
    )
    return LLC(thresholds=CONVERGED).start(run)


def _trial(setting: Setting, estimate: Estimate, trace: Tensor, curvature: float) -> Trial:
    posterior, values = setting.posterior, estimate.health.values
    refused = [f"{name} {values.get(name, math.nan):.3g}" for name in estimate.health.failed]
    if values.get("acceptance", 1.0) < ACCEPTED:
        refused.append(f"acceptance {values['acceptance']:.2f}")
    return Trial(
        sampler=setting.sampler,
        nbeta=posterior.nbeta,
        localization=posterior.localization,
        condition=posterior.nbeta * curvature / posterior.localization if posterior.localization else math.inf,
        estimate=estimate,
        trace=trace,
        refused=tuple(refused),
    )


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a sweep suggests.

    Attributes:
        trial: The setting; None where none will do.
        reason: Why this one, or why none.
    """

    trial: Trial | None
    reason: str


def choose(trials: Sequence[Trial]) -> Choice:
    r"""The finest resolution at which chains converge, the nβ at which λ̂ changes least, the longest step without bias.

    For each nβ and γ the longest step size that was not refused and up to which λ̂ is flat; among those the largest κ;
    among those the nβ nearest to 30, of those on a plateau where there are any: λ̂ changes by less than a tenth towards
    some other nβ.
    """
    best = [t for t in (_longest_step(group) for group in _groups(trials)) if t is not None]
    if not best:
        return Choice(trial=None, reason="no setting of the sweep will do: " + _commonest_refusal(trials))
    finest = max(t.condition for t in best)
    finalists = [t for t in best if t.condition > 0.9 * finest]
    changes = {id(t): _change(t, finalists) for t in finalists}
    steady = [t for t in finalists if changes[id(t)] <= PLATEAU]
    chosen = min(steady or finalists, key=lambda t: abs(math.log(t.nbeta / PREFERRED_NBETA)))
    change = changes[id(chosen)]
    words = [
        f"κ = {chosen.condition:.3g} is the finest resolution at which {chosen.trace.shape[1]} steps converge",
        f"ε = {chosen.sampler.step_size:.3g} is {_step_reason(chosen, trials)}",
    ]
    if math.isfinite(change):
        plateau = "on the plateau" if change <= PLATEAU else "no plateau"
        words.append(f"λ̂ changes by {change:.0%} to the nearest other nβ ({plateau})")
    return Choice(trial=chosen, reason="; ".join(words))


def _groups(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials of one nβ and γ, by step size."""
    groups: dict[tuple[float, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.nbeta, trial.localization), []).append(trial)
    return [sorted(group, key=lambda t: t.sampler.step_size) for group in groups.values()]


def _longest_step(group: Sequence[Trial]) -> Trial | None:
    """The longest step up to which λ̂ is flat: it agrees with the shortest possible one, and so do all between.

    Bias would add up along a line whose points agree with their neighbours alone. And where the next longer step says
    something else the shortest has not converged: its value stands at the foot of a slope.
    """
    candidates = [t for t in group if not t.refused]
    if not candidates:
        return None
    first, longest = candidates[0], candidates[0]
    for trial in candidates[1:]:
        if not _agree(trial.estimate, first.estimate):
            break
        longest = trial
    longer = next((t for t in group if t.sampler.step_size > first.sampler.step_size), None)
    slope = longest is first and longer is not None and not _agree(longer.estimate, first.estimate)
    return None if slope else longest


def _step_reason(chosen: Trial, trials: Sequence[Trial]) -> str:
    group = [t for t in trials if (t.nbeta, t.localization) == (chosen.nbeta, chosen.localization)]
    if sum(not t.refused for t in group) == 1:
        return f"the only one of {len(group)} step sizes that was not refused: more draws would show whether λ̂ is flat"
    return "the longest step up to which λ̂ is flat"


def _agree(a: Estimate, b: Estimate) -> bool:
    apart = abs(a.mean - b.mean)
    return apart <= max(PLATEAU * abs(b.mean), 2 * math.hypot(a.stderr, b.stderr))


def _change(trial: Trial, others: Sequence[Trial]) -> float:
    """Relative change of λ̂ towards the other nβ with the least; NaN where there is none."""
    changes = [abs(o.estimate.mean / trial.estimate.mean - 1) for o in others if o.nbeta != trial.nbeta]
    return min(changes, default=math.nan)


def _commonest_refusal(trials: Sequence[Trial]) -> str:
    names = Counter(reason.split()[0] for trial in trials for reason in trial.refused)
    if not names:
        return "λ̂ depends on the step size everywhere; give more draws"
    counted = ", ".join(f"{name} in {count}" for name, count in names.most_common(3))
    return f"of {len(trials)} settings {counted} were refused"
