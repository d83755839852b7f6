"""Compressibility (arXiv:2510.12077): does λ̂ say how many bits a network needs, and more of it than the loss says?

A perceptron learns eight sparse parities, the frequent ones first. `python examples/compressibility.py` trains it with
a CompressibilityMonitor: at 16 steps it reads how far the weights can be compressed before the loss rises by a
tolerance, and λ̂ of the same weights, at a large nβ and, for comparison, at a small one. Then it says what came out.
`--seeds 0 1 2` takes further seeds. `--scale paper --models FOLDER --tokens FILE` does the same with checkpoints of a
language model on disk, one sub-folder each as transformers saves them, named by their step (`step1000`), on tokens
`[sequence, position]` in a file of torch or numpy. JSON, TensorBoard's logs and a picture go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.compression import Correlated, Table, correlate, table_of, values_of
from lightning_slt.records import Reading

NUMBERS = ("bits_0.02", "bits_0.05", "bits_0.1", "rank_0.02", "sigma_0.02", "kept_0.02")
"""Critical numbers that the table shows."""

Criterion = tuple[str, float, float]
"""What, its value, and the limit that it has to reach."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of the tasks, the network, training and the readings."""

    tasks: int = 8
    bits: int = 12
    parity: int = 2
    samples: int = 4096
    width: int = 96
    steps: int = 5000
    batch: int = 128
    learning_rate: float = 2e-3
    first: int = 60
    readings: int = 16
    evaluated: int = 2048
    nbeta: float = 1000.0
    localization: float = 10.0
    step_size: float = 2e-4
    chains: int = 6
    burnin: int = 200
    draws: int = 150
    minibatch: int = 512
    low_nbeta: float = 100.0


def sparse_parity(scale: Scale, seed: int) -> TensorDataset:
    """Which task (one-hot, Zipf-distributed) and bits ±1 ``[sample, tasks + bits]``; the parity of the task's bits."""
    g = torch.Generator().manual_seed(1000 + seed)
    subsets = torch.stack([torch.randperm(scale.bits, generator=g)[: scale.parity] for _ in range(scale.tasks)])
    task = torch.multinomial(1 / torch.arange(1.0, scale.tasks + 1), scale.samples, replacement=True, generator=g)
    bits = torch.randint(0, 2, (scale.samples, scale.bits), generator=g)
    parity = bits.gather(1, subsets[task]).sum(1) % 2
    return TensorDataset(torch.cat([F.one_hot(task, scale.tasks), 2 * bits - 1], 1).float(), parity.float())


