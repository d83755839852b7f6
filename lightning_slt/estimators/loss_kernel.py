r"""The loss kernel (arXiv:2509.26537): which samples' losses move together under the local posterior.

.. math:: K_{ij} = \mathrm{Cov}_w[\ell_i(w), \ell_j(w)], \qquad R_{ij} = \frac{K_{ij}}{\sqrt{K_{ii} K_{jj}}}

in nats², over the draws of the chains, on the same samples in eval mode at every draw. Centred within chains unless
asked otherwise; chains are never averaged first, which would shrink the signal by their number and keep what they
share. The result holds the losses, not the matrix: that of 10 000 samples exists only where someone asks for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_slt.covariances import (
    between_share,
    covariances,
    effective_draws,
    live_chains,
    silent,
    split_half,
)
from lightning_slt.estimators.base import Accumulator, Estimator, Run
from lightning_slt.gram import compressed, effective_rank, neighbours, normalized, purity, some_of, trace_factor
from lightning_slt.health import Thresholds, judge, trace_values
from lightning_slt.probes import Probe, ProbeAtAnchor, as_probe
from lightning_slt.results import Result
from lightning_slt.statistics import ProbeTraces, Traces, statistics_device
from lightning_slt.types import Draw

CHECKS = ("drift", "rhat", "spikes")
"""Checks of the mean loss's trace that matter to a covariance. Whether the anchor is a minimum does not."""

NEAREST = 5
"""Neighbours that purity asks."""

HALVES = 512
"""Samples among which the reliability is measured, chosen by chance: 130 000 pairs say enough."""

ROWS = 512
"""Rows of the standard errors that are made together: of 10 000 samples and 8 chains in 900 MB beside the matrix."""

NUMBERS = (
    "n_eff", "noise", "between_chains", "reliability", "total_variance", "effective_rank", "mean_correlation", "purity",
    "silent",
)  # fmt: skip
"""What is logged of a kernel, beside ``ok``."""

WHOLE = 256
"""Samples up to which the records hold the matrix."""


