"""What a reading does not need waits in the host's memory, and is the same to the bit afterwards."""

from __future__ import annotations

import logging
import math
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from models import Classifier, WithDropoutAndBatchNorm, assert_untouched, blob_loader, few_draws, trainer_for
from test_renewal import Stiffening, fit
from torch import Tensor

import lightning_slt as slt
from lightning_slt.callbacks.history import History
from lightning_slt.losses import classification
from lightning_slt.offload import Waiting, on_host, training_state

pytestmark = pytest.mark.usefixtures("elsewhere")

PLACES = ("offload", "callbacks.history", "callbacks.live")


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's memory passes for an accelerator's: the same moves, from the host to the host."""
    for place in PLACES:
        monkeypatch.setattr(f"lightning_slt.{place}.has_memory_of_its_own", lambda device: True)


def storages(tensors: Any) -> list[torch.UntypedStorage]:
    return [t.untyped_storage() for t in tensors]


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [t for state in optimizer.state.values() for t in state.values()]


def test_the_same_bits_are_back_in_the_same_objects() -> None:
    """Also in views, in tensors that share a storage, and where a number is none."""
    whole = torch.randn(12)
    whole[3], whole[4] = float("nan"), -0.0
    view, empty, other = whole[2:9].view(7), torch.empty(0), torch.randn(3, dtype=torch.float64)
    before = [t.clone().numpy().tobytes() for t in (whole, view, other)]
    places = storages([whole, other])
    unknown = whole[1:].view(11)
    waiting = Waiting([whole, view, empty, other, other])
    assert waiting.nbytes == 12 * 4 + 3 * 8
    assert [s.nbytes() for s in places] == [0, 0]
    assert [t.numpy().tobytes() for t in (whole, view, other)] == before
    whole[2] = 7.0
    assert view[0] == 7.0
    whole[2] = unpacked(before[0])[2]
    waiting.back()
    waiting.back()
    assert [t.numpy().tobytes() for t in (whole, view, other)] == before
    assert [s.data_ptr() for s in places] == [s.data_ptr() for s in storages([whole, other])]
    whole[2] = 8.0
    assert view[0] == unknown[1] == 8.0


def unpacked(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.float32)


def test_they_are_back_after_an_error() -> None:
    kept = torch.arange(4.0)
    with pytest.raises(KeyError), on_host([kept]):
        raise KeyError
    assert kept.tolist() == [0, 1, 2, 3]


def test_nothing_is_lost_where_the_host_has_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = torch.arange(4.0), torch.arange(5.0)
    empty = torch.empty

    def full(*size: Any, **options: Any) -> Tensor:
        if size == (20,):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return empty(*size, **options)

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(RuntimeError, match="allocate"):
        Waiting([first, second])
    assert first.tolist() == [0, 1, 2, 3]
    assert second.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("apart")
def test_gradients_and_states_of_optimizers_are_what_training_keeps() -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = training_state(module, [optimizer])
    expected = [*(p.grad for p in module.parameters()), *moments(optimizer)]
    assert {id(t) for t in found} == {id(t) for t in expected}
    assert len(found) == 8  # two gradients, and a step and two moments for each
    optimizer.state[module.weight]["slow"] = module.weight.data.view(-1)  # as optimizers with slow weights keep them
    assert {id(t) for t in training_state(module, [optimizer])} == {id(t) for t in expected}


def test_the_hosts_own_memory_is_left_alone() -> None:
    module = torch.nn.Linear(3, 2)
    module(torch.ones(1, 3)).sum().backward()
    assert training_state(module, []) == []


class Peeking:
    """A loss that notes how much memory some storages take; on its class, because readings put objects back."""

    seen: ClassVar[list[int]] = []
    watched: ClassVar[list[torch.UntypedStorage]] = []

    def __call__(self, module: Any, batch: Any) -> Tensor:
        self.seen.extend(storage.nbytes() for storage in self.watched)
        return classification(module, batch)


class Watched(pl.Callback):
    """Has that loss look at gradients and states of the optimizer, once a step was taken."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *others: Any) -> None:
        gradients = [p.grad for p in module.parameters()]
        Peeking.watched[:] = storages([*moments(trainer.optimizers[0]), *gradients])


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("offload", [True, False])
def test_they_are_away_whenever_the_loss_runs(offload: bool) -> None:
    Peeking.seen.clear()
    Peeking.watched.clear()
    monitor = few_draws(loss_fn=Peeking(), offload=offload, at_steps=[3], every_n_train_steps=None)
    trainer_for(Watched(), monitor, max_steps=4).fit(Classifier(), blob_loader())
    assert len(Peeking.seen) > 16
    assert (max(Peeking.seen) == 0) == offload


