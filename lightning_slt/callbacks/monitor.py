"""SLTMonitor: several quantities from one pass of chains, at intervals of a training run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_slt.assignment import check_estimators, divide, result_keys
from lightning_slt.boundary import check_loss_fn
from lightning_slt.calibration import Settings
from lightning_slt.callbacks.agenda import Agenda
from lightning_slt.callbacks.budget import Budget, Onward
from lightning_slt.callbacks.checks import (
    check_free,
    check_name,
    check_names,
    check_settings,
    check_shards,
    check_steps,
    check_strategy,
    explained,
)
from lightning_slt.callbacks.endings import Ended, compare_endings
from lightning_slt.callbacks.finder import SamplerFinder
from lightning_slt.callbacks.interruptions import Interruptions
from lightning_slt.callbacks.live import LiveReadings
from lightning_slt.callbacks.replay import clock_of, is_replay
from lightning_slt.callbacks.schedule import LogSteps, Schedule
from lightning_slt.callbacks.surroundings import record_dir, steps_of_run
from lightning_slt.callbacks.watchers import Watchers, check_watched
from lightning_slt.components import Component
from lightning_slt.estimators.base import Estimator
from lightning_slt.functional import derive_loss
from lightning_slt.plan import OnFailure, check_on_failure
from lightning_slt.reading import Request
from lightning_slt.reporting.pictures import Shown
from lightning_slt.reporting.scalars import missing
from lightning_slt.reporting.tensorboard import write_layout
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.sources import source_parts
from lightning_slt.types import LossFn

DEFAULT_READINGS = 25
"""About how many readings a run of known length gets where no schedule is given."""

UNKNOWN_LENGTH = 1000
"""Steps between readings where neither the run nor its epochs have a known length."""


class SLTMonitor(Callback):
    r"""Estimates quantities of the local posterior while the network trains, and leaves training bit-identical.

    A reading at the start of the fit (step 0, or where it resumes), then as scheduled; without a schedule about 25 over
    the run. Every scalar goes to all loggers and ``trainer.callback_metrics`` under
    ``<name>/<component>/<quantity>/<field>``, every reading to ``<log dir>/slt_records/<name>.jsonl``.

    Args:
        estimators: What to estimate, such as ``[LLC()]``; their names must differ.
        sampler: None is SGLD with a step size found at the first reading and cut where the curvature has grown.
        nbeta: nβ; None is 30.
        localization: γ; None is found at the first reading and kept for the run.
        sampling: Counts of chains and draws.
        components: None for all weights; "layers", a pattern of parameter names, or ``{name: Component}``. Each of
            them is a set of chains of its own.
        data: None for the Trainer's own training set; else a Dataset, a DataLoader, or a dict or list of these.
        loss_fn: ``loss_fn(module, batch)``; None derives it from ``per_sample_loss`` or ``training_step``.
        every_n_train_steps: Optimizer steps between readings.
        every_n_epochs: Epochs between readings.
        train_time_interval: Time between readings.
        at_steps: Explicit optimizer steps; ``LogSteps(first, last, count)`` for log-spaced ones.
        at_checkpoints: Also read the weights of every checkpoint that is saved in training; those that
            ``ModelCheckpoint`` scores by one of this monitor's tags before it looks.
        at_end: A last reading when the fit ends, whatever the budget.
        max_overhead: Largest share of reading time over training time, such as 0.1: readings that the run cannot
            pay for yet are put off (the first one, unless a callback waits for a tag) or left out.
        name: First part of all tags; two monitors of one Trainer need two names.
        on_failure: "warn" flags a reading that failed, died or diverged and lets training go on; "raise" stops it.
        snapshots: Save the anchor of every reading as safetensors beside the records.
        offload: While a reading is made on an accelerator, keep gradients and the states of optimizers in the host's
            memory; weights that may have to be read again stay there.
        pictures: Figures in TensorBoard; they need matplotlib.
        tables: Tables on TensorBoard's text page: settings, results, what has happened.
        embeddings: Maps of samples in TensorBoard's projector.
        hparams: Settings against final values on TensorBoard's HPARAMS page, once the fit has ended.
        layout: Charts on TensorBoard's custom-scalars page.

    Raises:
        ValueError: For settings that cannot be.
        TypeError: For estimators that are none.

    >>> from lightning_slt.estimators import LLC
    >>> SLTMonitor([LLC()], every_n_train_steps=100).state_key
    'slt'
    """

    @explained
    def __init__(
        self,
        estimators: Sequence[Estimator],
        *,
        sampler: Sampler | None = None,
        nbeta: float | None = None,
        localization: float | None = None,
        sampling: SamplingConfig | None = None,
        components: str | Mapping[str, Component] | None = None,
        data: Any = None,
        loss_fn: LossFn | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        at_steps: Sequence[int] | LogSteps | None = None,
        at_checkpoints: bool = False,
        at_end: bool = False,
        max_overhead: float | None = None,
        name: str = "slt",
        on_failure: OnFailure = "warn",
        snapshots: bool = False,
        offload: bool = False,
        pictures: bool = True,
        tables: bool = True,
        embeddings: bool = True,
        hparams: bool = True,
        layout: bool = True,
    ) -> None:
        """Store and check the arguments."""
        super().__init__()
        self.estimators = check_estimators(estimators)
        self.sampling = sampling or SamplingConfig()
        self.sampler = sampler
        self.nbeta, self.localization = check_settings(
            nbeta=nbeta, localization=localization, sampler=sampler, sampling=self.sampling
        )
        self.components, self.data, self.loss_fn = components, data, loss_fn
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.train_time_interval, self.at_steps = train_time_interval, at_steps
        self.at_checkpoints, self.at_end, self.max_overhead = at_checkpoints, at_end, max_overhead
        self.name, self.on_failure, self.snapshots, self.offload = name, on_failure, snapshots, offload
        self.pictures, self.tables, self.embeddings = pictures, tables, embeddings
        self.hparams, self.layout = hparams, layout
        self.schedule = Schedule(
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            at_steps=check_steps(at_steps),
        )
        self._clock = time.perf_counter
        check_name(name)
        check_on_failure(on_failure)
        Budget(max_overhead)
        if loss_fn is not None:
            check_loss_fn(loss_fn)
        self._live: LiveReadings | None = None
        self._agenda: Agenda | None = None
        self._restored: dict[str, Any] = {}
        self._left: dict[int, dict[str, Any]] = {}  # by Trainer: one monitor may serve several, by turns
        self.ended_with = Ended({}, {})

    @property
    def state_key(self) -> str:
        """The monitor's name: two monitors need two."""
        return self.name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can be known to fail; forget an earlier fit by another Trainer."""
        if stage == "fit":
            check_free(self.name, trainer, at_work=None if self._live is None else self._live.trainer)
            check_strategy(trainer)
            check_names([m.name for m in _monitors(trainer)])
            derive_loss(pl_module, self.loss_fn)
            if any(True for _ in pl_module.parameters()):
                self._check_watched(trainer, pl_module)
            if self.data is not None:
                source_parts(self.data)
            self._restored = self._left.get(id(trainer), {}) if trainer.global_step else {}
            self.ended_with = Ended({}, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare, and read the weights that training starts from."""
        self._check_watched(trainer, pl_module)  # once more: layers may be made in configure_model, after setup
        self._begin(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Read what waits: the first weights, or those of a checkpoint."""
        if self._agenda is not None:
            self._agenda.batch_begins()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read where a step is due."""
        if self._agenda is not None:
            self._agenda.batch_ends()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read before the callbacks that look at the end of validation, whose order is the user's."""
        if self._agenda is not None:
            self._agenda.others_look("validation")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read where an epoch is due."""
        if self._agenda is not None:
            self._agenda.epoch_ends()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what waits, and the last weights where asked for."""
        if self._agenda is not None:
            self._agenda.finish()
        if self._live is not None:
            self.ended_with = Ended(self._live.journal.settings, self._live.journal.values, self.hparams)
        self._release()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set what all monitors ended with against their settings, once."""
        monitors = _monitors(trainer)
        if monitors[:1] == [self]:
            compare_endings(trainer, {m.name: m.ended_with for m in monitors})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the state, and drop everything that holds on to the Trainer."""
        if self._live is not None and self._live.trainer is trainer:
            self._release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the weights aside where they are to be read."""
        if self._agenda is not None:
            self._agenda.saves()

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: a checkpoint is loaded with weights_only."""
        if self._live is None or self._agenda is None:
            return dict(self._restored)
        return {**self._live.state_dict(), "last_step": self._agenda.last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._restored = dict(state_dict)

    def should_read(self, trainer: pl.Trainer, *, step: int | None = None, epoch: int | None = None) -> bool:
        """Whether a reading is due; override it for a schedule of your own.

        Args:
            trainer: The Trainer.
            step: Optimizer steps taken, when asked at the end of a batch.
            epoch: Epoch just ended, counted from 0, when asked there.
        """
        return self._agenda is not None and self._agenda.due(step=step, epoch=epoch)

    def read_now(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Read saved weights that were loaded, whatever the schedule says, unless they were read last."""
        if self._agenda is None:
            self._begin(trainer, module)
        assert self._agenda is not None
        self._agenda.visit()

    def adopt(self, found: Settings) -> None:
        """Go on with settings that a :class:`SamplerFinder` found, where sampler, nβ and γ were left open."""
        if self._live is not None and self.sampler is None and self.nbeta is None and self.localization is None:
            self._live.adopt(found)

    def _begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        check_shards(module, self.estimators, snapshots=self.snapshots)
        finders = [c for c in trainer.callbacks if isinstance(c, SamplerFinder)]  # type: ignore[attr-defined]
        for finder in finders:
            finder.look(trainer, module)
        fast = bool(getattr(trainer, "fast_dev_run", False))
        unlimited = fast or is_replay(trainer)  # there is no training time to hold readings against
        clock = Onward(clock_of(trainer, self._clock))
        budget = Budget(None if unlimited else self.max_overhead, clock=clock)
        with Interruptions().held(), budget.charged():
            self._live = LiveReadings(
                trainer,
                module,
                name=self.name,
                request=self._request(fast=fast),
                source=self.data,
                budget=budget,
                on_failure=self.on_failure,
                snapshots=self.snapshots,
                offload=self.offload,
                shown=Shown(pictures=self.pictures, tables=self.tables, embeddings=self.embeddings),
                log_dir=record_dir(trainer),
            )
            if self._restored:
                self._live.load_state_dict(self._restored)
            self._agenda = Agenda(
                trainer,
                self._live,
                Watchers(trainer, self.name, self._tags(module)),
                schedule=Schedule() if fast else self._full_schedule(trainer),
                asks=self.should_read,
                alike=type(self).should_read is SLTMonitor.should_read,
                at_checkpoints=self.at_checkpoints,
                at_end=self.at_end,
                clock=clock,
                last_step=self._restored.get("last_step", -1),
            )
            ready = [m for m in _monitors(trainer) if m.layout and m._live is not None]
            write_layout(trainer.loggers, {m.name: m._live.keys for m in ready if m._live is not None})
            for finder in finders:
                if finder.calibration is not None and finder.calibration.settings is not None and not self._restored:
                    self.adopt(finder.calibration.settings)
            first = self._live.set_aside(self._agenda.step)
            self._live.prepare(first)
        self._agenda.begin(first)

    def _full_schedule(self, trainer: pl.Trainer) -> Schedule:
        """The user's, or: every step that the budget affords, or a fixed number of readings over the run."""
        if not self.schedule.empty or self.at_checkpoints:
            return self.schedule
        if self.max_overhead is not None:
            return Schedule(every_n_train_steps=1)
        total = steps_of_run(trainer)
        if total < float("inf"):
            return Schedule(every_n_train_steps=max(1, int(total) // DEFAULT_READINGS))
        if trainer.num_training_batches < float("inf"):
            return Schedule(every_n_epochs=1)
        return Schedule(every_n_train_steps=UNKNOWN_LENGTH)

    def _request(self, *, fast: bool) -> Request:
        minimal = replace(self.sampling, num_chains=2, num_draws=4, num_burnin=1, thinning=1)
        return Request(
            estimators=self.estimators,
            sampler=self.sampler,
            nbeta=self.nbeta,
            localization=self.localization,
            sampling=minimal if fast else self.sampling,
            components=self.components,
            loss_fn=self.loss_fn,
        )

    def _tags(self, module: pl.LightningModule) -> list[str]:
        """Everything that is logged, also where a reading failed."""
        keys = result_keys(divide(module, self.components, self.estimators))
        return [*missing(self.name, keys), f"{self.name}/overhead"]

    def _check_watched(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        check_watched(trainer, self.name, [tag for m in _monitors(trainer) for tag in m._tags(module)])

    def _release(self) -> None:
        self._restored = self.state_dict()
        if self._live is not None:
            self._left[id(self._live.trainer)] = self._restored
        self._live = self._agenda = None


def _monitors(trainer: pl.Trainer) -> list[SLTMonitor]:
    return [c for c in trainer.callbacks if isinstance(c, SLTMonitor)]  # type: ignore[attr-defined]
