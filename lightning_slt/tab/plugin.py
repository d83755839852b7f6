"""The tab's routes: a small WSGI application over the records of all runs below TensorBoard's log folders."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import RLock
from typing import Any, NamedTuple, TypeVar

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.data.provider import DataProvider, RunTagFilter
from tensorboard.plugins.scalar import metadata as scalar_plugin
from werkzeug.wrappers import Request, Response

from lightning_slt.tab import data, views
from lightning_slt.tab.data import View
from lightning_slt.tab.points import DIGITS, number
from lightning_slt.tab.runs import RunRecords, runs_below
from lightning_slt.tab.views import Place

STATIC = Path(__file__).parent / "static"

TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}

POINTS = 1000
"""Of a loss of the training, at most: as many as TensorBoard's own scalars show. Readings are never left out."""

LOSS = re.compile("loss", re.IGNORECASE)

KEPT = 64
"""Views that are kept until their run changes."""

PATIENCE = 0.4
"""Seconds that a timeline may take to read records; it says how many are left, and the page asks again.

The page says how many readings it ``knows``: until there are twice as many it is told of the progress alone, so that
all parts together are twice as long as the whole at most."""


T = TypeVar("T")


class BadRequestError(ValueError):
    """A route was asked for something that it does not understand."""


class Now(NamedTuple):
    """Records of a run as they are, the stamp that they had just before, and what is wrong with them."""

    records: RunRecords
    stamp: int
    messages: list[str]


class Library:
    """All runs below some log folders, each line of their records parsed once.

    Args:
        folders: Log folders, as :func:`lightning_slt.tab.runs.runs_below` takes them.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        """Nothing looked at yet."""
        self.folders = folders
        self._records: dict[str, RunRecords] = {}
        self._kept: dict[tuple[str, ...], tuple[int, Any]] = {}

    def look(self) -> None:
        """Find the runs that there are now.

        Raises:
            LookupError: If a log folder is not on this machine.
        """
        away = [folder for folder in self.folders if "://" in folder or not Path(folder).is_dir()]
        if away and len(away) == len(self.folders):
            raise LookupError(
                f"{', '.join(away)} is no folder of this machine. The tab reads the records beside the logs: run "
                "TensorBoard where they lie, or copy the folder here"
            )
        found = runs_below(self.folders)
        self._records = {run: self._records.get(run) or RunRecords(folder) for run, folder in found.items()}

    def runs(self) -> list[View]:
        """The list of runs."""
        self.look()
        return [data.summary(run, records) for run, records in self._records.items()]

    def now(self, run: str, *, seconds: float = math.inf) -> Now:
        """A run as it is now.

        Args:
            run: Its name.
            seconds: How long reading what was added may take, about.

        Raises:
            LookupError: If there is no such run.
        """
        if run not in self._records:
            self.look()
        if run not in self._records:
            raise LookupError(f"no run called {run!r} keeps records here")
        records = self._records[run]
        stamp = records.stamp()  # before reading: what is added meanwhile changes the next one
        return Now(records, stamp, records.refresh(seconds=seconds))

    def kept(self, make: Callable[[], T], now: Now, *key: str) -> T:
        """A view, made again only when the run's stamp has changed; the oldest ones are let go."""
        if now.records.waiting:
            return make()
        if key not in self._kept or self._kept[key][0] != now.stamp:
            self._kept.pop(key, None)
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[key] = (now.stamp, make())
        found: T = self._kept[key][1]
        return found


