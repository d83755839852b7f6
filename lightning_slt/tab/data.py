"""What the tab and the report draw over training: plain values for JSON, from the records of one run.

Everything takes a :class:`lightning_slt.tab.runs.RunRecords` that was refreshed; numbers that do not exist are None.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from lightning_slt.analysis.stages import Detector, Series, Stage, stages
from lightning_slt.components import FULL
from lightning_slt.events import RunStage, load_events, load_stages
from lightning_slt.tab.points import DIGITS, Point, number, reasons
from lightning_slt.tab.runs import RecordFile, Row, RunRecords, SeriesKey

MISSING = Point(None, ok=False)

View = dict[str, Any]

BROKEN_ARRAYS = (OSError, SafetensorError, ValueError, KeyError)
"""What a file of arrays that is missing, truncated or foreign raises."""


def summary(run: str, records: RunRecords) -> View:
    """One line of the list of runs, without parsing anything."""
    stamp, monitors, count = records.stamp(), records.monitors(), records.count()
    message = None if count else "no reading was made yet" if monitors else "this run keeps no records of readings"
    return {"run": run, "monitors": monitors, "readings": count, "stamp": stamp, "message": message}


def timeline(run: str, records: RunRecords, *, stamp: int, messages: Sequence[str] = ()) -> View:
    """All numbers of all readings over the steps of training, in columns.

    Args:
        run: Its name.
        records: Of it.
        stamp: Of what was read.
        messages: What :meth:`RunRecords.refresh` said.

    Returns:
        ``{"run", "stamp", "waiting", "messages", "monitors", "events", "stages"}``; positions of ``reasons``
        are those in the columns. ``chains`` stand beside the numbers of all weights. ``waiting`` counts readings that
        are there and were not read yet. Stages are those that a StageMonitor, their ``source``, found; of other numbers
        with an error those that all readings show, once none waits.
    """
    events, complaints = _events(records)
    monitors = [_monitor(name, file) for name, file in records.files.items()]
    found, broken = _found(records, monitors)
    told = {stage["quantity"] for stage in found}
    if not records.waiting:
        found += [stage for monitor in monitors for stage in _stages(monitor, but=told)]
    return {
        "run": run,
        "stamp": stamp,
        "waiting": records.waiting,
        "messages": [*messages, *complaints, *broken],
        "monitors": monitors,
        "events": events,
        "stages": found,
    }


def progress(run: str, records: RunRecords, *, stamp: int) -> View:
    """What is told instead of a timeline that is little longer than the last one."""
    return {"run": run, "stamp": stamp, "waiting": records.waiting, "read": records.read}


def _monitor(name: str, file: RecordFile) -> View:
    rows = sorted(file.rows, key=lambda row: (row.step, row.index))
    keys = dict.fromkeys(key for row in rows for key in row.points)
    return {
        "name": name,
        "steps": [row.step for row in rows],
        "index": [row.index for row in rows],
        "time": [row.time for row in rows],
        "overhead": [row.overhead for row in rows],
        "failure": [row.failure for row in rows],
        "series": [_series(key, rows) for key in keys],
        "loss": [row.loss for row in rows],
    }


def _series(key: SeriesKey, rows: Sequence[Row]) -> View:
    component, estimate, name = key
    points = [row.points.get(key, MISSING) for row in rows]
    found: dict[str, Any] = {
        "component": component,
        "key": estimate,
        "field": name,
        "value": [point.value for point in points],
        "stderr": [point.stderr for point in points],
        "lower": [point.lower for point in points],
        "upper": [point.upper for point in points],
        "ok": [int(point.ok) for point in points],
        "reasons": {str(at): point.reason for at, point in enumerate(points) if point.reason},
    }
    if component == FULL and (count := max(len(point.chains) for point in points)):
        padded = [(*point.chains, *[None] * (count - len(point.chains))) for point in points]
        found["chains"] = [list(chain) for chain in zip(*padded, strict=True)]
    return found


def _found(records: RunRecords, monitors: Sequence[View]) -> tuple[list[View], list[str]]:
    """Stages that StageMonitors found with their own settings, and what is wrong with the files that tell them."""
    ends = {monitor["name"]: monitor["steps"][-1] for monitor in monitors if monitor["steps"]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stages = load_stages(records.folder)
        except OSError as error:
            return [], [f"the stages of this run cannot be read: {error}"]
    shown = []
    for (source, quantity), group in groupby(stages, key=attrgetter("source", "quantity")):
        *before, last = group
        owner = max((name for name in ends if quantity.startswith(f"{name}/")), key=len, default="")
        shown += [_shown(stage, source=source, quantity=quantity, end=stage.end) for stage in before]
        end = max(last.end, ends.get(owner, last.end))  # readings since it was found
        shown.append(_shown(last, source=source, quantity=quantity, end=end))
    return shown, [str(warning.message) for warning in caught]


def _shown(stage: RunStage | Stage, *, source: str | None, quantity: str, end: float) -> View:
    return {
        "source": source,
        "quantity": quantity,
        "name": stage.name,
        "start": number(stage.start, digits=DIGITS),
        "end": number(end, digits=DIGITS),
        "type": stage.kind,
        "hidden": stage.hidden,
    }


def _stages(monitor: Mapping[str, Any], *, but: Collection[str]) -> list[View]:
    """Stages of each number of all weights that has an error, as a StageMonitor of the usual settings finds them."""
    found = []
    for series in (s for s in monitor["series"] if s["component"] == FULL and s["field"] == "mean"):
        at = {step: place for place, step in enumerate(monitor["steps"]) if step >= 0}
        values, stderr, loss = (
            [_nan(column[place]) for place in at.values()]
            for column in (series["value"], series["stderr"], monitor["loss"])
        )
        curve = Series.of(list(at), values, stderr, loss)
        quantity = f"{monitor['name']}/{FULL}/{series['key']}"
        if quantity in but or int(curve.usable.sum()) < 5:
            continue
        boundaries = [boundary.step for boundary in Detector().find(curve)]
        found += [_shown(s, source=None, quantity=quantity, end=s.end) for s in stages(curve, boundaries)]
    return found


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _events(records: RunRecords) -> tuple[list[View], list[str]]:
    """What happened in the run, and what is wrong with the files that tell it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            events = load_events(records.folder)
        except (OSError, ValueError, OverflowError) as error:  # a step that is no finite number
            return [], [f"the events of this run cannot be read: {error}"]
    shown = [
        {
            "source": event.source,
            "kind": event.kind,
            "step": number(event.step, digits=DIGITS),
            "known_at": event.known_at,
            "quantity": event.quantity,
            "text": event.text,
        }
        for event in events
    ]
    return shown, [str(warning.message) for warning in caught]


