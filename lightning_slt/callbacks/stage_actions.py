"""What happens at a boundary that a StageMonitor announces: a checkpoint, or the end of training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info

from lightning_slt.callbacks.stages import StageBoundary, StageMonitor
from lightning_slt.callbacks.surroundings import record


class StageCheckpoint(Callback):
    """Saves the present weights whenever a boundary is announced.

    The name of the file says which boundary it was and when it was known:
    ``<quantity>-boundary=<step>-step=<step>.ckpt``. The weights are those of the announcement, which comes some
    readings after the boundary.

    Args:
        dirpath: Folder of the checkpoints.
        quantity: Of which boundaries; None for all that are watched.
        save_weights_only: Leave optimizers and loops out.

    Attributes:
        saved: Files so far, in order.

    >>> StageCheckpoint("checkpoints").saved
    []
    """

    def __init__(
        self, dirpath: str | os.PathLike[str], *, quantity: str | None = None, save_weights_only: bool = False
    ) -> None:
        """Store the arguments."""
        super().__init__()
        self.dirpath, self.quantity, self.save_weights_only = dirpath, quantity, save_weights_only
        self.saved: list[Path] = []
        self._waiting: list[StageBoundary] = []

    def stage_announced(self, trainer: pl.Trainer, boundary: StageBoundary) -> None:
        """Note it: other callbacks have not seen this batch yet, and a checkpoint holds their states too."""
        if self.quantity in (None, boundary.quantity):
            self._waiting.append(boundary)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save what was announced at this batch."""
        self._save(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save what was announced since: the weights are still the same."""
        self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what was announced at the very end."""
        self._save(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The same, for monitors that come later in the list of callbacks."""
        self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        waiting, self._waiting = self._waiting, []
        for boundary in waiting:
            quantity = boundary.quantity.replace("/", ".")
            name = f"{quantity}-boundary={boundary.step:.0f}-step={trainer.global_step}.ckpt"
            path = Path(self.dirpath) / name
            trainer.save_checkpoint(path, weights_only=self.save_weights_only)
            self.saved.append(path)
            at, where = trainer.global_step, boundary.quantity
            text = f"weights saved to {name}, after the boundary of {where} at step {boundary.step:.0f}"
            record(
                trainer, "StageCheckpoint", kind="checkpoint", step=at, known_at=at, quantity=where, text=text,
                table=_tabulated(trainer),
            )  # fmt: skip


class StageStopping(Callback):
    """Ends training when a boundary is announced.

    Args:
        after: Which boundary of a quantity, from 1.
        quantity: Of which boundaries; None for any that is watched.

    Raises:
        ValueError: If ``after`` is below 1.

    >>> StageStopping(after=2).after
    2
    """

    def __init__(self, *, after: int = 1, quantity: str | None = None) -> None:
        """Store and check the arguments."""
        super().__init__()
        if isinstance(after, bool) or not isinstance(after, int) or after < 1:
            raise ValueError(f"after must be a whole number from 1, the boundary to stop at, got {after!r}")
        self.after, self.quantity = after, quantity

    def stage_announced(self, trainer: pl.Trainer, boundary: StageBoundary) -> None:
        """Stop where it is the one, as soon as the Trainer's ``min_steps`` and ``min_epochs`` allow."""
        if self.quantity in (None, boundary.quantity) and boundary.number >= self.after:
            trainer.should_stop = True
            at, where = trainer.global_step, boundary.quantity
            text = f"training ends at boundary {boundary.number} of {where}, step {boundary.step:.0f}"
            rank_zero_info(f"StageStopping: {text}, known at step {boundary.announced}")
            record(
                trainer, "StageStopping", kind="stop", step=at, known_at=at, quantity=where, text=text,
                table=_tabulated(trainer),
            )  # fmt: skip


def _tabulated(trainer: pl.Trainer) -> bool:
    """Whether those who announce boundaries show tables of them."""
    return any(isinstance(c, StageMonitor) and c.tables for c in trainer.callbacks)  # type: ignore[attr-defined]
