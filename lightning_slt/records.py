"""What every reading leaves on disk, and loading it.

One folder ``slt_records`` beside the logs holds one file ``<name>.jsonl`` per monitor: a line per reading, JSON, with
step, epoch, time, settings, and every estimate chain by chain. A number that does not exist is ``null`` in the file and
NaN in memory. Large arrays (traces) and anchors lie beside it as safetensors. A further run that logs to the same
folder gets a file of its own, ``<name>.1.jsonl``; a resumed one goes on in the file of the run.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lightning_slt.files import Contents, load, save
from lightning_slt.results import Result, StoredResult
from lightning_slt.types import Estimate, Health, Params

T = TypeVar("T")

FOLDER = "slt_records"
FORMAT = 1
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of one monitor.

    Attributes:
        name: The monitor's.
        index: Which reading of the run, from 0.
        step: The x axis of the logs: batches that stepped the optimizer.
        global_step: Optimizer steps, as the Trainer counts them.
        epoch: Epoch in which the anchor was taken.
        time: When the reading ended, in seconds since 1970.
        duration: What it took, in seconds.
        overhead: Reading time over training time so far, this reading included; NaN before 5 % of the fit.
        settings: Sampler, nβ, γ, resolution, counts and what was calibrated.
        estimates: ``{component: {key: estimate}}``, an :class:`lightning_slt.types.Estimate` or, for what has arrays, a
            :class:`lightning_slt.results.Result`; empty where the reading failed.
        failure: Why it failed, or None.
        revises: Index of the earlier reading of the same weights that this one replaces: the run had outgrown its
            settings; None for a first one.
        anchor: File with the weights that were sampled around, where the monitor saved them.
    """

    name: str
    index: int
    step: int
    global_step: int
    epoch: int
    time: float
    duration: float
    overhead: float
    settings: Mapping[str, Any]
    estimates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str | None = None
    revises: int | None = None
    anchor: Path | None = None


_PLAIN_FIELDS = tuple(f for f in Reading.__dataclass_fields__ if f not in ("estimates", "anchor"))


class RecordWriter:
    """Appends readings to one monitor's file; a line is written whole or not at all.

    Args:
        run_dir: Folder of the logs.
        name: The monitor's; a slash becomes a sub-folder.
        resume: File of the same name to go on with, as :attr:`file` gave it; None for a file of this run's own.
    """

    def __init__(self, run_dir: str | Path, name: str, *, resume: str | None = None) -> None:
        """Make folder and file; end a line that an earlier run left unfinished."""
        folder = (Path(run_dir) / FOLDER / f"{name}.jsonl").parent
        folder.mkdir(parents=True, exist_ok=True)
        last = Path(name).name
        mine = [f for f in (resume,) if f and Path(f).name == f and f.startswith(f"{last}.") and (folder / f).exists()]
        self.path = folder / mine[0] if mine else _free_path(folder, last)
        if mine and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
        self.path.touch()  # taken by this run, and an empty one says that it made no reading

    @property
    def file(self) -> str:
        """Name of the file, for a resumed run to go on with."""
        return self.path.name

    def write(self, reading: Reading, *, anchor: Params | None = None) -> None:
        """Append one reading, with its traces and its anchor beside the file where there are any.

        Args:
            reading: What to append.
            anchor: Weights around which it sampled.
        """
        row = _encode(reading)
        traces = {
            f"{component}/{key}/{array}": values.clone()  # the file format refuses tensors that share memory
            for component, estimates in reading.estimates.items()
            for key, estimate in estimates.items()
            for array, values in _arrays(estimate).items()
        }
        for entry, tensors in (("traces", traces), ("anchor", anchor)):
            if tensors:
                row[entry] = f"{self.path.stem}/{entry}-{reading.index:06d}.safetensors"
                save(tensors, self.path.parent / row[entry], _header(reading, tensors, holds=entry))
        with self.path.open("ab") as file:
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _free_path(folder: Path, name: str) -> Path:
    numbered = (folder / (f"{name}.{k}.jsonl" if k else f"{name}.jsonl") for k in itertools.count())
    return next(path for path in numbered if not path.exists())