def reading(records: RunRecords, monitor: str, index: int) -> View:
    """All that one reading left but its arrays, of which it says which there are.

    Args:
        records: Of the run.
        monitor: Which monitor's.
        index: Which reading.

    Raises:
        LookupError: If there is no such monitor or reading.
    """
    row = line(records, monitor, index)
    found, messages = _arrays(records.files[monitor].path.parent, row)
    estimates = [
        _estimate(component, key, estimate, found)
        for component, by_key in row["estimates"].items()
        for key, estimate in by_key.items()
    ]
    fields = ("step", "global_step", "epoch", "duration", "failure", "settings")
    return {**{name: row.get(name) for name in fields}, "messages": messages, "estimates": estimates}


def line(records: RunRecords, monitor: str, index: int) -> View:
    """A reading's own line.

    Raises:
        LookupError: If there is no such monitor or reading.
    """
    if monitor not in records.files:
        names = ", ".join(map(repr, records.files)) or "none"
        raise LookupError(f"no monitor called {monitor!r} in this run; there is {names}")
    return records.files[monitor].line(index)


def array_file(folder: Path, row: Mapping[str, Any]) -> Path | None:
    """Where the arrays of a reading lie; None where it has none.

    Raises:
        ValueError: If the record names a file outside the records.
    """
    if not row.get("traces"):
        return None
    path = (folder / str(row["traces"])).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"its arrays lie outside the records: {row['traces']}")
    return path


def _arrays(folder: Path, row: Mapping[str, Any]) -> tuple[dict[str, View], list[str]]:
    """Shapes and axes of all arrays by their name in the file, and what is wrong with it."""
    try:
        path = array_file(folder, row)
        if path is None:
            return {}, []
        with safe_open(path, framework="pt") as file:
            axes = _axes(file.metadata() or {})
            names = list(file.keys())
            shapes = {name: list(file.get_slice(name).get_shape()) for name in names}
    except BROKEN_ARRAYS as error:
        return {}, [f"the arrays of this reading cannot be read: {error}"]
    return {name: {"shape": shape, "axes": axes.get(name, [])} for name, shape in shapes.items()}, []


def _axes(header: Mapping[str, str]) -> Mapping[str, list[str]]:
    found = json.loads(header.get("axes", "{}"))
    return found if isinstance(found, dict) else {}


def _estimate(component: str, key: str, estimate: Mapping[str, Any], arrays: Mapping[str, View]) -> View:
    prefix = f"{component}/{key}/"
    mine = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    health = estimate["health"]
    return {
        "component": component,
        "key": key,
        "kind": estimate.get("kind", "Estimate"),
        "mean": number(estimate.get("mean")),
        "stderr": number(estimate.get("stderr")),
        "per_chain": [number(value) for value in estimate.get("per_chain", [])],
        "numbers": {name: number(value) for name, value in estimate.get("numbers", {}).items()},
        "health": {
            "ok": bool(health["ok"]),
            "failed": health["failed"],
            "warnings": health["warnings"],
            "values": {name: number(value) for name, value in health["values"].items()},
            "dead_chains": health["dead_chains"],
            "text": "ok" if health["ok"] else reasons(health),
        },
        "names": estimate.get("names", {}),
        "arrays": {name: value for name, value in mine.items() if "/" not in name},
    }
