"""The monitor in Trainers of every kind: what it refuses, what it survives, what it leaves alone."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from models import (
    FEW,
    BlobData,
    Classifier,
    MemoryLogger,
    Validated,
    blobs,
    few_draws,
    loader_of,
    seed_all,
    trainer_for,
)
from torch.utils.data import IterableDataset

import lightning_slt as slt
from lightning_slt.losses import classification

pytestmark = pytest.mark.usefixtures("elsewhere")


def fit(*callbacks: Any, module: Any = None, data: Any = None, **options: Any) -> pl.Trainer:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    trainer.fit(module or Classifier(), loader_of(blobs()) if data is None else data)
    return trainer


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"every_n_train_steps": 0}, ValueError, "every_n_train_steps must be a whole number of at least 1"),
        ({"every_n_train_steps": 2.5}, ValueError, "every_n_train_steps must be a whole number"),
        ({"every_n_epochs": -1}, ValueError, "every_n_epochs must be a whole number"),
        ({"train_time_interval": timedelta(0)}, ValueError, "train_time_interval must be positive"),
        ({"at_steps": [3, -1]}, ValueError, "at_steps must be whole numbers, zero or more"),
        ({"max_overhead": 0.0}, ValueError, "max_overhead must be a positive share such as 0.1"),
        ({"name": ""}, ValueError, "name must be a non-empty string"),
        ({"name": "../up"}, ValueError, "name must be a non-empty string"),
        ({"name": "/tmp/slt"}, ValueError, "name must be a non-empty string"),
        ({"name": "a//b"}, ValueError, "name must be a non-empty string"),
        ({"nbeta": -1.0}, ValueError, "nbeta must be a finite number, zero or more"),
        ({"localization": float("nan")}, ValueError, "localization must be a finite number"),
        ({"sampler": "SGLD"}, TypeError, r"sampler must be a sampler such as SGLD\(step_size=1e-4\)"),
        ({"sampling": {"num_chains": 4}}, TypeError, "sampling must be a SamplingConfig"),
        ({"sampling": slt.SamplingConfig(num_chains=1)}, ValueError, "at least two chains"),
        ({"on_failure": "ignore"}, ValueError, "on_failure must be 'warn' or 'raise'"),
    ],
)
def test_refused_at_construction(options: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        slt.LLCMonitor(**options)


@pytest.mark.parametrize(("estimators", "error"), [([], ValueError), (slt.LLC(), TypeError), (["llc"], TypeError)])
def test_refused_estimators(estimators: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="estimators"):
        slt.SLTMonitor(estimators)


def test_two_estimators_of_one_name() -> None:
    with pytest.raises(ValueError, match="two estimators share a name"):
        slt.SLTMonitor([slt.LLC(), slt.LLC()])


def test_two_monitors_of_one_name() -> None:
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `LLCMonitor`"):
        trainer_for(few_draws(), few_draws())
    trainer = trainer_for(few_draws(), max_epochs=1)
    trainer.callbacks.append(few_draws())
    with pytest.raises(
        MisconfigurationException, match="two monitors are called 'slt'; give one of them another name="
    ):
        trainer.fit(Classifier(), loader_of(blobs()))


class Stream(IterableDataset[Any]):
    """Batches for ever."""

    def __iter__(self) -> Any:
        while True:
            yield blobs(8).tensors


@pytest.mark.parametrize(
    ("module", "options", "data", "text"),
    [
        (Classifier(), {"components": "nothing.*"}, None, "no trainable parameter matches 'nothing.*'"),
        (Classifier(), {"loss_fn": "mse"}, None, "loss_fn must be callable"),
        (Classifier(), {"data": Stream()}, None, "a stream without a length"),
        (Classifier(), {}, torch.utils.data.DataLoader(Stream(), batch_size=None), "pass data="),
        (Classifier().requires_grad_(False), {"loss_fn": classification}, None, "no parameter of the module requires"),
    ],
)
def test_refused_before_training(module: Any, options: Any, data: Any, text: str) -> None:
    class Started(pl.Callback):
        steps = 0

        def on_train_batch_start(self, *args: Any) -> None:
            self.steps += 1

    started = Started()
    with pytest.raises((ValueError, TypeError), match=text):
        fit(few_draws(**options), started, module=module, data=data, max_steps=4)
    assert started.steps == 0


def test_zero_configuration() -> None:
    """Every setting found, on an ordinary module."""
    trainer = fit(slt.LLCMonitor(), max_epochs=1)
    assert trainer.logger.steps() == [0, 1, 2, 3, 4]


def test_stream_with_data_of_its_own() -> None:
    loader = torch.utils.data.DataLoader(Stream(), batch_size=None)
    trainer = fit(few_draws(data=blobs()), data=loader, max_steps=5, max_epochs=-1)
    assert trainer.logger.steps() == [0, 2, 4]
    endless = few_draws(data=blobs(), every_n_train_steps=None)
    assert fit(endless, data=loader, max_time=timedelta(seconds=0.3), max_epochs=-1).logger.steps()[0] == 0


def test_fast_dev_run(elsewhere: Path) -> None:
    """One short reading, nothing on disk."""
    monitor = slt.LLCMonitor(sampling=slt.SamplingConfig(num_draws=10_000, num_burnin=10_000), max_overhead=0.1)
    trainer = fit(monitor, fast_dev_run=3)
    assert "slt/full/llc/mean" in trainer.callback_metrics
    assert monitor.state_dict()["index"] == 1
    assert list(elsewhere.iterdir()) == []


def test_without_a_logger(elsewhere: Path) -> None:
    trainer = fit(few_draws(), logger=False)
    assert torch.isfinite(trainer.callback_metrics["slt/full/llc/mean"])
    assert [r.step for r in slt.load_records(elsewhere)] == [0, 2, 4, 6, 8]


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(
    "options",
    [
        {"barebones": True, "logger": None, "log_every_n_steps": None},
        {"inference_mode": False},
        {"overfit_batches": 1},
        {"limit_train_batches": 0.5},
        {"reload_dataloaders_every_n_epochs": 1},
        {"deterministic": True},
        {"detect_anomaly": True},
        {"use_distributed_sampler": False},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
    ],
)
def test_trainers_of_every_kind(options: dict[str, Any]) -> None:
    quiet = {"enable_progress_bar": None, "enable_model_summary": None, "enable_checkpointing": None}
    trainer = fit(few_draws(), module=NoIndex(), **options, **(quiet if "barebones" in options else {}))
    assert torch.isfinite(trainer.callback_metrics["slt/full/llc/mean"])


def test_evaluation_is_unaffected(elsewhere: Path) -> None:
    def evaluate(*monitors: Any) -> Any:
        seed_all(0)
        module, loader = Validated(), loader_of(blobs(), shuffle=False)
        module.test_step = module.validation_step  # type: ignore[method-assign]
        module.predict_step = lambda batch, batch_idx: module(batch[0])  # type: ignore[method-assign]
        trainer = trainer_for(*monitors, max_epochs=1)
        results = [trainer.validate(module, loader, verbose=False), trainer.test(module, loader, verbose=False)]
        return [*results, torch.stack(trainer.predict(module, loader)).tolist(), torch.random.get_rng_state().tolist()]

    assert evaluate() == evaluate(few_draws())
    assert list(elsewhere.iterdir()) == []


def test_evaluation_after_a_fit() -> None:
    trainer = fit(few_draws())
    trainer.lightning_module.validation_step = lambda batch, batch_idx: None
    trainer.validate(trainer.lightning_module, loader_of(blobs(), shuffle=False), verbose=False)
    assert len(trainer.logger.steps()) == 5


class NoIndex(Classifier):
    def training_step(self, batch: Any) -> Any:  # type: ignore[override]
        return classification(self, batch).mean()


class ReturnsDict(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": classification(self, batch).mean(), "extra": batch_idx}


class SkipsBatches(Classifier):
    """Returns None where it has no loss, by the count of its batches."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None if batch_idx % 2 else classification(self, batch).mean()


