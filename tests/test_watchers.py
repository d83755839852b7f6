"""Callbacks that wait for a monitor's numbers: each judges weights by a reading of these weights, or is told so."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from models import (
    Classifier,
    MemoryLogger,
    Validated,
    blobs,
    dropout_and_batchnorm,
    few_draws,
    footprint,
    loader_of,
    seed_all,
    trainer_for,
)

import lightning_slt as slt

pytestmark = pytest.mark.usefixtures("elsewhere")

TAG = "slt/full/llc/mean"


def fit(*callbacks: Any, module: Any = None, val: bool = False, **options: Any) -> pl.Trainer:
    """Two epochs of four batches."""
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    loader = loader_of(blobs())
    trainer.fit(
        module or (Validated() if val else Classifier()), loader, loader_of(blobs(), shuffle=False) if val else None
    )
    return trainer


def scoring(**options: Any) -> ModelCheckpoint:
    return ModelCheckpoint("saved", monitor=TAG, save_top_k=-1, auto_insert_metric_name=False, **options)


SAVING = {
    "every steps": {"every_n_train_steps": 3},
    "every epoch": {},
    "every second epoch": {"every_n_epochs": 2},
    "epoch end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "after validation": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
    "by the clock": {"train_time_interval": timedelta(microseconds=1)},
}
VALIDATION = {
    "none": {},
    "each epoch": {"val": True},
    "within an epoch": {"val": True, "val_check_interval": 2},
    "some epochs": {"val": True, "check_val_every_n_epoch": 2},
    "accumulating": {"val": True, "val_check_interval": 2, "accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("saving", SAVING)
@pytest.mark.parametrize("validation", VALIDATION)
def test_the_score_is_that_of_the_weights_saved(saving: str, validation: str, elsewhere: Path) -> None:
    monitor = few_draws(every_n_train_steps=None, at_checkpoints=True, snapshots=True)
    checkpoint = scoring(**SAVING[saving])
    trainer = fit(monitor, checkpoint, **VALIDATION[validation])
    readings = {r.global_step: r for r in slt.load_records(elsewhere)}
    assert checkpoint.best_k_models or (saving, validation) == ("after validation", "none")
    for path, score in checkpoint.best_k_models.items():
        state = torch.load(path, weights_only=True)
        reading = readings.pop(state["global_step"])
        assert float(score) == pytest.approx(reading.estimates["full"]["llc"].mean, rel=1e-6)
        anchor = slt.load_anchor(reading)
        assert all(torch.equal(anchor[name], state["state_dict"][name]) for name in anchor)
    assert list(readings) == [0], "a reading that no checkpoint asked for"
    assert trainer.logger.steps() == [r.step for r in slt.load_records(elsewhere)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_checkpoints_saved_within_an_epoch_by_validation(accumulate: int, elsewhere: Path) -> None:
    """Also those that score something else are read."""
    saving = ModelCheckpoint("saved", monitor="val/loss", save_top_k=-1, auto_insert_metric_name=False)
    monitor = few_draws(every_n_train_steps=None, at_checkpoints=True, snapshots=True)
    fit(monitor, saving, val=True, val_check_interval=2, accumulate_grad_batches=accumulate)
    saved = {}
    for file in saving.best_k_models:
        state = torch.load(file, weights_only=True)
        saved[state["global_step"]] = state["state_dict"]
    readings = slt.load_records(elsewhere)
    assert [r.global_step for r in readings] == [0, *sorted(saved)] == [step // accumulate for step in (0, 2, 4, 6, 8)]
    for reading in readings[1:]:
        anchor = slt.load_anchor(reading)
        assert all(torch.equal(anchor[name], saved[reading.global_step][name]) for name in anchor)


@pytest.mark.parametrize("saving", ["every steps", "after validation", "epoch end"])
def test_training_is_bit_identical_beside_a_scored_checkpoint(saving: str) -> None:
    """Readings in the middle of validation change neither its numbers nor training."""

    def net() -> Validated:
        return Validated(dropout_and_batchnorm())

    def run(*callbacks: pl.Callback) -> Any:
        val = lambda: loader_of(blobs(8), shuffle=False)  # noqa: E731
        return footprint(net, lambda: loader_of(blobs()), callbacks, val=val, val_check_interval=2)

    without = run()
    watched = run(few_draws(every_n_train_steps=None, at_checkpoints=True), scoring(**SAVING[saving]))
    assert without.differences(watched) == []
    assert len(watched.monitor_rows) >= 3


def test_a_stale_score_is_told_once() -> None:
    words = r"slt: ModelCheckpoint\(monitor='slt/full/llc/mean'\) saves weights .* write at_checkpoints=True"
    with pytest.warns(UserWarning, match=words) as told:
        fit(few_draws(every_n_train_steps=3), scoring(every_n_train_steps=1))
    assert len([w for w in told if "saves weights" in str(w.message)]) == 1


def test_checkpoints_at_readings_need_no_telling() -> None:
    fit(few_draws(every_n_train_steps=2), scoring(every_n_train_steps=4))


class Looks(EarlyStopping):
    """What it saw at each look."""

    def _evaluate_stopping_criteria(self, current: Any) -> Any:
        self.__dict__.setdefault("seen", []).append(float(current))
        return super()._evaluate_stopping_criteria(current)


@pytest.mark.parametrize("first", [True, False])
def test_recipe_for_early_stopping(first: bool, elsewhere: Path) -> None:
    """Readings at the end of each epoch, looks at the end of each epoch: patience counts readings."""
    stopping = Looks(TAG, patience=1000, check_on_train_epoch_end=True)
    monitor = few_draws(every_n_train_steps=None, every_n_epochs=1)
    fit(*([monitor, stopping] if first else [stopping, monitor]), max_epochs=4)
    readings = [r.estimates["full"]["llc"].mean for r in slt.load_records(elsewhere)]
    assert stopping.seen == pytest.approx(readings[1:], rel=1e-6)
    assert len(set(stopping.seen)) == 4


@pytest.mark.parametrize(("patience", "epochs"), [(2, 3), (3, 4)])
def test_patience_counts_readings(patience: int, epochs: int) -> None:
    """A number that can only get worse stops the run after so many readings."""
    stopping = EarlyStopping(TAG, patience=patience, min_delta=1e9, check_on_train_epoch_end=True)
    trainer = fit(few_draws(every_n_train_steps=None, every_n_epochs=1), stopping, max_epochs=9)
    assert trainer.current_epoch == epochs
    assert trainer.logger.steps() == [4 * n for n in range(epochs + 1)]


def test_looks_without_a_new_reading_are_told_once() -> None:
    stopping = EarlyStopping(TAG, patience=1000, check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match=r"EarlyStopping.*looks again before there is a new reading") as told:
        fit(few_draws(every_n_train_steps=None, every_n_epochs=2), stopping, max_epochs=6)
    assert len([w for w in told if "looks again" in str(w.message)]) == 1
    with pytest.warns(UserWarning, match="looks again before there is a new reading"):
        fit(
            few_draws(every_n_train_steps=None, every_n_epochs=2),
            EarlyStopping(TAG, patience=1000, check_on_train_epoch_end=False),
            val=True,
            max_epochs=6,
        )


@pytest.mark.parametrize(
    ("callback", "options", "words"),
    [
        (EarlyStopping("slt/full/llc/maen"), {}, "the nearest that are: slt/full/llc/mean, "),
        (EarlyStopping(TAG), {"components": "layers"}, "slt/net.0/llc/mean"),
        (ModelCheckpoint("saved", monitor="slt/net.0/llc/mean"), {}, "slt/full/llc/mean"),
        (EarlyStopping("a/b/full/llc/men"), {"name": "a/b"}, "a/b/full/llc/mean"),
    ],
)
def test_tags_that_never_come_are_refused(callback: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(MisconfigurationException) as caught:
        fit(few_draws(**options), callback)
    message = str(caught.value)
    assert f"{type(callback).__name__}(monitor={callback.monitor!r}) waits for a tag that is never logged" in message
    assert words in message


def test_tags_of_others_are_theirs() -> None:
    """Another monitor may have a name below ours, and a module logs what it likes."""
    stopping = EarlyStopping("slt/fine/full/llc/mean", patience=1000, check_on_train_epoch_end=True)
    loss = EarlyStopping("train/loss", patience=1000, check_on_train_epoch_end=True)
    overhead = ModelCheckpoint("saved", monitor="slt/overhead")
    fit(few_draws(), few_draws(name="slt/fine"), stopping, loss, overhead)
