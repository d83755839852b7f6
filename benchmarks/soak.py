"""Ten thousand readings in one training run: whether they take as much time and memory at the end as at the start.

    python -m benchmarks.soak                       # ten thousand readings: twelve minutes of one core
    python -m benchmarks.soak --readings 400        # a smoke test
    python -m benchmarks.soak --without stages      # without the callback that follows the readings

A tiny network, two chains of two draws, a reading after every step, with TensorBoard, records and a StageMonitor. In
blocks of readings it notes processor time, resident memory and Python's objects, and afterwards the sizes of what lies
on disk and how long it takes to load. Slopes are of least squares over the blocks, the first fifth left out: code that
torch loads on first use, and the weights of the first readings, which are kept until a run has settled.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import tempfile
import time
import warnings
from pathlib import Path
from statistics import mean, median
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.hardware import describe, hardware_name, slug

RESULTS = Path(__file__).resolve().parent / "results"
SETTLING = 0.2
"""Share of the blocks that slopes leave out."""


class Tiny(pl.LightningModule):
    """A network of 26 weights that learns for a while and then stands still."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def per_sample_loss(self, batch: Any) -> torch.Tensor:
        """Cross-entropy of each sample."""
        x, y = batch
        return F.cross_entropy(self.net(x), y, reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Its mean."""
        loss = self.per_sample_loss(batch).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class Watch(pl.Callback):
    """Notes what the process holds and has spent after every block of readings."""

    def __init__(self, block: int) -> None:
        self.block, self.rows, self.heard = block, [], 0

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Start counting."""
        self.began = time.process_time()

    def hear(self, trainer: Any, reading: slt.Reading) -> None:
        """Count the readings; objects are counted outside the time."""
        self.heard += 1
        if self.heard % self.block:
            return
        seconds = (time.process_time() - self.began) / self.block
        gc.collect()
        self.rows.append(
            {"readings": self.heard, "ms": 1e3 * seconds, "rss_mb": resident() / 1e6, "objects": len(gc.get_objects())}
        )
        self.began = time.process_time()


def resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def slope(rows: list[dict[str, float]], what: str) -> dict[str, float]:
    """Change over a thousand readings by least squares, its standard error, and what it is a change of."""
    kept = rows[int(SETTLING * len(rows)) :]
    x, y = [row["readings"] / 1e3 for row in kept], [row[what] for row in kept]
    middle = mean(x)
    square = sum((a - middle) ** 2 for a in x)
    b = sum((a - middle) * c for a, c in zip(x, y, strict=True)) / square
    rest = [c - mean(y) - b * (a - middle) for a, c in zip(x, y, strict=True)]
    error = math.sqrt(sum(r * r for r in rest) / max(1, len(x) - 2) / square)
    return {"per_thousand": b, "stderr": error, "first": y[0], "last": y[-1], "median": median(y)}


def soak(folder: Path, *, readings: int, blocks: int, stages: bool) -> dict[str, Any]:
    """Train and read.

    Args:
        folder: Of logs and records.
        readings: How many.
        blocks: In how many blocks they are timed.
        stages: Whether a StageMonitor follows them.

    Returns:
        Blocks, slopes, and what lies on disk.
    """
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    data = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
    monitor = slt.LLCMonitor(
        sampler=slt.SGLD(step_size=1e-3), nbeta=20.0, localization=30.0, every_n_train_steps=1,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=2, num_burnin=0, batch_size=16),
    )  # fmt: skip
    watch = Watch(max(1, readings // blocks))
    followers = [slt.StageMonitor("slt/full/llc", pictures=False)] if stages else []
    trainer = pl.Trainer(
        max_steps=readings - 1, max_epochs=-1, accelerator="cpu", devices=1, callbacks=[monitor, *followers, watch],
        logger=TensorBoardLogger(folder, name="", version=""), enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1000,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(Tiny(), data)
    wall = time.perf_counter() - began
    checkpoint = folder / "end.ckpt"
    trainer.save_checkpoint(checkpoint)
    began = time.process_time()
    loaded = slt.load_records(folder)
    loading = time.process_time() - began
    assert [r.index for r in loaded] == list(range(readings))
    records = sum(file.stat().st_size for file in folder.rglob("*.jsonl"))
    events = sum(file.stat().st_size for file in folder.rglob("events.out.tfevents.*"))
    return {
        "readings": readings, "stages": stages, "wall_s": wall,
        "slopes": {what: slope(watch.rows, what) for what in ("ms", "rss_mb", "objects")},
        "bytes_per_reading": {"records": records / readings, "events": events / readings},
        "checkpoint_bytes": checkpoint.stat().st_size, "load_records_s": loading, "blocks": watch.rows,
    }  # fmt: skip


def report(found: dict[str, Any]) -> str:
    """The numbers in a table."""
    lines = ["| | first block | last | change over 1000 readings |", "|---|---|---|---|"]
    names = {"ms": "processor time of a reading, ms", "rss_mb": "resident memory, MB", "objects": "Python objects"}
    for what, name in names.items():
        s = found["slopes"][what]
        lines.append(f"| {name} | {s['first']:.4g} | {s['last']:.4g} | {s['per_thousand']:+.3g} ± {s['stderr']:.2g} |")
    size = found["bytes_per_reading"]
    lines += [
        "",
        f"{found['readings']} readings in {found['wall_s']:.0f} s; {size['records']:.0f} bytes of records and "
        f"{size['events']:.0f} of TensorBoard's a reading; a checkpoint of {found['checkpoint_bytes'] / 1e3:.0f} kB; "
        f"load_records in {found['load_records_s']:.2f} s",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print, and write complete runs to ``benchmarks/results``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=10_000)
    parser.add_argument("--blocks", type=int, default=50)
    parser.add_argument("--without", choices=["stages"], help="leave this callback out")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    machine = describe("cpu", 1)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder), readings=options.readings, blocks=options.blocks, stages=options.without != "stages")
    print(report(found))
    if options.readings == parser.get_default("readings") and options.without is None:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"soak-{slug(hardware_name('cpu'))}.json"
        path.write_text(json.dumps({"machine": machine, **found}, indent=1) + "\n")
        print(f"written to {path.relative_to(RESULTS.parents[1])}")


if __name__ == "__main__":
    main()
