"""Where the numbers go: loggers, event files, callback_metrics, progress bars, other callbacks."""

from __future__ import annotations

import csv
import io
import math
import re
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from models import Classifier, MemoryLogger, Validated, blobs, few_draws, loader_of, seed_all, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import lightning_slt as slt
from lightning_slt.losses import classification
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.reporting.tensorboard import write_layout

pytestmark = pytest.mark.usefixtures("elsewhere")

FIELDS = ["mean", "stderr", "lower", "upper", "rhat", "ok"]


def fit(*callbacks: Any, module: Any = None, val: bool = False, **options: Any) -> pl.Trainer:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    validation = loader_of(blobs(8), shuffle=False) if val else None
    trainer.fit(module or (Validated() if val else Classifier()), loader_of(blobs()), validation)
    return trainer


def test_every_logger_gets_every_reading(elsewhere: Path) -> None:
    loggers = [TensorBoardLogger("tb"), CSVLogger("csv"), MemoryLogger()]
    fit(few_draws(), logger=loggers)
    expected = loggers[2].series("slt/full/llc/mean")
    assert [step for step, _ in expected] == [0, 2, 4, 6, 8]

    events = EventAccumulator(loggers[0].log_dir).Reload()
    shown = [(e.step, e.value) for e in events.Scalars("slt/full/llc/mean")]
    assert shown == [(step, pytest.approx(value, rel=1e-6)) for step, value in expected]
    loss = [(e.step, e.value) for e in events.Scalars("train/loss")]
    assert [step for step, _ in loss] == list(range(8))

    with open(Path(loggers[1].log_dir) / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["slt/full/llc/mean"]]
    assert [(int(r["step"]), float(r["slt/full/llc/mean"])) for r in rows] == expected

    records = slt.load_records(loggers[0].log_dir)
    assert [(r.step, r.estimates["full"]["llc"].mean) for r in records] == expected


def test_tags(elsewhere: Path) -> None:
    monitors = [few_draws(name="a"), few_draws(name="b/c", components="layers", every_n_train_steps=8)]
    trainer = fit(*monitors)
    tags = {f"a/full/llc/{f}" for f in FIELDS} | {"a/overhead", "b/c/overhead"}
    tags |= {f"b/c/{layer}/llc/{f}" for layer in ("net.0", "net.2") for f in FIELDS}
    rows = trainer.logger.rows
    assert {k for _, row in rows for k in row if k[0] in "ab"} == tags
    assert {k for k in trainer.callback_metrics if k[0] in "ab"} == tags
    assert trainer.logger.steps("a/full/llc/mean") == [0, 2, 4, 6, 8]
    assert trainer.logger.steps("b/c/net.0/llc/mean") == [0, 8]
    assert {r.name for r in slt.load_records(elsewhere)} == {"a", "b/c"}
    assert len(slt.load_records(elsewhere, name="b/c")) == 2


def test_tensorboard_layout_and_settings() -> None:
    logger = TensorBoardLogger("tb")
    fit(few_draws(name="a", localization=12.5), few_draws(name="b"), logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    layout = layout_pb2.Layout.FromString(content)
    text = str(layout)
    for name in "ab":
        assert f'value: "{name}/full/llc/mean"' in text
        assert f'lower: "{name}/full/llc/lower"' in text
    assert {c.title.split()[0] for c in layout.category} >= {"a", "b"}
    tables = events.Tensors("a/settings/text_summary")
    assert [t.step for t in tables] == [0]
    table = tables[0].tensor_proto.string_val[0].decode()
    assert "| localization | 12.5 |" in table
    assert "| nbeta | 30 |" in table


def test_layout_of_refined_llcs() -> None:
    """All weights and the layers beside the loss; the bands of single components on a page of their own."""
    logger = TensorBoardLogger("tb")
    components = ("full", "blocks.0.h0", "blocks.0.h1", "blocks.1.h0")
    write_layout([logger], {"a.b": {component: {"llc": tuple(FIELDS)} for component in components}})
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    charts = {
        c.title: {chart.title: chart for chart in c.chart} for c in layout_pb2.Layout.FromString(content).category
    }
    assert list(charts["a.b"]) == ["llc of full, 90 % interval", "llc in blocks.0", "llc in blocks.1", "loss"]
    patterns = charts["a.b"]["llc in blocks.0"].multiline.tag
    tags = [f"{m}/blocks.{layer}.h{h}/llc/mean" for m in ("a.b", "axb") for layer in "01" for h in "01"]
    shown = {tag for tag in tags for pattern in patterns if re.match(pattern, tag)}
    assert shown == {"a.b/blocks.0.h0/llc/mean", "a.b/blocks.0.h1/llc/mean"}
    assert len(charts["a.b: each component"]) == 3


def test_the_chart_of_losses_shows_losses_alone() -> None:
    """TensorBoard matches each tag from its beginning; a loss kernel is none of the losses of training."""
    logger = TensorBoardLogger("tb")
    few = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=1, batch_size=8)
    kernel = slt.LossKernelMonitor(probe=blobs(8), name="a.b", sampling=few, every_n_train_steps=8)
    fit(few_draws(name="loss"), kernel, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    content = events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0]
    charts = [c for category in layout_pb2.Layout.FromString(content).category for c in category.chart]
    patterns = {pattern for chart in charts if chart.title == "loss" for pattern in chart.multiline.tag}
    (pattern,) = patterns
    shown = {tag for tag in events.Tags()["scalars"] if re.match(pattern, tag)}
    assert "a.b/full/loss_kernel/noise" in events.Tags()["scalars"]
    assert shown == {"train/loss"}


