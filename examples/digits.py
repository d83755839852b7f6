"""The main job on real data: train a classifier of handwritten digits and watch its local learning coefficient live.

Run it with `make demo`, or `python examples/digits.py --help`. It trains on scikit-learn's digits (8×8 images, no
download), logs loss, accuracy and LLC to TensorBoard, prints a table, and draws the curves.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import lightning as L
import matplotlib
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import lightning_slt as slt

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class Digits(L.LightningModule):
    """A two-layer perceptron, 64-64-10; nothing in it knows of the monitor."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.net(x), y)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self.net(x)
        self.log("val/loss", F.cross_entropy(logits, y))
        self.log("val/accuracy", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


class Curves(L.Callback):
    """Keeps the validation curve for the picture."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.loss: list[float] = []
        self.accuracy: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.steps.append(trainer.global_step)
        self.loss.append(float(trainer.callback_metrics["val/loss"]))
        self.accuracy.append(float(trainer.callback_metrics["val/accuracy"]))


def digits() -> tuple[TensorDataset, TensorDataset]:
    """1437 digits to train on, 360 to validate."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16).float(), torch.tensor(labels))
    train, held_out = random_split(range(len(data)), [1437, 360], generator=torch.Generator().manual_seed(0))
    return TensorDataset(*data[train.indices]), TensorDataset(*data[held_out.indices])


def train(max_steps: int, readings: int, folder: Path, seed: int) -> tuple[Path, Curves, float]:
    """One training run with a live LLC; returns the folder of its logs."""
    L.seed_everything(seed, verbose=False)
    data, held_out = digits()
    logger, curves = TensorBoardLogger(folder, name="digits"), Curves()
    trainer = L.Trainer(
        max_steps=max_steps,
        callbacks=[slt.LLCMonitor(at_steps=slt.LogSteps(2, max_steps, readings)), curves],
        logger=logger,
        val_check_interval=5,
        log_every_n_steps=5,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    began = time.perf_counter()
    trainer.fit(Digits(), DataLoader(data, batch_size=64, shuffle=True), DataLoader(held_out, batch_size=360))
    return Path(logger.log_dir), curves, time.perf_counter() - began


def table(readings: list[slt.Reading]) -> str:
    """Step, loss at the anchor, LLC with its standard error, and what the health checks say."""
    rows = [f"{'step':>6} {'loss':>8} {'LLC':>16}   health"]
    for reading in readings:
        llc = reading.estimates["full"]["llc"]
        loss = llc.health.values["anchor_loss"]
        rows.append(f"{reading.step:>6} {loss:>8.4f} {llc.mean:>8.2f} ± {llc.stderr:<5.2f}   {llc.health}")
    return "\n".join(rows)


def draw(readings: list[slt.Reading], curves: Curves, path: Path) -> None:
    """LLC with its 90 % band above, validation loss and accuracy below; unreliable readings are hollow."""
    steps = [max(r.step, 1) for r in readings]
    llcs = [r.estimates["full"]["llc"] for r in readings]
    bands = [e.interval(0.9) for e in llcs]
    figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7, 5.5), layout="constrained")
    top.fill_between(steps, [b[0] for b in bands], [b[1] for b in bands], alpha=0.25, color="tab:blue", lw=0)
    top.plot(steps, [e.mean for e in llcs], color="tab:blue", lw=1.5)
    for ok, face in ((True, "tab:blue"), (False, "white")):
        points = [(s, e.mean) for s, e in zip(steps, llcs, strict=True) if e.health.ok == ok]
        if points:
            label = "reliable" if ok else "flagged by a health check"
            top.plot(*zip(*points, strict=True), "o", ms=5, mfc=face, mec="tab:blue", ls="", label=label)
    top.axhline(0, color="grey", lw=0.5)
    top.set(ylabel="local learning coefficient", title="Digits, MLP 64-64-10: LLC while it trains, 90 % interval")
    top.legend(frameon=False)
    bottom.plot(curves.steps, curves.loss, color="tab:orange", label="validation loss")
    bottom.set(xscale="log", xlabel="training step (the reading at step 0 is drawn at 1)", ylabel="loss in nats")
    right = bottom.twinx()
    right.plot(curves.steps, curves.accuracy, color="tab:green", label="validation accuracy")
    right.set(ylabel="accuracy", ylim=(0, 1.02))
    lines = [*bottom.get_lines(), *right.get_lines()]
    bottom.legend(lines, [str(line.get_label()) for line in lines], frameon=False, loc="center right")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train, tabulate, draw, and say where to look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=1500)
    parser.add_argument("--readings", type=int, default=24)
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    log_dir, curves, seconds = train(options.max_steps, options.readings, options.folder, options.seed)
    readings = slt.load_records(log_dir)
    picture = log_dir / "llc.png"
    draw(readings, curves, picture)
    settings = readings[0].settings
    print(f"\n{table(readings)}\n")
    print(f"{len(readings)} readings in {sum(r.duration for r in readings):.0f} of {seconds:.0f} s")
    print(
        f"settings found: nbeta = {settings['nbeta']:g}, localization = {settings['localization']:.3g}, "
        f"step size = {settings['sampler.step_size']:.2g}; directions of curvature below "
        f"{settings['resolution']:.2g} do not count"
    )
    print(f"picture:     {picture}\nTensorBoard: make tensorboard   (or: tensorboard --logdir {options.folder})")


if __name__ == "__main__":
    main()
