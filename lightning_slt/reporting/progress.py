"""Progress of one reading, with the time that is left, in Lightning's own bar; nothing where there is no bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

OFTEN = 0.1
"""Seconds between two updates in a terminal."""

SELDOM = 30.0
"""Seconds between two lines where each update of a bar is a line: in a file, or a notebook's log."""


@contextmanager
def reading_progress(trainer: pl.Trainer, description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show one reading as a task of its own and take it away again.

    Args:
        trainer: Whose bar to use.
        description: In front of the bar.
        total: Chain-steps of the reading.

    Yields:
        A function to call with the number of chain-steps just made.
    """
    bar = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and not bar.is_disabled:
        tqdm = Tqdm(
            desc=description,
            total=total,
            leave=False,
            position=1 + 2 * bar.process_position,
            dynamic_ncols=True,
            unit=" steps",
            mininterval=OFTEN if sys.stderr.isatty() else SELDOM,
        )
        try:
            yield lambda steps: _none(tqdm.update(steps))
        finally:
            tqdm.close()
    elif isinstance(bar, RichProgressBar) and bar.is_enabled:
        bar._init_progress(trainer)  # before the first step it may not have begun yet; then this does nothing later
        assert bar.progress is not None
        progress, task, drawn = bar.progress, bar._add_task(total, description), time.monotonic()

        def show(steps: int) -> None:
            nonlocal drawn
            progress.update(task, advance=steps)
            if time.monotonic() - drawn >= OFTEN:  # Lightning's Rich bar has no clock of its own
                drawn = time.monotonic()
                bar.refresh()

        try:
            yield show
        finally:
            progress.remove_task(task)
    else:
        yield lambda steps: None


def _none(_: object) -> None:
    return None
