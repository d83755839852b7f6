"""Writing readings: a line of JSON each, and files of arrays beside it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_slt.files import append_line, save
from lightning_slt.records.reading import FOLDER, FORMAT, PLAIN_FIELDS, Reading
from lightning_slt.results import Result, StoredResult
from lightning_slt.types import Estimate, Params


class RecordWriter:
    """Appends readings to one monitor's file; a line is written whole or not at all.

    Args:
        run_dir: Folder of the logs.
        name: The monitor's; a slash becomes a sub-folder.
        resume: File of the same name to go on with, as :attr:`file` gave it; None for a file of this run's own.
    """

    def __init__(self, run_dir: str | Path, name: str, *, resume: str | None = None) -> None:
        """Make folder and file."""
        folder = (Path(run_dir) / FOLDER / f"{name}.jsonl").parent
        folder.mkdir(parents=True, exist_ok=True)
        last = Path(name).name
        mine = [f for f in (resume,) if f and Path(f).name == f and f.startswith(f"{last}.") and (folder / f).exists()]
        self.path = folder / mine[0] if mine else _new_file(folder, last)

    @property
    def file(self) -> str:
        """Name of the file, for a resumed run to go on with."""
        return self.path.name

    def write(self, reading: Reading, *, anchor: Params | None = None) -> None:
        """Append one reading, with its traces and its anchor beside the file where there are any.

        Args:
            reading: What to append.
            anchor: Weights around which it sampled.

        Raises:
            OSError: If it cannot be written: then the file is as it was.
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
        append_line(self.path, json.dumps(row, allow_nan=False))


def _new_file(folder: Path, name: str) -> Path:
    """Taken by this run alone, also where another one begins at this moment; an empty one says: no reading."""
    for path in (folder / (f"{name}.{k}.jsonl" if k else f"{name}.jsonl") for k in itertools.count()):
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always another number")


def _encode(reading: Reading) -> dict[str, Any]:
    estimates = {
        component: {key: _encode_estimate(estimate) for key, estimate in by_key.items()}
        for component, by_key in reading.estimates.items()
    }
    row = {name: getattr(reading, name) for name in PLAIN_FIELDS}
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
