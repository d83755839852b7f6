"""What may go wrong in a run: training goes on or ends as it would have, and the user is told once."""

from __future__ import annotations

import errno
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from models import FEW, Classifier, MemoryLogger, blob_loader, blobs, few_draws, footprint, seed_all, trainer_for

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


def test_an_estimator_that_raises_in_the_middle_of_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a draw of its own: chains have moved by then, and the other estimators have taken draws in."""
    plain, start = footprint(Classifier, blob_loader), slt.LLC.start

    def broken(estimator: slt.LLC, run: Any) -> Any:
        accumulator = start(estimator, run)
        takes, draws = accumulator.update, []

        def update(draw: Any) -> None:
            draws.append(draw)
            if len(draws) == 3:
                raise ZeroDivisionError("an estimator of one's own")
            takes(draw)

        if estimator.name == "broken":
            accumulator.update = update
        return accumulator

    def make(**options: Any) -> slt.SLTMonitor:
        return slt.SLTMonitor([slt.LLC(), slt.LLC(name="broken")], sampling=FEW, **EVERY_STEP, **options)

    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 2:
                monkeypatch.setattr(slt.LLC, "start", broken)

    with warned() as texts:
        watched = footprint(Classifier, blob_loader, [make(), Breaks()])
    assert plain.differences(watched) == []
    (text,) = texts
    assert text.startswith("slt: the reading at step 3 failed: ZeroDivisionError: an estimator of one's own (told once")
    assert [r.failure is None for r in slt.load_records(".")] == [True] * 3 + [False] * 6
    with pytest.raises(ZeroDivisionError, match="an estimator of one's own"):
        trainer_for(make(on_failure="raise"), max_epochs=1).fit(Classifier(), blob_loader())


class Broken(torch.utils.data.Dataset[Any]):
    """Raises at its sixth sample."""

    def __init__(self) -> None:
        self.inner = blobs()

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            raise OSError("the file server is down")
        return self.inner[index]


@pytest.mark.parametrize(
    "make",
    [
        lambda: slt.LossKernelMonitor(probe=Broken(), sampling=FEW, loss_fn=slt.losses.classification),
        lambda: few_draws(data=Broken()),
        lambda: few_draws(data=torch.utils.data.DataLoader(Broken(), batch_size=4)),
    ],
    ids=["probe", "data", "loader"],
)
def test_data_that_raise_are_met_before_the_first_step(make: Callable[[], pl.Callback]) -> None:
    """The user's own error, and the module as it was; training alone goes on to work."""
    module = Classifier()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(OSError, match="the file server is down"):
        trainer_for(make(), max_epochs=1).fit(module, blob_loader())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert module.training
    trainer_for(max_epochs=1).fit(module, blob_loader())


def test_chains_that_diverge_are_never_a_number() -> None:
    """A step a thousand times too long: NaN for the loggers, training as without, told once."""
    monitor = few_draws(sampler=slt.SGLD(step_size=1e3), nbeta=30.0, localization=1.0, **EVERY_STEP)
    plain = footprint(Classifier, blob_loader)
    with warned() as texts:
        watched = footprint(Classifier, blob_loader, [monitor])
    assert plain.differences(watched) == []
    assert texts == []  # what cannot be relied on is told as such, once for each check
    means = [row["slt/full/llc/mean"] for _, row in watched.monitor_rows]
    assert len(means) == 9
    assert all(math.isnan(mean) for mean in means)
    assert all(row["slt/full/llc/ok"] == 0 for _, row in watched.monitor_rows)


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


