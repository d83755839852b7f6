"""Readings as labelled arrays: an xarray Dataset for each monitor, for selections, plots, netCDF and zarr.

Every number and array of an estimate is a variable ``<key>_<field>``, after the log tags and the attributes of results:
``llc_mean``, ``llc_per_chain``, ``influence_normalized``, ``susceptibility_matrix``. All have the axis ``reading``, and
``component`` where each component has its own; then the axes that the estimate names (:meth:`Result.axes`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_slt.records import Reading
from lightning_slt.results import Result
from lightning_slt.types import Estimate

if TYPE_CHECKING:
    from xarray import Dataset

Array = np.ndarray[Any, Any]

Labels = dict[Any, dict[str, Any]]
"""What lies along an axis, in order, each with what else is known of it: ``{7: {"label": 1}}``."""

Variable = tuple[tuple[str, ...], Array]
"""Names of axes, and values."""

SHARED = ("component", "chain", "draw", "check")
"""Axes that mean the same for all estimators of a monitor."""

TIMES = ("step", "global_step", "epoch", "time", "duration", "overhead")


class _Cell(NamedTuple):
    """One array of one estimate, and its place in a variable."""

    key: str
    reading: int
    component: str | None
    values: Array
    axes: tuple[str, ...]
    labels: tuple[Labels, ...]


def to_xarray(records: Iterable[Reading]) -> dict[str, Dataset]:
    """Readings as one Dataset for each monitor: ``slt.to_xarray(slt.load_records(run))["slt"]``.

    Along ``reading`` stand the coordinates ``step``, ``global_step``, ``epoch``, ``time`` (seconds since 1970),
    ``duration``, ``overhead`` and ``failure``; ``dataset.swap_dims(reading="step")`` makes the step the axis. Samples
    are named by their index in the user's data, with their labels as ``train_label`` and the like; rows of a response
    matrix as ``probe/sample/token``. Settings that stay the same are attributes, others variables ``setting_<name>``.

    Readings that differ in what they have are laid out on all that any of them has. What one lacks, because it failed,
    a chain died or a component came later, is NaN; False in ``…_ok``; empty in texts. Where two estimators of a
    monitor look at different samples, their axes are told apart as ``train_<key>``.

    Args:
        records: Of :func:`lightning_slt.load_records`, or as a listener hears them.

    Returns:
        ``{monitor: Dataset}``; ``dataset.to_netcdf(path)`` and ``dataset.to_zarr(path)`` write one.

    Raises:
        ImportError: Without xarray.
        ValueError: If two variables would have one name, or one has other axes in another reading.
    """
    try:
        import xarray
    except ImportError as error:
        raise ImportError("to_xarray needs xarray; pip install lightning_slt[store]") from error
    monitors: dict[str, list[Reading]] = {}
    for reading in records:
        monitors.setdefault(reading.name, []).append(reading)
    found = {}
    for name, readings in monitors.items():
        cells = _told_apart(_cells(readings))
        coordinates = _coordinates(cells)
        variables = {field: _variable(field, group, len(readings), coordinates) for field, group in cells.items()}
        constant, varying = _settings([reading.settings for reading in readings])
        along = {axis: ((axis,), np.array(list(labels))) for axis, labels in coordinates.items()}
        coords = {**_places(readings), **along, **_notes(coordinates)}
        found[name] = xarray.Dataset({**variables, **varying}, coords, {"monitor": name, **constant})
    return found


def _cells(readings: Sequence[Reading]) -> dict[str, list[_Cell]]:
    """Every array of every estimate, by the name of its variable."""
    found: dict[str, list[_Cell]] = {}
    for number, reading in enumerate(readings):
        for component, by_key in reading.estimates.items():
            for key, estimate in by_key.items():
                arrays = estimate.arrays() if isinstance(estimate, Result) else dict(estimate.traces)
                words = estimate.names() if isinstance(estimate, Result) else {}
                place = None if "components" in words else component  # it spans them, and has an axis of its own
                for field, values, axes in _fields(key.replace("/", "_"), estimate, arrays):
                    chains = int(reading.settings.get("num_chains", 0))
                    labels = tuple(
                        _labels(axis, size, estimate, arrays, words, chains)
                        for axis, size in zip(axes, values.shape, strict=True)
                    )
                    found.setdefault(field, []).append(_Cell(key, number, place, values, axes, labels))
    return found


def _fields(key: str, estimate: Any, arrays: Mapping[str, Tensor]) -> Iterator[tuple[str, Array, tuple[str, ...]]]:
    """Name, values and axes of all that an estimate has, but for what serves as coordinates."""
    if isinstance(estimate, Estimate):
        numbers = {"mean": estimate.mean, "stderr": estimate.stderr}
        axes = {"per_chain": ("chain",), **dict.fromkeys(estimate.traces, ("chain", "draw"))}
        arrays = {"per_chain": estimate.per_chain, **arrays}
    else:
        numbers, axes = estimate.scalars(), estimate.axes()
    for name, number in numbers.items():
        yield f"{key}_{name}", np.array(number), ()
    for name, tensor in arrays.items():
        if name != "rows" and not name.endswith(("indices", "labels")):
            unnamed = tuple(f"{key}_{name}_axis_{place}" for place in range(tensor.ndim))
            yield f"{key}_{name}", _numpy(tensor), axes.get(name, unnamed)
    yield f"{key}_ok", np.array(estimate.health.ok), ()
    yield f"{key}_failed", np.array(", ".join(estimate.health.failed)), ()
    yield f"{key}_health", np.array(list(estimate.health.values.values())), ("check",)


def _numpy(tensor: Tensor) -> Array:
    """Half precision, which netCDF does not have, as single."""
    array: Array = (tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor).cpu().numpy()
    return array


def _labels(
    axis: str,
    size: int,
    estimate: Estimate | Result,
    arrays: Mapping[str, Tensor],
    words: Mapping[str, Sequence[str]],
    chains: int,
) -> Labels:
    """What lies along an axis of an array; whole numbers where nothing tells it."""
    plain: Labels = {place: {} for place in range(size)}
    if axis == "check":
        return {name: {} for name in estimate.health.values}
    if axis == "chain" and size < chains:  # dead ones are left out of some arrays
        plain = {chain: {} for chain in range(chains) if chain not in estimate.health.dead_chains}
    indices = arrays.get("indices" if axis in ("sample", "other") else f"{axis}_indices")
    classes = arrays.get("labels" if axis in ("sample", "other") else f"{axis}_labels")
    named = plain
    if axis == "row" and "rows" in arrays:
        named = dict(_row(words["probes"], *row) for row in arrays["rows"].tolist())
    elif f"{axis}s" in words:
        named = {word: {} for word in words[f"{axis}s"]}
    elif indices is not None:
        known = [{}] * len(indices) if classes is None else [{"label": value} for value in classes.tolist()]
        named = dict(zip(indices.tolist(), known, strict=True))
    return named if len(named) == size else {place: {} for place in range(size)}


def _row(probes: Sequence[str], probe: int, sample: int, token: int) -> tuple[str, dict[str, Any]]:
    known = {"probe": probes[probe], "sample": sample, "token": token}
    return f"{probes[probe]}/{sample}" + (f"/{token}" if token >= 0 else ""), known


def _told_apart(cells: dict[str, list[_Cell]]) -> dict[str, list[_Cell]]:
    """The same, an axis called ``<axis>_<key>`` where not all estimators have the same along it."""
    along: dict[str, dict[str, Labels]] = {}
    for cell in (cell for group in cells.values() for cell in group):
        for axis, labels in zip(cell.axes, cell.labels, strict=True):
            known = along.setdefault(axis, {}).setdefault(cell.key, {})
            known |= {label: notes for label, notes in labels.items() if label not in known}
    differ = {axis for axis, by_key in along.items() if any(x != y for x, y in pairwise(by_key.values()))}
    apart = differ.difference(SHARED)

    def renamed(cell: _Cell) -> _Cell:
        key = cell.key.replace("/", "_")
        return cell._replace(axes=tuple(f"{axis}_{key}" if axis in apart else axis for axis in cell.axes))

    return {field: [renamed(cell) for cell in group] for field, group in cells.items()}


def _coordinates(cells: Mapping[str, Sequence[_Cell]]) -> dict[str, Labels]:
    """All that lies along each axis anywhere, in order of appearance."""
    found: dict[str, Labels] = {}
    for cell in (cell for group in cells.values() for cell in group):
        if cell.component is not None:
            found.setdefault("component", {}).setdefault(cell.component, {})
        for axis, labels in zip(cell.axes, cell.labels, strict=True):
            known = found.setdefault(axis, {})
            known |= {label: notes for label, notes in labels.items() if label not in known}
    return found


def _variable(field: str, cells: Sequence[_Cell], readings: int, coordinates: Mapping[str, Labels]) -> Variable:
    """The arrays of all readings and components as one."""
    first = cells[0]
    if any(cell.key != first.key for cell in cells):
        keys = sorted({cell.key for cell in cells})
        raise ValueError(f"{keys[0]!r} and {keys[1]!r} both have a variable {field!r}; give one another name=")
    if any(cell.axes != first.axes for cell in cells):
        shapes = sorted({str(cell.axes) for cell in cells})
        raise ValueError(f"{field} has other axes in other readings: {' and '.join(shapes)}; convert them apart")
    spans = first.component is None
    outer = ("reading",) if spans else ("reading", "component")
    shape = [readings] + [len(coordinates[axis]) for axis in (*outer[1:], *first.axes)]
    whole = math.prod(shape) == sum(cell.values.size for cell in cells)
    values = _nothing(shape, np.result_type(*(cell.values.dtype for cell in cells)), whole=whole)
    places = {
        axis: {label: place for place, label in enumerate(coordinates[axis])} for axis in (*outer[1:], *first.axes)
    }
    for cell in cells:
        inner = [[places[axis][label] for label in labels] for axis, labels in zip(cell.axes, cell.labels, strict=True)]
        where = (cell.reading,) if spans else (cell.reading, places["component"][cell.component])
        if inner:
            values[where][np.ix_(*inner)] = cell.values
        else:
            values[where] = cell.values
    return (*outer, *first.axes), values


def _nothing(shape: Sequence[int], kind: np.dtype[Any], *, whole: bool) -> Array:
    """An array to be filled, with what stands for a missing value where not all of it will be."""
    if kind.kind in "iu" and not whole:
        kind = np.dtype(np.float64)
    return np.full(shape, {"f": math.nan, "b": False, "U": ""}.get(kind.kind, 0), dtype=kind)


def _places(readings: Sequence[Reading]) -> dict[str, Variable]:
    """Coordinates of the readings."""
    along = {name: np.array([getattr(reading, name) for reading in readings]) for name in TIMES}
    along |= {
        "reading": np.array([r.index for r in readings]),
        "failure": np.array([r.failure or "" for r in readings]),
    }
    return {name: (("reading",), values) for name, values in along.items()}


def _notes(coordinates: Mapping[str, Labels]) -> dict[str, Variable]:
    """What else is known of what lies along the axes: ``train_label``, ``row_probe``."""
    found: dict[str, Variable] = {}
    for axis, labels in coordinates.items():
        notes = list(labels.values())
        for name in notes[0] if notes else ():
            found[f"{axis}_{name}"] = (axis,), np.array([note[name] for note in notes])
    return found


def _settings(all_settings: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Variable]]:
    """Those that never change, as attributes, and those that do, as variables."""
    constant: dict[str, Any] = {}
    varying: dict[str, Variable] = {}
    for name in dict.fromkeys(name for settings in all_settings for name in settings):
        values = [settings.get(name) for settings in all_settings]
        known = [value if isinstance(value, str | int | float) else str(value) for value in values if value is not None]
        if known and all(value == known[0] for value in known):
            constant[name] = int(known[0]) if isinstance(known[0], bool) else known[0]
        elif known:
            missing = math.nan if all(isinstance(value, int | float) for value in known) else ""
            along = np.array([missing if value is None else value for value in values])
            varying[f"setting_{name.replace('.', '_')}"] = ("reading",), along
    return constant, varying
