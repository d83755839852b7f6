"""One HTML file with the tab's views of a run, to be sent: the same modules inlined, the data embedded, no network."""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.scalar import metadata as scalar_plugin

from lightning_slt.components import FULL
from lightning_slt.tab import data, views
from lightning_slt.tab.plugin import POINTS, STATIC, Library, losses
from lightning_slt.tab.runs import RunRecords
from lightning_slt.tab.views import Place

DETAILED = 60
"""Readings of each monitor that are embedded with all they left, where nobody says how many."""

SIZE = 50.0
"""Megabytes that a file may have, where nobody says how many; timelines are whole whatever they take."""

QUERIES = 20
"""Queries of an influence whose samples are embedded."""

Where = Mapping[str, Any]
"""``{"run", "monitor", "index"}`` of a reading."""

Entry = tuple[str, dict[str, Any], Any]
"""A route, what it is asked, and what it answers: ``{"error": text}`` where it refuses."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; script-src 'unsafe-inline' data:; \
style-src 'unsafe-inline'; img-src data: blob:">
<title>{title}</title>
<script type="importmap">{modules}</script>
</head>
<body>
<main id="report"></main>
<script type="application/json" id="data">{data}</script>
<script type="module">
import {{mount}} from "slt/app.js";
import {{embedded}} from "slt/source.js";
mount(document.getElementById("report"), embedded(JSON.parse(document.getElementById("data").textContent))).refresh();
</script>
</body>
</html>
"""


class Written(NamedTuple):
    """What a report holds.

    Attributes:
        runs: Their names.
        readings: On the timelines.
        detailed: With all they left.
        left_out: Readings that were to be held with all they left, and for which there was no room.
    """

    runs: list[str]
    readings: int
    detailed: int
    left_out: int


def write_report(run_dir: str | Path, out: str | Path, *, details: int = DETAILED, megabytes: float = SIZE) -> Written:
    """Write one self-contained HTML file: the tab's views of a run, or of all runs below a folder.

    Every reading stands on the timeline; of so many of each monitor, evenly spread and the last among them, the file
    also holds kernels, responses, influences, health and the traces of all weights. The last one of each monitor goes
    in first, then ever more between, while there is room.

    Args:
        run_dir: Folder of a run's logs, or any folder above it.
        out: The file.
        details: Readings of each monitor.
        megabytes: Size of the file up to which details are added.

    Raises:
        FileNotFoundError: If there are no records there.
        ValueError: If ``details`` is negative.
    """
    folder = Path(run_dir).resolve()
    if details < 0:
        raise ValueError(f"details must be a number of readings, zero or more, got {details}; write e.g. details=60")
    library = Library({str(folder): ""})
    runs = library.runs() if folder.is_dir() else []
    if not runs:
        problem = f"there are no slt_records below {folder}" if folder.is_dir() else f"{folder} is no folder"
        raise FileNotFoundError(f"{problem}; give the folder that the logger wrote to")
    names = {run["run"]: folder.name if run["run"] == "." else run["run"] for run in runs}
    entries: list[Entry] = [("data/runs", {}, [{**run, "run": names[run["run"]]} for run in runs])]
    provider = _provider(folder)
    places: list[Iterator[tuple[RunRecords, Where]]] = []
    readings = 0
    for run, name in names.items():
        records, stamp, messages = library.now(run)
        timeline = data.timeline(name, records, stamp=stamp, messages=messages)
        scalars = losses(provider, {}, run, list(records.files))
        entries.append(("data/timeline", {"run": name}, {**timeline, "scalars": scalars}))
        entries.append(("data/trajectory", {"run": name}, _answer(partial(views.trajectory, records))))
        readings += records.read
        places += [_readings(name, records, monitor, details) for monitor in records.files]
    texts = [_inline(entry) for entry in entries]
    modules = _modules()
    held, left_out = _fill(texts, places, room=1e6 * megabytes - len(modules) - sum(map(len, texts)))
    page = PAGE.format(title=html.escape(f"SLT: {folder.name}"), modules=modules, data=f"[{','.join(texts)}]")
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    Path(out).write_text(page, encoding="utf-8")
    return Written(list(names.values()), readings, held, left_out)


