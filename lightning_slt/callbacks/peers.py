"""Several processes make one reading, and all come to its end together or give it up.

Where each holds all weights, each runs its own chains; where they are sharded, all run all chains on their shards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import lightning.pytorch as pl
import torch

from lightning_slt.calibration import Settings
from lightning_slt.functional import ModuleLoss
from lightning_slt.sharding import WHOLE, at_rest, shards_of
from lightning_slt.standing import InterruptedReadingError, PeerFailedError, PeerInterruptedError, Standing
from lightning_slt.statistics import States, map_states

T = TypeVar("T")


class Peers:
    """The processes of a Trainer. With a single process every method is free.

    An error in one process alone would leave the others waiting for it in their next collective call. So each of
    these calls is preceded by an agreement that all are well, and who fails takes part in one more, to say so.

    Args:
        trainer: Whose processes.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        """Look up the rank, and whether the weights are sharded."""
        self.strategy, self.rank, self.world = trainer.strategy, trainer.global_rank, trainer.world_size
        self.shards = WHOLE
        if self.world > 1:
            with at_rest(trainer.lightning_module):
                self.shards = shards_of(trainer.lightning_module)

    def share_of(self, num_chains: int) -> Sequence[int]:
        """The chains of this process."""
        if self.shards.spread:
            return range(num_chains)
        return range(num_chains)[self.rank :: self.world]

    def from_first(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return value if self.world == 1 else self.strategy.broadcast(value)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise what this process raises inside; raise :class:`PeerFailedError` where another one did.

        Where one was asked to end, all raise :class:`InterruptedReadingError`, those that failed too.
        """
        try:
            yield
            self._agree()
        except (PeerFailedError, PeerInterruptedError):
            raise
        except InterruptedReadingError:
            self._least_standing(Standing.INTERRUPTED)
            raise
        except Exception:  # whatever it is, the others have to hear of it
            if self._least_standing(Standing.FAILED) is Standing.INTERRUPTED:
                Standing.INTERRUPTED.go_on()
            raise

    def share_buffers(self, loss: ModuleLoss) -> None:
        """Rank 0's buffers, which are those that training goes on with (batch normalization)."""
        if self.world > 1:
            self._agree()
            loss.set_buffers(self.strategy.broadcast({name: b.cpu() for name, b in loss.buffers.items()}))

    def agree_on(self, settings: Settings) -> Settings:
        """Rank 0's numbers: measured curvatures may differ in the last bit between devices."""
        if self.world == 1:
            return settings
        self._agree()
        sampling = settings.sampling
        step_size, burnin, thinning, constants = self.strategy.broadcast(
            (
                settings.sampler.step_size,
                sampling.num_burnin,
                sampling.thinning,
                {k: getattr(settings, k) for k in ("nbeta", "localization", "curvature", "stability")},
            )
        )
        return replace(
            settings,
            sampler=replace(settings.sampler, step_size=step_size),
            sampling=replace(sampling, num_burnin=burnin, thinning=thinning),
            **constants,
        )

    def add_up(self, states: States) -> None:
        """Sum statistics over processes; every process filled the rows of its own chains."""
        if self.world == 1:
            return
        self._agree()
        if self.shards.spread:  # each has seen the same losses of the same chains
            return
        map_states(states, lambda state: self.strategy.reduce(state, reduce_op="sum"))

    def _agree(self) -> None:
        self._least_standing(Standing.WELL).go_on()

    def _least_standing(self, own: Standing) -> Standing:
        """In the same words as the passes of sharded weights, in which others may be when this process fails."""
        if self.world == 1:
            return own
        if self.shards.spread:
            return self.shards.least_standing(own)
        standing = torch.tensor(int(own), device=self.strategy.root_device)
        return Standing(int(self.strategy.reduce(standing, reduce_op="min")))
