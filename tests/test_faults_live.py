"""What may go wrong in a run: training goes on or ends as it would have, and the user is told once."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, MemoryLogger, blob_loader, few_draws, footprint, seed_all, trainer_for

import lightning_slt as slt
from lightning_slt.callbacks.interruptions import Interruptions
from lightning_slt.records import RecordWriter

pytestmark = pytest.mark.usefixtures("elsewhere")


@contextmanager
def warned() -> Iterator[list[str]]:
    """All that is warned of inside, but for what readings of a few draws always have against them."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield texts
    found = [str(w.message) for w in caught]
    texts += [t for t in found if "LeafSpec" not in t and "many workers" not in t and "cannot be relied on" not in t]


class Faulty(Classifier):
    """From step 3 on its losses are what the fault makes of them, in readings alone."""

    def __init__(self, fault: Any = None) -> None:
        super().__init__()
        self.fault = fault

    def per_sample_loss(self, batch: Any) -> Any:
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        return losses if self.fault is None or self.trainer.global_step < 3 else self.fault(losses)


def raising(losses: Any) -> Any:
    raise ArithmeticError("no loss today")


def nan(losses: Any) -> Any:
    return losses * math.nan


def nan_far_out(losses: Any) -> Any:
    """Where the loss is large: some chains get there, and not at the same step."""
    return torch.where(losses.mean() > 1.1, math.nan, losses)


class Hears(pl.Callback):
    def hear(self, trainer: Any, reading: slt.Reading) -> None:
        if reading.step >= 3:
            raise KeyError("nobody listens")


class BadEstimator(slt.LLC):
    """Fails at the last of its steps."""

    def finish(self, *args: Any, **options: Any) -> Any:
        raise ZeroDivisionError("an estimator of one's own")


EVERY_STEP = {"every_n_train_steps": 1}

