"""From cells to the figures of each sampler at each step size."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.deep_linear.contestants import CONTESTANTS
from benchmarks.deep_linear.metrics import Spread, absolute, order_preservation, relative_errors, spread
from benchmarks.deep_linear.networks import Plan

Key = tuple[int, int]

RIGHT = 0.15
"""Largest |relative error| at which an estimate is called right."""

VERDICTS = ("right", "too low", "too high", "no number")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A sampler at one step size, over all networks.

    Attributes:
        sampler: Name of the contestant.
        step_size: Its step size.
        estimates: λ̂ of every network, None where no chain finished.
        truths: λ of every network.
        errors: Relative errors, None where missing.
        cells: As stored.
    """

    sampler: str
    step_size: float
    truths: tuple[float, ...]
    cells: tuple[Mapping[str, Any], ...]

    @property
    def estimates(self) -> list[float | None]:
        """λ̂ of every network, None where no chain finished."""
        return [cell["estimate"] for cell in self.cells]

    @property
    def errors(self) -> list[float | None]:
        """Relative errors, None where missing."""
        return relative_errors(self.estimates, self.truths)

    @property
    def error(self) -> Spread:
        """Quartiles of |relative error|, missing ones infinite."""
        return spread(absolute(self.errors))

    @property
    def order(self) -> float:
        """Share of pairs of networks in the right order."""
        return order_preservation(self.estimates, self.truths)

    @property
    def seconds(self) -> float:
        """Median time of a cell."""
        return statistics.median(cell["seconds"] for cell in self.cells)

    @property
    def success(self) -> bool:
        """Whether error and order reach what is asked of this sampler."""
        largest, least = CONTESTANTS[self.sampler].success
        return self.error.median <= largest and self.order >= least

    def states(self) -> Counter[str]:
        """How many cells are ok, warned of, failed, or without a number."""
        return Counter(state(cell) for cell in self.cells)

    def of_seed(self, seed: int) -> Row:
        """The same for one set of networks."""
        kept = [(t, c) for t, c in zip(self.truths, self.cells, strict=True) if c["seed"] == seed]
        truths, cells = zip(*kept, strict=True)
        return Row(sampler=self.sampler, step_size=self.step_size, truths=truths, cells=cells)


def state(cell: Mapping[str, Any]) -> str:
    """What health says of a cell, in one word."""
    if cell["estimate"] is None:
        return "no number"
    return "failed" if not cell["ok"] else "warned" if cell["warnings"] else "ok"


def verdict(error: float | None) -> str:
    """What the truth says of it."""
    if error is None:
        return "no number"
    return "right" if abs(error) <= RIGHT else "too low" if error < 0 else "too high"


def make_rows(cells: Sequence[Mapping[str, Any]], plans: Mapping[Key, Plan]) -> dict[str, list[Row]]:
    """Rows of each sampler, ascending in the step size."""
    grouped: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for cell in cells:
        grouped.setdefault((cell["sampler"], cell["step_size"]), []).append(cell)
    rows: dict[str, list[Row]] = {name: [] for name in CONTESTANTS}
    for (sampler, step_size), members in sorted(grouped.items()):
        members.sort(key=lambda c: (c["seed"], c["index"]))
        truths = tuple(plans[c["seed"], c["index"]].truth for c in members)
        rows[sampler].append(Row(sampler=sampler, step_size=step_size, truths=truths, cells=tuple(members)))
    return {name: found for name, found in rows.items() if found}


def best(rows: Sequence[Row]) -> Row:
    """The step size with the least median |relative error|; the better order decides between equals."""
    return min(rows, key=lambda row: (row.error.median, -row.order))