def test_a_search_is_given_up_too_and_made_later(signalled: type[Signalled]) -> None:
    """Training goes on here, as the handler wants it to: the finder looks again at the next step."""
    plain = footprint(Classifier, blob_loader)
    finder = slt.SamplerFinder(at_step=4, step_size=[1e-3], nbeta=[20.0], localization=[30.0], sampling=FEW)
    saves = Saves(signal.SIGUSR1)
    with warned():
        watched = footprint(signalled, blob_loader, [finder, saves])
    assert plain.differences(watched) == []
    assert saves.saved == 1
    assert finder.calibration is not None
    assert torch.load("requeued.ckpt", weights_only=True)["callbacks"]["finder"] == {"done": False}


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
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    with pytest.raises(SystemExit):
        trainer_for(few_draws(), saving, max_epochs=2).fit(module, blob_loader())
    signal.signal(signal.SIGINT, interrupt)  # Lightning ignores further ones from here on
    assert all(torch.equal(plain.weights[name], value) for name, value in module.state_dict().items())
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert not any("log" in part.__dict__ for part in module.modules())
    assert [r.step for r in slt.load_records(".")] == [0, 2]
    (path,) = Path("saved").glob("*step=4.ckpt")
    state = torch.load(path, weights_only=True)
    assert all(torch.equal(plain.weights[name], value) for name, value in state["state_dict"].items())
    assert (state["callbacks"]["slt"]["index"], state["callbacks"]["slt"]["last_step"]) == (2, 2)


RUN = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch, torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, blob_loader, few_draws, seed_all, trainer_for

class Dies(Classifier):
    calls = 0

    def per_sample_loss(self, batch):
        if {kill!r} and self.trainer.global_step == 4:
            Dies.calls += 1
            if Dies.calls == 3:
                os.kill(os.getpid(), getattr(signal, {kill!r}))
        x, y = batch
        return F.cross_entropy(self(x), y, reduction="none")

seed_all(3)
saving = ModelCheckpoint("saved", every_n_train_steps=1, save_top_k=-1)
trainer = trainer_for(few_draws(snapshots=True), saving, max_epochs=2, default_root_dir=".")
module = Dies()
trainer.fit(module, blob_loader(), ckpt_path={ckpt!r})
"""


def run(kill: str = "", ckpt: str | None = None) -> int:
    code = RUN.format(tests=str(Path(__file__).parent), kill=kill, ckpt=ckpt)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=120).returncode


def test_killed_in_a_reading() -> None:
    """Whole readings alone are on disk, checkpoints hold what was trained, and the run that goes on makes the rest."""
    assert run(kill="SIGKILL") == -signal.SIGKILL
    lines = Path("slt_records/slt.jsonl").read_bytes()
    assert lines.endswith(b"\n")
    killed = slt.load_records(".")
    assert [r.step for r in killed] == [0, 2]
    assert run(ckpt=str(next(Path("saved").glob("*step=3.ckpt")))) == 0
    readings = slt.load_records(".")
    assert [r.step for r in readings] == [0, 2, 3, 4, 6, 8]
    at_three = torch.load(next(Path("saved").glob("*step=3.ckpt")), weights_only=True)["state_dict"]
    assert all(torch.equal(slt.load_anchor(readings[2])[name], value) for name, value in at_three.items())
    plain = footprint(Classifier, blob_loader, max_steps=3)
    assert all(torch.equal(plain.weights[name], value) for name, value in at_three.items())


# Several Trainers


def fit(trainer: pl.Trainer, module: pl.LightningModule | None = None) -> pl.LightningModule:
    module = module or Classifier()
    trainer.fit(module, blob_loader())
    return module


def test_two_trainers_by_turns_keep_their_own_settings_and_records() -> None:
    """A, then B, then A again with the same object: A goes on with what it had."""
    seed_all(0)
    monitor = few_draws(snapshots=True)
    loggers = {name: MemoryLogger() for name in "ab"}
    trainers = {n: trainer_for(monitor, max_epochs=1, default_root_dir=n, logger=loggers[n]) for n in "ab"}
    module = fit(trainers["a"])
    other = Classifier()
    with torch.no_grad():
        other.net[-1].weight.mul_(10.0)
    fit(trainers["b"], other)
    trainers["a"].fit_loop.max_epochs = 2
    fit(trainers["a"], module)
    a, b = (slt.load_records(name) for name in "ab")
    assert [(r.index, r.step) for r in a] == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8)]
    assert [(r.index, r.step) for r in b] == [(0, 0), (1, 2), (2, 4)]
    assert len({r.settings["localization"] for r in a}) == len({r.settings["localization"] for r in b}) == 1
    assert a[0].settings["localization"] != b[0].settings["localization"]
    assert loggers["a"].steps() == [0, 2, 4, 6, 8]


class Nests(pl.Callback):
    """Fits another Trainer in the middle of the first one's run."""

    def __init__(self, make: Callable[[], pl.Trainer]) -> None:
        self.make = make

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            inner = self.make()
            fit(inner)


