r"""One pass of chains for every estimator: the union of what they need, run once per component."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lightning_slt.assignment import SPANNING, ChainSet, Work, check_estimators, divide
from lightning_slt.batches import ChainBatch
from lightning_slt.boundary import check_module
from lightning_slt.calibration import Settings, calibrate_relative
from lightning_slt.components import FULL, Component
from lightning_slt.data import SamplingData, Streams, load_data
from lightning_slt.estimators.base import WHOLE, Estimator, Run
from lightning_slt.functional import ModuleLoss, cast_batch
from lightning_slt.isolation import isolated
from lightning_slt.posterior import LocalPosterior
from lightning_slt.preflight import anchor_losses, check_response, choose_route, fit_chunk, steady
from lightning_slt.probes import distinct
from lightning_slt.probing import FetchedProbe, ReadyProbe, fetch, make_ready
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig, sample
from lightning_slt.seeding import derive_seed
from lightning_slt.soundness import check_finite, check_mean, warn_of_bare_output
from lightning_slt.sources import source_parts
from lightning_slt.statistics import States
from lightning_slt.types import Batch, Draw, FunctionalLoss, LossFn, is_amount

Results = dict[str, Any]
OnFailure = Literal["warn", "raise"]
Reduce = Callable[[States], None]


class FailedReadingError(RuntimeError):
    """A reading in which a chain failed, where the user asked for that to raise."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A network as the chains see it at one moment: its loss, its anchor, and the data.

    Attributes:
        loss: Function of (weights, batch).
        module_loss: Holds the copies of the weights.
        data: Samples for the minibatches.
        components: What moves.
        probes: What is measured at every draw, by name.
        sources: Samples for the minibatches of estimators that bring their own, by name.
    """

    loss: FunctionalLoss
    module_loss: ModuleLoss
    data: SamplingData
    components: Mapping[str, Component]
    probes: Mapping[str, ReadyProbe] = field(default_factory=dict)
    sources: Mapping[str, SamplingData] = field(default_factory=dict)

    def samples(self, source: str | None) -> SamplingData:
        """What minibatches come from."""
        return self.data if source is None else self.sources[source]

    def posterior(self, component: Component, *, nbeta: float, localization: float) -> LocalPosterior:
        """The local posterior of one component."""
        anchor = {name: self.module_loss.weights[name] for name in component.parameters}
        return LocalPosterior(
            loss=self.loss, anchor=anchor, nbeta=nbeta, localization=localization, masks=component.masks
        )

    def batch(self, config: SamplingConfig, data: SamplingData | None = None) -> ChainBatch:
        """A first minibatch for two chains, to try things on."""
        data = data or self.data
        streams = Streams(len(data), batch_size=config.batch_size, seed=config.seed, chains=(0, 1), share_batches=False)
        return data.chain_batch(streams.next())


def take_snapshot(
    module_loss: ModuleLoss,
    data: SamplingData,
    components: Mapping[str, Component],
    config: SamplingConfig,
    probes: Sequence[FetchedProbe] = (),
    sources: Mapping[str, SamplingData] | None = None,
) -> Snapshot:
    """Copy what a reading needs; call inside ``isolated``."""
    first = data.chain_batch(torch.arange(min(config.batch_size, len(data))))
    loss = steady(module_loss, module_loss.weights, first.of_chain(0), seed=config.seed)
    ready = {p.probe.name: make_ready(p, module_loss, loss, seed=config.seed) for p in probes}
    return Snapshot(
        loss=loss, module_loss=module_loss, data=data, components=components, probes=ready, sources=sources or {}
    )


def fetch_probes(
    estimators: Sequence[Estimator], source: Any, *, to_device: Callable[[Batch], Batch], seed: int
) -> tuple[FetchedProbe, ...]:
    """Samples of all probes that estimators ask for, each once; call inside ``isolated``.

    Args:
        estimators: Who asks.
        source: The reading's own data, for probes without any.
        to_device: Moves a collated batch.
        seed: Of the run.
    """
    asked = distinct([probe for e in estimators for probe in e.probes])
    return tuple(fetch(probe.on(source), to_device=to_device, seed=seed) for probe in asked.values())


def run_chains(
    snapshot: Snapshot,
    work: Work,
    settings: Settings,
    *,
    chains: Sequence[int] | None = None,
    reduce: Reduce | None = None,
    on_step: Callable[[int], None] | None = None,
) -> dict[str, Results]:
    """Run every set of chains once and feed all estimators; once more at nβ = 0 for those that want a control.

    Args:
        snapshot: The network and the data.
        work: Which chains for whom.
        settings: Sampler, constants and counts.
        chains: This process's chains; None for all.
        reduce: Adds statistics up over processes.
        on_step: Called after every step with the number of chains that made it.

    Returns:
        ``{component: {key: estimate}}``.
    """
    results: dict[str, Results] = {}
    for chain_set in work.sets:
        found = _run(snapshot, chain_set, settings, chains=chains, reduce=reduce, on_step=on_step)
        results.setdefault(chain_set.component, {}).update(found)
    for estimator in (e for e in work.estimators if e.spanning):
        parts = {name: results[name][estimator.name] for name in work.columns[estimator.name]}
        parts |= {WHOLE: results[FULL][estimator.name]} if estimator.whole else {}
        for found in results.values():
            found.pop(estimator.name, None)
        results.setdefault(SPANNING, {})[estimator.name] = replace(estimator.combine(parts), settings=settings)
    return {component: found for component, found in results.items() if found}


def _run(
    snapshot: Snapshot,
    chain_set: ChainSet,
    settings: Settings,
    *,
    chains: Sequence[int] | None,
    reduce: Reduce | None,
    on_step: Callable[[int], None] | None,
) -> Results:
    """What one set of chains gives to its estimators."""
    data, component = snapshot.samples(chain_set.source), snapshot.components[chain_set.component]
    posterior = snapshot.posterior(component, nbeta=settings.nbeta, localization=settings.localization)
    config = fit_chunk(posterior, snapshot.batch(settings.sampling, data), settings.sampling)
    run = _describe(posterior, settings, config, snapshot, data)
    known = anchor_losses(snapshot.loss, snapshot.module_loss.weights, data, config)
    wanted = {probe.name for e in chain_set.estimators for probe in e.probes}
    draws = partial(
        sample, sampler=settings.sampler, batches=data, config=config, anchor_losses=known, chains=chains,
        probes={name: snapshot.probes[name].data for name in wanted}, on_step=on_step,
    )  # fmt: skip
    found = _feed(draws(posterior), chain_set.estimators, run, reduce)
    if asking := [e for e in chain_set.estimators if e.control]:
        controls = _feed(draws(replace(posterior, nbeta=0.0)), asking, run, reduce)
        found |= {e.name: e.controlled(found[e.name], controls[e.name]) for e in asking}
    return {key: replace(value, settings=settings) for key, value in found.items()}


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


def _feed(draws: Iterable[Draw], estimators: Sequence[Estimator], run: Run, reduce: Reduce | None) -> Results:
    """Every estimator's result of one run of chains."""
    accumulators = {e.name: e.start(run) for e in estimators}
    with torch.no_grad():
        for draw in draws:
            for accumulator in accumulators.values():
                accumulator.update(draw)
    for accumulator in accumulators.values():
        if reduce is not None:
            reduce(accumulator.states)
    return {key: accumulator.compute() for key, accumulator in accumulators.items()}