@dataclass(frozen=True, kw_only=True, repr=False)
class KernelEstimate(Result):
    r"""K and R of one probe.

    Attributes:
        n_eff: Independent draws that an entry rests on, CT/τ with τ of the mean loss.
        noise: Standard deviation of an entry of R whose true value is small: ``1/√n_eff``.
        between_chains: Share of the sum of squares that lies between chains.
        reliability: How much of the variance of R's entries would come out again, from two halves of the chains.
        total_variance: ``trace K`` in nats²; on the training set the functional variance at the run's nβ.
        effective_rank: Of R: how many directions share it. Noise has many.
        mean_correlation: Mean entry of R off the diagonal.
        purity: Share of the five nearest neighbours that bear a sample's label; NaN without labels.
        silent: How many samples' losses never move; R := 0 there.
        traces: Losses of the live chains less the anchor's ``[chain, draw, sample]``, in nats.
        anchor: Losses at the anchor ``[sample]``, in nats.
        labels: ``[sample]``, or None.
        indices: Which samples of the user's data these are ``[sample]``.
        sprites: A small picture of each ``[sample, channel, height, width]``, or None.
        pooled: Whether centred on the mean of all chains.
        keep_traces: Whether the records hold the traces.
        rank: Features of the factor in the records.
    """

    n_eff: float
    noise: float
    between_chains: float
    reliability: float
    total_variance: float
    effective_rank: float
    mean_correlation: float
    purity: float
    silent: int
    traces: Tensor = field(repr=False)
    anchor: Tensor = field(repr=False)
    labels: Tensor | None = field(default=None, repr=False)
    indices: Tensor = field(repr=False)
    sprites: Tensor | None = field(default=None, repr=False)
    pooled: bool = False
    keep_traces: bool = False
    rank: int = 32

    @cached_property
    def factor(self) -> Tensor:
        """F ``[feature, sample]`` with ``K = FᵀF``, for :mod:`lightning_slt.analysis.kernels`."""
        return trace_factor(self.traces, pooled=self.pooled)

    @property
    def variances(self) -> Tensor:
        """The diagonal of K ``[sample]``, in nats²."""
        return self.factor.square().sum(0)

    @property
    def covariance(self) -> Tensor:
        """K ``[sample, sample]``, in nats²; formed when asked for."""
        return self.factor.mT @ self.factor

    @property
    def correlation(self) -> Tensor:
        """R ``[sample, sample]``; formed when asked for."""
        unit = normalized(self.factor)
        return unit.mT @ unit

    @property
    def stderr(self) -> Tensor:
        """Standard error of K ``[sample, sample]`` from between chains; NaN for one chain."""
        return self._errors("stderr")

    @property
    def correlation_stderr(self) -> Tensor:
        """Standard error of R ``[sample, sample]``, by leaving out one chain after another."""
        return self._errors("correlation_stderr")

    def _errors(self, which: str) -> Tensor:
        """One matrix of :class:`lightning_slt.covariances.Covariances`, not all four, and no second copy of it."""
        samples = self.traces.shape[2]
        found = torch.full((samples, samples), math.nan, dtype=torch.float64)
        if len(self.traces) and self.traces.shape[1] > 1:
            for start in range(0, samples, ROWS):
                rows = slice(start, start + ROWS)
                of_rows = covariances(self.traces[:, :, rows], self.traces, pooled=self.pooled)
                found[rows] = getattr(of_rows, which)
        return found

    def scalars(self) -> dict[str, float]:
        """Numbers for the loggers."""
        return {name: float(getattr(self, name)) for name in NUMBERS}

    def arrays(self) -> dict[str, Tensor]:
        """For the records: the best factor of R of the given rank and the variances; whole where there are few samples.

        R is nearly ``factorᵀ factor``, K that times the roots of ``variances`` on both sides. The factor is in half
        precision: its entries lie between −1 and 1, which those of K need not.
        """
        factor = compressed(normalized(self.factor), self.rank)
        found = {
            "factor": factor.half(),
            "variances": self.variances.float(),
            "anchor": self.anchor.float(),
            "indices": self.indices.int(),
            **({} if self.labels is None else {"labels": self.labels}),
        }
        if self.traces.shape[2] <= WHOLE:
            found |= {"covariance": self.covariance.float(), "correlation": self.correlation.float()}
        return found | ({"traces": self.traces.float()} if self.keep_traces else {})

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Of what :meth:`arrays` gives."""
        each = dict.fromkeys(("variances", "anchor", "indices", "labels"), ("sample",))
        pairs = dict.fromkeys(("covariance", "correlation"), ("sample", "other"))
        return {"factor": ("feature", "sample"), **each, **pairs, "traces": ("chain", "draw", "sample")}

    def __repr__(self) -> str:
        """The line of ``str``."""
        return f"KernelEstimate({self})"

    def __str__(self) -> str:
        """Size, noise and health in one line."""
        samples = self.traces.shape[2]
        return (
            f"loss kernel of {samples} samples: {self.n_eff:.0f} independent draws, so entries of R "
            f"± {self.noise:.2g}; reliability {self.reliability:.2f}; {self.health}"
        )


@dataclass(frozen=True)
class LossKernel(Estimator):
    """Estimates K and R of a probe's samples from their losses at every draw.

    Costs one forward pass over the probe per draw, where a step of the chains costs a forward and a backward pass over
    a minibatch: with thinning × batch size equal to the probe's size it costs about a third more than the chains alone.

    Args:
        probe: A Probe, or anything that a Probe takes. Losses per token are added up.
        name: Key of the result and part of the log tags.
        pooled: Centre on the mean of all chains, as the paper does, rather than on each chain's own.
        traces: Keep the losses of all draws in the records; the result holds them anyway.
        rank: Features of the factor in the records.
        sprites: A small picture of every sample of the data ``[sample, channel, height, width]`` in 0 to 1, for the
            projector.
        thresholds: Of the health checks.

    Raises:
        ValueError: If the rank is not positive, or sprites are no pictures with values from 0 to 1.

    >>> LossKernel(Probe([0, 1, 2], name="three")).probes[0].name
    'three'
    """

    probe: Any
    _: KW_ONLY
    name: str = "loss_kernel"
    pooled: bool = False
    traces: bool = False
    rank: int = 32
    sprites: Tensor | None = field(default=None, repr=False)
    thresholds: Thresholds = field(default_factory=Thresholds)
    fields = NUMBERS

    def __post_init__(self) -> None:
        """Take bare data for a probe, and refuse what cannot be drawn or kept."""
        object.__setattr__(self, "probe", as_probe(self.probe))
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"LossKernel.rank must be a whole number of at least 1, got {self.rank!r}")
        if self.sprites is not None and (self.sprites.ndim != 4 or self.sprites.shape[1] not in (1, 3)):
            raise ValueError(
                "LossKernel.sprites must be pictures [sample, 1 or 3, height, width], one for each sample of the "
                f"probe's data, got shape {tuple(self.sprites.shape)}"
            )
        if self.sprites is not None and not bool(((self.sprites >= 0) & (self.sprites <= 1)).all()):
            raise ValueError(
                f"LossKernel.sprites must lie between 0 and 1, got values between {float(self.sprites.min()):g} and "
                f"{float(self.sprites.max()):g}; write sprites=pictures / 255 for bytes"
            )

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The samples whose kernel it is."""
        return (self.probe,)

    def start(self, run: Run) -> Accumulator:
        """An accumulator for one run of chains.

        Raises:
            ValueError: If the probe has a single sample, or there are not as many sprites as samples.
        """
        known = run.probes[self.probe.name]
        if len(known.anchor) < 2:
            raise ValueError(f"a loss kernel needs two samples at least; probe {self.probe.name!r} has one")
        if self.sprites is not None and len(self.sprites) <= int(known.indices.max()):
            raise ValueError(
                f"LossKernel has {len(self.sprites)} sprites, and sample {int(known.indices.max())} of probe "
                f"{self.probe.name!r} needs one; give a picture for every sample of its data"
            )
        return _KernelAccumulator(self, run, known)


