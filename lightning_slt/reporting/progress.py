"""Progress of one reading, with the time that is left, in Lightning's own bar; nothing where there is no bar."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import lightning.pytorch as pl
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

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
            mininterval=0.1 if sys.stderr.isatty() else SELDOM,
        )
        try:
            yield lambda steps: _none(tqdm.update(steps))
        finally:
            tqdm.close()
    elif isinstance(bar, RichProgressBar) and bar.progress is not None:
        progress = bar.progress
        task = bar._add_task(total, description)
        try:
            yield lambda steps: progress.update(task, advance=steps)
        finally:
            progress.remove_task(task)
    else:
        yield lambda steps: None


def _none(_: object) -> None:
    return None