def prepare(snapshot: Snapshot, config: SamplingConfig, *, localization: float) -> SamplingConfig:
    """Check the loss of every component once and resolve the route."""
    batch = snapshot.batch(config)
    anchor = snapshot.module_loss.weights
    moving = {name for component in snapshot.components.values() for name in component.parameters}
    for data in (snapshot.data, *snapshot.sources.values()):
        check_finite(snapshot.loss, anchor, moving, data, config)
    for name, component in snapshot.components.items():
        posterior = snapshot.posterior(component, nbeta=1.0, localization=localization)
        check_response(posterior, batch, seed=config.seed, component=name)
    check_mean(snapshot.loss, anchor, snapshot.data, config)
    warn_of_bare_output(snapshot.loss, anchor, snapshot.module_loss.module, batch.of_chain(0))
    return choose_route(posterior, batch, config)


def estimate(
    module: nn.Module,
    data: Any,
    estimators: Sequence[Estimator],
    *,
    sampler: Sampler | None = None,
    nbeta: float | None = None,
    localization: float | None = None,
    sampling: SamplingConfig | None = None,
    components: str | Mapping[str, Component] | Component | None = None,
    loss_fn: LossFn | None = None,
    on_failure: OnFailure = "warn",
    on_step: Callable[[int], None] | None = None,
) -> Results:
    """Estimate quantities of any module at its present weights, without a Trainer and without changing it.

    Args:
        module: The network, on its device.
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
        estimators: What to estimate.
        sampler: None is SGLD with a step size found by calibration.
        nbeta: nβ; None for the default of :mod:`lightning_slt.calibration`.
        localization: γ; None is found by calibration.
        sampling: Counts.
        components: None for all weights; see :func:`lightning_slt.components.resolve_components`.
        loss_fn: ``loss_fn(module, batch)``; None derives it, see :func:`lightning_slt.functional.derive_loss`.
        on_failure: ``"raise"`` where a chain that failed should be an error rather than a flag.
        on_step: Called after every step with the number of chains that made it, for a progress display.

    Returns:
        ``{key: estimate}``, or ``{component: {key: estimate}}`` where components were given; results that span
        components, such as ``susceptibility``, stand at the top.

    Raises:
        TypeError: If the module is none, there is no loss to be had, or data cannot be indexed.
        ValueError: For settings, data or losses that cannot be sampled.
        FailedReadingError: If a chain failed and ``on_failure="raise"``.

    >>> import lightning_slt as slt
    >>> from torch.utils.data import TensorDataset
    >>> net = nn.Linear(3, 1)
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> result = estimate(net, TensorDataset(x, net(x).detach()), [slt.LLC()], loss_fn=slt.losses.regression,
    ...                   sampler=slt.SGLD(step_size=1e-3), nbeta=50.0, localization=1.0,
    ...                   sampling=slt.SamplingConfig(num_burnin=200, batch_size=64))
    >>> bool(1.5 < result["llc"].mean < 2.5)
    True
    """
    check_module(module)
    estimators = check_estimators(estimators)
    check_on_failure(on_failure)
    nbeta, localization = check_settings(sampler=sampler, nbeta=nbeta, localization=localization, sampling=sampling)
    config = sampling or SamplingConfig()
    work = divide(module, components, estimators)
    collates = [source_parts(source)[1] for source in (data, *work.sources.values())]
    with isolated(module, seed=derive_seed(config.seed, "reading"), also=(loss_fn, *collates)):
        module_loss = ModuleLoss(module, loss_fn)
        device, dtype = module_loss.device, module_loss.dtype
        to_device = partial(cast_batch, device=device, dtype=dtype)
        load = partial(load_data, to_device=to_device, seed=config.seed)
        samples, sources = load(data), {name: load(source) for name, source in work.sources.items()}
        probes = fetch_probes(estimators, data, to_device=to_device, seed=config.seed)
        snapshot = take_snapshot(module_loss, samples, work.components, config, probes, sources)
        config = prepare(snapshot, config, localization=localization if localization is not None else 1.0)
        settings = calibrate_relative(
            snapshot.posterior,
            snapshot.components,
            snapshot.data,
            config,
            sampler=sampler,
            nbeta=nbeta,
            localization=localization,
        )
        results = run_chains(snapshot, work, settings, on_step=on_step)
    report_failures(results, on_failure)
    spanning = results.pop(SPANNING, {})
    own = results.get(FULL, {}) if components is None else results
    others = {} if components is not None else {name: found for name, found in results.items() if name != FULL}
    return {**own, **others, **spanning}


