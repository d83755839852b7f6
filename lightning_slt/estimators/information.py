r"""Watanabe's information criteria from the losses of the training samples at every draw.

.. math:: V = \sum_i \mathrm{Var}_w[\ell_i], \quad \nu = \frac{\beta}{2} V, \quad
          T = -\frac1n \sum_i \log E_w[e^{-\ell_i}], \quad \mathrm{WAIC} = T + \frac{\beta}{n} V, \quad
          \mathrm{WBIC} = n E_w[L_n]

with β = nβ/n: functional variance, singular fluctuation, Bayes training loss (Watanabe 2010; 2013). They are those of
the *local* posterior, at the run's nβ and γ. Losses must be negative log likelihoods in nats, as cross-entropy is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_slt.covariances import effective_draws, live_chains
from lightning_slt.estimators.base import Accumulator, Estimator, Run
from lightning_slt.gram import trace_factor
from lightning_slt.health import Thresholds, judge, trace_values
from lightning_slt.probes import Probe, as_probe
from lightning_slt.results import Result
from lightning_slt.statistics import ProbeTraces, Traces, statistics_device
from lightning_slt.types import Draw

CHECKS = ("drift", "rhat", "spikes")


@dataclass(frozen=True, kw_only=True, repr=False)
class InformationEstimate(Result):
    """Criteria of one probe, taken for a random part of the training set, or all of it.

    Attributes:
        functional_variance: V of all n training samples, in nats².
        singular_fluctuation: ``β V / 2``.
        training_loss: T per sample, in nats.
        waic: Per sample, in nats: an estimate of the Bayes generalization loss.
        waic_stderr: Its standard error from the spread between chains; NaN for one chain.
        wbic: ``n E[L]``, in nats, an estimate of the free energy; NaN unless nβ is n/log n within one percent.
    """

    functional_variance: float
    singular_fluctuation: float
    training_loss: float
    waic: float
    waic_stderr: float
    wbic: float


@dataclass(frozen=True)
class Information(Estimator):
    """Estimates functional variance, singular fluctuation, WAIC and WBIC. Costs a forward pass over the probe per draw.

    Args:
        probe: The training set, or a random part of it: ``Probe(train, num_samples=1000)``.
        name: Key of the result and part of the log tags.
        thresholds: Of the health checks.

    >>> Information([0, 1, 2]).name
    'information'
    """

    probe: Any
    _: KW_ONLY
    name: str = "information"
    thresholds: Thresholds = field(default_factory=Thresholds)
    fields = (
        "functional_variance", "singular_fluctuation", "training_loss", "waic", "waic_stderr", "wbic",
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Take bare data for a probe."""
        object.__setattr__(self, "probe", as_probe(self.probe, name="train"))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The training samples."""
        return (self.probe,)

    def start(self, run: Run) -> Accumulator:
        """An accumulator for one run of chains.

        Raises:
            ValueError: If losses come per token, of which no criterion is known.
        """
        if run.probes[self.probe.name].anchor.ndim != 1:
            raise ValueError("Information needs one loss a sample; a loss per token does not say what a sample is")
        return _InformationAccumulator(self, run)


class _InformationAccumulator(Accumulator):
    def __init__(self, estimator: Information, run: Run) -> None:
        self.estimator, self.run = estimator, run
        device = statistics_device(run.device)
        self.anchor = run.probes[estimator.probe.name].anchor.to(device)
        self.steps = Traces(run.num_chains, run.num_draws, device=device)
        self.losses = ProbeTraces(run.num_chains, run.num_draws, anchor=self.anchor, device=device)

    @property
    def states(self) -> Sequence[Metric]:
        return self.steps, self.losses

    def update(self, draw: Draw) -> None:
        losses = draw.probes[self.estimator.probe.name].to(self.anchor.device)
        self.steps.update(draw.chains, draw.index, torch.full_like(draw.loss, draw.step))
        self.losses.update(draw.chains, draw.index, losses)

    def compute(self) -> InformationEstimate:
        run, whole = self.run, self.losses.compute().cpu()
        alive, dead = live_chains([whole], self.steps.values.cpu())
        rise, n = whole[alive].double(), run.num_samples
        losses, beta = rise + self.anchor.cpu().double(), run.nbeta / n
        variance, training = _variance(rise), _training_loss(losses)
        of_mean = trace_values(rise.mean(2))
        values = {
            **{name: of_mean[name] for name in CHECKS},
            "finite": float(len(dead)),
            **({"step_size": run.stability, "steps": run.steps} if math.isfinite(run.stability) else {}),
            "n_eff": effective_draws(rise) if len(rise) else math.nan,
        }
        waics = torch.tensor([_training_loss(c[None]) + beta * _variance(c[None]) for c in losses])
        spread = float(waics.std()) / math.sqrt(len(waics)) if len(waics) > 1 else math.nan
        tempered = n > 1 and math.isclose(run.nbeta, n / math.log(n), rel_tol=0.01)
        return InformationEstimate(
            functional_variance=n * variance,
            singular_fluctuation=beta * n * variance / 2,
            training_loss=training,
            waic=training + beta * variance,
            waic_stderr=spread,
            wbic=n * float(losses.mean()) if tempered and len(losses) else math.nan,
            health=judge(values, dead, self.estimator.thresholds),
        )


def _variance(losses: Tensor) -> float:
    """``V/n``: mean over samples of the variance within chains."""
    return float(trace_factor(losses).square().sum(0).mean())


def _training_loss(losses: Tensor) -> float:
    """T of ``[chain, draw, sample]``; NaN without chains."""
    draws = losses.flatten(0, 1)
    return float(-(draws.neg().logsumexp(0) - math.log(len(draws))).mean()) if len(draws) else math.nan
