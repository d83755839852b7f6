"""Readings of one module over time: copy the weights now, run chains around them now or later.

The same object serves live training, where the module moves on between readings, and saved checkpoints.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from lightning_slt.assignment import divide
from lightning_slt.calibration import (
    OUTGROWN,
    Settings,
    calibrate_relative,
    curvatures,
    follow_curvature,
    renew,
)
from lightning_slt.capacity import Capacity
from lightning_slt.components import Component
from lightning_slt.data import SamplingData, load_data
from lightning_slt.estimators.base import Estimator
from lightning_slt.finding import Calibration, Grids, grid_size, search
from lightning_slt.functional import ModuleLoss, cast_batch
from lightning_slt.isolation import isolated
from lightning_slt.running import Reduce, Results, make_reading
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed
from lightning_slt.snapshot import Snapshot, fetch_probes, prepare, take_snapshot
from lightning_slt.sources import source_parts
from lightning_slt.types import Batch, LossFn

T = TypeVar("T")

MONITOR_CONDITION = 1.0
"""κ at the first anchor of a run: curvature grows several times over in training, and κ with it, towards 3 to 10."""

PILOT_DRAWS = 4, 12
"""Of the readings that tell what one costs; how a chain moves is measured at four draws, however many there are."""


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """Weights set aside for a reading.

    Attributes:
        module_loss: Holds their copies.
        step: The x axis of the logs.
        global_step: Optimizer steps.
        epoch: Epoch.
    """

    module_loss: ModuleLoss
    step: int
    global_step: int
    epoch: int


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for, as given."""

    estimators: tuple[Estimator, ...]
    sampler: Sampler | None
    nbeta: float | None
    localization: float | None
    sampling: SamplingConfig
    components: str | Mapping[str, Component] | Component | None
    loss_fn: LossFn | None


class Recall(Protocol):
    """Gives what was found around an anchor before, or has it made; both are the same to the bit."""

    def __call__(self, reader: Reader, anchor: Anchor, key: str, make: Callable[[], T]) -> T:
        """What ``make`` gives; ``key`` says what that is, beside weights, data, seed and what was asked for."""
        ...


def make_anew(reader: Reader, anchor: Anchor, key: str, make: Callable[[], T]) -> T:
    """Nothing was found before."""
    return make()


