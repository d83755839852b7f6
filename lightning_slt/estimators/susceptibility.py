r"""Susceptibilities of components to samples and tokens (arXiv:2504.18274).

Mix a little of other data into the training data, ``q_h = (1 − h) q + h q'``, and see how a component answers:

.. math:: \chi = \frac{1}{n\beta} \frac{d}{dh} \langle \phi \rangle_h \Big|_{h=0} = -\mathrm{Cov}[\phi, \Delta],
          \qquad \Delta = \ell_{xy} - L

with one token (or sample) for q'; that of a probe is the mean over its tokens. φ is the loss above the anchor's while
only the component C moves, ``g(w) = L(w) − L(w*)``. Two estimators of it, of different things:

.. math:: \chi_\text{restricted} = -\mathrm{Cov}_C[g, \Delta], \qquad
          \chi_\text{two chain} = -E_C[g \Delta] + E_C[g]\, E_\text{all}[\Delta]

The first is the response of ``E_C[g]``. The second, the paper's, is that of ``δ(u − u*) g(w)`` under the posterior of
all weights, up to a factor for each component; it is ``−Cov_C[g, Δ] + E_C[g] (E_all[Δ] − E_C[Δ])``, whose second term
is large and alike in all components. **χ < 0: the component expresses the continuation; χ > 0: it suppresses it.**
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_slt.covariances import live_chains
from lightning_slt.estimators.base import WHOLE, Accumulator, Estimator, Run
from lightning_slt.health import SMALL_IS_BAD, Thresholds, judge, trace_values
from lightning_slt.probes import Probe, as_probe
from lightning_slt.responses import Averages, jackknife_error, response
from lightning_slt.results import Result
from lightning_slt.statistics import CrossMoments, Traces, statistics_device
from lightning_slt.types import Draw, Health

Method = Literal["two_chain", "restricted"]

CHECKS = ("drift", "rhat", "spikes")
"""Checks of a component's loss trace that matter to a covariance. Whether the anchor is a minimum does not."""

REFERENCE = Probe(None, name="reference", num_samples=512)
"""Where L is measured at every draw: the data that is sampled from, or so many samples of it."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Responses(Result):
    """The response matrix, one row a sample or token, one column a component.

    Attributes:
        matrix: χ ``[row, component]``, in nats². Magnitudes of two_chain are not comparable between components.
        stderr: Its standard error from between chains; NaN for one chain, and where chains share minibatches.
        by_probe: χ of each probe, the mean over its rows ``[probe, component]``.
        by_probe_stderr: Of these.
        control: χ at nβ = 0 ``[row, component]``, what localization and noise alone give; None where not asked for.
        rise: ``E_C[g]`` ``[component]``, in nats.
        delta: ``E_C[Δ] − Δ(w*)`` ``[row, component]``, in nats; of low variance.
        whole_delta: ``E_all[Δ] − Δ(w*)`` ``[row]``, in nats; None for ``restricted``.
        rows: Which probe, which sample of its data, and which token (−1: the whole sample) ``[row, 3]``.
        components: Names of the columns.
        probes: Names of the probes.
        method: Which estimator.
        signal: Median of |χ| over its standard error; below 2 the matrix is mostly noise.
        uniform: Share of the matrix's energy that is the same in all components.
        parts: Health of each component.
    """

    matrix: Tensor = field(repr=False)
    stderr: Tensor = field(repr=False)
    by_probe: Tensor = field(repr=False)
    by_probe_stderr: Tensor = field(repr=False)
    control: Tensor | None = field(default=None, repr=False)
    rise: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    whole_delta: Tensor | None = field(default=None, repr=False)
    rows: Tensor = field(repr=False)
    components: tuple[str, ...]
    probes: tuple[str, ...]
    method: str
    signal: float
    uniform: float
    parts: Mapping[str, Health] = field(repr=False)

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Rows are samples or tokens."""
        matrices = dict.fromkeys(("matrix", "stderr", "control", "delta"), ("row", "component"))
        probes = dict.fromkeys(("by_probe", "by_probe_stderr"), ("probe", "component"))
        return {**matrices, **probes, "rise": ("component",), "whole_delta": ("row",), "rows": ("row", "part")}

    def by_component(self) -> dict[str, dict[str, float]]:
        """Each probe's χ with its error."""
        found = {}
        for column, component in enumerate(self.components):
            means, errors = self.by_probe[:, column].tolist(), self.by_probe_stderr[:, column].tolist()
            found[component] = {f"{name}/mean": value for name, value in zip(self.probes, means, strict=True)}
            found[component] |= {f"{name}/stderr": value for name, value in zip(self.probes, errors, strict=True)}
            found[component]["ok"] = float(self.parts[component].ok)
        return found


