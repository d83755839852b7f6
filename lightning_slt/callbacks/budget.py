r"""What readings may cost: their time as a share of training time, and what the next one will take.

A reading takes ``measuring + setup + per_step · steps`` seconds. Its number of steps is known only once the curvature
at its anchor is measured, and may be several times that of the last reading: so a reading is started where one of as
many steps as last time can be paid for, and given up after the measurement where its own steps cannot.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning_slt.types import is_amount


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds that the next reading takes, as far as they are known.

    Attributes:
        measuring: Of the curvature at the anchor; 0 where the user gave the sampler.
        setup: Of the chains before their first step.
        per_step: Of one step of all chains of all components.
        steps: Planned at the anchor that was looked at last.
    """

    measuring: float
    setup: float
    per_step: float
    steps: int

    @property
    def sampling(self) -> float:
        """Seconds once the curvature is known."""
        return self.setup + self.per_step * self.steps

    @property
    def whole(self) -> float:
        """Seconds of the whole reading."""
        return self.measuring + self.sampling

    def after(self, seconds: float) -> Cost:
        """The same with a step as dear as in a reading that took so long in all."""
        return replace(self, per_step=max(0.0, seconds - self.measuring - self.setup) / self.steps)


class Onward:
    """A clock that never goes back: by how much another one was set back is left out.

    Args:
        clock: Gives seconds.

    >>> seconds = iter([5.0, 7.0, 3.0, 4.0])
    >>> onward = Onward(lambda: next(seconds))
    >>> onward(), onward(), onward()
    (7.0, 7.0, 8.0)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """From now on."""
        self._clock, self._last, self._lost = clock, clock(), 0.0

    def __call__(self) -> float:
        """Seconds."""
        now = self._clock()
        self._lost += max(0.0, self._last - now)
        self._last = now
        return now + self._lost


class Budget:
    """Keeps reading time over training time at or below a share, by skipping readings that it cannot yet pay for.

    Args:
        share: Largest overhead, such as 0.1; None for no limit.
        clock: Gives seconds; injected by tests.

    Raises:
        ValueError: If the share is not positive, or above 1: a percentage was meant, or no limit.
    """

    def __init__(self, share: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        """Start with nothing spent."""
        if share is not None and not (is_amount(share) and share > 0):
            raise ValueError(f"max_overhead must be a positive share such as 0.1, got {share!r}")
        if share is not None and share > 1:
            raise ValueError(
                f"max_overhead must be a share of training time, at most 1, got {share:g}; write max_overhead=0.1 for "
                "10 %, or leave it out where readings may take longer than training"
            )
        self.share, self.clock = share, clock
        self.spent = 0.0
        self.cost: Cost | None = None
        self._elapsed_before = 0.0
        self._began = clock()
        self._charging = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        cost = None if self.cost is None else asdict(self.cost)
        return {"spent": self.spent, "elapsed": self.elapsed, "cost": cost}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from an earlier part of the run."""
        self.spent, self._elapsed_before = state["spent"], state["elapsed"]
        self.cost = None if state["cost"] is None else Cost(**state["cost"])

    @property
    def elapsed(self) -> float:
        """Seconds of fitting so far, earlier parts of a resumed run included."""
        return self._elapsed_before + self.clock() - self._began

    @property
    def training(self) -> float:
        """Those that were no reading time."""
        return self.elapsed - self.spent

    @property
    def overhead(self) -> float:
        """Reading time over training time so far."""
        return self.spent / self.training if self.training > 0 else float("inf")

    def affords(self) -> bool:
        """Whether one more reading, as long as the last one planned, would leave the overhead within the share."""
        return self.cost is None or self.can_pay(self.cost.whole)

    def plan(self, *, measuring: float, steps: int) -> bool:
        """Take in what a measurement of the curvature took and found.

        Returns:
            Whether the reading can be made: its steps are no more than was counted on, or can be paid for too.
        """
        if self.cost is None:
            return True
        expected, self.cost = self.cost.steps, replace(self.cost, measuring=measuring, steps=steps)
        return steps <= expected or self.can_pay(self.cost.sampling)

    def learn(self, seconds: float) -> None:
        """Take in what the reading as planned took in the end."""
        self.cost = None if self.cost is None else self.cost.after(seconds)

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Book the time that passes inside as reading time, once where these nest, also after an exception."""
        outermost, self._charging = not self._charging, True
        began = self.clock()
        try:
            yield
        finally:
            if outermost:
                self._charging = False
                self.spent += self.clock() - began

    def can_pay(self, seconds: float) -> bool:
        """Whether so much more reading time would leave the overhead within the share."""
        return self.share is None or self.spent + seconds <= self.share * self.training
