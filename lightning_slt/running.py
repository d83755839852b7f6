"""One pass of chains for every estimator: each set of chains run once, side by side where that is faster."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lightning_slt.assignment import SPANNING, ChainSet, Work
from lightning_slt.calibration import Settings
from lightning_slt.capacity import Capacity, with_fewer
from lightning_slt.components import FULL
from lightning_slt.data import SamplingData
from lightning_slt.estimators.base import WHOLE, Accumulator, Estimator, Run
from lightning_slt.posterior import LocalPosterior
from lightning_slt.preflight import ROWS_AT_ONCE, anchor_losses, fit_chunk
from lightning_slt.sampling import SamplingConfig, sample
from lightning_slt.snapshot import Snapshot
from lightning_slt.statistics import States
from lightning_slt.together import groups, sample_together
from lightning_slt.types import Draw

Results = dict[str, Any]
"""``{key: estimate}``."""

Reduce = Callable[[States], None]

Accumulators = dict[str, dict[str, Accumulator]]
"""Of each component, by key."""


def make_reading(
    snapshot: Snapshot,
    work: Work,
    settings: Settings | None,
    *,
    seed: int,
    chains: Sequence[int] | None = None,
    reduce: Reduce | None = None,
    on_step: Callable[[int], None] | None = None,
    capacity: Capacity | None = None,
) -> dict[str, Results]:
    """Everything that estimators ask for: what chains give, and what the anchor alone shows.

    Args:
        snapshot: The network and the data.
        work: Which chains for whom.
        settings: Of the chains; None where there are none.
        seed: Of the run.
        chains: This process's chains; None for all.
        reduce: Adds statistics up over processes.
        on_step: Called after every step with the number of chains that made it.
        capacity: What fits into the memory, as far as earlier readings of this network have shown.

    Returns:
        ``{component: {key: estimate}}``.
    """
    results: dict[str, Results] = {}
    if settings is not None:
        results = run_chains(snapshot, work, settings, chains=chains, reduce=reduce, on_step=on_step, capacity=capacity)
    for estimator in work.at_anchor:
        results.setdefault(FULL, {})[estimator.name] = estimator.measure(snapshot.view(seed=seed))
    return results


def run_chains(
    snapshot: Snapshot,
    work: Work,
    settings: Settings,
    *,
    chains: Sequence[int] | None = None,
    reduce: Reduce | None = None,
    on_step: Callable[[int], None] | None = None,
    capacity: Capacity | None = None,
) -> dict[str, Results]:
    """Run every set of chains once and feed all estimators; once more at nβ = 0 for those that want a control.

    Args:
        snapshot: The network and the data.
        work: Which chains for whom.
        settings: Sampler, constants and counts.
        chains: This process's chains; None for all.
        reduce: Adds statistics up over processes.
        on_step: Called after every step with the number of chains that made it, negative for steps that are made anew.
        capacity: What fits into the memory, as far as earlier readings of this network have shown.

    Returns:
        ``{component: {key: estimate}}``.
    """
    results: dict[str, Results] = {}
    capacity = capacity or Capacity()
    for source in dict.fromkeys(chain_set.source for chain_set in work.sets):
        for together in _together(snapshot, [s for s in work.sets if s.source == source], settings):
            everything = _run(
                snapshot, together, settings, chains=chains, reduce=reduce, on_step=on_step, capacity=capacity
            )
            for component, found in everything.items():
                results.setdefault(component, {}).update(found)
    for estimator in (e for e in work.estimators if e.spanning):
        parts = {name: results[name][estimator.name] for name in work.columns[estimator.name]}
        parts |= {WHOLE: results[FULL][estimator.name]} if estimator.whole else {}
        for found in results.values():
            found.pop(estimator.name, None)
        results.setdefault(SPANNING, {})[estimator.name] = replace(estimator.combine(parts), settings=settings)
    return {component: found for component, found in results.items() if found}


def _together(snapshot: Snapshot, sets: Sequence[ChainSet], settings: Settings) -> list[list[ChainSet]]:
    """Sets of chains on the same samples, those side by side that gain from sharing their passes."""
    by_component = {chain_set.component: chain_set for chain_set in sets}
    if len(sets) == 1 or len(by_component) < len(sets):
        return [[chain_set] for chain_set in sets]
    batch = snapshot.batch(settings.sampling, snapshot.samples(sets[0].source))
    posteriors = {name: _posterior(snapshot, chain_set, settings) for name, chain_set in by_component.items()}
    return [[by_component[name] for name in names] for names in groups(posteriors, batch, settings.sampling)]


def _posterior(snapshot: Snapshot, chain_set: ChainSet, settings: Settings) -> LocalPosterior:
    component = snapshot.components[chain_set.component]
    return snapshot.posterior(component, nbeta=settings.nbeta, localization=settings.localization)


def _run(
    snapshot: Snapshot,
    sets: Sequence[ChainSet],
    settings: Settings,
    *,
    chains: Sequence[int] | None,
    reduce: Reduce | None,
    on_step: Callable[[int], None] | None,
    capacity: Capacity,
) -> dict[str, Results]:
    """What sets of chains on the same samples give to their estimators, by component."""
    data = snapshot.samples(sets[0].source)
    posteriors = {s.component: _posterior(snapshot, s, settings) for s in sets}
    batch = snapshot.batch(settings.sampling, data)
    config = min((fit_chunk(p, batch, settings.sampling) for p in posteriors.values()), key=lambda c: c.chunk_size or 1)
    runs = {name: _describe(p, settings, config, snapshot, data) for name, p in posteriors.items()}
    anchor = snapshot.module_loss.weights
    known = with_fewer(ROWS_AT_ONCE, lambda rows: anchor_losses(snapshot.loss, anchor, data, config, rows=rows))
    wanted = {probe.name for s in sets for e in s.estimators for probe in e.probes}
    options: dict[str, Any] = {
        "sampler": settings.sampler,
        "batches": data,
        "anchor_losses": known,
        "chains": chains,
        "probes": {name: snapshot.probes[name].data for name in wanted},
    }

    def feed(posteriors: Mapping[str, LocalPosterior], asking: Mapping[str, Sequence[Estimator]]) -> dict[str, Results]:
        def attempt(config: SamplingConfig) -> Accumulators:
            with _counted(on_step) as counted:
                draws = _draws(posteriors, config, {**options, "on_step": counted})
                return _fed({name: {e.name: e.start(runs[name]) for e in asking[name]} for name in asking}, draws)

        # where each process holds a part of a chain, none may begin anew alone
        spread = next(iter(posteriors.values())).shards.spread
        return _computed(attempt(config) if spread else capacity.run(config, attempt), reduce)

    found = feed(posteriors, {s.component: s.estimators for s in sets})
    asking = {s.component: [e for e in s.estimators if e.control] for s in sets}
    asking = {name: estimators for name, estimators in asking.items() if estimators}
    if asking:
        alone = {name: replace(posteriors[name], nbeta=0.0) for name in asking}
        controls = feed(alone, asking)
        for name, estimators in asking.items():
            found[name] |= {e.name: e.controlled(found[name][e.name], controls[name][e.name]) for e in estimators}
    return {n: {key: replace(v, settings=settings) for key, v in results.items()} for n, results in found.items()}


def _draws(
    posteriors: Mapping[str, LocalPosterior], config: SamplingConfig, options: Mapping[str, Any]
) -> Iterator[Mapping[str, Draw]]:
    """Draws of one component, of several side by side, or of one after another, by component."""
    if len(posteriors) > 1 and config.chain_method != "sequential":
        yield from sample_together(posteriors, config=config, **options)
        return
    for name, posterior in posteriors.items():
        yield from map(partial(_under, name), sample(posterior, config=config, **options))


def _under(name: str, draw: Draw) -> dict[str, Draw]:
    return {name: draw}


@contextmanager
def _counted(on_step: Callable[[int], None] | None) -> Iterator[Callable[[int], None] | None]:
    """Pass steps on, and take them back where they were made in vain."""
    if on_step is None:
        yield None
        return
    made = 0

    def counted(chains: int) -> None:
        nonlocal made
        made += chains
        on_step(chains)

    try:
        yield counted
    except (RuntimeError, MemoryError):
        on_step(-made)
        raise


def _describe(
    posterior: LocalPosterior, settings: Settings, config: SamplingConfig, snapshot: Snapshot, data: SamplingData
) -> Run:
    return Run(
        num_chains=config.num_chains,
        num_draws=config.num_draws,
        nbeta=settings.nbeta,
        localization=settings.localization,
        dimension=posterior.dimension,
        num_samples=len(data),
        share_batches=config.share_batches and config.batch_size < len(data),
        stability=math.nan if settings.sampler.full_batch else settings.stability,  # exact at any step that moves
        steps=settings.steps,
        curvature=settings.curvature,
        probes={name: probe.known for name, probe in snapshot.probes.items()},
        device=posterior.anchor_row.device,
    )


def _fed(accumulators: Accumulators, draws: Iterable[Mapping[str, Draw]]) -> Accumulators:
    """Everybody has taken in all draws."""
    with torch.no_grad():
        for by_component in draws:
            for name, draw in by_component.items():
                for accumulator in accumulators[name].values():
                    accumulator.update(draw)
            del by_component, draw  # positions as long as the weights, before there are new ones
    return accumulators


def _computed(accumulators: Accumulators, reduce: Reduce | None) -> dict[str, Results]:
    """Every estimator's result of one run of chains, by component."""
    for asking in accumulators.values():
        for accumulator in asking.values():
            if reduce is not None:
                reduce(accumulator.states)
    return {name: {key: a.compute() for key, a in asking.items()} for name, asking in accumulators.items()}