@dataclass(frozen=True, init=False)
class Susceptibility(Estimator):
    r"""Estimates the responses of components to the samples or tokens of probes.

    A loss ``[sample, token]`` gives one row a token; tokens whose loss is always exactly zero are padding and left out.

    Args:
        probes: One Probe or several, or anything that a Probe takes.
        components: "heads", "layers", a pattern or ``{name: Component}``; None for the components of the reading.
        method: ``"two_chain"``, the paper's, which runs chains of all weights too; or ``"restricted"``.
        name: Key of the result and part of the log tags.
        control: Run all chains once more at nβ = 0, for ``.control``. **Doubles the cost.**
        reference: Where L is measured at every draw; a part of the data that is sampled from. All terms use the same
            samples, so that minibatch noise enters none of them, and the rows of a reference that is also the only
            probe add up to zero under ``"restricted"``.
        thresholds: Of the health checks.

    Raises:
        ValueError: For an unknown method, or without a probe.

    >>> estimator = Susceptibility([Probe([0, 1], name="numbers")], "heads", method="restricted")
    >>> estimator.name, [probe.name for probe in estimator.probes]
    ('susceptibility', ['reference', 'numbers'])
    """

    measured: tuple[Probe, ...]
    components: Any
    method: Method
    name: str
    control: bool
    reference: Probe
    thresholds: Thresholds
    fields = ("signal", "uniform")
    spanning = True

    def __init__(
        self,
        probes: Any,
        components: Any = None,
        *,
        method: Method = "two_chain",
        name: str = "susceptibility",
        control: bool = False,
        reference: Probe = REFERENCE,
        thresholds: Thresholds | None = None,
    ) -> None:
        """Take bare data for a probe, and refuse what means nothing."""
        several = isinstance(probes, list | tuple) and any(isinstance(p, Probe) for p in probes)
        measured = tuple(as_probe(p) for p in (probes if several else [probes]))
        names = [probe.name for probe in measured]
        if probes is None or len(set(names)) < len(names):
            raise ValueError(f"Susceptibility needs probes of different names, got {probes!r}; write [Probe(data)]")
        if method not in get_args(Method):
            raise ValueError(f"Susceptibility.method must be 'two_chain' or 'restricted', got {method!r}")
        values = {"measured": measured, "components": components, "method": method, "name": name, "control": control}
        for key, value in {**values, "reference": reference, "thresholds": thresholds or Thresholds()}.items():
            object.__setattr__(self, key, value)

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The reference, and what is measured."""
        return (self.reference, *self.measured)

    @property
    def moves(self) -> Any:
        """Its own components, where it has them."""
        return self.components

    @property
    def whole(self) -> bool:
        """The paper's estimator compares with chains of all weights."""
        return self.method == "two_chain"

    @property
    def component_fields(self) -> tuple[str, ...]:
        """χ of each probe, and its error."""
        return tuple(f"{probe.name}/{kind}" for kind in ("mean", "stderr") for probe in self.measured)

    def start(self, run: Run) -> Accumulator:
        """An accumulator for one run of chains."""
        return _SusceptibilityAccumulator(self, run)

    def controlled(self, estimate: Averages, control: Averages) -> Averages:
        """Keep the control run's averages beside the others."""
        return replace(estimate, control=control)

    def combine(self, parts: Mapping[str, Averages]) -> Responses:
        """The response matrix from the averages of each component's chains."""
        whole = parts.get(WHOLE)
        columns = {name: part for name, part in parts.items() if name != WHOLE}
        kept = ~torch.stack([part.padding for part in parts.values()]).all(0)
        rows = next(iter(columns.values())).rows[kept]
        found = [response(part, whole, kept) for part in columns.values()]
        matrix = torch.stack([chi for chi, _ in found], 1)
        stderr = torch.stack([jackknife_error(without) for _, without in found], 1)
        of = [rows[:, 0] == index for index in range(len(self.measured))]
        control = None
        if self.control:
            other = whole.control if whole is not None else None
            controls = [part.control for part in columns.values() if part.control is not None]
            control = torch.stack([response(part, other, kept)[0] for part in controls], 1)
        return Responses(
            matrix=matrix,
            stderr=stderr,
            by_probe=torch.stack([matrix[mine].mean(0) for mine in of]),
            by_probe_stderr=torch.stack(
                [torch.stack([jackknife_error(without[:, mine].mean(1)) for _, without in found]) for mine in of]
            ),
            control=control,
            rise=torch.stack([part.g[part.alive].mean() for part in columns.values()]),
            delta=torch.stack([part.delta[part.alive][:, kept].mean(0) for part in columns.values()], 1),
            whole_delta=None if whole is None else whole.delta[whole.alive][:, kept].mean(0),
            rows=rows,
            components=tuple(columns),
            probes=tuple(probe.name for probe in self.measured),
            method=self.method,
            signal=float((matrix.abs() / stderr).nanmedian()),
            uniform=float(matrix.mean(1).square().sum() * matrix.shape[1] / matrix.square().sum()),
            parts={name: part.health for name, part in columns.items()},
            health=_worst([part.health for part in parts.values()], self.thresholds),
        )


