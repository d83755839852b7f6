"""analyze: the monitors of a run over its saved checkpoints, as if they had been there."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Sequence
from copy import deepcopy
from functools import partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, Literal

from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.multiprocessing.spawn import ProcessExitedException

from lightning_slt.callbacks.analysis import Analysis
from lightning_slt.records import Reading

StartMethod = Literal["spawn", "fork"]


class ProcessDiedError(RuntimeError):
    """A process of an analysis was killed; what was read is kept."""


def analyze(
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
    devices: int = 1,
    start_method: StartMethod = "spawn",
) -> list[Reading]:
    """Read saved checkpoints of a run with the same monitors, records and TensorBoard output as live.

    The readings equal those of the live run on the same weights: the code is the same, and settings that the live
    monitor found are taken from the checkpoints, where they have them. An analysis that was stopped goes on with the
    checkpoints that are left, given the same ``run_dir``. A file that cannot be read is left out with a warning.

    Args:
        module: The network, built as for training, on the device to run on; its weights are put back in the end.
        checkpoints: See :func:`lightning_slt.checkpoints.find_checkpoints`.
        callbacks: Monitors, and callbacks that follow their readings; their schedules do not count, every checkpoint
            is read.
        data: What the Trainer's training set would be; None for the module's own ``train_dataloader()``.
        run_dir: Folder of records and TensorBoard logs.
        precision: "bf16-mixed" where the run was trained so, else "32-true".
        progress: Show a bar of checkpoints and one of the present reading, each with the time that is left.
        steps: Only these, see :func:`lightning_slt.checkpoints.choose`, here and below.
        every: Only every so many of them.
        last: Only the last so many of these.
        devices: Processes, each on a device of the module's kind, that share the checkpoints. Nothing else changes: the
            readings are the same to the bit on the same kind of device with as many threads.
        start_method: Of several processes: "spawn" sends module, callbacks and data to each; "fork", on CPUs alone,
            is for what cannot be sent.

    Returns:
        The readings in the order of steps, those of an earlier part of the analysis included.

    Raises:
        FileNotFoundError: If there are no checkpoints.
        ValueError: If they do not fit the module, a callback has nothing to do with readings, or the ``run_dir`` was
            begun with something else.
        TypeError: If there are no data, or something cannot be sent to other processes.
        ProcessDiedError: If a process was killed.
    """
    analysis = Analysis(
        module, checkpoints, callbacks, data=data, run_dir=run_dir, precision=precision, progress=progress,
        steps=steps, every=every, last=last,
    )  # fmt: skip
    run(analysis, devices=devices, start_method=start_method)
    return analysis.readings


def run(analysis: Analysis, *, devices: int = 1, start_method: StartMethod = "spawn") -> None:
    """Read what is left of an analysis, see :func:`analyze`.

    Raises:
        ValueError: If the number of devices cannot be, no checkpoint can be read, or another process reads them.
        TypeError: If something cannot be sent to other processes.
        ProcessDiedError: If a process was killed.
    """
    if isinstance(devices, bool) or not isinstance(devices, int) or devices < 1:
        raise ValueError(f"devices must be a whole number from 1, got {devices!r}; write devices=2")
    with analysis.ledger.held():
        analysis.begin()
        if min(devices, len(analysis.left)) < 2:
            analysis.replay()
        else:
            _launch(analysis, min(devices, len(analysis.left)), start_method)
        analysis.end()


def _launch(analysis: Analysis, devices: int, start_method: StartMethod) -> None:
    """Share out over processes: they meet at the start, and from there on in files alone."""
    analysis.check_fit()
    device = analysis.device
    strategy = DDPStrategy(start_method=start_method, process_group_backend="gloo")
    fabric = Fabric(accelerator=device.type, devices=devices, strategy=strategy)
    analysis.module.cpu()  # each process has a device of its own
    try:
        if start_method == "spawn":
            _check_sendable(analysis)
        fabric.launch(partial(_work, analysis=analysis))
    except ProcessExitedException as error:
        raise ProcessDiedError(
            f"a process of the analysis died ({error}); what was read is kept in {analysis.folder}, and the same call "
            "goes on from there"
        ) from error
    finally:
        analysis.module.to(device)
    analysis.take_over()


def _work(fabric: Fabric, analysis: Analysis) -> None:
    """One process's part."""
    analysis.module = deepcopy(analysis.module).to(fabric.device)  # what was sent lies in memory that all share
    if fabric.is_global_zero:
        analysis.replay(processes=fabric.world_size)
    else:
        analysis.read_ahead()


def _check_sendable(analysis: Analysis) -> None:
    try:
        ForkingPickler.dumps(analysis)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(
            f"module, callbacks or data cannot be sent to other processes: {error}. Define functions and classes at "
            "the top level of a module that can be imported, or write start_method='fork' (on CPUs)"
        ) from error
