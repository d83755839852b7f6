"""Loading what readings left, also where files are broken or come from elsewhere: nothing in them is run."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_slt.files import Contents, load
from lightning_slt.records.reading import FOLDER, FORMAT, PLAIN_FIELDS, Reading
from lightning_slt.results import Result, StoredResult
from lightning_slt.types import Estimate, Health, Params

T = TypeVar("T")

_INFINITE = {"inf": math.inf, "-inf": -math.inf}
_KINDS: dict[str, Any] = {
    **dict.fromkeys(("index", "step", "global_step", "epoch"), int),
    **dict.fromkeys(("time", "duration"), int | float),
    "name": str, "failure": str | None, "revises": int | None,
}  # fmt: skip

_BROKEN_LINE = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError, OSError)
"""What a line raises that holds something else: RuntimeError for lists too deep and links that lead to themselves."""

_BROKEN_FILE = (SafetensorError, OSError, ValueError)
"""What a file of arrays raises that is truncated, or none, or whose header is not ours."""


def load_records(run_dir: str | Path, *, name: str | None = None, revised: bool = False) -> list[Reading]:
    """Readings of a run, in the order in which they were made.

    Args:
        run_dir: Folder of the logs, any folder above it, its ``slt_records``, or a single file of these.
        name: Only this monitor's.
        revised: Also those that a later reading of the same weights replaces; their settings are those of then.

    Returns:
        Readings; lines that are broken are left out, and arrays that are, with a warning for each file. Empty, with a
        warning, where a run made none.

    Raises:
        FileNotFoundError: If there are no records there.

    >>> import tempfile
    >>> from lightning_slt.records import RecordWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     RecordWriter(folder, "slt").write(Reading(name="slt", index=0, step=5, global_step=5, epoch=0, time=0.0,
    ...                                               duration=1.0, overhead=0.1, settings={}))
    ...     [reading.step for reading in load_records(folder)]
    [5]
    """
    files = _record_files(Path(run_dir))
    everything = _in_order([_read(file, revised=revised) for file in files])
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
    return readings


def _record_files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    inside = FOLDER in place.absolute().parts
    files = sorted(file for file in place.rglob("*.jsonl" if inside else f"{FOLDER}/**/*.jsonl") if file.is_file())
    if not files:
        problem = f"there are no {FOLDER}/*.jsonl below {place}" if place.exists() else f"{place} does not exist"
        raise FileNotFoundError(f"{problem}; give the folder that the logger wrote to")
    return files


def load_anchor(reading: Reading) -> Params:
    """Weights around which a reading sampled, where the monitor saved them.

    Raises:
        FileNotFoundError: If it did not (``snapshots=True`` does).
        ValueError: If the file cannot be read.
    """
    if reading.anchor is None:
        raise FileNotFoundError(
            f"reading {reading.index} of {reading.name!r} has no anchor; monitors save it with snapshots=True"
        )
    try:
        return load(reading.anchor).tensors
    except _BROKEN_FILE as error:
        raise ValueError(f"the weights of this reading, {reading.anchor}, cannot be read: {error}") from error


def _in_order(runs: Sequence[Sequence[Reading]]) -> list[Reading]:
    """By the clock, but never against the order of a file: a clock may be set back while a run goes on."""
    dated = [
        pair for readings in runs for pair in zip(accumulate((r.time for r in readings), max), readings, strict=True)
    ]
    return [reading for _, reading in sorted(dated, key=lambda pair: pair[0])]


def _read(file: Path, *, revised: bool) -> list[Reading]:
    """A run that was resumed from an earlier step makes readings again: the later ones stand."""
    readings: list[Reading] = []
    no_readings, no_arrays = _Complaint("is no reading and is left out"), _Complaint("is without its arrays")
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = _row(line)
                path, contents = _inside(file.parent, row.get("traces")), Contents({}, {})
                try:
                    contents = contents if path is None else load(path)
                except _BROKEN_FILE as error:
                    no_arrays.note(number, error)
                reading = _decode(row, file.parent, contents)
            except _BROKEN_LINE as error:
                no_readings.note(number, error)
                continue
            while readings and readings[-1].index >= reading.index:
                readings.pop()
            readings.append(reading)
    for complaint in (no_readings, no_arrays):
        complaint.tell(file)
    replaced = {reading.revises for reading in readings}
    return readings if revised else [reading for reading in readings if reading.index not in replaced]


class _Complaint:
    """What is wrong with lines of a file, told once."""

    def __init__(self, words: str) -> None:
        self.words, self.first, self.others = words, "", 0

    def note(self, number: int, error: Exception) -> None:
        self.others += bool(self.first)
        self.first = self.first or f"{number} {self.words} ({error})"

    def tell(self, file: Path) -> None:
        if self.first:
            more = f"; so {'is 1 line' if self.others == 1 else f'are {self.others} lines'} more" if self.others else ""
            warnings.warn(f"{file}:{self.first}{more}", stacklevel=4)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _row(line: str) -> Mapping[str, Any]:
    row: Mapping[str, Any] = json.loads(line)
    if row["format"] != FORMAT:
        raise ValueError(f"format {row['format']}, this version reads {FORMAT}")
    return row


def _decode(row: Mapping[str, Any], folder: Path, contents: Contents) -> Reading:
    anchor, (arrays, header) = _inside(folder, row.get("anchor")), contents
    axes = {name: tuple(words) for name, words in header.get("axes", {}).items()}
    estimates = {
        component: {
            key: _decode_estimate(encoded, _below(arrays, f"{component}/{key}/"), _below(axes, f"{component}/{key}/"))
            for key, encoded in by_key.items()
        }
        for component, by_key in row["estimates"].items()
    }
    row = {"revises": None, **row}
    known = {name: row[name] for name in PLAIN_FIELDS}
    for name, kind in _KINDS.items():
        if not isinstance(known[name], kind) or isinstance(known[name], bool):
            raise ValueError(f"{name} is {known[name]!r}")
    if not math.isfinite(known["time"]):
        raise ValueError(f"time is {known['time']!r}")
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
    return path if path.is_file() else None


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
