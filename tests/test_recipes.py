"""The code of docs/recipes.md runs as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from models import FEW, Classifier, MemoryLogger, blobs, loader_of, seed_all, trainer_for
from torch import nn

import lightning_slt as slt

pytestmark = pytest.mark.usefixtures("elsewhere")

PAGE = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()


def run(containing: str) -> dict[str, Any]:
    """Run the one block that contains these words; give its names."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if containing in block]
    names = {"L": L, "slt": slt, "torch": torch, "nn": nn, "F": F}
    names |= {"EarlyStopping": EarlyStopping, "ModelCheckpoint": ModelCheckpoint}
    exec(compile(code, "recipes.md", "exec"), names)
    return names


def test_stop_and_save() -> None:
    names = run("EarlyStopping")
    monitor, stop, save = names["monitor"], names["stop"], names["save"]
    monitor.sampling = FEW
    seed_all(0)
    logger = MemoryLogger()
    trainer_for(stop, monitor, save, max_epochs=10, logger=logger).fit(Classifier(), loader_of(blobs()))
    assert logger.steps() == list(range(0, 41, 4))
    (best,) = save.best_k_models
    assert re.fullmatch(r"[49]--?\d+\.\d\d\.ckpt", Path(best).name)


def test_gan() -> None:
    names = run("class GAN")
    for monitor in names["monitors"]:
        monitor.sampling = FEW
    seed_all(0)
    logger = MemoryLogger()
    trainer = trainer_for(*names["monitors"], max_epochs=2, logger=logger)
    points = torch.utils.data.TensorDataset(torch.randn(32, 2))
    trainer.fit(names["GAN"](), loader_of(points))
    assert trainer.global_step == 16
    for tag in ("D/discriminator.*/llc/mean", "G/generator.*/llc/mean"):
        assert len(logger.steps(tag)) == 9
        assert all(value == value for _, value in logger.series(tag))


def test_padding() -> None:
    """Padding of any length changes no loss."""
    loss_fn = run("mask")["loss_fn"]
    embed = nn.Embedding(5, 5)
    batch = {"tokens": torch.tensor([[1, 2, 3], [4, 1, 0]]), "targets": torch.tensor([[2, 3, 4], [1, 0, 0]])}
    batch["mask"] = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
    padded = {key: F.pad(value, (0, 4)) for key, value in batch.items()}
    torch.testing.assert_close(loss_fn(embed, batch), loss_fn(embed, padded))
    alone = F.cross_entropy(embed(batch["tokens"][1, :2]), batch["targets"][1, :2])
    torch.testing.assert_close(loss_fn(embed, batch)[1], alone)


def test_a_number_of_ones_own() -> None:
    monitor = run("class Sharp(slt.AtAnchor)")["monitor"]
    monitor.sampling = FEW
    seed_all(0)
    trainer = trainer_for(monitor, max_epochs=1, logger=False)
    trainer.fit(Classifier(), loader_of(blobs()))
    assert float(trainer.callback_metrics["slt/full/sharpness/rise"]) != 0
    assert "slt/full/llc/mean" in trainer.callback_metrics