class Diary(pl.Callback):
    """callback_metrics as other callbacks see them, at every hook where they look."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []
        self.steps: list[int] = []

    def look(self, trainer: Any, *args: Any) -> None:
        if not trainer.sanity_checking:
            self.steps.append(trainer.global_step)
            self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    on_train_epoch_start = on_train_batch_end = on_validation_end = on_train_epoch_end = on_train_end = look
    on_train_batch_start = on_validation_start = on_validation_batch_end = on_save_checkpoint = look


def test_callback_metrics_hold_every_tag_at_all_times() -> None:
    diary = Diary()
    trainer = fit(few_draws(), diary, ModelCheckpoint("saved"), val=True)
    expected = {f"slt/full/llc/{f}" for f in FIELDS} | {"slt/overhead"}
    assert len(diary.seen) > 20
    assert all(expected <= seen.keys() for seen in diary.seen)
    last = trainer.logger.series("slt/full/llc/mean")[-1][1]
    assert float(trainer.callback_metrics["slt/full/llc/mean"]) == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("val", [False, True])
def test_model_checkpoint_monitors(val: bool) -> None:
    checkpoint = ModelCheckpoint(
        "saved",
        monitor="slt/full/llc/mean",
        mode="max",
        filename="{step}-{slt/full/llc/mean:.2f}",
        auto_insert_metric_name=False,
        every_n_train_steps=2,
        save_top_k=1,
    )
    trainer = fit(few_draws(), checkpoint, val=val)
    readings = [value for step, value in trainer.logger.series("slt/full/llc/mean") if step]
    assert float(checkpoint.best_model_score) == pytest.approx(max(readings), rel=1e-6)
    assert Path(checkpoint.best_model_path).exists()


@pytest.mark.parametrize("first", ["monitor", "stopping"])
def test_early_stopping_monitors(first: str) -> None:
    stopping = EarlyStopping("slt/full/llc/stderr", mode="min", stopping_threshold=1e9, check_on_train_epoch_end=True)
    callbacks = [few_draws(), stopping] if first == "monitor" else [stopping, few_draws()]
    trainer = fit(*callbacks, max_epochs=5)
    assert trainer.current_epoch == 1
    assert trainer.global_step == 4


class FailsFrom(Classifier):
    """Its loss cannot be evaluated for readings between two steps."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last

    def per_sample_loss(self, batch: Any) -> Any:
        if self.first <= self.trainer.global_step <= self.last:
            raise ArithmeticError("no loss today")
        return classification(self, batch)


def test_failed_reading(elsewhere: Path) -> None:
    """NaN to the loggers, the last finite value and ok = 0 in callback_metrics, the reason in the records."""
    diary = Diary()
    with pytest.warns(UserWarning, match="slt: the reading at step 4 failed: ArithmeticError: no loss today"):
        trainer = fit(few_draws(every_n_train_steps=4), diary, module=FailsFrom(4, 5))
    means = trainer.logger.series("slt/full/llc/mean")
    assert [step for step, _ in means] == [0, 4, 8]
    assert [math.isnan(value) for _, value in means] == [False, True, False]
    assert trainer.logger.series("slt/full/llc/ok")[1] == (4, 0.0)
    during = next(seen for step, seen in zip(diary.steps, diary.seen, strict=True) if step == 6)
    assert during["slt/full/llc/ok"] == 0.0
    assert during["slt/full/llc/mean"] == pytest.approx(means[0][1], rel=1e-6)
    readings = slt.load_records(elsewhere)
    assert [r.failure for r in readings] == [None, "ArithmeticError: no loss today", None]
    assert readings[1].estimates == {}


def test_failed_reading_raises_where_asked() -> None:
    with pytest.raises(ArithmeticError, match="no loss today"):
        fit(few_draws(on_failure="raise"), module=FailsFrom(4, 4))


def test_failure_before_training_raises() -> None:
    with pytest.raises(ArithmeticError, match="no loss today"):
        fit(few_draws(), module=FailsFrom(0, 0))


DIVERGING = {"sampler": slt.SGLD(step_size=1e30), "localization": 1.0, "nbeta": 1.0}


