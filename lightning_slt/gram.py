r"""Kernels held as factors: :math:`K = F^\top F` with F ``[feature, sample]``.

A loss kernel has at most C(T − 1) features, the centred draws over the root of their number; it is that large however
many samples there are. So everything that is asked of a kernel of 10 000 samples is computed from the factor, in blocks
of rows where it needs them, and the matrix ``[sample, sample]`` exists only where someone asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

NUMBERS = 2**24
"""Numbers that a block of rows may hold."""

SEED = 2509_26537
"""Of which samples are looked at where not all can be: the same ones every time."""


def some_of(samples: int, most: int) -> Tensor:
    """Indices of all samples, or of so many of them by chance, in order: every k-th of classes in turn are of few.

    >>> some_of(3, 5), len(some_of(1000, 5))
    (tensor([0, 1, 2]), 5)
    """
    if samples <= most:
        return torch.arange(samples)
    return torch.randperm(samples, generator=torch.Generator().manual_seed(SEED))[:most].sort().values


def trace_factor(traces: Tensor, *, pooled: bool = False) -> Tensor:
    r"""Factor of the covariance of traces.

    .. math:: F_{(ct), i} = \frac{\ell_{cti} - \bar\ell_{ci}}{\sqrt{C(T-1)}}, \qquad
              F_{(ct), i} = \frac{\ell_{cti} - \bar\ell_i}{\sqrt{CT-1}} \text{ pooled}

    Args:
        traces: ``[chain, draw, sample]``.
        pooled: Centre on the mean of all chains rather than on each chain's own.

    Returns:
        ``[chain · draw, sample]``, float64; one row of NaN where no covariance exists: no chain, or a single draw.

    >>> f = trace_factor(torch.tensor([[[0.0], [1.0]], [[10.0], [13.0]]]))
    >>> f.mT @ f
    tensor([[2.5000]], dtype=torch.float64)
    """
    chains, draws, samples = traces.shape
    freedom = chains * draws - 1 if pooled else chains * (draws - 1)
    if freedom < 1:
        return torch.full((1, samples), math.nan, dtype=torch.float64)
    values = traces.double()
    values = values - (values[:1, :1] if pooled else values[:, :1])  # a constant trace becomes exactly zero
    centred = values - values.mean((0, 1) if pooled else 1, keepdim=True)
    return centred.flatten(0, 1) / math.sqrt(freedom)


def matrix_factor(kernel: Tensor) -> Tensor:
    """Factor of a given kernel, its negative eigenvalues left out.

    Args:
        kernel: Symmetric ``[sample, sample]``.

    Returns:
        ``[sample, sample]``.
    """
    values, vectors = torch.linalg.eigh(kernel.double())
    factor: Tensor = values.clamp(min=0).sqrt()[:, None] * vectors.mT
    return factor


def normalized(factor: Tensor) -> Tensor:
    r"""Factor of the correlations, ``R_ij = K_ij / √(K_ii K_jj)``; 0 where a variance is 0.

    Args:
        factor: ``[feature, sample]``.

    Returns:
        The same with columns of length 1 or 0: points whose distances are ``√(2(1 − R))``.

    >>> normalized(torch.tensor([[3.0, 0.0], [4.0, 0.0]]))
    tensor([[0.6000, 0.0000],
            [0.8000, 0.0000]])
    """
    scale = factor.square().sum(0).sqrt()
    unit: Tensor = torch.where(scale == 0, 0.0, factor / scale)
    return unit


def row_blocks(factor: Tensor, *, block: int | None = None) -> Iterator[tuple[slice, Tensor]]:
    """The kernel in blocks of rows.

    Args:
        factor: ``[feature, sample]``.
        block: Rows that are computed together; None fits them to the memory.

    Yields:
        Which rows, and the rows ``[block, sample]``.
    """
    samples = factor.shape[1]
    rows = block or max(1, NUMBERS // max(1, samples))
    for start in range(0, samples, rows):
        part = slice(start, min(start + rows, samples))
        yield part, factor[:, part].mT @ factor


def spectrum(factor: Tensor) -> Tensor:
    """Eigenvalues of the kernel that can differ from 0, largest first ``[min(feature, sample)]``."""
    return _eigen(factor)[0]


def effective_rank(factor: Tensor) -> float:
    r"""How many directions share the kernel: the participation ratio :math:`(\sum\lambda)^2 / \sum\lambda^2`.

    k equal eigenvalues give k. Noise has directions of its own: of n_eff independent draws it cannot exceed n_eff.

    >>> effective_rank(torch.eye(3))
    3.0
    """
    small = factor if factor.shape[0] <= factor.shape[1] else factor.mT
    total, squares = float(factor.square().sum()), float((small @ small.mT).square().sum())
    return total**2 / squares if squares else math.nan


def compressed(factor: Tensor, rank: int) -> Tensor:
    """The best factor of lower rank: the kernel's largest eigenvalues, the rest of its spectrum left out.

    Args:
        factor: ``[feature, sample]``.
        rank: At most so many features.

    Returns:
        ``[rank, sample]``, features by falling eigenvalue, the entry of largest size of each positive.
    """
    rank = min(rank, *factor.shape)
    values, vectors = _eigen(factor)
    leading = vectors[:, :rank].mT
    few = leading @ factor if factor.shape[0] <= factor.shape[1] else values[:rank, None].sqrt() * leading
    largest = few.gather(1, few.abs().argmax(1, keepdim=True))
    return torch.where(largest < 0, -few, few)


def _eigen(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Of the smaller of ``F Fᵀ`` and ``Fᵀ F``, largest first: a decomposition of F itself costs ten times as much."""
    small = factor if factor.shape[0] <= factor.shape[1] else factor.mT
    if not bool(small.isfinite().all()):
        size = len(small)
        return small.new_full((size,), math.nan), small.new_full((size, size), math.nan)
    values, vectors = torch.linalg.eigh(small @ small.mT)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def neighbours(factor: Tensor, count: int, *, block: int | None = None) -> Tensor:
    """The samples of largest correlation with each.

    Args:
        factor: ``[feature, sample]``, of covariances or of correlations.
        count: How many.
        block: See :func:`row_blocks`.

    Returns:
        Indices ``[sample, count]``, nearest first; never the sample itself.

    >>> neighbours(torch.tensor([[1.0, 1.0, 0.0, 0.1], [0.0, 0.1, 1.0, 1.0]]), 1)[:, 0]
    tensor([1, 0, 3, 2])
    """
    unit = normalized(factor)
    count = min(count, unit.shape[1] - 1)
    found = []
    for part, rows in row_blocks(unit, block=block):
        own = torch.arange(part.start, part.stop, device=rows.device)
        rows[torch.arange(len(own), device=rows.device), own] = -math.inf
        found.append(rows.topk(count, dim=1).indices)
    return torch.cat(found)


def purity(nearest: Tensor, labels: Tensor) -> float:
    """Mean share of a sample's neighbours that bear its label.

    Args:
        nearest: ``[sample, count]``, as :func:`neighbours` gives them.
        labels: ``[sample]``.
    """
    return float((labels[nearest] == labels[:, None]).double().mean()) if nearest.numel() else math.nan
