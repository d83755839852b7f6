r"""Bayesian influence of training samples on queries (arXiv:2509.26544).

.. math:: \mathrm{BIF}(z_i, \ell_j) = \frac{\partial E[\ell_j]}{\partial \beta_i} = -\mathrm{Cov}_w[\ell_i, \ell_j]

with :math:`\beta_i` the weight of sample i in the potential. **Negative is helpful**: more weight on i lowers the loss
of query j. Both losses are measured on fixed samples, at the same draws. Where the posterior is narrow it is the damped
influence function :math:`-g_j^T (n\beta H + \gamma)^{-1} g_i`, and for :math:`\gamma \gg n\beta \lambda_{max}` the dot
product of gradients :math:`-g_j^T g_i / \gamma`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_slt.covariances import (
    Covariances,
    between_share,
    covariances,
    effective_draws,
    live_chains,
    silent,
    split_half,
)
from lightning_slt.estimators.base import Accumulator, Estimator, Run
from lightning_slt.groupings import group_covariances, named_groups
from lightning_slt.health import Thresholds, judge, trace_values
from lightning_slt.probes import Probe, as_probe
from lightning_slt.results import Result
from lightning_slt.statistics import ProbeTraces, Traces, statistics_device
from lightning_slt.types import Draw, Health

Scale = Literal["covariance", "response"]
Tokens = Literal["sum", "train", "query", "both"]

CHECKS = ("drift", "rhat", "spikes")
"""Checks of the mean loss's trace that matter to a covariance. Whether the anchor is a minimum does not."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Influence(Result):
    """Of every training sample on every query.

    With tokens kept apart, ``[train]`` is ``[train, token]`` and ``[query]`` is ``[query, token]`` throughout.

    Attributes:
        influence: ``factor`` times −Cov ``[train, query]``: negative is helpful.
        normalized: −correlation ``[train, query]``, between −1 and 1.
        stderr: Standard error of ``influence`` from between chains; NaN for one chain, and where chains share
            minibatches, whose common noise their spread does not show.
        normalized_stderr: Of ``normalized``.
        factor: 1 in nats² for ``scale="covariance"``, nβ/n for ``"response"``.
        n_eff: Independent draws that the covariances are worth; the noise of a small correlation is ``1/√n_eff``.
        reliability: How alike correlations would come out in another such run, from two halves of the chains.
        strength: Root mean square of ``normalized``; where it is near ``1/√n_eff`` there is nothing but noise.
        rhat: R̂ of the mean loss of the training samples.
        silent: How many training samples and queries (or tokens) have losses that never move; their entries are 0.
        train_indices: Which sample of the user's training data each row is ``[train]``: 0, 1, 2, … of a whole data
            set, the chosen ones of a Probe with ``num_samples``.
        query_indices: Which sample of the user's queries each column is ``[query]``.
        train_labels: Where they are known.
        query_labels: Where they are known.
        group_influence: Mean influence over the pairs of a group of training samples and one of queries, of a sample
            on itself left out ``[train group, query group]``; None without groups.
        group_stderr: Its standard error from between chains.
        group_between: What chains that sit in different phases would add to it: the part between chains, which is
            left out as in all covariances here unless they are pooled.
        train_groups: Names of the groups.
        query_groups: Names of the groups.
        sides: Names of the axes of the matrices: ``train`` and ``query``, each followed by ``train_token`` or
            ``query_token`` where its tokens were kept apart.
    """

    influence: Tensor = field(repr=False)
    normalized: Tensor = field(repr=False)
    stderr: Tensor = field(repr=False)
    normalized_stderr: Tensor = field(repr=False)
    factor: float
    n_eff: float
    reliability: float
    strength: float
    rhat: float
    silent: int
    train_indices: Tensor = field(repr=False)
    query_indices: Tensor = field(repr=False)
    train_labels: Tensor | None = field(default=None, repr=False)
    query_labels: Tensor | None = field(default=None, repr=False)
    group_influence: Tensor | None = field(default=None, repr=False)
    group_stderr: Tensor | None = field(default=None, repr=False)
    group_between: Tensor | None = field(default=None, repr=False)
    train_groups: tuple[str, ...] = ()
    query_groups: tuple[str, ...] = ()
    sides: tuple[str, ...] = ("train", "query")

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Training samples, then queries, each followed by its tokens where these were kept apart."""
        found = dict.fromkeys(("influence", "normalized", "stderr", "normalized_stderr"), self.sides)
        sides = {f"{side}_{what}": (side,) for side in ("train", "query") for what in ("indices", "labels")}
        groups = dict.fromkeys(("group_influence", "group_stderr", "group_between"), ("train_group", "query_group"))
        return {**found, **sides, **groups}

    @property
    def covariance(self) -> Tensor:
        """Cov of the losses, in nats²: ``−influence / factor``."""
        return -self.influence / self.factor

    @property
    def correlation(self) -> Tensor:
        """Correlation of the losses: ``−normalized``."""
        return -self.normalized

    def helpful(self, query: int, *, count: int = 5) -> Tensor:
        """The training samples that help a query most, the most negative influence first ``[count]``.

        Args:
            query: Column of the matrices; ``query_indices[query]`` says which sample of the user's data that is.
            count: At most so many; fewer where fewer have a negative influence.

        Returns:
            Indices into the training data as the user gave them, so that ``data[i]`` is the sample; of a Probe with
            ``num_samples`` these are not the rows of the matrices, which :meth:`rows` finds.

        Raises:
            ValueError: If tokens were kept apart, so that a sample has no single influence.
        """
        return self.train_indices[self._order(query, sign=-1.0)[:count]]

    def harmful(self, query: int, *, count: int = 5) -> Tensor:
        """The training samples that harm a query most, the most positive influence first; see :meth:`helpful`."""
        return self.train_indices[self._order(query, sign=1.0)[:count]]

    def rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Rows of the matrices in which training samples stand, by their indices in the user's data ``[index]``.

        Raises:
            ValueError: If one of them is none of the training samples whose influence this is.
        """
        places = {int(index): row for row, index in enumerate(self.train_indices)}
        wanted = [int(index) for index in indices]
        if strangers := [index for index in wanted if index not in places]:
            raise ValueError(
                f"samples {strangers} are none of the {len(places)} training samples of this result; "
                "train_indices lists them"
            )
        return torch.tensor([places[index] for index in wanted], dtype=torch.long)

    def _order(self, query: int, *, sign: float) -> Tensor:
        """Rows whose influence has a sign, the largest first."""
        if self.influence.ndim != 2:
            raise ValueError(
                f"tokens were kept apart, shape {tuple(self.influence.shape)}; write tokens='sum' for the influence of "
                "whole samples"
            )
        signed = sign * self.influence[:, query]
        order = signed.argsort(descending=True)
        return order[signed[order] > 0]


