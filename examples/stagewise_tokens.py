"""Influence between kinds of tokens while a transformer learns induction (arXiv:2510.12071). Live, in training.

Half of the sequences are bigrams of a Markov chain, half are random tokens over and over. Tokens fall in three kinds:
bigrams, first showings of random tokens, which nothing foretells, and repeats, which induction foretells. One monitor
follows the influence of each kind on each, token by token, and says when it turns and peaks.

    python examples/stagewise_tokens.py              # about two minutes on two cores

It prints the events beside the losses, says whether repeats, and they alone, come to help repeats once induction is
learned, and writes picture, numbers and TensorBoard logs to `runs/stagewise_tokens`.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import torch
from attention_only import next_token
from induction import SCALES, Language, bigrams, repeated
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.stagewise import InfluenceCurves, group_curves

matplotlib.use("Agg")
from matplotlib.figure import Figure

KINDS = ("bigrams", "first showings", "repeats")
COLOURS = ("#0072B2", "#999999", "#CC3311")


class Losses(L.Callback):
    """The mean loss of each kind of token at given steps."""

    def __init__(self, tokens: Tensor, kinds: Tensor, steps: list[int]) -> None:
        self.tokens, self.kinds, self.steps = tokens, kinds, steps
        self.seen: dict[int, list[float]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(0, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step in self.steps:
            self.look(trainer.global_step, pl_module)

    @torch.no_grad()
    def look(self, step: int, module: L.LightningModule) -> None:
        losses = next_token(module, (self.tokens,))
        self.seen[step] = [float(losses[self.kinds == kind].mean()) for kind in range(len(KINDS))]


def sequences(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Half bigrams, half repeats ``[sample, token]``, and the kind of every token but the first ``[sample, token]``."""
    scale = SCALES["small"]
    chains, (again, period) = bigrams(count // 2, scale, seed=seed), repeated(count // 2, scale, seed=seed + 1)
    places = torch.arange(1, scale.length)
    kinds = torch.cat([torch.zeros(count // 2, scale.length - 1), 1.0 + (places >= period)])
    return torch.cat([chains, again]), kinds.long()


def run(args: argparse.Namespace) -> tuple[InfluenceCurves, list[str], Losses]:
    """Train under the monitor."""
    scale = SCALES["small"]
    train, _ = sequences(args.num_sequences, seed=args.seed)
    tokens, kinds = sequences(args.num_probe, seed=10**6)
    at = list(slt.LogSteps(max(1, args.num_steps // 60), args.num_steps, args.readings))
    probe = slt.Probe(TensorDataset(tokens), name="tokens")
    monitor = slt.InfluenceMonitor(
        train=probe,
        query=probe,
        tokens="both",
        train_groups=kinds,
        query_groups=kinds,
        loss_fn=next_token,
        sampler=slt.SGLD(step_size=args.step_size),
        nbeta=args.nbeta,
        localization=args.localization,
        sampling=slt.SamplingConfig(num_chains=8, num_draws=args.num_draws, num_burnin=40, batch_size=16),
        at_steps=at,
    )
    losses = Losses(tokens, kinds, at)
    trainer = L.Trainer(
        max_steps=args.num_steps,
        accelerator="cpu",
        callbacks=[monitor, losses],
        logger=TensorBoardLogger(args.folder, name=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(args.seed)
    order = torch.Generator().manual_seed(args.seed)
    loader = DataLoader(TensorDataset(train), batch_size=scale.batch, shuffle=True, generator=order)
    trainer.fit(Language(scale), loader)
    return group_curves(slt.load_records(trainer.log_dir)), [str(event) for event in monitor.events], losses


def judge(curves: InfluenceCurves, losses: Losses) -> tuple[dict[str, bool], dict[str, Any]]:
    """Whether repeats come to help repeats once induction is learned, and they alone."""
    steps = curves.steps.tolist()
    repeats = torch.tensor([losses.seen[step][2] for step in steps])
    learned = repeats < (repeats[0] + repeats.min()) / 2
    z = {
        "after against before": _apart(curves, 8, learned, 8, ~learned),
        "against bigrams": _apart(curves, 8, learned, 2, learned),
        "against first showings": _apart(curves, 8, learned, 5, learned),
    }
    checks = {
        "repeats help repeats more once induction is learned": z["after against before"] < -3,
        "and more than bigrams do": z["against bigrams"] < -3,
        "and more than first showings do": z["against first showings"] < -3,
    }
    among = curves.values[:, 8]
    numbers = {
        "induction half learned by step": steps[int(learned.int().argmax())] if bool(learned.any()) else None,
        "influence among repeats is largest at step": steps[int(among.abs().argmax())],
        "standard errors": {name: round(value, 1) for name, value in z.items()},
    }
    return checks, numbers


def _apart(curves: InfluenceCurves, first: int, at: Tensor, second: int, when: Tensor) -> float:
    """Difference of the means of two curves over some readings, in standard errors; NaN over none."""
    (a, b), (s, t) = (
        [part[mask, column] for column, mask in ((first, at), (second, when))]
        for part in (curves.values, curves.stderr)
    )
    error = (s.square().sum() / len(s) ** 2 + t.square().sum() / len(t) ** 2).sqrt()
    return float((a.mean() - b.mean()) / error)


def draw(curves: InfluenceCurves, losses: Losses) -> Figure:
    """Losses of the kinds above the influence of each kind on repeats."""
    figure = Figure(figsize=(7.5, 5), dpi=120, layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    steps = [max(1, step) for step in curves.steps.tolist()]
    for kind, (name, colour) in enumerate(zip(KINDS, COLOURS, strict=True)):
        above.plot(steps, [losses.seen[s][kind] for s in curves.steps.tolist()], color=colour, label=name, marker=".")
        column = 3 * kind + 2
        value, width = curves.values[:, column], 2 * curves.stderr[:, column]
        below.plot(steps, value.tolist(), color=colour, marker=".")
        below.fill_between(steps, (value - width).tolist(), (value + width).tolist(), color=colour, alpha=0.2, lw=0)
    below.axhline(0, color="#BBBBBB", lw=0.8)
    above.set_ylabel("loss, nats")
    below.set_ylabel("influence on repeats, nats²\n(negative: helps)")
    below.set_xlabel("step")
    below.set_xscale("log")
    above.legend(frameon=False)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-steps", type=int, default=1500)
    parser.add_argument("--readings", type=int, default=16)
    parser.add_argument("--num-draws", type=int, default=80)
    parser.add_argument("--num-probe", type=int, default=12, help="sequences whose tokens influence each other")
    parser.add_argument("--num-sequences", type=int, default=8192, help="for training")
    parser.add_argument("--nbeta", type=float, default=100.0)
    parser.add_argument("--localization", type=float, default=300.0)
    parser.add_argument("--step-size", type=float, default=3e-4)
    parser.add_argument("--folder", type=Path, default=Path("runs/stagewise_tokens"))
    parser.add_argument("--out", type=Path, help="where the numbers go; by default into the folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|cannot be relied on|LeafSpec).*")
    curves, told, losses = run(args)
    checks, numbers = judge(curves, losses)
    names = dict(zip("012", KINDS, strict=True))
    said = [" → ".join(names.get(word, word) for word in event.split(" → ", 1)) for event in told]
    print("\n".join(said))
    for step, row in losses.seen.items():
        print(f"step {step:5d}  " + "  ".join(f"{name} {loss:.2f}" for name, loss in zip(KINDS, row, strict=True)))
    print(json.dumps(numbers))
    for what, held in checks.items():
        print(f"{'yes' if held else 'NO ':3} {what}")
    args.folder.mkdir(parents=True, exist_ok=True)
    draw(curves, losses).savefig(args.folder / "stagewise_tokens.png")
    out = args.out or args.folder / "stagewise_tokens.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"checks": checks, **numbers, "events": told}, indent=1, ensure_ascii=False) + "\n")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
