"""Numbers that monitors derive from several readings, and stages of these."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, MemoryLogger, blobs, loader_of, seed_all, trainer_for

import lightning_slt as slt
from lightning_slt.analysis.comparison import cka

pytestmark = pytest.mark.usefixtures("elsewhere")

SETTINGS: dict[str, Any] = {
    "sampler": slt.SGLD(step_size=1e-3),
    "nbeta": 20.0,
    "localization": 30.0,
    "sampling": slt.SamplingConfig(num_chains=3, num_draws=30, num_burnin=10, batch_size=16),
    "every_n_train_steps": 2,
}
TAG = "slt/full/loss_kernel"


def kernels(**more: Any) -> slt.LossKernelMonitor:
    return slt.LossKernelMonitor(probe=slt.Probe(blobs(10, seed=4), name="held"), **SETTINGS, **more)


def fit(*callbacks: Any, lr: float = 0.05, epochs: int = 2, ckpt_path: str | None = None) -> Any:
    seed_all(0)
    trainer = trainer_for(*callbacks, max_epochs=epochs, logger=MemoryLogger())
    trainer.fit(Classifier(lr=lr), loader_of(blobs()), ckpt_path=ckpt_path)
    return trainer


def test_how_far_a_kernel_has_come() -> None:
    trainer = fit(kernels())
    factors = {r.step: r.estimates["full"]["loss_kernel"].factor.double() for r in slt.load_records(".")}
    rows = {step: row for step, row in trainer.logger.rows if f"{TAG}/distance" in row}
    steps = sorted(factors)
    assert sorted(rows) == steps[1:]
    for before, step in itertools.pairwise(steps):
        # the records hold factors in half precision
        assert rows[step][f"{TAG}/distance"] == pytest.approx(1 - cka(factors[0], factors[step]), abs=2e-3)
        assert rows[step][f"{TAG}/change"] == pytest.approx(1 - cka(factors[before], factors[step]), abs=2e-3)
        assert rows[step][f"{TAG}/distance_stderr"] > 0
    assert float(trainer.callback_metrics[f"{TAG}/change"]) == pytest.approx(rows[steps[-1]][f"{TAG}/change"])


def test_a_kernel_that_stays_has_not_moved() -> None:
    rows = [row for _, row in fit(kernels(), lr=0.0).logger.rows if f"{TAG}/distance" in row]
    assert all(abs(row[f"{TAG}/distance"]) < 1e-9 for row in rows)  # equal weights, equal seeds, equal draws


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create the checkpoint")
def test_a_resumed_run_measures_from_its_first_reading() -> None:
    fit(kernels(), ModelCheckpoint("saved", every_n_train_steps=4, save_top_k=-1))
    first = slt.load_records(".")[0].estimates["full"]["loss_kernel"].factor.double()
    trainer = fit(kernels(), ckpt_path=str(next(Path("saved").glob("*step=4.ckpt"))))
    last = slt.load_records(".")[-1].estimates["full"]["loss_kernel"].factor.double()
    assert float(trainer.callback_metrics[f"{TAG}/distance"]) == pytest.approx(1 - cka(first, last), abs=2e-3)


@pytest.mark.parametrize("order", [1, -1])
def test_stages_of_derived_numbers(order: int) -> None:
    """Whatever the order of callbacks, the monitor derives before stages ask."""
    stages = slt.StageMonitor([f"{TAG}/distance", "way/full/trajectory/speed"])
    way = slt.TrajectoryMonitor(probe=blobs(6, seed=3), every_n_train_steps=2, name="way")
    fit(*[stages, kernels(), way][::order])
    for tag in stages.quantities:
        series = stages._followers[tag].series
        assert series.steps.tolist() == [0, 2, 4, 6, 8]
        values = series.values.tolist()
        assert math.isnan(values[0])
        assert all(map(math.isfinite, values[1:]))
    assert bool((stages._followers[f"{TAG}/distance"].series.stderr[1:] > 0).all())
    assert torch.unique(stages._followers[f"{TAG}/distance"].series.values[1:]).numel() == 4
