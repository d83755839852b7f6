r"""Covariances between groups of samples or tokens, chain by chain, without the matrix of all pairs.

.. math:: K^c_{AB} = \frac{1}{|P_{AB}|} \sum_{(i,j) \in P_{AB}} \mathrm{Cov}^c(\ell_i, \ell_j), \qquad
          P_{AB} = \{(i, j) : i \in A,\ j \in B,\ i \neq j\}

A covariance is bilinear, so that the sum over pairs is the covariance of the groups' sums, less the variances of the
samples that stand on both sides. What lies between chains, as where some sit in another phase than the rest, is a part
of its own: pooled = within + between (arXiv:2510.12071, the identity for mixtures of phases).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.probes import ProbeAtAnchor


class GroupCovariances(NamedTuple):
    """Mean covariance over the pairs of two groups, in nats².

    Attributes:
        within: Of each chain around its own means ``[chain, first group, second group]``; NaN where there is no pair.
        between: Covariance of the chains' means ``[first group, second group]``, 0 for one chain.
    """

    within: Tensor
    between: Tensor


def group_covariances(
    first: Tensor, second: Tensor, first_groups: Tensor, second_groups: Tensor, *, identical: Tensor | None = None
) -> GroupCovariances:
    """Mean covariances between groups of two sets of traces.

    Args:
        first: Traces ``[chain, draw, first]``.
        second: Of the same chains and draws ``[chain, draw, second]``.
        first_groups: Group of each, from 0; below 0 for none ``[first]``.
        second_groups: The same of the second set ``[second]``.
        identical: Pairs that are one and the same sample, left out ``[pair, 2]``; None for none.

    >>> t = torch.tensor([[[0.0, 0.0, 1.0], [2.0, 2.0, 0.0]]])
    >>> group_covariances(t, t, torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1])).within
    tensor([[[ 2.0000, -1.0000],
             [-1.0000,  0.5000]]], dtype=torch.float64)
    """
    one, two = _members(first_groups), _members(second_groups)
    a, b = first.double() - first[:1, :1].double(), second.double() - second[:1, :1].double()
    draws = a.shape[1]
    inside = [t - t.mean(1, keepdim=True) for t in (a, b)]
    across = [t.mean(1, keepdim=True) - t.mean((0, 1)) for t in (a, b)]
    pairs = one.sum(0)[:, None] * two.sum(0)
    sums = [(x @ one).mT @ (y @ two) for x, y in (inside, across)]
    if identical is not None and len(identical):
        i, j = identical.T
        both = one[i].mT @ two[j]
        pairs = pairs - both
        each = [(x[:, :, i] * y[:, :, j]).sum(1) for x, y in (inside, across)]  # [chain, pair]
        sums = [total - one[i].mT @ (e[:, :, None] * two[j]) for total, e in zip(sums, each, strict=True)]
    pairs = torch.where(pairs > 0, pairs, torch.nan)
    return GroupCovariances(sums[0] / (draws - 1) / pairs, sums[1].mean(0) / pairs)


class Groups(NamedTuple):
    """Who belongs to which group.

    Attributes:
        members: Number of each row's group, below 0 for none ``[row]``.
        names: Of the groups.
    """

    members: Tensor
    names: tuple[str, ...]


def groups_of(given: Tensor | None) -> Groups | None:
    """Groups of rows by whole numbers that name them, below 0 for none; None where there are no two of them.

    >>> groups_of(torch.tensor([7, 3, 7, -1]))
    Groups(members=tensor([ 1,  0,  1, -1]), names=('3', '7'))
    """
    if given is None:
        return None
    numbers, members = torch.unique(given.flatten().cpu(), return_inverse=True)
    none = int((numbers < 0).sum())
    names = tuple(str(number) for number in numbers[none:].tolist())
    return Groups((members - none).clamp(min=-1), names) if len(names) > 1 else None


def named_groups(
    given: Tensor | Sequence[int] | None, probe: ProbeAtAnchor, shape: tuple[int, ...], name: str
) -> Groups | None:
    """Groups of the rows of a probe, given for all of the user's data or taken from the labels.

    Raises:
        ValueError: If they do not fit.
    """
    if given is None:
        return None if probe.labels is None or len(shape) > 1 else groups_of(probe.labels)
    numbers = torch.as_tensor(given)
    if numbers.is_floating_point() or numbers.shape[1:] != shape[1:] or len(numbers) <= int(probe.indices.max()):
        raise ValueError(
            f"{name} must hold one whole number for each of the data's samples (and tokens, where these are kept "
            f"apart), got {tuple(numbers.shape)} of {numbers.dtype} for rows of shape {shape}"
        )
    return groups_of(numbers[probe.indices])


def _members(groups: Tensor) -> Tensor:
    """Who belongs to which group ``[row, group]``, as zeros and ones."""
    count = int(groups.max()) + 1
    return torch.stack([(groups == g).double() for g in range(count)], 1)
