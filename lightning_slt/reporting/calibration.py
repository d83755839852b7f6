"""A calibration as a picture and as a table: where λ̂ depends on the settings, and which of them were refused."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_slt.calibration.sweep import Trial
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito, told apart with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK = "#333333"


def calibration_table(trials: Sequence[Trial], chosen: Trial | None) -> str:
    """All trials as a Markdown table, the suggestion in bold."""
    rows = ["| nβ | γ | κ | ε | λ̂ | acceptance | R̂ | verdict |", "|---|---|---|---|---|---|---|---|"]
    for trial in trials:
        estimate = trial.estimate
        cells = [
            f"{trial.nbeta:.4g}",
            f"{trial.localization:.4g}",
            f"{trial.condition:.3g}",
            f"{trial.sampler.step_size:.3g}",
            f"{estimate.mean:.4g} ± {estimate.stderr:.2g}",
            "" if math.isnan(trial.acceptance) else f"{trial.acceptance:.2f}",
            f"{estimate.health.values.get('rhat', math.nan):.3g}",
            "suggested" if trial is chosen else ", ".join(trial.refused) or "possible",
        ]
        rows.append("| " + " | ".join(f"**{c}**" if trial is chosen and c else c for c in cells) + " |")
    return "\n".join(rows)


@picture
def calibration_figure(trials: Sequence[Trial], chosen: Trial | None, *, title: str) -> Figure:
    """λ̂ against ε and against nβ, the acceptance, and the traces of the suggestion.

    Args:
        trials: All that was tried.
        chosen: The suggestion; without one the traces are those of the trial that was refused for the least.
        title: Above all panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), dpi=110, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 130)), fontsize=10, color=INK, x=0.01, ha="left")
    steps, nbetas, acceptance, traces = figure.subplots(2, 2).flat
    for group, style in _groups(trials):
        label = f"nβ {group[0].nbeta:.3g}, γ {group[0].localization:.3g}, κ {group[0].condition:.2g}"
        _series(steps, group, [t.sampler.step_size for t in group], style, label)
        known = [t for t in group if not math.isnan(t.acceptance)]
        _dots(acceptance, [t.sampler.step_size for t in known], [t.acceptance for t in known], known, style)
    _over_nbeta(nbetas, trials)
    _decorate(steps, "step size ε", "λ̂", "λ̂ against the step size: a plateau, then bias")
    _decorate(nbetas, "nβ", "λ̂", "λ̂ against nβ, at each κ = nβ λmax/γ")
    _decorate(acceptance, "step size ε", "acceptance", "acceptance of a Metropolis correction")
    for axis in (steps, nbetas):
        if chosen is not None:
            x = chosen.sampler.step_size if axis is steps else chosen.nbeta
            axis.plot(x, chosen.estimate.mean, "o", ms=16, mfc="none", mec=INK, mew=1.5, label="suggested")
    if not any(not math.isnan(t.acceptance) for t in trials):
        acceptance.text(0.5, 0.5, "this sampler's steps have no density", transform=acceptance.transAxes, ha="center")
    shown = chosen or min(trials, key=lambda t: (len(t.refused), t.sampler.step_size))
    _traces(traces, shown, "suggested" if chosen is not None else "refused for " + "; ".join(shown.refused))
    steps.legend(fontsize=7, frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    nbetas.legend(fontsize=8, frameon=False)
    return figure


def _key(trial: Trial) -> tuple[float, float]:
    return trial.nbeta, trial.localization


def _groups(trials: Sequence[Trial]) -> list[tuple[list[Trial], dict[str, str]]]:
    """Trials of one nβ and γ by step size, a colour for each nβ and a marker for each of its γ."""
    nbetas = sorted({t.nbeta for t in trials})
    groups = []
    for colour, nbeta in enumerate(nbetas):
        for marker, gamma in enumerate(sorted({t.localization for t in trials if t.nbeta == nbeta})):
            group = sorted((t for t in trials if _key(t) == (nbeta, gamma)), key=lambda t: t.sampler.step_size)
            groups.append((group, _style(colour, marker)))
    return groups


def _style(colour: int, marker: int) -> dict[str, str]:
    return {"color": COLOURS[colour % len(COLOURS)], "marker": MARKERS[marker % len(MARKERS)]}


def _series(axis: Axes, group: Sequence[Trial], x: Sequence[float], style: dict[str, str], label: str) -> None:
    values = [t.estimate.mean for t in group]
    errors = [t.estimate.stderr for t in group]
    axis.errorbar(x, values, errors, color=style["color"], lw=1, elinewidth=0.8, fmt="-", alpha=0.8)
    axis.plot([], [], style["marker"] + "-", color=style["color"], label=label)
    _dots(axis, x, values, group, style)


def _dots(axis: Axes, x: Sequence[float], y: Sequence[float], group: Sequence[Trial], style: dict[str, str]) -> None:
    """Filled where a setting is possible, hollow where it was refused."""
    for a, b, trial in zip(x, y, group, strict=True):
        axis.plot(a, b, style["marker"], ms=6, color=style["color"], mfc="white" if trial.refused else style["color"])


def _over_nbeta(axis: Axes, trials: Sequence[Trial]) -> None:
    """Each κ at the longest step that was not refused, or the shortest."""
    best: dict[tuple[float, float], Trial] = {}
    for trial in sorted(trials, key=lambda t: t.sampler.step_size):
        if _key(trial) not in best or not trial.refused:
            best[_key(trial)] = trial
    for index, kappa in enumerate(sorted({float(f"{t.condition:.2g}") for t in best.values()})):
        line = sorted((t for t in best.values() if float(f"{t.condition:.2g}") == kappa), key=lambda t: t.nbeta)
        style = _style(index, index)
        _series(axis, line, [t.nbeta for t in line], style, f"κ {kappa:.3g}")


def _traces(axis: Axes, trial: Trial, verdict: str) -> None:
    trace = trial.nbeta * trial.trace
    window = max(1, trace.shape[1] // 100)
    smooth = trace[:, : trace.shape[1] // window * window].unfold(1, window, window).mean(2)
    for row in smooth[:16]:
        axis.plot([window * (i + 0.5) for i in range(len(row))], row.tolist(), lw=0.7, alpha=0.7, color=COLOURS[0])
    axis.axhline(trial.estimate.mean, color=INK, lw=1)
    _decorate(axis, "step", "nβ (L − L(w*))", f"traces at ε {trial.sampler.step_size:.3g}, {verdict}", log=False)


def _decorate(axis: Axes, x: str, y: str, title: str, *, log: bool = True) -> None:
    axis.set_title("\n".join(textwrap.wrap(title, 80)), fontsize=10, color=INK, loc="left")
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if log:
        axis.set_xscale("log")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