@pytest.mark.usefixtures("apart")
@pytest.mark.parametrize("batches", [1, 2])
def test_training_is_untouched(batches: int) -> None:
    """Also where gradients of an unfinished step wait in between."""
    monitor = few_draws(every_n_train_steps=1, offload=True)
    assert_untouched(WithDropoutAndBatchNorm, monitor=monitor, accumulate_grad_batches=batches)


@pytest.mark.usefixtures("apart")
@pytest.mark.filterwarnings("ignore:slt. the reading at step 1 failed")
def test_training_is_untouched_by_readings_that_fail() -> None:
    def failing(module: Any, batch: Any) -> Tensor:
        if module.trainer.global_step:
            raise ValueError("no more")
        return classification(module, batch)

    monitor = few_draws(every_n_train_steps=1, offload=True, loss_fn=failing)
    _, watched = assert_untouched(WithDropoutAndBatchNorm, monitor=monitor)
    assert math.isnan(watched.monitor_rows[-1][1]["slt/full/llc/mean"])


class Saves(pl.Callback):
    """Saves a checkpoint when a reading was made."""

    def hear(self, trainer: pl.Trainer, reading: Any) -> None:
        trainer.save_checkpoint(f"at-{reading.step}.ckpt")


@pytest.mark.usefixtures("apart")
def test_a_callback_that_is_told_of_a_reading_can_save_everything() -> None:
    states = []
    for offload in (False, True):
        pl.seed_everything(0, verbose=False)
        monitor = few_draws(offload=offload)
        trainer_for(monitor, Saves(), max_steps=4).fit(Classifier(), blob_loader())
        states.append(torch.load("at-4.ckpt", weights_only=False)["optimizer_states"])
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
    assert states[0][0]["state"][0]["exp_avg"].abs().sum() > 0


@pytest.mark.usefixtures("apart")
def test_weights_that_may_be_read_again_wait_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """A run that outgrows its settings reads them again, with the same numbers."""
    kept: list[int] = []
    keep = History.keep

    def noted(self: History, anchor: Any, number: int) -> None:
        there = storages(anchor.module_loss.weights.values())
        keep(self, anchor, number)
        kept.extend(s.nbytes() for s in there if self.readings)

    monkeypatch.setattr(History, "keep", noted)
    curvatures = [1.0, 1.0, 300.0, 300.0, 300.0]
    found = {}
    for offload in (False, True):
        kept.clear()
        folder = tmp_path / str(offload)
        fit(folder, curvatures, offload=offload, snapshots=True)
        readings = slt.load_records(folder)
        found[offload] = [(r.step, r.estimates["full"]["llc"].mean) for r in readings]
        assert len(kept) >= len(curvatures)
        assert (max(kept) == 0) == offload
        assert len(list(folder.rglob("*.safetensors"))) >= len(curvatures)
    assert found[True] == found[False]
    assert len({step for step, _ in found[True]}) == len(curvatures)


def test_on_the_host_it_says_that_there_is_nothing_to_move(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    with caplog.at_level(logging.INFO):
        fit(tmp_path, [1.0, 1.0], offload=True)
    assert "offload=True moves nothing here" in caplog.text
    assert isinstance(Stiffening([1.0]).w, Tensor)