@dataclass(frozen=True, kw_only=True)
class BayesianInfluence(Estimator):
    r"""Estimates the influence of training samples on queries from the losses of both at every draw.

    Costs one forward pass over both sets per draw, whatever their number of pairs.

    Args:
        train: Whose influence: a Probe, or anything that a Probe takes.
        query: On whose losses; may be the same object as ``train``.
        name: Key of the result and part of the log tags.
        scale: ``"covariance"`` gives −Cov in nats²; ``"response"`` gives −(nβ/n) Cov, the change of a query's loss in
            nats when a sample's weight in the mean loss goes from 1/n to 2/n, to first order.
        tokens: What becomes of losses per token. ``"sum"`` adds them up, so that a sample's influence is that of all
            its tokens; ``"train"``, ``"query"`` or ``"both"`` keep them apart on that side. Influences add over tokens,
            correlations do not.
        pooled: Centre on the mean of all chains, as the paper does, rather than on each chain's own.
        train_groups: Group of each training sample ``[sample]``, or of each token where they are kept apart
            ``[sample, token]``: whole numbers, below 0 for none; None takes the labels of the probe.
        query_groups: The same of the queries.
        thresholds: Of the health checks.

    Raises:
        ValueError: For an unknown scale or treatment of tokens, or two different probes of one name.

    >>> estimator = BayesianInfluence(train=[0, 1, 2], query=[3, 4])
    >>> estimator.name, [probe.name for probe in estimator.probes]
    ('influence', ['train', 'query'])
    """

    train: Any
    query: Any
    name: str = "influence"
    scale: Scale = "covariance"
    tokens: Tokens = "sum"
    pooled: bool = False
    train_groups: Tensor | Sequence[int] | None = None
    query_groups: Tensor | Sequence[int] | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)
    fields = ("factor", "n_eff", "reliability", "strength", "rhat", "silent")

    def __post_init__(self) -> None:
        """Take bare data for probes, and refuse words that mean nothing."""
        same = self.query is self.train
        object.__setattr__(self, "train", as_probe(self.train, name="train"))
        object.__setattr__(self, "query", self.train if same else as_probe(self.query, name="query"))
        for name, words in (("scale", get_args(Scale)), ("tokens", get_args(Tokens))):
            if getattr(self, name) not in words:
                raise ValueError(f"BayesianInfluence.{name} must be one of {words}, got {getattr(self, name)!r}")
        if self.train.name == self.query.name and not self.train.same_as(self.query):
            raise ValueError(
                f"train and query are different probes of one name, {self.train.name!r}; give one of them another: "
                "Probe(data, name='query')"
            )

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The training samples and the queries."""
        return (self.train,) if self.train.name == self.query.name else (self.train, self.query)

    def start(self, run: Run) -> Accumulator:
        """An accumulator for one run of chains."""
        return _InfluenceAccumulator(self, run)


class _InfluenceAccumulator(Accumulator):
    def __init__(self, estimator: BayesianInfluence, run: Run) -> None:
        self.estimator, self.run = estimator, run
        device = statistics_device(run.device)
        self.steps = Traces(run.num_chains, run.num_draws, device=device)
        self.losses = {
            probe.name: ProbeTraces(
                run.num_chains, run.num_draws, anchor=run.probes[probe.name].anchor.to(device), device=device
            )
            for probe in estimator.probes
        }

    @property
    def states(self) -> Sequence[Metric]:
        return self.steps, *self.losses.values()

    def update(self, draw: Draw) -> None:
        self.steps.update(draw.chains, draw.index, torch.full_like(draw.loss, draw.step))
        for name, traces in self.losses.items():
            traces.update(draw.chains, draw.index, draw.probes[name].to(traces.values.device))

    def compute(self) -> Influence:
        e, run = self.estimator, self.run
        traces = {name: losses.compute() for name, losses in self.losses.items()}
        alive, dead = live_chains(list(traces.values()), self.steps.values.cpu())
        train, rows = _rows(traces[e.train.name][alive], apart=e.tokens in ("train", "both"))
        query, columns = _rows(traces[e.query.name][alive], apart=e.tokens in ("query", "both"))
        query = train if len(e.probes) == 1 and rows == columns else query
        factor = run.nbeta / run.num_samples if e.scale == "response" else 1.0
        found = Covariances(*(matrix.cpu() for matrix in _covariances(train, query, pooled=e.pooled)))
        stderr, normalized_stderr = (
            torch.full_like(error, math.nan) if run.share_batches else error.reshape(*rows, *columns)
            for error in (found.stderr, found.correlation_stderr)
        )
        health = self._health(train, query, dead)
        known = run.probes[e.train.name], run.probes[e.query.name]
        return Influence(
            influence=-factor * found.covariance.reshape(*rows, *columns),
            normalized=-found.correlation.reshape(*rows, *columns),
            stderr=factor * stderr,
            normalized_stderr=normalized_stderr,
            factor=factor,
            n_eff=health.values["n_eff"],
            reliability=health.values["reliability"],
            strength=float(found.correlation.square().mean().sqrt()),
            rhat=health.values["rhat"],
            silent=int(silent(train).sum() + silent(query).sum()) if len(train) else 0,
            train_indices=known[0].indices,
            query_indices=known[1].indices,
            train_labels=known[0].labels,
            query_labels=known[1].labels,
            **self._groups(train, query, rows, columns, factor),
            sides=("train", "train_token")[: len(rows)] + ("query", "query_token")[: len(columns)],
            health=health,
        )

    def _groups(
        self, train: Tensor, query: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], factor: float
    ) -> dict[str, Any]:
        """Influence between groups, where both sides have them."""
        e, run = self.estimator, self.run
        first = named_groups(e.train_groups, run.probes[e.train.name], rows, "train_groups")
        second = named_groups(e.query_groups, run.probes[e.query.name], columns, "query_groups")
        if first is None or second is None or not len(train) or train.shape[1] < 2:
            return {}
        same = torch.arange(train.shape[2]).repeat(2, 1).T if query is train else None
        found = group_covariances(train.cpu(), query.cpu(), first.members, second.members, identical=same)
        chains, within = len(found.within), found.within + (found.between if e.pooled else 0.0)
        unknown = chains < 2 or run.share_batches
        error = torch.full_like(found.between, math.nan) if unknown else within.std(0) / math.sqrt(chains)
        return {
            "group_influence": -factor * within.mean(0),
            "group_stderr": factor * error,
            "group_between": -factor * found.between,
            "train_groups": first.names,
            "query_groups": second.names,
        }

    def _health(self, train: Tensor, query: Tensor, dead: Mapping[int, int]) -> Health:
        """Checks of the mean loss of the training samples, and what a covariance needs beside them."""
        run, mean = self.run, train.mean(2).cpu()
        of_trace = trace_values(mean)
        values = {
            **{name: of_trace[name] for name in CHECKS},
            "finite": float(len(dead)),
            **({"step_size": run.stability, "steps": run.steps} if math.isfinite(run.stability) else {}),
            "resolution": run.localization / run.nbeta if run.nbeta else math.inf,
            "n_eff": effective_draws(train) if len(train) else math.nan,
            "between_chains": between_share(train) if len(train) else math.nan,
            "reliability": split_half(train, query, pooled=self.estimator.pooled) if len(train) else math.nan,
        }
        return judge(values, dead, self.estimator.thresholds)


def _rows(traces: Tensor, *, apart: bool) -> tuple[Tensor, tuple[int, ...]]:
    """One trace a sample, or a token where they are kept apart: ``[chain, draw, row]``, and what its rows are."""
    if traces.ndim == 4 and not apart:
        traces = traces.double().sum(3)
    return traces.flatten(2), tuple(traces.shape[2:])


def _covariances(train: Tensor, query: Tensor, *, pooled: bool) -> Covariances:
    """NaN throughout where no chain is alive, or there is a single draw."""
    if len(train) and train.shape[1] > 1:
        return covariances(train, query, pooled=pooled)
    nothing = torch.full((train.shape[2], query.shape[2]), math.nan, dtype=torch.float64)
    return Covariances(nothing, nothing, nothing, nothing)
