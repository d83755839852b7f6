r"""Covariances of losses over draws, with errors from between chains: what loss kernels and influences are made of.

.. math:: K_{ij} = \frac{1}{C} \sum_c K^c_{ij}, \qquad
          K^c_{ij} = \frac{1}{T - 1} \sum_t (a^c_{ti} - \bar a^c_i)(b^c_{tj} - \bar b^c_j)

Centred within chains, so that chains that sit at different heights add nothing: C(T − 1) degrees of freedom. Pooled
covariances, as in arXiv:2509.26544 and 2509.26537, are centred on the mean of all chains and count such offsets.
Everything is summed in float64, in blocks of rows that bound the memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.diagnostics import autocorrelation_time

NUMBERS = 2**24
"""Numbers that a block of rows may hold: covariances of every chain."""


class Covariances(NamedTuple):
    """Of two sets of traces, each ``[first, second]``.

    Attributes:
        covariance: In nats².
        correlation: The same over the standard deviations; 0 where one of them is 0.
        stderr: Standard error of the covariance from the spread between chains; NaN for a single chain.
        correlation_stderr: Of the correlation, by leaving out one chain after another.
    """

    covariance: Tensor
    correlation: Tensor
    stderr: Tensor
    correlation_stderr: Tensor


def covariances(first: Tensor, second: Tensor, *, pooled: bool = False, block: int | None = None) -> Covariances:
    """Covariances and correlations between all traces of two sets.

    Args:
        first: Traces ``[chain, draw, first]``, all finite.
        second: Traces of the same chains and draws ``[chain, draw, second]``.
        pooled: Centre on the mean of all chains rather than on each chain's own.
        block: Rows that are computed together; None fits them to the memory. Changes no number.

    Returns:
        See :class:`Covariances`.

    Raises:
        ValueError: If the traces do not belong together, or are too short to have a variance.

    >>> a = torch.tensor([[[0.0], [1.0]], [[10.0], [13.0]]])
    >>> found = covariances(a, -2 * a)
    >>> float(found.covariance), round(float(found.correlation), 9), float(found.stderr)  # variances ½ and 4½
    (-5.0, -1.0, 4.0)
    """
    parts = []
    for of_chains, variances in _blocks(first, second, pooled=pooled, block=block):
        correlation, error = _correlations(of_chains, *variances)
        parts.append((of_chains.mean(0), correlation, _standard_error(of_chains), error))
    return Covariances(*(torch.cat(blocks) for blocks in zip(*parts, strict=True)))


def correlations(first: Tensor, second: Tensor, *, pooled: bool = False, block: int | None = None) -> Tensor:
    """The correlations of :func:`covariances` to the same bits, without errors, which cost more than all the rest.

    Args:
        first: As for :func:`covariances`.
        second: The same.
        pooled: The same.
        block: The same.

    Returns:
        ``[first, second]``.

    >>> a = torch.tensor([[[0.0], [1.0]], [[10.0], [13.0]]])
    >>> round(float(correlations(a, -2 * a)), 9)
    -1.0
    """
    parts = _blocks(first, second, pooled=pooled, block=block)
    return torch.cat([_correlation(of_chains, *variances) for of_chains, variances in parts])


def _blocks(
    first: Tensor, second: Tensor, *, pooled: bool, block: int | None
) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
    """Each chain's covariances ``[chain, block, second]`` by blocks of rows, and its variances of both sides."""
    chains, draws = _check(first, second, pooled=pooled)
    a = _centred(first, pooled=pooled)
    b = a if second is first else _centred(second, pooled=pooled)
    freedom = (chains * draws - 1) / chains if pooled else draws - 1
    variances = a.square().sum(1) / freedom, b.square().sum(1) / freedom  # [chain, first] and [chain, second]
    rows = block or max(1, NUMBERS // (chains * b.shape[2]))
    for start in range(0, a.shape[2], rows):
        part = slice(start, start + rows)
        yield a[:, :, part].mT @ b / freedom, (variances[0][:, part], variances[1])


def _check(first: Tensor, second: Tensor, *, pooled: bool) -> tuple[int, int]:
    if first.ndim != 3 or second.ndim != 3 or first.shape[:2] != second.shape[:2]:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"traces must be [chain, draw, sample] of the same chains and draws, got shapes {shapes}")
    chains, draws = first.shape[:2]
    if chains < 1 or draws * (chains if pooled else 1) < 2:
        raise ValueError(
            f"covariances need one live chain and two draws at least, got {chains} chains of {draws} draws"
        )
    return chains, draws


def _centred(traces: Tensor, *, pooled: bool) -> Tensor:
    """Less their means; less a first value before that, so that a constant trace becomes exactly zero."""
    values = traces.double()
    values = values - (values[:1, :1] if pooled else values[:, :1])
    return values - values.mean((0, 1) if pooled else 1, keepdim=True)