class Parities(L.LightningModule):
    """A perceptron with two hidden layers and one logit."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.scale, width = scale, scale.width
        self.net = nn.Sequential(
            nn.Linear(scale.tasks + scale.bits, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, 1),
        )  # fmt: skip
        for layer in self.net[::2]:  # torch's own start is smaller, and needs few bits early on
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def per_sample_loss(self, batch: Any) -> Tensor:
        """In nats ``[sample]``."""
        return F.binary_cross_entropy_with_logits(self.net(batch[0])[:, 0], batch[1], reduction="none")

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.per_sample_loss(batch).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.scale.learning_rate)


def train(seed: int, scale: Scale, folder: Path) -> list[Reading]:
    """Train with both monitors on; their readings."""
    L.seed_everything(seed, verbose=False)
    data = sparse_parity(scale, seed)
    steps = slt.LogSteps(scale.first, scale.steps, scale.readings)
    sampling = slt.SamplingConfig(
        num_chains=scale.chains, num_burnin=scale.burnin, num_draws=scale.draws, batch_size=scale.minibatch, seed=seed
    )
    few = replace(sampling, num_chains=4, num_burnin=scale.burnin // 2, num_draws=scale.draws // 2)
    low = scale.low_nbeta / scale.nbeta  # the same resolution γ/nβ and the same stability of the steps
    monitors = [
        slt.CompressibilityMonitor(
            num_samples=scale.evaluated, at_steps=steps, sampling=sampling, sampler=slt.SGLD(step_size=scale.step_size),
            nbeta=scale.nbeta, localization=scale.localization, int8=True,
        ),
        slt.LLCMonitor(
            name="low", at_steps=steps, sampling=few, sampler=slt.SGLD(step_size=scale.step_size / low),
            nbeta=scale.low_nbeta, localization=scale.localization * low,
        ),
    ]  # fmt: skip
    trainer = L.Trainer(
        max_steps=scale.steps, accelerator="cpu", devices=1, callbacks=monitors, log_every_n_steps=25,
        logger=TensorBoardLogger(folder, name="logs", version=""), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Parities(scale), DataLoader(data, batch_size=scale.batch, shuffle=True))
    return slt.load_records(folder)


def judged(readings: Sequence[Reading]) -> tuple[dict[str, Correlated], list[Criterion], dict[str, Any]]:
    """Correlations by name, what had to come out, and figures beside them; the weights before training do not count."""
    table: Table = {step: row for step, row in table_of(readings).items() if step}
    found = {number: correlate(table, number=number, quantity="slt/full/llc") for number in NUMBERS}
    low = correlate(table, number="bits_0.02", quantity="low/full/llc")
    bits = found["bits_0.02"]
    if not len(bits.steps):
        raise SystemExit("no reading had critical bits at a tolerance of 0.02: train longer")
    peak = int(bits.values.argmax())
    last = math.hypot(float(bits.stderr[-1]), float(bits.stderr[peak]))
    criteria = [
        ("Pearson(λ̂, bits) at tolerance 0.02", bits.plain.value, 0.8),
        ("the same given the loss", bits.partial.value, 0.6),
        ("Pearson above that of −loss alone by", bits.plain.value - bits.loss_alone.value, 0.0),
        ("given the loss above −loss alone by", bits.partial.value - bits.loss_alone.value, 0.0),
        ("bits fall after their peak by", float(bits.values[peak] - bits.values[-1]), 0.3),
        ("λ̂ falls from there by so many standard errors", float(bits.llc[peak] - bits.llc[-1]) / last, 2.0),
        ("tolerance 0.1: −loss above λ̂ by", found["bits_0.1"].loss_alone.value - found["bits_0.1"].plain.value, 0.0),
        ("small nβ: −loss above λ̂ by", low.loss_alone.value - low.plain.value, 0.0),
    ]
    figures = {
        "step of the peak": int(bits.steps[peak]), "bits there": float(bits.values[peak]),
        "bits at the end": float(bits.values[-1]), "λ̂ there": float(bits.llc[peak]),
        "λ̂ at the end": float(bits.llc[-1]), "health": health_of(readings, "slt"), "health, small nβ":
        health_of(readings, "low"), "rows": {str(step): row for step, row in table.items()},
    }  # fmt: skip
    return {**found, "bits_0.02, small nβ": low}, criteria, figures


def health_of(readings: Sequence[Reading], name: str) -> dict[str, Any]:
    """Of how many readings each check of λ̂ failed or warned, and the largest change within a run's last half."""
    healths = [r.estimates["full"]["llc"].health for r in readings if r.name == name and r.step and r.estimates]
    checks = sorted({check for h in healths for check in (*h.failed, *h.warnings)})
    counts = {c: [sum(c in h.failed for h in healths), sum(c in h.warnings for h in healths)] for c in checks}
    return {"readings": len(healths), "ok": sum(h.ok for h in healths), "failed and warned": counts}


def told(found: dict[str, Correlated]) -> str:
    """Correlations as a table for the terminal."""
    rows = [f"    {'':22}{'λ̂':>22}{'given the loss':>22}{'−loss alone':>22}   λ̂ explained by the loss"]
    rows += [f"    {n:22}{c.plain!s:>22}{c.partial!s:>22}{c.loss_alone!s:>22}   {c.explained:.0%}"
             for n, c in found.items()]  # fmt: skip
    return "\n".join(rows)


