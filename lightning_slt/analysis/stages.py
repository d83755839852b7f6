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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lightning_slt.analysis.smoothing import LocalFit, errors_of, local_fit

ENOUGH = 20
"""Readings at distinct steps above zero below which stages are told with a reservation."""

Kind = Literal["A", "B"]
"""A: the quantity rises over the stage; B: it falls."""


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
        step: Middle of the plateau in log t.
        earliest: Where the plateau begins: the slope has fallen to half of the one at ``before``.
        latest: Where it ends: the slope has risen to half of the one at ``after``.
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


@dataclass(frozen=True, kw_only=True)
class Detector:
    r"""Finds the boundaries of a series.

    With b(x) the slope at x = log t, a boundary is a local minimum m of \|b\| between two flanks l < m < r with
    ``(|b(f)| − |b(m)|) / se(|b(f)| − |b(m)|) ≥ z``, ``|b(f)| ≥ z se(b(f))`` and ``|b(m)| ≤ depth · |b(f)|`` for both
    f = l, r. Flanks and minima alternate: between two flanks lies one boundary however often b wiggles there.

    Args:
        bandwidth: Standard deviation of the kernel in log t; plateaus much shorter are smoothed away.
        z: Standard errors by which a plateau must stand out on both sides.
        depth: Largest slope of a plateau, as a share of the lower flank's.
        resolution: Places per bandwidth at which slopes are looked at.

    Raises:
        ValueError: For settings that cannot be.
    """

    bandwidth: float = 0.35
    z: float = 3.0
    depth: float = 0.5
    resolution: int = 8

    def __post_init__(self) -> None:
        """Refuse settings that cannot be."""
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
        slopes = Slopes(series.fit(at, bandwidth=self.bandwidth))
        return [self._boundary(at, slopes, *found) for found in self._zigzag(slopes)]

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

    def _boundary(self, at: Tensor, slopes: Slopes, left: int, low: int, right: int) -> Boundary:
        first, last = low, low
        # A kernel smooths the corner between a slope and none to half of that slope, whatever its width.
        while first - 1 > left and slopes.size[first - 1] <= slopes.size[left] / 2:
            first -= 1
        while last + 1 < right and slopes.size[last + 1] <= slopes.size[right] / 2:
            last += 1
        place: list[float] = at.exp().tolist()
        return Boundary(
            step=math.sqrt(place[first] * place[last]),
            earliest=place[first],
            latest=place[last],
            before=place[left],
            after=place[right],
            prominence=min(slopes.contrast(left, low), slopes.contrast(right, low)),
        )


class Slopes:
    """Slopes at many places, and contrasts of two of them with their standard errors.

    Args:
        fit: Of the series.

    Attributes:
        size: ``|b|`` of each place.
        stderr: Of b at each place.
    """

    def __init__(self, fit: LocalFit) -> None:
        """Weights of ``|b|`` are those of b with its sign; plain lists, as places are looked at one by one."""
        weights = fit.slope.sign()[:, None] * fit.slope_weights
        self.size: list[float] = fit.slope.abs().tolist()
        self.stderr: list[float] = fit.slope_stderr.tolist()
        self._errors: list[list[float]] = fit.errors.of_differences(weights).tolist()

    def contrast(self, flank: int, minimum: int) -> float:
        """``|b(f)| − |b(m)|`` over its standard error."""
        gap, error = self.size[flank] - self.size[minimum], self._errors[flank][minimum]
        return gap / error if error > 0 else math.copysign(math.inf, gap) if gap else 0.0


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


def stages(series: Series, boundaries: Sequence[float], *, bandwidth: float = 0.35, z: float = 3.0) -> list[Stage]:
    r"""What the quantity and the loss did between boundaries.

    Changes are differences of the local fits at both ends, ``Σ (lᵢ(end) − lᵢ(start)) yᵢ``, so that their errors are
    known: ``Σ (lᵢ(end) − lᵢ(start))² vᵢ``. A stage is hidden where ``|Δλ̂| ≥ z se`` and ``|Δloss| < z se``.

    Args:
        series: The readings.
        boundaries: Steps, in order.
        bandwidth: Of the fit, in log t.
        z: Standard errors beyond which something moved.

    Returns:
        One stage more than boundaries; none where there are fewer than three readings.
    """
    if int(series.usable.sum()) < 3:
        return []
    kept = series.steps[series.usable]
    ends = torch.tensor([float(kept[0]), *boundaries, float(kept[-1])], dtype=torch.float64)
    fit, losses = series.fit(ends.log(), bandwidth=bandwidth), series.fit_loss(ends.log(), bandwidth=bandwidth)
    found: list[Stage] = []
    for k in range(len(ends) - 1):
        change, error = fit.difference(k, k + 1)
        of_loss, loss_error = (math.nan, math.nan) if losses is None else losses.difference(k, k + 1)
        kind: Kind = "A" if change >= 0 else "B"
        number = 1 + sum(stage.kind == kind for stage in found)
        found.append(
            Stage(
                name=f"{kind}{number}", kind=kind, start=float(ends[k]), end=float(ends[k + 1]),
                change=change, change_stderr=error, loss_change=of_loss, loss_change_stderr=loss_error,
                hidden=abs(change) >= z * error and abs(of_loss) < z * loss_error,
            )
        )  # fmt: skip
    return found
