"""Samples of any data set, as its loader collates them, and the minibatches of each chain."""

from __future__ import annotations

import random
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import blobs
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    StackDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from lightning_slt.data import SamplingData, Streams, load_data

Pair = namedtuple("Pair", ["x", "y"])


def load(source: Any, **options: Any) -> SamplingData:
    return load_data(source, **{"to_device": lambda batch: batch, "seed": 0, **options})


def flat(batch: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Opaque) and isinstance(b, Opaque):
        return torch.equal(a.x, b.x)
    (ours, spec), (theirs, other) = torch.utils._pytree.tree_flatten(a), torch.utils._pytree.tree_flatten(b)
    pairs = zip(ours, theirs, strict=True)
    return spec == other and all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


class Opaque:
    """A batch that is no nesting of tensors that anyone knows."""

    def __init__(self, samples: list[Any]) -> None:
        self.x = torch.stack(samples)


class Rows(Dataset[Any]):
    """Samples made by a function of the index."""

    def __init__(self, make: Any, count: int = 23) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < self.count:
            raise IndexError(index)
        return self.make(index)


def ragged(samples: list[Any]) -> Any:
    """Pad to the longest of the batch."""
    return pad_sequence([s["x"] for s in samples], batch_first=True), torch.tensor([s["y"] for s in samples])


def mostly_equal(index: int) -> Any:
    """Every sample but one has the full length."""
    return {"x": torch.arange(1.0, 6.0 - (index == 11)), "y": index}


