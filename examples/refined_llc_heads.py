"""Refined LLCs (arXiv:2410.02984) of the heads of a two-layer attention-only transformer while it learns induction.

Half of its sequences are bigrams of a Markov chain, half are random tokens that repeat. One monitor reads every head
on both halves together and on the repeated sequences alone; a second one, with another sampler seed, tells whether the
order of heads is one of heads or of noise. Run it by `python examples/refined_llc.py --parts heads`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from attention_only import next_token
from induction import Language, Progress, Scale, bigrams, repeated
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import lightning_slt as slt
from lightning_slt.analysis.curves import llc_curves
from lightning_slt.analysis.retraining import spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL, REPEATED = "all", "repeated"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One network's development; curves are lists by reading.

    Attributes:
        steps: Of the readings.
        heads: Names.
        loss: Of "induction" and "bigrams".
        scores: ``{"induction" or "previous": a curve of attention for each head}``.
        llc: ``{data: a curve of λ̂ for each head}``.
        stderr: Their errors.
        again_steps: Of the readings with another sampler seed.
        again: Their λ̂, as in `llc`.
        flagged: Share of estimates that a health check failed.
        seconds: Of the fit, and of all readings in it.
    """

    steps: list[int]
    heads: list[str]
    loss: dict[str, list[float]]
    scores: dict[str, list[list[float]]]
    llc: dict[str, list[list[float]]]
    stderr: dict[str, list[list[float]]]
    again_steps: list[int]
    again: dict[str, list[list[float]]]
    flagged: float
    seconds: dict[str, float]


def monitor(name: str, data: dict[str, Tensor], scale: Scale, *, seed: int, at_steps: list[int]) -> Any:
    """Refined LLCs of all heads with the published sampler, nβ and γ."""
    settings = slt.presets["attention-2-layer"].keywords()
    settings["sampling"] = slt.SamplingConfig(
        num_chains=scale.chains, num_draws=scale.draws, num_burnin=scale.burnin, batch_size=scale.minibatch, seed=seed
    )
    return slt.RefinedLLCMonitor(
        components="heads", data={key: TensorDataset(tokens) for key, tokens in data.items()}, loss_fn=next_token,
        at_steps=at_steps, name=name, **settings,
    )  # fmt: skip


