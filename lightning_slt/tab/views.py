"""Views of one reading's arrays, and the trajectory of a run: what takes more than reading a line."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from lightning_slt.analysis.kernels import clusters, normalized, order, pca, some_of
from lightning_slt.analysis.responses import MODES, modes, noise_share, standardized
from lightning_slt.analysis.trajectories import Rows, joint_trajectories
from lightning_slt.components import FULL
from lightning_slt.tab.data import BROKEN_ARRAYS, View, array_file, line
from lightning_slt.tab.points import number
from lightning_slt.tab.runs import RecordFile, RunRecords

SAMPLES = 1000
"""Samples that a kernel's view holds, chosen by chance among more, always the same."""

GROUPS = 8
"""Clusters that order a heat map without labels."""

ROWS = 1000
"""Rows that a response matrix's view holds, evenly spaced in the order of the first mode."""

COUNT = 10
"""Helpful and harmful samples of a query."""

SHORT = 4
"""Significant digits of numbers that are only drawn."""


class Place(NamedTuple):
    """Where an estimate stands: monitor, reading, component, key."""

    monitor: str
    reading: int
    component: str
    key: str


class MissingArrayError(LookupError):
    """A reading did not keep what was asked for, or it cannot be read."""


REFUSALS = (LookupError, OSError, ValueError, RuntimeError, TypeError, AttributeError)
"""What a view raises where there is nothing to show. The last three: a record from elsewhere may hold anything."""


def refusal(error: Exception) -> str:
    """One of :data:`REFUSALS` in words."""
    foreign = isinstance(error, KeyError | IndexError | RuntimeError | TypeError | AttributeError)
    return f"this record does not hold what was expected ({error!r})" if foreign else str(error)


