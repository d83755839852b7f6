"""When the monitor reads, which weights it reads, and where on the x axis the numbers stand."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import (
    FEW,
    Classifier,
    MemoryLogger,
    Trajectory,
    Validated,
    blobs,
    few_draws,
    loader_of,
    seed_all,
    trainer_for,
)

import lightning_slt as slt
from lightning_slt.losses import classification
from lightning_slt.reading import Reader

pytestmark = pytest.mark.usefixtures("elsewhere")


def fit(monitor: slt.SLTMonitor, *callbacks: Any, module: Any = None, val: bool = False, **options: Any) -> Any:
    """Train two epochs of four batches, and give the logger."""
    seed_all(0)
    logger = MemoryLogger()
    trainer = trainer_for(monitor, *callbacks, **{"max_epochs": 2, "logger": logger, **options})
    loader = loader_of(blobs())
    trainer.fit(
        module or (Validated() if val else Classifier()), loader, loader_of(blobs(), shuffle=False) if val else None
    )
    return logger


def steps(schedule: dict[str, Any], **options: Any) -> list[int]:
    logger = fit(few_draws(**{"every_n_train_steps": None, **schedule}), **options)
    return logger.steps()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"every_n_train_steps": 3}, [0, 3, 6]),
        ({"every_n_train_steps": 8}, [0, 8]),
        ({"every_n_train_steps": 100}, [0]),
        ({"every_n_epochs": 1}, [0, 4, 8]),
        ({"every_n_epochs": 2}, [0, 8]),
        ({"at_steps": [5, 1, 0, 99]}, [0, 1, 5]),
        ({"at_steps": slt.LogSteps(1, 8, 4)}, [0, 1, 2, 4, 8]),
        ({"every_n_train_steps": 3, "at_steps": [4], "every_n_epochs": 1}, [0, 3, 4, 6, 8]),
        ({"every_n_train_steps": 5, "at_end": True}, [0, 5, 8]),
        ({"every_n_train_steps": 4, "at_end": True}, [0, 4, 8]),
        ({"train_time_interval": timedelta(microseconds=1)}, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ({"train_time_interval": timedelta(hours=1)}, [0]),
    ],
)
def test_schedules(schedule: dict[str, Any], expected: list[int]) -> None:
    assert steps(schedule) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"accumulate_grad_batches": 2}, [0, 2, 4]),
        ({"accumulate_grad_batches": 3}, [0, 2, 4]),
        ({"max_steps": 5, "max_epochs": -1}, [0, 2, 4]),
        ({"limit_train_batches": 3}, [0, 2, 4, 6]),
        ({"overfit_batches": 2}, [0, 2, 4]),
    ],
)
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_steps_are_counted_once(options: dict[str, Any], expected: list[int]) -> None:
    assert steps({"every_n_train_steps": 2}, **options) == expected


def test_default_schedule_is_about_25_readings() -> None:
    assert len(steps({}, max_epochs=20)) == 27
    assert steps({}, max_epochs=-1, max_time="00:00:00:01")[:2] == [0, 4]


def test_time_between_readings() -> None:
    """A reading after every ten seconds of a clock that moves three a step."""
    monitor = few_draws(every_n_train_steps=None, train_time_interval=timedelta(seconds=10))
    clock = Clock()
    monitor._clock = clock
    logger = fit(monitor, clock.ticking(train=3.0), max_epochs=4)
    assert logger.steps() == [0, 4, 8, 12, 16]


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def ticking(self, *, train: float) -> pl.Callback:
        """Every training batch takes so long."""
        clock = self

        class Ticking(pl.Callback):
            def on_train_batch_start(self, *args: Any) -> None:
                clock.now += train

        return Ticking()

    def slow(self, function: Any, seconds: float) -> Any:
        """A function that takes so long."""

        def slower(*args: Any, **kwargs: Any) -> Any:
            self.now += seconds
            return function(*args, **kwargs)

        return slower


def budgeted(
    monkeypatch: pytest.MonkeyPatch, *callbacks: pl.Callback, readings: float, **options: Any
) -> tuple[MemoryLogger, list[float]]:
    """200 steps of a second each."""
    clock, overheads = Clock(), []
    monkeypatch.setattr(Reader, "read", clock.slow(Reader.read, readings))
    monkeypatch.setattr(Reader, "predict_cost", lambda *args: (readings, 0.0))
    monitor = few_draws(**{"every_n_train_steps": None, "sampler": slt.SGLD(step_size=1e-4), **options})
    monitor._clock = clock

    class Accountant(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            overheads.append(monitor._live.budget.overhead)

    return fit(monitor, Accountant(), clock.ticking(train=1.0), *callbacks, max_epochs=50), overheads


def test_budget_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before the run can pay for it: the first reading comes late, and stands at step 0."""
    logger, overheads = budgeted(monkeypatch, readings=5.0, max_overhead=0.1)
    assert logger.steps() == [0, 100, 150, 200]
    assert max(overheads) <= 0.1
    assert overheads[-1] == pytest.approx(20 / 200)
    logged = [value for _, value in logger.series("slt/overhead")]
    assert logged == pytest.approx([5 / 50, 10 / 100, 15 / 150, 20 / 200])
    place = [i for i, (_, row) in enumerate(logger.rows) if "slt/full/llc/mean" in row]
    before_first = [step for step, row in logger.rows[: place[0]] if "train/loss" in row]
    assert max(before_first) == 48


