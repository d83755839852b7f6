"""StageMonitor in real fits of a network whose only weight counts the steps, so that every curve is known."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from models import FEW, Classifier, MemoryLogger, blobs, few_draws, footprint, loader_of, trainer_for
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.stages import Mark
from lightning_slt.callbacks.pacing import Pace
from lightning_slt.results import Result
from lightning_slt.types import Health

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

QUANTITY, STEPS = "slt/full/stairs/value", 300
CENTRES, SCALE = (1.6, 3.4, 5.2), 0.15
PLATEAUS = (math.exp(2.5), math.exp(4.3))


class Counter(pl.LightningModule):
    """Its weight grows by one a step."""

    def __init__(self) -> None:
        super().__init__()
        self.count = nn.Parameter(torch.zeros(1))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return -self.count.sum() + 0 * batch[0].sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@dataclass(frozen=True, kw_only=True)
class Height(Result):
    value: float


@dataclass(frozen=True)
class Stairs(slt.AtAnchor):
    """Three steps of a stair in log t; the loss falls on the same stair, or stands still."""

    name: str = "stairs"
    still: bool = False
    fails_at: int = -1
    fields = ("value",)

    def measure(self, view: slt.View) -> Height:
        step = float(view.weights["count"])
        if step == self.fails_at:
            raise ZeroDivisionError("on purpose")
        x = math.log(step) if step else -9.0
        value = sum(1 / (1 + math.exp(-(x - centre) / SCALE)) for centre in CENTRES)
        wobble = 0.01 * math.sin(37 * step)
        loss = {"anchor_loss": (3 - (0 if self.still else value)) + 0.001 * math.sin(91 * step)}
        return Height(value=value + wobble, health=Health(ok=True, values=loss))


def fit(*callbacks: Any, stairs: Stairs | None = None, steps: int = STEPS, **options: Any) -> pl.Trainer:
    monitor = slt.SLTMonitor([stairs or Stairs()], at_steps=slt.LogSteps(2, STEPS, 30))
    data = loader_of(TensorDataset(torch.zeros(options.pop("samples", STEPS), 1)), batch_size=1, shuffle=False)
    ckpt = options.pop("ckpt_path", None)
    trainer = trainer_for(monitor, *callbacks, max_steps=steps, **{"logger": MemoryLogger(), **options})
    trainer.fit(Counter(), data, ckpt_path=ckpt)
    return trainer


@pytest.mark.parametrize("mark", ["middle", "end"])
def test_finds_both_plateaus_live_logs_and_calls(mark: Mark) -> None:
    heard: list[Any] = []
    stages = slt.StageMonitor(QUANTITY, mark=mark, on_boundary=lambda *args: heard.append(args))
    trainer = fit(stages)
    boundaries = [event for _, _, event in heard]
    assert [event.number for event in boundaries] == [1, 2]
    for event, truth in zip(boundaries, PLATEAUS, strict=True):
        assert event.step == (event.latest if mark == "end" else math.sqrt(event.earliest * event.latest))
        assert abs(math.log(event.earliest * event.latest) / 2 - math.log(truth)) < 0.35
        assert truth < event.announced <= STEPS
        assert 1 <= event.delay <= 8
    assert all(args[:2] == (trainer, trainer.lightning_module) for args in heard)
    tag = f"stages/{QUANTITY}"
    assert trainer.logger.series(f"{tag}/boundary") == [(e.announced, pytest.approx(e.step)) for e in boundaries]
    assert float(trainer.callback_metrics[f"{tag}/boundaries"]) == 2
    report = stages.report()
    assert [stage.name for stage in report.stages] == ["A1", "A2", "A3"]
    assert all(stage.change == pytest.approx(1, abs=0.15) for stage in report.stages)
    assert "announced at step" in stages.table()
    with pytest.raises(ValueError, match="is not watched; this callback watches slt/full/stairs/value"):
        stages.report("slt/full/llc")


def test_tables_and_pictures_reach_tensorboard(elsewhere: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pytest.importorskip("matplotlib", reason="pictures need it")
    fit(slt.StageMonitor(QUANTITY), logger=TensorBoardLogger(elsewhere, name="", version=""))
    events = EventAccumulator(str(elsewhere)).Reload()
    tag = f"stages/{QUANTITY}"
    assert len(events.Images(f"{tag}/curve")) >= 3
    text = events.Tensors(f"{tag}/table/text_summary")[-1].tensor_proto.string_val[0].decode()
    assert "| A3 |" in text


@pytest.mark.parametrize("cut", [0.5, 0.8])
def test_resumes_with_the_same_boundaries(cut: float) -> None:
    """Saved right at a reading, where the monitor makes no further one when it resumes."""
    steps = list(slt.LogSteps(2, STEPS, 30))
    at = steps[int(cut * len(steps))]
    whole = slt.StageMonitor(QUANTITY)
    fit(whole, ModelCheckpoint("saved", every_n_train_steps=at, save_top_k=-1))
    resumed = slt.StageMonitor(QUANTITY)
    fit(resumed, ckpt_path=str(next(Path("saved").glob(f"*step={at}.ckpt"))))
    assert repr(resumed.state_dict()) == repr(whole.state_dict())  # NaN differs from itself
    assert len(resumed.report().announced) == 2


def test_checkpoints_at_boundaries_and_stopping() -> None:
    saves, stops = slt.StageCheckpoint("stages"), slt.StageStopping(after=2)
    stages = slt.StageMonitor(QUANTITY)
    trainer = fit(stages, saves, stops, enable_checkpointing=False)
    first, second = stages.report().announced
    assert trainer.global_step == second.step < STEPS
    assert [path.name for path in saves.saved] == [
        f"slt.full.stairs.value-boundary={a.boundary.step:.0f}-step={a.step}.ckpt" for a in (first, second)
    ]
    state = torch.load(saves.saved[0], weights_only=True)
    assert state["global_step"] == first.step == float(state["state_dict"]["count"])
    resumed = slt.StageMonitor(QUANTITY)
    again = fit(resumed, slt.StageStopping(after=2), ckpt_path=str(saves.saved[0]))
    assert again.global_step == second.step
    assert resumed.report().announced == [first, second]
    with pytest.raises(ValueError, match="whole number from 1"):
        slt.StageStopping(after=0)


def test_alert_where_the_loss_stands_still() -> None:
    heard: list[Any] = []
    with pytest.warns(UserWarning, match=r"has changed by \+.* while the loss has not"):
        fit(slt.StageMonitor(QUANTITY, on_alert=lambda *args: heard.append(args[2])), stairs=Stairs(still=True))
    assert heard[0].quantity == QUANTITY
    assert heard[0].alert.change > 0
    quiet: list[Any] = []
    fit(slt.StageMonitor(QUANTITY, on_alert=lambda *args: quiet.append(args)))
    assert quiet == []


def test_a_failed_reading_is_a_gap() -> None:
    missing = list(slt.LogSteps(2, STEPS, 30))[12]
    stages = slt.StageMonitor(QUANTITY)
    with pytest.warns(UserWarning, match="on purpose"):
        fit(stages, stairs=Stairs(fails_at=missing))
    assert len(stages.report().announced) == 2


def test_adaptive_makes_no_more_readings_and_more_where_it_moves() -> None:
    plain = fit(slt.StageMonitor(QUANTITY)).logger.steps("slt/full/stairs/value")
    stages = slt.StageMonitor(QUANTITY, adaptive=True)
    steps = fit(stages).logger.steps("slt/full/stairs/value")
    assert len(steps) <= len(plain)
    assert set(steps) - set(plain), "extra readings"
    assert set(plain) - set(steps), "readings left out"
    assert len(stages.report().boundaries) == 2


def test_pace() -> None:
    pace = Pace(moving=False, before=8, last=10)
    assert [pace.decide(step, due=True) for step in (12, 12, 14)] == [False, False, True]
    pace.heard(14, moving=True)
    assert pace.credit == 1
    assert [step for step in range(15, 20) if pace.decide(step, due=False)] == [17]
    pace.heard(17, moving=True)
    assert pace.credit == 0
    assert not any(pace.decide(step, due=False) for step in range(18, 40))


def test_training_is_bit_identical_and_monitors_alone_as_before() -> None:
    def loader() -> Any:
        return loader_of(blobs())

    alone = footprint(Classifier, loader, [])
    for adaptive in (False, True):
        stages = slt.StageMonitor(adaptive=adaptive, name="slt/stages")
        watched = footprint(Classifier, loader, [few_draws(), stages])
        assert alone.differences(watched) == []
        assert len(watched.monitor_rows) >= 3


def test_reads_an_llc_with_its_error_its_chains_and_the_loss() -> None:
    stages = slt.StageMonitor("slt/full/llc")
    trainer = trainer_for(few_draws(every_n_train_steps=1), stages, max_epochs=1, logger=MemoryLogger())
    trainer.fit(Classifier(), loader_of(blobs()))
    series = stages._followers["slt/full/llc"].series
    readings = slt.load_records(".")
    assert series.values.tolist() == [r.estimates["full"]["llc"].mean for r in readings]
    assert series.stderr.tolist() == [r.estimates["full"]["llc"].stderr for r in readings]
    assert series.loss.tolist() == [r.estimates["full"]["llc"].health.values["anchor_loss"] for r in readings]
    assert series.per_chain.shape == (5, FEW.num_chains)
    assert "Only 4 readings" in stages.table()


def test_several_quantities_and_wrong_ones() -> None:
    both = slt.StageMonitor([QUANTITY, "slt/full/stairs/ok"])
    fit(both)
    assert len(both.report().announced) == 2
    assert both.report("slt/full/stairs/ok").boundaries == []
    with pytest.raises(MisconfigurationException, match="the nearest that are: slt/full/stairs/value"):
        fit(slt.StageMonitor("slt/full/stairs/valu"), steps=2)
    with pytest.raises(ValueError, match="several different ones"):
        slt.StageMonitor(["a/b", "a/b"])
    with pytest.raises((MisconfigurationException, RuntimeError), match=r"stages|StageMonitor"):
        fit(slt.StageMonitor(QUANTITY), slt.StageMonitor(QUANTITY), steps=2)
    with pytest.raises(TypeError, match="StageMonitor takes no band_width=; did you mean bandwidth="):
        slt.StageMonitor(QUANTITY, band_width=0.2)  # type: ignore[call-arg]


class Notes(pl.Callback):
    """Every process writes down what its StageMonitor knows."""

    def __init__(self, stages: slt.StageMonitor) -> None:
        self.stages = stages

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        Path(f"rank{trainer.global_rank}").write_text(f"{trainer.global_step} {self.stages.state_dict()!r}")


@pytest.mark.ddp
def test_all_processes_decide_alike() -> None:
    alone, stages = slt.StageMonitor(QUANTITY, adaptive=True), slt.StageMonitor(QUANTITY, adaptive=True)
    fit(alone, slt.StageStopping(after=2), Notes(alone))
    expected = Path("rank0").read_text()
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=60))
    saves = slt.StageCheckpoint("stages")
    fit(stages, saves, slt.StageStopping(after=2), Notes(stages), strategy=strategy, devices=2, samples=2 * STEPS)
    assert Path("rank0").read_text() == Path("rank1").read_text() == expected
    assert len(list(Path("stages").glob("*.ckpt"))) == 2


CONFIG = """
trainer:
  accelerator: cpu
  callbacks:
    - class_path: lightning_slt.LLCMonitor
    - class_path: lightning_slt.StageMonitor
      init_args: {quantity: [slt/full/llc, slt/full/llc/rhat], adaptive: true, bandwidth: 0.2, on_boundary: math.fsum}
    - class_path: lightning_slt.StageCheckpoint
      init_args: {dirpath: saved, quantity: slt/full/llc}
    - class_path: lightning_slt.StageStopping
      init_args: {after: 3}
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_from_yaml(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("config.yaml").write_text(CONFIG)
    cli = LightningCLI(
        Classifier, args=["--seed_everything=1", "--config=config.yaml"], run=False, save_config_callback=None
    )
    stages, saves, stops = (
        next(c for c in cli.trainer.callbacks if isinstance(c, kind))
        for kind in (slt.StageMonitor, slt.StageCheckpoint, slt.StageStopping)
    )
    assert stages.quantities == ("slt/full/llc", "slt/full/llc/rhat")
    assert (stages.adaptive, stages.bandwidth, stages.on_boundary) == (True, 0.2, math.fsum)
    assert (str(saves.dirpath), saves.quantity, stops.after) == ("saved", "slt/full/llc", 3)