FAULTS = {
    "a loss that raises": (raising, (), r"slt: the reading at step 3 failed: ArithmeticError: no loss today"),
    "a loss that is not a number": (nan, (), r"full/llc: the loss was not finite in chain 0 at step \d+, chain 1"),
    "a loss that is not a number in some chains": (nan_far_out, (), r"full/llc: the loss was not finite in chain \d"),
    "a listener that raises": (None, (Hears,), r"Hears failed at the reading of 'slt' at step 3: KeyError: 'nobody"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_at_every_reading_is_told_once(name: str) -> None:
    fault, callbacks, words = FAULTS[name]
    without = footprint(lambda: Faulty(fault), blob_loader)
    monitor = few_draws(**EVERY_STEP)
    with warned() as texts:
        watched = footprint(lambda: Faulty(fault), blob_loader, [monitor, *(make() for make in callbacks)])
    assert without.differences(watched) == []
    assert len(texts) == 1
    assert re.match(words, texts[0])
    readings = slt.load_records(".")
    assert [r.step for r in readings] == list(range(9))
    broken = readings[3:] if fault is not None else []
    assert all(r.failure or not r.estimates["full"]["llc"].health.ok for r in broken)
    if fault is nan_far_out:  # the others' mean stands
        dead = [r.estimates["full"]["llc"].health.dead_chains for r in broken]
        some = [r.estimates["full"]["llc"] for r, gone in zip(broken, dead, strict=True) if len(gone) == 1]
        assert some
        assert all(e.mean == e.per_chain[e.per_chain.isfinite()].item() for e in some)


def test_another_fault_is_told_again() -> None:
    def changing(losses: Any) -> Any:
        raise (ValueError if module.trainer.global_step < 6 else ArithmeticError)("no loss today")

    module = Faulty(changing)
    with warned() as texts:
        trainer_for(few_draws(**EVERY_STEP), max_epochs=2).fit(module, blob_loader())
    assert [t.partition(" failed: ")[2].partition(":")[0] for t in texts] == ["ValueError", "ArithmeticError"]


def test_a_full_disk_is_told_once_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Readings before it and after it, where there is room again, are recorded; all are logged."""
    caplog.set_level(logging.INFO)
    write = RecordWriter.write

    def full(writer: RecordWriter, reading: slt.Reading, **options: Any) -> None:
        if 2 <= reading.step < 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(writer, reading, **options)

    monkeypatch.setattr(RecordWriter, "write", full)
    without = footprint(Classifier, blob_loader)
    with warned() as texts:
        watched = footprint(Classifier, blob_loader, [few_draws(**EVERY_STEP)])
    assert without.differences(watched) == []
    assert [step for step, _ in watched.monitor_rows] == list(range(9))
    (text,) = texts
    assert text.startswith("slt: the reading at step 2 was not recorded: [Errno 28] No space left on device")
    assert [r.step for r in slt.load_records(".")] == [0, 1, 6, 7, 8]
    assert "slt: 4 of 9 readings were not recorded" in caplog.text


def test_arrays_on_a_full_disk_leave_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What safetensors raises then is no OSError."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fills(pl.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (64 if 2 <= trainer.global_step < 4 else soft, hard))

    with warned() as texts:
        trainer_for(few_draws(snapshots=True, **EVERY_STEP), Fills(), max_epochs=2).fit(Classifier(), blob_loader())
    assert len(texts) == 1
    assert "slt: the reading at step 3 was not recorded" in texts[0]
    assert [r.step for r in slt.load_records(".")] == [0, 1, 2, 5, 6, 7, 8]
    assert all(slt.load_anchor(r) for r in slt.load_records("."))


# Signals and interruptions


class Saves(pl.Callback):
    """A handler that saves a checkpoint at once, as Lightning's does where SLURM requeues a job."""

    def __init__(self, number: int) -> None:
        self.number, self.saved = number, 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.before = signal.signal(self.number, lambda *_: self.save(trainer))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        signal.signal(self.number, self.before)

    def save(self, trainer: Any) -> None:
        self.saved += 1
        trainer.save_checkpoint("requeued.ckpt")


class Signalled(Classifier):
    """Gets a signal in the middle of the reading at step 4, while its weights are those of a chain."""

    number: int | None = None

    def per_sample_loss(self, batch: Any) -> Any:
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        if self.trainer.global_step == 4 and self.number is not None:
            self.calls = getattr(self, "calls", 0) + 1  # restored after each reading
            if self.calls > 3:
                number, type(self).number = self.number, None
                signal.raise_signal(number)
        return losses


def saving(folder: str) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1)


@pytest.fixture
def signalled() -> Iterator[type[Signalled]]:
    Signalled.number = signal.SIGUSR1
    yield Signalled
    Signalled.number = None


def test_a_checkpoint_that_a_signal_saves_in_a_reading_is_the_trained_one(
    signalled: type[Signalled], caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, state and step are as if it had come before the reading, which is given up; the run that goes on from
    there makes it.
    """
    caplog.set_level(logging.INFO)
    plain = footprint(Classifier, blob_loader, [saving("saved")])
    saves = Saves(signal.SIGUSR1)
    watched = footprint(signalled, blob_loader, [few_draws(), saves, saving("also")])
    assert plain.differences(watched) == []
    assert saves.saved == 1
    assert "slt: the reading at step 4 is given up, as SIGUSR1 came" in caplog.text
    assert [r.step for r in slt.load_records(".")] == [0, 2, 6, 8]
    expected = torch.load(next(Path("saved").glob("*step=4.ckpt")), weights_only=True)
    saved = torch.load("requeued.ckpt", weights_only=True)
    assert saved["global_step"] == expected["global_step"] == 4
    assert all(torch.equal(saved["state_dict"][n], w) for n, w in expected["state_dict"].items())
    assert saved["callbacks"]["slt"]["last_step"] == 2


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_sigterm_ends_the_reading_and_training_with_it(signalled: type[Signalled]) -> None:
    """Lightning ends at the end of the batch; its weights are those of a run without a monitor at this step."""
    plain = footprint(Classifier, blob_loader, max_steps=4)
    signalled.number = signal.SIGTERM
    seed_all(3)
    module, logger = signalled(), MemoryLogger()
    trainer = trainer_for(few_draws(), max_epochs=2, logger=logger)
    with pytest.raises(SystemExit):
        trainer.fit(module, blob_loader())
    assert trainer.global_step == 4
    assert all(torch.equal(plain.weights[name], value) for name, value in module.state_dict().items())
    assert [r.step for r in slt.load_records(".")] == [0, 2] == logger.steps()


def test_no_reading_begins_once_sigterm_came() -> None:
    """It would be all that stands between the checkpoint and the end that the cluster has set."""

    class Killed(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    logger = MemoryLogger()
    with pytest.raises(SystemExit):
        trainer_for(few_draws(every_n_train_steps=1), max_epochs=2, logger=logger).fit(Killed(), blob_loader())
    assert logger.steps() == [0, 1, 2, 3]


def test_signals_without_a_handler_and_other_threads_are_left_alone() -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    inside = {}
    held = Interruptions()

    def look() -> None:
        with held.held():
            inside.update({n: signal.getsignal(n) for n in before})

    thread = Thread(target=look)
    thread.start()
    thread.join()
    assert inside == before
    look()
    assert {n: h for n, h in inside.items() if h != before[n]} == {}


class Stops(Classifier):
    """Control-C in the middle of the reading at step 4."""

    def per_sample_loss(self, batch: Any) -> Any:
        x, y = batch
        losses = F.cross_entropy(self(x), y, reduction="none")
        if self.trainer.global_step == 4:
            signal.raise_signal(signal.SIGINT)
        return losses


def test_control_c_in_a_reading_ends_training_at_the_trained_weights() -> None:
    """And the run that goes on from the checkpoint that Lightning saves then makes the reading that was broken off."""
    plain = footprint(Classifier, blob_loader, max_steps=4)
    seed_all(3)
    module = Stops()
    modes = {name: part.training for name, part in module.named_modules()}
    saving = ModelCheckpoint("saved", save_on_exception=True)
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit):
        trainer_for(few_draws(), saving, max_epochs=2).fit(module, blob_loader())
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores further ones
    assert all(torch.equal(plain.weights[name], value) for name, value in module.state_dict().items())
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert not any("log" in part.__dict__ for part in module.modules())
    assert [r.step for r in slt.load_records(".")] == [0, 2]
    (path,) = Path("saved").glob("*step=4.ckpt")
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(plain.weights[name], value) for name, value in state["state_dict"].items())
    assert (state["callbacks"]["slt"]["index"], state["callbacks"]["slt"]["last_step"]) == (2, 2)
