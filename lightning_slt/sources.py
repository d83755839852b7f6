"""What a user may call data: data sets, loaders, and several of these side by side."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, default_collate

from lightning_slt.boundary import describe, is_array
from lightning_slt.types import Batch

Collate = Callable[[list[Any]], Batch]
_UNCOPYABLE = (TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError, pickle.PickleError)


def source_parts(source: Any) -> tuple[Any, Collate]:
    """Data set and collate function of whatever a user calls data; nothing is fetched.

    Args:
        source: See :func:`lightning_slt.data.load_data`.

    Returns:
        Something with a length that gives samples by index, and a function that makes a batch of a list of them.

    Raises:
        TypeError: For streams without a length, loaders that do not collate single samples, and bare tensors.
    """
    if is_array(source) or isinstance(source, str) or _columns(source):
        raise TypeError(
            f"data is {describe(source)}; expected a Dataset, a list of samples or a DataLoader: write "
            "TensorDataset(X, Y) for batches (x, y), TensorDataset(X) for batches (x,), or list(X) for batches x"
        )
    if isinstance(source, type):
        raise TypeError(f"data is the class {source.__name__}, expected a data set; write {source.__name__}(…)")
    return _parts(source)


def _parts(source: Any) -> tuple[Any, Collate]:
    if isinstance(source, DataLoader):
        if source.batch_sampler is None:
            raise TypeError("the DataLoader does not batch single samples (batch_size=None); pass data= a Dataset")
        return _indexable(_reached(source)), source.collate_fn
    if isinstance(source, Mapping) and source:
        named = {name: _parts(part) for name, part in source.items()}
        return _SideBySide({n: p[0] for n, p in named.items()}), _CollateParts(
            {n: p[1] for n, p in named.items()}, dict
        )
    if isinstance(source, list | tuple) and source and all(_is_source(part) for part in source):
        parts = dict(enumerate(_parts(part) for part in source))
        collate = _CollateParts({n: p[1] for n, p in parts.items()}, tuple if isinstance(source, tuple) else list)
        return _SideBySide({n: p[0] for n, p in parts.items()}), collate
    return _indexable(source), default_collate


def _columns(source: Any) -> bool:
    """Whether these are tensors of all samples rather than samples: a tuple, or tensors that would not stack."""
    if not isinstance(source, list | tuple) or not source or not all(map(is_array, source)):
        return False
    lengths = {part.shape[:1] for part in source}
    apart = len({part.shape for part in source}) > 1
    return isinstance(source, tuple) or (apart and len(lengths) == 1 and lengths != {()})


def _is_source(part: Any) -> bool:
    """A loader or data set, or a nesting of these: what Lightning's combined loaders take side by side."""
    if isinstance(part, Mapping | list | tuple):
        return bool(part) and all(_is_source(p) for p in (part.values() if isinstance(part, Mapping) else part))
    return isinstance(part, DataLoader | Dataset)


def _indexable(dataset: Any) -> Any:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        raise TypeError(
            f"{type(dataset).__name__} is a stream without a length and cannot be sampled by index; "
            "pass data= a map-style Dataset (or a list of samples), for instance the first thousand of the stream"
        )
    return dataset


def _reached(loader: DataLoader[Any]) -> Any:
    """The samples that a loader can reach: a SubsetRandomSampler shows only some (Lightning wraps it for processes)."""
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    return Subset(loader.dataset, list(sampler.indices)) if isinstance(sampler, SubsetRandomSampler) else loader.dataset


class _SideBySide:
    """Several data sets read in step, the shorter ones starting over, as Lightning's combined loaders do."""

    def __init__(self, parts: Mapping[Any, Any]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return 0 if any(len(part) == 0 for part in self.parts.values()) else max(len(p) for p in self.parts.values())

    def __getitem__(self, index: int) -> dict[Any, Any]:
        return {name: part[index % len(part)] for name, part in self.parts.items()}


class _CollateParts:
    def __init__(
        self, collates: Mapping[Any, Collate], kind: type[dict[Any, Any] | list[Any] | tuple[Any, ...]]
    ) -> None:
        self.collates, self.kind = collates, kind

    def __call__(self, samples: list[Any]) -> Batch:
        batches = {name: collate([s[name] for s in samples]) for name, collate in self.collates.items()}
        return batches if self.kind is dict else self.kind(batches.values())


def copy_dataset(dataset: Any) -> Any:
    """A copy, so that random state and caches inside the data set stay as they are.

    What cannot be copied, such as an open file, is shared; reading samples by index does not change it.

    Raises:
        TypeError: If the data set holds an iterator, which would be advanced.
    """
    shared: dict[int, Any] = {}
    if not _copyable(dataset, shared):
        _share_parts(dataset, shared)
    return copy.deepcopy(dataset, shared)


def _copyable(value: Any, shared: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(shared))
    except _UNCOPYABLE:
        return False
    return True


def _share_parts(value: Any, shared: dict[int, Any]) -> None:
    """Find the innermost parts that cannot be copied, and note them as their own copies."""
    if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
        raise TypeError(
            f"the data set holds a {type(value).__name__}, which cannot be copied and would be advanced, so that "
            "training would change; pass data= a data set of its own for the readings, such as a list of samples"
        )
    inside = getattr(value, "__dict__", {}).values()
    if isinstance(value, Mapping | list | tuple):
        inside = value.values() if isinstance(value, Mapping) else value
    for part in inside:
        if not _copyable(part, shared):
            _share_parts(part, shared)
    if not _copyable(value, shared):
        shared[id(value)] = value
