"""What callbacks need of a Trainer, for saved checkpoints: the weights are loaded in the place of being trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import nn

from lightning_slt.callbacks.ahead import Ahead
from lightning_slt.checkpoints import Checkpoint
from lightning_slt.reading import Recall, make_anew
from lightning_slt.types import Batch


class Replay:
    """Stands in for a Trainer that visits one checkpoint after another.

    Args:
        module: The network, on its device.
        callbacks: Those that look at it.
        data: What the Trainer's training set would be.
        loggers: Where to log.
        folder: Of the logs.
        precision: "32-true", or "bf16-mixed" where the run was trained so.
        last_step: Of the last checkpoint.
        ahead: What other processes have found.
        progress: Show the reading that is made.

    Attributes:
        should_stop: Set by callbacks that would stop training; nothing is stopped here.
    """

    fast_dev_run = False
    sanity_checking = False
    is_global_zero = True
    global_rank, world_size = 0, 1
    num_training_batches = float("inf")

    def __init__(
        self,
        module: nn.Module,
        callbacks: Sequence[Callback],
        *,
        data: Any,
        loggers: Sequence[Logger],
        folder: Path,
        precision: str = "32-true",
        last_step: int,
        ahead: Ahead,
        progress: bool = False,
    ) -> None:
        """Before the first checkpoint."""
        self.ahead = ahead
        self.progress_bar_callback = TQDMProgressBar() if progress else None
        self.lightning_module, self.callbacks, self.loggers = module, list(callbacks), list(loggers)
        self.train_dataloader = data
        self.log_dir = self.default_root_dir = str(folder)
        self.callback_metrics: dict[str, Any] = {}
        self.progress_bar_metrics: dict[str, Any] = {}
        self.strategy = _OneProcess()
        device = next(module.parameters()).device.type
        self.precision_plugin: Precision = (
            Precision() if precision == "32-true" else MixedPrecision("bf16-mixed", device)
        )
        self.estimated_stepping_batches = last_step
        self.global_step = self.current_epoch = 0
        self.should_stop = False
        self.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))

    def goes_to(self, checkpoint: Checkpoint) -> None:
        """Count as the run did when it saved these weights."""
        self.global_step, self.current_epoch = checkpoint.global_step, checkpoint.epoch
        self.fit_loop.epoch_loop._batches_that_stepped = checkpoint.step

    @property
    def as_trainer(self) -> pl.Trainer:
        """For functions that want one."""
        return cast(pl.Trainer, self)

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """These weights are saved already."""


def is_replay(trainer: object) -> bool:
    """Whether this is no Trainer, but saved checkpoints in the place of one."""
    return isinstance(trainer, Replay)


def recall_of(trainer: object, name: str) -> Recall:
    """How a monitor's readings are found: made, or for saved checkpoints taken from a process that was faster."""
    return partial(trainer.ahead.recall, name) if isinstance(trainer, Replay) else make_anew


def clock_of(trainer: object, clock: Callable[[], float]) -> Callable[[], float]:
    """The clock that readings are timed by; for saved checkpoints one that counts the time of other processes."""
    return trainer.ahead.clock if isinstance(trainer, Replay) else clock


class _OneProcess:
    """A strategy without peers: processes that read other checkpoints are none."""

    def batch_to_device(self, batch: Batch, device: Any) -> Batch:
        """Batches are moved to the weights' device by who asked."""
        return batch

    def broadcast(self, value: Any, src: int = 0) -> Any:
        """There is nobody else."""
        return value

    def barrier(self, name: str | None = None) -> None:
        """Nobody to wait for."""
