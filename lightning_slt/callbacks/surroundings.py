"""What a Trainer tells of itself: how it evaluates, where it logs, how long it will go on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slt.analysis.stages import Stage
from lightning_slt.callbacks.listening import TellsStages
from lightning_slt.events import RunEvent, RunStage, load_events, write_event, write_stages
from lightning_slt.records import FOLDER
from lightning_slt.reporting.events import happenings
from lightning_slt.reporting.tensorboard import write_text
from lightning_slt.types import Batch

EVENTS_TAG = "events"
"""Of the text that tells what happened in a run."""


def evaluation_context(trainer: pl.Trainer) -> Callable[[], AbstractContextManager[Any]]:
    """The Trainer's own forward context, but none where the sampler runs on float32 copies.

    Float16 autocast needs a gradient scaler to keep small gradients; without one it is left out as well.
    """
    plugin = trainer.precision_plugin
    half = isinstance(plugin, HalfPrecision) or (isinstance(plugin, MixedPrecision) and plugin.precision == "16-mixed")
    return nullcontext if half else plugin.forward_context


def mover(trainer: pl.Trainer, module: pl.LightningModule) -> Callable[[Batch], Batch]:
    """Moves a collated batch to the module's device, as the Trainer does."""
    device = getattr(module, "device", None)  # of a plain module, whose batches are moved where its weights are
    return lambda batch: trainer.strategy.batch_to_device(batch, device)


def record_dir(trainer: pl.Trainer) -> str | None:
    """Where records go: beside the logs, or the Trainer's root folder. A collective call; None under fast_dev_run."""
    folder = trainer.log_dir or trainer.default_root_dir
    if getattr(trainer, "fast_dev_run", False):
        return None
    if "://" in str(folder):
        rank_zero_warn(f"no records are kept beside {folder}: it is no local folder")
        return None
    return str(folder)


def steps_of_run(trainer: pl.Trainer) -> float:
    """How many optimizer steps the fit will make; infinite where that is not known."""
    total = trainer.estimated_stepping_batches
    return total if total > 0 else math.inf


def record(
    trainer: pl.Trainer,
    source: str,
    *,
    kind: str,
    step: float,
    known_at: int,
    quantity: str,
    text: str,
    table: bool = True,
) -> None:
    """Keep an event of a callback beside the records, once, and tabulate all of the run; a collective call.

    A full disk is told of and leaves training alone.
    """
    folder = record_dir(trainer)
    if not trainer.is_global_zero:
        return
    event = RunEvent(source=source, kind=kind, step=float(step), known_at=known_at, quantity=quantity, text=text)
    try:
        write_event(folder, event)
    except OSError as error:
        rank_zero_warn(f"{source}: an event was not recorded: {error}")
        return
    if table:
        tabulate_events(trainer, folder, known_at)


def keep_stages(trainer: pl.Trainer, source: str, quantity: str, *, known_at: int, stages: Sequence[Stage]) -> None:
    """Keep what a callback has found beside the records, for TensorBoard's tab; a collective call."""
    folder = record_dir(trainer)
    if not trainer.is_global_zero:
        return
    rows = [
        RunStage(
            source=source, quantity=quantity, known_at=known_at, name=stage.name, kind=stage.kind, start=stage.start,
            end=stage.end, hidden=stage.hidden,
        )
        for stage in stages
    ]  # fmt: skip
    try:
        write_stages(folder, rows)
    except OSError as error:
        rank_zero_warn(f"{source}: its stages were not recorded: {error}")


def tabulate_events(trainer: pl.Trainer, folder: str | None, step: int) -> None:
    """Show all that callbacks have told of the run, and its stages, on TensorBoard's text page.

    Args:
        trainer: The Trainer.
        folder: Of the run's records; without one there are no events to read.
        step: Up to now.
    """
    stages = {tag: t for c in trainer.callbacks if isinstance(c, TellsStages) for tag, t in c.stage_tables().items()}  # type: ignore[attr-defined]
    events = [] if folder is None else load_events(Path(folder) / FOLDER)
    if events or stages:
        write_text(trainer.loggers, EVENTS_TAG, happenings(events, stages), step)