def _readings(run: str, records: RunRecords, monitor: str, details: int) -> Iterator[tuple[RunRecords, Where]]:
    """Those of one monitor that are to be held with all they left: the last one, then ever more between."""
    indices = _spread([row.index for row in records.files[monitor].rows], details)
    for index in _inwards(indices):
        yield records, {"run": run, "monitor": monitor, "index": index}


def _fill(texts: list[str], places: Sequence[Iterator[tuple[RunRecords, Where]]], *, room: float) -> tuple[int, int]:
    """Add what readings left, of each monitor in turn, as long as it fits; how many were added, how many not."""
    held = left_out = 0
    waiting = list(places)
    while waiting:
        for place in list(waiting):
            if (found := next(place, None)) is None:
                waiting.remove(place)
                continue
            more = [_inline(entry) for entry in _entries(*found)]
            if (size := sum(map(len, more)) + len(more)) > room:
                left_out += 1 + sum(1 for _ in place)
                waiting.remove(place)
                continue
            texts += more
            room -= size
            held += 1
    return held, left_out


def _inwards(indices: list[int]) -> list[int]:
    """The last one first, then those whose distance from it has the most factors of 2.

    >>> _inwards([0, 1, 2, 3, 4])
    [4, 0, 2, 3, 1]
    """
    back = {index: len(indices) - 1 - place for place, index in enumerate(indices)}
    return sorted(reversed(indices), key=lambda index: -(back[index] & -back[index]) or -math.inf)


def _provider(folder: Path) -> MultiplexerDataProvider:
    """The event files of all runs, read as TensorBoard does."""
    multiplexer = EventMultiplexer(tensor_size_guidance={scalar_plugin.PLUGIN_NAME: POINTS})
    multiplexer.AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def _entries(records: RunRecords, where: Where) -> Iterator[Entry]:
    """All that one reading left."""
    found = _answer(partial(data.reading, records, where["monitor"], where["index"]))
    yield "data/reading", dict(where), found
    for estimate in found.get("estimates", ()):
        yield from _details(records, where, estimate)


def _spread(indices: list[int], count: int) -> list[int]:
    """So many of them, evenly, from the last one backwards.

    >>> _spread([0, 1, 2, 3, 4], 2), _spread([0, 1], 60), _spread([0, 1], 0)
    ([2, 4], [0, 1], [])
    """
    if count >= len(indices):
        return indices
    return [indices[-1 - k * len(indices) // count] for k in reversed(range(count))]


def _details(records: RunRecords, where: Where, estimate: Mapping[str, Any]) -> Iterator[Entry]:
    """What the views ask of one estimate."""
    place = Place(where["monitor"], where["index"], estimate["component"], estimate["key"])
    asked = {**where, "component": place.component, "key": place.key}
    kind = estimate["kind"]
    if kind == "KernelEstimate":
        yield "data/kernel", asked, _answer(lambda: views.kernel(records, place))
    if kind == "Responses":
        yield "data/responses", asked, _answer(lambda: views.responses(records, place))
    if kind == "Influence":
        first = _answer(lambda: views.influence(records, place, 0))
        yield "data/influence", {**asked, "query": 0}, first
        for query in range(1, min(QUERIES, len(first.get("queries", ())))):
            yield (
                "data/influence",
                {**asked, "query": query},
                _answer(lambda q=query: views.influence(records, place, q)),
            )
    for name, array in estimate["arrays"].items():
        if place.component == FULL and array["axes"] == ["chain", "draw"]:
            yield "data/array", {**asked, "name": name}, _answer(lambda n=name: _array(records, place, n))


def _array(records: RunRecords, place: Place, name: str) -> data.View:
    values = views.array(records, place, name)
    return {"shape": list(values.shape), "base64": base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()}


def _answer(make: Any) -> data.View:
    """What a route would answer, refusals included."""
    try:
        found: data.View = make()
    except views.REFUSALS as error:
        return {"error": views.refusal(error)}
    return found


def _inline(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _modules() -> str:
    """An import map to the modules themselves; data has no folder, so that ``./dom.js`` becomes ``slt/dom.js``."""
    imports = {}
    for file in sorted(STATIC.glob("*.js")):
        text = re.sub(r'(from\s*)"\./([\w.]+)"', r'\1"slt/\2"', file.read_text(encoding="utf-8"))
        imports[f"slt/{file.name}"] = (
            "data:text/javascript;charset=utf-8;base64," + base64.b64encode(text.encode()).decode()
        )
    return _inline({"imports": imports})
