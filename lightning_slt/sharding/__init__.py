"""Weights that are spread over processes (FSDP2): what each process holds, and losses evaluated on them in place."""

from lightning_slt.sharding.in_place import InPlace, at_rest, preserved_shards, rest
from lightning_slt.sharding.shards import WHOLE, PeerFailedError, Shards, local, shard_axis, shards_of

__all__ = [
    "WHOLE",
    "InPlace",
    "PeerFailedError",
    "Shards",
    "at_rest",
    "local",
    "preserved_shards",
    "rest",
    "shard_axis",
    "shards_of",
]
