"""Whether two packages estimate the same covariances: their entries against what two runs of one package agree on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, stdev
from typing import NamedTuple

import torch
from torch import Tensor


class Agreement(NamedTuple):
    """Of one contender with ours, over repeats.

    Attributes:
        alike: Mean Pearson's r between its entries and ours, of different seeds throughout.
        ceiling: The same between runs of ours alone, and between its own: the geometric mean of both, which is what two
            packages reach that estimate the same with their noise.
        scale: Mean over repeats of the size of its entries over that of ours, ``‖theirs‖/‖ours‖``.
        scale_error: Standard error of that mean.
        signs: Share of entries of the mean matrices, among the tenth of largest size of ours, whose signs agree.
    """

    alike: float
    ceiling: float
    scale: float
    scale_error: float
    signs: float


def agreement(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Agreement:
    """Compare matrices of several repeats with independent chains.

    Args:
        ours: ``[first, second]`` each.
        theirs: The same of the other contender; the same list for ourselves.

    Returns:
        See :class:`Agreement`; NaN where there is one repeat only.

    >>> a = [torch.tensor([[0.0, 1.0], [2.0, -3.0]]), torch.tensor([[0.0, 1.5], [2.0, -3.0]])]
    >>> found = agreement(a, [2 * m for m in a])
    >>> round(found.scale, 6), found.signs, round(found.alike - found.ceiling, 6)
    (2.0, 1.0, 0.0)
    """
    mine, others = [_entries(m) for m in ours], [_entries(m) for m in theirs]
    apart = [(i, j) for i in range(len(mine)) for j in range(len(others)) if i != j]
    alike = [_pearson(mine[i], others[j]) for i, j in apart]
    own, foreign = ([_pearson(a, b) for a, b in combinations(side, 2)] for side in (mine, others))
    scales = [float(b.norm() / a.norm()) for a, b in zip(mine, others, strict=True)]
    mean, other = torch.stack(mine).mean(0), torch.stack(others).mean(0)
    large = mean.abs() >= _ninth(mean.abs())
    several = len(scales) > 1
    return Agreement(
        alike=fmean(alike) if alike else math.nan,
        ceiling=math.sqrt(fmean(own) * fmean(foreign)) if several and fmean(own) * fmean(foreign) > 0 else math.nan,
        scale=fmean(scales),
        scale_error=stdev(scales) / math.sqrt(len(scales)) if several else math.nan,
        signs=float((mean[large].sign() == other[large].sign()).double().mean()),
    )


def _entries(matrix: Tensor) -> Tensor:
    """All of them, or of a kernel those off the diagonal, whose variances would decide everything."""
    matrix = matrix.double()
    if matrix.shape[0] == matrix.shape[1]:
        return matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return matrix.flatten()


def _ninth(values: Tensor) -> Tensor:
    """The ninth decile; torch's own quantile refuses more than 16 million numbers."""
    return values.kthvalue(math.ceil(0.9 * len(values))).values


def _pearson(a: Tensor, b: Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / (a.norm() * b.norm()))
