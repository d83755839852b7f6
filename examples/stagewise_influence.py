"""Influence changes its sign as a network learns to tell things apart (arXiv:2510.12071). Live, in training.

Eight items in a tree: animals and plants, two kinds of each, two items of a kind; the targets are the nodes above an
item. A two-layer linear network learns the tree from its root to its leaves. As long as two items are not told
apart, more of one helps the other; once their branch is being learned it harms. So an item's influence on its sibling
turns later than on its cousin, and each peaks while the branch between them is learned.

    python examples/stagewise_influence.py                # one network, a quarter of a minute
    python examples/stagewise_influence.py --seeds 0 1 2 3 4

It prints when influences turn and peak beside the times at which the modes of the data are half learned, compares their
signs with networks trained without an item, says whether the result came out, and writes figure, numbers and logs for
TensorBoard to `runs/stagewise_influence`.
"""

from __future__ import annotations

import argparse
import json
import logging
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import matplotlib
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.stagewise import InfluenceCurves, events, group_curves

matplotlib.use("Agg")
from matplotlib.figure import Figure

ITEMS, LEARNING_RATE, HIDDEN = 8, 0.02, 16
RELATIONS = {"other kingdom": 0, "same kingdom": 1, "same kind": 2}
"""Pairs of items by how many of kingdom and kind they share; each is told apart by the mode of the next level."""

COLOURS = dict(zip(RELATIONS, ("#0072B2", "#E69F00", "#CC3311"), strict=True))


