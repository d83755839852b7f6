"""Susceptibilities of the heads of an attention-only transformer, held against what zero-ablation says of them.

Part (c) of `susceptibilities.py`, which runs it. At scale "small" the network has learnt a skip-bigram and induction,
and the question is whether the response matrix tells both kinds of tokens apart, by the heads that do the work. At
scale "paper" the tokens come from a file, and induction is held against everything else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from attention_only import (
    INDUCTION,
    LENGTH,
    PLAIN,
    SKIP,
    VOCABULARY,
    Transformer,
    ablations,
    fit,
    language,
    next_token,
    seen_pairs,
    token_rows,
    train_language,
    two_mechanisms,
)
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.agreement import auc
from lightning_slt.analysis.responses import extremes, modes, noise_share, standardized
from lightning_slt.estimators import Responses

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of network, data and chains; ``against`` is the kind of token that induction is told from."""

    vocabulary: int = VOCABULARY
    length: int = LENGTH
    width: int = 48
    num_heads: int = 4
    steps: int = 1500
    batch: int = 32
    nbeta: float = 100.0
    localization: float = 20.0
    step_size: float = 1.3e-3
    chains: int = 4
    draws: int = 25
    burnin: int = 300
    thinning: int = 24
    minibatch: int = 16
    sampled: int = 1024
    reference: int = 64
    probe: int = 64
    against: int = SKIP


SCALES = {
    "small": Scale(),
    "paper": Scale(
        vocabulary=5000, length=1024, width=256, num_heads=8, steps=50_000, batch=100, nbeta=30.0, localization=300.0,
        step_size=1e-3, chains=4, draws=100, burnin=0, thinning=1, minibatch=16, sampled=4096, reference=64, probe=16,
        against=PLAIN,
    ),
}  # fmt: skip

Reading = tuple[Transformer, TensorDataset, Tensor, Tensor]
"""A network, what is sampled from, the probe's tokens ``[sample, token]``, and their kinds ``[sample, token − 1]``."""


def two_mechanisms_learnt(seed: int, scale: Scale) -> Reading:
    """The small network, and sequences that it has not seen."""
    net = train_language(seed, steps=scale.steps, width=scale.width, num_heads=scale.num_heads, batch=scale.batch)
    return net, language(scale.sampled, seed=seed), *two_mechanisms(scale.probe, seed=1000 + seed)


