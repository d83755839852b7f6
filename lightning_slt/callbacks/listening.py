"""Callbacks that follow the readings of monitors: each hears of every reading as it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl

from lightning_slt.records import Reading


@runtime_checkable
class Listener(Protocol):
    """A callback that follows readings: of other monitors, or its own."""

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Take one reading in, on every process, right after it was logged and recorded.

        Args:
            trainer: The Trainer.
            reading: With ``reading.name`` the monitor's; where ``reading.revises`` is a number it replaces an earlier
                one of the same weights.
        """
        ...


@runtime_checkable
class TellsStages(Protocol):
    """A callback that knows stages of a run."""

    def stage_tables(self) -> Mapping[str, str]:
        """A Markdown table of the stages so far, for each quantity that has any."""
        ...


@runtime_checkable
class Pacer(Protocol):
    """A callback that makes monitors read more often, or leaves readings out."""

    def pace(self, trainer: pl.Trainer, name: str, *, step: int, due: bool) -> bool:
        """Whether a monitor reads now: the same answer on every process.

        Args:
            trainer: The Trainer.
            name: The monitor's.
            step: Optimizer steps taken.
            due: Whether its schedule, or a pacer before this one, asks for a reading.
        """
        ...


def pace(trainer: pl.Trainer, name: str, *, step: int, due: bool) -> bool:
    """Whether a monitor reads now: what is due, unless a callback of the Trainer that paces says otherwise."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pacer):
            due = callback.pace(trainer, name, step=step, due=due)
    return due


def tell(trainer: pl.Trainer, reading: Reading, *, complain: Callable[[str], None] | None) -> None:
    """Let every callback of the Trainer that listens hear of a reading; an error of theirs leaves training alone.

    The monitor that made it hears first: what it derives from it (a speed, say) others may ask for.

    Args:
        trainer: With the callbacks.
        reading: What was read.
        complain: Tells the user of their errors; None raises them.
    """
    listeners = [c for c in trainer.callbacks if isinstance(c, Listener)]  # type: ignore[attr-defined]
    for callback in sorted(listeners, key=lambda c: getattr(c, "name", None) != reading.name):
        try:
            callback.hear(trainer, reading)
        except Exception as error:  # whatever a listener does wrong, training must go on
            if complain is None:
                raise
            complain(
                f"{type(callback).__name__} failed at the reading of {reading.name!r} at step {reading.step}: "
                f"{type(error).__name__}: {error}"
            )
