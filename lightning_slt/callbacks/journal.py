"""What one monitor tells of its readings in one fit: to loggers, to callbacks, to the progress bar, and to disk."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_slt.calibration import Settings
from lightning_slt.callbacks.complaints import Complaints
from lightning_slt.components import FULL
from lightning_slt.data import SamplingData
from lightning_slt.reading import Anchor
from lightning_slt.records import Reading, RecordWriter
from lightning_slt.reporting.pictures import Shown, write_pictures
from lightning_slt.reporting.scalars import Keys, missing, scalars
from lightning_slt.reporting.tables import describe_settings, settings_table
from lightning_slt.reporting.tensorboard import write_text
from lightning_slt.running import Results


class Journal:
    """Logs and records the readings of one fit.

    Args:
        trainer: The Trainer.
        name: The monitor's.
        keys: Names of the scalars of every estimate.
        data: What is sampled from.
        log_dir: Where records go; None for nowhere.
        snapshots: Whether anchors are saved with them.
        shown: What TensorBoard gets beside scalars.

    Attributes:
        index: Of the next reading.
        last: Last finite value of every tag.
        values: Of the last reading, by tag.
        settings: Of the last reading that had any, in words.
        unrecorded: How many readings of this fit could not be recorded.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        name: str,
        *,
        keys: Keys,
        data: SamplingData,
        log_dir: str | None,
        snapshots: bool,
        shown: Shown,
    ) -> None:
        """Every tag stands in ``callback_metrics`` from the start."""
        self.trainer, self.name, self.keys, self.data, self.snapshots = trainer, name, keys, data, snapshots
        self.index, self.shown = 0, shown
        self.last: dict[str, float] = {}
        self.values: dict[str, float] = {}
        self.settings: dict[str, Any] = {}
        self.unrecorded, self._complaints = 0, Complaints()
        self._log_dir = log_dir if trainer.is_global_zero else None
        self._records: RecordWriter | None = None
        self._resume_records: str | None = None
        self._settings_shown: dict[str, Any] | None = None
        self._to_callback_metrics({**missing(name, keys), f"{name}/overhead": math.nan})

    @property
    def file(self) -> Path | None:
        """Where the readings of this run are recorded; None where they are not."""
        return None if self._records is None else self._records.path

    def open(self) -> None:
        """Make the file of the records now: an empty one says that there was no reading."""
        if self._log_dir is not None:
            with suppress(OSError):  # a reading says what is wrong here
                self._open_records(self._log_dir)

    def enter(
        self,
        anchor: Anchor,
        settings: Settings | None,
        results: Mapping[str, Results],
        failure: str | None,
        *,
        duration: float,
        overhead: float,
        bad: Mapping[str, str],
        revises: int | None,
    ) -> Reading:
        """Log and record one reading.

        Args:
            anchor: Of which weights.
            settings: It was made with; None where it failed before.
            results: ``{component: {key: estimate}}``; empty where it failed.
            failure: Why it failed, or None.
            duration: Seconds.
            overhead: Reading time over training time so far; NaN where that says nothing yet.
            bad: Estimates that are no numbers, by ``<component>/<key>``.
            revises: Index of the earlier reading that it replaces.

        Returns:
            The reading as recorded, on every process.
        """
        values = missing(self.name, self.keys) if failure else scalars(self.name, results, worthless=bad)
        values[f"{self.name}/overhead"] = overhead
        for logger in self.trainer.loggers:
            logger.log_metrics(values, anchor.step)
        write_pictures(self.trainer.loggers, self.name, results, anchor.step, worthless=bad, shown=self.shown)
        self._to_callback_metrics(values)
        described = {} if settings is None else self._describe(settings)
        self.values, self.settings = values, described or self.settings
        constants = {key: described.get(key) for key in ("sampler", "nbeta", "localization", "num_chains", "num_draws")}
        if self.shown.tables and described and constants != self._settings_shown:
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
            revises=revises,
        )
        self._record(reading, anchor)
        self.index += 1
        return reading

    def _describe(self, settings: Settings) -> dict[str, Any]:
        return {**describe_settings(settings), "samples": f"{len(self.data)} of {self.data.total}"}

    def _record(self, reading: Reading, anchor: Anchor) -> None:
        if self._log_dir is None:
            return
        try:
            records = self._open_records(self._log_dir)
            records.write(reading, anchor=anchor.module_loss.weights if self.snapshots else None)
        except OSError as error:
            self.unrecorded += 1
            told = f"{self.name}: the reading at step {reading.step} was not recorded: {error}"
            self._complaints.tell(told, again="; it is logged all the same, and how many were not is told in the end")

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
        for key in (k for k, fields in self.keys.get(FULL, {}).items() if "mean" in fields):
            label = key.upper() if self.name == "slt" else f"{self.name} {key.upper()}"
            self.trainer.progress_bar_metrics[label] = self.last[f"{self.name}/{FULL}/{key}/mean"]

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        records = self._resume_records if self._records is None else self._records.file
        return {"index": self.index, "last": dict(self.last), "records": records}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.index, self._resume_records = state["index"], state["records"]
        self.last.update({tag: value for tag, value in state["last"].items() if tag in self.last})
        self._to_callback_metrics(dict(self.last))
