r"""The samples that a reading uses, and the minibatches that each chain draws from them.

Samples are fetched once, with fixed seeds and from a copy of the data set, and kept: a data set with random state of
its own would otherwise change training, and random augmentations would make losses at two draws incomparable.
Minibatches come without replacement, reshuffled each epoch, one stream per chain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import Subset, TensorDataset, default_collate

from lightning_slt.batches import ChainBatch, Form, same, split_batch, stack_batches
from lightning_slt.seeding import generator
from lightning_slt.sources import Collate, copy_dataset, source_parts
from lightning_slt.types import Batch

MEMORY_LIMIT = 2**30
"""Bytes of samples kept; of a larger data set a random subset is used, and said."""

LOOKED_AT = 4096
"""Samples that are collated alone, to see whether all have the same shape."""


@dataclass(frozen=True)
class SamplingData:
    """Samples kept in memory, to be collated by index.

    Attributes:
        samples: One entry a sample, as the data set gives them; empty where ``whole`` holds them all.
        prepare: Collates a list of samples and moves the batch to the device.
        whole: All samples collated at once, where slices of that equal the collated slices.
        total: Number of samples that the data set has; larger than ``len(self)`` where a subset is used.
    """

    samples: Sequence[Any]
    prepare: Callable[[Sequence[Any]], Batch]
    whole: Batch | None
    count: int
    total: int

    def __len__(self) -> int:
        """Number of samples in use."""
        return self.count

    def batch(self, indices: Tensor) -> Batch:
        """One collated batch of the samples ``[sample]``."""
        if self.whole is not None:
            return _take(self.whole, indices)
        return self.prepare([self.samples[i] for i in indices.tolist()])

    def chain_batch(self, indices: Tensor) -> ChainBatch:
        """Minibatches for several chains ``[chain, sample]``, or one for all of them ``[sample]``."""
        shared = indices.ndim == 1
        if self.whole is not None:
            leaves, form = self._whole_split
            return ChainBatch(tuple(_rows(leaf, indices) for leaf in leaves), form, shared, indices)
        batches = [self.batch(row) for row in indices.reshape(-1, indices.shape[-1])]
        return ChainBatch(*split_batch(batches[0]), True, indices) if shared else stack_batches(batches, indices)

    def not_finite(self) -> Tensor:
        """Which samples have NaN or infinity among their numbers ``[sample]``."""
        if self.whole is None:
            bad = [not all(map(_finite, pytree.tree_leaves(sample))) for sample in self.samples]
            return torch.tensor(bad).nonzero()[:, 0]
        finite = torch.ones(len(self), dtype=torch.bool)
        for leaf in _tensors(self.whole):
            if leaf.layout is torch.strided:
                finite &= leaf.reshape(len(self), -1).isfinite().all(1).cpu()
        return (~finite).nonzero()[:, 0]

    @cached_property
    def _whole_split(self) -> tuple[tuple[Tensor, ...], Form]:
        return split_batch(self.whole)


def load_data(
    source: Any,
    *,
    to_device: Callable[[Batch], Batch] = lambda batch: batch,
    seed: int = 0,
    memory_limit: int = MEMORY_LIMIT,
) -> SamplingData:
    """Fetch the samples of a data set once; in the middle of a training run call it inside ``isolated``.

    Args:
        source: A map-style ``Dataset`` or a sequence of samples, a ``DataLoader`` over one (its ``collate_fn`` is
            kept, its order and workers are not used), or a dict or list of these, batched side by side.
        to_device: Moves a collated batch where the loss is evaluated; by default it stays where it is.
        seed: Chooses the subset where the data exceed ``memory_limit`` bytes.
        memory_limit: How many bytes of samples to keep.

    Returns:
        The samples.

    Raises:
        TypeError: For streams without a length, and loaders that do not collate single samples.
        ValueError: If there are no samples, or torch cannot batch them.
    """
    dataset, collate = source_parts(source)
    total = len(dataset)
    if total == 0:
        raise ValueError("the data set has no samples; pass data= a Dataset with at least one")
    prepare = _Prepare(collate, to_device)
    columns = _plain_tensors(dataset) if collate is default_collate else None
    if columns is None:
        dataset = copy_dataset(dataset)
    keep = _subset(total, max(1, memory_limit // _num_bytes(dataset[0], collate)), seed)
    if columns is None:
        samples: Sequence[Any] = [dataset[i] for i in keep.tolist()]
    else:
        samples = _Rows([column[keep] for column in columns])
    whole = _whole(samples, prepare, seed)
    return SamplingData(samples if whole is None else (), prepare, whole, len(samples), total)


class _Prepare:
    """Collates samples and moves the batch."""

    def __init__(self, collate: Collate, to_device: Callable[[Batch], Batch]) -> None:
        self.collate, self.to_device = collate, to_device

    def __call__(self, samples: Sequence[Any]) -> Batch:
        return self.to_device(self.collate(list(samples)))


class _Rows(Sequence[Any]):
    """Samples of a TensorDataset, without fetching them one by one."""

    def __init__(self, columns: list[Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: Any) -> Any:
        return tuple(column[index] for column in self.columns)


class Streams:
    """Minibatch indices of each chain, a function of (seed, chain, step) alone.

    Args:
        count: Number n of samples.
        batch_size: Samples a minibatch; n or more is the full set.
        seed: Of the run.
        chains: Which chains.
        share_batches: One stream for all chains.
    """

    def __init__(self, count: int, *, batch_size: int, seed: int, chains: Sequence[int], share_batches: bool) -> None:
        """Start every stream at its first epoch."""
        self.count, self.batch_size = count, min(batch_size, count)
        self.full, self.shared = batch_size >= count, share_batches
        streams = [0] if share_batches else list(chains)
        purpose = "shared batches" if share_batches else "batches"
        self._generators = [generator(seed, purpose, c) for c in streams]
        self._orders = torch.empty(len(streams), count, dtype=torch.long)
        self._used = count

    def next(self) -> Tensor:
        """``[chain, sample]``, or ``[sample]`` where all chains share it. The remainder of an epoch is left out."""
        if self.full:
            return torch.arange(self.count)
        if self._used + self.batch_size > self.count:
            for order, g in zip(self._orders, self._generators, strict=True):
                torch.randperm(self.count, generator=g, out=order)
            self._used = 0
        rows = self._orders[:, self._used : self._used + self.batch_size].clone()
        self._used += self.batch_size
        return rows[0] if self.shared else rows


def _subset(total: int, limit: int, seed: int) -> Tensor:
    if total <= limit:
        return torch.arange(total)
    return torch.randperm(total, generator=generator(seed, "subset"))[:limit].sort().values


def _plain_tensors(dataset: Any) -> list[Tensor] | None:
    """Columns of a TensorDataset or a Subset of one, which need no fetching."""
    if type(dataset) is TensorDataset:
        return list(dataset.tensors)
    if type(dataset) is Subset and (inner := _plain_tensors(dataset.dataset)) is not None:
        index = torch.as_tensor(dataset.indices)
        return [t[index] for t in inner]
    return None


def _num_bytes(sample: Any, collate: Collate) -> int:
    """Of the arrays in one sample, or of what it is collated to where it has none (an image to be decoded, say)."""
    arrays = [leaf for leaf in pytree.tree_leaves(sample) if isinstance(leaf, Tensor | np.ndarray)]
    return max(1, sum(a.nbytes for a in arrays or _tensors(collate([sample]))))


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout is not torch.strided or bool(value.isfinite().all())
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    return not isinstance(value, float | np.floating) or bool(np.isfinite(value))


def _tensors(batch: Batch) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def _whole(samples: Sequence[Any], prepare: _Prepare, seed: int) -> Batch | None:
    """All samples as one batch, where taking its rows equals collating those samples; None where it does not.

    A collate function may pad to the longest sample, sort, or mix samples. Shapes of single samples are compared, as
    one longer sample among many would not show in a random handful, then the content of two handfuls.
    """
    if isinstance(samples, _Rows):
        whole = prepare.to_device(samples.columns)
    elif prepare.collate is not default_collate and not _alike(samples, prepare.collate):
        return None
    else:
        whole = _collated(samples, prepare)
    if any(not t.ndim or len(t) != len(samples) for t in _tensors(whole)):
        return None
    g = generator(seed, "sliceable")
    for size in (1, min(5, len(samples))):
        index = torch.randperm(len(samples), generator=g)[:size]
        ours, spec = pytree.tree_flatten(_take(whole, index))
        theirs, other = pytree.tree_flatten(prepare([samples[i] for i in index.tolist()]))
        if spec != other or not all(same(a, b) for a, b in zip(ours, theirs, strict=True)):
            return None
    return whole


def _collated(samples: Sequence[Any], prepare: _Prepare) -> Batch:
    """All samples at once, as torch's own function collates them where the user gave none."""
    try:
        return prepare(samples)
    except (RuntimeError, TypeError) as error:
        if prepare.collate is not default_collate:
            raise
        raise ValueError(
            f"the samples cannot be batched: {error}. Where they need a collate function of their own write "
            "DataLoader(data, collate_fn=…), as in training"
        ) from error


def _alike(samples: Sequence[Any], collate: Callable[[list[Any]], Batch]) -> bool:
    """Whether each sample, collated alone, gives tensors of the same shapes with one row."""
    try:
        first = [t.shape for t in _tensors(collate([samples[0]]))]
        if any(not shape or shape[0] != 1 for shape in first):
            return False
        looked_at = range(0, len(samples), max(1, len(samples) // LOOKED_AT))
        return all([t.shape for t in _tensors(collate([samples[i]]))] == first for i in looked_at)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):  # it cannot collate a single sample
        return False


def _take(whole: Batch, indices: Tensor) -> Batch:
    return pytree.tree_map_only(Tensor, lambda leaf: _rows(leaf, indices), whole)


def _rows(leaf: Tensor, indices: Tensor) -> Tensor:
    picked = leaf.index_select(0, indices.flatten().to(leaf.device))
    return picked.view(*indices.shape, *leaf.shape[1:])
