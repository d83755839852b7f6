r"""Curves of many components over a run, and which of them develop alike (arXiv:2410.02984, section 4.2).

Curves are comparable because all of them have one nβ, one γ and the same minibatches, so that they are grouped as they
are; ``shape=True`` compares z-scores instead, when what matters is when a curve moves and not how high it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_slt.records import Reading
from lightning_slt.types import Estimate

Method = Literal["kmeans", "hierarchical"]

MOST_GROUPS = 6
"""Tried where nobody says how many."""


class Curves(NamedTuple):
    """Means with errors over a run.

    Attributes:
        names: Of the curves: the component, and the data where there are several: ``blocks.0.h3 on induction``.
        steps: Of the readings ``[reading]``.
        values: ``[curve, reading]``.
        stderr: ``[curve, reading]``.
    """

    names: tuple[str, ...]
    steps: Tensor
    values: Tensor
    stderr: Tensor


class Groups(NamedTuple):
    """Curves that develop alike.

    Attributes:
        labels: Group of each curve ``[curve]``, from 0, the largest group first.
        silhouette: How much nearer curves are to their own group than to the next one, between −1 and 1; NaN for a
            single group. Below about 0.25 there are no groups to speak of.
    """

    labels: Tensor
    silhouette: float


def llc_curves(readings: Sequence[Reading], *, key: str = "llc") -> Curves:
    """The curves of all components from the records of one monitor.

    Args:
        readings: As :func:`lightning_slt.load_records` gives them; those that failed are left out.
        key: Name of the estimates; those on named data sets, ``<key>/<data>``, are taken too.

    Raises:
        ValueError: If there is no such estimate.
    """
    made = [reading for reading in readings if reading.estimates]
    found = {
        (component, mine): component + (f" on {mine.partition('/')[2]}" if "/" in mine else "")
        for reading in made
        for component, estimates in reading.estimates.items()
        for mine, estimate in estimates.items()
        if mine.partition("/")[0] == key and isinstance(estimate, Estimate)
    }
    if not found:
        raise ValueError(f"no reading has an estimate called {key!r}; the readings are {len(readings)}")

    def trace(component: str, mine: str, kind: str) -> list[float]:
        estimates = [reading.estimates.get(component, {}).get(mine) for reading in made]
        return [math.nan if estimate is None else getattr(estimate, kind) for estimate in estimates]

    values, stderr = (
        torch.tensor([trace(*where, kind) for where in found], dtype=torch.float64) for kind in ("mean", "stderr")
    )
    return Curves(tuple(found.values()), torch.tensor([reading.step for reading in made]), values, stderr)


def group(values: Tensor, *, count: int | None = None, method: Method = "kmeans", shape: bool = False) -> Groups:
    """Group curves by their distance, the same groups at every call.

    Args:
        values: ``[curve, reading]``; readings at which a curve has no number are left out.
        count: Groups; None for the number up to six with the largest silhouette.
        method: ``"hierarchical"`` joins the two groups whose union has the smallest sum of squares more than they have
            (Ward's rule) until ``count`` are left; ``"kmeans"`` goes on from there by Lloyd's iteration.
        shape: Compare z-scores over readings.

    Raises:
        ValueError: For fewer curves than groups, or no reading at which all curves have a number.

    >>> group(torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.1, 1.1], [0.0, 1.2]]), count=2).labels
    tensor([0, 1, 0, 0])
    """
    whole = values.double()[:, values.isfinite().all(0)]
    if count is not None and not 1 <= count <= len(whole):
        raise ValueError(f"count must lie between 1 and the number of curves, {len(whole)}, got {count!r}")
    if not len(whole) or not whole.shape[1]:
        raise ValueError("there is no reading at which all curves have a number, so that they cannot be compared")
    points = _z_scores(whole) if shape else whole
    tried = [count] if count is not None else range(2, min(MOST_GROUPS, len(whole) - 1) + 1)
    found = [_grouped(points, number, method) for number in tried] or [_grouped(points, 1, method)]
    return max(found, key=lambda groups: groups.silhouette)


def _z_scores(values: Tensor) -> Tensor:
    centred = values - values.mean(1, keepdim=True)
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return torch.where(spread > 0, centred / spread, 0.0)


def _grouped(points: Tensor, count: int, method: Method) -> Groups:
    labels = ward(points, count)
    if method == "kmeans":
        labels = lloyd(points, labels)
    sizes = labels.bincount()
    rank = sizes.argsort(descending=True, stable=True).argsort()
    return Groups(rank[labels], silhouette(points, labels))


def ward(points: Tensor, count: int) -> Tensor:
    r"""Agglomerative clustering by Ward's rule: join the pair with the smallest ``|a||b|/(|a|+|b|) ‖ā − b̄‖²``.

    Args:
        points: ``[point, coordinate]``.
        count: Groups to stop at.

    Returns:
        Group of each point ``[point]``.
    """
    groups = [[index] for index in range(len(points))]
    while len(groups) > count:
        means = torch.stack([points[members].mean(0) for members in groups])
        sizes = torch.tensor([float(len(members)) for members in groups], dtype=points.dtype)
        costs = torch.cdist(means, means).square() * sizes[:, None] * sizes / (sizes[:, None] + sizes)
        costs.fill_diagonal_(math.inf)
        first, second = sorted(divmod(int(costs.argmin()), len(groups)))
        groups[first] += groups.pop(second)
    labels = torch.empty(len(points), dtype=torch.long)
    for number, members in enumerate(groups):
        labels[members] = number
    return labels


def lloyd(points: Tensor, labels: Tensor) -> Tensor:
    """K-means from given groups: means of the groups, every point to the nearest mean, until nothing changes."""
    for _ in range(len(points) ** 2):
        means = torch.stack([points[labels == number].mean(0) for number in range(int(labels.max()) + 1)])
        nearest = torch.cdist(points, means).argmin(1)
        if torch.equal(nearest, labels) or int((nearest.bincount() > 0).sum()) < len(means):
            break
        labels = nearest
    return labels


def silhouette(points: Tensor, labels: Tensor) -> float:
    r"""Mean of ``(b − a)/max(a, b)``: a the mean distance within a point's group, b the smallest to another group.

    Zero for a point that is alone in its group (Rousseeuw 1987).

    Args:
        points: ``[point, coordinate]``.
        labels: Group of each point ``[point]``.

    Returns:
        Between −1 and 1; NaN for a single group.
    """
    distances, member = torch.cdist(points, points), torch.nn.functional.one_hot(labels).to(points)
    if member.shape[1] < 2:
        return math.nan
    sizes, own = member.sum(0), member.bool()
    within = (distances @ member)[own] / (sizes[labels] - 1).clamp(min=1)
    between = (distances @ member / sizes).masked_fill(own, math.inf).min(1).values
    scores = (between - within) / torch.maximum(between, within)
    return float(torch.where(sizes[labels] > 1, scores.nan_to_num(), 0.0).mean())
