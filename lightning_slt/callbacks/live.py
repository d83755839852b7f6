"""One monitor's work during one fit: the readings, their log, their records, their cost."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slt.calibration import Settings
from lightning_slt.callbacks.peers import Peers
from lightning_slt.callbacks.resume import freeze, thaw
from lightning_slt.callbacks.schedule import Budget
from lightning_slt.components import FULL
from lightning_slt.plan import FailedReadingError, OnFailure, Results, report_failures
from lightning_slt.reading import Anchor, Reader, Request
from lightning_slt.records import Reading, RecordWriter
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.reporting.scalars import missing, scalars
from lightning_slt.reporting.tables import describe_settings, settings_table
from lightning_slt.reporting.tensorboard import write_text
from lightning_slt.types import Batch


class LiveReadings:
    """Makes, logs and records the readings of one fit.

    Args:
        trainer: The Trainer.
        module: Its LightningModule.
        name: The monitor's.
        request: What to estimate and how.
        source: Data; None for the Trainer's own training set.
        budget: What readings may cost.
        on_failure: Whether a failed reading raises.
        snapshots: Whether to save the anchors.
        log_dir: Where records go; None for nowhere.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        *,
        name: str,
        request: Request,
        source: Any,
        budget: Budget,
        on_failure: OnFailure,
        snapshots: bool,
        log_dir: str | None,
    ) -> None:
        """Prepare the readings; raises where nothing can be read."""
        self.trainer, self.name, self.budget, self.on_failure = trainer, name, budget, on_failure
        self.index, self._began_at = 0, trainer.global_step
        self.last: dict[str, float] = {}
        self.snapshots = snapshots
        self._log_dir = log_dir if trainer.is_global_zero else None
        self._records: RecordWriter | None = None
        self._resume_records: str | None = None
        self._settings_shown: dict[str, Any] | None = None
        self.peers = Peers(trainer)
        source = trainer.train_dataloader if source is None else source
        self.reader = Reader(
            request, module, source, to_device=_mover(trainer, module), context=evaluation_context(trainer)
        )
        self.keys = {component: [e.name for e in request.estimators] for component in self.reader.components}
        self._to_callback_metrics({**missing(name, self.keys), f"{name}/overhead": math.nan})

    def set_aside(self, step: int) -> Anchor:
        """Copy the present weights for a reading now or later."""
        with self.budget.charged():
            return self.reader.set_aside(
                step=step, global_step=self.trainer.global_step, epoch=self.trainer.current_epoch
            )

    def prepare(self, anchor: Anchor) -> None:
        """Calibrate and, where the budget needs it, predict what a reading will cost."""
        self.peers.share_buffers(anchor.module_loss)
        self.reader.settings = self.peers.agree_on(self.reader.calibrate(anchor))
        if self.budget.share is not None and self.budget.cost is None:
            self.budget.cost = self.reader.predict_cost(anchor)

    def read(self, anchor: Anchor, *, must_work: bool = False) -> None:
        """Make one reading, log it and record it. Errors are flagged unless the user wants them raised.

        Args:
            anchor: What to read.
            must_work: Every error raises, as before the first training step.
        """
        began = self.budget.clock()
        settings: Settings | None = None
        results: dict[str, Results] = {}
        failure: str | None = None
        with self.budget.charged():
            try:
                settings, results = self._try(anchor)
            except Exception as error:  # any error of user code: training must go on
                if must_work or self.on_failure == "raise":
                    raise
                failure = f"{type(error).__name__}: {error}"
                warnings.warn(f"{self.name}: the reading at step {anchor.step} failed: {failure}", stacklevel=2)
        duration = self.budget.clock() - began
        self.budget.cost = self.budget.cost if failure else duration
        with self.budget.charged():
            self._report(anchor, settings, results, failure, duration)
        try:
            report_failures(results, self.on_failure)
        except FailedReadingError as error:
            raise FailedReadingError(f"{self.name} at step {anchor.step}: {error}") from None

    def _try(self, anchor: Anchor) -> tuple[Settings, dict[str, Results]]:
        """All processes come to the end of a reading together, or all give it up."""
        with self.peers.together():
            self.peers.share_buffers(anchor.module_loss)
            settings = self.peers.agree_on(self.reader.settings_at(anchor))
            chains = self.peers.share_of(settings.sampling.num_chains)
            total = self.reader.chain_steps(settings, chains)
            with reading_progress(self.trainer, f"{self.name} at step {anchor.step}", total) as on_step:
                return settings, self.reader.read(
                    anchor, settings, chains=chains, reduce=self.peers.add_up, on_step=on_step
                )

    def _report(
        self,
        anchor: Anchor,
        settings: Settings | None,
        results: Mapping[str, Results],
        failure: str | None,
        duration: float,
    ) -> None:
        values = missing(self.name, self.keys) if failure else scalars(self.name, results)
        overhead = self.peers.from_first(self.budget.overhead)
        values[f"{self.name}/overhead"] = overhead if self.trainer.global_step > self._began_at else math.nan
        for logger in self.trainer.loggers:
            logger.log_metrics(values, anchor.step)
        self._to_callback_metrics(values)
        described = {} if settings is None else self._describe(settings)
        constants = {key: described.get(key) for key in ("sampler", "nbeta", "localization", "num_chains", "num_draws")}
        if described and constants != self._settings_shown:
            self._settings_shown = constants
            write_text(self.trainer.loggers, f"{self.name}/settings", settings_table(described), anchor.step)
        reading = Reading(
            name=self.name,
            index=self.index,
            step=anchor.step,
            global_step=anchor.global_step,
            epoch=anchor.epoch,
            time=time.time(),
            duration=duration,
            overhead=overhead,
            settings=described,
            estimates=results,
            failure=failure,
        )
        self._record(reading, anchor)
        self.index += 1

    def _describe(self, settings: Settings) -> dict[str, Any]:
        data = self.reader.data
        return {**describe_settings(settings), "samples": f"{len(data)} of {data.total}"}

    def _record(self, reading: Reading, anchor: Anchor) -> None:
        if self._log_dir is None:
            return
        try:
            self._records = self._records or RecordWriter(self._log_dir, self.name, resume=self._resume_records)
            self._records.write(reading, anchor=anchor.module_loss.weights if self.snapshots else None)
        except OSError as error:
            warnings.warn(f"{self.name}: the reading at step {reading.step} was not recorded: {error}", stacklevel=2)

    def _to_callback_metrics(self, values: Mapping[str, float]) -> None:
        """Equal on every rank; a missing number keeps the last finite one, so that monitors do not stop on NaN."""
        for tag, value in values.items():
            if math.isfinite(value) or tag not in self.last:
                self.last[tag] = value
        shown = {tag: torch.tensor(self.last[tag]) for tag in values}
        self.trainer.callback_metrics.update(shown)
        for key in self.keys.get(FULL, ()):
            label = key.upper() if self.name == "slt" else f"{self.name} {key.upper()}"
            self.trainer.progress_bar_metrics[label] = self.last[f"{self.name}/{FULL}/{key}/mean"]

    def state_dict(self) -> dict[str, Any]:
        """Plain values that let a resumed run go on with the same posterior."""
        return {
            "index": self.index,
            "last": dict(self.last),
            "spent": self.budget.spent,
            "elapsed": self.budget.elapsed,
            "cost": self.budget.cost,
            "settings": freeze(self.reader.settings),
            "records": self._resume_records if self._records is None else self._records.file,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.index, self._resume_records = state["index"], state["records"]
        self.last.update({tag: value for tag, value in state["last"].items() if tag in self.last})
        self.budget.resume(spent=state["spent"], elapsed=state["elapsed"], cost=state["cost"])
        self.reader.settings = thaw(state["settings"], self.reader)
        self._to_callback_metrics(dict(self.last))


def evaluation_context(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[Any]]:
    """The Trainer's own forward context, but none where the sampler runs on float32 copies.

    Float16 autocast needs a gradient scaler to keep small gradients; without one it is left out as well.
    """
    plugin = trainer.precision_plugin
    half = isinstance(plugin, HalfPrecision) or (isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed")
    return nullcontext if half else plugin.forward_context


def _mover(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Batch], Batch]:
    return lambda batch: trainer.strategy.batch_to_device(batch, module.device)


def record_dir(trainer: pl.Trainer) -> str | None:
    """Where records go: beside the logs, or the Trainer's root folder. A collective call; None under fast_dev_run."""
    folder = trainer.log_dir or trainer.default_root_dir
    if getattr(trainer, "fast_dev_run", False):
        return None
    if "://" in str(folder):
        rank_zero_warn(f"no records are kept beside {folder}: it is no local folder")
        return None
    return str(folder)


def agreed(trainer: pl.Trainer, budget: Budget) -> bool:
    """Whether rank 0's budget affords a reading, on every rank."""
    if budget.share is None or trainer.world_size == 1:
        return budget.affords()
    return bool(trainer.strategy.broadcast(budget.affords()))