class StopsEarly(Classifier):
    """Stops once the loss is low, or high: a reading sees all kinds of losses."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.global_step == 7 or not self.training:
            self.trainer.should_stop = True
        return loss


class BringsItsOwn(Classifier):
    def configure_callbacks(self) -> Any:
        return [few_draws(name="own")]


def test_a_module_that_brings_its_monitor() -> None:
    """Lightning prefers it to one of the same type in the Trainer."""
    trainer = fit(few_draws(), module=BringsItsOwn())
    assert trainer.logger.steps("own/full/llc/mean") == [0, 2, 4, 6, 8]
    assert trainer.logger.steps() == []


@pytest.mark.parametrize("module", [NoIndex, ReturnsDict, SkipsBatches, StopsEarly])
@pytest.mark.filterwarnings("ignore:.training_step. returned .None.")
def test_modules_of_every_kind(module: Any) -> None:
    trainer = fit(few_draws(), module=module())
    assert trainer.logger.steps() == [0, 2, 4, 6, 8]
    assert all(value == value for _, value in trainer.logger.series("slt/full/llc/mean"))


class Dictionary(Classifier):
    """Batches of several loaders side by side."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        parts = batch.values() if isinstance(batch, dict) else batch
        return sum(classification(self, part).mean() for part in parts)


@pytest.mark.parametrize(
    ("data", "module"),
    [
        (BlobData(), Classifier()),
        ({"a": loader_of(blobs()), "b": loader_of(blobs(16, seed=5))}, Dictionary()),
        ([loader_of(blobs()), loader_of(blobs(16, seed=5))], Dictionary()),
        (pl.utilities.CombinedLoader({"a": loader_of(blobs()), "b": loader_of(blobs(16))}, "min_size"), Dictionary()),
    ],
)
def test_data_of_every_kind(data: Any, module: Any) -> None:
    trainer = fit(few_draws(), module=module, data=data, max_steps=4, max_epochs=-1)
    assert trainer.logger.steps() == [0, 2, 4]


def test_arguments_are_stored_under_their_names() -> None:
    given = {"nbeta": 2.0, "localization": 3.0, "sampling": FEW, "at_end": True, "max_overhead": 0.5, "name": "n"}
    monitor = slt.LLCMonitor(**given)
    assert {key: getattr(monitor, key) for key in given} == given


def test_classification_with_loss_fn_gives_the_same_reading() -> None:
    def cross_entropy(module: Any, batch: Any) -> Any:
        x, y = batch
        return F.cross_entropy(module(x), y)

    derived, given = (fit(few_draws(loss_fn=f)).logger.series("slt/full/llc/mean") for f in (None, cross_entropy))
    assert derived == given
