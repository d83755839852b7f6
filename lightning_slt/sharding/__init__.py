"""Weights that are spread over processes (FSDP2): what each process holds, and losses evaluated on them in place."""

from lightning_slt.sharding.in_place import InPlace, at_rest, casts_of, preserved_shards, rest
from lightning_slt.sharding.shards import (
    WHOLE,
    Shards,
    is_distributed_tensor,
    local,
    shard_axis,
    shards_of,
)

__all__ = [
    "WHOLE",
    "InPlace",
    "Shards",
    "at_rest",
    "casts_of",
    "is_distributed_tensor",
    "local",
    "preserved_shards",
    "rest",
    "shard_axis",
    "shards_of",
]
