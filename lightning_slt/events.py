"""What happened in a run, beside its readings: boundaries of stages, alerts, turns and peaks of influence; stages."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_slt.files import append_line
from lightning_slt.records import FOLDER

ENDING = ".events"

STAGES = ".stages"


@dataclass(frozen=True, kw_only=True)
class RunEvent:
    """Something that a callback told of a run.

    Attributes:
        source: Name of the callback.
        kind: "boundary", "alert", "flip", "peak", "checkpoint" or "stop".
        step: Where it happened, on the x axis of the logs.
        known_at: Step of the reading that made it known.
        quantity: Tag, or names of groups, of what it happened to.
        text: One line for people.
    """

    source: str
    kind: str
    step: float
    known_at: int
    quantity: str
    text: str


def write_event(run_dir: str | Path | None, event: RunEvent) -> None:
    """Append an event to ``<run dir>/slt_records/<source>.events``; nothing without a folder.

    Raises:
        OSError: If it cannot be written.
    """
    if run_dir is None:
        return
    path = Path(run_dir) / FOLDER / f"{event.source}{ENDING}"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {**asdict(event), "step": event.step if math.isfinite(event.step) else None}
    append_line(path, json.dumps(row, ensure_ascii=False, allow_nan=False))


def load_events(run_dir: str | Path) -> list[RunEvent]:
    """Events of a run, or of all runs below a folder, in the order of their steps.

    A run that was resumed from an earlier step tells events again: each stands once, as it was told last.

    Args:
        run_dir: Folder of the logs, or any folder above it.

    Returns:
        Events; lines that are broken are left out with a warning.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_event(folder, RunEvent(source="stages", kind="boundary", step=120.0, known_at=150,
    ...                                  quantity="slt/full/llc", text="came to rest"))
    ...     [event.step for event in load_events(folder)]
    [120.0]
    """
    place = Path(run_dir)
    pattern = f"**/*{ENDING}" if FOLDER in place.absolute().parts else f"**/{FOLDER}/**/*{ENDING}"
    found: dict[tuple[Path, str, str, int], RunEvent] = {}
    for file in sorted(place.glob(pattern)):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                event = _decode(json.loads(line))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
                warnings.warn(f"{file}:{number} is no event and is left out ({error})", stacklevel=2)
                continue
            found[file, event.kind, event.quantity, round(event.step)] = event
    return sorted(found.values(), key=lambda event: event.step)


@dataclass(frozen=True, kw_only=True)
class RunStage:
    """A stage of one quantity, as a callback has found it with its own settings.

    Attributes:
        source: Name of the callback.
        quantity: Tag of the number.
        known_at: Step of the reading, or of the end, at which it was found.
        name: ``A1``, ``B1``, ….
        kind: "A" where the quantity rises, "B" where it falls.
        start: First step.
        end: Last step; of the last stage the last reading so far.
        hidden: The quantity moves beyond its error while the loss does not.
    """

    source: str
    quantity: str
    known_at: int
    name: str
    kind: str
    start: float
    end: float
    hidden: bool


def write_stages(run_dir: str | Path | None, stages: Sequence[RunStage]) -> None:
    """Append all stages of one quantity to ``<run dir>/slt_records/<source>.stages``, in place of those before.

    Args:
        run_dir: Folder of the logs; nothing is written without one.
        stages: Of one source and quantity; nothing is written without any.

    Raises:
        OSError: If they cannot be written.
    """
    if run_dir is None or not stages:
        return
    path = Path(run_dir) / FOLDER / f"{stages[0].source}{STAGES}"
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, json.dumps([asdict(stage) for stage in stages], ensure_ascii=False, allow_nan=False))


def load_stages(records: str | Path) -> list[RunStage]:
    """Stages that callbacks have found in one run, those of each quantity as they were found last.

    Args:
        records: Folder of the run's records.

    Returns:
        Stages by quantity, in order; lines that are broken are left out with a warning.

    >>> import tempfile
    >>> stage = RunStage(source="stages", quantity="slt/full/llc", known_at=90, name="A1", kind="A", start=1.0,
    ...                  end=80.0, hidden=False)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_stages(folder, [stage])
    ...     load_stages(Path(folder) / "slt_records") == [stage]
    True
    """
    found: dict[tuple[str, str], list[RunStage]] = {}
    for file in sorted(Path(records).rglob(f"*{STAGES}")):
        for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
            try:
                stages = [_decode_stage(row) for row in json.loads(line)]
                found[stages[0].source, stages[0].quantity] = stages
            except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
                warnings.warn(f"{file}:{number} tells no stages and is left out ({error!r})", stacklevel=2)
    return [stage for stages in found.values() for stage in stages]


def _decode_stage(row: dict[str, object]) -> RunStage:
    texts = {name: str(row[name]) for name in ("source", "quantity", "name", "kind")}
    start, end = (float(row[name]) for name in ("start", "end"))  # type: ignore[arg-type]
    if not (math.isfinite(start) and math.isfinite(end)):
        raise ValueError(f"a stage from {start} to {end}")
    known_at, hidden = int(row["known_at"]), bool(row["hidden"])  # type: ignore[call-overload]
    return RunStage(start=start, end=end, known_at=known_at, hidden=hidden, **texts)


def _decode(row: dict[str, object]) -> RunEvent:
    texts = {name: str(row[name]) for name in ("source", "kind", "quantity", "text")}
    if not math.isfinite(float(row["step"])):  # type: ignore[arg-type]
        raise ValueError(f"step is {row['step']}")
    return RunEvent(step=float(row["step"]), known_at=int(row["known_at"]), **texts)  # type: ignore[arg-type, call-overload]
