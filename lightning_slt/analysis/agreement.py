r"""Does a kernel know the labels, or a tree of classes? Group means, purity, Rand index, AUC, and Mantel's test."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.gram import neighbours, normalized, purity, row_blocks, some_of

PAIRED = 1500
"""Samples whose pairs are ranked for the AUC, chosen by chance: a million pairs say enough."""


class GroupMeans(NamedTuple):
    """Mean correlations between groups, no sample paired with itself.

    Attributes:
        groups: The labels ``[group]``.
        correlation: Mean R ``[group, group]``; NaN for a group of one with itself.
        square: Mean ``R² − 1/n_eff`` ``[group, group]``: without the sign, and without what noise alone would give.
        pairs: How many pairs each is a mean of ``[group, group]``.
    """

    groups: Tensor
    correlation: Tensor
    square: Tensor
    pairs: Tensor


def group_means(factor: Tensor, labels: Tensor, *, n_eff: float = math.inf) -> GroupMeans:
    r"""Mean of R, and of R² less its noise, over the pairs of two groups.

    The square of an entry whose true value is 0 has the mean ``1/n_eff``. With cross-entropy, R between two samples of
    different labels can be strongly negative: what they share is in the square.

    Args:
        factor: ``[feature, sample]``.
        labels: ``[sample]``.
        n_eff: Independent draws of the kernel; infinite takes nothing off.

    >>> means = group_means(torch.eye(2).repeat_interleave(2, 1), torch.tensor([0, 0, 1, 1]))
    >>> means.correlation
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    unit, labels = normalized(factor.double()), _checked(labels, factor).to(factor.device)
    groups, member = torch.unique(labels, return_inverse=True)
    belongs = torch.nn.functional.one_hot(member, len(groups)).double()
    sums = torch.zeros(2, len(groups), len(groups), dtype=torch.float64, device=factor.device)
    for part, rows in row_blocks(unit):
        rows[:, part].fill_diagonal_(0.0)
        sums += torch.stack([belongs[part].mT @ (power @ belongs) for power in (rows, rows.square())])
    count = belongs.sum(0)
    pairs = torch.outer(count, count) - count.diag()
    return GroupMeans(groups, sums[0] / pairs, sums[1] / pairs - 1 / n_eff, pairs)


class Agreement(NamedTuple):
    """How well a kernel knows labels.

    Attributes:
        purity: Share of the nearest neighbours that bear a sample's label.
        chance: The same for neighbours drawn at random.
        within: Mean R of pairs of one label.
        between: Mean R of pairs of two labels.
        within_square: Mean ``R² − 1/n_eff`` of pairs of one label.
        between_square: Of pairs of two labels.
        auc: Probability that a pair of one label has a larger R than a pair of two.
        adjusted_rand: Of clusters with labels, 0 by chance and 1 where they are equal; NaN without clusters.
    """

    purity: float
    chance: float
    within: float
    between: float
    within_square: float
    between_square: float
    auc: float
    adjusted_rand: float


def agreement(
    factor: Tensor, labels: Tensor, *, found: Tensor | None = None, nearest: int = 5, n_eff: float = math.inf
) -> Agreement:
    """Hold a kernel against labels.

    Args:
        factor: ``[feature, sample]``.
        labels: ``[sample]``.
        found: Clusters of the same samples, of :func:`lightning_slt.analysis.kernels.clusters`.
        nearest: Neighbours that purity asks.
        n_eff: See :func:`group_means`.
    """
    means = group_means(factor, labels, n_eff=n_eff)
    weights = means.pairs / means.pairs.sum()
    same = torch.eye(len(means.groups), dtype=torch.bool, device=factor.device)
    some = some_of(len(labels), PAIRED)
    unit = normalized(factor[:, some])
    above = torch.ones(len(some), len(some), dtype=torch.bool).triu(1)
    alike = labels[some][:, None] == labels[some]
    return Agreement(
        purity=purity(neighbours(factor, nearest), labels),
        chance=float(weights[same].sum()),
        within=_mean(means.correlation, weights, same),
        between=_mean(means.correlation, weights, ~same),
        within_square=_mean(means.square, weights, same),
        between_square=_mean(means.square, weights, ~same),
        auc=auc((unit.mT @ unit)[above], alike[above]),
        adjusted_rand=math.nan if found is None else adjusted_rand(found, labels),
    )


