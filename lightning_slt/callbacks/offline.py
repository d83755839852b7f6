"""analyze: the monitors of a run over its saved checkpoints, as if they had been there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

from lightning_slt.boundary import check_module
from lightning_slt.callbacks.finder import SamplerFinder
from lightning_slt.callbacks.listening import Listener
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.replay import Replay
from lightning_slt.checkpoints import Checkpoint, find_checkpoints
from lightning_slt.records import FOLDER, Reading, load_records
from lightning_slt.weights import load_into

STATE = "analysis.pt"
"""What lets an analysis go on where it was stopped, beside the records."""


def analyze(
    module: nn.Module,
    checkpoints: str | Path | Sequence[str | Path],
    callbacks: Sequence[Callback],
    *,
    data: Any = None,
    run_dir: str | Path = "slt_analysis",
    precision: str = "32-true",
    progress: bool = True,
) -> list[Reading]:
    """Read saved checkpoints of a run with the same monitors, records and TensorBoard output as live.

    The readings equal those of the live run on the same weights: the code is the same, and settings that the live
    monitor found are taken from the checkpoints, where they have them. An analysis that was stopped goes on with the
    checkpoints that are left, given the same ``run_dir``.

    Args:
        module: The network, built as for training, on the device to run on; its weights are put back in the end.
        checkpoints: See :func:`lightning_slt.checkpoints.find_checkpoints`.
        callbacks: Monitors, and callbacks that follow their readings; their schedules do not count, every checkpoint
            is read.
        data: What the Trainer's training set would be; None for the module's own ``train_dataloader()``.
        run_dir: Folder of records and TensorBoard logs.
        precision: "bf16-mixed" where the run was trained so, else "32-true".
        progress: Show a bar.

    Returns:
        The readings, those of an earlier part of the analysis included.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If they do not fit the module, or a callback has nothing to do with readings.
        TypeError: If there are no data.
    """
    check_module(module)
    _check_callbacks(callbacks)
    found = find_checkpoints(checkpoints)
    folder = Path(run_dir)
    replay = Replay(
        module,
        callbacks,
        data=_data_of(module) if data is None else data,
        loggers=[TensorBoardLogger(folder.parent, name=folder.name, version="")],
        folder=folder,
        precision=precision,
        last_step=found[-1].global_step,
    )
    trainer, as_module = replay.as_trainer, cast(pl.LightningModule, module)
    done = _Progress(folder / FOLDER / STATE, callbacks)
    left = [checkpoint for checkpoint in found if checkpoint.step not in done.steps]
    if len(left) < len(found):
        rank_zero_info(f"{len(found) - len(left)} of {len(found)} checkpoints were read before; {folder} has them")
    known = _settings_of_run(found[-1], callbacks)
    for key in known.keys() - done.states.keys():
        rank_zero_info(f"{key}: what is left open goes on with the settings that the run's own monitor {key!r} found")
    with _weights_put_back(module):
        for callback in callbacks:
            callback.setup(trainer, as_module, "fit")
        for key, state in (known | done.states).items():
            next(c for c in callbacks if c.state_key == key).load_state_dict(state)
        for number, checkpoint in enumerate(Tqdm(left, desc="checkpoints", disable=not progress)):
            load_into(module, checkpoint.weights(), where=str(checkpoint.path))
            replay.goes_to(checkpoint)
            _visit(trainer, as_module, callbacks, first=number == 0)
            done.note(checkpoint.step)
        for callback in callbacks if left else ():
            callback.on_train_end(trainer, as_module)
            callback.on_fit_end(trainer, as_module)
    _close(replay.loggers)
    return load_records(folder)


def follows_readings(callback: Callback) -> bool:
    """Whether a callback takes readings, finds settings for them, or listens to them."""
    return isinstance(callback, SLTMonitor | SamplerFinder | Listener)


def _visit(trainer: pl.Trainer, module: pl.LightningModule, callbacks: Sequence[Callback], *, first: bool) -> None:
    """Everything that callbacks do at one checkpoint."""
    for callback in callbacks if first else ():
        if not isinstance(callback, SLTMonitor):
            callback.on_train_start(trainer, module)
    for callback in callbacks:
        if isinstance(callback, SamplerFinder):
            callback.look(trainer, module)
    for callback in callbacks:
        if isinstance(callback, SLTMonitor):
            callback.read_now(trainer, module)


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


def _settings_of_run(last: Checkpoint, callbacks: Sequence[Callback]) -> dict[str, dict[str, Any]]:
    """States that hold no more than the settings which the live monitors found, as they stood in the end."""
    states = {}
    for monitor in (c for c in callbacks if isinstance(c, SLTMonitor)):
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


class _Progress:
    """Which checkpoints were read, and the callbacks' states, kept in a file after each."""

    def __init__(self, path: Path, callbacks: Sequence[Callback]) -> None:
        self.path, self.callbacks = path, callbacks
        saved: Mapping[str, Any] = torch.load(path, weights_only=True) if path.is_file() else {}
        self.steps: list[int] = list(saved.get("steps", []))
        keys = {callback.state_key for callback in callbacks}
        self.states = {key: state for key, state in saved.get("states", {}).items() if key in keys}

    def note(self, step: int) -> None:
        """Write beside, then rename: the file is always whole."""
        self.steps.append(step)
        states = {callback.state_key: callback.state_dict() for callback in self.callbacks}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        torch.save({"steps": self.steps, "states": states}, partial)
        partial.replace(self.path)


@contextmanager
def _weights_put_back(module: nn.Module) -> Iterator[None]:
    kept = {name: value.detach().clone() for name, value in module.state_dict().items()}
    try:
        yield
    finally:
        module.load_state_dict(kept)


def _close(loggers: Sequence[Logger]) -> None:
    for logger in loggers:
        logger.finalize("success")
