"""Runs below a log folder, and their records read line by line as they grow.

A reading is kept as the few numbers that a timeline draws; whatever else its line holds is read again when it is asked
for. Every line is parsed once, however often it is asked for; a file that was replaced is read anew. Of many new lines
the last one is taken first, then every so many, evenly spread, so that a part of them already shows the whole run.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from lightning_slt import samplers
from lightning_slt.components import FULL
from lightning_slt.events import ENDING, STAGES
from lightning_slt.records import FOLDER, FORMAT
from lightning_slt.tab.points import Point, number, points_of, short

SeriesKey = tuple[str, str, str]
"""Component, key of the estimate, and which of its numbers: ``mean``, or the name of a scalar."""


@dataclass(frozen=True)
class Row:
    """One reading as a timeline needs it, and where its line stands in the file."""

    index: int
    step: int
    time: float | None
    overhead: float | None
    failure: str | None
    revises: int | None
    loss: float | None
    points: Mapping[SeriesKey, Point]
    start: int
    length: int


def runs_below(folders: Mapping[str, str]) -> dict[str, Path]:
    """Folders of runs that keep records, by the name that TensorBoard gives them.

    Args:
        folders: Log folders, each with the name that its runs begin with, which may be empty.

    Returns:
        ``{run: folder}``; ``.`` is a log folder itself.
    """
    found = {}
    for top, prefix in folders.items():
        for folder, below, _ in os.walk(top):
            if FOLDER in below:
                below.remove(FOLDER)
                place = os.path.join(prefix, os.path.relpath(folder, top)) if prefix else os.path.relpath(folder, top)
                found[Path(place).as_posix()] = Path(folder)
    return dict(sorted(found.items()))


@dataclass
class RecordFile:
    """One monitor's file of one run.

    Attributes:
        path: The file.
        rows: Its readings, those left out that a later one replaces or makes again.
        messages: What is wrong with it, in words.
        waiting: Lines that are there and not read yet.
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    _size: int = 0
    _identity: tuple[int, int] = (0, 0)
    _places: list[tuple[int, int]] = field(default_factory=list)
    _taken: dict[int, Row | str] = field(default_factory=dict)

    def refresh(self, *, until: float = math.inf) -> None:
        """Take in what was added since.

        Args:
            until: When to stop, on :func:`time.monotonic`'s clock, after one line at least; the others keep waiting.

        Raises:
            OSError: If the file has gone, or cannot be read.
        """
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._identity or status.st_size < self._size:
                self._identity = status.st_dev, status.st_ino
                self._size, self._places, self._taken, self.waiting = 0, [], {}, []
            unfinished = self._find(file)
            while self.waiting:
                line = self.waiting.pop()
                start, length = self._places[line]
                file.seek(start)
                if content := file.read(length).strip():
                    self._taken[line] = self._parsed(line, content)
                if time.monotonic() >= until:
                    break
        taken = [self._taken[line] for line in sorted(self._taken)]
        self.messages = [told for told in taken if isinstance(told, str)]
        if unfinished:
            self.messages.append(f"{self.path.name}: the last line is unfinished")
        self.rows = _standing(row for row in taken if isinstance(row, Row))

    def _find(self, file: BinaryIO) -> bool:
        """Note where new lines are, and in which order to read them; whether the last one is unfinished."""
        file.seek(self._size)
        before, line = len(self._places), b""
        for line in file:
            if not line.endswith(b"\n"):
                break
            self._places.append((self._size, len(line)))
            self._size += len(line)
        if new := range(before, len(self._places)):
            back = {number: new[-1] - number for number in (*self.waiting, *new)}
            # Taken from the end: the last line, then those whose distance from it has the most factors of 2.
            self.waiting = sorted(back, key=lambda number: (back[number] & -back[number]) or math.inf)
        return bool(line) and not line.endswith(b"\n")

    def line(self, index: int) -> dict[str, Any]:
        """All that a reading left.

        Raises:
            LookupError: If there is none of that index.
            OSError: If the file has gone.
            ValueError: If it was changed since.
        """
        row = next((row for row in self.rows if row.index == index), None)
        if row is None and self.waiting:
            self.refresh()
            row = next((row for row in self.rows if row.index == index), None)
        if row is None:
            raise LookupError(f"no reading {index} in {self.path.name}")
        with self.path.open("rb") as file:
            file.seek(row.start)
            found: dict[str, Any] = json.loads(file.read(row.length))
        if not isinstance(found, dict) or found.get("index") != index:
            raise ValueError(f"{self.path.name} was changed since it was read; reload")
        return found

    def _parsed(self, line: int, content: bytes) -> Row | str:
        """A line's reading, or what is wrong with it."""
        try:
            return _row(json.loads(content), *self._places[line])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return f"{self.path.name}, line {line + 1}, is no reading and is left out ({error!r})"


