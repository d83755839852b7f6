"""Stages in a small language model (arXiv:2402.02364, 2410.02984): a plateau of λ̂ tells two mechanisms apart, live.

`python examples/developmental_stages.py` trains a two-layer attention-only transformer for 1600 steps on sequences that
ask for a skip-bigram and then for induction, follows its LLC with a StageMonitor, prints the stages and whether each
criterion came out, and writes TensorBoard logs, a picture and JSON to `--out`: some three minutes on two quiet cores.
`--seeds 5 6 7` for pass rates; `--replay` judges readings that are in `--out` already.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from attention_only import HALF, INDUCTION, LENGTH, SKIP, VOCABULARY, Transformer, next_token, two_mechanisms
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.announcing import Alarm, Follower
from lightning_slt.analysis.stages import Detector, Stage, stages
from lightning_slt.callbacks.quantities import row_of
from lightning_slt.reporting.stages import reservations, stages_figure, stages_table

QUANTITY = "slt/full/llc"
BATCH, STEPS, READINGS, FIRST = 64, 1600, 28, 10
DETECTOR = Detector(bandwidth=0.2, mark="end")
"""Plateaus of this run are some 0.6 wide in log t; λ̂ rests before the skip-bigram's loss has ended falling."""

CHOSEN_ON = range(5)
"""Seeds on which that setting was chosen; no pass rate counts them."""

LEARNT_SKIP, LEARNT_INDUCTION, RISE = 0.3, 1.5, 40.0
"""Losses in nats at which a mechanism counts as learnt, and the least Δλ̂ of the induction stage."""


def sequences(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Those of two_mechanisms whose skip-bigram part comes first, so that neither has to be told from the other."""
    tokens, kinds = two_mechanisms(int(2.1 * count) + 200, seed=seed)
    first = tokens[:, LENGTH - 2 * HALF - 1] == VOCABULARY - 1
    return tokens[first][:count], kinds[first][:count]


class Language(pl.LightningModule):
    """Two layers of attention, next tokens, Adam."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer(vocabulary=VOCABULARY, length=LENGTH, width=48, num_heads=4)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = next_token(self, batch).mean()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class Mechanisms(pl.Callback):
    """Losses of held-out tokens that the skip-bigram and induction explain: the truth, which no monitor sees."""

    def __init__(self, seed: int, *, every: int = 5) -> None:
        self.tokens, self.kinds = sequences(256, seed=10_000 + seed)
        self.every = every
        self.rows: list[tuple[int, float, float, float]] = []

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            losses = next_token(pl_module, (self.tokens,))
            skip, induction = (float(losses[self.kinds == kind].mean()) for kind in (SKIP, INDUCTION))
            self.rows.append((trainer.global_step, float(losses.mean()), skip, induction))
            for logger in trainer.loggers:
                logger.log_metrics({"held out/skip-bigram": skip, "held out/induction": induction}, trainer.global_step)


def train(seed: int, out: Path, *, steps: int, readings: int, num_draws: int, detector: Detector) -> None:
    """One run with its LLC live; readings and losses go to ``out``."""
    pl.seed_everything(seed, verbose=False)
    monitor = slt.LLCMonitor(
        sampler=slt.SGLD(step_size=3e-4), nbeta=100.0, localization=50.0, loss_fn=next_token,
        sampling=slt.SamplingConfig(num_chains=4, num_draws=num_draws, num_burnin=num_draws, batch_size=32, seed=seed),
        at_steps=slt.LogSteps(min(FIRST, steps - 1), steps, readings),
    )  # fmt: skip
    watch = slt.StageMonitor(
        QUANTITY, bandwidth=detector.bandwidth, z=detector.z, depth=detector.depth, mark=detector.mark
    )
    mechanisms = Mechanisms(seed)
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, logger=TensorBoardLogger(out, name="", version=""), log_every_n_steps=10,
        callbacks=[monitor, watch, mechanisms],
    )  # fmt: skip
    data = TensorDataset(sequences(BATCH * steps, seed=seed)[0])
    trainer.fit(Language(), DataLoader(data, batch_size=BATCH, shuffle=False))
    (out / "mechanisms.json").write_text(json.dumps(mechanisms.rows))


class Judged(NamedTuple):
    """One run: its figures for the JSON, its stages, and the series they were found in."""

    record: dict[str, Any]
    found: list[Stage]
    follower: Follower
    table: str


def first_below(rows: list[list[float]], column: int, level: float) -> float:
    """The first step at which a loss lies below a level; NaN if never."""
    return next((row[0] for row in rows if row[column] < level), math.nan)


