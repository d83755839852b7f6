"""Trajectories as an estimator and as a monitor: what is kept, live, after a resume, and what is refused."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from models import BlobData, Classifier, MemoryLogger, blobs, footprint, loader_of, seed_all, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.trajectories import joint_trajectories, recorded_rows, speeds
from lightning_slt.estimators.trajectory import sketch

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]

SPEED = "trajectory/full/trajectory/speed"


def loader() -> Any:
    return loader_of(blobs())


def probe(count: int = 6) -> slt.Probe:
    return slt.Probe(blobs(count, seed=3), name="held out")


def uniform(batch: Any) -> Tensor:
    return torch.zeros(len(batch[0]), 3)


def monitor(**changes: Any) -> slt.TrajectoryMonitor:
    given = {"probe": probe(), "every_n_train_steps": 2, "references": {"uniform": uniform}, **changes}
    return slt.TrajectoryMonitor(**given)


def outputs(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(blobs(6, seed=3).tensors[0])


def fit(*callbacks: Any, module: pl.LightningModule | None = None, **options: Any) -> pl.Trainer:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    trainer.fit(module or Classifier(), loader())
    return trainer


# the estimator


def test_outputs_losses_and_weights() -> None:
    seed_all(0)
    module, held_out = Classifier(), probe()
    found = slt.estimate(
        module,
        blobs(),
        [
            slt.Trajectory(held_out, references={"uniform": uniform}),
            slt.Trajectory(held_out, space="losses", name="losses"),
            slt.Trajectory(space="weights", name="weights"),
        ],
    )
    logits = outputs(module)
    assert torch.equal(found["trajectory"].row, logits.flatten())
    assert found["trajectory"].norm == pytest.approx(float(logits.square().mean().sqrt()))
    assert found["trajectory"].distances == {"uniform": pytest.approx(found["trajectory"].norm)}
    assert torch.equal(found["trajectory"].references, torch.zeros(1, 18))
    losses = F.cross_entropy(logits, blobs(6, seed=3).tensors[1], reduction="none")
    assert torch.allclose(found["losses"].row, losses, atol=1e-6)
    assert torch.equal(found["weights"].row, torch.cat([p.detach().flatten() for p in module.parameters()]))
    words = found["trajectory"].made_of
    assert words[0] == "outputs"
    assert words[1].startswith("6 samples, digest ")
    assert words[2] == "18 numbers in float32"
    assert repr(found["trajectory"]).startswith("Position")
    assert "\n" not in repr(found["trajectory"])


def test_long_rows_are_sketched_and_say_so() -> None:
    seed_all(0)
    module = Classifier(nn.Linear(4, 3))
    estimator = slt.Trajectory(slt.Probe(blobs(400, seed=3)), size=64, dtype="float16", references={"uniform": uniform})
    found = slt.estimate(module, blobs(), [estimator])["trajectory"]
    assert found.row.shape == (64,)
    assert found.row.dtype == torch.float16
    assert found.made_of[2] == "1200 numbers sketched to 64 with seed 0 in float16"
    with torch.no_grad():
        whole = module(blobs(400, seed=3).tensors[0]).flatten()
    assert found.norm == pytest.approx(float(whole.square().mean().sqrt()), rel=1e-6)
    assert torch.equal(found.row, sketch(whole, 64).half())


def test_a_sketch_keeps_mean_squares() -> None:
    """Unbiased, with variance ``2 (‖a‖⁴ − Σ a⁴) / m``: mean and spread over 400 seeds."""
    row = torch.randn(3000, generator=torch.Generator().manual_seed(0)).double()
    size, seeds = 100, 400
    ratios = torch.stack([sketch(row, size, seed=s).square().mean() for s in range(seeds)]) / row.square().mean()
    variance = 2 * (1 - float((row**4).sum() / row.square().sum() ** 2)) / size
    assert abs(float(ratios.mean()) - 1) < 4 * math.sqrt(variance / seeds)
    assert float(ratios.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / seeds))


def test_a_sketch_is_linear_and_depends_on_its_seed_alone() -> None:
    a, b = torch.randn(2, 500, generator=torch.Generator().manual_seed(0)).double()
    assert torch.allclose(sketch(a - b, 50), sketch(a, 50) - sketch(b, 50), atol=1e-12)
    assert not torch.allclose(sketch(a, 50), sketch(a, 50, seed=1))
    assert torch.equal(sketch(a, 500), a)


@dataclass
class Output:
    logits: Tensor


class Shapes(nn.Module):
    """Returns its outputs in one way or another."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.linear, self.way = nn.Linear(4, 3), way

    def forward(self, x: Tensor) -> Any:
        logits = self.linear(x)
        ways = {
            "tensor": logits,
            "object": Output(logits),
            "dict": {"logits": logits},
            "tuple": (logits, 1),
            "mean": logits.mean(),
        }
        return ways[self.way]


