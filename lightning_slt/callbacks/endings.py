"""What the monitors of a Trainer ended with, side by side with what they were set to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from lightning_slt.callbacks.listening import Listener
from lightning_slt.reporting.hparams import write_hparams


class Ended(NamedTuple):
    """The end of one monitor's fit.

    Attributes:
        settings: Of its last reading.
        values: Of its last reading, by tag; NaN where that failed.
        shown: Whether the user wants to see them side by side.
    """

    settings: Mapping[str, Any]
    values: Mapping[str, float]
    shown: bool = False


def compare_endings(trainer: pl.Trainer, monitors: Mapping[str, Ended]) -> None:
    """Show settings against final values: the mean of every estimate, and the losses of training.

    Args:
        trainer: The Trainer.
        monitors: By name; those without chains have no settings to show.
    """
    settings = {name: end.settings for name, end in monitors.items() if end.settings and end.shown}
    if not settings or not trainer.is_global_zero:
        return
    shown = [end.values for end in monitors.values() if end.shown]
    means = {tag: value for values in shown for tag, value in values.items() if tag.endswith("/mean")}
    values = {**_losses(trainer, monitors), **means}
    try:
        write_hparams(trainer.loggers, settings, values, trainer.global_step)
    except OSError as error:
        rank_zero_warn(f"settings and final values were not written for TensorBoard: {error}")


def _losses(trainer: pl.Trainer, monitors: Mapping[str, Ended]) -> dict[str, float]:
    """What the user logs with "loss" in its name; the numbers of a loss kernel are none."""
    listening = [getattr(c, "name", "") for c in trainer.callbacks if isinstance(c, Listener)]  # type: ignore[attr-defined]
    ours = tuple(f"{name}/" for name in (*monitors, *listening))
    found = trainer.callback_metrics.items()
    return {tag: float(value) for tag, value in found if "loss" in tag.lower() and not tag.startswith(ours)}
