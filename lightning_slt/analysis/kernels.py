r"""Structure of a loss kernel: its principal components, its clusters, its outliers (arXiv:2509.26537).

Functions take the factor F ``[feature, sample]`` of a kernel ``K = FᵀF``: ``result.factor`` of a
:class:`lightning_slt.estimators.KernelEstimate`, ``factor`` of a recorded one, or
:func:`lightning_slt.gram.matrix_factor` of any other kernel. The matrix is never formed as a whole, but for clusters.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.analysis.curves import lloyd
from lightning_slt.gram import (
    compressed,
    effective_rank,
    matrix_factor,
    neighbours,
    normalized,
    purity,
    row_blocks,
    some_of,
    spectrum,
    trace_factor,
)

__all__ = [
    "PrincipalComponents",
    "Suspects",
    "clusters",
    "compressed",
    "effective_rank",
    "matrix_factor",
    "neighbours",
    "normalized",
    "order",
    "pca",
    "purity",
    "row_blocks",
    "some_of",
    "spectrum",
    "suspects",
    "trace_factor",
]

LARGEST = 2000
"""Samples among which clusters are found, chosen by chance; further ones join the cluster that they are most like."""

ROUNDS = 3
"""How often further samples join: centres of all samples are less noisy than those of the first ones."""

STARTS = 10
"""Of k-means."""

MAD = 1.4826
"""Standard deviation of a normal variable over its median absolute deviation."""


class PrincipalComponents(NamedTuple):
    """Of a kernel, centred over samples.

    Attributes:
        points: Coordinates of the samples ``[sample, component]``.
        shares: Share of the centred kernel's trace in each component ``[component]``.
    """

    points: Tensor
    shares: Tensor


def pca(factor: Tensor, components: int = 2) -> PrincipalComponents:
    r"""Kernel PCA: the leading eigenvectors of the doubly centred kernel ``HKH``, scaled to the kernel's units.

    Of :func:`lightning_slt.gram.normalized` factors, distances between points approximate ``√(2(1 − R))``.

    Args:
        factor: ``[feature, sample]``.
        components: At most so many.

    >>> found = pca(torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]]))
    >>> found.points[:, 0].abs(), found.shares[0]
    (tensor([1., 0., 1.]), tensor(1.))
    """
    centred = factor - factor.mean(1, keepdim=True)
    points = compressed(centred, components).mT
    return PrincipalComponents(points, points.square().sum(0) / centred.square().sum())


def clusters(factor: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Spectral clusters of ``max(R, 0)`` (Ng, Jordan & Weiss 2001): k-means of its normalized leading eigenvectors.

    Args:
        factor: ``[feature, sample]``.
        count: How many clusters.
        seed: Of k-means.

    Returns:
        Whole numbers from 0 ``[sample]``.

    Raises:
        ValueError: If there are fewer samples than clusters, or a kernel that is not finite.
    """
    samples = factor.shape[1]
    if not 1 <= count <= samples:
        raise ValueError(f"there must be between 1 and {samples} clusters of {samples} samples, got {count}")
    unit = normalized(factor.double())
    if not bool(unit.isfinite().all()):
        raise ValueError("the kernel is not finite: no chain of its reading finished")
    seeds = some_of(samples, LARGEST)
    similar = (unit[:, seeds].mT @ unit[:, seeds]).clamp(min=0)
    similar.fill_diagonal_(1.0)  # a sample that never moves is like itself, and not without any link
    degree = similar.sum(1).rsqrt()
    leading = torch.linalg.eigh(degree[:, None] * similar * degree)[1][:, -count:]
    rows = torch.nn.functional.normalize(leading, dim=1)
    found = k_means(rows, count, seed=seed)
    if len(seeds) == samples:
        return found
    return _joined(unit, seeds, found, count)


