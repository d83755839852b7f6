"""Memory that runs out: fewer chains together, the same reading, and one warning for each halving."""

from __future__ import annotations

import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Classifier, blobs, few_draws, loader_of, trainer_for
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.capacity import Capacity, InsufficientMemoryError, ran_out, with_fewer
from lightning_slt.losses import classification
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.sampling import SamplingConfig

WIDTH = blobs(1)[0][0].numel()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 3))


COUNTS = {"num_chains": 8, "num_draws": 5, "num_burnin": 2, "batch_size": 8}


def read(**counts: Any) -> slt.LLCEstimate:
    return slt.estimate(
        mlp(), blobs(48), [slt.LLC()], loss_fn=classification, sampler=slt.SGLD(step_size=1e-3), nbeta=10.0,
        localization=5.0, sampling=SamplingConfig(**COUNTS | counts),
    )["llc"]  # fmt: skip


def room_for(monkeypatch: pytest.MonkeyPatch, rows: int, *, passes: int = 0) -> list[int]:
    """Passes of more chains than that run out of memory, but for the first few; gives how many chains each had."""
    seen: list[int] = []

    class Limited(Passes):
        def loss_and_gradient(self, batch: Any) -> Any:
            seen.append(len(self.position))
            if len(self.position) > rows and len(seen) > passes:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
            return super().loss_and_gradient(batch)

    for route in (SequentialPasses, VectorizedPasses):
        limited = type(route.__name__, (Limited, route), {})
        monkeypatch.setattr(f"lightning_slt.sampling.{route.__name__}", limited)
    return seen


def test_half_as_many_chains_give_the_same_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read()
    room_for(monkeypatch, 3)
    with pytest.warns(UserWarning, match=r"memory ran out with (8|4) chains together: (4|2) from now on") as told:
        halved = read()
    assert len(told) == 2
    assert torch.equal(plain.per_chain, halved.per_chain)


def test_what_was_done_before_memory_ran_out_does_not_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read()
    room_for(monkeypatch, 7, passes=4)  # two of the burn-in, and two draws
    with pytest.warns(UserWarning, match="4 from now on"):
        halved = read()
    assert torch.equal(plain.per_chain, halved.per_chain)


def test_one_after_another_where_two_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = read(chain_method="sequential")
    room_for(monkeypatch, 1)
    with pytest.warns(UserWarning, match="memory ran out") as told:
        alone = read(num_chains=2, chain_method="vectorized")
    assert "one after another from now on" in str(told[-1].message)
    assert torch.equal(plain.per_chain[:2], alone.per_chain)


def test_not_even_one(monkeypatch: pytest.MonkeyPatch) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(InsufficientMemoryError, match=r"20.00 GiB. Write a smaller batch_size"), pytest.warns():
        read(num_chains=2, chain_method="sequential")


def test_other_errors_are_raised_at_once() -> None:
    def fails(config: SamplingConfig) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Capacity().run(SamplingConfig(num_chains=8), fails)


def test_later_readings_begin_with_what_fitted(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    """A run says once that memory ran out, trains on, and its records are those of a run with memory."""
    counts = SamplingConfig(**COUNTS)
    monitor: dict[str, Any] = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 10.0, "localization": 5.0}

    def train(folder: str) -> list[Tensor]:
        trainer = trainer_for(few_draws(sampling=counts, **monitor), max_epochs=2, default_root_dir=folder)
        trainer.fit(Classifier(mlp()), loader_of(blobs(48)))
        return [r.estimates["full"]["llc"].per_chain for r in slt.load_records(folder)]

    plain = train("plain")
    seen = room_for(monkeypatch, 4)
    with pytest.warns(UserWarning, match="4 from now on") as told:
        halved = train("halved")
    assert len([w for w in told if "memory ran out" in str(w.message)]) == 1
    assert len([rows for rows in seen if rows == 8]) == 1
    assert len(plain) == len(halved) > 1
    assert all(torch.equal(a, b) for a, b in zip(plain, halved, strict=True))


def test_samples_by_halves() -> None:
    tried = []

    def attempt(rows: int) -> int:
        tried.append(rows)
        if rows > 50:
            raise MemoryError
        return rows

    assert with_fewer(256, attempt) == 32
    assert tried == [256, 128, 64, 32]
    with pytest.raises(MemoryError):
        with_fewer(1, lambda rows: attempt(100))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"),
        MemoryError(),
    ],
)
def test_words_of_allocators(error: BaseException) -> None:
    assert ran_out(error)
    assert not ran_out(ValueError("out of memory"))


def _starved(results: Any) -> None:
    """A reading whose chains do not fit together into what the system gives."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(WIDTH, 2**18), nn.ReLU(), nn.Linear(2**18, 4))
    counts = SamplingConfig(
        num_chains=8, num_draws=2, num_burnin=0, batch_size=2, chunk_size=8, chain_method="vectorized"
    )
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resource.setrlimit(resource.RLIMIT_AS, (int(status["VmSize"].split()[0]) * 1024 + 2**30,) * 2)
    estimate = slt.estimate(
        wide, blobs(8), [slt.LLC()], loss_fn=classification, sampler=slt.SGLD(step_size=1e-6), nbeta=1.0,
        localization=5.0, sampling=counts,
    )["llc"]  # fmt: skip
    results.put(estimate.per_chain.tolist())


@pytest.mark.filterwarnings("ignore:memory ran out")
def test_the_system_has_no_more() -> None:
    """The allocator of the CPU really fails here: eight chains of 5.5 million weights in 1 GiB."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=_starved, args=(results,))
    process.start()
    values = results.get(timeout=60)
    process.join()
    assert len(values) == 8
