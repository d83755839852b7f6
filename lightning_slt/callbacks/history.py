"""Weights that were read so far, kept for the case that a run outgrows its settings and they must be read again."""

from __future__ import annotations

from typing import NamedTuple

import torch

from lightning_slt.offload import Waiting, has_memory_of_its_own
from lightning_slt.preflight import free_memory
from lightning_slt.reading import Anchor

MOST_KEPT = 32
"""Readings after which a run counts as settled: their weights are let go, and its settings stay."""

SHARE_OF_MEMORY = 0.05
"""Of the free memory of the device or of the host, for the weights that are kept; the oldest go first."""


class Kept(NamedTuple):
    """Weights that were read, the index of that reading, and their content where it waits in the host's memory."""

    anchor: Anchor
    number: int
    waiting: Waiting | None = None

    def back(self) -> Anchor:
        """The weights, on their device again."""
        if self.waiting is not None:
            self.waiting.back()
        return self.anchor


class History:
    """Anchors of the readings so far, and one that is held back until the next shows whether it was a spike.

    Curvature grows tens or hundreds of times over while a network starts to learn, and γ was found before. Where κ at
    two readings in a row is more than a reading's steps can follow, the run has outgrown its settings.

    Args:
        on_host: Whether what is kept waits in the host's memory.

    Attributes:
        owed: What is to be read again and was not yet.
    """

    def __init__(self, *, on_host: bool = False) -> None:
        """Nothing read yet."""
        self.on_host = on_host
        self.readings: list[Kept] = []
        self.held: Anchor | None = None
        self.owed: list[Kept] = []
        self.settled = False
        self.lost = 0
        self._bytes: int | None = None

    def keep(self, anchor: Anchor, number: int) -> None:
        """Keep what was read, or let everything go where the run has settled."""
        if self.settled:
            return
        loss = anchor.module_loss
        tensors = (*loss.weights.values(), *loss.buffers.values())
        each = 2 * sum(t.numel() * t.element_size() for t in tensors)
        waits = self.on_host and has_memory_of_its_own(loss.device)
        self.readings.append(Kept(anchor, number, Waiting(tensors) if waits else None))
        self.settled = len(self.readings) + self.lost >= MOST_KEPT
        if self._bytes is None:
            self._bytes = int(SHARE_OF_MEMORY * free_memory(torch.device("cpu") if waits else loss.device))
        fitting = loss.shards.least(self._bytes // max(each, 1))
        while self.readings and (self.settled or len(self.readings) > fitting):
            self.lost += not self.settled
            del self.readings[0]

    def owe(self) -> None:
        """Everything is to be read again, oldest first; what was lost stays as it is."""
        self.owed, self.readings, self.lost = [*self.owed, *self.readings], [], 0

    def release(self) -> Anchor | None:
        """The one that was held back."""
        held, self.held = self.held, None
        return held