def test_budget_thins_a_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, overheads = budgeted(monkeypatch, readings=2.0, max_overhead=0.1, every_n_train_steps=30)
    assert logger.steps() == [0, 60, 90, 120, 150, 180]
    assert max(overheads) <= 0.1


def test_at_end_is_read_whatever_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    logger, _ = budgeted(monkeypatch, readings=5.0, max_overhead=0.01, at_end=True)
    assert logger.steps() == [200]


def test_checkpoints_that_the_budget_cannot_pay_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    saving = ModelCheckpoint("saved", every_n_train_steps=10, save_top_k=-1)
    options = {"readings": 5.0, "max_overhead": 0.1, "at_checkpoints": True}
    logger, overheads = budgeted(monkeypatch, saving, **options)
    assert logger.steps() == [0, 100, 150, 200]
    assert max(overheads) <= 0.1


@pytest.mark.filterwarnings("ignore:slt. no reading was made")
def test_calibration_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(Reader, "calibrate", clock.slow(Reader.calibrate, 7.0))
    monitor = few_draws(every_n_train_steps=None, max_overhead=0.5)
    monitor._clock = clock
    spent = []

    class Accountant(pl.Callback):
        def on_train_start(self, *args: Any) -> None:
            spent.append(monitor._live.budget.spent)

    fit(monitor, Accountant())
    assert spent[0] >= 7.0


@pytest.mark.parametrize(
    "saving",
    [
        {"every_n_train_steps": 3},
        {"every_n_epochs": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"train_time_interval": timedelta(microseconds=1)},
        {"every_n_train_steps": 3, "save_last": True},
    ],
)
@pytest.mark.parametrize("val", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_at_checkpoints(saving: dict[str, Any], val: bool, accumulate: int, elsewhere: Path) -> None:
    """Exactly the weights of the file are read, and stand where its steps say."""
    monitor = few_draws(every_n_train_steps=None, at_checkpoints=True, snapshots=True)
    checkpoint = ModelCheckpoint("saved", save_top_k=-1, **saving)
    logger = fit(monitor, checkpoint, val=val, accumulate_grad_batches=accumulate)
    saved = {}
    for file in Path("saved").glob("*.ckpt"):
        state = torch.load(file, weights_only=True)
        saved[state["global_step"]] = state["state_dict"]
    readings = slt.load_records(elsewhere)
    assert saved
    assert [r.step for r in readings] == [0, *sorted(saved)] == logger.steps()
    for reading in readings[1:]:
        anchor = slt.load_anchor(reading)
        assert reading.global_step == reading.step
        assert all(torch.equal(anchor[name], saved[reading.step][name]) for name in anchor)


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_readings_stand_at_the_loss_of_the_same_weights(accumulate: int, elsewhere: Path) -> None:
    """Training logs at x the loss before step x + 1; the reading at x has that very loss as its anchor's."""
    seed_all(0)
    logger, trajectory = MemoryLogger(), Trajectory()
    whole = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=32)
    monitor = few_draws(every_n_train_steps=1, sampling=whole, snapshots=True)
    trainer = trainer_for(monitor, trajectory, max_epochs=6, logger=logger, accumulate_grad_batches=accumulate)
    trainer.fit(Classifier(), loader_of(blobs(), batch_size=32, shuffle=False))
    losses = dict(logger.series("train/loss"))
    readings = slt.load_records(elsewhere)
    assert [r.step for r in readings] == list(range(7))
    for reading in readings:
        anchor = slt.load_anchor(reading)
        assert all(torch.equal(anchor[n], w) for n, w in trajectory.weights[reading.global_step].items())
        if reading.step in losses:
            value = reading.estimates["full"]["llc"].health.values["anchor_loss"]
            assert value == pytest.approx(losses[reading.step], rel=1e-6)
    assert len(losses) == 6


class TwoOptimizers(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            loss = classification(self, batch).mean()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(p.parameters(), lr=0.1) for p in (self.net[0], self.net[2])]


def test_several_optimizers(elsewhere: Path) -> None:
    """Steps of all optimizers count together towards the schedule; the x axis counts batches, as the loggers do."""
    monitor = few_draws(every_n_train_steps=3, loss_fn=classification)
    logger = fit(monitor, module=TwoOptimizers())
    assert [(r.step, r.global_step) for r in slt.load_records(elsewhere)] == [
        (0, 0),
        (2, 4),
        (3, 6),
        (5, 10),
        (6, 12),
        (8, 16),
    ]
    assert logger.steps("train/loss") == list(range(8))


def test_a_schedule_of_ones_own() -> None:
    class Primes(slt.LLCMonitor):
        def should_read(self, trainer: Any, *, step: int | None = None, epoch: int | None = None) -> bool:
            return step in (2, 3, 5, 7)

    logger = fit(Primes(sampling=FEW))
    assert logger.steps() == [0, 2, 3, 5, 7]
