r"""Where a network goes while it learns: joint principal components of one or several runs (arXiv:2501.17745).

Each reading is a row of numbers, a network's outputs on a fixed probe say. All rows of all runs are stacked, columns
are centred, and the leading right singular vectors are the axes that every run is drawn in; reference predictors are
projected onto them and take no part in finding them:

.. math:: A = U \Sigma V^\top, \qquad c_t = (a_t - \bar a) V / \sqrt n

Coordinates are divided by the root of the number of columns, so that distances are root mean squares over outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_slt.analysis.forms import half_waves
from lightning_slt.records import Reading, load_records

BLOCK = 2**22
"""Numbers that are centred and multiplied at a time, in double precision."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What one run's readings kept, in the order of their steps.

    Attributes:
        steps: ``[reading]``.
        values: ``[reading, column]``.
        references: Rows of reference predictors by name ``[column]``.
        made_of: What a row is and how it was kept, in words; rows of other words cannot be compared.
    """

    steps: Tensor
    values: Tensor = field(repr=False)
    references: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    made_of: tuple[str, ...] = ()


def recorded_rows(
    run: str | Path | Sequence[Reading], *, key: str = "trajectory", component: str = "full", name: str | None = None
) -> Rows:
    """Rows of one run from its records.

    Args:
        run: Folder of its logs, or its readings; those that failed are left out.
        key: Name of the :class:`lightning_slt.Trajectory` estimator.
        component: Where its results stand.
        name: Only this monitor's readings.

    Raises:
        ValueError: If there are none, or they are of several runs or probes.
    """
    readings = load_records(run, name=name) if isinstance(run, str | Path) else run
    found: dict[int, Any] = {}
    for reading in (r for r in readings if key in r.estimates.get(component, {})):
        result = reading.estimates[component][key]
        if not torch.equal(found.setdefault(reading.step, result).row, result.row):
            raise ValueError(
                f"two readings of step {reading.step} differ: these are records of several runs or monitors; give the "
                "folder of one run, or recorded_rows(folder, name='the monitor')"
            )
    if not found:
        keys = sorted({k for r in readings for k in r.estimates.get(component, {})})
        raise ValueError(f"no reading holds {component}/{key}; there is {', '.join(keys) or 'none'} of {component}")
    made = {tuple(result.made_of) for result in found.values()}
    if len(made) > 1:
        raise ValueError(f"rows of one run differ in what they are made of: {sorted(made)}")
    steps = sorted(found)
    last = found[steps[-1]]
    names = getattr(last, "reference_names", ())
    return Rows(
        steps=torch.tensor(steps),
        values=torch.stack([found[step].row for step in steps]),
        references={name: last.references[i] for i, name in enumerate(names)},
        made_of=made.pop(),
    )


@dataclass(frozen=True, kw_only=True)
class JointTrajectories:
    """Runs in the axes that they share.

    Attributes:
        steps: Of each run's readings, by run ``[reading]``.
        points: Coordinates of each run's readings, by run ``[reading, axis]``.
        references: Coordinates of reference predictors, by name ``[axis]``.
        outside: Share of a reference's squared distance from the mean that no axis shows, by name.
        shares: Share of all rows' variance that each axis explains ``[axis]``.
        mean: ``[column]``, float64.
        axes: ``[axis, column]``, float64, orthonormal.
    """

    steps: Mapping[str, Tensor]
    points: Mapping[str, Tensor]
    references: Mapping[str, Tensor]
    outside: Mapping[str, float]
    shares: Tensor
    mean: Tensor = field(repr=False)
    axes: Tensor = field(repr=False)

    def project(self, rows: Tensor) -> Tensor:
        """Coordinates of other rows ``[…, column]`` in the same axes ``[…, axis]``."""
        return (rows.double() - self.mean) @ self.axes.T / math.sqrt(self.axes.shape[1])


def joint_trajectories(
    runs: Mapping[str, Rows | str | Path | Sequence[Reading]],
    *,
    references: Mapping[str, Tensor] | None = None,
    axes: int = 3,
    key: str = "trajectory",
) -> JointTrajectories:
    r"""Principal components of one or several runs, from the Gram matrix of their rows.

    .. math:: A A^\top = U \Sigma^2 U^\top, \qquad V = A^\top U \Sigma^{-1}

    A matrix ``[column, column]`` is never formed, and of A no double-precision copy as a whole. Signs are chosen
    so that the first run starts to the left of axis 1 and comes up in the middle of axis 2.

    Args:
        runs: By name: :class:`Rows`, the folder of a run's logs, or its readings.
        references: Rows of further reference predictors ``[column]``; those in the records are projected anyway, one
            that several runs share only once.
        axes: How many, at most; fewer where the rows span fewer.
        key: Name of the estimator in records.

    Raises:
        ValueError: If there are no runs, fewer than two rows, rows of different make, or values that are not finite.

    >>> line = Rows(steps=torch.arange(3), values=torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]))
    >>> joint = joint_trajectories({"line": line})
    >>> joint.points["line"].T, joint.shares
    (tensor([[-3.5355,  0.0000,  3.5355]], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    rows = {name: run if isinstance(run, Rows) else recorded_rows(run, key=key) for name, run in runs.items()}
    _check(rows)
    parts = [part.values for part in rows.values()]
    mean = sum((part.sum(0, dtype=torch.float64) for part in parts), start=torch.zeros(())) / sum(map(len, parts))
    gram = sum((block @ block.T for block, _ in _centred(parts, mean)), start=torch.zeros(()))
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if not values[0] > 0:
        raise ValueError("the rows do not differ: nothing has moved between readings")
    kept = min(axes, int((values > len(gram) * torch.finfo(values.dtype).eps * values[0]).sum()))
    scores = vectors[:, :kept] * values[:kept].sqrt()
    first = scores[: len(parts[0])]
    signs = torch.where((first * half_waves(*first.shape)).sum(0) > 0, -1.0, 1.0)
    scores, vectors = scores * signs, vectors[:, :kept] * signs
    basis = torch.empty(kept, len(mean), dtype=torch.float64)
    for block, columns in _centred(parts, mean):
        basis[:, columns] = (vectors / values[:kept].sqrt()).T @ block
    points = (scores / math.sqrt(len(mean))).split([len(part) for part in parts])
    shown = {**_shared(rows), **(references or {})}
    centred = {name: row.double() - mean for name, row in shown.items()}
    return JointTrajectories(
        steps={name: part.steps for name, part in rows.items()},
        points=dict(zip(rows, points, strict=True)),
        references={name: basis @ row / math.sqrt(len(mean)) for name, row in centred.items()},
        outside={name: _outside(row, basis) for name, row in centred.items()},
        shares=values[:kept] / values.sum(),
        mean=mean,
        axes=basis,
    )


def _check(rows: Mapping[str, Rows]) -> None:
    if not rows:
        raise ValueError("joint_trajectories needs a run: write joint_trajectories({'name': log_dir})")
    made = {name: (part.made_of, part.values.shape[1]) for name, part in rows.items()}
    if len(set(made.values())) > 1:
        words = "; ".join(f"{n}: {', '.join(w) or 'unknown'}, {c} columns" for n, (w, c) in made.items())
        raise ValueError(f"the rows of these runs cannot be stacked, give all of them one probe and one size: {words}")
    bad = [name for name, part in rows.items() if not bool(part.values.isfinite().all())]
    if bad:
        raise ValueError(f"rows of {', '.join(bad)} are not finite")
    if sum(len(part.values) for part in rows.values()) < 2:
        raise ValueError("principal components need two readings at least, got one")


def _centred(parts: Sequence[Tensor], mean: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """All rows less the mean, some columns at a time."""
    width = max(1, BLOCK // sum(map(len, parts)))
    for start in range(0, len(mean), width):
        columns = slice(start, start + width)
        yield torch.cat([part[:, columns].double() for part in parts]) - mean[columns], columns


def _shared(rows: Mapping[str, Rows]) -> dict[str, Tensor]:
    """References by name, and by run where runs mean different rows by one name."""
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for part in rows.values() for name in part.references):
        mine = {run: part.references[name] for run, part in rows.items() if name in part.references}
        first = next(iter(mine.values()))
        alike = all(torch.equal(row, first) for row in mine.values())
        found |= {name: first} if alike else {f"{name} of {run}": row for run, row in mine.items()}
    return found


def _outside(centred: Tensor, basis: Tensor) -> float:
    total = float(centred.square().sum())
    return 1 - float((basis @ centred).square().sum()) / total if total else 0.0


def speeds(rows: Rows) -> Tensor:
    r"""Distance moved since the reading before, per unit of log step; NaN at the first ``[reading]``.

    .. math:: v_t = \frac{\mathrm{rms}(a_t - a_{t-1})}{\log(s_t + 1) - \log(s_{t-1} + 1)}

    Args:
        rows: Of one run.

    >>> speeds(Rows(steps=torch.tensor([0, 1]), values=torch.tensor([[0.0, 0.0], [1.0, 1.0]])))
    tensor([   nan, 1.4427], dtype=torch.float64)
    """
    moved = rows.values.double().diff(dim=0).square().mean(1).sqrt()
    return torch.cat([torch.full((1,), math.nan).double(), moved / rows.steps.double().log1p().diff()])