def test_a_trainer_within_another() -> None:
    without = footprint(Classifier, blob_loader, [Nests(lambda: trainer_for(max_epochs=1))])
    inner = MemoryLogger()
    nests = Nests(lambda: trainer_for(few_draws(), max_epochs=1, logger=inner, default_root_dir="inner"))
    watched = footprint(Classifier, blob_loader, [few_draws(), nests])
    assert without.differences(watched) == []
    assert [step for step, _ in watched.monitor_rows] == [0, 2, 4, 6, 8]
    assert inner.steps() == [0, 2, 4]


def test_one_monitor_cannot_be_at_work_in_two_trainers() -> None:
    """The second one is refused in words; the first goes on."""
    monitor = few_draws()

    def refused() -> pl.Trainer:
        with pytest.raises(MisconfigurationException, match=r"'slt' is at work in another Trainer.* of its own"):
            fit(trainer_for(monitor, max_epochs=1))
        return trainer_for(max_epochs=1)

    watched = footprint(Classifier, blob_loader, [monitor, Nests(refused)])
    assert [step for step, _ in watched.monitor_rows] == [0, 2, 4, 6, 8]


# A clock that jumps


class Clocks:
    """Both clocks, which jump at a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.counter = 0.0
        now, count = time.time, time.perf_counter
        monkeypatch.setattr(time, "time", lambda: now() + self.wall)
        monkeypatch.setattr(time, "perf_counter", lambda: count() + self.counter)


class Jumps(pl.Callback):
    """In training, and in the middle of a reading."""

    def __init__(self, clocks: Clocks, jump: float) -> None:
        self.clocks, self.jump = clocks, jump

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 3:
            self.clocks.wall += self.jump
            self.clocks.counter += self.jump

    def hear(self, trainer: Any, reading: slt.Reading) -> None:
        if reading.step in (2, 5):
            self.clocks.wall += self.jump
            self.clocks.counter += self.jump


@pytest.mark.parametrize("jump", [1e6, -1e6])
@pytest.mark.parametrize(
    "schedule",
    [EVERY_STEP, {**EVERY_STEP, "max_overhead": 1.0}, {"train_time_interval": timedelta(microseconds=1)}],
    ids=["steps", "budget", "time"],
)
def test_clocks_that_jump_leave_training_and_records_alone(
    monkeypatch: pytest.MonkeyPatch, jump: float, schedule: dict[str, Any]
) -> None:
    """Durations are never negative, the order is that in which readings were made, and the schedule goes on."""
    without = footprint(Classifier, blob_loader)
    clocks = Clocks(monkeypatch)
    monitor = few_draws(**{"every_n_train_steps": None, **schedule, "at_end": True})
    with warned() as texts:
        watched = footprint(Classifier, blob_loader, [Jumps(clocks, jump), monitor])
    assert without.differences(watched) == []
    assert texts == []
    readings = slt.load_records(".")
    steps = [r.step for r in readings]
    assert steps == sorted(set(steps))
    assert steps[-1] == 8
    assert all(r.duration >= 0 for r in readings)
    assert all(not r.overhead < 0 for r in readings)
    if "max_overhead" not in schedule:
        assert steps == list(range(9))
