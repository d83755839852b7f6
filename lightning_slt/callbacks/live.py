"""One monitor's work during one fit: the readings, their log, their records, their cost."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from torchmetrics import Metric

from lightning_slt.calibration import Settings
from lightning_slt.callbacks.schedule import Budget
from lightning_slt.plan import FailedReadingError, OnFailure, Results, report_failures
from lightning_slt.reading import Anchor, Reader, Request
from lightning_slt.records import Reading, RecordWriter
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.reporting.scalars import missing, scalars
from lightning_slt.reporting.tables import describe_settings, settings_table
from lightning_slt.reporting.tensorboard import write_text
from lightning_slt.samplers import SGLD
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
        self.index = 0
        self.last: dict[str, float] = {}
        self.snapshots = snapshots
        self._records = None if log_dir is None or not trainer.is_global_zero else RecordWriter(log_dir, name)
        self._settings_shown: dict[str, Any] | None = None
        source = trainer.train_dataloader if source is None else source
        self.reader = Reader(
            request, module, source, to_device=_mover(trainer, module), context=evaluation_context(trainer)
        )
        self.keys = {component: [e.name for e in request.estimators] for component in self.reader.components}
        self._to_callback_metrics(missing(name, self.keys))

    def set_aside(self, step: int) -> Anchor:
        """Copy the present weights for a reading now or later."""
        return self.reader.set_aside(step=step, global_step=self.trainer.global_step, epoch=self.trainer.current_epoch)

    def prepare(self, anchor: Anchor) -> None:
        """Calibrate and, where the budget needs it, predict what a reading will cost."""
        self.reader.calibrate(anchor)
        if self.budget.share is not None and self.budget.cost is None:
            self.budget.cost = self.reader.predict_cost(anchor)

    def read(self, anchor: Anchor, *, first: bool = False) -> None:
        """Make one reading, log it and record it. Errors are flagged unless the user wants them raised.

        Args:
            anchor: What to read.
            first: Before the first training step every error raises.
        """
        began = time.perf_counter()
        settings, results, failure = None, {}, None
        try:
            settings = self.reader.settings_at(anchor)
            results = self._run(anchor, settings)
        except Exception as error:  # any error of user code: training must go on
            if first or self.on_failure == "raise":
                raise
            failure = f"{type(error).__name__}: {error}"
            warnings.warn(f"{self.name}: the reading at step {anchor.step} failed: {failure}", stacklevel=2)
        self.budget.pay(time.perf_counter() - began, reading=failure is None)
        self._report(anchor, settings, results, failure, time.perf_counter() - began)
        try:
            report_failures(results, self.on_failure)
        except FailedReadingError as error:
            raise FailedReadingError(f"{self.name} at step {anchor.step}: {error}") from None

    def _run(self, anchor: Anchor, settings: Settings) -> dict[str, Results]:
        strategy = self.trainer.strategy
        rank, world = self.trainer.global_rank, self.trainer.world_size
        chains = range(settings.sampling.num_chains)[rank::world]
        reduce = (lambda states: _add_up(strategy, states)) if world > 1 else None
        total = self.reader.chain_steps(settings, chains)
        with reading_progress(self.trainer, f"{self.name} at step {anchor.step}", total) as on_step:
            return self.reader.read(anchor, settings, chains=chains, reduce=reduce, on_step=on_step)

    def _report(
        self,
        anchor: Anchor,
        settings: Settings | None,
        results: Mapping[str, Results],
        failure: str | None,
        duration: float,
    ) -> None:
        values = missing(self.name, self.keys) if failure else scalars(self.name, results)
        values[f"{self.name}/overhead"] = self.budget.overhead
        for logger in self.trainer.loggers:
            logger.log_metrics(values, anchor.step)
        self._to_callback_metrics(values)
        described = {} if settings is None else self._describe(settings)
        constants = {key: described.get(key) for key in ("sampler", "nbeta", "localization", "num_chains", "num_draws")}
        if described and constants != self._settings_shown:
            self._settings_shown = constants
            write_text(self.trainer.loggers, f"{self.name}/settings", settings_table(described), anchor.step)
        if self._records is not None:
            reading = Reading(
                name=self.name,
                index=self.index,
                step=anchor.step,
                global_step=anchor.global_step,
                epoch=anchor.epoch,
                time=time.time(),
                duration=duration,
                overhead=self.budget.overhead,
                settings=described,
                estimates=results,
                failure=failure,
            )
            self._write(self._records, reading, anchor)
        self.index += 1

    def _describe(self, settings: Settings) -> dict[str, Any]:
        data = self.reader.data
        return {**describe_settings(settings), "samples": f"{len(data)} of {data.total}"}

    def _write(self, records: RecordWriter, reading: Reading, anchor: Anchor) -> None:
        try:
            records.write(reading)
            if self.snapshots:
                records.write_anchor(anchor.module_loss.weights, reading.index)
        except OSError as error:
            warnings.warn(f"{self.name}: the reading at step {reading.step} was not recorded: {error}", stacklevel=2)

    def _to_callback_metrics(self, values: Mapping[str, float]) -> None:
        """Equal on every rank; a missing number keeps the last finite one, so that monitors do not stop on NaN."""
        for tag, value in values.items():
            if math.isfinite(value) or tag not in self.last:
                self.last[tag] = value
        shown = {tag: torch.tensor(self.last[tag]) for tag in values}
        self.trainer.callback_metrics.update(shown)
        means = {tag: float(v) for tag, v in shown.items() if tag.endswith("/mean") and "/full/" in tag}
        self.trainer.progress_bar_metrics.update({tag.split("/")[-2].upper(): v for tag, v in means.items()})

    def state_dict(self) -> dict[str, Any]:
        """Plain values that let a resumed run go on with the same posterior."""
        return {
            "index": self.index,
            "last": dict(self.last),
            "spent": self.budget.spent,
            "elapsed": self.budget.elapsed,
            "cost": self.budget.cost,
            "settings": _freeze(self.reader.settings),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.index, self.last = state["index"], dict(state["last"])
        self.budget.resume(spent=state["spent"], elapsed=state["elapsed"], cost=state["cost"])
        self.reader.settings = _thaw(state["settings"], self.reader)
        self._to_callback_metrics({tag: value for tag, value in self.last.items()})


def evaluation_context(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[Any]]:
    """The Trainer's own forward context, but none where the sampler runs on float32 copies.

    Float16 autocast needs a gradient scaler to keep small gradients; without one it is left out as well.
    """
    plugin = trainer.precision_plugin
    half = isinstance(plugin, HalfPrecision) or (isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed")
    return nullcontext if half else plugin.forward_context


def _mover(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Batch], Batch]:
    return lambda batch: trainer.strategy.batch_to_device(batch, module.device)


def _add_up(strategy: Any, metrics: Sequence[Metric]) -> None:
    """Sum statistics over processes; every process filled the rows of its own chains."""
    for metric in metrics:
        for name in metric._defaults:
            setattr(metric, name, strategy.reduce(getattr(metric, name), reduce_op="sum"))


def _freeze(settings: Settings | None) -> dict[str, Any] | None:
    if settings is None:
        return None
    return {
        "step_size": settings.sampler.step_size,
        "nbeta": settings.nbeta,
        "localization": settings.localization,
        "num_burnin": settings.sampling.num_burnin,
        "curvature": settings.curvature,
        "stability": settings.stability,
        "calibrated": list(settings.calibrated),
    }


def _thaw(state: Mapping[str, Any] | None, reader: Reader) -> Settings | None:
    """Settings of the earlier part of the run; what the user gives now wins over what was found then."""
    if state is None:
        return None
    request = reader.request
    burnin = reader.sampling.num_burnin
    return Settings(
        sampler=request.sampler or SGLD(step_size=state["step_size"]),
        nbeta=state["nbeta"] if request.nbeta is None else request.nbeta,
        localization=state["localization"] if request.localization is None else request.localization,
        sampling=replace(reader.sampling, num_burnin=state["num_burnin"] if burnin is None else burnin),
        curvature=state["curvature"],
        stability=state["stability"],
        calibrated=tuple(state["calibrated"]),
    )


def record_dir(trainer: pl.Trainer) -> str | None:
    """Where records go: beside the logs, or the Trainer's root folder. A collective call; None under fast_dev_run."""
    folder = trainer.log_dir
    if getattr(trainer, "fast_dev_run", False):
        return None
    return str(Path(folder or trainer.default_root_dir))