def tree() -> TensorDataset:
    """One-hot items, and the nodes of the tree above each: root, kingdoms, kinds, leaves."""
    numbers = torch.arange(ITEMS)
    levels = [torch.nn.functional.one_hot(numbers // width, ITEMS // width) for width in (8, 4, 2, 1)]
    return TensorDataset(torch.eye(ITEMS), torch.cat(levels, 1).float())


def relation() -> Tensor:
    """Levels below the root that two items share ``[item, item]``: 3 of an item with itself."""
    numbers = torch.arange(ITEMS)
    return sum((numbers[:, None] // w == numbers // w).int() for w in (4, 2, 1))  # type: ignore[return-value]


def squared(module: nn.Module, batch: Any) -> Tensor:
    """½‖y − f(x)‖² of each item."""
    return (module(batch[0]) - batch[1]).square().sum(1) / 2


class Linear(pl.LightningModule):
    """A two-layer linear network under full-batch gradient descent."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        scale = (1e-3 / HIDDEN) ** 0.5
        self.first = nn.Parameter(scale * torch.randn(HIDDEN, ITEMS, generator=g))
        self.second = nn.Parameter(scale * torch.randn(2 * ITEMS - 1, HIDDEN, generator=g))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.first.T @ self.second.T

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = squared(self, batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=LEARNING_RATE)


class Run(NamedTuple):
    """One network's training.

    Attributes:
        curves: Influence of each item on each, as the monitor recorded it.
        events: What the monitor told.
        losses: Of each item at every reading, in the run itself ``[reading, item]``.
        without: The same of runs without one item ``[left out, reading, item]``.
        half: Steps at which root, kingdom, kind and leaves are half learned.
    """

    curves: InfluenceCurves
    events: list[str]
    losses: Tensor
    without: Tensor
    half: list[float]


def train(seed: int, folder: Path, *, num_steps: int, readings: int, sampling: slt.SamplingConfig) -> Run:
    """Train under the monitor, then once without each item."""
    data, gamma = tree(), 1000.0
    items = slt.Probe(data, name="items", labels=torch.arange(ITEMS))
    at = list(slt.LogSteps(num_steps // 15, num_steps, readings))
    monitor = slt.InfluenceMonitor(
        train=items,
        query=items,
        sampler=slt.SGLD(step_size=0.5 / gamma),
        nbeta=8.0,
        localization=gamma,
        sampling=sampling,
        loss_fn=squared,
        at_steps=at,
    )
    trainer = pl.Trainer(
        max_steps=num_steps,
        accelerator="cpu",
        callbacks=[monitor],
        logger=TensorBoardLogger(folder, name=f"seed {seed}"),
        log_every_n_steps=20,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Linear(seed)
    trainer.fit(module, DataLoader(data, batch_size=ITEMS))
    losses, half = descend(seed, torch.ones(1, ITEMS), at)
    without, _ = descend(seed, 1 - torch.eye(ITEMS), at)
    curves = group_curves([reading for reading in slt.load_records(trainer.log_dir) if reading.step])
    return Run(curves, [str(e) for e in monitor.events], losses[0], without, half)


def descend(seed: int, weights: Tensor, at: list[int]) -> tuple[Tensor, list[float]]:
    """Gradient descent with weights of the items, several networks at once: losses at some steps, half-learning times.

    Args:
        seed: Of the initial weights, the same in all networks.
        weights: ``[network, item]``.
        at: Steps.

    Returns:
        Losses ``[network, step, item]``, and of the first network when each level of the tree is half learned.
    """
    y = tree().tensors[1]
    start = Linear(seed)
    first, second = (p.detach().repeat(len(weights), 1, 1) for p in (start.first, start.second))
    left, values, right = torch.linalg.svd(y.T, full_matrices=False)
    losses, strengths = [], []
    for step in range(1, max(at) + 1):
        gap = (y.T - second @ first) * weights[:, None] / ITEMS
        first, second = first + LEARNING_RATE * second.mT @ gap, second + LEARNING_RATE * gap @ first.mT
        strengths.append((left.T @ second[0] @ first[0] @ right.T).diag() / values)
        if step in at:
            losses.append((y.T - second @ first).square().sum(1) / 2)
    levels = [slice(0, 1), slice(1, 2), slice(2, 4), slice(4, 8)]
    learned = torch.stack(strengths)
    half = [float((learned[:, level].mean(1) > 0.5).float().argmax()) + 1 for level in levels]
    return torch.stack(losses, 1), half


def of_relation(run: Run, shared: int) -> tuple[Tensor, Tensor]:
    """Mean influence over the pairs of items that share so many levels, and its error ``[reading]``."""
    pairs = (relation() == shared).flatten()
    values, errors = run.curves.values[:, pairs], run.curves.stderr[:, pairs]
    return values.mean(1), errors.square().sum(1).sqrt() / int(pairs.sum())


def turn(steps: Tensor, values: Tensor, stderr: Tensor) -> float:
    """Step at which influence turns from negative to positive, both beyond error; NaN where it does not.

    Two standard errors, as the curves are named in advance; the monitor, which looks at all, asks for three.
    """
    turns = [e.step for e in events(steps, values, stderr, significance=2.0) if e.kind == "flip" and e.sign > 0]
    return turns[0] if turns else float("nan")


def judge(run: Run) -> tuple[dict[str, bool], dict[str, Any]]:
    """Whether one network shows what the paper says, and the numbers behind it."""
    steps = run.curves.steps
    means = {name: of_relation(run, shared) for name, shared in RELATIONS.items()}
    turns = {name: turn(steps, *mean) for name, mean in means.items()}
    peaks = {name: float(steps[int(mean[0].argmax())]) for name, mean in means.items()}
    sibling, cousin = ((run.curves.values[:, pair], run.curves.stderr[:, pair]) for pair in (1, 2))  # of item 0
    one = {name: (turn(steps, *c), float(steps[int(c[0].argmax())])) for name, c in (("2", cousin), ("1", sibling))}
    agreement = signs(run)
    within = [run.half[level] <= peaks[name] <= run.half[level + 1] for level, name in enumerate(RELATIONS)]
    checks = {
        "of one item, on its sibling and its cousin, starts negative and turns positive": all(
            flip == flip for flip, _ in one.values()
        ),
        "the cousin's turn and peak come before the sibling's": one["2"][0] < one["1"][0] and one["2"][1] < one["1"][1],
        "peaks come in the order other kingdom, same kingdom, same kind": peaks["other kingdom"]
        < peaks["same kingdom"]
        < peaks["same kind"],
        "each lies between half-learning of the last shared and the first differing mode": all(within),
        "signs agree with training without the item in 70 % of points": agreement >= 0.7,
        "all fall below 5 % of their peak in the end": all(
            abs(float(v[-1])) < 0.05 * float(v.abs().max()) for v, _ in means.values()
        ),
    }
    numbers = {
        "half learned": dict(zip(("root", "kingdom", "kind", "leaves"), run.half, strict=True)),
        "turns positive": {name: round(flip) if flip == flip else None for name, flip in turns.items()},
        "item 0 on its cousin, its sibling": [round(flip) if flip == flip else None for flip, _ in one.values()],
        "peaks": peaks,
        "sign agreement": round(agreement, 3),
        "events told": len(run.events),
    }
    return checks, numbers


def signs(run: Run) -> float:
    """Share of points, both above 5 % of their largest, where influence has the sign of what training shows."""
    influence = run.curves.values.reshape(-1, ITEMS, ITEMS).transpose(0, 1)  # [of, reading, on]
    effect = run.losses - run.without  # more weight is the opposite of leaving out
    off = ~torch.eye(ITEMS, dtype=torch.bool)[:, None].expand_as(influence)
    large = [part.abs() > 0.05 * part.abs()[off].max() for part in (influence, effect)]
    counted = off & large[0] & large[1]
    return float((influence.sign() == effect.sign())[counted].float().mean())


def draw(run: Run) -> Figure:
    """Influence by relation over training, with the half-learning times."""
    figure = Figure(figsize=(7.5, 4), dpi=120, layout="constrained")
    axis, steps = figure.subplots(), run.curves.steps.tolist()
    axis.axhline(0, color="#BBBBBB", lw=0.8)
    for time, word in zip(run.half, ("root", "kingdoms", "kinds", "leaves"), strict=True):
        axis.axvline(time, color="#999999", lw=0.8, ls="--")
        axis.text(time, 1.0, f" {word}", transform=axis.get_xaxis_transform(), fontsize=8, va="top", color="#666666")
    for name, shared in RELATIONS.items():
        value, error = of_relation(run, shared)
        scale = float(value.abs().max())
        axis.plot(steps, (value / scale).tolist(), color=COLOURS[name], label=name, marker=".")
        low, high = ((value + s * 2 * error) / scale for s in (-1, 1))
        axis.fill_between(steps, low.tolist(), high.tolist(), color=COLOURS[name], alpha=0.2, lw=0)
    axis.set_xscale("log")
    axis.set_xlabel("step (dashed: half learned)")
    axis.set_ylabel("influence over its largest\n(negative: helps)")
    axis.legend(frameon=False, loc="lower right")
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--num-steps", type=int, default=3000)
    parser.add_argument("--readings", type=int, default=25)
    parser.add_argument("--num-draws", type=int, default=200)
    parser.add_argument("--num-chains", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("runs/stagewise_influence"))
    parser.add_argument("--out", type=Path, help="where the numbers go; by default into the folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*(does not have many workers|cannot be relied on).*")
    sampling = slt.SamplingConfig(
        num_chains=args.num_chains, num_draws=args.num_draws, num_burnin=20, thinning=2, batch_size=ITEMS
    )
    results: dict[str, Any] = {}
    for seed in args.seeds:
        run = train(seed, args.folder, num_steps=args.num_steps, readings=args.readings, sampling=sampling)
        checks, numbers = judge(run)
        results[str(seed)] = {"checks": checks, **numbers}
        print(f"seed {seed}: {json.dumps(numbers)}")
        for what, held in checks.items():
            print(f"  {'yes' if held else 'NO ':3} {what}")
        if seed == args.seeds[0]:
            args.folder.mkdir(parents=True, exist_ok=True)
            draw(run).savefig(args.folder / "stagewise_influence.png")
            print("\n".join(run.events[:10]))
    passed = sum(all(r["checks"].values()) for r in results.values())
    print(f"{passed} of {len(results)} seeds show all of it")
    out = args.out or args.folder / "stagewise_influence.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    raise SystemExit(0 if passed == len(results) else 1)


if __name__ == "__main__":
    main()