def k_means(rows: Tensor, count: int, *, seed: int = 0) -> Tensor:
    r"""Groups of least squared distance to their means, the best of :data:`STARTS` starts.

    Means begin at rows chosen with probability in proportion to the squared distance from those before (Arthur &
    Vassilvitskii 2007), and take turns with groups (Lloyd 1982) until no row changes its group. There are no more
    groups than different rows.

    Args:
        rows: ``[row, column]``.
        count: How many groups.
        seed: Of the starts.

    Returns:
        Whole numbers from 0 ``[row]``.

    >>> k_means(torch.tensor([[0.0], [0.1], [9.0], [9.1]]), 2).diff().abs()
    tensor([0, 1, 0])
    """
    random = torch.Generator().manual_seed(seed)
    best, least = torch.zeros(len(rows), dtype=torch.long), math.inf
    for _ in range(STARTS):
        means = rows[torch.randint(len(rows), (1,), generator=random)]
        while len(means) < count and bool((far := torch.cdist(rows, means).square().amin(1)).any()):
            means = torch.cat([means, rows[torch.multinomial(far, 1, generator=random)]])
        nearest = torch.cdist(rows, means).argmin(1)
        mine = lloyd(rows, torch.unique(nearest, return_inverse=True)[1])
        total = sum(
            float((rows[mine == g] - rows[mine == g].mean(0)).square().sum()) for g in range(int(mine.max()) + 1)
        )
        if total < least:
            best, least = mine, total
    return best


def order(factor: Tensor, groups: Tensor) -> Tensor:
    """Samples by group, within each by how like the group they are ``[sample]``: for heat maps.

    Args:
        factor: ``[feature, sample]``.
        groups: Clusters or labels ``[sample]``.
    """
    unit = normalized(factor)
    found = []
    for group in torch.unique(groups):
        mine = (groups == group).nonzero()[:, 0]
        centre = unit[:, mine].sum(1)
        found.append(mine[(centre @ unit[:, mine]).argsort(descending=True)])
    return torch.cat(found)


def _joined(unit: Tensor, seeds: Tensor, found: Tensor, count: int) -> Tensor:
    """All samples in the cluster with whose members they have the largest mean R, first of the seeds, then of all."""
    mine, some = found, unit[:, seeds]
    for _ in range(ROUNDS):
        members = torch.nn.functional.one_hot(mine, count).double()
        centres = some @ (members / members.sum(0).clamp(min=1))
        mine, some = (unit.mT @ centres).argmax(1), unit
    return mine


class Suspects(NamedTuple):
    """Samples whose losses move most.

    Attributes:
        indices: Most suspect first ``[suspect]``.
        scores: Of every sample ``[sample]``: standard deviations above the median of log variances.
    """

    indices: Tensor
    scores: Tensor


def suspects(variances: Tensor, count: int = 10, *, labels: Tensor | None = None) -> Suspects:
    r"""Samples of extreme self-variance: mislabelled, memorized, or simply hard.

    .. math:: s_i = \frac{\log K_{ii} - \mathrm{median}}{1.4826\ \mathrm{MAD}}

    Args:
        variances: The kernel's diagonal ``[sample]``.
        count: How many to name.
        labels: ``[sample]``; where given, a sample is compared with those of its own label.

    >>> suspects(torch.tensor([1.0, 1.1, 0.9, 1.2, 50.0, 0.8]), 1).indices
    tensor([4])
    """
    logs = variances.double().log()
    groups = torch.zeros(len(logs), dtype=torch.long) if labels is None else labels
    scores = torch.full_like(logs, -math.inf)
    for group in torch.unique(groups):
        mine = (groups == group) & logs.isfinite()
        if bool(mine.any()):
            middle = logs[mine].quantile(0.5)
            width = MAD * (logs[mine] - middle).abs().quantile(0.5)
            scores[mine] = (logs[mine] - middle) / width if width > 0 else logs[mine] - middle
    return Suspects(scores.argsort(descending=True)[:count], scores)
