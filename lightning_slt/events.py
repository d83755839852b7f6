"""What happened in a run, beside its readings: boundaries of stages, alerts, turns and peaks of influence."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

from lightning_slt.files import append_line
from lightning_slt.records import FOLDER

ENDING = ".events"


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


def _decode(row: dict[str, object]) -> RunEvent:
    texts = {name: str(row[name]) for name in ("source", "kind", "quantity", "text")}
    if not math.isfinite(float(row["step"])):  # type: ignore[arg-type]
        raise ValueError(f"step is {row['step']}")
    return RunEvent(step=float(row["step"]), known_at=int(row["known_at"]), **texts)  # type: ignore[arg-type, call-overload]
