r"""Which positions of an attention's weights are whose head's.

A head has its own outputs of the query, key and value projections, biases included, and its own inputs of the output
projection; that one's bias belongs to no head. Query heads that share keys and values share those slices: each head's
component holds its whole group's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Piece(NamedTuple):
    """One parameter of an attention, cut along an axis into equal blocks."""

    parameter: nn.Parameter
    axis: int
    owners: Tensor
    """Whether a block belongs to a head ``[head, block]``."""

    def mask(self, head: int) -> Tensor:
        """Elements of one head, in the parameter's shape; a view that holds one byte for each position of the axis."""
        shape = self.parameter.shape
        along = self.owners[head].repeat_interleave(shape[self.axis] // self.owners.shape[1])
        return along.view([-1 if axis == self.axis else 1 for axis in range(len(shape))]).expand(shape)


def query_owners(heads: int) -> Tensor:
    """Query block h is head h's ``[head, head]``."""
    return torch.eye(heads, dtype=torch.bool)


def key_owners(heads: int, groups: int) -> Tensor:
    """Block g of keys or values is that of the heads g·(heads/groups) and following ``[head, group]``."""
    return torch.eye(groups, dtype=torch.bool).repeat_interleave(heads // groups, 0)


def fused_owners(heads: int, groups: int, *, by_head: bool) -> Tensor:
    """Blocks of a fused projection: all queries, all keys, all values; or for each group its queries, key and value.

    Returns:
        ``[head, heads + 2·groups]``.
    """
    query, key = query_owners(heads), key_owners(heads, groups)
    if not by_head:
        return torch.cat([query, key, key], 1)
    return torch.cat([query.view(heads, groups, -1), key[:, :, None], key[:, :, None]], 2).flatten(1)
