r"""Developmental stages: where a curve over training comes to rest, and what it did in between.

A boundary between two stages is a critical point of the curve against log t, a plateau (arXiv:2402.02364, 2410.02984):
a zero or a local minimum of ``|dλ̂/d log t|`` that stands out from the slopes on both sides. Here "stands out" is a
statement about standard errors: slopes come from local regression, are linear in the readings, and so is every
contrast of two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_slt.analysis.smoothing import LocalFit, Slopes, errors_of, local_fit

ENOUGH = 20
"""Readings at distinct steps above zero below which stages are told with a reservation."""

Kind = Literal["A", "B"]
"""A: the quantity rises over the stage; B: it falls."""

Mark = Literal["middle", "end"]
"""Where in its plateau a boundary has its step: in the middle, or where the next stage begins."""


@dataclass(frozen=True, kw_only=True)
class Series:
    r"""A quantity over training, with errors, and the loss beside it.

    Readings without a finite value, and those of step 0, which lies at −∞ of log t, are left out of every fit; a
    standard error that is missing counts as zero, and the scatter of the curve stands in for it.

    Attributes:
        steps: Optimizer steps ``[reading]``, increasing.
        values: The quantity ``[reading]``; NaN where there is none.
        stderr: Its standard errors ``[reading]``; NaN where there is none.
        loss: Loss at the same weights ``[reading]``; NaN where there is none.
        per_chain: The quantity chain by chain ``[reading, chain]``, where chains have the same noise at all readings:
            what they have in common cancels in differences. No columns where that is unknown.

    Raises:
        ValueError: If lengths differ, or steps do not increase from zero or more; see :meth:`of`.

    >>> Series.of([3, 1, 0], [5.0, 4.0, float("nan")]).steps
    tensor([0., 1., 3.], dtype=torch.float64)
    """

    steps: Tensor
    values: Tensor
    stderr: Tensor
    loss: Tensor
    per_chain: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))

    def __post_init__(self) -> None:
        """Refuse what is no series."""
        shapes = {name: tuple(getattr(self, name).shape) for name in ("steps", "values", "stderr", "loss")}
        if len(set(shapes.values())) > 1 or self.steps.ndim != 1:
            raise ValueError(f"a Series needs four vectors of one length, got shapes {shapes}")
        if not self.per_chain.numel():
            object.__setattr__(self, "per_chain", torch.empty(len(self.steps), 0, dtype=torch.float64))
        if self.per_chain.ndim != 2 or len(self.per_chain) != len(self.steps):
            raise ValueError(f"per_chain must be [reading, chain], got shape {tuple(self.per_chain.shape)}")
        if bool((self.steps < 0).any()) or bool((self.steps.diff() <= 0).any()):
            raise ValueError(
                f"steps must increase from zero or more, got {self.steps.tolist()}; Series.of() sorts them"
            )

    @staticmethod
    def of(steps: Any, values: Any, stderr: Any = None, loss: Any = None, per_chain: Any = None) -> Series:
        """The same from lists in any order; what is None is missing everywhere."""
        whole = torch.as_tensor(steps, dtype=torch.float64)
        order = whole.argsort()

        def column(given: Any) -> Tensor:
            if given is None:
                return torch.full_like(whole, math.nan)
            values = torch.as_tensor(given, dtype=torch.float64)
            if len(values) != len(whole):
                raise ValueError(f"{len(whole)} steps need as many values, errors and losses, got {len(values)}")
            return values[order]

        chains = torch.empty(0, 0) if per_chain is None else column(per_chain)
        return Series(
            steps=whole[order], values=column(values), stderr=column(stderr), loss=column(loss), per_chain=chains
        )

    @property
    def usable(self) -> Tensor:
        """Which readings a fit against log t can use ``[reading]``."""
        return self.values.isfinite() & (self.steps > 0)

    def fit(self, at: Tensor, *, bandwidth: float) -> LocalFit:
        """Local regression of the quantity against log t, at places in log t."""
        kept = self.usable
        x, y, stderr = self.steps[kept].log(), self.values[kept], self.stderr[kept]
        return local_fit(x, y, stderr, errors_of(x, y, stderr, self.per_chain[kept]), at=at, bandwidth=bandwidth)

    def fit_loss(self, at: Tensor, *, bandwidth: float) -> LocalFit | None:
        """The same of the loss, whose error is its scatter; None where there are fewer than three."""
        kept = self.loss.isfinite() & (self.steps > 0)
        if int(kept.sum()) < 3:
            return None
        x, y, none = self.steps[kept].log(), self.loss[kept], torch.full_like(self.loss[kept], math.nan)
        errors = errors_of(x, y, none, torch.empty(len(x), 0, dtype=torch.float64))
        return local_fit(x, y, none, errors, at=at, bandwidth=bandwidth)


class Boundary(NamedTuple):
    """Where one stage ends and the next begins.

    Attributes:
        step: Middle of the plateau in log t, or its end: see :class:`Detector`.
        earliest: Where the plateau begins: the slope has fallen to half of the steepest before it.
        latest: Where it ends: the slope has risen to half of the steepest after it.
        before: Step of the steepest place on the left that it stands out from.
        after: The same on the right.
        prominence: By how many standard errors the slope there falls short of the lower of the two.
    """

    step: float
    earliest: float
    latest: float
    before: float
    after: float
    prominence: float

    @property
    def middle(self) -> float:
        """Of the plateau, in log t."""
        return math.sqrt(self.earliest * self.latest)


@dataclass(frozen=True, kw_only=True)
class Detector:
    r"""Finds the boundaries of a series.

    With b(x) the slope at x = log t, a boundary is a local minimum m of \|b\| between two flanks l < m < r with
    ``(|b(f)| − |b(m)|) / se(|b(f)| − |b(m)|) ≥ z``, ``|b(f)| ≥ z se(b(f))`` and ``|b(m)| ≤ depth · |b(f)|`` for both
    f = l, r. Flanks and minima alternate: between two flanks lies one boundary however often b wiggles there.

    A kernel smooths a corner between a slope and none to half of that slope, whatever its width, but the steps beside a
    plateau into it. Where the plateau begins and ends is therefore read off a second fit with half the bandwidth.

    Args:
        bandwidth: Standard deviation of the kernel in log t; plateaus much shorter are smoothed away.
        z: Standard errors by which a plateau must stand out on both sides.
        depth: Largest slope of a plateau, as a share of the lower flank's.
        resolution: Places per bandwidth at which slopes are looked at.
        mark: The step of a boundary: "middle" of the plateau, or its "end", where the next stage begins.

    Raises:
        ValueError: For settings that cannot be.
    """

    bandwidth: float = 0.35
    z: float = 3.0
    depth: float = 0.5
    resolution: int = 8
    mark: Mark = "middle"

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
        if self.mark not in get_args(Mark):
            raise ValueError(f"mark must be 'middle' or 'end', got {self.mark!r}")
        if not self.bandwidth > 0 or not self.z > 0 or not 0 < self.depth <= 1 or self.resolution < 1:
            raise ValueError(f"a Detector needs bandwidth > 0, z > 0, 0 < depth <= 1 and resolution >= 1, got {self}")

    def places(self, series: Series) -> Tensor:
        """Where slopes are looked at, in log t: evenly over the readings."""
        x = series.steps[series.usable].log()
        count = 1 + math.ceil(float(x[-1] - x[0]) / self.bandwidth * self.resolution)
        return torch.linspace(float(x[0]), float(x[-1]), max(2, count), dtype=torch.float64)

    def find(self, series: Series) -> list[Boundary]:
        """Boundaries in order; none where there are fewer than five readings."""
        if int(series.usable.sum()) < 5:
            return []
        at = self.places(series)
        slopes, narrow = (Slopes(series.fit(at, bandwidth=h)) for h in (self.bandwidth, self.bandwidth / 2))
        return [self._boundary(at, slopes, narrow, *found) for found in self._zigzag(slopes)]

    def _zigzag(self, slopes: Slopes) -> list[tuple[int, int, int]]:
        """Alternating flanks and minima: each flank is the steepest place between the minima beside it."""
        found: list[tuple[int, int, int]] = []
        top, low, falling = 0, 0, False
        for j in range(len(slopes.size)):
            if not falling:
                top = j if slopes.size[j] > slopes.size[top] else top
                low, falling = j, self._apart(slopes, top, j)
            elif slopes.size[j] < slopes.size[low]:
                low = j
            elif self._apart(slopes, j, low):
                found.append((top, low, j))
                top, falling = j, False
            if not falling and found and slopes.size[j] >= slopes.size[found[-1][2]]:
                found[-1] = (*found[-1][:2], j)  # the flank goes on
        return found

    def _apart(self, slopes: Slopes, flank: int, minimum: int) -> bool:
        """Whether a place of small slope stands out from a steep one."""
        high, low = slopes.size[flank], slopes.size[minimum]
        steep = high >= self.z * slopes.stderr[flank]
        return steep and low <= self.depth * high and slopes.contrast(flank, minimum) >= self.z

    def _boundary(self, at: Tensor, slopes: Slopes, narrow: Slopes, left: int, low: int, right: int) -> Boundary:
        first, last = (_rim(narrow.size[flank : low + way : way]) for flank, way in ((left, 1), (right, -1)))
        place: list[float] = at.exp().tolist()
        earliest, latest = place[left + first], place[right - last]
        return Boundary(
            step=latest if self.mark == "end" else math.sqrt(earliest * latest),
            earliest=earliest,
            latest=latest,
            before=place[left],
            after=place[right],
            prominence=min(slopes.contrast(left, low), slopes.contrast(right, low)),
        )


def _rim(sizes: list[float]) -> int:
    """How far from a flank to a minimum the slope has fallen to half of its steepest, and stays there."""
    top = max(sizes)
    steep = [k for k, size in enumerate(sizes) if size > top / 2]
    return min(steep[-1] + 1, len(sizes) - 1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What happened between two boundaries.

    Attributes:
        name: ``A1``, ``B1``, ``A2``, …: its kind, counted.
        kind: "A" where the quantity rises, "B" where it falls.
        start: First step.
        end: Last step.
        change: Of the quantity.
        change_stderr: Its standard error.
        loss_change: Of the loss; NaN where there is none.
        loss_change_stderr: From the scatter of the loss.
        hidden: The quantity moves beyond its error while the loss does not.
    """

    name: str
    kind: Kind
    start: float
    end: float
    change: float
    change_stderr: float
    loss_change: float
    loss_change_stderr: float
    hidden: bool


