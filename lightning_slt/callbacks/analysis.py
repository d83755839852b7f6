"""One analysis of saved checkpoints: what is read, in which order, and what is kept of it."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from lightning_slt.boundary import check_module, warn_user
from lightning_slt.callbacks.ahead import Ahead, clear, remove
from lightning_slt.callbacks.finder import SamplerFinder
from lightning_slt.callbacks.ledger import Ledger, asked_for, data_in_words
from lightning_slt.callbacks.listening import Listener
from lightning_slt.callbacks.live import reader_of
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.outlook import in_units
from lightning_slt.callbacks.replay import Replay
from lightning_slt.checkpoints import Checkpoint, choose, find_checkpoints
from lightning_slt.reading import Reader
from lightning_slt.records import FOLDER, Reading, load_records
from lightning_slt.weights import load_into

PARTS = "analysis.parts"
"""Folder of what processes have read ahead, beside the records; removed in the end."""

WORTH_TELLING = 60.0
"""Seconds of an analysis from which it is told how long it will take."""


class Analysis:
    """Monitors over saved checkpoints; see :func:`lightning_slt.analyze` for the arguments.

    Attributes:
        left: Checkpoints that are to be read, in the order of steps.
        ledger: What is known of those that were.
    """

    def __init__(
        self,
        module: nn.Module,
        checkpoints: str | Path | Sequence[str | Path],
        callbacks: Sequence[Callback],
        *,
        data: Any = None,
        run_dir: str | Path = "slt_analysis",
        precision: str = "32-true",
        progress: bool = True,
        steps: str | Collection[int] | None = None,
        every: int = 1,
        last: int | None = None,
    ) -> None:
        """Check everything that can be known now."""
        check_module(module)
        _check_callbacks(callbacks)
        self.module, self.callbacks, self.precision, self.progress = module, list(callbacks), precision, progress
        self.monitors = [callback for callback in callbacks if isinstance(callback, SLTMonitor)]
        self.folder, broken = Path(run_dir), dict[Path, str]()
        found = find_checkpoints(checkpoints, broken=broken)
        self.chosen = choose(found, steps=steps, every=every, last=last)
        self.data = _data_of(module) if data is None else data
        self.ledger = Ledger(self.folder)
        asked = {callback.state_key: asked_for(callback) for callback in callbacks}
        self.ledger.begin({"analysis": {"data": data_in_words(self.data), "precision": precision}, **asked})
        for path, reason in broken.items():
            self._leave_out(path, reason)
        self.left = [checkpoint for checkpoint in self.chosen if checkpoint.step not in self.ledger.steps]
        self.known, self.length = _settings_of_run(found[-1], self.monitors), found[-1].global_step
        self._fits = bool(self.ledger.steps)

    @property
    def device(self) -> torch.device:
        """Of the module."""
        return next(self.module.parameters()).device

    @property
    def readings(self) -> list[Reading]:
        """All so far, in the order of steps."""
        return sorted(load_records(self.folder), key=lambda reading: reading.step)

    @property
    def _parts(self) -> Path:
        return self.folder / FOLDER / PARTS

    def begin(self) -> None:
        """Free what processes that are gone had taken, and say with what it goes on."""
        clear(self._parts)
        if len(self.left) < len(self.chosen):
            before, all_of_them = len(self.chosen) - len(self.left), len(self.chosen)
            rank_zero_info(f"{before} of {all_of_them} checkpoints were read before; {self.folder} has them")
        for key in self.known.keys() - self.ledger.states.keys():
            rank_zero_info(
                f"{key}: what is left open goes on with the settings that the run's own monitor {key!r} found"
            )

    def end(self) -> None:
        """Say what could not be read.

        Raises:
            ValueError: If that was everything.
        """
        remove(self._parts)
        broken = self.ledger.broken
        if broken and not (self.ledger.steps or self._fits):
            raise ValueError(f"no checkpoint could be read: {next(iter(broken.values()))}")
        if broken:
            listed = "".join(f"\n  {path}" for path in broken)
            rank_zero_info(
                f"{len(broken)} files could not be read; another run adds them once they are mended:{listed}"
            )

    def replay(self, *, processes: int = 1) -> None:
        """Visit every checkpoint in its turn, alone or as the first of several processes."""
        logger = TensorBoardLogger(
            self.folder.parent, name=self.folder.name, version="", purge_step=self._repeated_from()
        )
        replay = self._stand_in([logger], sharing=processes > 1, first=True)
        trainer, as_module = replay.as_trainer, cast(pl.LightningModule, self.module)
        with _weights_put_back(self.module):
            for callback in self.callbacks:
                callback.setup(trainer, as_module, "fit")
            for key, state in (self.known | self._states()).items():
                next(c for c in self.callbacks if c.state_key == key).load_state_dict(state)
            self.ledger.save(self.callbacks)
            self._visit_all(replay, processes)
            for callback in self.callbacks if self._fits and self.left else ():
                callback.on_train_end(trainer, as_module)
                callback.on_fit_end(trainer, as_module)
        self.ledger.save(self.callbacks)
        logger.finalize("success")
        replay.ahead.end()

    def read_ahead(self) -> None:
        """In every other process: read what nobody has taken yet."""
        if not any(self._loads(checkpoint, telling=False) for checkpoint in self.left):
            return
        replay = self._stand_in([], sharing=True, first=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the first process says the same
            readers = {
                m.name: reader_of(
                    replay.as_trainer, cast(pl.LightningModule, self.module), m.name, m._request(fast=False), m.data
                )
                for m in self.monitors
            }
            replay.ahead.read_all(self._load, readers)

    def check_fit(self) -> None:
        """Refuse a module that not even the first checkpoint fits, before there are processes to do so.

        Raises:
            ValueError: If there is none that fits.
        """
        with _weights_put_back(self.module):
            any(self._loads(checkpoint, telling=False) for checkpoint in self.left)

    def take_over(self) -> None:
        """Take from the files what other processes have done."""
        self.ledger = Ledger(self.folder)
        for callback in self.callbacks:
            callback.load_state_dict(self.ledger.states[callback.state_key])

    def _visit_all(self, replay: Replay, processes: int) -> None:
        ledger, visited, began = self.ledger, 0, time.perf_counter()
        bar = Tqdm(self.left, desc="checkpoints", disable=not self.progress, smoothing=0)  # time left by the mean
        for number, checkpoint in enumerate(bar):
            replay.ahead.await_turn(checkpoint, self._load, self._readers())
            if not self._loads(checkpoint):
                continue
            replay.goes_to(checkpoint)
            self._visit(replay, first=not visited)
            visited += 1
            if self._was_read(checkpoint):
                ledger.steps.append(checkpoint.step)
            ledger.spent += (processes if visited > 1 else 1) * (time.perf_counter() - began)
            began = time.perf_counter()
            ledger.save(self.callbacks, waiting=self._waiting())
            replay.ahead.forget(self.left[number - 1].step if number else -1)
            if visited == 1:
                self._tell_the_time(len(self.left) - number - 1, processes)

    def _visit(self, replay: Replay, *, first: bool) -> None:
        """Everything that callbacks do at one checkpoint."""
        trainer, as_module = replay.as_trainer, cast(pl.LightningModule, self.module)
        for callback in self.callbacks if first else ():
            if not isinstance(callback, SLTMonitor):
                callback.on_train_start(trainer, as_module)
        for callback in self.callbacks:
            if isinstance(callback, SamplerFinder):
                callback.look(trainer, as_module)
        for monitor in self.monitors:
            monitor.read_now(trainer, as_module)

    def _stand_in(self, loggers: Sequence[Logger], *, sharing: bool, first: bool) -> Replay:
        ahead = Ahead(
            self._parts,
            self.left,
            monitors=[monitor.name for monitor in self.monitors],
            asked=repr(self.ledger.asked),
            device=self.device,
            sharing=sharing,
            first=first,
        )
        return Replay(
            self.module,
            self.callbacks,
            data=self.data,
            loggers=loggers,
            folder=self.folder,
            precision=self.precision,
            last_step=self.length,
            ahead=ahead,
            progress=self.progress and first,
        )

    def _load(self, checkpoint: Checkpoint) -> None:
        load_into(self.module, checkpoint.weights(), where=str(checkpoint.path))

    def _loads(self, checkpoint: Checkpoint, *, telling: bool = True) -> bool:
        """Load a checkpoint where that can be done; where not even the first one fits, the module is the wrong one."""
        try:
            weights = checkpoint.weights()
        except ValueError as error:
            if telling:
                self._leave_out(checkpoint.path, str(error))
            return False
        try:
            load_into(self.module, weights, where=str(checkpoint.path))
        except ValueError as error:
            if not self._fits:
                raise
            if telling:
                self._leave_out(checkpoint.path, str(error))
            return False
        self._fits = True
        return True

    def _leave_out(self, path: Path, reason: str) -> None:
        self.ledger.broken[str(path)] = reason
        warn_user(f"left out: {reason}")

    def _readers(self) -> Mapping[str, Reader]:
        return {monitor.name: monitor._live.reader for monitor in self.monitors if monitor._live is not None}

    def _was_read(self, checkpoint: Checkpoint) -> bool:
        """By all monitors: a signal that is handled breaks a reading off, which the next run makes then."""
        agendas = [monitor._agenda for monitor in self.monitors]
        return all(agenda is not None and agenda.last_step == checkpoint.step for agenda in agendas)

    def _waiting(self) -> list[int]:
        """Steps that monitors have put off until the next reading shows whether settings must be renewed."""
        held = [monitor._live.history.held for monitor in self.monitors if monitor._live is not None]
        return [anchor.step for anchor in held if anchor is not None]

    def _states(self) -> dict[str, Any]:
        """Where the callbacks stood; which checkpoints are left is for the ledger to know, not for them."""
        states = self.ledger.states
        return {key: {**state, "last_step": -1} if "last_step" in state else state for key, state in states.items()}

    def _repeated_from(self) -> int | None:
        """From where on a run that was killed may have logged what comes now again: TensorBoard drops that.

        Nothing is dropped where checkpoints are added between others, or the folder is not the analysis's own.
        """
        logged = any(self.folder.glob("events.out.tfevents.*"))
        added = any(step > self.left[0].step for step in self.ledger.steps) if self.left else True
        return self.left[0].step if logged and self.ledger.alone and not added else None

    def _tell_the_time(self, rest: int, processes: int) -> None:
        each = self.ledger.seconds or 0.0
        whole = each * rest / processes
        if whole >= WORTH_TELLING:
            rank_zero_info(f"a checkpoint took {in_units(each)}; the other {rest} will take about {in_units(whole)}")


def follows_readings(callback: Callback) -> bool:
    """Whether a callback takes readings, finds settings for them, or listens to them."""
    return isinstance(callback, SLTMonitor | SamplerFinder | Listener)


def _check_callbacks(callbacks: Sequence[Callback]) -> None:
    for callback in callbacks:
        if not follows_readings(callback):
            raise ValueError(
                f"{type(callback).__name__} takes no readings and follows none; callbacks= takes monitors such as "
                "LLCMonitor() and what listens to them"
            )
    if not any(isinstance(callback, SLTMonitor) for callback in callbacks):
        raise ValueError("there is no monitor among the callbacks, so nothing would be read; write [LLCMonitor()]")


def _data_of(module: nn.Module) -> Any:
    own = getattr(type(module), "train_dataloader", None)
    if own not in (None, pl.LightningModule.train_dataloader):
        return cast(pl.LightningModule, module).train_dataloader()
    raise TypeError("there are no data to sample on; write data= the training set, a Dataset or DataLoader")


def _settings_of_run(last: Checkpoint, monitors: Sequence[SLTMonitor]) -> dict[str, dict[str, Any]]:
    """States that hold no more than the settings which the live monitors found, as they stood in the end."""
    states = {}
    for monitor in monitors:
        settings = dict(last.callbacks.get(monitor.state_key, {})).get("settings")
        if settings is not None:
            states[monitor.state_key] = {
                "index": 0,
                "last": {},
                "records": None,
                "budget": {"spent": 0.0, "elapsed": 0.0, "cost": None},
                "settings": settings,
                "settled": True,
                "last_step": -1,
            }
    return states


@contextmanager
def _weights_put_back(module: nn.Module) -> Iterator[None]:
    kept = copy.deepcopy(module.state_dict())  # extra states may be any objects
    try:
        yield
    finally:
        module.load_state_dict(kept)
