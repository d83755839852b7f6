"""Two and three processes on the CPU: readings are shared out, training is untouched, everyone agrees."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from models import (
    FEW,
    Classifier,
    SignalledOnSome,
    Watch,
    blobs,
    compare,
    copied,
    dropout_and_batchnorm,
    few_draws,
    loader_of,
    seed_all,
    signal_in_reading,
    trainer_for,
)

import lightning_slt as slt
from lightning_slt.calibration.sweep import Choice
from lightning_slt.losses import classification
from lightning_slt.reading import Reader

pytestmark = [pytest.mark.ddp, pytest.mark.usefixtures("elsewhere")]

THREE = slt.SamplingConfig(num_chains=3, num_draws=4, num_burnin=2, batch_size=8)


class Diary(pl.Callback):
    """Every process writes down what it has at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.watch = Path(folder), Watch()
        self.on_train_batch_start = self.watch.on_train_batch_start
        self.on_train_batch_end = self.watch.on_train_batch_end

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        optimizer = trainer.optimizers[0].state_dict()
        content = {
            "weights": copied(dict(pl_module.state_dict())),
            "optimizer": optimizer["state"],
            "random": torch.random.get_rng_state(),
            "watch": [self.watch.batches, self.watch.outputs, self.watch.gradients, self.watch.metrics],
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        }
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def train(folder: str, *callbacks: Any, make: Any = None, processes: int = 2, **options: Any) -> list[dict[str, Any]]:
    """Train two epochs on each process's part of the data; give what every process wrote down."""
    seed_all(3)
    make = make or (lambda: Classifier(dropout_and_batchnorm()))
    strategy = DDPStrategy(start_method="fork", process_group_backend="gloo", timeout=timedelta(seconds=15))
    parallel = {"strategy": strategy, "devices": processes} if processes > 1 else {}
    logger = CSVLogger(folder, name="logs")
    trainer = trainer_for(*callbacks, Diary(folder), max_epochs=2, logger=logger, **parallel, **options)
    trainer.fit(make(), loader_of(blobs(48)))
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def differences(a: Any, b: Any) -> list[str]:
    found: list[str] = []
    compare(a, b, "", found)
    return found


