"""What every reading leaves on disk, and loading it.

One folder ``slt_records`` beside the logs holds one file ``<name>.jsonl`` per monitor: a line per reading, JSON, with
step, epoch, time, settings, and every estimate chain by chain. A number that does not exist is ``null`` in the file and
NaN in memory. Large arrays (traces) and anchors lie beside it as safetensors.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_slt.types import Estimate, Health, Params

FOLDER = "slt_records"
FORMAT = 1


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
        overhead: Reading time over training time so far, this reading included.
        settings: Sampler, nβ, γ, resolution, counts and what was calibrated.
        estimates: ``{component: {key: Estimate}}``; empty where the reading failed.
        failure: Why it failed, or None.
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
    estimates: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    failure: str | None = None


class RecordWriter:
    """Appends readings to one monitor's file; a line is written whole or not at all.

    Args:
        run_dir: Folder of the logs.
        name: The monitor's; a slash becomes a sub-folder.
    """

    def __init__(self, run_dir: str | Path, name: str) -> None:
        """Make the folder; end a line that an earlier run left unfinished."""
        self.path = Path(run_dir) / FOLDER / f"{name}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.path.read_bytes().endswith(b"\n") and self.path.stat().st_size:
            with self.path.open("ab") as file:
                file.write(b"\n")

    def write(self, reading: Reading) -> None:
        """Append one reading, with its traces beside the file where it has any."""
        row = _encode(reading)
        arrays = {
            f"{component}/{key}/{trace}": values.contiguous()
            for component, estimates in reading.estimates.items()
            for key, estimate in estimates.items()
            for trace, values in estimate.traces.items()
        }
        if arrays:
            row["arrays"] = f"{self.path.stem}/traces-{reading.index:06d}.safetensors"
            self._save(arrays, row["arrays"])
        with self.path.open("ab") as file:
            file.write((json.dumps(row, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())

    def write_anchor(self, weights: Params, reading_index: int) -> None:
        """Save the weights that a reading sampled around."""
        contiguous = {name: value.contiguous().cpu() for name, value in weights.items()}
        self._save(contiguous, f"{self.path.stem}/anchor-{reading_index:06d}.safetensors")

    def _save(self, tensors: Params, relative: str) -> None:
        """Write beside, then rename: a file of that name is always whole."""
        target = self.path.parent / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        save_file(tensors, partial)
        partial.replace(target)


def load_records(run_dir: str | Path, *, name: str | None = None) -> list[Reading]:
    """Readings of a run, in the order in which they were made.

    Args:
        run_dir: Folder of the logs, or any folder above it.
        name: Only this monitor's.

    Returns:
        Readings; lines that are broken are left out with a warning.

    Raises:
        FileNotFoundError: If there are no records below the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     RecordWriter(folder, "slt").write(Reading(name="slt", index=0, step=5, global_step=5, epoch=0, time=0.0,
    ...                                               duration=1.0, overhead=0.1, settings={}))
    ...     [reading.step for reading in load_records(folder)]
    [5]
    """
    files = sorted(Path(run_dir).rglob(f"{FOLDER}/**/*.jsonl"))
    if not files:
        raise FileNotFoundError(f"no {FOLDER}/*.jsonl below {run_dir}; give the folder that the logger wrote to")
    readings = [reading for file in files for reading in _read(file)]
    return [r for r in readings if name is None or r.name == name]


def load_anchor(run_dir: str | Path, reading: Reading) -> Params:
    """Weights around which a reading sampled, where the monitor saved them.

    Raises:
        FileNotFoundError: If it did not (``snapshots=True`` does).
    """
    pattern = f"{FOLDER}/**/{Path(reading.name).name}/anchor-{reading.index:06d}.safetensors"
    for path in Path(run_dir).rglob(pattern):
        return load_file(path)
    raise FileNotFoundError(
        f"no anchor of reading {reading.index} below {run_dir}; monitors save it with snapshots=True"
    )


def _read(file: Path) -> Iterator[Reading]:
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            yield _decode(json.loads(line), file.parent)
        except (ValueError, KeyError, TypeError) as error:
            warnings.warn(f"{file}:{number} is no reading and is left out ({error})", stacklevel=3)


def _encode(reading: Reading) -> dict[str, Any]:
    estimates = {
        component: {key: _encode_estimate(estimate) for key, estimate in by_key.items()}
        for component, by_key in reading.estimates.items()
    }
    row = {f: getattr(reading, f) for f in Reading.__dataclass_fields__ if f != "estimates"}
    encoded: dict[str, Any] = _plain({"format": FORMAT, **row, "estimates": estimates})
    return encoded


def _encode_estimate(estimate: Estimate) -> dict[str, Any]:
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
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _decode(row: Mapping[str, Any], folder: Path) -> Reading:
    if row["format"] != FORMAT:
        raise ValueError(f"format {row['format']}, this version reads {FORMAT}")
    arrays = _load_arrays(folder, row.get("arrays"))
    estimates = {
        component: {
            key: _decode_estimate(encoded, _below(arrays, f"{component}/{key}/")) for key, encoded in by_key.items()
        }
        for component, by_key in row["estimates"].items()
    }
    known = {f: row[f] for f in Reading.__dataclass_fields__ if f != "estimates"}
    return Reading(**{**known, "overhead": _number(row["overhead"])}, estimates=estimates)


def _below(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def _load_arrays(folder: Path, relative: str | None) -> dict[str, Tensor]:
    if relative is None:
        return {}
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"its arrays lie outside the records: {relative}")
    return load_file(path) if path.exists() else {}


def _decode_estimate(row: Mapping[str, Any], traces: Mapping[str, Tensor]) -> Estimate:
    health = row["health"]
    return Estimate(
        mean=_number(row["mean"]),
        stderr=_number(row["stderr"]),
        per_chain=torch.tensor([_number(v) for v in row["per_chain"]], dtype=torch.float64),
        health=Health(
            ok=bool(health["ok"]),
            failed=tuple(health["failed"]),
            warnings=tuple(health["warnings"]),
            values={k: _number(v) for k, v in health["values"].items()},
            dead_chains={int(k): int(v) for k, v in health["dead_chains"].items()},
        ),
        traces=traces,
    )
