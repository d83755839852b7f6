"""Signals that come while a reading is made: they wait until the module is its own again, and the reading is given up.

While chains run, the module evaluates their weights in the place of its own, in eval mode, and its Trainer's loggers
are silent. A handler that saved a checkpoint then (as Lightning's does under SLURM, which requeues with a signal) would
save a draw for what was trained, and one that only notes the signal would have training wait for the reading to end,
longer perhaps than a cluster waits before it kills.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning_slt.standing import InterruptedReadingError

NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
"""Signals that ask a process to end, or to save itself. Control-C (SIGINT) raises at once, and every guard restores."""


class Interruptions:
    """Signals of one fit.

    Attributes:
        waiting: Numbers of signals that came during the present reading, in order.
    """

    def __init__(self) -> None:
        """None came yet."""
        self.waiting: list[int] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Handlers of the user's and of Lightning's run in the end of this context rather than inside it.

        Signals without a handler in Python keep their effect, and other threads than the main one have none.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
        handlers = {n: signal.getsignal(n) for n in numbers if callable(signal.getsignal(n))}
        for number in handlers:
            signal.signal(number, lambda number, frame: self.waiting.append(number))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            came, self.waiting = self.waiting, []
            for number in came:
                signal.raise_signal(number)

    def checked(self, on_step: Callable[[int], None]) -> Callable[[int], None]:
        """A callback of chains' steps that breaks the work off where a signal waits.

        Other processes hear of it where they next agree to go on: before the next pass where the weights are sharded,
        at the end of their chains where each holds all weights.

        Args:
            on_step: What else to call.
        """

        def step(chains: int) -> None:
            if self.waiting:
                raise InterruptedReadingError(signal.Signals(self.waiting[0]).name)
            on_step(chains)

        return step
