"""Other callbacks of the Trainer that wait for a monitor's numbers: what they may ask for, and when they look."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterable
from typing import Literal

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint

from lightning_slt.boundary import warn_user

Hook = Literal["batch", "validation", "epoch"]
"""Where callbacks look: at the end of a training batch, after validation, at the end of a training epoch."""


class Watchers:
    """Callbacks that wait for one monitor's tags.

    Args:
        trainer: Whose callbacks.
        name: The monitor's.
        tags: Of that monitor.
    """

    def __init__(self, trainer: pl.Trainer, name: str, tags: Iterable[str]) -> None:
        """Find them."""
        self.trainer, self.name, known = trainer, name, set(tags)
        self.callbacks = [c for c in _callbacks(trainer) if getattr(c, "monitor", None) in known]
        self.by_clock = any(getattr(c, "_train_time_interval", None) is not None for c in self.callbacks)
        self._seen: dict[int, int] = {}
        self._told: set[int] = set()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.callbacks)

    def score_now(self, hook: Hook) -> bool:
        """Whether one of them is about to save the present weights with a score."""
        return any(saves_now(c, self.trainer, hook) for c in self.callbacks)

    def notice(self, hook: Hook, *, readings: int, fresh: bool) -> None:
        """Say once of each that it is about to take an old value for a new one.

        Args:
            hook: Where they look.
            readings: How many there were so far.
            fresh: Whether the last one is of the present weights.
        """
        for index, callback in enumerate(self.callbacks):
            kind = f"{type(callback).__name__}(monitor={callback.monitor!r})"  # type: ignore[attr-defined]
            if saves_now(callback, self.trainer, hook) and not fresh:
                self._tell(
                    index,
                    f"{kind} saves weights with the value of an earlier reading; write at_checkpoints=True for a "
                    "reading of the weights of each checkpoint (one that max_overhead cannot pay is left out)",
                )
            if stops_now(callback, hook):
                if self._seen.get(index) == readings:
                    self._tell(
                        index,
                        f"{kind} looks again before there is a new reading, and counts that towards its patience; "
                        "write every_n_epochs= at the rhythm of its looks and no max_overhead, or a larger patience",
                    )
                self._seen[index] = readings

    def _tell(self, index: int, message: str) -> None:
        if index not in self._told:
            self._told.add(index)
            if self.trainer.is_global_zero:
                warn_user(f"{self.name}: {message}")


def check_watched(trainer: pl.Trainer, name: str, tags: Iterable[str]) -> None:
    """Refuse a callback that waits for a tag below a monitor's name which no monitor logs.

    Args:
        trainer: With all callbacks.
        name: The monitor's.
        tags: Of all monitors.

    Raises:
        MisconfigurationException: With the tags that come nearest.
    """
    known = sorted(tags)
    for callback in _callbacks(trainer):
        wanted = getattr(callback, "monitor", None)
        if isinstance(wanted, str) and wanted.startswith(f"{name}/") and wanted not in known:
            near = difflib.get_close_matches(wanted, known, n=4, cutoff=0.0)
            raise MisconfigurationException(
                f"{type(callback).__name__}(monitor={wanted!r}) waits for a tag that is never logged; "
                f"the nearest that are: {', '.join(near)}"
            )


def saves_now(callback: Callback, trainer: pl.Trainer, hook: Hook) -> bool:
    """Whether a ModelCheckpoint scores the present weights in this hook, which has not reached it yet.

    Lightning moves it behind all other callbacks, and shows its intervals in no public place.
    """
    if not isinstance(callback, ModelCheckpoint) or callback._should_skip_saving_checkpoint(trainer):
        return False
    if hook == "batch":
        every, interval = callback._every_n_train_steps, callback._train_time_interval
        if every >= 1 and trainer.global_step % every == 0:
            return True
        last = callback._last_time_checked
        return interval is not None and last is not None and time.monotonic() - last >= interval.total_seconds()
    every = callback._every_n_epochs
    at_epoch_end = callback._should_save_on_train_epoch_end(trainer)
    return at_epoch_end == (hook == "epoch") and every >= 1 and (trainer.current_epoch + 1) % every == 0


def stops_now(callback: Callback, hook: Hook) -> bool:
    """Whether an EarlyStopping counts the present value in this hook."""
    return isinstance(callback, EarlyStopping) and hook == (
        "epoch" if callback._check_on_train_epoch_end else "validation"
    )


def _callbacks(trainer: pl.Trainer) -> list[Callback]:
    found: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return found
