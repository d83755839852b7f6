"""Peak memory of a reading, over that of training itself, each case in a process of its own.

    python -m benchmarks.peak_memory                       # a transformer of 11 million weights, Adam
    python -m benchmarks.peak_memory --width 1024 --layers 8 --cases one-chain
    python -m benchmarks.peak_memory --device cuda --precision bf16-mixed --offload

Peaks are growths over a process that has loaded everything but the network: of the resident set, on CUDA of torch's
allocator. "Copies" are the reading's peak less what training keeps between steps (weights, gradients, states of Adam),
in units of the weights in float32: what a reading needs of its own. Sequences are short, so that activations hardly
count; `projected` adds up the same copies for a network of `--project` weights, without and with `offload=True`, which
takes gradients and states away while a reading is made. The projection is a calculation, the rest is measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.hardware import hardware_name, slug
from benchmarks.chain_speed.worker import PeakMemory

VOCABULARY, LENGTH, BATCH, STEPS = 512, 32, 2, 4
CASES = {
    "one-chain": {"num_chains": 2, "chunk_size": 1, "chain_method": "sequential"},
    "four-together": {"num_chains": 4, "chunk_size": 4, "chain_method": "sequential"},
    "four-vectorized": {"num_chains": 4, "chunk_size": 4, "chain_method": "vectorized"},
}
"""Options of a reading; `one-chain` is the least that a reading can do with."""


class Language(pl.LightningModule):
    """A decoder of layers of width 4:1, with Adam."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        layer = nn.TransformerEncoderLayer(width, width // 64, 4 * width, dropout=0.0, batch_first=True)
        self.body = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.read = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1], device=tokens.device)
        return self.read(self.body(self.embed(tokens), mask=mask, is_causal=True))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean cross-entropy."""
        (tokens,) = batch
        return nn.functional.cross_entropy(self(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with two states a weight."""
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class Peaks(pl.Callback):
    """Peak of the training steps, and of what the monitor before it does after the last of them."""

    def __init__(self, memory: PeakMemory) -> None:
        self.memory, self.training, self.reading = memory, 0, 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        """Forget what was checked before the first step."""
        self.memory.forget()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        """Note how high it went; the monitor comes before this callback."""
        grown = self.memory.growth()
        if trainer.global_step < STEPS:
            self.training = max(self.training, grown)
        else:
            self.reading = grown


def measure(options: argparse.Namespace, case: str) -> dict[str, Any]:
    """Train a few steps with one reading at the last, and note the peaks."""
    warnings.simplefilter("ignore")
    pl.seed_everything(0, verbose=False)
    device = torch.device(options.device)
    torch.zeros(1, device=device)
    memory = PeakMemory(device)
    monitor = slt.LLCMonitor(
        offload=options.offload, sampler=slt.SGLD(step_size=1e-7), nbeta=10.0, localization=100.0, at_steps=[STEPS],
        sampling=slt.SamplingConfig(num_draws=4, num_burnin=0, batch_size=BATCH, **CASES[case]),
    )  # fmt: skip
    peaks = Peaks(memory)
    module = Language(options.width, options.layers)
    count = sum(p.numel() for p in module.parameters())
    trainer = pl.Trainer(
        max_steps=STEPS, max_epochs=-1, accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, logger=False,
        precision=options.precision, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[monitor, peaks], default_root_dir=tempfile.mkdtemp(),
    )  # fmt: skip
    tokens = torch.randint(0, VOCABULARY, (BATCH, LENGTH))
    trainer.fit(module, DataLoader(TensorDataset(tokens), batch_size=BATCH))
    weights, moved = 4 * count, options.offload and device.type == "cuda"
    kept = weights if moved else 4 * weights  # in float32; gradients and two states of Adam beside the weights
    copies = (peaks.reading - kept) / weights
    return {
        "case": case,
        "weights": count,
        "training": peaks.training,
        "reading": peaks.reading,
        "ratio": peaks.reading / peaks.training,
        "copies": copies,
        "projected": 4 * options.project * (4 + copies),
        "projected with offload": 4 * options.project * (1 + copies),
    }


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--offload", action="store_true", help="with offload=True; it moves nothing on the CPU")
    parser.add_argument("--project", type=int, default=10**9, help="weights of the network to project to")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("runs/peak_memory"))
    parser.add_argument("--only", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options, options.only)))
        return
    rows = []
    for case in options.cases:
        command = [sys.executable, "-m", "benchmarks.peak_memory", *sys.argv[1:], "--only", case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{rows[0]['weights'] / 1e6:.1f} million weights; {options.device}, {options.precision}")
    print("| reading | training GB | reading GB | ratio | copies of the weights | projected GB | with offload |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['case']} | {row['training'] / 1e9:.2f} | {row['reading'] / 1e9:.2f} | {row['ratio']:.2f} "
            f"| {row['copies']:.1f} | {row['projected'] / 1e9:.0f} | {row['projected with offload'] / 1e9:.0f} |"
        )
    options.out.mkdir(parents=True, exist_ok=True)
    offload = "-offload" if options.offload else ""
    file = options.out / f"peak_memory-{slug(hardware_name(options.device))}{offload}.json"
    file.write_text(json.dumps({"precision": options.precision, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