class _KernelAccumulator(Accumulator):
    def __init__(self, estimator: LossKernel, run: Run, known: ProbeAtAnchor) -> None:
        self.estimator, self.run, self.known = estimator, run, known
        device = statistics_device(run.device)
        self.anchor = per_sample(known.anchor.to(device))
        self.steps = Traces(run.num_chains, run.num_draws, device=device)
        self.losses = ProbeTraces(run.num_chains, run.num_draws, anchor=self.anchor, device=device)

    @property
    def states(self) -> Sequence[Metric]:
        return self.steps, self.losses

    def update(self, draw: Draw) -> None:
        losses = draw.probes[self.estimator.probe.name].to(self.anchor.device)
        self.steps.update(draw.chains, draw.index, torch.full_like(draw.loss, draw.step))
        self.losses.update(draw.chains, draw.index, per_sample(losses, chains=True))

    def compute(self) -> KernelEstimate:
        e, known = self.estimator, self.known
        whole = self.losses.compute().cpu()
        alive, dead = live_chains([whole], self.steps.values.cpu())
        traces = whole[alive]
        unit = normalized(factor := trace_factor(traces, pooled=e.pooled))
        values = self._values(traces, len(dead))
        labels = None if known.labels is None else known.labels.cpu()
        return KernelEstimate(
            n_eff=values["n_eff"],
            noise=1 / math.sqrt(values["n_eff"]),
            between_chains=values["between_chains"],
            reliability=values["reliability"],
            total_variance=float(factor.square().sum()),
            effective_rank=effective_rank(unit),
            mean_correlation=_mean_off_diagonal(unit),
            purity=_purity(unit, labels),
            silent=int(silent(traces).sum()) if len(traces) else 0,
            traces=traces,
            anchor=self.anchor.cpu(),
            labels=labels,
            indices=known.indices.cpu(),
            sprites=None if e.sprites is None else e.sprites[known.indices.cpu()],
            pooled=e.pooled,
            keep_traces=e.traces,
            rank=e.rank,
            health=judge(values, dead, e.thresholds),
        )

    def _values(self, traces: Tensor, num_dead: int) -> dict[str, float]:
        """What the checks look at: the mean loss of the probe, and what a covariance needs beside it."""
        run, alive = self.run, len(traces) > 0
        of_mean = trace_values(traces.double().mean(2))
        some = traces[:, :, some_of(traces.shape[2], HALVES)]
        return {
            **{name: of_mean[name] for name in CHECKS},
            "finite": float(num_dead),
            **({"step_size": run.stability, "steps": run.steps} if math.isfinite(run.stability) else {}),
            "resolution": run.localization / run.nbeta if run.nbeta else math.inf,
            "n_eff": effective_draws(traces) if alive else math.nan,
            "between_chains": between_share(traces) if alive else math.nan,
            "reliability": split_half(some, some, pooled=self.estimator.pooled),
        }


def per_sample(losses: Tensor, *, chains: bool = False) -> Tensor:
    """One loss a sample, those of its tokens added up: ``[sample]``, or ``[chain, sample]`` with ``chains``."""
    return losses.double().sum(-1) if losses.ndim == (3 if chains else 2) else losses


def _purity(unit: Tensor, labels: Tensor | None) -> float:
    if labels is None or not bool(unit.isfinite().all()):
        return math.nan
    return purity(neighbours(unit, NEAREST), labels)


def _mean_off_diagonal(unit: Tensor) -> float:
    """``(Σ_ij R_ij − Σ_i R_ii) / N(N − 1)``, from the factor alone."""
    samples = unit.shape[1]
    whole, diagonal = unit.sum(1).square().sum(), unit.square().sum()
    return float(whole - diagonal) / (samples * (samples - 1))
