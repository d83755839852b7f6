"""The monitor beside Lightning's own callbacks and tuners, in fits that do nothing, and in long ones."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    StochasticWeightAveraging,
)
from models import Classifier, MemoryLogger, blob_loader, blobs, few_draws, footprint, loader_of, trainer_for

import lightning_slt as slt

pytestmark = pytest.mark.usefixtures("elsewhere")

BESIDE = {
    "stochastic averaging": lambda: StochasticWeightAveraging(1e-2, swa_epoch_start=1),
    "moving average": EMAWeightAveraging,
    "changing accumulation": lambda: GradientAccumulationScheduler({0: 1, 1: 2}),
    "learning rates": LearningRateMonitor,
}


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.filterwarnings("ignore:You are using .LearningRateMonitor. callback with models that have no")
def test_other_callbacks(name: str) -> None:
    without = footprint(Classifier, blob_loader, [BESIDE[name]()], max_epochs=3)
    watched = footprint(Classifier, blob_loader, [few_draws(), BESIDE[name]()], max_epochs=3)
    assert without.differences(watched) == []
    steps = 8 if name == "changing accumulation" else 12
    assert [step for step, _ in watched.monitor_rows] == list(range(0, steps + 1, 2))


@pytest.mark.filterwarnings("ignore:The .train_dataloader. does not have many workers")
def test_search_for_a_learning_rate(elsewhere: Path) -> None:
    """Steps of the search are none of the run, and leave no reading."""
    logger = MemoryLogger()
    finder = LearningRateFinder(num_training_steps=10)
    trainer = trainer_for(few_draws(every_n_train_steps=10), finder, max_epochs=1, logger=logger)
    trainer.fit(Classifier(), loader_of(blobs(160)))
    assert logger.steps() == [0, 10, 20]
    assert [r.step for r in slt.load_records(elsewhere)] == [0, 10, 20]


@pytest.mark.parametrize("options", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}])
def test_fits_without_a_step(options: dict[str, Any], elsewhere: Path) -> None:
    assert footprint(Classifier, blob_loader, [few_draws(at_end=True)], **options).monitor_rows == []
    assert not (elsewhere / "slt_records").exists()


def test_an_interrupted_fit_keeps_its_state() -> None:
    class Interrupts(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    monitor = few_draws()
    with pytest.raises(SystemExit):
        trainer_for(monitor, Interrupts(), max_epochs=2).fit(Classifier(), blob_loader())
    state = monitor.state_dict()
    assert (state["index"], state["last_step"]) == (2, 2)


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a run has settled: until then the weights of its readings are kept, in case they must be read again."""
    monkeypatch.setattr("lightning_slt.callbacks.history.MOST_KEPT", 8)
    counts = []

    class Counts(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step % 10 == 0:
                gc.collect()
                counts.append(sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()))

    monitor = few_draws(every_n_train_steps=1, traces=True, snapshots=True)
    trainer_for(monitor, Counts(), max_epochs=10).fit(Classifier(), blob_loader())
    assert len(counts) == 4
    assert counts[1] == counts[2] == counts[3]


def test_a_folder_that_is_not_local() -> None:
    logger = MemoryLogger()
    trainer = trainer_for(few_draws(), max_epochs=1, logger=logger, default_root_dir="memory://runs")
    with pytest.warns(UserWarning, match="no records are kept beside memory://runs: it is no local folder"):
        trainer.fit(Classifier(), blob_loader())
    assert logger.steps() == [0, 2, 4]
