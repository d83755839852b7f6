r"""The local learning coefficient (arXiv:2308.12108, eq. 14).

.. math:: \hat\lambda(w^*) = n\beta \,\big( E[L_n(w)] - L_n(w^*) \big)

Each draw contributes the difference of losses at ``w_t`` and at ``w*`` on the same minibatch. With a component that is
not the whole network this is the weight-refined LLC, on other data the data-refined one (arXiv:2410.02984); both can
be negative, and are reported as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_slt.diagnostics import autocorrelation_time, ess_bulk
from lightning_slt.estimators.base import Accumulator, Estimator, Run
from lightning_slt.health import Thresholds, judge, trace_values
from lightning_slt.statistics import Traces, statistics_device
from lightning_slt.types import Draw, Estimate, Health

MOTION = (
    "distance", "gradient_norm", "localization_norm", "noise_norm", "drift_to_noise", "acceptance", "heating"
)  # fmt: skip
"""What is kept of :class:`lightning_slt.types.Motion`."""


@dataclass(frozen=True, kw_only=True)
class LLC(Estimator):
    r"""Estimates λ̂ with its error between chains.

    Args:
        name: Key of the result and part of the log tags.
        traces: Keep whole traces ``[chain, draw]`` in the estimate: ``loss`` above the anchor, in nats.
        diagnostics: Send all of ``health.values`` to the loggers, as ``<name>/<component>/llc/health/<value>``.
        control: Run the chains once more at nβ = 0, held by the localization alone, and put the λ̂ that they give
            at the run's nβ into ``health.values`` as ``control`` and ``control_stderr``. Where it is near λ̂ the
            localization has decided the value, and the loss has hardly shaped the posterior. **Doubles the cost.**
        thresholds: Of the health checks.

    >>> LLC().name
    'llc'
    """

    name: str = "llc"
    traces: bool = False
    diagnostics: bool = False
    control: bool = False
    thresholds: Thresholds = field(default_factory=Thresholds)

    def start(self, run: Run) -> Accumulator:
        """An accumulator for one run of chains."""
        return _LLCAccumulator(self, run)

    def controlled(self, estimate: Estimate, control: Estimate) -> Estimate:
        """The control run's λ̂ and its error among the values of the health."""
        values = {**estimate.health.values, "control": control.mean, "control_stderr": control.stderr}
        return replace(estimate, health=replace(estimate.health, values=values))