def per_chain(folder: str) -> list[torch.Tensor]:
    return [r.estimates["full"]["llc"].per_chain for r in slt.load_records(folder)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_bit_identical(accumulate: int) -> None:
    without = train("without", accumulate_grad_batches=accumulate)
    watched = train("watched", few_draws(sampling=THREE), accumulate_grad_batches=accumulate)
    for rank in range(2):
        trained = {k: v for k, v in watched[rank]["metrics"].items() if not k.startswith("slt/")}
        assert differences(without[rank], {**watched[rank], "metrics": trained}) == []
    assert differences(without[0]["watch"], without[1]["watch"]) != []


def test_every_process_has_the_same_metrics_and_one_logs() -> None:
    first, second = train("watched", few_draws(sampling=THREE))
    own = [{k: v for k, v in rank["metrics"].items() if k.startswith("slt/")} for rank in (first, second)]
    assert own[0] == own[1]
    assert len(own[0]) == 7
    records = slt.load_records("watched")
    assert [r.step for r in records] == [0, 2, 4, 6]
    (file,) = Path("watched").rglob("metrics.csv")
    rows = [line.split(",") for line in file.read_text().splitlines()]
    column = rows[0].index("slt/full/llc/mean")
    assert len([row for row in rows[1:] if row[column]]) == 4
    assert own[0]["slt/full/llc/mean"] == pytest.approx(records[-1].estimates["full"]["llc"].mean, rel=1e-6)


@pytest.mark.parametrize("processes", [2, 3])
def test_chains_do_not_depend_on_the_number_of_processes(processes: int) -> None:
    """A process may have two chains, one, or none; the values are those of a single process, bit by bit."""
    for sampling in (FEW, THREE):
        monitor = few_draws(sampling=sampling, every_n_train_steps=100, traces=True)
        folders = [f"{n}-{sampling.num_chains}" for n in (1, processes)]
        for folder, n in zip(folders, (1, processes), strict=True):
            train(folder, monitor, processes=n)
        alone, shared = (slt.load_records(folder)[0] for folder in folders)
        assert differences(alone.estimates["full"]["llc"].traces, shared.estimates["full"]["llc"].traces) == []
        assert differences(alone.estimates["full"]["llc"].per_chain, shared.estimates["full"]["llc"].per_chain) == []
        for key in ("nbeta", "localization", "sampler.step_size", "num_burnin", "curvature"):
            assert alone.settings[key] == shared.settings[key]


class Buffers(pl.Callback):
    """What each process reads with, beside what its module holds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Any] = []
        read = Reader.read

        def noted(reader: Reader, anchor: Any, *args: Any, **kwargs: Any) -> Any:
            self.seen.append([copied(anchor.module_loss.buffers), copied(dict(reader.module.named_buffers()))])
            return read(reader, anchor, *args, **kwargs)

        monkeypatch.setattr(Reader, "read", noted)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        torch.save(self.seen, f"buffers{trainer.global_rank}.pt")


def test_buffers_are_those_of_rank_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process normalizes by its own batches; training goes on with rank 0's statistics, and so do readings."""
    train("watched", few_draws(), Buffers(monkeypatch))
    first, second = (torch.load(f"buffers{rank}.pt", weights_only=True) for rank in range(2))
    for (used, own), (used_there, own_there) in list(zip(first, second, strict=True))[1:]:
        assert differences(used, used_there) == []
        assert differences(used, own) == []
        assert differences(own, own_there) != []


class FailsOnOne(Classifier):
    """Only one process cannot evaluate its loss, at one step."""

    def __init__(self, rank: int, step: int) -> None:
        super().__init__()
        self.rank, self.step = rank, step

    def per_sample_loss(self, batch: Any) -> Any:
        if (self.global_rank, self.trainer.global_step) == (self.rank, self.step):
            raise ArithmeticError("not here")
        return classification(self, batch)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.filterwarnings("ignore:slt. the reading at step 2 failed")
def test_an_error_in_one_process(rank: int) -> None:
    """All give up the reading together, none waits for the other, and training is what it would have been."""
    without = train("without", make=lambda: FailsOnOne(rank, 2))
    watched = train("watched", few_draws(), make=lambda: FailsOnOne(rank, 2))
    assert differences([r["weights"] for r in without], [r["weights"] for r in watched]) == []
    records = slt.load_records("watched")
    assert [r.step for r in records if r.failure] == [2]
    assert [r.step for r in records] == [0, 2, 4, 6]
    message = "ArithmeticError: not here" if rank == 0 else "PeerFailedError: another process failed"
    assert message in (records[1].failure or "")
    own = [{k: v for k, v in r["metrics"].items() if k.startswith("slt/")} for r in watched]
    assert own[0] == own[1]


@pytest.mark.parametrize(("signalled", "failing"), [([0], None), ([1], None), ([0, 1], None), ([0], 1), ([1], 0)])
def test_a_signal_to_some_processes(
    signalled: Sequence[int], failing: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All give the reading up, also where one has failed in it, and go on as if none had been due."""
    signal_in_reading(monkeypatch, SignalledOnSome, step=2)
    without = train("without", make=Classifier)
    watched = train("watched", few_draws(), make=partial(SignalledOnSome, signalled, failing))
    assert differences([r["weights"] for r in without], [r["weights"] for r in watched]) == []
    assert [(r.step, r.failure) for r in slt.load_records("watched")] == [(0, None), (4, None), (6, None)]
    own = [{k: v for k, v in r["metrics"].items() if k.startswith("slt/")} for r in watched]
    assert own[0] == own[1]


def test_an_error_before_training_ends_all_processes() -> None:
    with pytest.raises(Exception, match=r"not here|another process failed"):
        train("watched", few_draws(), make=lambda: FailsOnOne(1, 0))


class Dawdle(pl.Callback):
    """Training that can pay for readings."""

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        time.sleep(0.1 if trainer.global_rank == 0 else 0.02)


def test_schedules_by_the_clock_agree() -> None:
    """Ranks measure different times and costs; rank 0 decides for all."""
    options = {"every_n_train_steps": None, "train_time_interval": timedelta(milliseconds=40), "max_overhead": 1.0}
    first, second = train("watched", few_draws(**options, at_end=True), Dawdle())
    assert first["metrics"]["slt/overhead"] == second["metrics"]["slt/overhead"]
    assert len(slt.load_records("watched")) >= 1


def test_checkpoints_and_resume() -> None:
    saving = ModelCheckpoint("saved", every_n_train_steps=2, save_top_k=-1)
    train("watched", few_draws(every_n_train_steps=None, at_checkpoints=True), saving)
    records = slt.load_records("watched")
    assert [r.step for r in records] == [0, 2, 4, 6]
    state = torch.load(next(Path("saved").glob("*step=4*")), weights_only=True)["callbacks"]["slt"]
    assert (state["index"], state["last_step"]) == (2, 2)


@pytest.mark.parametrize("every", [{"every_n_train_steps": 2}, {"train_time_interval": timedelta(microseconds=1)}])
def test_scores_of_checkpoints(every: dict[str, Any]) -> None:
    """Every process reads where rank 0's clock says that a checkpoint is due."""
    tag = "slt/full/llc/mean"
    saving = ModelCheckpoint("saved", monitor=tag, save_top_k=-1, auto_insert_metric_name=False, **every)
    train("watched", few_draws(every_n_train_steps=None, at_checkpoints=True), saving)
    means = {r.global_step: r.estimates["full"]["llc"].mean for r in slt.load_records("watched")}
    states = [torch.load(file, weights_only=True) for file in Path("saved").glob("*.ckpt")]
    last = max(states, key=lambda state: state["global_step"])
    key = next(name for name in last["callbacks"] if name.startswith("ModelCheckpoint"))
    scores = last["callbacks"][key]["best_k_models"]
    assert len(scores) == len(means) - 1 == (3 if "every_n_train_steps" in every else 6)
    for file, score in scores.items():
        step = torch.load(file, weights_only=True)["global_step"]
        assert float(score) == pytest.approx(means[step], rel=1e-6)


def test_a_renewed_run_and_a_search_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes outgrow their settings together, search together, and train as they would without."""
    monkeypatch.setattr("lightning_slt.reading.OUTGROWN", 1e-9)
    anyhow = lambda trials: Choice(trial=trials[1], reason="for the test")  # noqa: E731
    monkeypatch.setattr("lightning_slt.finding.searches.choose", anyhow)
    without = train("without")
    renewed = train("renewed", slt.LLCMonitor(every_n_train_steps=2, sampling=THREE))
    finder = slt.SamplerFinder(at_step=3, nbeta=30.0, sampling=THREE)
    searched = train("searched", slt.LLCMonitor(every_n_train_steps=2, sampling=THREE), finder)
    for both in (renewed, searched):
        own = [{k: v for k, v in rank["metrics"].items() if k.startswith("slt/")} for rank in both]
        assert own[0] == own[1]
        for rank in range(2):
            trained = {k: v for k, v in both[rank]["metrics"].items() if not k.startswith("slt/")}
            assert differences(without[rank], {**both[rank], "metrics": trained}) == []
    for folder in ("renewed", "searched"):
        assert any(r.revises is not None for r in slt.load_records(folder, revised=True))
    assert (
        [r.step for r in slt.load_records("renewed")] == [0, 2, 4, 6] == [r.step for r in slt.load_records("searched")]
    )


SCRIPT = """
import sys
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import lightning_slt as slt


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 3)

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Weights(L.Callback):
    def on_train_end(self, trainer, module):
        torch.save(module.state_dict(), f"{folder}/weights{trainer.global_rank}.pt")


strategy, folder, watched = sys.argv[1:]
if __name__ == "__main__":
    L.seed_everything(0, verbose=False)
    x = torch.randn(48, 4)
    data = DataLoader(TensorDataset(x, x.argmax(1).clamp(max=2)), batch_size=8, shuffle=True)
    sampling = slt.SamplingConfig(num_chains=3, num_draws=4, num_burnin=2, batch_size=8)
    monitors = [slt.LLCMonitor(sampling=sampling, every_n_train_steps=2)] if watched == "watched" else []
    L.Trainer(
        max_epochs=2, accelerator="cpu", strategy=strategy, devices=2, callbacks=[*monitors, Weights()], logger=False,
        default_root_dir=folder, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(Net(), data)
"""


def launched(strategy: str, folder: str, watched: str) -> dict[str, Any]:
    Path("script.py").write_text(SCRIPT)
    Path(folder).mkdir()
    command = [sys.executable, "script.py", strategy, folder, watched]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    weights = [torch.load(f"{folder}/weights{rank}.pt") for rank in range(2)]
    assert differences(*weights) == []
    return weights[0]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_processes_may_be_started_in_any_way(strategy: str) -> None:
    """Scripts that start themselves again and spawned processes read what forked ones do, and train as without."""
    plain = launched(strategy, "plain", "plain")
    assert differences(plain, launched(strategy, "watched", "watched")) == []
    assert differences(plain, launched("ddp_fork", "forked", "watched")) == []
    read, expected = per_chain("watched"), per_chain("forked")
    assert len(read) == 4
    assert differences(read, expected) == []
