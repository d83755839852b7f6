r"""Stages while a run goes on: readings come one by one, and what was announced stays announced.

A boundary is looked for in all readings so far at every reading, and announced the first time that the readings after
it support it (:class:`lightning_slt.analysis.stages.Detector`); its step is frozen then. A quantity that moves while
the loss stands still is an alert, which needs no boundary: it may be the first sign of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_slt.analysis.stages import Boundary, Detector, Series
from lightning_slt.types import student_t_cdf

MANY = 500
"""Readings from which on boundaries are looked for at every second, third, … reading: a look costs as much as there are
readings, and one more of n moves log t by 1/n at most."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One reading of one quantity.

    Attributes:
        index: Of the reading.
        step: Optimizer steps.
        value: The quantity; NaN where the reading failed.
        stderr: Its standard error; NaN where there is none.
        loss: At the same weights; NaN where it is not known.
        per_chain: The quantity by chain; empty where unknown.
        reliable: Whether the reading passed its health checks.
        revises: Index of the reading that it replaces, or None.
    """

    index: int
    step: int
    value: float
    stderr: float = math.nan
    loss: float = math.nan
    per_chain: tuple[float, ...] = ()
    reliable: bool = True
    revises: int | None = None


class Announcement(NamedTuple):
    """A boundary, and when it was known.

    Attributes:
        boundary: As it was found then; frozen.
        step: Of the reading that settled it.
        delay: Readings from the boundary to that one, which counts.
    """

    boundary: Boundary
    step: int
    delay: int


class Alert(NamedTuple):
    """A quantity moved beyond its error while the loss did not.

    Attributes:
        start: First step of the window.
        step: Last step of it.
        change: Of the quantity over the window, by the fitted line.
        score: t of its slope.
        loss_change: Of the loss, by the fitted line.
        loss_score: t of its slope.
    """

    start: int
    step: int
    change: float
    score: float
    loss_change: float
    loss_score: float


@dataclass(frozen=True, kw_only=True)
class Alarm:
    r"""Tells when a quantity moves and the loss does not, over a window of readings.

    Both are regressed on log t over the last ``window`` readings; with independent errors of equal size the slopes over
    their standard errors follow Student's t with window − 2 degrees of freedom where nothing moves, whatever that size
    is. At look k the quantity has moved where its two-sided p-value lies below ``level/(k(k+1))``: these sum to
    ``level``, so that this bounds the probability of any false alarm in a run of any length (Bonferroni). The loss
    stands still where its own p-value is above 0.05, or its change within ``loss_tolerance``.

    Args:
        window: Readings.
        level: Probability of a false alarm in a whole run.
        loss_tolerance: Change of the loss over the window, in nats, that is none.

    Raises:
        ValueError: For settings that cannot be.
    """

    window: int = 6
    level: float = 0.05
    loss_tolerance: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
        if self.window < 4 or not 0 < self.level < 1 or self.loss_tolerance < 0:
            raise ValueError(f"an Alarm needs window >= 4, 0 < level < 1 and loss_tolerance >= 0, got {self}")

    def look(self, series: Series, *, looks: int) -> Alert | None:
        """Look at the last readings.

        Args:
            series: All of them.
            looks: How many looks there were, this one included.
        """
        kept = series.usable & series.loss.isfinite()
        steps, values, losses = (column[kept][-self.window :] for column in (series.steps, series.values, series.loss))
        if len(steps) < self.window:
            return None
        x = steps.log()
        (change, score), (loss_change, loss_score) = _trend(x, values), _trend(x, losses)
        moved = self._p(score) < self.level / (looks * (looks + 1))
        still = self._p(loss_score) > 0.05 or abs(loss_change) <= self.loss_tolerance
        if not (moved and still):
            return None
        return Alert(int(steps[0]), int(steps[-1]), change, score, loss_change, loss_score)

    def _p(self, score: float) -> float:
        return 2 * (1 - student_t_cdf(abs(score), degrees=self.window - 2))


def _trend(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Change along the least-squares line, and the slope over its standard error."""
    u, centred = x - x.mean(), y - y.mean()
    slope = (u @ centred) / (u @ u)
    rest = centred - slope * u
    error = float((rest.square().sum() / (len(x) - 2) / (u @ u)).sqrt())
    score = float(slope) / error if error > 0 else math.copysign(math.inf, float(slope)) if slope else 0.0
    return float(slope * (x[-1] - x[0])), score