def _standing(rows: Iterable[Row]) -> list[Row]:
    """Readings that no later one replaces: a run that was resumed from an earlier step makes them again."""
    made: list[Row] = []
    for row in rows:
        while made and made[-1].index >= row.index:
            made.pop()
        made.append(row)
    replaced = {row.revises for row in made}
    return [row for row in made if row.index not in replaced]


class RunRecords:
    """All records of one run.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing read yet."""
        self.folder = folder / FOLDER
        self.files: dict[str, RecordFile] = {}
        self._counted: dict[Path, tuple[int, int]] = {}

    def refresh(self, *, seconds: float = math.inf) -> list[str]:
        """Take in what was added, and say what is wrong.

        Args:
            seconds: How long that may take, about; what is left then is :attr:`waiting`.
        """
        self.files = {name: self.files.get(name, RecordFile(path)) for name, path in self._paths().items()}
        messages = []
        end = time.monotonic() + seconds
        for place, (name, file) in enumerate(list(self.files.items())):
            now, others = time.monotonic(), len(self.files) - place
            try:
                file.refresh(until=now + (end - now) / others)
            except OSError as error:
                del self.files[name]
                messages.append(f"{name}: {error.strerror or error}")
                continue
            messages += file.messages
        return messages

    @property
    def waiting(self) -> int:
        """Lines that are there and not read yet."""
        return sum(len(file.waiting) for file in self.files.values())

    @property
    def read(self) -> int:
        """Readings that are known."""
        return sum(len(file.rows) for file in self.files.values())

    def monitors(self) -> list[str]:
        """Names of the monitors that have a file, one of a further run in the same folder as ``slt.1``."""
        return list(self._paths())

    def count(self) -> int:
        """Lines of all records, read but not parsed: those of readings that were made again count, too."""
        for path in self._paths().values():
            size, lines = self._counted.get(path, (0, 0))
            try:
                with path.open("rb") as file:
                    size, lines = (size, lines) if os.fstat(file.fileno()).st_size >= size else (0, 0)
                    file.seek(size)
                    while block := file.read(2**20):
                        size, lines = size + len(block), lines + block.count(b"\n")
            except OSError:
                size, lines = 0, 0  # gone since it was listed
            self._counted[path] = (size, lines)
        return sum(lines for _, lines in self._counted.values())

    def stamp(self) -> int:
        """A number that changes when anything was added: below 2⁵³, so that JavaScript can hold it."""
        parts = []
        for path in sorted(_below(self.folder, (".jsonl", ENDING, STAGES))):
            try:
                status = path.stat()
            except OSError:
                continue  # gone since it was listed
            parts.append((str(path), status.st_size, status.st_mtime_ns))
        return hash(tuple(parts)) % 2**53

    def _paths(self) -> dict[str, Path]:
        files = _below(self.folder, ".jsonl")
        return {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in sorted(files)}


def _below(folder: Path, ending: str | tuple[str, ...]) -> list[Path]:
    return [Path(place) / name for place, _, names in os.walk(folder) for name in names if name.endswith(ending)]


def _row(record: Mapping[str, Any], start: int, length: int) -> Row:
    if record["format"] != FORMAT:
        raise ValueError(f"format {record['format']}, this version reads {FORMAT}")
    failure, revises = record["failure"], record.get("revises")
    exact = bool(getattr(getattr(samplers, str(record["settings"].get("sampler")), None), "full_batch", False))
    points: dict[SeriesKey, Point] = {}
    losses = []
    for component, by_key in record["estimates"].items():
        for key, estimate in by_key.items():
            losses.append(estimate["health"]["values"].get("anchor_loss"))
            for name, point in points_of(estimate, exact=exact, chains=component == FULL):
                points[component, key, name] = point
    return Row(
        index=_whole(record["index"]),
        step=_whole(record["step"]),
        time=number(record["time"]),
        overhead=short(record["overhead"]),
        failure=None if failure is None else str(failure),
        revises=None if revises is None else _whole(revises),
        loss=next((known for loss in losses if (known := short(loss)) is not None), None),
        points=points,
        start=start,
        length=length,
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    return value