def auc(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive has the larger score, ties counting half (Mann & Whitney).

    >>> auc(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, False]))
    1.0
    """
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if ones == 0 or zeros == 0:
        return math.nan
    return (float(ranks(scores)[positive].sum()) - ones * (ones + 1) / 2) / (ones * zeros)


def adjusted_rand(first: Tensor, second: Tensor) -> float:
    """Agreement of two partitions less that of chance (Hubert & Arabie 1985).

    >>> adjusted_rand(torch.tensor([0, 0, 1, 1]), torch.tensor([5, 5, 2, 2]))
    1.0
    """
    a, b = (torch.unique(x, return_inverse=True)[1] for x in (first, second))
    table = torch.zeros(int(a.max()) + 1, int(b.max()) + 1, dtype=torch.float64)
    table.index_put_((a, b), torch.ones(len(a), dtype=torch.float64), accumulate=True)
    both, rows, columns = (float((n * (n - 1) / 2).sum()) for n in (table, table.sum(1), table.sum(0)))
    chance = rows * columns / (len(a) * (len(a) - 1) / 2)
    largest = (rows + columns) / 2
    return (both - chance) / (largest - chance) if largest != chance else 1.0


class Mantel(NamedTuple):
    """Mantel's test.

    Attributes:
        correlation: Spearman's, of the two sets of distances.
        p: Share of permutations, the identity among them, with a correlation as large.
    """

    correlation: float
    p: float


def mantel(first: Tensor, second: Tensor, *, permutations: int = 999, seed: int = 0) -> Mantel:
    """Are two sets of distances between the same things related (Mantel 1967)? One-sided, by ranks.

    Distances share rows and columns, so that they are permuted together. With ten classes permute classes (their
    :func:`group_means`), not samples: that samples of one class are alike is no evidence for a tree above the classes.

    Args:
        first: Distances ``[thing, thing]``, such as ``1 − R``; the diagonal is not looked at.
        second: Other distances of the same things, such as :func:`path_distances`.
        permutations: How many random ones; p cannot be smaller than ``1/(permutations + 1)``.
        seed: Of the permutations.

    Raises:
        ValueError: If they are no square matrices of one size of at least three.
    """
    size = len(first)
    if first.shape != (size, size) or second.shape != first.shape or size < 3:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"mantel needs two square matrices of the same three or more things, got shapes {shapes}")
    above = torch.triu_indices(size, size, 1)
    x, y = (_standard(ranks(m.double()[above[0], above[1]])) for m in (first, second))
    square = torch.zeros(size, size, dtype=torch.float64)
    square[above[0], above[1]] = square[above[1], above[0]] = y
    generator = torch.Generator().manual_seed(seed)
    observed, reached = float(x @ y), 1
    for _ in range(permutations):
        p = torch.randperm(size, generator=generator)
        reached += float(x @ square[p[above[0]], p[above[1]]]) >= observed - 1e-12  # ties in another order of summation
    return Mantel(observed, reached / (permutations + 1))


def path_distances(parents: Mapping[str, str], leaves: Sequence[str]) -> Tensor:
    """Edges between each two leaves of a tree ``[leaf, leaf]``.

    Args:
        parents: ``{node: its parent}``; the root has none.
        leaves: Which nodes, in order.

    Raises:
        ValueError: If two leaves have no ancestor in common.

    >>> path_distances({"cat": "animal", "dog": "animal", "oak": "plant", "animal": "life", "plant": "life"},
    ...                ["cat", "dog", "oak"])
    tensor([[0., 2., 4.],
            [2., 0., 4.],
            [4., 4., 0.]])
    """
    lines = [_line(parents, leaf) for leaf in leaves]
    return torch.tensor([[float(_apart(a, b)) for b in lines] for a in lines])


def _line(parents: Mapping[str, str], node: str) -> list[str]:
    line = [node]
    while line[-1] in parents:
        if parents[line[-1]] in line:
            raise ValueError(f"the tree goes in circles at {line[-1]!r}")
        line.append(parents[line[-1]])
    return line


def _apart(first: Sequence[str], second: Sequence[str]) -> int:
    for steps, node in enumerate(first):
        if node in second:
            return steps + second.index(node)
    raise ValueError(f"{first[0]!r} and {second[0]!r} have no ancestor in common: {first[-1]!r} and {second[-1]!r}")


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties at their mean ``[value]``, float64."""
    ordered = values.contiguous().sort().values
    first, past = (torch.searchsorted(ordered, values.contiguous(), right=right) for right in (False, True))
    return (first + past + 1).double() / 2


def _standard(values: Tensor) -> Tensor:
    centred = values - values.mean()
    length = centred.square().sum().sqrt()
    return centred / length if length > 0 else centred


def _mean(values: Tensor, weights: Tensor, where: Tensor) -> float:
    used = where & (weights > 0)
    return float((values[used] * weights[used]).sum() / weights[used].sum()) if bool(used.any()) else math.nan


def _checked(labels: Tensor, factor: Tensor) -> Tensor:
    if labels.shape != (factor.shape[1],):
        raise ValueError(f"labels must be [sample] for {factor.shape[1]} samples, got shape {tuple(labels.shape)}")
    return labels