@dataclass(kw_only=True)
class Follower:
    """Follows one quantity reading by reading.

    Args:
        detector: Of boundaries.
        alarm: Of alerts; None for none.
        skip_unreliable: Leave readings out that failed a health check.
        confirm: Readings in a row at which a boundary must be found before it is announced: the last readings of a
            curve have the most leverage on its slope. Of more than :data:`MANY` readings, those that were looked at.

    Attributes:
        rows: Readings that stand, by index.
        announced: Boundaries so far, in the order of their announcement; never taken back.
        alerts: Alerts so far; the next one comes a whole window later at the earliest.
        looks: How often alerts were looked for.
        pending: Steps of boundaries that are not announced yet, with the readings in a row at which they were found.
    """

    detector: Detector = field(default_factory=Detector)
    alarm: Alarm | None = None
    skip_unreliable: bool = False
    confirm: int = 2
    rows: dict[int, Row] = field(default_factory=dict)
    announced: list[Announcement] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    looks: int = 0
    pending: list[tuple[float, int]] = field(default_factory=list)

    def take(self, row: Row) -> tuple[list[Announcement], list[Alert]]:
        """Take a reading in; what it makes known.

        A reading that replaces another one is taken in without a look: between two of them the curve is a mixture of
        two settings. The next new one looks at all.
        """
        self.rows.pop(row.index if row.revises is None else row.revises, None)
        for index in [k for k, other in self.rows.items() if other.step == row.step]:
            del self.rows[index]
        self.rows[row.index] = row
        if row.revises is not None:
            return [], []
        if not self._counts(row):
            return [], []
        news = self._look(row.step) if len(self.rows) % (1 + len(self.rows) // MANY) == 0 else []
        alerts = [] if self.alarm is None else self._alerts(self.alarm)
        self.alerts += alerts
        return news, alerts

    @property
    def series(self) -> Series:
        """The readings that stand, in the order of steps."""
        return self._series(sorted(self.rows.values(), key=lambda row: row.step))

    def _series(self, rows: Sequence[Row]) -> Series:
        values = [row.value if self._counts(row) else math.nan for row in rows]
        chains = {len(row.per_chain) for row in rows if self._counts(row)}
        alike = chains.pop() if len(chains) == 1 else 0
        none = (math.nan,) * alike
        per_chain = torch.tensor(
            [row.per_chain if len(row.per_chain) == alike else none for row in rows], dtype=torch.float64
        ).reshape(len(rows), alike)
        return Series.of([row.step for row in rows], values, [row.stderr for row in rows], [row.loss for row in rows],
                         per_chain)  # fmt: skip

    def unannounced(self, series: Series) -> list[Boundary]:
        """Boundaries of a series that are none of those announced: they lie between the same flanks, or too near."""
        known = [announcement.boundary.step for announcement in self.announced]

        def new(found: Boundary) -> bool:
            near = (abs(math.log(found.step / step)) < self.detector.bandwidth for step in known)
            return not any(found.before <= step <= found.after for step in known) and not any(near)

        return [found for found in self.detector.find(series) if new(found)]

    def boundaries(self, *, final: bool = False) -> list[Boundary]:
        """Those announced, and with ``final`` what only all readings together show; in the order of steps."""
        late = self.unannounced(self.series) if final else []
        return sorted([*(a.boundary for a in self.announced), *late], key=lambda boundary: boundary.step)

    def moving(self, *, z: float = 2.0) -> bool:
        """Whether the curve has a slope where it stands now; True where there are too few readings to say."""
        series = self.series
        if int(series.usable.sum()) < 4:
            return True
        fit = series.fit(series.steps[series.usable].log()[-1:], bandwidth=self.detector.bandwidth)
        return bool(fit.slope.abs() >= z * fit.slope_stderr)

    def _look(self, step: int) -> list[Announcement]:
        """Look for boundaries, and announce those that are confirmed."""
        series = self.series
        news = [
            Announcement(boundary, step, int((series.steps[series.usable] > boundary.step).sum()))
            for boundary in self._confirmed(self.unannounced(series))
        ]
        self.announced += news
        return news

    def _confirmed(self, found: list[Boundary]) -> list[Boundary]:
        """Those that were found often enough; the others wait."""

        def times(boundary: Boundary) -> int:
            width = self.detector.bandwidth
            return 1 + max((n for step, n in self.pending if abs(math.log(boundary.step / step)) < width), default=0)

        counted = [(boundary, times(boundary)) for boundary in found]
        self.pending = [(boundary.step, n) for boundary, n in counted if n < self.confirm]
        return [boundary for boundary, n in counted if n >= self.confirm]

    def _counts(self, row: Row) -> bool:
        return row.reliable or not self.skip_unreliable

    def _alerts(self, alarm: Alarm) -> list[Alert]:
        """Look at the last readings that have what it takes; a series of them alone, however many there are."""
        usable = (row for row in self.rows.values() if row.step > 0 and self._counts(row))
        known = [row for row in usable if math.isfinite(row.value) and math.isfinite(row.loss)]
        recent = sorted(nlargest(alarm.window, known, key=lambda row: row.step), key=lambda row: row.step)
        if len(recent) < alarm.window or (self.alerts and recent[0].step < self.alerts[-1].step):
            return []
        self.looks += 1
        found = alarm.look(self._series(recent), looks=self.looks)
        return [] if found is None else [found]

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": [asdict(row) for row in self.rows.values()],
            "announced": [(list(a.boundary), a.step, a.delay) for a in self.announced],
            "alerts": [list(alert) for alert in self.alerts],
            "looks": self.looks,
            "pending": [list(found) for found in self.pending],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        rows: Iterable[Row] = (Row(**{**row, "per_chain": tuple(row["per_chain"])}) for row in state["rows"])
        self.rows = {row.index: row for row in rows}
        self.announced = [Announcement(Boundary(*found), step, delay) for found, step, delay in state["announced"]]
        self.alerts, self.looks = [Alert(*alert) for alert in state["alerts"]], state["looks"]
        self.pending = [(step, times) for step, times in state["pending"]]
