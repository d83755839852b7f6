r"""Influence over training: when it changes its sign, and when it is largest (arXiv:2510.12071).

Readings of one run are readings of different posteriors. So no values are compared between them, but signs, and where a
curve has its peak; an event is reported only where it stands out of the errors of the readings around it:

* a *flip*: two readings of opposite sign, each further from zero than z standard errors, and nothing of that size
  between them;
* a *peak*: the reading of largest size between two flips (or ends), larger than what comes before and after by
  ``√(z² + 2 ln P)`` standard errors of the difference, P the number of pairs of readings: the largest of many is large
  by chance alone (with z everywhere, 2 % of flat curves of 18 readings had a peak; with this, none of 1000).

For a mixture of two phases U and V influence has a part ``π_U π_V (μ_iU − μ_iV)(μ_jU − μ_jV)``: it can change its sign
and peaks at the transition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_slt.records import Reading

SIGNIFICANCE = 3.0
"""Standard errors that an event stands out by."""


class Event(NamedTuple):
    """Something that influence did.

    Attributes:
        kind: "flip" or "peak".
        step: Where: of a flip, where the line between its two readings crosses zero on a logarithmic axis.
        first: The step of the reading before a flip; of a peak its own.
        last: The step of the reading after a flip; of a peak its own.
        sign: Of a peak; of a flip the new one.
        z: By how many standard errors it stands out: the least certain side of it.
        name: Whose influence on what.
    """

    kind: Literal["flip", "peak"]
    step: float
    first: int
    last: int
    sign: int
    z: float
    name: str

    def __str__(self) -> str:
        """One line for tables and logs."""
        word = "positive (harmful)" if self.sign > 0 else "negative (helpful)"
        if self.kind == "flip":
            where = f"at step {self.step:.3g} (between {self.first} and {self.last}, z = {self.z:.1f})"
            return f"{self.name} turns {word} {where}"
        return f"{self.name} has a {word} peak at step {self.first} (z = {self.z:.1f})"


@dataclass(frozen=True, kw_only=True)
class InfluenceCurves:
    """Influence of groups, or of chosen pairs, over the readings of a run.

    Attributes:
        steps: ``[reading]``, in order.
        values: ``[reading, curve]``; negative is helpful.
        stderr: From between chains ``[reading, curve]``.
        between: The part between chains, where it is known ``[reading, curve]``.
        names: Of the curves, ``<train> → <query>``.
    """

    steps: Tensor
    values: Tensor = field(repr=False)
    stderr: Tensor = field(repr=False)
    between: Tensor = field(repr=False)
    names: tuple[str, ...]

    def events(self, *, significance: float = SIGNIFICANCE) -> list[Event]:
        """Flips and peaks of all curves, in the order of their steps."""
        found = [
            event
            for index, name in enumerate(self.names)
            for event in events(
                self.steps, self.values[:, index], self.stderr[:, index], name=name, significance=significance
            )
        ]
        return sorted(found, key=lambda event: (event.step, event.kind, event.name))


def group_curves(readings: Sequence[Reading], *, key: str = "influence", component: str = "full") -> InfluenceCurves:
    """Curves of all pairs of groups from the readings of one monitor.

    Raises:
        ValueError: If no reading has influences between groups.
    """
    found = {r.step: r.estimates[component][key] for r in readings if key in r.estimates.get(component, {})}
    known = {step: e for step, e in found.items() if getattr(e, "group_influence", None) is not None}
    if not known:
        raise ValueError(
            f"no reading holds influences between groups under {component}/{key}; give the estimator train_groups= and "
            "query_groups=, or probes with labels"
        )
    steps = sorted(known)
    last = known[steps[-1]]
    names = tuple(f"{a} → {b}" for a in last.train_groups for b in last.query_groups)
    parts = ("group_influence", "group_stderr", "group_between")
    values, stderr, between = (
        torch.stack([getattr(known[step], part).double().flatten() for step in steps]) for part in parts
    )
    return InfluenceCurves(steps=torch.tensor(steps), values=values, stderr=stderr, between=between, names=names)


def pair_curves(
    readings: Sequence[Reading],
    pairs: Sequence[tuple[int, int]],
    *,
    key: str = "influence",
    component: str = "full",
) -> InfluenceCurves:
    """Curves of chosen pairs (row, column of the matrices) from the readings of one monitor.

    Raises:
        ValueError: If no reading has influences.
    """
    found = {r.step: r.estimates[component][key] for r in readings if key in r.estimates.get(component, {})}
    if not found:
        raise ValueError(f"no reading holds {component}/{key}")
    steps = sorted(found)
    i, j = torch.tensor(pairs).T
    values, stderr = (
        torch.stack([getattr(found[step], part)[i, j].double() for step in steps]) for part in ("influence", "stderr")
    )
    return InfluenceCurves(
        steps=torch.tensor(steps),
        values=values,
        stderr=stderr,
        between=torch.full_like(values, math.nan),
        names=tuple(f"{a} → {b}" for a, b in pairs),
    )


def events(
    steps: Tensor, values: Tensor, stderr: Tensor, *, name: str = "", significance: float = SIGNIFICANCE
) -> list[Event]:
    """Flips and peaks of one curve; readings without a number are left out.

    >>> steps, zero = torch.tensor([10, 20, 40, 80, 160]), torch.zeros(5)
    >>> [str(e) for e in events(steps, torch.tensor([-1.0, -2.0, 1.0, 3.0, 0.5]), zero + 0.1, name="a → b")][1]
    'a → b turns positive (harmful) at step 31.8 (between 20 and 40, z = 10.0)'
    """
    usable = values.isfinite() & (stderr > 0)
    steps, values, stderr = steps[usable], values[usable].double(), stderr[usable].double()
    z = values / stderr
    sure = (z.abs() > significance).nonzero()[:, 0].tolist()
    runs: list[list[int]] = []
    for place in sure:
        if runs and z[place] * z[runs[-1][-1]] > 0:
            runs[-1].append(place)
        else:
            runs.append([place])
    flips = [_flip(steps, values, z, a[-1], b[0], name) for a, b in pairwise(runs)]
    peaks = [_peak(steps, values, stderr, run, name, significance) for run in runs]
    found = [event for event in (*flips, *peaks) if event is not None]
    return sorted(found, key=lambda event: event.step)


def _flip(steps: Tensor, values: Tensor, z: Tensor, before: int, after: int, name: str) -> Event:
    """Where the straight line between two readings of opposite sign crosses zero, in the logarithm of step + 1."""
    here, there = (math.log1p(int(steps[place])) for place in (before, after))
    share = float(values[before] / (values[before] - values[after]))
    return Event(
        kind="flip",
        step=math.expm1(here + share * (there - here)),
        first=int(steps[before]),
        last=int(steps[after]),
        sign=1 if values[after] > 0 else -1,
        z=float(torch.minimum(z[before].abs(), z[after].abs())),
        name=name,
    )


def _peak(
    steps: Tensor, values: Tensor, stderr: Tensor, run: Sequence[int], name: str, significance: float
) -> Event | None:
    """The largest reading of a run of one sign, where it stands out from what comes before and after it."""
    sign = 1 if values[run[0]] > 0 else -1
    top = max(run, key=lambda place: float(sign * values[place]))
    sides = [
        max(_stands_out(values, stderr, top, other, sign) for other in side)
        for side in (range(top), range(top + 1, len(values)))
        if len(side)
    ]
    pairs = len(values) * (len(values) - 1) / 2
    if len(sides) < 2 or min(sides) <= math.sqrt(significance**2 + 2 * math.log(pairs)):
        return None
    step = int(steps[top])
    return Event(kind="peak", step=float(step), first=step, last=step, sign=sign, z=min(sides), name=name)


def _stands_out(values: Tensor, stderr: Tensor, top: int, other: int, sign: int) -> float:
    """Difference of two readings in standard errors."""
    return float(sign * (values[top] - values[other]) / (stderr[top].square() + stderr[other].square()).sqrt())