class Tab:
    """The WSGI application.

    Args:
        folders: Log folders, as :class:`Library` takes them.
        provider: TensorBoard's, for the loss that training has logged; None without.
    """

    def __init__(self, folders: Mapping[str, str], provider: DataProvider | None = None) -> None:
        """Nothing read yet."""
        self.library, self.provider = Library(folders), provider
        self._lock = RLock()  # TensorBoard answers each request in a thread of its own

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Answer one request."""
        request = Request(environ)
        name = request.path.rpartition("/static/")[2] if "/static/" in request.path else None
        answer = self._static(request, name) if name is not None else self._data(request)
        return answer(environ, start_response)

    def _static(self, request: Request, name: str) -> Response:
        """A module of the front end: a file that lies in the folder, by its bare name."""
        there = {file.name: file for file in STATIC.iterdir() if file.suffix in TYPES}
        if name not in there:
            return _error(request, f"no file {name!r}", 404)
        return _respond(request, there[name].read_bytes(), TYPES[there[name].suffix])

    def _data(self, request: Request) -> Response:
        route = request.path.rpartition("/data/")[2]
        try:
            with self._lock:
                if route == "array":
                    now = self.library.now(_given(request, "run"), seconds=0.0)
                    values = views.array(now.records, _place(request), _given(request, "name"))
                    shape = [("X-Shape", json.dumps(list(values.shape)))]
                    content = values.numpy().astype("<f4").tobytes()
                    return _respond(request, content, "application/octet-stream", headers=shape)
                found = self._answer(route, request)
                answer = found if isinstance(found, str) else json.dumps(found, allow_nan=False)
        except BadRequestError as error:
            return _error(request, str(error), 400)
        except views.REFUSALS as error:
            return _error(request, views.refusal(error), 404)
        return _respond(request, answer, "application/json")

    def _answer(self, route: str, request: Request) -> Any:
        if route == "runs":
            return self.library.runs() or without_records(self.provider, request.environ)
        run = _given(request, "run")
        now = self.library.now(run, seconds=PATIENCE if route == "timeline" else 0.0)
        if route == "timeline":
            if now.records.waiting and now.records.read < 2 * _whole(request, "known", "0"):
                return data.progress(run, now.records, stamp=now.stamp)
            return self.timeline(run, now, scalars=partial(losses, self.provider, request.environ))
        if route == "trajectory":
            return self.library.kept(lambda: views.trajectory(now.records), now, route, run)
        if route == "reading":
            return data.reading(now.records, _given(request, "monitor"), _whole(request, "index"))
        if route == "influence":
            return views.influence(now.records, _place(request), _whole(request, "query", "0"))
        make = {"kernel": views.kernel, "responses": views.responses}.get(route)
        if make is None:
            raise LookupError(f"there is no route data/{route}")
        place = _place(request)
        return self.library.kept(lambda: make(now.records, place), now, route, run, *map(str, place))

    def timeline(self, run: str, now: Now, *, scalars: Callable[[str, Sequence[str]], list[View]]) -> str:
        """The timeline of a run, with the losses that training has logged; written as JSON once, which takes longest.

        Args:
            run: Which.
            now: As it is.
            scalars: ``scalars(run, monitors)``, such as :func:`losses` of a provider.
        """

        def text() -> str:
            found = data.timeline(run, now.records, stamp=now.stamp, messages=now.messages)
            return json.dumps(found, allow_nan=False).removesuffix("}")

        losses_of = json.dumps(scalars(run, list(now.records.files)), allow_nan=False)
        return f'{self.library.kept(text, now, "timeline", run)}, "scalars": {losses_of}}}'


def losses(provider: DataProvider | None, environ: Mapping[str, Any], run: str, monitors: Sequence[str]) -> list[View]:
    """What training has logged under a tag with "loss" in it, thinned to 1000 points by TensorBoard.

    Args:
        provider: Of the event files; None gives nothing.
        environ: Of the request.
        run: Which run's.
        monitors: Names whose tags are none of the training's.
    """
    if provider is None:
        return []
    names = (run, f"{run}/.")  # TensorBoard's name for the top folder of a named log folder
    of = {"experiment_id": plugin_util.experiment_id(environ), "plugin_name": scalar_plugin.PLUGIN_NAME}
    context = plugin_util.context(environ)
    listed = provider.list_scalars(context, run_tag_filter=RunTagFilter(runs=names), **of)
    ours = [f"/{re.sub(r'[.][0-9]+$', '', name)}/" for name in monitors]  # also in what a StageMonitor says of them
    tags = [t for tags in listed.values() for t in tags if LOSS.search(t) and not any(name in f"/{t}" for name in ours)]
    if not tags:
        return []
    found = provider.read_scalars(context, downsample=POINTS, run_tag_filter=RunTagFilter(names, tags), **of)
    return [
        {
            "tag": tag,
            "steps": [point.step for point in points],
            "values": [number(float(point.value), digits=DIGITS) for point in points],
        }
        for by_tag in found.values()
        for tag, points in sorted(by_tag.items())
    ]


def without_records(provider: DataProvider | None, environ: Mapping[str, Any]) -> list[View]:
    """TensorBoard's runs, where none keeps records."""
    runs = (
        provider.list_runs(plugin_util.context(environ), experiment_id=plugin_util.experiment_id(environ))
        if provider
        else []
    )
    message = "this run kept no readings: add LLCMonitor() to the Trainer's callbacks"
    return [{"run": run.run_name, "monitors": [], "readings": 0, "stamp": 0, "message": message} for run in runs]


def _place(request: Request) -> Place:
    monitor, component, key = (_given(request, name) for name in ("monitor", "component", "key"))
    return Place(monitor, _whole(request, "index"), component, key)


def _given(request: Request, name: str, default: str | None = None) -> str:
    value = request.args.get(name, default)
    if value is None:
        raise BadRequestError(f"the address lacks {name}=")
    return value


def _whole(request: Request, name: str, default: str | None = None) -> int:
    value = _given(request, name, default)
    if not re.fullmatch("[0-9]{1,9}", value):
        raise BadRequestError(f"{name} must be a whole number from 0, got {value!r}")
    return int(value)


def _error(request: Request, text: str, code: int) -> Response:
    return _respond(request, json.dumps({"error": text}), "application/json", code=code)


def _respond(request: Request, content: str | bytes, kind: str, **options: Any) -> Response:
    answer: Response = http_util.Respond(request, content, kind, **options)
    return answer
