"""Every sampler in ``estimate`` and in a live monitor."""

from typing import Any

import lightning.pytorch as pl
import oracles
import pytest
import torch
import zoo
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, blobs
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt

# step sizes at which all mix on precisions of 14 to 34, and the bias that each may have there
STEP_SIZES = {"rmsprop": 1e-3, "adam": 1e-4, "underdamped": 0.1, "hmc": 0.1}
BIASES = {"adam": 0.1, "sgnht": 0.06}


@pytest.mark.parametrize("name", zoo.SAMPLERS)
def test_in_estimate(name: str) -> None:
    sampler = zoo.SAMPLERS[name](step_size=STEP_SIZES.get(name, 4e-3))
    found = slt.estimate(
        oracles.Quadratic([0.5, 1.0, 1.5] * 10),
        TensorDataset(torch.zeros(8, 30)),
        [slt.LLC()],
        loss_fn=oracles.quadratic_loss,
        sampler=sampler,
        nbeta=20.0,
        localization=4.0,
        sampling=slt.SamplingConfig(num_chains=32, num_draws=200, num_burnin=300, thinning=4, batch_size=8),
        components="w",
    )["w"]["llc"]
    exact = slt.theory.quadratic_llc([0.5, 1.0, 1.5] * 10, nbeta=20.0, localization=4.0)
    assert found.stderr < 0.02 * exact
    assert abs(found.mean - exact) < 4 * found.stderr + BIASES.get(name, 0.03) * exact
    assert found.health.ok, str(found.health)


def test_in_monitors(tmp_path: Any) -> None:
    """All in one fit; settings go through records, tables and the logger."""
    few = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=8)
    monitors = [
        slt.LLCMonitor(
            sampler=make(step_size=1e-4), nbeta=10.0, localization=10.0, sampling=few, every_n_train_steps=2, name=name
        )
        for name, make in zoo.SAMPLERS.items()
    ]
    trainer = pl.Trainer(
        max_steps=4,
        accelerator="cpu",
        callbacks=monitors,
        logger=TensorBoardLogger(tmp_path),
        default_root_dir=tmp_path,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Classifier(), DataLoader(blobs(), batch_size=8))
    readings = slt.load_records(trainer.log_dir)
    assert sorted(reading.name for reading in readings) == sorted(3 * list(zoo.SAMPLERS))  # at 0, 2, 4
    for name in zoo.SAMPLERS:
        assert torch.isfinite(trainer.callback_metrics[f"{name}/full/llc/mean"])
