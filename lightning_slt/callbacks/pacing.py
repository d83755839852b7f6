"""Readings where something moves: scheduled ones that are left out pay for extra ones between others."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(kw_only=True)
class Pace:
    """The pace of one monitor.

    While nothing moves every second scheduled reading is left out, which is one credit. While something moves there is
    one extra reading between two scheduled ones, halfway in log t, for one credit each. So there are never more
    readings than were scheduled, and never a gap of more than two intervals.

    Attributes:
        credit: Readings left out and not yet made up for.
        moving: Whether something moved at the last reading.
        last: Optimizer steps of the last reading, and of the one before.
        before: The latter.
        left_out: Optimizer steps of the last scheduled reading that was left out, if it was the last one due.
        extra: Optimizer steps of the extra reading asked for since the last scheduled one.
    """

    credit: int = 0
    moving: bool = True
    last: int = 0
    before: int = 0
    left_out: int | None = None
    extra: int | None = None

    def decide(self, step: int, *, due: bool) -> bool:
        """Whether to read now."""
        if due and step == self.left_out:
            return False
        if due and not self.moving and self.left_out is None:
            self.left_out, self.credit = step, self.credit + 1
            return False
        if due:
            self.left_out = self.extra = None
            return True
        waited = step >= self.last * math.sqrt(self.last / self.before) if self.before else step >= 1.5 * self.last
        if self.moving and self.credit and waited and self.extra in (None, step) and self.last:
            self.extra = step
            return True
        return False

    def heard(self, step: int, *, moving: bool) -> None:
        """Take in that a reading was made."""
        if step == self.extra:
            self.credit -= 1
        self.before, self.last, self.moving = self.last, step, moving

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