def train(seed: int, scale: Scale, folder: Path) -> Run:
    """Train one network with two live monitors of its heads."""
    L.seed_everything(seed, verbose=False)
    half = scale.sequences // 2
    sequences = torch.cat([bigrams(half, scale, seed=seed), repeated(half, scale, seed=seed)[0]])
    chains, (loops, _) = (make(scale.sampled, scale, seed=seed + 10**4) for make in (bigrams, repeated))
    data = {ALL: torch.cat([chains[::2], loops[::2]]), REPEATED: loops}
    at_steps = list(range(scale.every, scale.steps + 1, scale.every))
    first = monitor("heads", data, scale, seed=0, at_steps=at_steps)
    again = monitor("again", data, scale, seed=1, at_steps=[scale.steps // 2, scale.steps])
    progress, logger = Progress(scale), TensorBoardLogger(folder, name=f"seed{seed}", version="")
    trainer = L.Trainer(
        max_steps=scale.steps, callbacks=[first, again, progress], logger=logger, log_every_n_steps=1,
        accelerator=scale.accelerator, devices=1, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.fit(Language(scale), DataLoader(TensorDataset(sequences), batch_size=scale.batch, shuffle=True))
    seconds = time.perf_counter() - began
    readings, others = (slt.load_records(logger.log_dir, name=m.name) for m in (first, again))
    curves, repeats = llc_curves(readings), llc_curves(others)
    heads = list(dict.fromkeys(name.partition(" on ")[0] for name in curves.names))

    steps = curves.steps.tolist()
    assert steps == progress.steps
    scores = {name: torch.stack(values, 1).tolist() for name, values in progress.scores.items()}

    def rows(names: tuple[str, ...], values: Tensor) -> dict[str, list[list[float]]]:
        return {key: [values[names.index(f"{head} on {key}")].tolist() for head in heads] for key in data}

    health = [e.health for r in (*readings, *others) for found in r.estimates.values() for e in found.values()]
    return Run(
        steps=steps, heads=[head.removeprefix("net.blocks.") for head in heads], loss=progress.loss,
        scores=scores, llc=rows(curves.names, curves.values),
        stderr=rows(curves.names, curves.stderr), again_steps=repeats.steps.tolist(),
        again=rows(repeats.names, repeats.values), flagged=sum(not h.ok for h in health) / len(health),
        seconds={"fit": seconds, "readings": sum(r.duration for r in (*readings, *others))},
    )  # fmt: skip


LEVELS = 1 / 2, 1 / 10
"""Shares of log V: the induction loss drops from above the first to below the second."""

LOOKS = {"induction": "what followed before", "previous": "the token before"}
"""Scores in words."""

Check = tuple[str, str, bool]
"""What was to come out, what did, and whether that is it."""


def drop(run: Run, scale: Scale) -> tuple[int, int] | None:
    """The last reading before the induction loss drops and the first one after it; None where it does not drop."""
    chance = torch.tensor(float(scale.vocabulary)).log()
    loss = torch.tensor(run.loss["induction"])
    before, after = (loss > LEVELS[0] * chance).nonzero()[:, 0], (loss < LEVELS[1] * chance).nonzero()[:, 0]
    return (int(before[-1]), int(after[0])) if len(before) and len(after) and before[-1] < after[0] else None


def strongest(run: Run, score: str) -> int:
    """The head with the largest score in the end."""
    return int(torch.tensor(run.scores[score])[:, -1].argmax())


def relative_change(run: Run, window: tuple[int, int]) -> Tensor:
    """``|λ̂ after / λ̂ before − 1|`` of each head on all sequences."""
    own = torch.tensor(run.llc[ALL])
    return (own[:, window[1]] / own[:, window[0]] - 1).abs()


def ranks(values: Tensor) -> list[int]:
    """1 for the largest."""
    return (values.argsort(descending=True).argsort() + 1).tolist()


def judge(run: Run, scale: Scale) -> list[Check]:
    """The paper's three statements about the head whose induction score is the largest in the end."""
    own, other = torch.tensor(run.llc[ALL]), torch.tensor(run.again[ALL])
    best, window = strongest(run, "induction"), drop(run, scale)
    head, checks = run.heads[best], []
    what = "head with the largest induction score has the largest relative change of wrLLC while induction is learnt"
    if window is None:
        checks.append((what, "the induction loss did not drop", False))
    else:
        change = relative_change(run, window)
        place = ranks(change)[best]
        told = f"{head} changes by {change[best]:.0%}, place {place} of {len(change)}"
        checks.append((what, told, place == 1))
    for step, values in zip(run.again_steps, other.T, strict=True):
        if step:
            rho = float(spearman(own[:, run.steps.index(step)], values))
            checks.append((f"order of heads with another sampler seed at step {step}", f"ρ = {rho:.2f}", rho >= 0.8))
    on = {key: ranks(torch.tensor(rows)[:, -1])[best] for key, rows in run.llc.items()}
    told = f"{head} from place {on[ALL]} to place {on[REPEATED]}"
    higher = on[REPEATED] < on[ALL] or on[REPEATED] == on[ALL] == 1
    checks.append(("repeated sequences raise that head's rank, or leave it the first", told, higher))
    whole = all(bool(torch.tensor(rows).isfinite().all()) for rows in (*run.llc.values(), *run.again.values()))
    return [(what, told, passed and whole) for what, told, passed in checks]


def observe(run: Run, scale: Scale) -> str:
    """Which heads stand out, whatever was expected of them."""
    window, last = drop(run, scale), torch.tensor(run.llc[REPEATED])[:, -1]
    said = {"largest on repeated sequences": int(last.argmax())}
    if window is not None:
        said["changes most"] = int(relative_change(run, window).argmax())
    said |= {f"looks most at {where}": strongest(run, name) for name, where in LOOKS.items()}
    return ", ".join(f"{what}: {run.heads[head]}" for what, head in said.items())


def draw(run: Run, scale: Scale, *, title: str) -> Figure:
    """Curves of all heads on both data sets, above their induction scores and the losses."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    (on_all, on_repeated), (scores, losses) = figure.subplots(2, 2, sharex=True)
    axes = {on_all: "wrLLC: all sequences", on_repeated: "wdrLLC: repeated sequences",
            scores: "induction score: share of attention", losses: "loss in nats"}  # fmt: skip
    best = strongest(run, "induction")
    for number, head in enumerate(run.heads):
        layer, place = divmod(number, scale.num_heads)
        colour = colormaps[("Blues", "Oranges")[layer]](0.4 + 0.55 * place / max(1, scale.num_heads - 1))
        style: dict[str, Any] = {"color": colour, "lw": 3.0 if number == best else 1.4, "zorder": 3}
        for axis, key in ((on_all, ALL), (on_repeated, REPEATED)):
            value, width = torch.tensor(run.llc[key][number]), torch.tensor(run.stderr[key][number])
            axis.plot(run.steps, value.tolist(), **style)
            band = ((value - width).tolist(), (value + width).tolist())
            axis.fill_between(run.steps, *band, color=colour, alpha=0.25, lw=0)
        scores.plot(run.steps, run.scores["induction"][number], label=head, **style)
    for name, colour in (("induction", "#333333"), ("bigrams", "#999999")):
        losses.plot(run.steps, run.loss[name], color=colour, label=name)
    window = drop(run, scale)
    for axis, name in axes.items():
        axis.set_title(name, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        if window is not None:
            axis.axvspan(*(run.steps[edge] for edge in window), color="#DDDDDD", alpha=0.5, lw=0, zorder=0)
    scores.legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    losses.legend(frameon=False, fontsize=8)
    for axis in (scores, losses):
        axis.set_xlabel("training step; grey: the induction loss drops")
    return figure


def heads(seeds: Sequence[int], scale: Scale, folder: Path) -> bool:
    """Train one network a seed, tell what came out, and write it down; whether everything did."""
    record: dict[str, Any] = {"scale": asdict(scale), "seeds": {}}
    for seed in seeds:
        run = train(seed, scale, folder)
        checks = judge(run, scale)
        print(f"seed {seed}: {run.seconds['readings']:.0f} of {run.seconds['fit']:.0f} s are readings")
        for what, told, passed in checks:
            print(f"seed {seed}: {'yes' if passed else 'NO '}  {what}: {told}")
        print(f"seed {seed}: {observe(run, scale)}")
        figure = draw(run, scale, title=f"Heads of an attention-only transformer, seed {seed}: λ̂ ± 1 s.e.")
        figure.savefig(folder / f"refined_llc_heads-{seed}.png")
        with SummaryWriter(str(folder / f"seed{seed}")) as writer:
            writer.add_figure("refined/heads", figure, run.steps[-1])
        record["seeds"][seed] = {
            "observed": observe(run, scale),
            "checks": [{"what": what, "found": told, "passed": passed} for what, told, passed in checks],
            **asdict(run),
        }
        (folder / "refined_llc_heads.json").write_text(json.dumps(rounded(record), ensure_ascii=False) + "\n")
    passes = [[check["passed"] for check in outcome["checks"]] for outcome in record["seeds"].values()]
    for what, passed in zip(checks, zip(*passes, strict=True), strict=True):
        print(f"{sum(passed)} of {len(passed)} seeds: {what[0]}")
    return all(all(passed) for passed in passes)


def rounded(value: Any) -> Any:
    """Four digits after the point are enough for a file."""
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    return round(value, 4) if isinstance(value, float) else value