def check_settings(
    *, sampler: Sampler | None, nbeta: float | None, localization: float | None, sampling: SamplingConfig | None
) -> tuple[float | None, float | None]:
    """Refuse settings of the wrong kind before any data are read.

    Returns:
        nβ and γ as plain floats, whatever numeric type they were.

    Raises:
        TypeError: If the sampler or the counts are something else.
        ValueError: If nβ or γ is no finite number, zero or more.
    """
    if not (sampler is None or isinstance(sampler, Sampler)):
        raise TypeError(f"sampler must be a sampler such as SGLD(step_size=1e-4), or None, got {sampler!r}")
    if not (sampling is None or isinstance(sampling, SamplingConfig)):
        raise TypeError(f"sampling must be a SamplingConfig such as SamplingConfig(num_chains=4), got {sampling!r}")
    return _constant("nbeta", nbeta, 30.0), _constant("localization", localization, 300.0)


def _constant(name: str, value: float | None, example: float) -> float | None:
    if value is None or is_amount(value):
        return None if value is None else float(value)
    raise ValueError(
        f"{name} must be a finite number, zero or more, or None to be found, got {value!r}; write e.g. {name}={example}"
    )


def check_on_failure(on_failure: str) -> None:
    """Refuse anything but the two words.

    Raises:
        ValueError: If it is neither ``"warn"`` nor ``"raise"``.
    """
    if on_failure not in ("warn", "raise"):
        raise ValueError(f"on_failure must be 'warn' or 'raise', got {on_failure!r}")


def report_failures(results: Mapping[str, Results], on_failure: OnFailure) -> None:
    """Say which chains died, or raise.

    Raises:
        FailedReadingError: If any did and ``on_failure="raise"``.
    """
    for component, estimates in results.items():
        for key, value in estimates.items():
            dead = value.health.dead_chains
            if not dead:
                continue
            where = ", ".join(f"chain {c} at step {s}" for c, s in dead.items())
            message = f"{component}/{key}: the loss was not finite in {where}; they are left out. Lower the step size"
            if on_failure == "raise":
                raise FailedReadingError(message)
            warnings.warn(message, stacklevel=3)
