"""What readings may cost: the share is kept while the curvature grows, and a run that read nothing says so."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from models import Classifier, MemoryLogger, blobs, few_draws, loader_of, seed_all, trainer_for

import lightning_slt as slt
from lightning_slt.callbacks.budget import Budget, Cost
from lightning_slt.reading import Anchor, Reader

pytestmark = pytest.mark.usefixtures("elsewhere")

STEPS = 6
"""Of a chain of ``few_draws``."""


class World:
    """A clock of seconds that pass only where something is said to take them, and readings on it.

    Args:
        monkeypatch: Of the test.
        stretch: How many times the steps the anchor at an optimizer step asks for.
        measuring: Seconds of a measurement of the curvature.
        per_step: Seconds of a step of the chains.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, stretch: Any, *, measuring: float = 0.0, per_step: float = 1.0
    ) -> None:
        self.now, self.overheads, self.measured = 0.0, [], []
        read, calibrate, world = Reader.read, Reader.calibrate, self

        def calibrated(reader: Reader, anchor: Anchor) -> Any:
            world.now += measuring if reader.settings is None else 0.0
            return calibrate(reader, anchor)

        def settings_at(reader: Reader, anchor: Anchor) -> Any:
            world.now += measuring
            world.measured.append(anchor.global_step)
            settings = reader.calibrate(anchor)
            factor = stretch(anchor.global_step)
            sampling = replace(settings.sampling, num_burnin=2 * factor, thinning=factor)
            return replace(settings, sampling=sampling)

        def slow(reader: Reader, anchor: Anchor, settings: Any, **options: Any) -> Any:
            world.now += per_step * settings.num_steps
            return read(reader, anchor, settings, **options)

        monkeypatch.setattr(Reader, "calibrate", calibrated)
        monkeypatch.setattr(Reader, "settings_at", settings_at)
        monkeypatch.setattr(Reader, "read", slow)
        monkeypatch.setattr(Reader, "predict_cost", lambda *args: (0.0, per_step))

    def fit(self, *callbacks: pl.Callback, epochs: int = 50, **options: Any) -> MemoryLogger:
        """Four steps an epoch, a second each."""
        monitor = few_draws(**{"every_n_train_steps": None, **options})
        monitor._clock = lambda: self.now
        world = self

        class Ticking(pl.Callback):
            def on_train_batch_start(self, *args: Any) -> None:
                world.now += 1.0

            def on_train_batch_end(self, *args: Any) -> None:
                world.overheads.append(monitor._live.budget.overhead)

        seed_all(0)
        logger = MemoryLogger()
        self.trainer = trainer_for(monitor, Ticking(), *callbacks, max_epochs=epochs, logger=logger)
        self.trainer.fit(Classifier(), loader_of(blobs()))
        return logger


def test_the_share_is_kept_where_the_curvature_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 100 on a reading takes eight times the steps: 48 s instead of 6."""
    world = World(monkeypatch, lambda step: 8 if step >= 100 else 1)
    assert world.fit(max_overhead=0.3, epochs=100).steps() == [0, 40, 60, 80, 240, 400]
    assert max(world.overheads) == pytest.approx(0.3)


def test_first_weights_that_are_too_dear_wait_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 s are found after 20 s of training, and paid for after 160; then 320 s could pay for another such reading."""
    world = World(monkeypatch, lambda step: 1 if step else 8)
    steps = world.fit(max_overhead=0.3, epochs=82).steps()
    assert steps[:3] == [0, 320, 321]
    assert world.measured[:3] == [0, 0, 320]
    assert max(world.overheads) == pytest.approx(0.3)


def test_measuring_counts_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement that finds a reading too dear is not repeated before the run can pay for that reading."""
    world = World(monkeypatch, lambda step: 8 if step >= 100 else 1, measuring=2.0)
    steps = world.fit(max_overhead=0.3, epochs=100).steps()
    assert max(world.overheads[20:]) <= 0.3  # the overhead is judged after 5 % of the fit: calibration comes first
    refused = [step for step in world.measured if step not in steps]
    assert len(refused) == 1
    assert [step for step in steps if step >= 100] == [260]


def test_a_cheaper_anchor_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of steps is that of the anchor at hand, not the largest there was."""
    world = World(monkeypatch, lambda step: 8 if 20 <= step < 60 else 1)
    logger = world.fit(max_overhead=1.0, every_n_train_steps=10)
    assert max(world.overheads) <= 1.0
    assert logger.steps()[-3:] == [180, 190, 200]


