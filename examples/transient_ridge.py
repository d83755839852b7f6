"""Transient ridge (arXiv:2501.17745): a network that approaches one solution, and leaves it for another one.

Sequences of linear regression are continued in context, with tasks from a list of M. At intermediate M a network first
approaches ridge regression, which does well on tasks that it has never seen, and then dMMSE, which knows the list: its
loss on unseen tasks (OOD) falls and rises again. `python examples/transient_ridge.py` trains networks for seven M as
one batch on a task set (a small surrogate: a perceptron that is given the statistics of the pairs so far), draws all of
them in one set of axes, estimates their λ̂, and says what came out. `--seeds 0 1 2` takes further task sets,
`--scale paper` trains transformers of the paper's size, for a GPU. JSON, TensorBoard and a picture go to `--out`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.trajectories import JointTrajectories, joint_trajectories, recorded_rows
from lightning_slt.reporting.tensorboard import write_figure
from lightning_slt.reporting.trajectories import how_to_read, trajectory_figure

NOISE = 0.125
"""σ², the variance of y about t·x."""

NBETA, LOCALIZATION = 1000.0, 100.0

SAMPLERS = {"ε = 2e-4": (slt.SGLD(step_size=2e-4), 1), "ε from the curvature": (None, 5)}
"""Samplers of λ̂ with steps per draw: as it was seen once, and with steps as short as the curvature asks for."""

Criterion = tuple[str, float, str, float]
"""What, its value, ">=" or "<=", and the limit."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of tasks, networks, training and readings; 0 tasks stand for infinitely many."""

    tasks: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 0)
    transient: int = 8
    stays: int = 64
    dimensions: int = 2
    positions: int = 8
    width: int = 64
    transformer: bool = False
    steps: int = 20_000
    batch: int = 32
    learning_rate: float = 1e-3
    readings: int = 50
    probe: int = 1024
    sampled: int = 4096
    chains: int = 4
    draws: int = 200
    burnin: int = 100
    minibatch: int = 64
    window: tuple[int, int] = (200, 5000)


SCALES = {
    "small": Scale(),
    "paper": Scale(
        tasks=(*(2**k for k in range(1, 17)), 0), transient=64, stays=2**16, dimensions=8, positions=16, width=512,
        transformer=True, steps=150_000, batch=256, readings=190, probe=512, sampled=16_384, minibatch=256,
        window=(200, 150_000),
    ),
}  # fmt: skip


# tasks and sequences


def task_list(scale: Scale, seed: int) -> Tensor:
    """A fixed sequence of tasks; the first M of it are those of the networks for M ``[task, dimension]``."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(max(scale.tasks), scale.dimensions, generator=g)


def sequences(count: int, tasks: Tensor | None, scale: Scale, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs x ``[sample, position, dimension]`` and y ``[sample, position]``; without a list tasks are Gaussian."""
    if tasks is None:
        task = torch.randn(count, scale.dimensions, generator=g)
    else:
        task = tasks[torch.randint(len(tasks), (count,), generator=g)]
    x = torch.randn(count, scale.positions, scale.dimensions, generator=g)
    y = (x @ task[:, :, None])[..., 0] + NOISE**0.5 * torch.randn(count, scale.positions, generator=g)
    return x, y


def encoded(x: Tensor, y: Tensor, scale: Scale) -> Tensor:
    """What a network is given ``[…, position, feature]``: x comes last, so that predictors can find it.

    The transformer gets ``(y, x)``; the perceptron Xᵀy/k and XᵀX/k of the pairs before, ridge's prediction, and x.
    """
    if scale.transformer:
        return torch.cat([y[..., None], x], -1)
    rows, columns = torch.triu_indices(scale.dimensions, scale.dimensions)
    sums = torch.cat([x * y[..., None], x[..., rows] * x[..., columns]], -1).cumsum(-2)
    before = torch.cat([torch.zeros_like(sums[..., :1, :]), sums[..., :-1, :]], -2)
    mean = before / torch.arange(1, scale.positions + 1)[:, None]
    return torch.cat([mean, ridge_of(x, y)[..., None], x], -1)