def stages(
    series: Series,
    boundaries: Sequence[float],
    *,
    rests: Sequence[float] | None = None,
    bandwidth: float = 0.35,
    z: float = 3.0,
) -> list[Stage]:
    r"""What the quantity and the loss did between boundaries.

    Changes are differences of the local fits at both ends, ``Σ (lᵢ(end) − lᵢ(start)) yᵢ``, so that their errors are
    known: ``Σ (lᵢ(end) − lᵢ(start))² vᵢ``. A stage is hidden where ``|Δλ̂| ≥ z se`` and ``|Δloss| < z se``. Where a
    plateau ends the fit has begun to rise, by as much as 0.4 h times the slope that follows; changes between ``rests``,
    middles of plateaus, leave that out.

    Args:
        series: The readings.
        boundaries: Steps, in order: where stages start and end.
        rests: Steps at which changes are taken, one for each boundary; None for the boundaries themselves.
        bandwidth: Of the fit, in log t.
        z: Standard errors beyond which something moved.

    Returns:
        One stage more than boundaries; none where there are fewer than three readings.

    Raises:
        ValueError: If there is not one rest for each boundary.
    """
    rests = boundaries if rests is None else rests
    if len(rests) != len(boundaries):
        raise ValueError(f"stages needs one rest for each of {len(boundaries)} boundaries, got {len(rests)}")
    if int(series.usable.sum()) < 3:
        return []
    kept = series.steps[series.usable]
    first, last = float(kept[0]), float(kept[-1])
    ends, at = [first, *boundaries, last], torch.tensor([first, *rests, last], dtype=torch.float64).log()
    fit, losses = series.fit(at, bandwidth=bandwidth), series.fit_loss(at, bandwidth=bandwidth)
    found: list[Stage] = []
    for k in range(len(ends) - 1):
        change, error = fit.difference(k, k + 1)
        of_loss, loss_error = (math.nan, math.nan) if losses is None else losses.difference(k, k + 1)
        kind: Kind = "A" if change >= 0 else "B"
        number = 1 + sum(stage.kind == kind for stage in found)
        found.append(
            Stage(
                name=f"{kind}{number}", kind=kind, start=ends[k], end=ends[k + 1],
                change=change, change_stderr=error, loss_change=of_loss, loss_change_stderr=loss_error,
                hidden=abs(change) >= z * error and abs(of_loss) < z * loss_error,
            )
        )  # fmt: skip
    return found
