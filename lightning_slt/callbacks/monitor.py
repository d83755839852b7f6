"""SLTMonitor: several quantities from one pass of chains, at intervals of a training run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback

from lightning_slt.callbacks.checks import check_name, check_names, check_settings
from lightning_slt.callbacks.live import LiveReadings, agreed, record_dir
from lightning_slt.callbacks.schedule import Budget, LogSteps, Schedule, StepAxis
from lightning_slt.components import Component, resolve_components
from lightning_slt.estimators.base import Estimator
from lightning_slt.functional import derive_loss
from lightning_slt.plan import OnFailure, check_estimators, check_on_failure
from lightning_slt.reading import Anchor, Request
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
        components: None for all weights; "layers", a pattern of parameter names, or ``{name: Component}``.
        data: None for the Trainer's own training set; else a Dataset, a DataLoader, or a dict or list of these.
        loss_fn: ``loss_fn(module, batch)``; None derives it from ``per_sample_loss`` or ``training_step``.
        every_n_train_steps: Optimizer steps between readings.
        every_n_epochs: Epochs between readings.
        train_time_interval: Time between readings.
        at_steps: Explicit optimizer steps; ``LogSteps(first, last, count)`` for log-spaced ones.
        at_checkpoints: Also read the weights of every checkpoint that is saved in training.
        at_end: A last reading when the fit ends, whatever the budget.
        max_overhead: Largest share of reading time over training time, such as 0.1: readings that the run cannot
            pay for yet are put off (the first one) or left out.
        name: First part of all tags; two monitors of one Trainer need two names.
        on_failure: "warn" flags a failed reading and lets training go on; "raise" stops it.
        snapshots: Save the anchor of every reading as safetensors beside the records.

    Raises:
        ValueError: For settings that cannot be.
        TypeError: For estimators that are none.

    >>> from lightning_slt.estimators import LLC
    >>> SLTMonitor([LLC()], every_n_train_steps=100).state_key
    'slt'
    """

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
    ) -> None:
        """Store and check the arguments."""
        super().__init__()
        self.estimators = check_estimators(estimators)
        self.sampler, self.nbeta, self.localization = sampler, nbeta, localization
        self.sampling = sampling or SamplingConfig()
        self.components, self.data, self.loss_fn = components, data, loss_fn
        self.every_n_train_steps, self.every_n_epochs = every_n_train_steps, every_n_epochs
        self.train_time_interval, self.at_steps = train_time_interval, at_steps
        self.at_checkpoints, self.at_end, self.max_overhead = at_checkpoints, at_end, max_overhead
        self.name, self.on_failure, self.snapshots = name, on_failure, snapshots
        self.schedule = Schedule(
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            at_steps=() if at_steps is None else tuple(at_steps),
        )
        self._schedule, self._clock = self.schedule, time.perf_counter
        check_name(name)
        check_settings(nbeta=nbeta, localization=localization, sampler=sampler, sampling=self.sampling)
        check_on_failure(on_failure)
        Budget(max_overhead)
        self._live: LiveReadings | None = None
        self._steps = StepAxis()
        self._first: Anchor | None = None
        self._at_checkpoint: Anchor | None = None
        self._restored: dict[str, Any] = {}
        self._resuming = False
        self._looked = 0
        self._last_step = -1
        self._last_time = 0.0

    @property
    def state_key(self) -> str:
        """The monitor's name: two monitors need two."""
        return self.name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can be known to fail; forget an earlier fit by another Trainer."""
        if stage == "fit":
            check_names([c.name for c in trainer.callbacks if isinstance(c, SLTMonitor)])  # type: ignore[attr-defined]
            derive_loss(pl_module, self.loss_fn)
            resolve_components(pl_module, self.components)
            if self.data is not None:
                source_parts(self.data)
            self._restored = self._restored if trainer.global_step else {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prepare, and read the weights that training starts from."""
        self._begin(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Read what waits: the first weights, or those of a checkpoint."""
        self._steps.batch_begins(trainer)
        self._take_up(trainer)
        self._read_waiting(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read where a step is due."""
        self._after_step(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read where an epoch is due."""
        if self._agreed(trainer, self.should_read(trainer, epoch=trainer.current_epoch)):
            self._read_now(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what waits, and the last weights where asked for."""
        self._finish(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Keep the state, and drop everything that holds on to the Trainer."""
        self._release()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the weights aside; sampling here would run inside tuners and exception handlers."""
        if self.at_checkpoints and self._live is not None and not trainer.sanity_checking:
            self._set_aside(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only: a checkpoint is loaded with weights_only."""
        if self._live is None:
            return dict(self._restored)
        return {**self._live.state_dict(), "last_step": self._last_step}

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
        if epoch is not None:
            return self._schedule.due_at_epoch(epoch)
        assert step is not None
        return self._schedule.due_at_step(self._looked, step, since=self._clock() - self._last_time)

    def _begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        fast = bool(getattr(trainer, "fast_dev_run", False))
        budget = Budget(None if fast else self.max_overhead, clock=self._clock)
        self._first = self._at_checkpoint = None
        self._schedule = Schedule() if fast else self._full_schedule(trainer)
        with budget.charged():
            self._live = LiveReadings(
                trainer,
                module,
                name=self.name,
                request=self._request(fast=fast),
                source=self.data,
                budget=budget,
                on_failure=self.on_failure,
                snapshots=self.snapshots,
                log_dir=record_dir(trainer),
            )
            self._last_step = self._restored.get("last_step", -1)
            if self._restored:
                self._live.load_state_dict(self._restored)
            self._looked, self._last_time = trainer.global_step, self._clock()
            self._steps.batch_begins(trainer)
            write_layout(trainer.loggers, _layouts(trainer))
            first = self._live.set_aside(self._steps.now(trainer))
            self._live.prepare(first)
        self._resuming = trainer.global_step > 0
        if not self._resuming:
            self._first = first
            self._read_waiting(trainer, training=False)

    def _take_up(self, trainer: pl.Trainer) -> None:
        """Where a run resumes, Lightning sets its count of batches right only after ``on_train_start``."""
        resuming, self._resuming = self._resuming, False
        step = self._steps.now(trainer)
        if resuming and self._live is not None and step != self._last_step:
            self._first = self._live.set_aside(step)

    def _full_schedule(self, trainer: pl.Trainer) -> Schedule:
        """The user's, or: every step that the budget affords, or a fixed number of readings over the run."""
        if not self.schedule.empty or self.at_checkpoints:
            return self.schedule
        if self.max_overhead is not None:
            return Schedule(every_n_train_steps=1)
        total = trainer.estimated_stepping_batches
        if 0 < total < float("inf"):
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

    def _after_step(self, trainer: pl.Trainer) -> None:
        self._read_waiting(trainer)
        step = trainer.global_step
        due = step != self._looked and self._agreed(trainer, self.should_read(trainer, step=step))
        self._looked = step
        if due:
            self._read_now(trainer)

    def _read_now(self, trainer: pl.Trainer) -> None:
        """Read the present weights if the budget affords it."""
        step = self._steps.now(trainer)
        if self._live is None or step == self._last_step or self._first is not None:
            return
        if agreed(trainer, self._live.budget):
            self._read(self._live.set_aside(step))

    def _set_aside(self, trainer: pl.Trainer) -> None:
        assert self._live is not None
        step = self._steps.now(trainer)
        if step != self._last_step and (self._first is None or step != self._first.step):
            self._at_checkpoint = self._live.set_aside(step)

    def _read_waiting(self, trainer: pl.Trainer, *, training: bool = True) -> None:
        """The first weights wait until the budget affords them; those of a checkpoint do not."""
        if self._live is None:
            return
        if self._first is not None and agreed(trainer, self._live.budget):
            first, self._first = self._first, None
            self._read(first, must_work=not training)
        waiting, self._at_checkpoint = self._at_checkpoint, None
        if waiting is None or waiting.step == self._last_step or self._first is not None:
            return
        if agreed(trainer, self._live.budget):
            self._read(waiting)

    def _read(self, anchor: Anchor, *, must_work: bool = False) -> None:
        assert self._live is not None
        self._last_step, self._last_time = anchor.step, self._clock()
        self._live.read(anchor, must_work=must_work)

    def _finish(self, trainer: pl.Trainer) -> None:
        self._read_waiting(trainer)
        step = self._steps.now(trainer)
        if self._live is not None and self.at_end and step != self._last_step:
            self._read(self._live.set_aside(step))
        self._release()

    def _release(self) -> None:
        self._restored = self.state_dict()
        self._live = self._first = self._at_checkpoint = None

    def _agreed(self, trainer: pl.Trainer, due: bool) -> bool:
        """Rank 0's decision, on every rank, where ranks could come to different ones."""
        own = type(self).should_read is not SLTMonitor.should_read
        alike = not own and self._schedule.train_time_interval is None
        return due if alike or trainer.world_size == 1 else bool(trainer.strategy.broadcast(due))


def _layouts(trainer: pl.Trainer) -> dict[str, dict[str, list[str]]]:
    """Charts of every monitor that is ready, so that the last one to start writes them all."""
    monitors = [c for c in trainer.callbacks if isinstance(c, SLTMonitor)]  # type: ignore[attr-defined]
    return {m.name: m._live.keys for m in monitors if m._live is not None}
