"""Minibatches of several chains side by side: tensors with a leading chain axis, and how they nest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lightning_slt.types import Batch


@dataclass(frozen=True, eq=False)
class Form:
    """How the tensors of a batch nest, with everything in it that is no tensor.

    Attributes:
        spec: The nesting.
        rest: The leaves in order, None in the place of a tensor.
        is_tensor: Which leaves are tensors.
    """

    spec: pytree.TreeSpec
    rest: tuple[Any, ...]
    is_tensor: tuple[bool, ...]

    def join(self, tensors: Sequence[Tensor]) -> Batch:
        """The batch with these tensors."""
        given = iter(tensors)
        leaves = [next(given) if t else leaf for t, leaf in zip(self.is_tensor, self.rest, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)

    def like(self, other: Form) -> bool:
        """Whether batches of both forms differ in their tensors alone."""
        if self is other:
            return True
        alike = self.spec == other.spec and self.is_tensor == other.is_tensor
        return alike and all(same(a, b) for a, b in zip(self.rest, other.rest, strict=True))


class ChainBatch(NamedTuple):
    """Minibatches of several chains.

    Attributes:
        leaves: Tensors of the batch, each ``[chain, sample, …]``; without the chain axis where all chains share it.
        form: How they nest, with everything that is no tensor.
        shared: Whether all chains use the same minibatch.
        indices: Which samples these are, ``[chain, sample]`` or ``[sample]`` where shared.
        ragged: The batches one by one, where they do not stack: shapes differ, or entries that are no tensors.
    """

    leaves: tuple[Tensor, ...]
    form: Form
    shared: bool
    indices: Tensor
    ragged: tuple[Batch, ...] = ()

    def of_chain(self, row: int) -> Batch:
        """Batch of one chain, exactly as collated."""
        if self.ragged:
            return self.ragged[row]
        return self.form.join(self.leaves if self.shared else [leaf[row] for leaf in self.leaves])

    def rows(self, start: int, stop: int) -> ChainBatch:
        """Batches of some of the chains."""
        if self.shared:
            return self
        leaves = tuple(leaf[start:stop] for leaf in self.leaves)
        return self._replace(leaves=leaves, indices=self.indices[start:stop], ragged=self.ragged[start:stop])

    def repeat(self, times: int) -> ChainBatch:
        """The same batches for several groups of as many chains."""
        if self.shared or times == 1:
            return self
        leaves = tuple(leaf.repeat(times, *([1] * (leaf.ndim - 1))) for leaf in self.leaves)
        return self._replace(leaves=leaves, indices=self.indices.repeat(times, 1), ragged=self.ragged * times)

    def like(self, other: ChainBatch) -> bool:
        """Whether both differ in the content of their tensors alone."""
        if self.shared != other.shared or self.ragged or other.ragged or not self.form.like(other.form):
            return False
        return all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(self.leaves, other.leaves, strict=True))


def split_batch(batch: Batch) -> tuple[tuple[Tensor, ...], Form]:
    """The tensors of a batch, and the rest."""
    leaves, spec = pytree.tree_flatten(batch)
    is_tensor = tuple(isinstance(leaf, Tensor) for leaf in leaves)
    rest = tuple(None if t else leaf for t, leaf in zip(is_tensor, leaves, strict=True))
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor)), Form(spec, rest, is_tensor)


def stack_batches(batches: Sequence[Batch], indices: Tensor) -> ChainBatch:
    """One batch a chain side by side, or as they are where they differ in more than the content of their tensors."""
    split = [split_batch(batch) for batch in batches]
    first, form = split[0]
    alike = all(
        form.like(other) and all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(first, leaves, strict=True))
        for leaves, other in split[1:]
    )
    if not alike:
        return ChainBatch((), form, False, indices, tuple(batches))
    stacked = tuple(torch.stack(column) for column in zip(*(leaves for leaves, _ in split), strict=True))
    return ChainBatch(stacked, form, False, indices)


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are equal: tensors to the bit, plain values by type and value; anything else is not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
    return type(a) is type(b) and isinstance(a, int | float | str | bool | type(None)) and a == b


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Losses ``[chain, sample, …]`` of several batches as one; shorter sequences are filled up with zeros."""
    if parts[0].ndim < 3:
        return torch.cat(list(parts), 1)
    width = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[2])) for part in parts], 1)
