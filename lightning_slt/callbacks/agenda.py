"""Which weights are read next in one fit: those that are due, that wait, or that another callback scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import lightning.pytorch as pl

from lightning_slt.callbacks.listening import pace
from lightning_slt.callbacks.live import LiveReadings
from lightning_slt.callbacks.schedule import Schedule, StepAxis
from lightning_slt.callbacks.watchers import Hook, Watchers
from lightning_slt.reading import Anchor


class Asks(Protocol):
    """Whether a reading is due; see :meth:`lightning_slt.callbacks.monitor.SLTMonitor.should_read`."""

    def __call__(self, trainer: pl.Trainer, *, step: int | None = None, epoch: int | None = None) -> bool:
        """At the end of a batch or an epoch."""
        ...


class Agenda:
    """Decides at each hook of one fit what is read, and has it read.

    Args:
        trainer: The Trainer.
        live: Makes the readings.
        watchers: Callbacks that wait for their numbers.
        schedule: The user's, or the default one.
        asks: The monitor's ``should_read``, which the user may have overridden.
        alike: Whether that gives the same answer in every process.
        at_checkpoints: Whether the weights of every checkpoint are read.
        at_end: Whether the last weights are read, whatever the budget.
        clock: Gives seconds.
        last_step: Where the earlier part of a resumed run read last, else -1.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        live: LiveReadings,
        watchers: Watchers,
        *,
        schedule: Schedule,
        asks: Asks,
        alike: bool,
        at_checkpoints: bool,
        at_end: bool,
        clock: Callable[[], float],
        last_step: int,
    ) -> None:
        """Nothing waits yet."""
        self.trainer, self.live, self.watchers = trainer, live, watchers
        self.schedule, self.asks, self.alike = schedule, asks, alike and schedule.train_time_interval is None
        self.at_checkpoints, self.at_end, self.clock = at_checkpoints, at_end, clock
        self.last_step, self.last_time, self.looked = last_step, clock(), trainer.global_step
        self._axis = StepAxis()
        self._axis.batch_begins(trainer)
        self._first: Anchor | None = None
        self._saved: Anchor | None = None
        self._resuming = False

    @property
    def step(self) -> int:
        """Where the present weights belong on the x axis."""
        return self._axis.now(self.trainer)

    def due(self, *, step: int | None, epoch: int | None) -> bool:
        """Whether the schedule asks for a reading."""
        if epoch is not None:
            return self.schedule.due_at_epoch(epoch)
        assert step is not None
        return self.schedule.due_at_step(self.looked, step, since=self.clock() - self.last_time)

    def begin(self, first: Anchor) -> None:
        """Read the first weights, now or when the budget affords it; where a run resumes, see :meth:`batch_begins`."""
        self._resuming = self.trainer.global_step > 0
        if not self._resuming:
            self._first = first
            self._read_waiting(must_work=True)

    def batch_begins(self) -> None:
        """Where a run resumes, Lightning sets its count of batches right only after ``on_train_start``."""
        self._axis.batch_begins(self.trainer)
        resuming, self._resuming = self._resuming, False
        if resuming and self.step != self.last_step:
            self._first = self.live.set_aside(self.step)
        self._read_waiting()

    def batch_ends(self) -> None:
        """Read where a step is due."""
        self._read_waiting()
        step = self.trainer.global_step
        due = step != self.looked and self._due(step=step)
        self.looked = step
        if due:
            self.read_now()
        self.others_look("batch")

    def epoch_ends(self) -> None:
        """Read where an epoch is due."""
        if self._due(epoch=self.trainer.current_epoch):
            self.read_now()
        self.others_look("epoch")

    def read_now(self) -> None:
        """Read the present weights if the budget affords it."""
        step = self.step
        if step != self.last_step and self._first is None and self.live.affords():
            self._read(self.live.set_aside(step))

    def visit(self) -> None:
        """Read saved weights, unless a signal has broken that off just now: the analysis's next run makes it then."""
        broken_off, self._first = self._first, None
        if broken_off is None:
            self.read_now()

    def others_look(self, hook: Hook) -> None:
        """Read weights that another callback is about to save with one of our numbers as their score."""
        if not self.watchers or self.trainer.sanity_checking:
            return
        if self.at_checkpoints:
            scored = self.watchers.score_now(hook)
            if self.live.peers.from_first(scored) if self.watchers.by_clock else scored:
                self.read_now()
        self.watchers.notice(hook, readings=self.live.index, fresh=self.step == self.last_step)

    def saves(self) -> None:
        """Set the weights of a checkpoint aside; sampling here would run inside tuners and exception handlers."""
        if not self.at_checkpoints or self.trainer.sanity_checking:
            return
        step = self.step
        if step != self.last_step and (self._first is None or step != self._first.step):
            self._saved = self.live.set_aside(step)

    def finish(self) -> None:
        """Read what waits, and the last weights where asked for."""
        self._read_waiting()
        if self.at_end and self.step != self.last_step:
            self._read(self.live.set_aside(self.step), on_credit=True)
        self.live.finish()

    def _read_waiting(self, *, must_work: bool = False) -> None:
        """The first weights wait until the budget affords them, unless a callback waits for a number.

        Those of a checkpoint do not wait.
        """
        on_credit = bool(self.watchers) and self.live.index == 0
        if self._first is not None and (on_credit or self.live.affords()):
            first, self._first = self._first, None
            if not self._read(first, must_work=must_work, on_credit=on_credit):
                self._first = first
        waiting, self._saved = self._saved, None
        if waiting is None or waiting.step == self.last_step or self._first is not None:
            return
        if self.live.affords():
            self._read(waiting)

    def _read(self, anchor: Anchor, *, must_work: bool = False, on_credit: bool = False) -> bool:
        before, made = (self.last_step, self.last_time), False
        with self.live.interruptions.held():
            self.last_step, self.last_time = anchor.step, self.clock()
            try:
                made = self.live.read(
                    anchor, must_work=must_work, on_credit=on_credit, may_wait=not (must_work or self.watchers)
                )
            finally:
                if not made:  # before a handler saves the state
                    self.last_step, self.last_time = before
        return made

    def _due(self, *, step: int | None = None, epoch: int | None = None) -> bool:
        """Whether a reading is due: what the monitor asks for, unless another callback sets the pace."""
        asked = self._agreed(self.asks(self.trainer, step=step, epoch=epoch))
        return pace(self.trainer, self.live.name, step=self.trainer.global_step, due=asked)

    def _agreed(self, due: bool) -> bool:
        """Rank 0's decision, on every rank, where ranks could come to different ones."""
        return due if self.alike else self.live.peers.from_first(due)
