"""Runs below a log folder, and their records read line by line as they grow.

A reading is kept as the few numbers that a timeline draws; whatever else its line holds is read again when it is asked
for. Every line is parsed once, however often it is asked for; a file that was replaced is read anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_slt import samplers
from lightning_slt.components import FULL
from lightning_slt.events import ENDING
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
    """

    path: Path
    rows: list[Row] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    _read: int = 0
    _lines: int = 0
    _identity: tuple[int, int] = (0, 0)
    _all: list[Row] = field(default_factory=list)
    _broken: list[str] = field(default_factory=list)

    def refresh(self) -> None:
        """Take in what was added since.

        Raises:
            OSError: If the file has gone, or cannot be read.
        """
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            if (status.st_dev, status.st_ino) != self._identity or status.st_size < self._read:
                self._identity = status.st_dev, status.st_ino
                self._read, self._lines, self._all, self._broken = 0, 0, [], []
            file.seek(self._read)
            rest = file.read()
        whole, end, unfinished = rest.rpartition(b"\n")
        for line in whole.split(b"\n") if end else ():
            self._lines += 1
            self._take(line)
            self._read += len(line) + 1
        self.messages = list(self._broken)
        if unfinished:
            self.messages.append(f"{self.path.name}: the last line is unfinished")
        replaced = {row.revises for row in self._all}
        self.rows = [row for row in self._all if row.index not in replaced]

    def line(self, index: int) -> dict[str, Any]:
        """All that a reading left.

        Raises:
            LookupError: If there is none of that index.
            OSError: If the file has gone.
            ValueError: If it was changed since.
        """
        row = next((row for row in self.rows if row.index == index), None)
        if row is None:
            raise LookupError(f"no reading {index} in {self.path.name}")
        with self.path.open("rb") as file:
            file.seek(row.start)
            found: dict[str, Any] = json.loads(file.read(row.length))
        if not isinstance(found, dict) or found.get("index") != index:
            raise ValueError(f"{self.path.name} was changed since it was read; reload")
        return found

    def _take(self, line: bytes) -> None:
        """A run that was resumed from an earlier step makes readings again: the later ones stand."""
        if not line.strip():
            return
        try:
            row = _row(json.loads(line), self._read, len(line))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._broken.append(f"{self.path.name}, line {self._lines}, is no reading and is left out ({error!r})")
            return
        while self._all and self._all[-1].index >= row.index:
            self._all.pop()
        self._all.append(row)


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

    def refresh(self) -> list[str]:
        """Take in what was added, and say what is wrong."""
        self.files = {name: self.files.get(name, RecordFile(path)) for name, path in self._paths().items()}
        messages = []
        for name, file in list(self.files.items()):
            try:
                file.refresh()
            except OSError as error:
                del self.files[name]
                messages.append(f"{name}: {error.strerror or error}")
                continue
            messages += file.messages
        return messages

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
        for path in sorted(_below(self.folder, ".jsonl") + _below(self.folder, ENDING)):
            try:
                status = path.stat()
            except OSError:
                continue  # gone since it was listed
            parts.append((str(path), status.st_size, status.st_mtime_ns))
        return hash(tuple(parts)) % 2**53

    def _paths(self) -> dict[str, Path]:
        files = _below(self.folder, ".jsonl")
        return {path.relative_to(self.folder).with_suffix("").as_posix(): path for path in sorted(files)}


def _below(folder: Path, ending: str) -> list[Path]:
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
            losses.append(short(estimate["health"]["values"].get("anchor_loss")))
            for name, point in points_of(estimate, exact=exact, chains=component == FULL):
                points[component, key, name] = point
    return Row(
        index=_whole(record["index"]),
        step=_whole(record["step"]),
        time=number(record["time"]),
        overhead=short(record["overhead"]),
        failure=None if failure is None else str(failure),
        revises=None if revises is None else _whole(revises),
        loss=next((loss for loss in losses if loss is not None), None),
        points=points,
        start=start,
        length=length,
    )


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"expected a whole number, got {value!r}")
    return value