def load_records(run_dir: str | Path, *, name: str | None = None, revised: bool = False) -> list[Reading]:
    """Readings of a run, in the order in which they were made.

    Args:
        run_dir: Folder of the logs, any folder above it, its ``slt_records``, or a single file of these.
        name: Only this monitor's.
        revised: Also those that a later reading of the same weights replaces; their settings are those of then.

    Returns:
        Readings; lines that are broken are left out with a warning. Empty, with a warning, where a run made none.

    Raises:
        FileNotFoundError: If there are no records there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     RecordWriter(folder, "slt").write(Reading(name="slt", index=0, step=5, global_step=5, epoch=0, time=0.0,
    ...                                               duration=1.0, overhead=0.1, settings={}))
    ...     [reading.step for reading in load_records(folder)]
    [5]
    """
    files = _record_files(Path(run_dir))
    everything = [reading for file in files for reading in _read(file, revised=revised)]
    readings = [reading for reading in everything if name is None or reading.name == name]
    if not everything:
        warnings.warn(
            f"no reading was made in this run: {', '.join(map(str, files))} holds none. With max_overhead= the first "
            "one waits until the run can pay for it; at_end=True reads the last weights whatever it costs",
            stacklevel=2,
        )
    elif not readings:
        names = ", ".join(sorted({repr(reading.name) for reading in everything}))
        warnings.warn(f"no reading of a monitor called {name!r}; there are readings of {names}", stacklevel=2)
    return sorted(readings, key=lambda reading: reading.time)


def _record_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    inside = FOLDER in place.absolute().parts
    files = sorted(place.rglob("*.jsonl" if inside else f"{FOLDER}/**/*.jsonl"))
    if not files:
        problem = f"there are no {FOLDER}/*.jsonl below {place}" if place.exists() else f"{place} does not exist"
        raise FileNotFoundError(f"{problem}; give the folder that the logger wrote to")
    return files


def load_anchor(reading: Reading) -> Params:
    """Weights around which a reading sampled, where the monitor saved them.

    Raises:
        FileNotFoundError: If it did not (``snapshots=True`` does).
    """
    if reading.anchor is None:
        raise FileNotFoundError(
            f"reading {reading.index} of {reading.name!r} has no anchor; monitors save it with snapshots=True"
        )
    return load_file(reading.anchor)


def _read(file: Path, *, revised: bool) -> list[Reading]:
    """A run that was resumed from an earlier step makes readings again: the later ones stand."""
    readings: list[Reading] = []
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            reading = _decode(json.loads(line), file.parent)
        except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            warnings.warn(f"{file}:{number} is no reading and is left out ({error})", stacklevel=3)
            continue
        readings = [r for r in readings if r.index < reading.index]
        readings.append(reading)
    replaced = {reading.revises for reading in readings}
    return readings if revised else [reading for reading in readings if reading.index not in replaced]


def _encode(reading: Reading) -> dict[str, Any]:
    estimates = {
        component: {key: _encode_estimate(estimate) for key, estimate in by_key.items()}
        for component, by_key in reading.estimates.items()
    }
    row = {name: getattr(reading, name) for name in _PLAIN_FIELDS}
    encoded: dict[str, Any] = _plain({"format": FORMAT, **row, "estimates": estimates})
    return encoded


def _arrays(estimate: Estimate | Result) -> Mapping[str, Tensor]:
    return estimate.arrays() if isinstance(estimate, Result) else estimate.traces


def _header(reading: Reading, tensors: Params, *, holds: str) -> dict[str, Any]:
    """What a file of arrays says of itself."""
    where = {name: getattr(reading, name) for name in ("step", "global_step", "epoch")}
    header = {"monitor": reading.name, "reading": reading.index, **where, "holds": holds}
    if holds == "anchor":
        return header
    found = {
        f"{c}/{key}": estimate for c, estimates in reading.estimates.items() for key, estimate in estimates.items()
    }
    axes = {f"{place}/{array}": names for place, e in found.items() for array, names in _axes(e).items()}
    return {
        **header,
        "kind": {place: _kind(estimate) for place, estimate in found.items()},
        "axes": {name: names for name, names in axes.items() if name in tensors},
        "names": {place: names for place, e in found.items() if isinstance(e, Result) and (names := e.names())},
    }


