"""One monitor's work during one fit: the readings, their log, their records, their cost."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slt.calibration import Settings
from lightning_slt.callbacks.budget import Budget, Cost
from lightning_slt.callbacks.peers import Peers
from lightning_slt.callbacks.resume import freeze, thaw
from lightning_slt.callbacks.surroundings import evaluation_context, mover, steps_of_run
from lightning_slt.components import FULL
from lightning_slt.plan import FailedReadingError, OnFailure, Results, report_failures
from lightning_slt.reading import Anchor, Reader, Request
from lightning_slt.records import Reading, RecordWriter
from lightning_slt.reporting.advice import Verdicts, worthless
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.reporting.scalars import missing, scalars
from lightning_slt.reporting.tables import describe_settings, settings_table
from lightning_slt.reporting.tensorboard import write_text

MEANINGFUL = 0.05
"""Share of a fit after which reading time over training time says something."""


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
        self.index, self._began_at, self._length = 0, trainer.global_step, steps_of_run(trainer)
        self.last: dict[str, float] = {}
        self.snapshots = snapshots
        self._log_dir = log_dir if trainer.is_global_zero else None
        self._records: RecordWriter | None = None
        self._resume_records: str | None = None
        self._settings_shown: dict[str, Any] | None = None
        self.peers = Peers(trainer)
        source = trainer.train_dataloader if source is None else source
        self.reader = Reader(
            request, module, source, to_device=mover(trainer, module), context=evaluation_context(trainer)
        )
        self.keys = {component: [e.name for e in request.estimators] for component in self.reader.components}
        self.verdicts = Verdicts(request.estimators, name)
        self._to_callback_metrics({**missing(name, self.keys), f"{name}/overhead": math.nan})

    def set_aside(self, step: int) -> Anchor:
        """Copy the present weights for a reading now or later."""
        with self.budget.charged():
            return self.reader.set_aside(
                step=step, global_step=self.trainer.global_step, epoch=self.trainer.current_epoch
            )

    def prepare(self, anchor: Anchor) -> None:
        """Calibrate and, where the budget needs it, predict what a reading will cost."""
        began = self.budget.clock()
        self.peers.share_buffers(anchor.module_loss)
        settings = self.peers.agree_on(self.reader.calibrate(anchor))
        self.reader.settings, measuring = settings, self.budget.clock() - began
        if self.budget.share is not None and self.budget.cost is None:
            setup, per_step = self.reader.predict_cost(anchor, self.peers.share_of(settings.sampling.num_chains))
            self.budget.cost = Cost(measuring=measuring, setup=setup, per_step=per_step, steps=settings.num_steps)
        if self.budget.share is not None and self._log_dir is not None:
            with suppress(OSError):  # an empty file says that there was no reading; a reading says what is wrong here
                self._open_records(self._log_dir)
        if len(self.keys) > 1:
            rank_zero_info(
                f"{self.name}: {len(self.keys)} components, so a reading runs {len(self.keys)} sets of "
                f"{settings.sampling.num_chains} chains with {settings.num_steps} steps each, "
                f"and costs {len(self.keys)} times as much as one of the whole network"
            )

    def affords(self) -> bool:
        """Whether the budget affords a reading: rank 0's answer, on every rank."""
        return self.budget.share is None or self.peers.from_first(self.budget.affords())

    def read(self, anchor: Anchor, *, must_work: bool = False, on_credit: bool = False) -> bool:
        """Make one reading, log it and record it. Errors are flagged unless the user wants them raised.

        Args:
            anchor: What to read.
            must_work: Every error raises, as before the first training step.
            on_credit: Whatever it costs.

        Returns:
            Whether it was made, or flagged, rather than left out because the curvature makes it too dear.
        """
        began = self.budget.clock()
        settings: Settings | None = None
        results: dict[str, Results] = {}
        failure: str | None = None
        with self.budget.charged():
            try:
                settings, results = self._try(anchor, on_credit)
            except Exception as error:  # any error of user code: training must go on
                if must_work or self.on_failure == "raise":
                    raise
                failure = f"{type(error).__name__}: {error}"
                warnings.warn(f"{self.name}: the reading at step {anchor.step} failed: {failure}", stacklevel=2)
        if failure is None and not results:
            return False
        bad = worthless(results, exact=settings is not None and settings.sampler.full_batch)
        duration = self.budget.clock() - began
        with self.budget.charged():
            self._report(anchor, settings, results, failure, duration=duration, bad=bad)
        if failure is None:
            self.budget.learn(self.budget.clock() - began)
        self._speak(anchor.step, results, bad)
        return True

    def _try(self, anchor: Anchor, on_credit: bool) -> tuple[Settings, dict[str, Results]]:
        """All processes come to the end of a reading together, or all give it up; no results where it is too dear."""
        with self.peers.together():
            began = self.budget.clock()
            self.peers.share_buffers(anchor.module_loss)
            settings = self.peers.agree_on(self.reader.settings_at(anchor))
            payable = self.budget.plan(measuring=self.budget.clock() - began, steps=settings.num_steps)
            if self.budget.share is not None and not (self.peers.from_first(payable) or on_credit):
                return settings, {}
            chains = self.peers.share_of(settings.sampling.num_chains)
            total = self.reader.chain_steps(settings, chains)
            with reading_progress(self.trainer, f"{self.name} at step {anchor.step}", total) as on_step:
                return settings, self.reader.read(
                    anchor, settings, chains=chains, reduce=self.peers.add_up, on_step=on_step
                )

    def _speak(self, step: int, results: Mapping[str, Results], bad: Mapping[str, str]) -> None:
        """Tell the user what is wrong with a reading, or raise where that was asked for."""
        if (news := self.verdicts.take(step, results)) is not None:
            rank_zero_warn(news)
        try:
            report_failures(results, self.on_failure)
            if bad and self.on_failure == "raise":
                raise FailedReadingError("; ".join(f"{where}: {why}" for where, why in bad.items()))
        except FailedReadingError as error:
            raise FailedReadingError(f"{self.name} at step {step}: {error}") from None

    def summarize(self) -> None:
        """Say at the end of a fit how many readings there were, how many of use, and why there were none."""
        if self.verdicts.readings:
            rank_zero_info(self.verdicts.summary())
        elif self.index == 0 and self.budget.cost is not None and self.budget.share is not None:
            seconds, training = self.budget.cost.whole, self.budget.training
            rank_zero_warn(
                f"{self.name}: no reading was made. One takes about {seconds:.3g} s after {self.budget.spent:.3g} s of "
                f"preparation, which at max_overhead={self.budget.share:g} needs "
                f"{(self.budget.spent + seconds) / self.budget.share:.3g} s of training; there were {training:.3g} s. "
                "Write at_end=True for a reading of the last weights whatever it costs, a larger max_overhead, "
                f"or fewer draws: sampling=SamplingConfig(num_draws={max(1, self.reader.sampling.num_draws // 4)})"
            )

    def _report(
        self,
        anchor: Anchor,
        settings: Settings | None,
        results: Mapping[str, Results],
        failure: str | None,
        *,
        duration: float,
        bad: Mapping[str, str],
    ) -> None:
        values = missing(self.name, self.keys) if failure else scalars(self.name, results, worthless=bad)
        overhead = self.peers.from_first(self._overhead())
        values[f"{self.name}/overhead"] = overhead
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

    def _overhead(self) -> float:
        """NaN before 5 % of the fit; where its length is unknown, before its first step."""
        step = self.trainer.global_step
        known = math.isfinite(self._length)
        meaningful = step >= MEANINGFUL * self._length if known else step > self._began_at
        return self.budget.overhead if meaningful and step else math.nan

    def _describe(self, settings: Settings) -> dict[str, Any]:
        data = self.reader.data
        return {**describe_settings(settings), "samples": f"{len(data)} of {data.total}"}

    def _record(self, reading: Reading, anchor: Anchor) -> None:
        if self._log_dir is None:
            return
        try:
            records = self._open_records(self._log_dir)
            records.write(reading, anchor=anchor.module_loss.weights if self.snapshots else None)
        except OSError as error:
            warnings.warn(f"{self.name}: the reading at step {reading.step} was not recorded: {error}", stacklevel=2)

    def _open_records(self, log_dir: str) -> RecordWriter:
        self._records = self._records or RecordWriter(log_dir, self.name, resume=self._resume_records)
        return self._records

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
            "budget": self.budget.state_dict(),
            "settings": freeze(self.reader.settings),
            "records": self._resume_records if self._records is None else self._records.file,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.index, self._resume_records = state["index"], state["records"]
        self.last.update({tag: value for tag, value in state["last"].items() if tag in self.last})
        self.budget.load_state_dict(state["budget"])
        self.reader.settings = thaw(state["settings"], self.reader)
        self._to_callback_metrics(dict(self.last))
