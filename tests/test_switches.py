"""What a monitor writes beside its scalars, one switch each, and the HPARAMS page among it."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import FEW, Classifier, MemoryLogger, blobs, few_draws, loader_of, seed_all, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

import lightning_slt as slt

pytestmark = pytest.mark.usefixtures("elsewhere")
SWITCHES = ("pictures", "tables", "embeddings", "hparams", "layout")


def fit(*callbacks: Any, module: Any = None, logger: Any = None, **options: Any) -> Path:
    seed_all(0)
    logger = logger or TensorBoardLogger("logs")
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": logger, **options})
    trainer.fit(module or Classifier(), loader_of(blobs()))
    return Path(logger.log_dir)


def events_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"tensors": 0, "images": 0}).Reload()


def written(run: Path) -> set[str]:
    """Which of the switches' pages have anything on them."""
    events = events_of(run)
    tensors = events.Tags()["tensors"]
    pages = {
        "pictures": bool(events.Tags()["images"]),
        "tables": any(tag.endswith("/text_summary") for tag in tensors),
        "embeddings": (run / "projector_config.pbtxt").exists(),
        "hparams": (run / "slt_hparams").exists(),
        "layout": "custom_scalars__config__" in tensors,
    }
    return {name for name, there in pages.items() if there}


@pytest.mark.parametrize("off", [(), *((switch,) for switch in SWITCHES), SWITCHES])
def test_each_page_has_a_switch(off: tuple[str, ...]) -> None:
    kernel = slt.LossKernel(slt.Probe(blobs(8), name="held", labels=torch.arange(8) % 2))
    monitor = slt.SLTMonitor([slt.LLC(), kernel], sampling=FEW, at_steps=[4], **dict.fromkeys(off, False))
    run = fit(monitor, max_epochs=1)
    assert written(run) == set(SWITCHES) - set(off)
    assert [e.step for e in events_of(run).Scalars("slt/full/llc/mean")] == [0, 4]


@pytest.mark.filterwarnings("ignore:finder at step 0. no suggestion", "ignore:slt. the loss explains")
@pytest.mark.parametrize("on", [True, False])
def test_what_callbacks_draw_over_a_run_has_the_same_switches(on: bool) -> None:
    quiet, both = dict.fromkeys(SWITCHES, on), {"pictures": on, "tables": on}
    at: dict[str, Any] = {"every_n_train_steps": 2, "sampling": FEW}
    run = fit(
        slt.TrajectoryMonitor(probe=blobs(8), every_n_train_steps=2, **quiet),
        slt.RefinedLLCMonitor(data={str(k): blobs(8, seed=k) for k in range(3)}, name="parts", **at, **quiet),
        slt.CompressibilityMonitor(schemes=("noise",), tolerances=(0.02,), num_noise=2, **at, **quiet),
        slt.InfluenceMonitor(
            train=blobs(6), query=blobs(4), train_groups=[0, 0, 0, 1, 1, 1], query_groups=[0, 0, 1, 1], name="of",
            **at, **quiet,
        ),
        slt.StageMonitor(**both),
        slt.SamplerFinder(sampling=slt.SamplingConfig(num_chains=2, num_draws=4, batch_size=8), nbeta=10.0, **both),
    )  # fmt: skip
    tags = events_of(run).Tags()
    pictures, tables = tags["images"], [tag.removesuffix("/text_summary") for tag in tags["tensors"] if "/text" in tag]
    drawn = {
        "trajectory/full/trajectory/axes", "parts/groups", "slt/compressibility", "slt/full/compressibility/curves",
        "of/full/influence/over training", "stages/slt/full/llc/curve", "finder/sweep",
    }  # fmt: skip
    told = {
        "trajectory/full/trajectory/forms", "parts/groups", "slt/compressibility", "of/full/influence/events",
        "stages/slt/full/llc/table", "finder/sweep",
    }  # fmt: skip
    assert (drawn <= {*pictures}, told <= {*tables}) == (on, on)
    assert bool(pictures) == bool(tables) == on


MONITORS: dict[type[slt.SLTMonitor], dict[str, Any]] = {
    slt.SLTMonitor: {"estimators": [slt.LLC()]}, slt.LLCMonitor: {}, slt.RefinedLLCMonitor: {"components": "layers"},
    slt.LossKernelMonitor: {"probe": [0, 1]}, slt.InfluenceMonitor: {"train": [0, 1], "query": [2]},
    slt.SusceptibilityMonitor: {"components": "layers", "probes": [0, 1]}, slt.TrajectoryMonitor: {"probe": [0, 1]},
    slt.CompressibilityMonitor: {},
}  # fmt: skip


def test_every_monitor_is_known() -> None:
    public = [getattr(slt, name) for name in slt.__all__]
    assert {c for c in public if inspect.isclass(c) and issubclass(c, slt.SLTMonitor)} == MONITORS.keys()


@pytest.mark.parametrize("kind", MONITORS, ids=lambda kind: kind.__name__)
def test_every_monitor_has_the_switches(kind: type[slt.SLTMonitor]) -> None:
    for switch in SWITCHES:
        monitor = kind(**MONITORS[kind], **{switch: False})
        assert [getattr(monitor, name) for name in SWITCHES] == [name != switch for name in SWITCHES]


