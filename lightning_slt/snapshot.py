"""A network at one moment as chains see it: copied, with its data and probes, and checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_slt.batches import ChainBatch
from lightning_slt.components import Component
from lightning_slt.data import SamplingData, Streams
from lightning_slt.estimators.base import Estimator, View
from lightning_slt.functional import ModuleLoss
from lightning_slt.posterior import LocalPosterior
from lightning_slt.preflight import check_response, choose_route, steady
from lightning_slt.probes import distinct
from lightning_slt.probing import FetchedProbe, ReadyProbe, fetch, make_ready
from lightning_slt.sampling import SamplingConfig
from lightning_slt.soundness import check_finite, check_mean, warn_of_bare_output
from lightning_slt.types import Batch, FunctionalLoss


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
            loss=self.loss,
            anchor=anchor,
            nbeta=nbeta,
            localization=localization,
            masks=self.module_loss.cut(component.masks),
            shards=self.module_loss.shards,
            precision=self.module_loss.precision,
        )

    def view(self, *, seed: int) -> View:
        """The anchor, for what is measured there without chains."""
        return View(
            module_loss=self.module_loss,
            loss=self.loss,
            data=self.data,
            probes={name: probe.known for name, probe in self.probes.items()},
            probe_batches={name: tuple(b.of_chain(0) for b in p.data.batches) for name, p in self.probes.items()},
            seed=seed,
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
    return tuple(fetch(probe, source, to_device=to_device, seed=seed) for probe in asked.values())


def prepare(snapshot: Snapshot, config: SamplingConfig, *, localization: float) -> SamplingConfig:
    """Check the loss of every component once and resolve the route; without components there are no chains."""
    batch = snapshot.batch(config)
    anchor = snapshot.module_loss.weights
    moving = {name for component in snapshot.components.values() for name in component.parameters}
    for data in (snapshot.data, *snapshot.sources.values()):
        check_finite(snapshot.loss, anchor, moving, data, config)
    posterior = None
    for name, component in snapshot.components.items():
        posterior = snapshot.posterior(component, nbeta=1.0, localization=localization)
        check_response(posterior, batch, seed=config.seed, component=name)
    check_mean(snapshot.loss, anchor, snapshot.data, config)
    warn_of_bare_output(snapshot.loss, anchor, snapshot.module_loss.module, batch.of_chain(0))
    return config if posterior is None else choose_route(posterior, batch, config)