def _correlations(of_chains: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r"""``R`` and its jackknife error ``√((C−1)/C Σ_c (R₋c − R̄)²)``."""
    correlation = _correlation(of_chains, first, second)
    chains = len(of_chains)
    if chains < 2:
        return correlation, torch.full_like(correlation, math.nan)
    rest = [[c for c in range(chains) if c != left_out] for left_out in range(chains)]
    others = [_correlation(of_chains[r], first[r], second[r]) for r in rest]
    spread = torch.stack(others).var(0, correction=0)
    return correlation, ((chains - 1) * spread).sqrt()


def _correlation(of_chains: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """``R_ij = Σ_c K_ij / √(Σ_c K_ii Σ_c K_jj)``."""
    return _ratio(of_chains.sum(0), first.sum(0), second.sum(0))


def _ratio(covariance: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """R := 0 where a variance is 0."""
    scale = first.sqrt()[:, None] * second.sqrt()
    return torch.where(scale > 0, covariance / scale, 0.0)


def _standard_error(of_chains: Tensor) -> Tensor:
    chains = len(of_chains)
    return of_chains.std(0) / math.sqrt(chains) if chains > 1 else torch.full_like(of_chains[0], math.nan)


def silent(traces: Tensor) -> Tensor:
    """Which traces ``[chain, draw, sample]`` never move within a chain ``[sample]``: constant losses, padded tokens."""
    return (traces == traces[:, :1]).all(1).all(0)


def live_chains(traces: Sequence[Tensor], steps: Tensor) -> tuple[Tensor, Mapping[int, int]]:
    """Chains whose every loss is finite, and the others with the step at which that was first seen not to be so.

    Args:
        traces: Each ``[chain, draw, …]``.
        steps: Sampler step of each draw ``[chain, draw]``.

    Returns:
        A mask ``[chain]``, and ``{chain: step}``.

    >>> losses = torch.tensor([[[1.0], [2.0]], [[1.0], [torch.inf]]])
    >>> live_chains([losses], torch.tensor([[5, 10], [5, 10]]))
    (tensor([ True, False]), {1: 10})
    """
    finite = torch.stack([t.isfinite().flatten(2).all(2) for t in traces]).all(0).cpu()
    dead = (~finite.all(1)).nonzero()[:, 0].tolist()
    return finite.all(1), {chain: int(steps[chain, int((~finite[chain]).int().argmax())]) for chain in dead}


def effective_draws(traces: Tensor) -> float:
    r"""How many independent draws a covariance rests on: ``n_eff = CT/τ``, τ that of the mean loss.

    Near a minimum the mean loss is a square, as the products are that a covariance averages, so that both forget at
    the same rate. The noise of a small correlation is ``1/√n_eff``.

    Args:
        traces: ``[chain, draw, sample]``.

    Returns:
        NaN where it cannot be told: below four draws, or where nothing moves.
    """
    chains, draws = traces.shape[:2]
    return chains * draws / autocorrelation_time(traces.double().mean(2))


def between_share(traces: Tensor) -> float:
    """Share of the sum of squares that lies between chains: of all chains' values around the mean of all.

    Well above ``τ/T`` it says that chains have not seen the same posterior; covariances within chains leave it out.

    Args:
        traces: ``[chain, draw, sample]``.

    Returns:
        Between 0 and 1; NaN where nothing moves.
    """
    values = _centred(traces, pooled=True)
    total = float(values.square().sum())
    return values.shape[1] * float(values.mean(1).square().sum()) / total if total else math.nan


def split_half(first: Tensor, second: Tensor, *, pooled: bool = False) -> float:
    """Reliability of the correlations of all chains: how alike they would come out in another such run.

    Pearson's r between the correlations of the first half of the chains and those of the second, stepped up to the
    whole number of chains by ``2r/(1 + r)`` (Spearman, Brown). Entries of a trace with itself are left out.

    Args:
        first: ``[chain, draw, first]``.
        second: ``[chain, draw, second]``; the same object as ``first`` for a kernel.
        pooled: As in :func:`covariances`.

    Returns:
        At most 1; NaN below two chains, or where it cannot be told.
    """
    half = len(first) // 2
    if half == 0 or first.shape[1] < 2:
        return math.nan
    parts = slice(half), slice(half, None)
    one, two = (correlations(first[part], second[part], pooled=pooled) for part in parts)
    if first is second:
        off = ~torch.eye(len(one), dtype=torch.bool, device=one.device)
        one, two = one[off], two[off]
    r = float(torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]) if one.numel() > 1 else math.nan
    return 2 * r / (1 + r) if r > -1 else math.nan