def row(folder: Path) -> tuple[dict[str, Any], dict[str, float]]:
    """Hyperparameters and final values of a row of the HPARAMS page."""
    events = events_of(folder)
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    given = metadata.parse_session_start_info_plugin_data(content).hparams
    plain = {key: getattr(value, value.WhichOneof("kind")) for key, value in given.items()}
    assert metadata.SESSION_END_INFO_TAG in events.summary_metadata
    assert metadata.EXPERIMENT_TAG not in events.summary_metadata  # it would set the columns of all other runs
    return plain, {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}


def test_settings_stand_against_final_values() -> None:
    layers = few_draws(name="layers", components="layers", sampler=slt.SGHMC(step_size=1e-3), nbeta=20.0)
    run = fit(few_draws(), layers, few_draws(name="silent_loss", hparams=False))
    found, values = row(run / "slt_hparams")
    readings = {name: slt.load_records(run, name=name)[-1] for name in ("slt", "layers")}
    assert found["slt/sampler"] == "SGLD"
    assert found["slt/sampler.step_size"] == pytest.approx(readings["slt"].settings["sampler.step_size"])
    assert found["slt/localization"] == pytest.approx(readings["slt"].settings["localization"])
    assert {key: found[f"layers/{key}"] for key in ("sampler", "nbeta", "num_chains", "num_draws", "num_burnin")} == {
        "sampler": "SGHMC", "nbeta": 20, "num_chains": 2, "num_draws": 4, "num_burnin": 2
    }  # fmt: skip
    assert found["layers/batch_size"] == 8
    assert not [key for key in found if "curvature" in key or key.startswith("silent")]
    expected = {
        f"final/{name}/{component}/llc/mean": by_key["llc"].mean
        for name, reading in readings.items()
        for component, by_key in reading.estimates.items()
    }
    loss = events_of(run).Scalars("train/loss")[-1].value
    assert values == pytest.approx({**expected, "final/train/loss": loss}, rel=1e-6)


class Own(Classifier):
    """Logs hyperparameters of its own."""

    def __init__(self, width: int = 3, extra: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()


def test_the_users_hyperparameters_stand_in_the_same_row() -> None:
    logger = TensorBoardLogger("logs", default_hp_metric=False)
    found, _ = row(fit(few_draws(), module=Own(7, {"a": 1, "b": [2]}), logger=logger) / "slt_hparams")
    assert (found["width"], found["extra/a"], found["extra/b"], found["slt/nbeta"]) == (7, 1, "[2]", 30)


def test_hyperparameters_with_metrics_are_left_alone() -> None:
    run = fit(few_draws(), module=Own())
    assert not (run / "slt_hparams").exists()
    assert metadata.EXPERIMENT_TAG in events_of(run).summary_metadata


def test_hyperparameters_logged_after_the_fit_are_left_alone() -> None:
    logger = TensorBoardLogger("logs")
    run = fit(few_draws(), logger=logger)
    logger.log_hyperparams({"width": 3}, {"accuracy": 0.5})
    logger.finalize("success")
    content = events_of(run).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    assert list(metadata.parse_session_start_info_plugin_data(content).hparams) == ["width"]
    assert row(run / "slt_hparams")


def test_a_resumed_run_has_one_row() -> None:
    def run(epochs: int, resume: str | None) -> Path:
        seed_all(0)
        logger = TensorBoardLogger("logs", name="", version="one")
        trainer = trainer_for(few_draws(), max_epochs=epochs, logger=logger)
        trainer.fit(Classifier(), loader_of(blobs()), ckpt_path=resume)
        trainer.save_checkpoint("last.ckpt")
        return Path(logger.log_dir) / "slt_hparams"

    run(1, None)
    _, values = row(run(2, "last.ckpt"))
    assert len(list(Path("logs/one/slt_hparams").iterdir())) == 1
    assert values["final/slt/full/llc/mean"] == pytest.approx(
        slt.load_records("logs")[-1].estimates["full"]["llc"].mean
    )


class Fails(Classifier):
    """Its loss cannot be evaluated at the end."""

    def per_sample_loss(self, batch: Any) -> Any:
        if self.trainer.global_step >= 8:
            raise ArithmeticError("no loss today")
        return slt.losses.classification(self, batch)


def test_a_last_reading_that_failed_has_no_value() -> None:
    with pytest.warns(UserWarning, match="no loss today"):
        run = fit(few_draws(every_n_train_steps=4), module=Fails())
    found, values = row(run / "slt_hparams")
    assert math.isnan(values["final/slt/full/llc/mean"])
    assert found["slt/nbeta"] == 30


def test_a_folder_that_cannot_be_made_is_told() -> None:
    logger = TensorBoardLogger("logs", name="", version="")
    Path("logs").mkdir()
    Path("logs/slt_hparams").write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="settings and final values were not written for TensorBoard: .*slt_hparams"):
        fit(few_draws(), logger=logger)


def test_nothing_is_written_without_tensorboard(tmp_path: Path) -> None:
    seed_all(0)
    trainer_for(few_draws(), max_epochs=1, logger=MemoryLogger()).fit(Classifier(), loader_of(blobs()))
    assert not list(tmp_path.rglob("slt_hparams"))


def test_callbacks_of_users_may_be_called_like_their_losses() -> None:
    class Named(pl.Callback):
        name = "train"

    _, values = row(fit(few_draws(), Named()) / "slt_hparams")
    assert "final/train/loss" in values
