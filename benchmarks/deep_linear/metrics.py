r"""What is measured: relative errors and the order of networks, each beside what costs nothing to guess.

An estimate that is missing (no chain finished) counts as an infinite error and as a pair out of order: a sampler gains
nothing by failing on the networks that it finds hard.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

Values = Sequence[float | None]


class Spread(NamedTuple):
    """Quartiles of a sample."""

    lower: float
    median: float
    upper: float


def relative_errors(estimates: Values, truths: Sequence[float]) -> list[float | None]:
    r""":math:`(\hat\lambda - \lambda) / \lambda` of every network; None where there is no estimate."""
    pairs = zip(estimates, truths, strict=True)
    return [None if estimate is None else (estimate - truth) / truth for estimate, truth in pairs]


def absolute(errors: Values) -> list[float]:
    """Absolute values, infinite where missing."""
    return [math.inf if error is None else abs(error) for error in errors]


def spread(values: Sequence[float]) -> Spread:
    """Quartiles, by linear interpolation between the sorted values; infinite ones count as the largest."""
    ranked = sorted(values)
    return Spread(*(_quantile(ranked, p) for p in (0.25, 0.5, 0.75)))


def _quantile(ranked: Sequence[float], probability: float) -> float:
    place = probability * (len(ranked) - 1)
    below, above = ranked[math.floor(place)], ranked[math.ceil(place)]
    # apart from its speed this spares infinity minus infinity
    return below if below == above else below + (place - math.floor(place)) * (above - below)


def order_preservation(estimates: Values, truths: Sequence[float]) -> float:
    """Share of the pairs of networks with different λ that the estimates put in the right order.

    Args:
        estimates: Of every network; a pair with equal estimates counts half, one with a missing estimate not at all.
        truths: λ of every network.

    Returns:
        Between 0 and 1; NaN where no two networks differ.
    """
    scores = []
    for (a, true_a), (b, true_b) in combinations(zip(estimates, truths, strict=True), 2):
        if true_a == true_b:
            continue
        if a is None or b is None:
            scores.append(0.0)
        else:
            scores.append(0.5 if a == b else float((a > b) == (true_a > true_b)))
    return sum(scores) / len(scores) if scores else math.nan


def median_interval(values: Sequence[float], *, level: float = 0.9, resamples: int = 2000) -> tuple[float, float]:
    """Interval of the median over networks, by the bootstrap: how far another draw of networks might take it."""
    rng = random.Random(0)
    medians = sorted(spread(rng.choices(values, k=len(values))).median for _ in range(resamples))
    tail = (1 - level) / 2
    return _quantile(medians, tail), _quantile(medians, 1 - tail)
