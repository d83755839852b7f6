r"""Whether a number can be relied on: named checks of a loss trace, each with thresholds that the user can change.

A good trace rises above the loss at the anchor, levels off early, has no spikes, and the chains agree. A check that
only calls for a look becomes a warning; one that makes the number unreliable fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_slt.diagnostics import rhat
from lightning_slt.types import Health, student_t_cdf

Bounds = tuple[float | None, float | None]

DIVERGES = 4.0
"""Stability number from which on a step diverges, whatever the sampler; see ``Sampler.stability``."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    r"""Where each check warns and where it fails, as ``(warning, failure)``; None switches a level off.

    Args:
        above_anchor: Mean rise of the last half over its between-chain standard error; too small is bad.
        drift: Change within the last half, in standard errors (converted from Student's t to normal ones); too large
            is bad. A change below 1 % of the mean never counts.
        rhat: Rank-normalized split R̂; too large is bad.
        spikes: Largest jump between draws over the mean size of jumps, those left out in which a chain stood still; too
            large is bad. Exact independent draws reach 5 for a large LLC, 10 for one of ½ and 23 at a normal crossing.
        finite: Number of chains that became infinite or NaN.
        snr: Rise over the jitter of the chain average; too small is bad.
        drift_to_noise: Norm of a step's drift over its noise; above 1 the gradient drives the chain.
        below_anchor: Share of draws below the loss at the anchor; a large one says that the anchor is no minimum.
        prior_bound: ``‖w − w*‖ / √(d/γ)``. On a quadratic it is exactly ``√(1 − 2λ̂/d)``: below 1, and near 1 wherever
            most directions are flat, as in every large network. Above 1 the loss falls away from the anchor.
        step_size: ``ε (nβ λ_max + γ)`` where measured; SGLD is unstable at 4 and visibly biased at 1.
        steps: Share of the steps that the curvature of this anchor asks for, where a cap on them was met.
        heating: Share of the LLC that the length of the steps and the noise of the minibatches have put there, see
            :meth:`lightning_slt.samplers.base.Sampler.heating`: exact on a quadratic; a failure says 15 % too high.
        acceptance: Of a Metropolis correction; too small is bad. It falls with the number of stiff directions at the
            same error of the value, so that it warns only: ``heating`` is in units of the value.
        n_eff: Of covariances: how many independent draws they are worth. Below 200 single entries are mostly noise;
            means over groups are stable far earlier.
        between_chains: Of covariances: share of the sum of squares that lies between chains.
        reliability: Of covariances: how much of the variance of correlations would come out again, from halves of the
            chains. Below ½ the larger part is noise.
    """

    above_anchor: Bounds = (None, 2.0)
    drift: Bounds = (2.0, 4.0)
    rhat: Bounds = (1.1, 1.3)
    spikes: Bounds = (25.0, 40.0)
    finite: Bounds = (None, 0.0)
    snr: Bounds = (3.0, None)
    drift_to_noise: Bounds = (1.0, None)
    below_anchor: Bounds = (0.05, 0.5)
    prior_bound: Bounds = (1.1, None)
    step_size: Bounds = (0.5, 1.5)
    steps: Bounds = (1.0, 0.1)
    heating: Bounds = (0.1, 0.13)
    acceptance: Bounds = (0.8, None)
    n_eff: Bounds = (200.0, None)
    between_chains: Bounds = (0.1, None)
    reliability: Bounds = (0.5, None)

    def __post_init__(self) -> None:
        """Refuse what is no pair of bounds."""
        for check in fields(self):
            bounds = getattr(self, check.name)
            pair = isinstance(bounds, tuple | list) and len(bounds) == 2
            if not pair or not all(b is None or (isinstance(b, int | float) and not math.isnan(b)) for b in bounds):
                raise ValueError(
                    f"Thresholds.{check.name} must be a pair (warning, failure) of numbers or None, got {bounds!r}; "
                    f"write e.g. Thresholds({check.name}=(None, 2.0))"
                )


SMALL_IS_BAD = frozenset({"above_anchor", "snr", "steps", "acceptance", "n_eff", "reliability"})


def judge(values: Mapping[str, float], dead_chains: Mapping[int, int], thresholds: Thresholds) -> Health:
    """Hold measured values against thresholds; a value that could not be measured (NaN) is a warning.

    Args:
        values: What was measured, by name of the check; names that are no checks are only passed on.
        dead_chains: Chains left out, with the step at which each was first seen not finite.
        thresholds: Where each check warns and fails.

    Returns:
        The verdict.
    """
    failed, warned = [], []
    for check in fields(thresholds):
        warning, failure = getattr(thresholds, check.name)
        if check.name not in values or (warning is None and failure is None):
            continue
        value = values[check.name]
        sign = -1 if check.name in SMALL_IS_BAD else 1
        if failure is not None and sign * value > sign * failure:
            failed.append(check.name)
        elif (warning is not None and sign * value > sign * warning) or math.isnan(value):
            warned.append(check.name)
    return Health(
        ok=not failed, failed=tuple(failed), warnings=tuple(warned), values=dict(values), dead_chains=dict(dead_chains)
    )


def trace_values(rise: Tensor) -> dict[str, float]:
    """Measure what a trace alone can tell.

    Args:
        rise: Loss above the anchor of each live chain ``[chain, draw]``, in nats.

    Returns:
        Values of ``above_anchor``, ``drift``, ``rhat``, ``spikes``, ``snr`` and ``below_anchor``.
    """
    chains, draws = rise.shape
    if chains == 0:
        return dict.fromkeys(("above_anchor", "drift", "rhat", "spikes", "snr", "below_anchor"), math.nan)
    average = rise.mean(0)
    jitter = float(average.std()) if draws > 1 else math.nan
    return {
        "above_anchor": _ratio(*_mean_and_error(rise[:, draws // 2 :].mean(1))),
        "drift": _drift(rise),
        "rhat": float(rhat(rise)) if draws >= 4 else math.nan,
        "spikes": _spikes(rise),
        "snr": _ratio(float(average.mean()), jitter),
        "below_anchor": float((rise < 0).double().mean()),
    }


def _mean_and_error(values: Tensor) -> tuple[float, float]:
    count = len(values)
    return float(values.mean()), float(values.std()) / math.sqrt(count) if count > 1 else math.nan


def _ratio(value: float, scale: float) -> float:
    if scale == 0:
        return math.copysign(math.inf, value) if value else math.nan
    return value / scale


def _drift(rise: Tensor) -> float:
    """Last quarter against the one before, per chain, as the normal score of equal probability."""
    quarter = rise.shape[1] // 4
    if quarter == 0 or len(rise) < 2:
        return math.nan
    change = rise[:, -quarter:].mean(1) - rise[:, -2 * quarter : -quarter].mean(1)
    mean, error = _mean_and_error(change)
    if abs(mean) <= 0.01 * abs(float(rise[:, -2 * quarter :].mean())):
        return 0.0
    tail = 1 - student_t_cdf(abs(_ratio(mean, error)), degrees=len(rise) - 1) if error else 0.0
    tail = max(tail, 1e-15)
    return float(-math.sqrt(2) * torch.erfinv(torch.tensor(2 * tail - 1, dtype=torch.float64)))


def _spikes(rise: Tensor) -> float:
    if rise.shape[1] < 3:
        return math.nan
    jumps = rise.diff(dim=1).abs()
    moves = jumps[jumps != 0]  # a chain that rejects most proposals jumps no farther when it does move
    return float(moves.max() / moves.mean()) if len(moves) else math.nan