def judge(seed: int, out: Path, detector: Detector) -> Judged:
    """Find the stages in the recorded readings, one by one as they came, and hold them against the mechanisms."""
    rows = json.loads((out / "mechanisms.json").read_text())
    skip, induction = first_below(rows, 2, LEARNT_SKIP), first_below(rows, 3, LEARNT_INDUCTION)
    follower = Follower(detector=detector, alarm=Alarm())
    for reading in slt.load_records(out, name="slt"):
        follower.take(row_of(reading, QUANTITY))
    boundaries = follower.boundaries(final=True)
    steps, rests = [b.step for b in boundaries], [b.middle for b in boundaries]
    found = stages(follower.series, steps, rests=rests, bandwidth=detector.bandwidth, z=detector.z)
    between = [b for b in boundaries if skip <= b.step <= induction]
    around = [b for b in boundaries if b.earliest <= induction and b.latest >= skip]
    at_induction = [stage for stage in found[1:] if stage.start <= induction <= stage.end]
    rise = at_induction[0].change if at_induction else math.nan
    record = {
        "seed": seed,
        "skip-bigram learnt at": skip,
        "induction learnt at": induction,
        "boundaries": [b._asdict() for b in boundaries],
        "announced": [{"boundary": a.boundary.step, "at": a.step, "delay": a.delay} for a in follower.announced],
        "criteria": {
            "a boundary between the two mechanisms": bool(between),
            "a plateau that reaches in between": bool(around),
            f"induction stage raises λ̂ by {RISE:.0f} or more": rise >= RISE,
            "its plateau was announced live": any(a.boundary in around for a in follower.announced),
        },
        "Δλ̂ of the induction stage": rise,
        "its standard error": at_induction[0].change_stderr if at_induction else math.nan,
    }
    notes = reservations(follower.series, failed=sum(not row.reliable for row in follower.rows.values()))
    table = stages_table(found, boundaries, announced=follower.announced, alerts=follower.alerts, notes=notes)
    return Judged(record, found, follower, table)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """How many seeds meet each criterion, those that the setting was chosen on apart; and all of them."""
    groups = {
        "that": [record for record in records if record["seed"] in CHOSEN_ON],
        "other than those": [record for record in records if record["seed"] not in CHOSEN_ON],
    }
    passed = {
        which: {
            "seeds": len(group),
            "criteria": {what: sum(record["criteria"][what] for record in group) for what in group[0]["criteria"]}
            | {"all of these": sum(all(record["criteria"].values()) for record in group)},
        }
        for which, group in groups.items()
        if group
    }
    return {"passed": passed, "runs": records}


def picture(judged: Judged, out: Path) -> None:
    """Curve, loss and stages, with the steps at which the mechanisms were learnt."""
    record = judged.record
    figure = stages_figure(
        judged.follower.series, judged.found, alerts=judged.follower.alerts, quantity="λ̂ of all weights",
        bandwidth=judged.follower.detector.bandwidth,
        title="Stages of a two-layer attention-only transformer, found in λ̂ alone while it trains",
    )  # fmt: skip
    lower = figure.axes[1]
    for name, place, height, side, gap in (
        ("skip-bigram", "skip-bigram learnt at", 0.8, "right", 0.97),
        ("induction", "induction learnt at", 0.6, "left", 1.03),
    ):
        step = record[place]
        if math.isfinite(step):
            lower.axvline(step, color="#333333", lw=1, ls=":")
            at = lower.get_xaxis_transform()
            lower.text(step * gap, height, f"{name} learnt", ha=side, transform=at, fontsize=8)
    figure.savefig(out)


def main() -> None:
    """All seeds, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("developmental_stages"))
    parser.add_argument("--replay", action="store_true", help="judge the readings in --out, without training")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--readings", type=int, default=READINGS)
    parser.add_argument("--num-draws", type=int, default=60, help="kept draws of a chain, and steps of burn-in")
    for name in ("bandwidth", "z", "depth"):
        parser.add_argument(f"--{name}", type=float, default=getattr(DETECTOR, name), help="of the detector")
    parser.add_argument(
        "--mark", choices=("middle", "end"), default=DETECTOR.mark, help="where in its plateau a boundary lies"
    )
    options = parser.parse_args()
    detector = Detector(bandwidth=options.bandwidth, z=options.z, depth=options.depth, mark=options.mark)
    records = []
    for seed in options.seeds:
        out = options.out / f"seed-{seed}"
        if not options.replay:
            sizes = {"steps": options.steps, "readings": options.readings, "num_draws": options.num_draws}
            train(seed, out, **sizes, detector=detector)
        judged = judge(seed, out, detector)
        picture(judged, options.out / f"stages-{seed}.png")
        print(f"\nseed {seed}: skip-bigram learnt at step {judged.record['skip-bigram learnt at']:.0f}, induction at "
              f"{judged.record['induction learnt at']:.0f}\n\n{judged.table}\n")  # fmt: skip
        for what, good in judged.record["criteria"].items():
            print(f"seed {seed}: {'yes' if good else 'NO '}  {what}", flush=True)
        records.append(judged.record)
        (options.out / "developmental_stages.json").write_text(
            json.dumps({"detector": vars(detector), **summary(records)}, indent=1, ensure_ascii=False) + "\n"
        )
    for which, rates in summary(records)["passed"].items():
        print(f"\nof {rates['seeds']} seeds {which} the setting was chosen on:")
        for what, count in rates["criteria"].items():
            print(f"  {count}  {what}")


if __name__ == "__main__":
    main()