def arrays(
    records: RunRecords, place: Place, names: Sequence[str], *, optional: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Arrays of one estimate.

    Args:
        records: Of the run.
        place: Of the estimate.
        names: Arrays that must be there.
        optional: Further ones, left out where there are none.

    Raises:
        LookupError: If there is no such reading, or it lacks one of them.
    """
    row = line(records, place.monitor, place.reading)
    where = f"{place.component}/{place.key}"
    try:
        path = array_file(records.files[place.monitor].path.parent, row)
        if path is None:
            raise MissingArrayError(f"reading {place.reading} of {place.monitor!r} kept no arrays")
        with safe_open(path, framework="pt") as file:
            there = set(file.keys())
            wanted = [name for name in (*names, *optional) if f"{where}/{name}" in there]
            found = {name: file.get_tensor(f"{where}/{name}") for name in wanted}
    except BROKEN_ARRAYS as error:
        if isinstance(error, MissingArrayError):
            raise
        raise MissingArrayError(f"the arrays of this reading cannot be read: {error}") from error
    if missing := [name for name in names if name not in found]:
        raise MissingArrayError(f"reading {place.reading} of {place.monitor!r} kept no {', '.join(missing)} of {where}")
    return found


def array(records: RunRecords, place: Place, name: str) -> Tensor:
    """One array in single precision, as the browser takes it; see :func:`arrays`."""
    return arrays(records, place, [name])[name].float().contiguous()


def kernel(records: RunRecords, place: Place) -> View:
    """A loss kernel: its factor, the order of its heat map, its clusters, labels and embedding.

    Returns:
        ``{"order", "clusters", "labels", "indices", "embedding", "shares", "factor", "shown", "of"}``, all but
        ``order`` in the order of the data; R is nearly ``factorᵀ factor``.

    Raises:
        LookupError: If the reading kept no kernel.
    """
    found = arrays(records, place, ["factor"], optional=["labels", "indices"])
    total = found["factor"].shape[1]
    some = some_of(total, SAMPLES)
    factor = normalized(found["factor"][:, some].double())
    if not bool(factor.isfinite().all()):
        raise MissingArrayError("no chain of this reading finished, so that it has no kernel")
    labels = found["labels"][some] if "labels" in found else None
    groups = clusters(factor, GROUPS) if len(some) >= GROUPS else torch.zeros(len(some), dtype=torch.long)
    components = pca(factor, 2)
    points = torch.nn.functional.pad(components.points, (0, 2 - components.points.shape[1]))
    return {
        "order": order(factor, groups if labels is None else labels).tolist(),
        "clusters": groups.tolist(),
        "labels": None if labels is None else labels.tolist(),
        "indices": found["indices"][some].tolist() if "indices" in found else some.tolist(),
        "embedding": _table(points),
        "shares": _list(components.shares),
        "factor": {"shape": list(factor.shape), "base64": _base64(factor.half())},
        "shown": len(some),
        "of": total,
    }


def responses(records: RunRecords, place: Place) -> View:
    """A response matrix, standardized, with its modes.

    Returns:
        ``{"components", "rows", "matrix", "scores", "loadings", "shares", "noise", "shown", "of"}``: rows in the order
        of the first mode, so that what the components express comes first.

    Raises:
        LookupError: If the reading kept no such matrix.
    """
    found = arrays(records, place, ["matrix", "rows"], optional=["stderr"])
    names = line(records, place.monitor, place.reading)["estimates"][place.component][place.key].get("names", {})
    matrix = found["matrix"]
    if matrix.ndim != 2 or len(matrix) < 2 or not matrix.numel():
        raise MissingArrayError(f"a response matrix needs two rows at least, got shape {tuple(matrix.shape)}")
    if not bool(matrix.isfinite().all()):
        raise MissingArrayError("no chain of this reading finished, so that it has no response matrix")
    probes = names.get("probes", [])
    single = matrix.shape[1] < 2
    values = standardized(matrix, centred=not single)
    modal = modes(values, count=1 if single else min(MODES, matrix.shape[1] - 1))
    shown = modal.scores[:, 0].argsort()[:: -(-len(matrix) // ROWS)]
    return {
        "components": list(names.get("components", [])),
        "rows": [_row_name(probes, *row) for row in found["rows"][shown].tolist()],
        "matrix": _table(values[shown]),
        "scores": _table(modal.scores[shown]),
        "loadings": _table(modal.loadings),
        "shares": _list(modal.share),
        "noise": number(noise_share(matrix, found["stderr"]), digits=SHORT) if "stderr" in found else None,
        "shown": len(shown),
        "of": len(matrix),
    }


def _row_name(probes: Sequence[str], probe: int, sample: int, token: int) -> str:
    name = probes[probe] if 0 <= probe < len(probes) else f"probe {probe}"
    return f"{name} {sample}" + (f", token {token}" if token >= 0 else "")


def influence(records: RunRecords, place: Place, query: int) -> View:
    """The training samples that help and harm one query most, as (index, influence, standard error, label).

    Args:
        records: Of the run.
        place: Of the estimate.
        query: Column of the matrix, from 0; ``queries`` lists the index and the label of each in the user's data.

    Raises:
        LookupError: If the reading kept no influences, or has no such query.
    """
    sides = ("train_indices", "query_indices")
    found = arrays(records, place, ["influence", *sides], optional=["stderr", "train_labels", "query_labels"])
    matrix = found["influence"]
    if matrix.ndim != 2:
        raise MissingArrayError("tokens were kept apart; write BayesianInfluence(tokens='sum') for single samples")
    if not 0 <= query < matrix.shape[1]:
        raise LookupError(f"query must be between 0 and {matrix.shape[1] - 1}, got {query}")
    column = matrix[:, query].double()
    errors = found["stderr"][:, query] if "stderr" in found else torch.full_like(column, math.nan)

    def ends(sign: float) -> list[list[Any]]:
        signed = sign * column
        places = signed.argsort(descending=True)[:COUNT]
        return [
            [
                int(found["train_indices"][at]),
                number(float(column[at]), digits=SHORT),
                number(float(errors[at]), digits=SHORT),
                int(found["train_labels"][at]) if "train_labels" in found else None,
            ]
            for at in places.tolist()
            if signed[at] > 0
        ]

    labels = found["query_labels"].tolist() if "query_labels" in found else [None] * matrix.shape[1]
    queries = [list(pair) for pair in zip(found["query_indices"].tolist(), labels, strict=True)]
    return {"queries": queries, "query": query, "helpful": ends(-1.0), "harmful": ends(1.0)}


def trajectory(records: RunRecords) -> View:
    """Where the network went: the first three principal components of what a trajectory's readings kept.

    Raises:
        LookupError: If the run kept none, or nothing has moved yet.
    """
    for monitor, file in records.files.items():
        if (key := _position(file)) is not None:
            file.refresh()
            return _trajectory(records, monitor, file, key)
    raise LookupError("this run logged no trajectory: add TrajectoryMonitor(probe=...)")


def _position(file: RecordFile) -> str | None:
    """Key of a monitor's trajectory, by its first reading that did not fail."""
    first = next((row for row in file.rows if row.points), None)
    estimates = {} if first is None else file.line(first.index)["estimates"].get(FULL, {})
    return next((key for key, estimate in estimates.items() if estimate.get("kind") == "Position"), None)


def _trajectory(records: RunRecords, monitor: str, file: RecordFile, key: str) -> View:
    found: dict[int, dict[str, Tensor]] = {}
    made: dict[int, tuple[str, ...]] = {}
    names: list[str] = []
    skipped = 0
    for row in sorted(file.rows, key=lambda row: (row.step, row.index)):
        try:
            found[row.step] = arrays(records, Place(monitor, row.index, FULL, key), ["row"], optional=["references"])
        except LookupError:
            skipped += 1
            continue
        said = file.line(row.index)["estimates"][FULL][key].get("names", {})
        made[row.step], names = tuple(said.get("made_of", ())), said.get("reference_names", [])
    alike = [step for step in found if made[step] == made[max(found)]]  # a resumed run may have changed its probe
    skipped += len(found) - len(alike)
    rows = Rows(
        steps=torch.tensor(alike),
        values=torch.stack([found[step]["row"] for step in alike]) if alike else torch.empty(0, 0),
        references=dict(zip(names, found[alike[-1]].get("references", ()), strict=False)) if alike else {},
    )
    if len(alike) < 2 or not bool(rows.values.diff(dim=0).any()):
        raise LookupError(f"{monitor!r} has no two readings between which the network has moved")
    joint = joint_trajectories({monitor: rows}, axes=3)
    return {
        "monitor": monitor,
        "steps": alike,
        "points": _table(joint.points[monitor]),
        "references": {name: _list(point) for name, point in joint.references.items()},
        "outside": {name: number(share, digits=SHORT) for name, share in joint.outside.items()},
        "shares": _list(joint.shares),
        "skipped": skipped,
    }


def _list(values: Tensor) -> list[float | None]:
    return [number(value, digits=SHORT) for value in values.double().tolist()]


def _table(values: Tensor) -> list[list[float | None]]:
    return [_list(row) for row in values]


def _base64(values: Tensor) -> str:
    """Little-endian bytes as text."""
    array = values.numpy()
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode()
