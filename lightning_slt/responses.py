r"""Averages over chains from which susceptibilities are made, and their errors by leaving out chain after chain.

.. math:: \chi_\text{restricted} = -\mathrm{Cov}_C[g, \Delta], \qquad
          \chi_\text{two chain} = -E_C[g \Delta] + E_C[g]\, E_\text{all}[\Delta]
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_slt.types import Health


@dataclass(frozen=True, kw_only=True)
class Averages:
    """Averages over the draws of each chain of one component.

    Attributes:
        g: ``E[g]`` ``[chain]``.
        delta: ``E[Δ] − Δ(w*)`` ``[chain, row]``.
        g_delta: ``E[g (Δ − Δ(w*))]`` ``[chain, row]``.
        covariance: ``Cov[g, Δ]`` within chains ``[chain, row]``.
        alive: ``[chain]``.
        padding: Rows that have no loss here ``[row]``.
        rows: Probe, sample and token of each row ``[row, 3]``.
        shared: Whether the chains share minibatches.
        health: Of ``g``.
        control: The same at nβ = 0.
        settings: For the plan to fill in.
    """

    g: Tensor
    delta: Tensor
    g_delta: Tensor
    covariance: Tensor
    alive: Tensor
    padding: Tensor
    rows: Tensor
    shared: bool
    health: Health
    control: Averages | None = None
    settings: Any = None


def response(part: Averages, whole: Averages | None, kept: Tensor) -> tuple[Tensor, Tensor]:
    """χ, and what it would be without each of the chains.

    Chain c of all weights has the minibatches of chain c of the component, so that both are left out together.

    Args:
        part: Of the component.
        whole: Of all weights, for the two-chain estimator; None for the restricted one.
        kept: Which rows to take ``[row]``.

    Returns:
        χ ``[row]`` in nats², and χ without each live chain in turn ``[chain, row]``; one row of NaN where that tells
        no error: below two chains, or where they share minibatches.
    """
    alive = part.alive if whole is None else part.alive & whole.alive
    live = alive.nonzero()[:, 0]
    of_live = [_chi(part, whole, live, kept)]
    without = [_chi(part, whole, live[live != left_out], kept) for left_out in live.tolist()]
    if len(live) < 2 or part.shared:
        without = [torch.full_like(of_live[0], math.nan)]
    return of_live[0], torch.stack(without)


def _chi(part: Averages, whole: Averages | None, chains: Tensor, kept: Tensor) -> Tensor:
    if whole is None:
        return -part.covariance[chains][:, kept].mean(0)
    mean_response = part.g[chains].mean() * whole.delta[chains][:, kept].mean(0)
    return -part.g_delta[chains][:, kept].mean(0) + mean_response


def jackknife_error(without: Tensor) -> Tensor:
    """The jackknife's standard error ``√((C−1)/C Σ_c (χ₋c − χ̄)²)`` over the first axis."""
    return ((len(without) - 1) * without.var(0, correction=0)).sqrt() if len(without) > 1 else without[0]