def loss(module: nn.Module, batch: Any) -> Tensor:
    x = batch["x"] if isinstance(batch, Mapping) else batch[0] if isinstance(batch, list | tuple) else batch
    return module.linear(x).square().mean(1)


@pytest.mark.parametrize("way", ["tensor", "object", "dict"])
@pytest.mark.parametrize("kind", ["tuple", "dict", "tensor"])
def test_what_a_module_takes_and_returns(way: str, kind: str) -> None:
    x = blobs(6, seed=3).tensors[0]
    samples: Any = {"tuple": TensorDataset(x, x), "dict": [{"x": row} for row in x], "tensor": list(x)}[kind]
    module = Shapes(way)
    found = slt.estimate(module, samples, [slt.Trajectory(slt.Probe(samples))], loss_fn=loss)
    assert torch.equal(found["trajectory"].row, module.linear(x).detach().flatten())


def test_outputs_that_are_none_say_what_to_write() -> None:
    data = blobs(6)
    for way, words in (("tuple", "Shapes returns a tuple of 2"), ("mean", "6 samples, got a tensor of shape ()")):
        with pytest.raises(TypeError, match="def output_fn") as raised:
            slt.estimate(Shapes(way), data, [slt.Trajectory(probe())], loss_fn=loss)
        assert words in str(raised.value)

    class NoForward(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

    with pytest.raises(TypeError, match=r"NoForward cannot be called on a list of tensors(.|\n)*def output_fn"):
        slt.estimate(NoForward(), data, [slt.Trajectory(probe())], loss_fn=loss)
    own = slt.Trajectory(probe(), output_fn=lambda module, batch: module.linear(batch[0]))
    assert slt.estimate(NoForward(), data, [own], loss_fn=loss)["trajectory"].row.shape == (18,)


def test_a_reference_of_another_shape_is_refused() -> None:
    wrong = slt.Trajectory(probe(), references={"ridge": lambda batch: torch.zeros(len(batch[0]))})
    with pytest.raises(ValueError, match="reference 'ridge' gives 6 numbers for the probe, the network 18"):
        slt.estimate(Classifier(), blobs(), [wrong])


def test_rows_that_are_not_finite_are_no_rows() -> None:
    broken = slt.Trajectory(probe(), output_fn=lambda module, batch: module(batch[0]) / 0)
    with pytest.raises(ValueError, match="18 of 18 outputs are not finite"):
        slt.estimate(Classifier(), blobs(), [broken])
    large = slt.Trajectory(probe(), output_fn=lambda module, batch: 1e6 + module(batch[0]), dtype="float16")
    with pytest.raises(ValueError, match="needs dtype='float32'"):
        slt.estimate(Classifier(), blobs(), [large])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"space": "functions"}, "space must be"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"size": 0}, "size must be"),
        ({}, "needs samples"),
        ({"space": "weights", "references": {"a": uniform}}, "references are predictors"),
        ({"space": "weights", "output_fn": uniform}, "output_fn goes with"),
        ({"probe": [1], "references": {"a/b": uniform}}, "without '/'"),
        ({"probe": [1], "references": {"a": 3}}, "function of a batch"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        slt.Trajectory(**given)


def test_settings_of_the_monitor_are_checked() -> None:
    with pytest.raises(ValueError, match="axes must be"):
        monitor(axes=0)
    with pytest.raises(ValueError, match="smoothing must be"):
        monitor(smoothing=-1)
    with pytest.raises(TypeError, match="takes no probes=; did you mean probe="):
        monitor(probes=[])


# the monitor


def test_live(tmp_path: Path) -> None:
    mine = monitor(at_end=True)
    logger = TensorBoardLogger(tmp_path / "logs", name="", version="")
    trainer = fit(mine, logger=logger)
    readings = slt.load_records(tmp_path)
    assert [r.step for r in readings] == [0, 2, 4, 6, 8]
    module = trainer.lightning_module
    assert torch.equal(readings[-1].estimates["full"]["trajectory"].row, outputs(module).flatten())
    rows = recorded_rows(readings)
    assert torch.equal(rows.values, mine.rows.values)
    assert rows.made_of == mine.rows.made_of
    assert torch.equal(rows.references["uniform"], torch.zeros(18))
    events = EventAccumulator(str(tmp_path / "logs"), size_guidance={"images": 0}).Reload()
    speed = [(e.step, e.value) for e in events.Scalars(SPEED)]
    apart = [float((b - a).square().mean().sqrt()) for a, b in zip(rows.values, rows.values[1:], strict=False)]
    logs = [math.log(s + 1) for s in (0, 2, 4, 6, 8)]
    assert [step for step, _ in speed] == [2, 4, 6, 8]
    assert [v for _, v in speed] == pytest.approx([d / (b - a) for d, a, b in zip(apart, logs, logs[1:], strict=False)])
    assert float(trainer.callback_metrics[SPEED]) == pytest.approx(speed[-1][1])
    distance = [e.value for e in events.Scalars("trajectory/full/trajectory/distance_uniform")]
    assert distance == pytest.approx([float(row.square().mean().sqrt()) for row in rows.values])
    images = [e.step for e in events.Images("trajectory/full/trajectory/axes")]
    assert images == [4, 6, 8, 8]
    assert "trajectory/full/trajectory/forms/text_summary" in events.Tags()["tensors"]
    joint = joint_trajectories({"run": tmp_path})
    assert torch.equal(joint.points["run"], mine.joint.points["trajectory"])
    assert "uniform" in joint.references
    rows_by_step = slt.to_xarray(readings)["trajectory"].trajectory_row.sel(component="full")
    assert torch.equal(torch.tensor(rows_by_step.values), rows.values)


def test_training_is_bit_identical() -> None:
    alone = footprint(Classifier, loader, [])
    watched = footprint(Classifier, loader, [monitor(every_n_train_steps=1, name="slt")])
    assert alone.differences(watched) == []


def test_beside_other_monitors_and_by_its_tag() -> None:
    """The speed is there to be watched from the start, and other monitors' readings are not one's own."""
    other = slt.SLTMonitor([slt.Trajectory(probe(), name="trajectory")], every_n_train_steps=1, name="slt")
    save = ModelCheckpoint("saved", monitor=SPEED, every_n_train_steps=4, save_top_k=-1)
    mine = monitor()
    fit(other, mine, save)
    assert mine.rows.steps.tolist() == [0, 2, 4, 6, 8]
    assert float(save.best_model_score) in [pytest.approx(v) for v in speeds(mine.rows).tolist()]


def test_a_resumed_run_is_the_uninterrupted_one() -> None:
    """From a checkpoint in the middle of an epoch, into a folder of its own: the rows come from the state."""
    save = ModelCheckpoint("saved", every_n_train_steps=2, save_top_k=-1)
    whole, logger = monitor(), MemoryLogger()
    footprint(Classifier, loader, [whole, save], default_root_dir="whole")
    state = str(next(Path("saved").glob("*step=6.ckpt")))
    again = monitor()
    seed_all(7)
    trainer = trainer_for(again, max_epochs=2, logger=logger, default_root_dir="again")
    trainer.fit(Classifier(), loader(), ckpt_path=state, weights_only=True)
    assert torch.equal(again.rows.steps, whole.rows.steps)
    assert torch.equal(again.rows.values[:4], whole.rows.values[:4])
    assert again.rows.made_of == whole.rows.made_of
    assert logger.steps(SPEED) == [8]
    assert torch.equal(again.rows.references["uniform"], whole.rows.references["uniform"])
    restored = torch.load(state, weights_only=True)["callbacks"]["trajectory"]
    assert torch.equal(restored["rows"]["values"], whole.rows.values[:4])


def test_saved_checkpoints_make_the_same_trajectory() -> None:
    save = ModelCheckpoint("saved", every_n_train_steps=2, save_top_k=-1)
    live, later = monitor(), monitor()
    fit(live, save, default_root_dir="live")
    slt.analyze(Classifier(), "saved", [later], data=loader(), run_dir="later", progress=False)
    assert later.rows.steps.tolist() == [2, 4, 6, 8]
    assert torch.equal(later.rows.values, live.rows.values[1:])
    events = EventAccumulator("later").Reload()
    assert [e.step for e in events.Scalars(SPEED)] == [4, 6, 8]
    assert "trajectory/full/trajectory/forms/text_summary" in events.Tags()["tensors"]


def test_a_new_fit_begins_anew_and_another_probe_too() -> None:
    mine = monitor()
    fit(mine)
    fit(mine)
    assert len(mine.rows.steps) == 5
    save = ModelCheckpoint("saved", every_n_train_steps=4, save_top_k=-1)
    fit(monitor(), save)
    other = monitor(probe=probe(5))
    trainer = trainer_for(other, max_epochs=2)
    with pytest.warns(UserWarning, match="begins anew: its rows were outputs, 6 samples"):
        trainer.fit(Classifier(), loader(), ckpt_path=str(next(Path("saved").glob("*step=4.ckpt"))))
    assert 0 not in other.rows.steps.tolist()


def test_runs_on_two_probes_are_not_compared() -> None:
    fit(monitor(), default_root_dir="a")
    fit(monitor(probe=slt.Probe(blobs(6, seed=4))), default_root_dir="b")
    with pytest.raises(ValueError, match="cannot be stacked, give all of them one probe"):
        joint_trajectories({"a": "a", "b": "b"})
    with pytest.raises(ValueError, match="no reading holds full/other; there is trajectory of full"):
        recorded_rows("a", key="other")


def test_a_folder_of_two_runs_is_no_run() -> None:
    fit(monitor(), default_root_dir="both/a")
    fit(monitor(), module=Classifier(lr=1e-3), default_root_dir="both/b")
    with pytest.raises(ValueError, match="two readings of step 0 differ: these are records of several runs"):
        recorded_rows("both")
    fit(monitor(name="again"), default_root_dir="both/a")  # another monitor of the same weights
    assert len(recorded_rows("both/a").steps) == 5


def test_a_network_that_stands_still_is_no_error() -> None:
    mine = monitor()
    trainer = fit(mine, module=Classifier(lr=0.0))
    assert mine.joint is None
    assert float(trainer.callback_metrics[SPEED]) == 0.0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_command_line(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    quiet = [f"--trainer.{k}=false" for k in ("logger", "enable_checkpointing", "enable_progress_bar")]
    here = "--trainer.callbacks"
    plus = [
        f"{here}=TrajectoryMonitor",
        f"{here}.space=weights",
        f"{here}.every_n_train_steps=2",
        f"{here}.smoothing=2",
    ]
    args = ["fit", "--seed_everything=1", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", *quiet, *plus]
    cli = LightningCLI(Classifier, BlobData, args=args, save_config_callback=None)
    (mine,) = (c for c in cli.trainer.callbacks if isinstance(c, slt.TrajectoryMonitor))
    assert (mine.space, mine.smoothing) == ("weights", 2.0)
    assert mine.rows.values.shape == (3, 67)
    assert [r.step for r in slt.load_records(elsewhere)] == [0, 2, 4]


@pytest.mark.ddp
def test_processes_agree() -> None:
    from test_ddp import train

    first, second = train("two", monitor())
    assert math.isfinite(first["metrics"][SPEED])
    assert {k: v for k, v in first["metrics"].items() if k.startswith("trajectory/full")} == {
        k: v for k, v in second["metrics"].items() if k.startswith("trajectory/full")
    }
    assert [r.index for r in slt.load_records("two")] == list(range(len(slt.load_records("two"))))