def ridge_of(x: Tensor, y: Tensor) -> Tensor:
    """Predictions of ridge regression ``[…, position]``."""
    return (slt.theory.ridge_estimates(x, y, noise_variance=NOISE) * x).sum(-1)


def dmmse_of(x: Tensor, y: Tensor, tasks: Tensor) -> Tensor:
    """Predictions of dMMSE ``[…, position]``."""
    return (slt.theory.dmmse_estimates(x, y, tasks, noise_variance=NOISE) * x).sum(-1)


def predictor(tasks: Tensor | None, scale: Scale) -> Callable[[Any], Tensor]:
    """Predictions of dMMSE for a list, or of ridge, as a function of a batch ``(inputs, y)``."""

    def predict(batch: Any) -> Tensor:
        x, y = batch[0][..., -scale.dimensions :], batch[1]
        return ridge_of(x, y) if tasks is None else dmmse_of(x, y, tasks.to(x))

    return predict


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    """Fresh minibatches for ever, one row of them a network: ``[network, sample, position, feature]``."""

    def __init__(self, lists: list[Tensor | None], scale: Scale, seed: int) -> None:
        self.lists, self.scale, self.seed = lists, scale, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        g, n = torch.Generator().manual_seed(self.seed), self.scale.batch
        ahead = max(1, 6400 // n)  # many batches at a time: small tensors cost more to make than to fill
        while True:
            pairs = [sequences(ahead * n, tasks, self.scale, g) for tasks in self.lists]
            x, y = (torch.stack(part) for part in zip(*pairs, strict=True))
            yield from zip(encoded(x, y, self.scale).split(n, 1), y.split(n, 1), strict=True)


# networks


class Perceptrons(nn.Module):
    """Independent perceptrons side by side, one a list of tasks: ``(MLP(statistics) + gain_k · t̂_ridge) · x``."""

    def __init__(self, networks: int, scale: Scale) -> None:
        super().__init__()
        self.scale, d = scale, scale.dimensions
        sizes = [d + d * (d + 1) // 2, scale.width, scale.width, d]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = fan_in**-0.5
            self.weights.append(nn.Parameter(torch.empty(networks, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(networks, 1, fan_out).uniform_(-bound, bound)))
        self.gain = nn.Parameter(torch.zeros(networks, 1, scale.positions))

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions ``[network, sample, position]``, of inputs with or without an axis for networks."""
        networks, d = len(self.gain), self.scale.dimensions
        inputs = inputs.expand(networks, *inputs.shape[-3:])
        statistics, ridge, x = inputs.split([inputs.shape[-1] - d - 1, 1, d], -1)
        h = statistics.flatten(1, 2)
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.baddbmm(bias, h.relu() if depth else h, weight)
        return (h.view(x.shape) * x).sum(-1) + self.gain * ridge[..., 0]

    def one(self, index: int) -> Perceptrons:
        """A network on its own."""
        other = Perceptrons(1, self.scale)
        other.load_state_dict({name: value[index : index + 1] for name, value in self.state_dict().items()})
        return other


class Transformer(nn.Module):
    """Two layers of causal attention over tokens (0, x₁), (y₁, 0), (0, x₂), …; predictions are read at the x."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.embed = nn.Linear(scale.dimensions + 1, scale.width)
        self.places = nn.Parameter(torch.randn(2 * scale.positions, scale.width) * 0.02)
        layer = partial(
            nn.TransformerEncoderLayer, scale.width, 4, scale.width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.layers = nn.ModuleList([layer() for _ in range(2)])
        self.norm, self.out = nn.LayerNorm(scale.width), nn.Linear(scale.width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Predictions ``[1, sample, position]``, of inputs with or without an axis of one network."""
        y, x = inputs.reshape(-1, *inputs.shape[-2:]).split([1, inputs.shape[-1] - 1], -1)
        shown, asked = (F.pad(y, (0, x.shape[-1])), F.pad(x, (1, 0)))
        h = self.embed(torch.stack([asked, shown], 2).flatten(1, 2)) + self.places
        mask = nn.Transformer.generate_square_subsequent_mask(h.shape[1], device=h.device)
        for layer in self.layers:
            h = layer(h, src_mask=mask)
        return self.out(self.norm(h[:, ::2]))[None, ..., 0]

    def one(self, index: int) -> Transformer:
        """The network itself."""
        return self


class Regression(L.LightningModule):
    """Mean squared error by Adam, of every network on its own tasks; nothing in it knows of monitors."""

    def __init__(self, net: nn.Module, learning_rate: float) -> None:
        super().__init__()
        self.net, self.learning_rate = net, learning_rate

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, y = batch
        loss = (self.net(inputs) - y).square().mean((1, 2)).sum()  # a sum: networks share no weights
        self.log("train/loss", loss / len(y))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    """Mean over networks and positions ``[sample]``."""
    inputs, y = batch
    return (module(inputs) - y).square().mean((0, 2))


# one task set


def label(count: int) -> str:
    """How a run is called."""
    return f"M={count}" if count else "M=∞"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one task set shows; readings along the last axis.

    Attributes:
        steps: Of the readings.
        ood: Loss on unseen tasks ``{run: [reading]}``.
        joint: All runs in one set of axes.
        llc: ``{settings: {run: λ̂}}`` of the trained networks, see :data:`SAMPLERS`.
        figures: Everything that is reported.
        criteria: What was to come out.
    """

    steps: Tensor
    ood: dict[str, Tensor]
    joint: JointTrajectories
    llc: dict[str, dict[str, slt.Estimate]]
    figures: dict[str, Any]
    criteria: list[Criterion]


def train(lists: dict[str, Tensor | None], scale: Scale, seed: int, probe: slt.Probe, folder: Path) -> tuple[Any, Path]:
    """Train networks for some lists as one batch, with their trajectories live; the transient one is drawn."""
    L.seed_everything(seed, verbose=False)
    names = list(lists)
    net = Transformer(scale) if scale.transformer else Perceptrons(len(lists), scale)
    at_steps = slt.LogSteps(10, scale.steps, scale.readings)
    output = [lambda module, batch, m=m: module(batch[0])[m] for m in range(len(names))]
    size = scale.probe * scale.positions
    monitors: list[L.Callback] = [
        slt.SLTMonitor(
            [slt.Trajectory(probe, output_fn=output[m], size=size, name=name) for m, name in enumerate(names)],
            data=probe.data, loss_fn=squared_error, at_steps=at_steps,
        )
    ]  # fmt: skip
    if (shown := label(scale.transient)) in lists:
        references = {"ridge": predictor(None, scale), f"dMMSE {shown}": predictor(lists[shown], scale)}
        monitors.append(
            slt.TrajectoryMonitor(
                probe=probe, output_fn=output[names.index(shown)], references=references, size=size,
                data=probe.data, loss_fn=squared_error, at_steps=at_steps, name=shown,
            )
        )  # fmt: skip
    logger = TensorBoardLogger(folder, name=names[0] if len(names) == 1 else "networks", version="")
    trainer = L.Trainer(
        max_steps=scale.steps, callbacks=monitors, logger=logger, log_every_n_steps=100,
        accelerator="auto" if scale.transformer else "cpu", devices=1, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    trainer.fit(
        Regression(net, scale.learning_rate),
        DataLoader(Endless(list(lists.values()), scale, seed + 10**6), batch_size=None),
    )
    torch.save(net.state_dict(), Path(logger.log_dir) / "networks.pt")
    return net, Path(logger.log_dir)


def learning_coefficient(
    net: nn.Module, tasks: Tensor | None, scale: Scale, seed: int, sampler: slt.Sampler | None, thinning: int
) -> slt.Estimate:
    """λ̂ of one trained network on sequences like those that it was trained on.

    Args:
        net: The network.
        tasks: Its list; None for Gaussian tasks.
        scale: Sizes.
        seed: Of sequences and chains.
        sampler: None chooses the step from the curvature.
        thinning: Steps per draw.
    """
    x, y = sequences(scale.sampled, tasks, scale, torch.Generator().manual_seed(seed + 2 * 10**6))
    return slt.estimate(
        net, TensorDataset(encoded(x, y, scale), y), [slt.LLC()], loss_fn=squared_error,
        sampler=sampler, nbeta=NBETA, localization=LOCALIZATION,
        sampling=slt.SamplingConfig(
            num_chains=scale.chains, num_draws=scale.draws, thinning=thinning, batch_size=scale.minibatch,
            num_burnin=(1 if sampler else 10) * scale.burnin, seed=seed,
        ),
    )["llc"]  # fmt: skip


def task_set(seed: int, scale: Scale, folder: Path) -> Outcome:
    """Train all networks on one list of tasks, and ask what became of them."""
    tasks = task_list(scale, seed)
    lists = {label(count): tasks[:count] if count else None for count in scale.tasks}
    x, y = sequences(scale.probe, None, scale, torch.Generator().manual_seed(seed + 3 * 10**6))
    probe = slt.Probe(TensorDataset(encoded(x, y, scale), y), name="unseen tasks")
    together = [[name] for name in lists] if scale.transformer else [list(lists)]
    rows: dict[str, Any] = {}
    llc: dict[str, dict[str, slt.Estimate]] = {how: {} for how in SAMPLERS}
    for names in together:
        net, log_dir = train({name: lists[name] for name in names}, scale, seed, probe, folder)
        for m, name in enumerate(names):
            rows[name] = recorded_rows(log_dir, key=name, name="slt")
            for how, (sampler, thinning) in SAMPLERS.items():
                llc[how][name] = learning_coefficient(net.one(m), lists[name], scale, seed, sampler, thinning)
    predictions = {"ridge": ridge_of(x, y)} | {
        f"dMMSE {name}": dmmse_of(x, y, some) for name, some in lists.items() if some is not None
    }
    joint = joint_trajectories(rows, references={name: p.flatten() for name, p in predictions.items()})
    ood = {name: (part.values - y.flatten()).double().square().mean(1) for name, part in rows.items()}
    last = {name: part.values[-1].view_as(y) for name, part in rows.items()}
    return judged(rows[label(scale.transient)].steps, ood, joint, llc, last, predictions, y, scale)


def judged(
    steps: Tensor,
    ood: dict[str, Tensor],
    joint: JointTrajectories,
    llc: dict[str, dict[str, slt.Estimate]],
    last: dict[str, Tensor],
    predictions: dict[str, Tensor],
    y: Tensor,
    scale: Scale,
) -> Outcome:
    """All figures, and the criteria made of them."""
    runs: dict[str, Any] = {}
    for name, loss in ood.items():
        lowest = int(loss.argmin())
        own = predictions.get(f"dMMSE {name}", predictions["ridge"])
        runs[name] = {
            "lowest": float(loss[lowest]), "at step": int(steps[lowest]), "end": float(loss[-1]),
            "rise": float(loss[-1] / loss[lowest]) - 1,
            "from ridge": rms(last[name] - predictions["ridge"]), "from dMMSE": rms(last[name] - own),
            "OOD loss of dMMSE": float((own - y).square().mean()),
            "correlation of axis 2 and OOD loss": correlation(joint.points[name][:, 1], loss),
            "llc": {how: told(found[name]) for how, found in llc.items()},
        }  # fmt: skip
    pooled = correlation(torch.cat([p[:, 1] for p in joint.points.values()]), torch.cat(list(ood.values())))
    figures = {
        "ridge": float((predictions["ridge"] - y).square().mean()), "shares": joint.shares.tolist(),
        "correlation of axis 2 and OOD loss, all runs": pooled, "runs": runs, "how to read": how_to_read(joint),
    }  # fmt: skip
    here, stays = runs[label(scale.transient)], runs[label(scale.stays)]
    criteria = [
        (f"{label(scale.transient)}: step of the lowest OOD loss", here["at step"], ">=", scale.window[0]),
        (f"{label(scale.transient)}: step of the lowest OOD loss", here["at step"], "<=", scale.window[1]),
        (f"{label(scale.transient)}: rise from there to the end", here["rise"], ">=", 0.10),
        (
            f"{label(scale.transient)}: distance from dMMSE over that from ridge",
            here["from dMMSE"] / here["from ridge"],
            "<=",
            0.5,
        ),
        (f"{label(scale.stays)}: rise of the OOD loss", stays["rise"], "<=", 0.05),
        (
            f"{label(scale.transient)}: |correlation of axis 2 and OOD loss|",
            abs(here["correlation of axis 2 and OOD loss"]),
            ">=",
            0.6,
        ),
        ("all runs: |correlation of axis 2 and OOD loss|", abs(pooled), ">=", 0.6),
    ]
    return Outcome(steps=steps, ood=ood, joint=joint, llc=llc, figures=figures, criteria=criteria)


def told(estimate: slt.Estimate) -> dict[str, Any]:
    """An estimate for JSON."""
    return {"mean": estimate.mean, "stderr": estimate.stderr, "health": str(estimate.health)}


def rms(values: Tensor) -> float:
    """Root mean square."""
    return float(values.double().square().mean().sqrt())


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1])


# telling


def came_out(criterion: Criterion) -> bool:
    """Whether a value is on the right side of its limit."""
    _, value, side, limit = criterion
    return value >= limit if side == ">=" else value <= limit


def table(outcome: Outcome) -> str:
    """A line a run, and what λ̂ does along M in standard errors."""
    lines = [f"{'':>6} {'lowest':>7} {'at step':>8} {'end':>6} {'rise':>6}   rms from ridge, dMMSE"]
    for name, row in outcome.figures["runs"].items():
        lines.append(
            f"{name:>6} {row['lowest']:>7.3f} {row['at step']:>8} {row['end']:>6.3f} {row['rise']:>6.1%}   "
            f"{row['from ridge']:>14.3f} {row['from dMMSE']:>6.3f}"
        )
    for how, found in outcome.llc.items():
        lines += [
            f"λ̂ with {how}",
            *(f"{name:>6} {e.mean:.1f} ± {e.stderr:.1f}; {e.health}" for name, e in found.items()),
        ]
        for (one, a), (two, b) in pairwise(found.items()):
            apart = (b.mean - a.mean) / math.hypot(a.stderr, b.stderr)
            lines.append(f"       λ̂({two}) − λ̂({one}) = {b.mean - a.mean:.1f}, {apart:.1f} standard errors")
    return "\n".join(lines)


def picture(outcome: Outcome, scale: Scale, title: str) -> Any:
    """OOD losses over training, all runs in two axes, and λ̂ against M."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.8), dpi=110, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    left, middle, right = figure.subplots(1, 3)
    colours = {name: colormaps["viridis"](0.9 * i / max(1, len(outcome.ood) - 1)) for i, name in enumerate(outcome.ood)}
    for name, loss in outcome.ood.items():
        left.plot((outcome.steps + 1).tolist(), loss.tolist(), color=colours[name], label=name)
    left.axhline(outcome.figures["ridge"], color="grey", ls="--", lw=1, label="ridge")
    left.axhline(
        outcome.figures["runs"][label(scale.transient)]["OOD loss of dMMSE"],
        color=colours[label(scale.transient)], ls=":", lw=1, label=f"dMMSE {label(scale.transient)}",
    )  # fmt: skip
    left.set(xscale="log", xlabel="step + 1", ylabel="squared error", title="loss on unseen tasks")
    left.legend(frameon=False, fontsize=7)
    for name, points in outcome.joint.points.items():
        middle.plot(*points[:, :2].T.tolist(), color=colours[name], marker=".", ms=3, lw=1.2)
        middle.plot(*points[-1:, :2].T.tolist(), "s", color=colours[name], ms=5)
    for name, place in outcome.joint.references.items():
        middle.plot(*place[:2, None].tolist(), "*", color="#D62728", ms=10)
        middle.annotate(
            name, place[:2].tolist(), xytext=(4, 4), textcoords="offset points", fontsize=6, color="#D62728"
        )
    one, two = (float(share) for share in outcome.joint.shares[:2])
    middle.set(
        xlabel=f"axis 1 ({one:.0%})",
        ylabel=f"axis 2 ({two:.0%})",
        title="all runs in one set of axes (squares: the end)",
    )
    for colour, (how, found) in zip(("#BBBBBB", "#333333"), outcome.llc.items(), strict=False):
        values, errors = zip(*((e.mean, e.stderr) for e in found.values()), strict=True)
        right.errorbar(range(len(values)), values, errors, fmt="o-", capsize=3, color=colour, label=how)
    right.set_xticks(range(len(outcome.ood)), list(outcome.ood), fontsize=8)
    right.set(ylabel="λ̂ ± standard error", title=f"λ̂ at the end (nβ = {NBETA:g}, γ = {LOCALIZATION:g})")
    right.legend(frameon=False, fontsize=7)
    for axis in (left, middle, right):
        axis.title.set_fontsize(10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Train, tell, draw, write down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="task sets")
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--steps", type=int, help="of training, in the place of the scale's own")
    parser.add_argument("--readings", type=int)
    parser.add_argument("--draws", type=int, help="of each chain for λ̂")
    parser.add_argument("--out", type=Path, default=Path("runs/transient_ridge"))
    options = parser.parse_args()
    given = {name: getattr(options, name) for name in ("steps", "readings", "draws")}
    scale = replace(SCALES[options.scale], **{name: value for name, value in given.items() if value is not None})
    options.out.mkdir(parents=True, exist_ok=True)
    report, missed = [], 0
    for seed in options.seeds:
        began, spent = time.perf_counter(), time.process_time()
        folder = options.out / f"seed{seed}"
        outcome = task_set(seed, scale, folder)
        seconds, cpu = time.perf_counter() - began, time.process_time() - spent
        print(f"\ntask set {seed}, {seconds:.0f} s, {cpu:.0f} s of processor\n{table(outcome)}")
        for criterion in outcome.criteria:
            what, value, side, limit = criterion
            missed += not came_out(criterion)
            print(f"    {'came out' if came_out(criterion) else 'MISSED  '}  {what}: {value:.3g} ({side} {limit:g})")
        print(f"    {outcome.figures['how to read']}")
        criteria = [
            {"what": c[0], "value": c[1], "limit": f"{c[2]} {c[3]}", "passed": came_out(c)} for c in outcome.criteria
        ]
        report.append({"seed": seed, "seconds": seconds, "processor": cpu, **outcome.figures, "criteria": criteria})
        logger = TensorBoardLogger(folder, name="joint", version="")
        title = f"In-context linear regression, task set {seed}"
        write_figure([logger], "joint/axes", partial(trajectory_figure, outcome.joint, title=title), scale.steps)
        picture(outcome, scale, title).savefig(folder / "transient_ridge.png")
        (options.out / "transient_ridge.json").write_text(json.dumps(report, indent=1))
    words = "all criteria came out" if not missed else f"{missed} criteria missed"
    print(f"\n{words}; figures: {options.out}")


if __name__ == "__main__":
    main()