@pytest.mark.filterwarnings("ignore:full/llc. the loss was not finite in")
def test_dead_chains_are_missing_values(elsewhere: Path) -> None:
    trainer = fit(few_draws(every_n_train_steps=100, **DIVERGING))
    ((_, row),) = [r for r in trainer.logger.rows if "slt/full/llc/mean" in r[1]]
    assert row["slt/full/llc/ok"] == 0.0
    assert math.isnan(row["slt/full/llc/mean"])
    assert math.isnan(float(trainer.callback_metrics["slt/full/llc/mean"]))
    (reading,) = slt.load_records(elsewhere)
    estimate = reading.estimates["full"]["llc"]
    assert list(estimate.health.dead_chains) == [0, 1]
    assert torch.isnan(estimate.per_chain).all()


def test_dead_chains_raise_where_asked() -> None:
    with pytest.raises(slt.FailedReadingError, match=r"slt at step 0: full/llc: the loss was not finite in chain 0"):
        fit(few_draws(on_failure="raise", **DIVERGING))


def test_tqdm_bar(capsys: pytest.CaptureFixture[str]) -> None:
    class Bar(TQDMProgressBar):
        def on_train_end(self, *args: Any) -> None:
            self.metrics_shown = self.get_metrics(*args)
            super().on_train_end(*args)

    bar = Bar()
    before = len(bar_instances())
    fit(few_draws(), few_draws(name="two"), bar, enable_progress_bar=True)
    assert bar.metrics_shown.keys() >= {"LLC", "two LLC"}
    shown = capsys.readouterr().err
    assert "slt at step 2: 2 chains × 4 draws:" in shown
    assert re.search(r"/12 \[\d\d:\d\d<", shown), "no time left"
    assert len(bar_instances()) == before


def bar_instances() -> list[Any]:
    from tqdm import tqdm

    return list(getattr(tqdm, "_instances", []))


def test_rich_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Bar(RichProgressBar):
        def _add_task(self, total: Any, description: str, visible: bool = True) -> Any:
            seen.append(description)
            return super()._add_task(total, description, visible)

        def on_train_end(self, *args: Any) -> None:
            self.left = [task.description for task in self.progress.tasks]
            super().on_train_end(*args)

    bar = Bar(console_kwargs={"file": io.StringIO(), "force_terminal": True})
    fit(few_draws(), bar, enable_progress_bar=True)
    assert "slt at step 2: 2 chains × 4 draws" in seen
    assert not [text for text in bar.left if "slt" in text]


class Screen(io.StringIO):
    """What a terminal or a file is told."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_in_a_file_is_a_few_lines(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    """In a terminal an update overwrites the last one; in a file it is one more line."""
    screen = Screen(terminal)
    trainer = trainer_for(TQDMProgressBar(), enable_progress_bar=True)
    monkeypatch.setattr("sys.stderr", screen)
    with reading_progress(trainer, "slt at step 2", 50) as show:
        for _ in range(50):
            time.sleep(0.012)
            show(1)
    updates = screen.getvalue().count("slt at step 2")
    assert updates >= 4 if terminal else updates == 1


def test_a_rich_bar_moves_while_a_reading_goes_on() -> None:
    """Lightning's Rich bar is drawn when it is told to be; at the first reading it has not even begun."""

    class Reads(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            with reading_progress(trainer, "slt at step 0: 2 chains", 50) as show:
                for _ in range(50):
                    time.sleep(0.012)
                    show(1)

    screen = io.StringIO()
    bar = RichProgressBar(console_kwargs={"file": screen, "force_terminal": True, "width": 160})
    fit(Reads(), bar, enable_progress_bar=True, max_epochs=1)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    seen = {int(found) for found in re.findall(r"slt at step 0: 2 chains\D*(\d+)/50", text)}
    assert len([count for count in seen if 0 < count < 50]) >= 3
    assert re.search(r"/50 \d:\d\d:\d\d • \d:\d\d:\d\d", text), "no time left"
    assert "Epoch 0/0" in text


def test_no_bar_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    fit(few_draws())
    out, err = capsys.readouterr()
    assert "step 2" not in out + err


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_bars_after_a_failed_reading(bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = len(bar_instances())
    with pytest.warns(UserWarning, match="no loss today"):
        fit(few_draws(), bar(), module=FailsFrom(4, 4), enable_progress_bar=True)
    assert len(bar_instances()) == before


def test_diagnostics_send_all_of_health_to_the_loggers(elsewhere: Path) -> None:
    few = slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=2, batch_size=8)
    monitor = slt.LLCMonitor(
        diagnostics=True, control=True, every_n_train_steps=4, sampling=few, loss_fn=classification
    )
    trainer = fit(monitor)
    for step, row in ((s, r) for s, r in trainer.logger.rows if "slt/full/llc/mean" in r):
        [values] = [r.estimates["full"]["llc"].health.values for r in slt.load_records(elsewhere) if r.step == step]
        told = {k.removeprefix("slt/full/llc/health/"): v for k, v in row.items() if "/health/" in k}
        assert told == pytest.approx(dict(values), nan_ok=True)
        assert {"control", "curvature", "gradient_norm", "acceptance", "autocorrelation_time"} <= told.keys()
    assert "slt/full/llc/health/control" in trainer.callback_metrics
