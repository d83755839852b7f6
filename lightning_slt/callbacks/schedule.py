"""When readings are due: Lightning's own intervals, explicit and log-spaced steps; and the x axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import lightning.pytorch as pl

from lightning_slt.boundary import make_plain


@dataclass(frozen=True)
class LogSteps:
    """Steps evenly spaced in log scale, rounded, without repeats; to pass as ``at_steps``.

    Args:
        first: First step, at least 1.
        last: Last step.
        count: How many before repeats are dropped.

    Raises:
        ValueError: If the range is empty, the count below 2, or one of them no whole number.

    >>> list(LogSteps(1, 1000, 4))
    [1, 10, 100, 1000]
    """

    first: int
    last: int
    count: int

    def __post_init__(self) -> None:
        """Refuse an empty range."""
        make_plain(self)
        for name in ("first", "last", "count"):
            if not isinstance(getattr(self, name), int):
                raise ValueError(f"LogSteps.{name} must be a whole number, got {getattr(self, name)!r}")
        if self.first < 1 or self.last <= self.first or self.count < 2:
            raise ValueError(f"LogSteps needs 1 <= first < last and count >= 2, got {self}")

    def __iter__(self) -> Iterator[int]:
        """The steps in order."""
        ratio = self.last / self.first
        return iter(sorted({round(self.first * ratio ** (i / (self.count - 1))) for i in range(self.count)}))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The user's intervals; several together are a union.

    Raises:
        ValueError: If an interval is not positive.
    """

    every_n_train_steps: int | None = None
    every_n_epochs: int | None = None
    train_time_interval: timedelta | None = None
    at_steps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse intervals that can never come."""
        make_plain(self)
        for name in ("every_n_train_steps", "every_n_epochs"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, or None for never, got {value!r}")
        pause = self.train_time_interval
        if pause is not None and not (isinstance(pause, timedelta) and pause > timedelta(0)):
            raise ValueError(
                f"train_time_interval must be positive, a timedelta such as timedelta(minutes=5), got {pause!r}"
            )

    @property
    def empty(self) -> bool:
        """Whether no interval was given."""
        return not (self.every_n_train_steps or self.every_n_epochs or self.train_time_interval or self.at_steps)

    def due_at_step(self, last: int, step: int, *, since: float) -> bool:
        """Whether a reading is due at a step, given the step of the last look and the seconds since the last reading.

        "Crossed a multiple" rather than "is a multiple": several optimizers advance the count by more than one, and
        gradient accumulation shows the same count several times.
        """
        every = self.every_n_train_steps
        if every is not None and step // every > last // every:
            return True
        if any(last < s <= step for s in self.at_steps):
            return True
        return self.train_time_interval is not None and since >= self.train_time_interval.total_seconds()

    def due_at_epoch(self, epoch: int) -> bool:
        """Whether a reading is due at the end of an epoch, counted from 0."""
        return self.every_n_epochs is not None and (epoch + 1) % self.every_n_epochs == 0


class StepAxis:
    """Where the present weights belong on the x axis of Lightning's loggers.

    Lightning counts batches that stepped the optimizer, and counts a batch after its hooks and after the validation
    that follows it. Between the optimizer's step and the count the weights already belong to the next mark.
    """

    def __init__(self) -> None:
        """Before any batch."""
        self._began = (0, 0)

    def batch_begins(self, trainer: pl.Trainer) -> None:
        """Remember the counts before a batch."""
        self._began = self._counts(trainer)

    def now(self, trainer: pl.Trainer) -> int:
        """The mark of the present weights: the loss that training logs there next is the loss of these weights."""
        steps, counted = self._counts(trainer)
        moved = steps > self._began[0] and counted == self._began[1]
        return counted + moved

    def _counts(self, trainer: pl.Trainer) -> tuple[int, int]:
        return trainer.global_step, int(trainer.fit_loop.epoch_loop._batches_that_stepped)