class _LLCAccumulator(Accumulator):
    def __init__(self, estimator: LLC, run: Run) -> None:
        self.estimator, self.run = estimator, run
        device = statistics_device(run.device)
        self.rise, self.anchor, self.steps = (Traces(run.num_chains, run.num_draws, device=device) for _ in range(3))
        self.motion = {name: Traces(run.num_chains, run.num_draws, device=device) for name in MOTION}

    @property
    def states(self) -> Sequence[Metric]:
        return self.rise, self.anchor, self.steps, *self.motion.values()

    def update(self, draw: Draw) -> None:
        self.rise.update(draw.chains, draw.index, draw.loss.double() - draw.anchor_loss.double())
        self.anchor.update(draw.chains, draw.index, draw.anchor_loss)
        self.steps.update(draw.chains, draw.index, torch.full_like(draw.loss, draw.step))
        for name, trace in self.motion.items():
            values = getattr(draw.motion, name, None)
            if values is not None:  # never exactly zero, which marks what was not measured
                values = values.double()
                trace.update(draw.chains, draw.index, torch.where(values == 0, 1e-300, values))

    def compute(self) -> Estimate:
        rise, steps = self.rise.values.cpu(), self.steps.values.cpu()
        dead = _dead_chains(rise, steps)
        alive = torch.tensor([chain not in dead for chain in range(len(rise))])
        per_chain = torch.where(alive, self.run.nbeta * rise.mean(1), torch.nan)
        live = rise[alive]
        mean, stderr = _mean_and_stderr(self.run.nbeta * live, shared=self.run.share_batches)
        values = self._values(live, alive, len(dead))
        return Estimate(
            mean=mean,
            stderr=stderr,
            per_chain=per_chain,
            health=_within_error(judge(values, dead, self.estimator.thresholds), mean, stderr),
            traces={"loss": rise.clone()} if self.estimator.traces else {},
            diagnostics=self.estimator.diagnostics,
        )

    def _values(self, live: Tensor, alive: Tensor, num_dead: int) -> dict[str, float]:
        run = self.run
        enough = len(live) > 0 and live.shape[1] >= 4
        measured = {name: trace.values.cpu()[alive] for name, trace in self.motion.items()}
        moves = {name: _mean_measured(values) for name, values in measured.items() if name != "heating"}
        distance = measured["distance"]
        reach = math.sqrt(run.dimension / run.localization) if run.localization else math.inf
        return {
            **trace_values(live),
            "finite": float(num_dead),
            **{name: value for name, value in moves.items() if not math.isnan(value)},
            **_heating(measured["heating"], run.nbeta * live),
            "prior_bound": _mean_measured(distance[:, distance.shape[1] // 2 :]) / reach,
            **({"step_size": run.stability, "steps": run.steps} if math.isfinite(run.stability) else {}),
            **({"curvature": run.curvature} if math.isfinite(run.curvature) else {}),
            "resolution": run.localization / run.nbeta if run.nbeta else math.inf,
            "ess_bulk": float(ess_bulk(live)) if enough else math.nan,
            "autocorrelation_time": float(autocorrelation_time(live)) if enough else math.nan,
            "anchor_loss": float(self.anchor.values.cpu()[alive].mean()) if len(live) else math.nan,
        }


def _heating(measured: Tensor, values: Tensor) -> dict[str, float]:
    r"""Share of λ̂ that length of step and minibatch noise have added, ``E[e]/2λ̂``, and its standard error.

    Args:
        measured: e ``[chain, draw]``, zero where it was not measured.
        values: nβ times the rise of the loss ``[chain, draw]``.
    """
    seen = measured != 0
    if not bool(seen.any()) or not float(values.mean()) > 0:
        return {}
    shares = measured.sum(1) / seen.sum(1) / (2 * values.mean())
    error = float(shares.std()) / math.sqrt(len(shares)) if len(shares) > 1 else math.nan
    return {"heating": float(shares.mean()), "heating_stderr": error}


def _within_error(health: Health, mean: float, stderr: float) -> Health:
    """Heating that two standard errors cover is no failure: near zero it is a large share of next to nothing."""
    covered = health.values.get("heating", math.inf) * abs(mean) < 2 * stderr
    if "heating" not in health.failed or not covered:
        return health
    failed = tuple(name for name in health.failed if name != "heating")
    return replace(health, ok=not failed, failed=failed, warnings=(*health.warnings, "heating"))


def _dead_chains(rise: Tensor, steps: Tensor) -> dict[int, int]:
    """Chains that were ever not finite, with the step of the first such draw."""
    bad = ~torch.isfinite(rise)
    return {int(c): int(steps[c, int(bad[c].int().argmax())]) for c in bad.any(1).nonzero()[:, 0]}


def _mean_measured(values: Tensor) -> float:
    """Mean over the draws at which a motion was measured; the rest are zeros."""
    seen = values[values != 0]
    return float(seen.mean()) if len(seen) else math.nan


def _mean_and_stderr(traces: Tensor, *, shared: bool) -> tuple[float, float]:
    r"""Mean over live chains and its standard error.

    Independent chains: ``s_c / √C``. Chains that share minibatches also share noise, which their spread cannot show:
    with ``V`` the variance of a chain mean and ``K`` the covariance of two of them the error is ``(V − K)/C + K``,
    where the spread estimates ``V − K`` and the long-run variance of the average over chains shows ``K``.
    """
    chains = len(traces)
    if chains == 0:
        return math.nan, math.nan
    means = traces.mean(1)
    if chains == 1:
        return float(means[0]), math.nan
    variance = float(means.var()) / chains
    if shared:
        variance += max(0.0, _long_run(traces.mean(0)) - _mean_long_run(traces) / chains) * chains / (chains - 1)
    return float(means.mean()), math.sqrt(variance)


def _long_run(trace: Tensor) -> float:
    """Variance of the mean of one autocorrelated trace ``[draw]``."""
    tau = float(autocorrelation_time(trace[None]))
    variance = float(trace.var())
    return variance * (tau if math.isfinite(tau) else 1.0) / len(trace)


def _mean_long_run(traces: Tensor) -> float:
    return sum(_long_run(trace) for trace in traces) / len(traces)
