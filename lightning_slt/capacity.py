"""How much runs together: what memory allows, and half of it once memory has run out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch

from lightning_slt.boundary import warn_user
from lightning_slt.offload import free_what_is_left
from lightning_slt.sampling import SamplingConfig

T = TypeVar("T")

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")
"""Of the devices whose allocators raise no error of their own: the CPU, Apple's."""


class InsufficientMemoryError(RuntimeError):
    """Not even one chain fits into the memory; the message says what to write."""


class Capacity:
    """What fits into the memory in the readings of one network, learnt from where it ran out.

    A chain's bits do not depend on how many run beside it, so a reading that was begun anew with fewer is the same
    reading.

    Attributes:
        chains: Most chains to run together; None while memory has not run out.
        alone: Whether even a pass of two chains was too much, so that passes run one after another.
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.chains: int | None = None
        self.alone = False

    def limit(self, config: SamplingConfig) -> SamplingConfig:
        """The counts, with no more chains together than fitted before."""
        most = self.chains or config.num_chains
        config = replace(config, chunk_size=min(config.chunk_size or config.num_chains, most))
        return replace(config, chain_method="sequential") if self.alone else config

    def run(self, config: SamplingConfig, attempt: Callable[[SamplingConfig], T]) -> T:
        """What an attempt gives, begun anew with half as many chains together wherever memory runs out.

        Args:
            config: Counts; its ``chunk_size`` chains run together at first.
            attempt: Must leave nothing behind when it raises.

        Raises:
            InsufficientMemoryError: If not even one chain fits.
        """
        while True:
            config = self.limit(config)
            try:
                return attempt(config)
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
                cause = str(error).strip().splitlines()[0][:200]
            free_what_is_left()  # here, where the frames of the attempt and what they held are gone
            self._shrink(config, cause)

    def _shrink(self, config: SamplingConfig, cause: str) -> None:
        together = config.chunk_size or config.num_chains
        if together == 1 and self.alone:
            raise InsufficientMemoryError(
                f"not even one chain fits into the memory: {cause}. Write a smaller batch_size in SamplingConfig, "
                "smaller batches of probes, Probe(…, batch_size=16), or fewer weights that move, components="
            )
        if together == 1:
            self.alone = True
            warn_user("memory ran out with one chain and its twin: chains run one after another from now on")
        else:
            self.chains = together // 2
            warn_user(
                f"memory ran out with {together} chains together: {self.chains} from now on, with the same results. "
                f"SamplingConfig(chunk_size={self.chains}) says so from the start"
            )


def with_fewer(rows: int, attempt: Callable[[int], T]) -> T:
    """What an attempt gives that takes so many samples at once, or half as many wherever memory runs out.

    Raises:
        RuntimeError: If not even one fits.
    """
    while True:
        try:
            return attempt(rows)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error) or rows == 1:
                raise
        free_what_is_left()
        rows //= 2


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device has no memory left."""
    told = any(sign in str(error).lower() for sign in _SIGNS)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and told)
