"""Random streams that depend on (seed, purpose, chain) alone, never on how many other chains run beside them."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A seed of 63 bits for one purpose; nearby inputs give unrelated streams.

    >>> derive_seed(0, "noise", 1) != derive_seed(0, "noise", 2)
    True
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(seed: int, purpose: str, index: int = 0, *, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for one purpose and one chain."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, index))
