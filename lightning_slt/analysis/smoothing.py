r"""Local linear regression with errors: levels and slopes of a curve as linear functions of its points.

At every place x the line ``a + b (x_i − x)`` that minimizes ``Σ w_i (y_i − a − b (x_i − x))²`` with
``w_i = exp(−(x_i − x)²/2h²) / (stderr_i² + τ²)`` (Fan and Gijbels 1996, chapter 3). What is linear in the points,
``Σ l_i y_i``, has the variance ``Σ l_i² v_i + Σ_c (Σ_i l_i D_ic)²``: v is what errs on its own at every point, the
scatter τ² included, and ``D_ic = (y_ic − y_i)/√(C(C−1))`` what chain c adds to all of them. Chains of monitors have
the same noise and minibatches at every reading, so that most of D cancels in slopes and differences. A few chains can
agree by chance: no variance is smaller than what the scatter of the curve itself gives, ``Σ l_i² σ²``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MEDIAN_CHI2 = 0.454936423119573
"""Median of χ² with one degree of freedom."""


class Errors(NamedTuple):
    """Errors of points of a curve.

    Attributes:
        own: v, variance of each point by itself ``[point]``.
        shared: D, what each chain adds to every point ``[point, chain]``; no columns where chains are unknown.
        scatter: σ², the variance of a point around its neighbours, whatever its cause.
    """

    own: Tensor
    shared: Tensor
    scatter: float = 0.0

    def of(self, weights: Tensor, points: Tensor | None = None) -> Tensor:
        """Standard errors of ``weights @ y``: ``[..., point]`` to ``[...]``.

        Args:
            weights: Of all points, or of some.
            points: Indices of those ``[..., point]``: sums of few points need no row of all of them.
        """
        squares = weights.square()
        if points is None:
            known = squares @ self.own + (weights @ self.shared).square().sum(-1)
        else:
            common = (weights[..., None] * self.shared[points]).sum(-2)
            known = (squares * self.own[points]).sum(-1) + common.square().sum(-1)
        return torch.maximum(known, self.scatter * squares.sum(-1)).sqrt()

    def of_differences(self, weights: Tensor) -> Tensor:
        """Standard errors of all differences of such sums: ``[sum, point]`` to ``[sum, sum]``."""
        common = weights @ self.shared
        known, plain = (weights * self.own) @ weights.mT + common @ common.mT, self.scatter * weights @ weights.mT
        variances = [c.diagonal()[:, None] + c.diagonal() - 2 * c for c in (known, plain)]
        return torch.maximum(*variances).clamp_min(0.0).sqrt()  # rounding leaves the diagonal below zero


class LocalFit(NamedTuple):
    """A curve at some places.

    Attributes:
        at: The places ``[place]``.
        level: ``[place]``.
        slope: ``[place]``.
        level_weights: ``level = level_weights @ y`` ``[place, point]``.
        slope_weights: ``slope = slope_weights @ y`` ``[place, point]``.
        errors: Of the points.
    """

    at: Tensor
    level: Tensor
    slope: Tensor
    level_weights: Tensor
    slope_weights: Tensor
    errors: Errors

    @property
    def level_stderr(self) -> Tensor:
        """Standard error of the level ``[place]``."""
        return self.errors.of(self.level_weights)

    @property
    def slope_stderr(self) -> Tensor:
        """Standard error of the slope ``[place]``."""
        return self.errors.of(self.slope_weights)

    def difference(self, first: int, second: int) -> tuple[float, float]:
        """Level at a second place minus that at a first one, and its standard error."""
        error = self.errors.of(self.level_weights[second] - self.level_weights[first])
        return float(self.level[second] - self.level[first]), float(error)


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


def errors_of(x: Tensor, y: Tensor, stderr: Tensor, per_chain: Tensor) -> Errors:
    """What is known of a curve's errors.

    Args:
        x: Points ``[point]``, increasing.
        y: Their values ``[point]``.
        stderr: Of the values ``[point]``; NaN where unknown, counted as zero.
        per_chain: Values of each chain ``[point, chain]``; a point where one of them is missing errs on its own, with
            its stderr.
    """
    count = per_chain.shape[1]
    whole = per_chain.isfinite().all(1) if count > 1 else torch.zeros_like(y, dtype=torch.bool)
    apart = (per_chain - per_chain.mean(1, keepdim=True)) / math.sqrt(max(1, count * (count - 1)))
    shared = torch.where(whole[:, None], apart, 0.0)
    # Losses are float32: whatever else is known, nothing is more exact than that.
    rounding = torch.finfo(torch.float32).eps * y.abs().max()
    own = torch.where(whole, 0.0, stderr.nan_to_num(0.0).square()) + rounding.square()
    nothing = Errors(torch.zeros_like(own), torch.zeros_like(shared))
    return Errors(own + scatter(x, y, Errors(own, shared)), shared, scatter(x, y, nothing))


def local_fit(x: Tensor, y: Tensor, stderr: Tensor, errors: Errors, *, at: Tensor, bandwidth: float) -> LocalFit:
    """Local linear regression.

    Args:
        x: Points ``[point]``, increasing, at least two.
        y: Their values ``[point]``.
        stderr: Of the values ``[point]``, for their weights; NaN counts as zero.
        errors: Of the points.
        at: Places within the range of the points ``[place]``.
        bandwidth: h.

    >>> x = torch.arange(5, dtype=torch.float64)
    >>> exact = Errors(torch.zeros(5).double(), torch.zeros(5, 0).double())
    >>> local_fit(x, 3 * x + 1, torch.ones(5).double(), exact, at=x[1:3], bandwidth=1.0).slope.round(decimals=9)
    tensor([3., 3.], dtype=torch.float64)
    """
    variance = stderr.nan_to_num(0.0).square() + errors.own
    # Points without any error would weigh infinitely: none weighs a million times as much as another.
    variance = variance.clamp_min(1e-6 * float(variance.max())) if bool(variance.max() > 0) else torch.ones_like(y)
    u = x - at[:, None]
    log_weights = -u.square() / (2 * bandwidth**2) - variance.log()
    w = (log_weights - log_weights.amax(1, keepdim=True)).exp()
    s0, s1, s2 = w.sum(1, True), (w * u).sum(1, True), (w * u.square()).sum(1, True)
    determinant = s0 * s2 - s1.square()
    level_weights = w * (s2 - u * s1) / determinant
    slope_weights = w * (s0 * u - s1) / determinant
    return LocalFit(at, level_weights @ y, slope_weights @ y, level_weights, slope_weights, errors)


def scatter(x: Tensor, y: Tensor, known: Errors) -> float:
    r"""τ², the variance of a curve around its smooth course that known errors do not explain.

    From pseudo-residuals (Gasser, Sroka and Jennen-Steinmetz 1986): each point's distance from the line through its
    neighbours, ``e_i = y_i − a y_{i−1} − (1−a) y_{i+1}``, has the variance ``own_i`` of its known errors plus
    ``c_i τ²`` with ``c_i = 1 + a² + (1−a)²`` where the curve is smooth. τ² makes the median of ``e²/variance`` that of
    χ²₁, so that the few points at the edges of a step do not count: it is the median of
    ``(e_i²/median(χ²₁) − own_i)/c_i``, or 0.

    Args:
        x: Points ``[point]``, increasing.
        y: Their values.
        known: Their errors as far as they are known.
    """
    if len(x) < 4:
        return 0.0
    a = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    weights = torch.stack([-a, torch.ones_like(a), a - 1], 1)  # of each point and its neighbours; of all others none
    near = torch.arange(len(a))[:, None] + torch.arange(3)
    squares, own, c = (weights * y[near]).sum(1).square(), known.of(weights, near).square(), weights.square().sum(1)
    tau2 = (squares / MEDIAN_CHI2 - own) / c
    return max(0.0, float(tau2.quantile(0.5)))