def _worst(healths: Sequence[Health], thresholds: Thresholds) -> Health:
    """The worst value of every check over components, and all chains that died anywhere, with the earliest step."""
    values: dict[str, float] = {}
    for name in healths[0].values:
        known = [h.values[name] for h in healths if not math.isnan(h.values[name])]
        values[name] = (min(known) if name in SMALL_IS_BAD else max(known)) if known else math.nan
    dead: dict[int, int] = {}
    for chain, step in (item for health in healths for item in health.dead_chains.items()):
        dead[chain] = min(step, dead.get(chain, step))
    return judge(values, dead, thresholds)


class _SusceptibilityAccumulator(Accumulator):
    def __init__(self, estimator: Susceptibility, run: Run) -> None:
        self.estimator, self.run, self.device = estimator, run, statistics_device(run.device)
        known = [run.probes[probe.name] for probe in estimator.measured]
        self.anchors = [k.anchor.to(self.device).double().flatten() for k in known]
        self.reference = run.probes[estimator.reference.name].anchor.to(self.device).double()
        self.rows = torch.cat([_rows(number, k.anchor.shape, k.indices) for number, k in enumerate(known)])
        self.moments = CrossMoments(run.num_chains, len(self.rows), device=self.device)
        self.rise, self.steps = (Traces(run.num_chains, run.num_draws, device=self.device) for _ in range(2))

    @property
    def states(self) -> Sequence[Metric]:
        return self.moments, self.rise, self.steps

    def update(self, draw: Draw) -> None:
        losses = draw.probes[self.estimator.reference.name].to(self.device).double()
        g = (losses - self.reference).flatten(1).mean(1)
        probes = [draw.probes[probe.name].to(self.device).flatten(1) for probe in self.estimator.measured]
        rise = torch.cat([values.double() - at for values, at in zip(probes, self.anchors, strict=True)], 1)
        self.moments.update(draw.chains, g, rise)
        finite = rise.isfinite().all(1)
        self.rise.update(draw.chains, draw.index, torch.where(finite, g, math.nan))
        self.steps.update(draw.chains, draw.index, torch.full_like(draw.loss, draw.step))

    def compute(self) -> Averages:
        m, rise = self.moments, self.rise.values.cpu()
        alive, dead = live_chains([rise[:, :, None]], self.steps.values.cpu())
        mean, second = m.x / m.count, m.xx / m.count
        padding = (torch.cat(self.anchors) == 0) & (m.y == 0).all(0) & (m.xy == 0).all(0)
        return Averages(
            g=mean.cpu(),
            delta=(m.y / m.count[:, None] - mean[:, None]).cpu(),
            g_delta=(m.xy / m.count[:, None] - second[:, None]).cpu(),
            covariance=(m.covariance() - m.variance()[:, None]).cpu(),
            alive=alive,
            padding=padding.cpu() & (self.rows[:, 2] >= 0),
            rows=self.rows,
            shared=self.run.share_batches,
            health=self._health(rise[alive], dead),
        )

    def _health(self, rise: Tensor, dead: Mapping[int, int]) -> Health:
        run, of_trace = self.run, trace_values(rise)
        values = {
            **{name: of_trace[name] for name in CHECKS},
            "finite": float(len(dead)),
            **({"step_size": run.stability, "steps": run.steps} if math.isfinite(run.stability) else {}),
            "resolution": run.localization / run.nbeta if run.nbeta else math.inf,
        }
        return judge(values, dead, self.estimator.thresholds)


def _rows(probe: int, shape: torch.Size, indices: Tensor) -> Tensor:
    """Probe, sample and token of each row ``[row, 3]``; token −1 where samples have one loss each."""
    samples = indices.reshape(-1, *[1] * (len(shape) - 1)).expand(shape).flatten()
    tokens = torch.arange(math.prod(shape[1:])).repeat(shape[0]) if len(shape) > 1 else torch.full_like(samples, -1)
    return torch.stack([torch.full_like(samples, probe), samples, tokens], 1)