def test_credit_for_whom_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reading is made at once where a callback waits for it; later ones pay it off first."""
    world = World(monkeypatch, lambda step: 1)
    stopping = EarlyStopping("slt/full/llc/mean", patience=1000, check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="looks again before there is a new reading"):
        logger = world.fit(stopping, max_overhead=0.1)
    assert world.trainer.current_epoch == 50
    assert logger.steps() == [0, 120, 180]
    place = next(i for i, (_, row) in enumerate(logger.rows) if "slt/full/llc/mean" in row)
    assert [row for _, row in logger.rows[:place] if "train/loss" in row] == []
    assert world.overheads[-1] <= 0.1


def test_no_checkpoint_is_scored_with_a_missing_number(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda step: 1)
    saving = ModelCheckpoint("saved", monitor="slt/full/llc/mean", save_top_k=-1, auto_insert_metric_name=False)
    with pytest.warns(UserWarning, match=r"ModelCheckpoint.*saves weights with the value of an earlier reading"):
        world.fit(saving, max_overhead=0.1, epochs=3)
    assert len(saving.best_k_models) == 3
    assert all(torch.isfinite(score) for score in saving.best_k_models.values())


@pytest.mark.parametrize("waits", [[], [EarlyStopping("train/loss", patience=1000, check_on_train_epoch_end=True)]])
def test_no_credit_where_no_one_waits(monkeypatch: pytest.MonkeyPatch, waits: list[pl.Callback]) -> None:
    assert World(monkeypatch, lambda step: 1).fit(*waits, max_overhead=0.1).steps() == [0, 120, 180]


def test_a_run_without_a_reading_says_so(monkeypatch: pytest.MonkeyPatch, elsewhere: Path) -> None:
    world = World(monkeypatch, lambda step: 1, per_step=5.0)
    words = (
        "slt: no reading was made. One takes about 30 s after 0 s of preparation, which at max_overhead=0.1 needs "
        "300 s of training; there were 200 s. Write at_end=True"
    )
    with pytest.warns(UserWarning, match=re.escape(words)) as caught:
        world.fit(max_overhead=0.1)
    assert len([w for w in caught if "no reading" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match=r"no reading was made in this run: .*slt\.jsonl holds none"):
        assert slt.load_records(elsewhere) == []


def test_a_run_with_a_reading_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    World(monkeypatch, lambda step: 1, per_step=5.0).fit(max_overhead=0.1, at_end=True)


def test_the_budget_goes_on_where_a_run_resumes(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, lambda step: 8 if step else 1, measuring=1.0)
    saving = ModelCheckpoint("saved", every_n_train_steps=100, save_top_k=-1)
    world.fit(saving, max_overhead=0.3, epochs=25)
    state = torch.load(next(Path("saved").glob("*step=100.ckpt")), weights_only=True)["callbacks"]["slt"]["budget"]
    assert state["cost"] == {"measuring": 1.0, "setup": 0.0, "per_step": 1.0, "steps": 8 * STEPS}
    assert state["elapsed"] == 100 + state["spent"]
    budget = Budget(0.3, clock=lambda: 5.0)
    budget.load_state_dict(state)
    assert budget.state_dict() == state


@pytest.mark.filterwarnings("ignore:slt. no reading was made")
def test_prediction_of_a_real_reading() -> None:
    """Steps and set-up are told apart: eight times the steps of the same chains are not eight times the set-up."""
    seed_all(0)
    monitor = few_draws(max_overhead=0.5)
    costs = []

    class Looks(pl.Callback):
        def on_train_start(self, *args: Any) -> None:
            costs.append(monitor._live.budget.cost)

    trainer_for(monitor, Looks(), max_epochs=1).fit(Classifier(), loader_of(blobs()))
    (cost,) = costs
    assert cost.steps == STEPS
    assert cost.measuring > 0
    assert cost.whole == cost.measuring + (cost.setup + cost.per_step * STEPS)


def test_learning_what_a_step_takes() -> None:
    cost = Cost(measuring=2.0, setup=3.0, per_step=100.0, steps=10)
    assert cost.after(25.0) == Cost(measuring=2.0, setup=3.0, per_step=2.0, steps=10)
    assert cost.after(1.0).per_step == 0.0


def test_a_measurement_that_takes_a_little_longer_is_no_reason_to_give_up() -> None:
    now = 0.0
    budget = Budget(0.5, clock=lambda: now)
    budget.cost = Cost(measuring=1.0, setup=0.0, per_step=1.0, steps=4)
    now = 10.0
    assert budget.affords()
    assert budget.plan(measuring=1.5, steps=4)
    budget.cost = Cost(measuring=1.0, setup=0.0, per_step=1.0, steps=4)
    assert not budget.plan(measuring=1.0, steps=8)
    assert budget.cost.steps == 8
    assert not budget.affords()


@pytest.mark.parametrize("total", [100, 20])
def test_overhead_is_missing_before_it_means_something(elsewhere: Path, total: int) -> None:
    """NaN before 5 % of the steps: ``null`` in the records, NaN for the loggers."""
    seed_all(0)
    logger = MemoryLogger()
    trainer_for(few_draws(every_n_train_steps=1), max_steps=total, max_epochs=-1, logger=logger).fit(
        Classifier(), loader_of(blobs())
    )
    early = [r.step for r in slt.load_records(elsewhere) if r.overhead != r.overhead]
    assert early == list(range(total // 20))
    assert [step for step, value in logger.series("slt/overhead") if value != value] == early
    assert '"overhead": null' in next(elsewhere.rglob("slt.jsonl")).read_text().splitlines()[0]
