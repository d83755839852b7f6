"""Saved checkpoints shared out over processes: all read ahead, and the first one replays what they found in order.

A reading depends on weights, data, settings and seed alone. So the first process does what a single one would do, and
takes from a file what another one has made already: the result is the same, to the bit. Files are whole or not there;
those of a process that dies are taken over by the next run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple, TypeVar

import torch
from lightning.pytorch.utilities import rank_zero_info

from lightning_slt.boundary import warn_user
from lightning_slt.calibration import Settings
from lightning_slt.checkpoints import Checkpoint
from lightning_slt.reading import Anchor, Reader
from lightning_slt.results import Result
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import Estimate, Health

T = TypeVar("T")
Load = Callable[[Checkpoint], None]
"""Puts a checkpoint's weights into the module."""

PAUSE = 0.02
"""Seconds between two looks at what the others do."""

READINGS, TOLD, OVER = "*.reading", "settings.told", "over"


class _Told(NamedTuple):
    """What the first process tells the others.

    Attributes:
        generation: Counts up with every change of settings.
        after: Steps up to this one are the first process's own.
        settings: ``{monitor: (settings of the run or None, counts)}``.
    """

    generation: int
    after: int
    settings: dict[str, tuple[Settings | None, SamplingConfig]]


class Ahead:
    """What was read ahead, and who reads what.

    Args:
        folder: Of the files.
        checkpoints: All of the analysis, in the order of steps.
        monitors: Their names.
        asked: What was asked for, in words: files that were made for something else are not used.
        device: Of this process.
        sharing: Whether there are other processes; the first one's readings are kept in memory otherwise.
        first: Whether this is the process that replays.
    """

    def __init__(
        self,
        folder: Path,
        checkpoints: Sequence[Checkpoint],
        *,
        monitors: Sequence[str],
        asked: str,
        device: torch.device,
        sharing: bool,
        first: bool,
    ) -> None:
        """Nothing is told yet."""
        self.folder, self.checkpoints, self.monitors, self.device = folder, checkpoints, monitors, device
        self.sharing, self.first = sharing, first
        self._versions = {c.step: f"{asked}\n{c.version}" for c in checkpoints}
        self._known: dict[str, tuple[Settings | None, SamplingConfig]] = {}
        self._told: _Told | None = None
        self._taken: set[Path] = set()
        self._at, self._saved = -1, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def clock(self) -> float:
        """Seconds, those that other processes spent on what was taken from them included."""
        return time.perf_counter() + self._saved

    def recall(self, name: str, reader: Reader, anchor: Anchor, key: str, make: Callable[[], T]) -> T:
        """What a monitor's reader asks for: from a file, or made; see :class:`lightning_slt.reading.Recall`."""
        if self.first and self.sharing:
            self._tell(name, reader)
        words = f"{name}\n{anchor.step}\n{self._versions[anchor.step]}\n{key}"
        path = self.folder / f"{anchor.step:09d}-{hashlib.sha256(words.encode()).hexdigest()[:24]}.reading"
        found = self._load(path)
        if found is not None:
            self._saved += found["seconds"]
            value: T = found["value"]
            return value
        began = time.perf_counter()
        value = make()
        if self.sharing:
            _save({"value": value, "seconds": time.perf_counter() - began}, path)
        return value

    def await_turn(self, checkpoint: Checkpoint, load: Load, readers: Mapping[str, Reader]) -> None:
        """In the first process: return once nobody else is reading a checkpoint; read others until then."""
        while self._told is not None and not self._claim(checkpoint, self._told):
            done = self._path(checkpoint, self._told, "done")
            if done.exists():
                if failure := done.read_text():
                    rank_zero_info(f"another process could not read step {checkpoint.step}, {failure}; the first does")
                break
            if not self.read_one(load, readers):
                time.sleep(PAUSE)
        self._at = checkpoint.step

    def read_all(self, load: Load, readers: Mapping[str, Reader]) -> None:
        """In every other process: read until the first one is through."""
        while not (self.folder / OVER).exists():
            if not self.read_one(load, readers):
                time.sleep(PAUSE)

    def end(self) -> None:
        """In the first process: it is through."""
        (self.folder / OVER).touch()

    def read_one(self, load: Load, readers: Mapping[str, Reader]) -> bool:
        """Read the next checkpoint that nobody has taken, for all monitors.

        Returns:
            Whether there was one.
        """
        told = self._told if self.first else self._listen()
        if told is None:
            return False
        mine = (c for c in self.checkpoints if c.step > max(told.after, self._at) and self._claim(c, told))
        checkpoint = next(mine, None)
        if checkpoint is None:
            return False
        failure = ""
        try:
            load(checkpoint)
            for name, reader in readers.items():
                if not self.first:
                    reader.settings, reader.sampling = told.settings[name]
                anchor = reader.set_aside(
                    step=checkpoint.step, global_step=checkpoint.global_step, epoch=checkpoint.epoch
                )
                reader.read(anchor, reader.settings_at(anchor) if reader.has_chains else None)
        except Exception as error:  # whatever it is, the first process comes to this checkpoint in its turn
            failure = f"{type(error).__name__}: {error}"
        done = self._path(checkpoint, told, "done")
        partial = done.with_suffix(".written")
        partial.write_text(failure)
        partial.replace(done)
        return True

    def forget(self, step: int) -> None:
        """Remove what was read ahead up to a step: it is recorded."""
        for path in self.folder.glob(READINGS):
            if int(path.name.partition("-")[0]) <= step:
                path.unlink()

    def _tell(self, name: str, reader: Reader) -> None:
        """Let the others know the settings, once those of all monitors are known, and whenever they change."""
        now = reader.settings, reader.sampling
        if name in self._known and repr(self._known[name]) == repr(now):
            return
        self._known[name] = now
        if len(self._known) == len(self.monitors):
            generation = 0 if self._told is None else self._told.generation + 1
            self._told = _Told(generation, self._at, dict(self._known))
            _save(tuple(self._told), self.folder / TOLD)

    def _listen(self) -> _Told | None:
        found = self._load(self.folder / TOLD)
        return None if found is None else _Told(*found)

    def _claim(self, checkpoint: Checkpoint, told: _Told) -> bool:
        """Take a checkpoint; False where it is taken."""
        path = self._path(checkpoint, told, "claim")
        if path in self._taken:
            return False
        self._taken.add(path)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def _path(self, checkpoint: Checkpoint, told: _Told, kind: str) -> Path:
        return self.folder / f"{told.generation}-{checkpoint.step}.{kind}"

    def _load(self, path: Path) -> Any:
        if not path.exists():
            return None
        here = {f"cuda:{k}": str(self.device) for k in range(torch.cuda.device_count())}
        try:
            with torch.serialization.safe_globals(list(_kinds())):
                return torch.load(path, weights_only=True, map_location=here)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            warn_user(f"{path} cannot be read, so that this is read again: {str(error).splitlines()[0]}")
            return None


def clear(folder: Path) -> None:
    """Before a run: what processes that are gone had taken is free again; whole readings stay."""
    for path in folder.glob("*") if folder.is_dir() else ():
        if not path.match(READINGS):
            path.unlink()


def remove(folder: Path) -> None:
    """After a run."""
    shutil.rmtree(folder, ignore_errors=True)


def _kinds() -> Iterator[type]:
    """What the files may hold beside plain values and tensors."""
    yield from (Estimate, Health, Settings, SamplingConfig)
    waiting: list[type] = [Result, Sampler]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        yield kind


def _save(value: Any, path: Path) -> None:
    """Write beside, then rename: a file of that name is always whole."""
    partial = path.with_suffix(f".partial{os.getpid()}")
    torch.save(value, partial)
    partial.replace(path)