class Reader:
    """Makes the readings of one module.

    Args:
        request: What the user asked for.
        module: The network; it stays the user's, and is only ever run inside ``isolated``.
        source: Data, see :func:`lightning_slt.data.load_data`.
        to_device: Moves a collated batch to the module's device; None does just that.
        context: Makes the context of each evaluation, such as autocast.
        recall: Looks up what another process may have found, see :class:`Recall`.
        unneeded: Gives tensors that wait in the host's memory while user code runs.
    """

    def __init__(
        self,
        request: Request,
        module: nn.Module,
        source: Any,
        *,
        to_device: Callable[[Batch], Batch] | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        recall: Recall = make_anew,
        unneeded: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        """Fetch the data and check everything that can be known now."""
        self.request, self.module, self.context, self.recall, self.unneeded = request, module, context, recall, unneeded
        self.work = divide(module, request.components, request.estimators)
        self.settings: Settings | None = None
        self._measured: tuple[Anchor, float] | None = None
        self.sampling, self.capacity = request.sampling, Capacity()
        probes = [probe.on(source) for e in request.estimators for probe in e.probes]
        collates = [source_parts(data)[1] for data in (*(p.data for p in probes), *self.work.sources.values())]
        losses = [probe.loss_fn for probe in probes]
        self._bystanders = (request.loss_fn, source_parts(source)[1], *collates, *losses)
        first = self.set_aside(step=0, global_step=0, epoch=0)
        with self.isolated():
            device, dtype = first.module_loss.device, first.module_loss.dtype
            move = to_device or (lambda batch: batch)
            cast = lambda batch: cast_batch(move(batch), device=device, dtype=dtype)  # noqa: E731
            self.data: SamplingData = load_data(source, to_device=cast, seed=self.sampling.seed)
            self.sources = {
                name: load_data(data, to_device=cast, seed=self.sampling.seed)
                for name, data in self.work.sources.items()
            }
            self.probes = fetch_probes(request.estimators, source, to_device=cast, seed=self.sampling.seed)
            gamma = request.localization if request.localization is not None else 1.0
            self.sampling = prepare(self._snapshot(first), self.sampling, localization=gamma)

    def isolated(self) -> AbstractContextManager[None]:
        """The guard around everything that runs user code."""
        seed = derive_seed(self.request.sampling.seed, "reading")
        return isolated(self.module, seed=seed, also=self._bystanders, unneeded=self.unneeded())

    def set_aside(self, *, step: int, global_step: int, epoch: int) -> Anchor:
        """Copy the present weights."""
        precision = self.request.sampling.precision
        loss = ModuleLoss(self.module, self.request.loss_fn, context=self.context, precision=precision)
        return Anchor(module_loss=loss, step=step, global_step=global_step, epoch=epoch)

    def calibrate(self, anchor: Anchor) -> Settings:
        """Find what the user left open, once for the run."""
        if self.settings is None:
            with self.isolated():
                snapshot = self._snapshot(anchor)
                self.settings = calibrate_relative(
                    snapshot.posterior,
                    snapshot.components,
                    self.data,
                    self.sampling,
                    sampler=self.request.sampler,
                    nbeta=self.request.nbeta,
                    localization=self.request.localization,
                    condition=MONITOR_CONDITION,
                )
        return self.settings

    @property
    def has_chains(self) -> bool:
        """Whether any estimator asks for chains, rather than looking at the anchor alone."""
        return bool(self.work.sets)

    def predict_cost(self, anchor: Anchor, chains: Sequence[int] | None = None) -> tuple[float, float]:
        """Seconds of a reading beside its steps, and of each step of all its chains, from short readings.

        A reading without chains counts as one step.
        """
        if not self.has_chains:
            began = time.perf_counter()
            self.read(anchor, None)
            return 0.0, time.perf_counter() - began
        settings = self.calibrate(anchor)

        def seconds(draws: int) -> float:
            sampling = replace(settings.sampling, num_burnin=0, num_draws=draws, thinning=1)
            began = time.perf_counter()
            self.read(anchor, replace(settings, sampling=sampling), chains=chains)
            return time.perf_counter() - began

        few, more = PILOT_DRAWS
        seconds(few)  # the first passes of a network are slower than any later ones
        short, longer = seconds(few), seconds(more)
        per_step = max(0.0, (longer - short) / (more - few))
        return max(0.0, short - few * per_step), per_step

    def search(
        self, anchor: Anchor, sampler: Sampler, grids: Grids, on_step: Callable[[int], None] | None = None
    ) -> Calibration:
        """Sweep over settings around an anchor; see :func:`lightning_slt.finding.calibrate`."""
        with self.isolated():
            return search(self._snapshot(anchor), self.sampling, self.request.sampling, sampler, grids, on_step)

    def search_steps(self, grids: Grids) -> int:
        """How many chain-steps a search makes, for its progress bar."""
        kept = self.sampling.num_draws * self.sampling.thinning
        return 2 * kept * self.sampling.num_chains * grid_size(grids)

    def adopt(self, found: Settings) -> None:
        """Take over sampler and constants that were found elsewhere; counts stay the user's, but for the burn-in."""
        given = self.sampling.num_burnin
        burnin = found.sampling.num_burnin if given is None else given
        self.settings = replace(found, sampling=replace(self.sampling, num_burnin=burnin))

    def chain_steps(self, settings: Settings, chains: Sequence[int] | None) -> int:
        """How many chain-steps a reading makes, for its progress bar."""
        count = settings.sampling.num_chains if chains is None else len(chains)
        return count * settings.num_steps * self.work.passes

    def settings_at(self, anchor: Anchor) -> Settings:
        """Settings of the run at this anchor's curvature, the step size made safe where it was ours to choose."""
        settings = self.calibrate(anchor)
        if math.isnan(settings.sampler.stability(1.0)):
            return settings
        curvature = self._curvature_at(anchor, settings)
        if self.request.sampler is None and isinstance(settings.sampler, SGLD):
            return follow_curvature(settings, curvature)
        stability = settings.sampler.stability(settings.nbeta * curvature + settings.localization)
        return replace(settings, curvature=curvature, stability=stability)

    @property
    def calibrated(self) -> Settings:
        """Settings of the run, once they are found."""
        assert self.settings is not None
        return self.settings

    @property
    def renewable(self) -> bool:
        """Whether γ and the sampler were found rather than given."""
        return self.has_chains and self.request.sampler is None and self.request.localization is None

    def outgrown(self, settings: Settings) -> bool:
        """Whether the curvature has grown so much since γ was found that another γ is needed for the whole run."""
        return self.renewable and isinstance(settings.sampler, SGLD) and OUTGROWN < settings.condition < math.inf

    def renew(self, settings: Settings) -> None:
        """Go on with a γ found from the curvature of some settings; earlier readings are comparable no more."""
        self.settings = renew(self.calibrated, settings.curvature, self.sampling)

    def _curvature_at(self, anchor: Anchor, settings: Settings) -> float:
        """λ_max over the components, measured once for each anchor."""

        def measure() -> float:
            with self.isolated():
                snapshot = self._snapshot(anchor)
                found = curvatures(
                    snapshot.posterior, snapshot.components, self.data, self.sampling, nbeta=settings.nbeta
                )
            return max(c.value for c in found.values())

        if self._measured is None or self._measured[0] is not anchor:
            self._measured = anchor, self.recall(self, anchor, f"curvature at nbeta={settings.nbeta!r}", measure)
        return self._measured[1]

    def read(
        self,
        anchor: Anchor,
        settings: Settings | None,
        *,
        chains: Sequence[int] | None = None,
        reduce: Reduce | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> dict[str, Results]:
        """Run the chains around an anchor, and measure what the anchor alone shows.

        Args:
            anchor: Of which weights.
            settings: Of the chains; None where nobody asks for any.
            chains: This process's; None for all.
            reduce: Adds statistics up over processes.
            on_step: Called after every step with the number of chains that made it.

        Returns:
            ``{component: {key: estimate}}``.
        """

        def make() -> dict[str, Results]:
            with self.isolated():
                return make_reading(
                    self._snapshot(anchor),
                    self.work,
                    settings,
                    seed=self.request.sampling.seed,
                    chains=chains,
                    reduce=reduce,
                    on_step=on_step,
                    capacity=self.capacity,
                )

        return self.recall(self, anchor, f"reading with {settings!r}", make)

    def _snapshot(self, anchor: Anchor) -> Snapshot:
        components = self.work.components
        return take_snapshot(anchor.module_loss, self.data, components, self.sampling, self.probes, self.sources)