def text_learnt(seed: int, scale: Scale, file: Path, weights: Path | None) -> Reading:
    """A network of the paper's size on a file's tokens, trained here where no weights are given."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    net = Transformer(
        vocabulary=scale.vocabulary, length=scale.length, width=scale.width, num_heads=scale.num_heads
    ).to(device)
    size = {"vocabulary": scale.vocabulary, "length": scale.length}
    probe, sampled = token_rows(file, count=scale.probe, **size), scale.probe + scale.sampled
    data = token_rows(file, count=scale.sampled, skip=scale.probe, **size)
    if weights is not None:
        net.load_state_dict(torch.load(weights, weights_only=True, map_location=device))
    else:
        rows = token_rows(file, count=scale.batch * 64, skip=sampled, **size)
        fit(net, rows, steps=scale.steps, batch=scale.batch, seed=seed, learning_rate=1e-3)
    return net, TensorDataset(data), probe, seen_pairs(probe)


def responses(reading: Reading, scale: Scale, *, seed: int) -> Responses:
    """The response matrix of all heads, with the control at nβ = 0."""
    net, data, tokens, _ = reading
    estimator = slt.Susceptibility(
        slt.Probe(TensorDataset(tokens), name="text"), "heads", control=True,
        reference=slt.Probe(None, name="reference", num_samples=scale.reference),
    )  # fmt: skip
    found = slt.estimate(
        net, data, [estimator], loss_fn=next_token, sampler=slt.SGLD(step_size=scale.step_size),
        nbeta=scale.nbeta, localization=scale.localization,
        sampling=slt.SamplingConfig(
            num_chains=scale.chains, num_draws=scale.draws, num_burnin=scale.burnin, thinning=scale.thinning,
            batch_size=scale.minibatch, seed=seed,
        ),
    )  # fmt: skip
    return found["susceptibility"]


MODES = {"raw PC2": 1, "standardized PC1": 0}
"""Where the two mechanisms may show: the first mode of the raw matrix is the mean response."""


def told(matrix: Tensor, of_row: Tensor, contrast: Tensor, *, against: int) -> dict[str, dict[str, float]]:
    """Of each mode in :data:`MODES`: AUC of its scores for the kind of token, |correlation| of its loadings.

    Args:
        matrix: χ ``[row, component]``.
        of_row: Kind of each row's token.
        contrast: How much more ablating a head costs induction than the other kind ``[component]``.
        against: The other kind.
    """
    either, outcome = (of_row == INDUCTION) | (of_row == against), {}
    for name, mode in MODES.items():
        found = modes(standardized(matrix) if name.startswith("standardized") else matrix)
        area = float(auc(found.scores[either, mode], of_row[either] == INDUCTION))
        correlation = torch.corrcoef(torch.stack([found.loadings[:, mode], contrast]))[0, 1]
        outcome[name] = {"AUC": max(area, 1 - area), "correlation": abs(float(correlation))}
    return outcome


def outcome(found: Responses, kinds: Tensor, contrast: Tensor, *, against: int) -> dict[str, Any]:
    """Every criterion with its value, and whether one and the same mode meets all that are about modes."""
    of_row = kinds[found.rows[:, 1], found.rows[:, 2]]
    if found.control is None:
        raise ValueError("responses without a control; write Susceptibility(…, control=True)")
    mine, control = (told(m, of_row, contrast, against=against) for m in (found.matrix, found.control))
    share = float(modes(found.matrix).share[0])
    criteria = {
        name: {
            "AUC ≥ 0.90": mine[name]["AUC"] >= 0.90,
            "|correlation| ≥ 0.7": mine[name]["correlation"] >= 0.7,
            "AUC above that at nβ = 0": mine[name]["AUC"] > control[name]["AUC"],
        }
        for name in MODES
    }
    closer = {
        f"{name}: |correlation| above that at nβ = 0": mine[name]["correlation"] > control[name]["correlation"]
        for name in MODES
    }
    return {
        "raw PC1": share, "modes": mine, "control": control,
        "criteria": {"raw PC1 ≥ 0.8": share >= 0.8, **criteria}, "not required": closer,
        "passed": share >= 0.8 and any(all(of.values()) for of in criteria.values()),
        "noise": noise_share(found.matrix, found.stderr), "uniform": found.uniform, "health": str(found.health),
        "rhat": found.health.values["rhat"], "step_size": found.health.values.get("step_size"),
    }  # fmt: skip


def ablation_contrast(reading: Reading, *, against: int) -> Tensor:
    """How much more a head that says nothing costs induction than the other kind of token, in nats ``[component]``."""
    net, _, tokens, kinds = reading
    rise = ablations(net, tokens.to(net.head.weight.device)).cpu().double()
    return rise[kinds == INDUCTION].mean(0) - rise[kinds == against].mean(0)


def heads(
    seed: int, scale: Scale, *, tokens: Path | None = None, weights: Path | None = None
) -> tuple[dict[str, Any], Figure]:
    """One network: what came out, and the picture of its response matrix."""
    began = time.perf_counter()
    reading = two_mechanisms_learnt(seed, scale) if tokens is None else text_learnt(seed, scale, tokens, weights)
    found, contrast = responses(reading, scale, seed=seed), ablation_contrast(reading, against=scale.against)
    record = {"seed": seed, **outcome(found, reading[3], contrast, against=scale.against)}
    record["seconds"] = time.perf_counter() - began
    return record, heads_figure(found, reading, contrast, against=scale.against)


# the picture

COLOURS = ("#0072B2", "#D55E00", "#999999")
"""Of induction, the kind it is told from, and neither."""

OTHER = {SKIP: "skip-bigram", PLAIN: "anything else"}


def in_context(tokens: Tensor) -> Callable[[int, int], str]:
    """Names a row by the tokens up to it, the one that is predicted behind an arrow."""

    def say(sample: int, token: int) -> str:
        before = tokens[sample, max(0, token - 2) : token + 1].tolist()
        return f"{' '.join(map(str, before))} → {int(tokens[sample, token + 1])}"

    return say


def heads_figure(found: Responses, reading: Reading, contrast: Tensor, *, against: int) -> Figure:
    """The matrix in the order of its first mode beside the tokens' kinds; loadings; scores; the ends of the modes."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    values, of_row = standardized(found.matrix), reading[3][found.rows[:, 1], found.rows[:, 2]]
    first, names = modes(values), ("induction", OTHER[against], "neither")
    kind = torch.where(of_row == INDUCTION, 0, torch.where(of_row == against, 1, 2))
    order = first.scores[:, 0].argsort()
    figure = Figure(figsize=(14, 8), dpi=100, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    strip, heat, loads, scores = top.subplots(1, 4, width_ratios=(0.2, 2, 2, 2))
    strip.imshow(kind[order, None].numpy(), aspect="auto", cmap=ListedColormap(COLOURS), vmin=0, vmax=2,
                 interpolation="nearest")  # fmt: skip
    strip.set(xticks=[], yticks=[], ylabel=f"{len(values)} tokens, by mode 1", xlabel="kind")
    scale = float(values.abs().quantile(0.98))
    image = heat.imshow(
        values[order].numpy(), aspect="auto", cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest"
    )
    top.colorbar(image, ax=heat, shrink=0.8)
    short = [name.removeprefix("blocks.") for name in found.components]
    heat.set_xticks(range(len(short)), short, rotation=90)
    heat.set_yticks([])
    heat.set_title("standardized χ; blue: expressed", loc="left", fontsize=10)
    place, loading = torch.arange(len(short)), first.loadings[:, 0]
    sign = float((loading @ contrast).sign())
    loads.bar((place - 0.2).numpy(), loading.numpy(), width=0.4, color="#333333", label="loading of mode 1")
    loads.bar((place + 0.2).numpy(), (sign * contrast / contrast.norm()).numpy(), width=0.4, color="#E69F00",
              label="contrast of zero-ablations, length 1")  # fmt: skip
    loads.axhline(0, color="#333333", linewidth=0.8)
    loads.set_xticks(range(len(short)), short, rotation=90)
    loads.margins(y=0.2)
    loads.legend(frameon=False, fontsize=8, loc="upper right")
    correlation = abs(float(torch.corrcoef(torch.stack([loading, contrast]))[0, 1]))
    loads.set_title(f"components; |correlation| {correlation:.2f}", loc="left", fontsize=10)
    for number in kind.unique().tolist():
        scores.hist(first.scores[kind == number, 0].numpy(), bins=40, density=True, histtype="step", linewidth=1.6,
                    color=COLOURS[number], label=names[number])  # fmt: skip
    area = float(auc(first.scores[kind < 2, 0], kind[kind < 2] == 0))
    scores.legend(frameon=False, fontsize=8)
    scores.set_title(f"scores of mode 1; AUC {max(area, 1 - area):.2f}", loc="left", fontsize=10)
    scores.set(yticks=[], ylabel="density")
    for axis in (heat, loads, scores):
        axis.spines[["top", "right"]].set_visible(False)
    _ends(bottom, found, short, [COLOURS[k] for k in kind.tolist()], in_context(reading[2]))
    return figure


def _ends(figure: Any, found: Responses, names: list[str], colours: list[str], say: Callable[[int, int], str]) -> None:
    """Both ends of the first three modes in words, each token in the colour of its kind."""
    of = modes(standardized(found.matrix))
    for mode, axis in enumerate(figure.subplots(1, 3)):
        axis.set_axis_off()
        axis.set_title(f"mode {mode + 1}: {float(of.share[mode]):.0%}", loc="left", fontsize=10)
        ends = extremes(of, mode, count=6)
        for column, (rows, parts) in enumerate(zip(ends.rows, ends.components[::-1], strict=True)):
            loaded = [f"{names[c]} {float(of.loadings[c, mode]):+.2f}" for c in parts[:3]]
            axis.text(column / 2, 0.97, "\n".join(loaded), va="top", fontsize=8, transform=axis.transAxes)
            axis.text(column / 2, 0.72, "express", va="top", fontsize=8, style="italic", transform=axis.transAxes)
            for line, row in enumerate(rows):
                axis.text(column / 2, 0.62 - 0.09 * line, say(*found.rows[row, 1:].tolist()), va="top", fontsize=8,
                          color=colours[row], transform=axis.transAxes)  # fmt: skip