def picture(found: dict[str, Correlated], readings: Sequence[Reading], title: str) -> Figure:
    """Bits, λ̂ and loss over steps; λ̂ against bits; loss against levels; correlations of all critical numbers."""
    bits, ink, blue, grey = found["bits_0.02"], "#333333", "#0072B2", "#888888"
    figure = Figure(figsize=(12, 8.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, color=ink, x=0.01, ha="left")
    (over, against), (curves, bars) = figure.subplots(2, 2)
    steps = bits.steps.tolist()
    lines = over.plot(steps, bits.values.tolist(), "o-", color=ink, ms=4, label="critical bits, tolerance 0.02")
    second = over.twinx()
    lines += [second.errorbar(steps, bits.llc.tolist(), yerr=bits.stderr.tolist(), fmt="s-", color=blue, ms=4,
                              label="λ̂ ± 1 s.e. (right)")]  # fmt: skip
    scaled = bits.loss / bits.loss.max() * float(bits.llc.max())
    lines += second.plot(steps, scaled.tolist(), "--", color=grey, label="loss, scaled")
    over.set(xscale="log", xlabel="step", ylabel="bits a weight", title="a network that learns, then simplifies")
    second.set_ylim(-0.35 * float(bits.llc.max()), None)
    over.legend(handles=lines, frameon=False, fontsize=8, loc="lower right")
    points = against.scatter(bits.llc.tolist(), bits.values.tolist(), c=bits.steps.log10().tolist(), cmap="viridis")
    figure.colorbar(points, ax=against, label="log₁₀ step")
    against.set(xlabel="λ̂", ylabel="critical bits", title=f"correlation {bits.plain}, given the loss {bits.partial}")
    shown = [r for r in readings if r.name == "slt" and r.step in (steps[2], int(steps[len(steps) // 2]), steps[-1])]
    for reading, colour in zip(shown, ("#56B4E9", ink, "#D55E00"), strict=False):
        curve = reading.estimates["full"]["compressibility"].arrays()["quantization"]
        curves.plot(curve[:, 0].tolist(), curve[:, 1].tolist(), "o-", ms=3, color=colour, label=f"step {reading.step}")
    for tolerance in (0.02, 0.05, 0.1):
        curves.axhline(tolerance, color=grey, lw=0.7, ls=":")
    curves.set(xscale="log", xlabel="levels n_q", ylabel="rise of the loss, nats", ylim=(-0.02, 0.25))
    curves.set_title("fewer levels cost loss; dotted: tolerances")
    curves.legend(frameon=False, fontsize=8)
    places = np.arange(len(found))
    for offset, label, colour, kind in (
        (-0.25, "λ̂", blue, "plain"), (0, "λ̂ given the loss", "#E69F00", "partial"), (0.25, "−loss", grey, "loss_alone")
    ):  # fmt: skip
        bars.bar(places + offset, [getattr(c, kind).value for c in found.values()], 0.25, label=label, color=colour)
    bars.set_xticks(places, [n.replace(", ", "\n") for n in found], fontsize=8)
    bars.axhline(0, color=ink, lw=0.7)
    bars.set(title="correlation with the critical number", ylim=(-1.3, 1.05))
    bars.legend(frameon=False, fontsize=8, ncols=3, loc="lower left")
    for axis in (over, against, curves, bars):
        axis.title.set_fontsize(10)
        axis.spines["top"].set_visible(False)
    return figure


def checkpoints(models: Path, tokens: Path, *, preset: str, sampling: slt.SamplingConfig, int8: bool) -> Table:
    """What is read at each checkpoint of a language model on disk; nothing is downloaded.

    Args:
        models: A folder with one folder a checkpoint, ``step1000`` or ``…-step1000``.
        tokens: Of ``torch.save`` or ``numpy.save``, whole numbers ``[sequence, position]``.
        preset: Of the samplers, a name in ``slt.presets``.
        sampling: Counts of chains and draws.
        int8: Also torch's own int8 format.
    """
    try:
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise SystemExit("--scale paper loads checkpoints with transformers: pip install transformers") from error
    found = {int(m[1]): place for place in models.iterdir() if (m := re.search(r"step(\d+)$", place.name))}
    if not found:
        raise SystemExit(f"{models} holds no folder whose name ends in step<number>")
    rows = torch.load(tokens, weights_only=True) if tokens.suffix == ".pt" else torch.from_numpy(np.load(tokens))
    table: Table = {}
    for step, place in sorted(found.items()):
        model = AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
        estimates = slt.estimate(
            model, list(rows.long()), [slt.LLC(), slt.Compressibility(num_samples=None, int8=int8)],
            loss_fn=slt.losses.next_token, **{**slt.presets[preset].keywords(), "sampling": sampling},
        )  # fmt: skip
        reading = Reading(
            name="slt", index=len(table), step=step, global_step=step, epoch=0, time=0.0, duration=0.0, overhead=0.0,
            settings={}, estimates={"full": estimates},
        )  # fmt: skip
        table[step] = values_of(reading)
        print(f"step {step}: {estimates['llc']}; {estimates['compressibility'].scalars()}", flush=True)
    return table


def paper(options: argparse.Namespace) -> None:
    """Checkpoints on disk instead of a run."""
    if options.models is None or options.tokens is None:
        raise SystemExit("--scale paper needs --models FOLDER and --tokens FILE")
    sampling = slt.SamplingConfig(num_chains=4, num_draws=options.draws or 100, num_burnin=0, batch_size=8)
    table = checkpoints(options.models, options.tokens, preset=options.preset, sampling=sampling, int8=options.int8)
    found = {number: correlate(table, number=number) for number in NUMBERS}
    print(told(found))
    record = {"preset": options.preset, "table": table, "correlations": summary(found)}
    (options.out / "compressibility_paper.json").write_text(json.dumps(record, indent=1))


def summary(found: dict[str, Correlated]) -> dict[str, Any]:
    """For the JSON file."""
    return {
        name: {"plain": list(c.plain), "given the loss": list(c.partial), "-loss alone": list(c.loss_alone),
               "explained by the loss": c.explained, "readings": len(c.steps)}
        for name, c in found.items()
    }  # fmt: skip


def main() -> None:
    """Train, tell, draw, write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scale", choices=("small", "paper"), default="small")
    parser.add_argument("--models", type=Path, help="folder of checkpoints, with --scale paper")
    parser.add_argument("--tokens", type=Path, help="file of tokens, with --scale paper")
    parser.add_argument("--preset", choices=list(slt.presets), default="pythia-70m", help="with --scale paper")
    parser.add_argument("--int8", action="store_true", help="torch's own int8 too, with --scale paper")
    for name, kind in (("steps", int), ("readings", int), ("draws", int), ("burnin", int), ("evaluated", int),
                       ("nbeta", float), ("localization", float), ("step-size", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help="in the place of the scale's own")
    parser.add_argument("--out", type=Path, default=Path("runs/compressibility"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.scale == "paper":
        paper(options)
        return
    given = {name: value for name, value in vars(options).items() if name in Scale.__dataclass_fields__}
    scale = replace(Scale(), **{name: value for name, value in given.items() if value is not None})
    report, missed = [], 0
    for seed in options.seeds:
        began, spent = time.perf_counter(), time.process_time()
        folder = options.out / f"seed{seed}-{time.time_ns()}"
        readings = train(seed, scale, folder)
        found, criteria, figures = judged(readings)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        title = f"Eight sparse parities, seed {seed}, nβ = {scale.nbeta:g}"
        picture(found, readings, title).savefig(folder / "compressibility.png")
        print(f"\nseed {seed}, {seconds:.0f} s, {cpu:.0f} s of processor\n{told(found)}")
        for what, value, limit in criteria:
            missed += not value >= limit
            print(f"    {'came out' if value >= limit else 'MISSED  '}  {what} {value:.3g} (at least {limit:g})")
        print(f"    λ̂: {figures['health']}; at nβ = {scale.low_nbeta:g}: {figures['health, small nβ']}")
        verdicts = [{"what": w, "value": v, "limit": limit, "passed": v >= limit} for w, v, limit in criteria]
        report.append({"seed": seed, "seconds": seconds, "processor": cpu, "correlations": summary(found),
                       "criteria": verdicts, **figures})  # fmt: skip
        (options.out / "compressibility.json").write_text(json.dumps(report, indent=1))
    told_all = "all criteria came out" if not missed else f"{missed} criteria missed"
    print(f"\n{told_all}; figures: {options.out}")


if __name__ == "__main__":
    main()