SOURCES = {
    "tensors": (TensorDataset(torch.randn(23, 3), torch.arange(23)), default_collate),
    "one tensor": (TensorDataset(torch.randn(23, 3)), default_collate),
    "subset": (Subset(blobs(40), [*range(3, 40, 2)]), default_collate),
    "subset of a subset": (Subset(Subset(blobs(40), [*range(0, 40, 2)]), [5, 1, 19, 7]), default_collate),
    "list": ([(torch.full((2,), float(i)), i) for i in range(23)], default_collate),
    "numbers": ([float(i) for i in range(23)], default_collate),
    "arrays": (Rows(lambda i: (np.full(2, i, dtype=np.float32), i)), default_collate),
    "dicts": (Rows(lambda i: {"x": torch.full((2,), float(i)), "n": {"y": i, "name": str(i)}}), default_collate),
    "named tuples": (Rows(lambda i: Pair(torch.full((2,), float(i)), i)), default_collate),
    "stack": (StackDataset(x=blobs(23), y=blobs(23, seed=4)), default_collate),
    "ragged": (Rows(lambda i: {"x": torch.arange(1.0 + i % 5), "y": i}), ragged),
    "one shorter": (Rows(mostly_equal), ragged),
    "batch dependent": (Rows(lambda i: torch.full((2,), float(i))), lambda s: torch.stack(s) - torch.stack(s).mean()),
    "sorting": (Rows(lambda i: torch.full((2,), float(i * 7 % 23))), lambda s: torch.stack(sorted(s, key=float_of))),
    "scalar beside": (Rows(lambda i: torch.full((2,), float(i))), lambda s: (torch.stack(s), torch.tensor(len(s)))),
    "opaque": (Rows(lambda i: torch.full((2,), float(i))), Opaque),
    "pairs only": (Rows(lambda i: torch.full((2,), float(i)), 22), lambda s: torch.stack(s).view(len(s) // 2, 2, 2)),
}


def float_of(sample: Tensor) -> float:
    return float(sample[0])


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("indices", [[0, 1], [3, 2, 1, 0], [2, 2]])
def test_batches_are_what_the_loader_collates(name: str, indices: list[int]) -> None:
    dataset, collate = SOURCES[name]
    data = load(DataLoader(dataset, batch_size=4, collate_fn=collate, shuffle=True))
    assert same(data.batch(torch.tensor(indices)), collate([dataset[i] for i in indices]))
    assert len(data) == data.total == len(dataset)


@pytest.mark.parametrize("name", SOURCES)
def test_batches_of_chains(name: str) -> None:
    """Row c of a stacked batch, or entry c of a ragged one, is the batch of chain c; slicing keeps that."""
    dataset, collate = SOURCES[name]
    data = load(DataLoader(dataset, collate_fn=collate))
    indices = torch.tensor([[0, 1], [3, 2], [1, 2]])
    batch = data.chain_batch(indices)
    for chain, row in enumerate(indices.tolist()):
        assert same(batch.of_chain(chain), collate([dataset[i] for i in row]))
    assert same(batch.rows(1, 3).of_chain(1), batch.of_chain(2))
    shared = data.chain_batch(indices[0])
    assert shared.shared
    assert same(shared.of_chain(2), batch.of_chain(0))


def test_equal_shapes_are_kept_whole_and_others_are_not() -> None:
    """A sample of another length is found, however rare it is."""
    whole = {name: load(DataLoader(d, collate_fn=c)).whole is not None for name, (d, c) in SOURCES.items()}
    assert [name for name, kept in whole.items() if not kept] == [
        "dicts", "ragged", "one shorter", "batch dependent", "sorting", "scalar beside", "opaque", "pairs only",
    ]  # fmt: skip
    long = Rows(lambda i: {"x": torch.arange(1.0, 6.0 - (i == 1711)), "y": i}, 2000)
    assert load(DataLoader(long, collate_fn=ragged)).whole is None


def test_side_by_side() -> None:
    """As Lightning batches several loaders: step by step, the shorter starting over."""
    a, b = TensorDataset(torch.arange(6.0)), [{"y": i} for i in range(4)]
    for source, keys in (({"a": a, "b": DataLoader(b)}, ["a", "b"]), ([a, DataLoader(b)], [0, 1])):
        data = load(source)
        batch = data.batch(torch.tensor([1, 5]))
        assert type(batch) is type(source)
        assert batch[keys[0]][0].tolist() == [1.0, 5.0]
        assert batch[keys[1]]["y"].tolist() == [1, 1]
        assert len(data) == 6
    assert type(load((DataLoader(a), DataLoader(b))).batch(torch.tensor([0]))) is tuple
    nested = load({"a": a, "c": [DataLoader(b), a]}).batch(torch.tensor([2]))
    assert nested["c"][0]["y"].tolist() == [2]


def test_loaders_over_a_part_of_the_data() -> None:
    """A SubsetRandomSampler is how one data set is split for training and validation; weights are no such split."""
    rows = [3, 5, 8]
    data = load(DataLoader(blobs(), sampler=SubsetRandomSampler(rows)))
    assert len(data) == 3
    assert torch.equal(data.batch(torch.arange(3))[0], blobs().tensors[0][rows])
    weighted = DataLoader(blobs(), sampler=WeightedRandomSampler(torch.ones(32), 4))
    assert len(load(weighted)) == 32


def test_memory_limit_takes_a_random_part() -> None:
    """The same part for the same seed; total says how much there is."""
    for make in (lambda: blobs(100), lambda: [tuple(blobs(100)[i]) for i in range(100)]):
        part = load(make(), memory_limit=24 * 10)
        assert (len(part), part.total) == (10, 100)
        rows = part.batch(torch.arange(10))[0]
        everything = blobs(100).tensors[0]
        chosen = [int((everything == row).all(1).nonzero()) for row in rows]
        assert chosen == sorted(set(chosen))
        assert chosen != list(range(10))
        assert torch.equal(rows, load(make(), memory_limit=24 * 10).batch(torch.arange(10))[0])
        assert not torch.equal(rows, load(make(), memory_limit=24 * 10, seed=1).batch(torch.arange(10))[0])


class Augmented(Dataset[Any]):
    """Random in every way, and counts."""

    def __init__(self) -> None:
        self.rng, self.calls, self.cache = np.random.default_rng(0), 0, {}

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        self.cache[index] = random.random()
        return torch.full((2,), float(self.rng.normal()) + self.cache[index]), index


def test_data_sets_are_left_as_they_are() -> None:
    dataset = Augmented()
    before = dataset.rng.bit_generator.state
    random.seed(0)
    first = load(dataset).batch(torch.arange(8))
    assert dataset.rng.bit_generator.state == before
    assert (dataset.calls, dataset.cache) == (0, {})
    random.seed(0)
    assert same(load(dataset).batch(torch.arange(8)), first)


class WithAFile(Dataset[Any]):
    """Holds something that cannot be copied, and a generator of its own."""

    def __init__(self, path: Path) -> None:
        self.file, self.rng = path.open("rb"), random.Random(0)

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        self.file.seek(index)
        return float(self.file.read(1)[0]) + self.rng.random()


def test_open_files_are_shared(tmp_path: Path) -> None:
    """What cannot be copied is shared, while the rest is copied: the generator is not advanced."""
    (tmp_path / "bytes").write_bytes(bytes(range(5)))
    dataset = WithAFile(tmp_path / "bytes")
    try:
        data = load(Subset(dataset, [0, 1, 2, 4]))
    finally:
        dataset.file.close()
    assert [int(v) for v in data.batch(torch.arange(4))] == [0, 1, 2, 4]
    assert dataset.rng.random() == random.Random(0).random()


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield 0


class Draws(Dataset[Any]):
    """Its samples come from an iterator, which cannot be copied and would be advanced."""

    def __init__(self) -> None:
        self.numbers = (float(i) for i in range(100))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> float:
        return next(self.numbers)


@pytest.mark.parametrize(
    ("source", "error", "text"),
    [
        ([], ValueError, "no samples"),
        (TensorDataset(torch.empty(0, 2)), ValueError, "no samples"),
        (Endless(), TypeError, "Endless is a stream without a length.*pass data= a map-style Dataset"),
        (DataLoader(Endless()), TypeError, "stream without a length"),
        (DataLoader(blobs(), batch_size=None), TypeError, r"does not batch single samples \(batch_size=None\)"),
        (iter([1, 2]), TypeError, "stream without a length"),
        (7, TypeError, "stream without a length"),
        ({"a": blobs(), "b": Endless()}, TypeError, "Endless is a stream"),
        (Draws(), TypeError, "holds a generator, which cannot be copied.*pass data= a data set of its own"),
    ],
)
def test_refused(source: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        load(source)


def streams(chains: Any = (0, 1, 2), *, count: int = 10, size: int = 3, seed: int = 0, shared: bool = False) -> Streams:
    return Streams(count, batch_size=size, seed=seed, chains=chains, share_batches=shared)


def test_streams_are_without_replacement() -> None:
    """Every epoch shows each sample at most once, in a new order; what does not fill a batch is left out."""
    source = streams()
    epochs = [torch.cat([source.next() for _ in range(3)], 1) for _ in range(40)]
    for epoch in epochs:
        assert all(len(set(row)) == 9 for row in epoch.tolist())
    assert len({tuple(e[0].tolist()) for e in epochs}) > 35
    seen = torch.cat(epochs, 1)[0].bincount(minlength=10)
    # each sample is left out of an epoch with probability 1/10: 40 epochs, standard deviation 1.9
    assert (seen - 36).abs().max() < 4 * 1.9


def test_streams_depend_on_seed_and_chain_alone() -> None:
    together, alone = streams((0, 1, 2, 3)), streams((2,))
    other = streams((0, 1, 2, 3), seed=1)
    for _ in range(8):
        rows, row, others = together.next(), alone.next(), other.next()
        assert torch.equal(rows[2], row[0])
        assert not torch.equal(rows, others)
    assert len({tuple(streams((c,)).next()[0].tolist()) for c in range(20)}) > 15


def test_shared_streams_and_the_full_set() -> None:
    assert streams(shared=True).next().shape == (3,)
    for size in (10, 11, 10**6):
        assert torch.equal(streams(size=size).next(), torch.arange(10))