def _axes(estimate: Estimate | Result) -> Mapping[str, tuple[str, ...]]:
    return estimate.axes() if isinstance(estimate, Result) else dict.fromkeys(estimate.traces, ("chain", "draw"))


def _kind(estimate: Estimate | Result) -> str:
    return estimate.kind if isinstance(estimate, StoredResult) else type(estimate).__name__


def _encode_estimate(estimate: Estimate | Result) -> dict[str, Any]:
    if isinstance(estimate, Result):
        found = {"kind": _kind(estimate), "numbers": estimate.scalars(), "health": asdict(estimate.health)}
        return {**found, "names": names} if (names := estimate.names()) else found
    return {
        "mean": estimate.mean,
        "stderr": estimate.stderr,
        "per_chain": estimate.per_chain.tolist(),
        "health": asdict(estimate.health),
    }


def _plain(value: Any) -> Any:
    """JSON without NaN: what does not exist is null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _decode(row: Mapping[str, Any], folder: Path) -> Reading:
    if row["format"] != FORMAT:
        raise ValueError(f"format {row['format']}, this version reads {FORMAT}")
    traces, anchor = _inside(folder, row.get("traces")), _inside(folder, row.get("anchor"))
    arrays, header = load(traces) if traces else Contents({}, {})
    axes = {name: tuple(words) for name, words in header.get("axes", {}).items()}
    estimates = {
        component: {
            key: _decode_estimate(encoded, _below(arrays, f"{component}/{key}/"), _below(axes, f"{component}/{key}/"))
            for key, encoded in by_key.items()
        }
        for component, by_key in row["estimates"].items()
    }
    row = {"revises": None, **row}
    known = {name: row[name] for name in _PLAIN_FIELDS}
    settings = {
        key: _INFINITE.get(value, value) if isinstance(value, str) else value for key, value in row["settings"].items()
    }
    known |= {"overhead": _number(row["overhead"]), "settings": settings}
    return Reading(**known, estimates=estimates, anchor=anchor)


def _below(arrays: Mapping[str, T], prefix: str) -> dict[str, T]:
    """Arrays of one estimate, or what is said of them, and not of ``llc/other`` where they are those of ``llc``."""
    below = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return {name: value for name, value in below.items() if "/" not in name}


def _inside(folder: Path, relative: str | None) -> Path | None:
    """A file that a line names, where it exists; never one outside the records."""
    if relative is None:
        return None
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"its arrays lie outside the records: {relative}")
    return path if path.exists() else None


def _decode_estimate(
    row: Mapping[str, Any], arrays: Mapping[str, Tensor], axes: Mapping[str, tuple[str, ...]]
) -> Estimate | Result:
    if "kind" in row:
        numbers = {name: _number(value) for name, value in row["numbers"].items()}
        words = {name: tuple(values) for name, values in row.get("names", {}).items()}
        health = _decode_health(row["health"])
        return StoredResult(health=health, kind=row["kind"], numbers=numbers, tensors=arrays, words=words, dims=axes)
    return Estimate(
        mean=_number(row["mean"]),
        stderr=_number(row["stderr"]),
        per_chain=torch.tensor([_number(v) for v in row["per_chain"]], dtype=torch.float64),
        health=_decode_health(row["health"]),
        traces=arrays,
    )


def _decode_health(row: Mapping[str, Any]) -> Health:
    return Health(
        ok=bool(row["ok"]),
        failed=tuple(row["failed"]),
        warnings=tuple(row["warnings"]),
        values={k: _number(v) for k, v in row["values"].items()},
        dead_chains={int(k): int(v) for k, v in row["dead_chains"].items()},
    )
