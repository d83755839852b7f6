r"""Does λ̂ say how far a network can be compressed, and more of it than the loss says (arXiv:2510.12077)?

Over the readings of a run the loss falls, λ̂ and the critical bits move, and anything that moves correlates with
anything else that does. So the plain correlation of λ̂ and bits stands beside the partial one given the loss, and
beside that of the loss alone. Where λ̂ is nearly an affine function of the loss (small nβ, long chains) the partial
correlation is that of a remainder, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.records import Reading
from lightning_slt.results import Result
from lightning_slt.types import Estimate

COLLINEAR = 0.95
"""Share of the variance of λ̂ that the loss explains from which on the two cannot be told apart."""

FEWEST = 5
"""Readings from which on a partial correlation has an interval: its error is ``1/√(n − 4)``."""

Table = dict[int, dict[str, float]]
"""What was read at each step, ``{step: {tag: value}}``."""


class Correlation(NamedTuple):
    """A correlation coefficient with its interval.

    Attributes:
        value: Between −1 and 1; NaN where one side does not vary.
        lower: End of the interval.
        upper: End of the interval.
    """

    value: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.lower:+.2f}, {self.upper:+.2f}]"


class Correlated(NamedTuple):
    """How λ̂, a critical number and the loss go together.

    Attributes:
        number: Tag of the critical number.
        quantity: Tag of λ̂.
        steps: Of the readings that have both ``[reading]``.
        values: The critical number ``[reading]``.
        llc: λ̂ ``[reading]``.
        stderr: Its standard error ``[reading]``.
        loss: In nats ``[reading]``.
        plain: Of λ̂ and the number.
        partial: The same given the loss.
        loss_alone: Of −loss and the number.
        explained: Share of the variance of λ̂ that an affine function of the loss explains.
    """

    number: str
    quantity: str
    steps: Tensor
    values: Tensor
    llc: Tensor
    stderr: Tensor
    loss: Tensor
    plain: Correlation
    partial: Correlation
    loss_alone: Correlation
    explained: float

    @property
    def collinear(self) -> bool:
        """Whether λ̂ and the loss cannot be told apart here."""
        return self.explained >= COLLINEAR


def values_of(reading: Reading) -> dict[str, float]:
    """Means, errors and numbers of one reading by log tag."""
    found: dict[str, float] = {}
    for component, estimates in reading.estimates.items():
        for key, estimate in estimates.items():
            tag = f"{reading.name}/{component}/{key}"
            if isinstance(estimate, Estimate):
                found |= {f"{tag}/mean": estimate.mean, f"{tag}/stderr": estimate.stderr}
            elif isinstance(estimate, Result):
                found |= {f"{tag}/{field}": value for field, value in estimate.scalars().items()}
    return found


def table_of(readings: Sequence[Reading]) -> Table:
    """Readings of any monitors side by side, by step; one that was made again replaces the earlier."""
    table: Table = {}
    for reading in readings:
        table.setdefault(reading.step, {}).update(values_of(reading))
    return table


def correlate(
    readings: Sequence[Reading] | Table, *, number: str = "bits_0.02", quantity: str | None = None, level: float = 0.95
) -> Correlated:
    r"""Correlation of λ̂ with a critical number over the readings of a run: plain, given the loss, and of −loss alone.

    .. math:: r_{xy \cdot z} = \frac{r_{xy} - r_{xz} r_{yz}}{\sqrt{(1 - r_{xz}^2)(1 - r_{yz}^2)}}

    Intervals are Fisher's, ``tanh(atanh r ± q/√(n − 3 − k))`` with k = 1 given the loss. They take readings for
    independent, which those of one run are not: read them as the smallest that they can be.

    Args:
        readings: As :func:`lightning_slt.load_records` gives them, of one monitor or several; or
            ``{step: {tag: value}}``.
        number: Name of the critical number, ``bits_0.02``, or its whole tag where several monitors have one.
        quantity: Tag of λ̂, ``slt/full/llc``; None for the only one there is, or that of all weights.
        level: Of the intervals.

    Raises:
        ValueError: If there is no such number or quantity, or more than one.

    >>> rows = [(1.0, 2.0, 0.9), (2.0, 2.5, 0.5), (3.0, 3.5, 0.4), (2.5, 3.0, 0.1), (2.0, 2.6, 0.05)]
    >>> names = "slt/full/llc/mean", "slt/full/compressibility/bits_0.02", "slt/full/compressibility/loss"
    >>> found = correlate({step: dict(zip(names, row)) for step, row in enumerate(rows)})
    >>> round(found.plain.value, 3), round(found.partial.value, 3), round(found.loss_alone.value, 3)
    (0.982, 0.981, 0.548)
    """
    table = table_of(readings) if not isinstance(readings, Mapping) else readings
    tags = list(dict.fromkeys(tag for row in table.values() for tag in row))
    bits = _number_tag(tags, number)
    llc = _quantity_tag(tags, quantity, near=bits)
    loss = f"{bits.rpartition('/')[0]}/loss"
    rows = [(step, row) for step, row in sorted(table.items()) if all(_finite(row, t) for t in (bits, llc, loss))]
    x, y, z = (torch.tensor([row[tag] for _, row in rows], dtype=torch.float64) for tag in (llc, bits, loss))
    error = llc.removesuffix("/mean") + "/stderr"
    plain, with_loss = _pearson(x, y), _pearson(x, z)
    return Correlated(
        number=bits,
        quantity=llc.removesuffix("/mean"),
        steps=torch.tensor([step for step, _ in rows]),
        values=y,
        llc=x,
        stderr=torch.tensor([row.get(error, math.nan) for _, row in rows], dtype=torch.float64),
        loss=z,
        plain=_interval(plain, len(rows), level=level),
        partial=_interval(_partial(plain, with_loss, _pearson(y, z)), len(rows), given=1, level=level),
        loss_alone=_interval(_pearson(-z, y), len(rows), level=level),
        explained=with_loss**2,
    )


def _pearson(x: Tensor, y: Tensor) -> float:
    """NaN where one does not vary."""
    if len(x) < 2 or bool((x == x[0]).all()) or bool((y == y[0]).all()):
        return math.nan
    a, b = x - x.mean(), y - y.mean()
    return min(1.0, max(-1.0, float(a @ b / (a.norm() * b.norm()))))


def _partial(xy: float, xz: float, yz: float) -> float:
    """NaN where the loss leaves nothing of one of them."""
    rest = (1 - xz**2) * (1 - yz**2)
    return min(1.0, max(-1.0, (xy - xz * yz) / math.sqrt(rest))) if rest > 1e-12 else math.nan


def _interval(r: float, count: int, *, level: float, given: int = 0) -> Correlation:
    free = count - 3 - given
    if not abs(r) < 1 or free < 1:
        return Correlation(r, math.nan, math.nan)
    half = NormalDist().inv_cdf(0.5 + level / 2) / math.sqrt(free)
    return Correlation(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))


def _finite(row: Mapping[str, float], tag: str) -> bool:
    return math.isfinite(row.get(tag, math.nan))


def _number_tag(tags: Sequence[str], number: str) -> str:
    found = [tag for tag in tags if tag == number or tag.rpartition("/")[2] == number]
    if len(found) != 1:
        known = sorted(tag for tag in tags if "_" in tag.rpartition("/")[2])
        said = (
            f"there are {', '.join(found)}; give the whole tag" if found else f"there are {', '.join(known) or 'none'}"
        )
        raise ValueError(f"number={number!r} must name one critical number of the readings; {said}")
    return found[0]


def _quantity_tag(tags: Sequence[str], quantity: str | None, *, near: str) -> str:
    means = [tag for tag in tags if tag.endswith("/mean")]
    if quantity is not None:
        found = [tag for tag in means if tag in (quantity, f"{quantity}/mean")]
    else:
        same = f"{near.split('/full/')[0]}/full/llc/mean"
        found = [same] if same in means else [tag for tag in means if tag.endswith("/llc/mean")]
    if len(found) != 1:
        names = ", ".join(tag.removesuffix("/mean") for tag in means) or "none"
        raise ValueError(
            f"quantity={quantity!r} must name one λ̂ of the readings, such as 'slt/full/llc'; there are {names}"
        )
    return found[0]
