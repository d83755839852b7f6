"""What may go wrong in a run: training goes on or ends as it would have, and the user is told once."""

from __future__ import annotations

import errno
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import Classifier, blob_loader, few_draws, footprint, trainer_for

import lightning_slt as slt
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
    assert pytest.importorskip("re").match(words, texts[0])
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
