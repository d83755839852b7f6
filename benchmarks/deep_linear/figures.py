"""The pictures: estimates against the truth, and error, order and health against the step size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.deep_linear.metrics import absolute, order_preservation, relative_errors, spread
from benchmarks.deep_linear.networks import Plan
from benchmarks.deep_linear.report import guesses
from benchmarks.deep_linear.summary import RIGHT, Key, Row, best, state

Rows = Mapping[str, Sequence[Row]]

# Okabe & Ito, told apart with every kind of colour vision; states differ in marker or place too
COLOURS = {"ok": "#0072B2", "warned": "#E69F00", "failed": "#D55E00", "no number": "#BBBBBB"}
MARKERS = {"ok": "o", "warned": "s", "failed": "X"}
LABELS = {"ok": "healthy", "warned": "warning", "failed": "unreliable", "no number": "no chain finished"}
LINE, GUESS, INK = "#0072B2", "#666666", "#333333"
COLUMNS = 4
ERRORS = (0.003, 10.0)


def draw(rows: Rows, plans: Mapping[Key, Plan], title: str, folder: Path, stem: str) -> list[Path]:
    """Writes both pictures.

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = {f"{stem}-estimates.png": estimates(rows, plans, title), f"{stem}-step-sizes.png": steps(rows, plans, title)}
    for name, figure in made.items():
        FigureCanvasAgg(figure).print_png(folder / name)
    return [folder / name for name in made]


def estimates(rows: Rows, plans: Mapping[Key, Plan], title: str) -> Figure:
    """λ̂ against λ on log axes, one panel a sampler at its best step size."""
    count = len(rows)
    height = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(13, 3.3 * height + 0.9), dpi=130, layout="constrained")
    axes = figure.subplots(height, min(count, COLUMNS), sharex=True, sharey=True, squeeze=False)
    truths = [plan.truth for plan in plans.values()]
    drawn = [value for found in rows.values() for value in best(found).estimates if value is not None]
    least = max(min([*truths, *drawn]), min(truths) / 4)
    limits = np.array([least / 1.25, max(truths) * 1.6])
    for place, (name, found) in enumerate(rows.items()):
        axis = axes.flat[place]
        _scatter(axis, best(found), plans, limits)
        axis.set_title(name, fontsize=11, color=INK, loc="left")
        if place >= count - axes.shape[1]:
            axis.set_xlabel("true learning coefficient λ")
            axis.xaxis.set_tick_params(labelbottom=True)
        if place % axes.shape[1] == 0:
            axis.set_ylabel("estimate λ̂")
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    figure.suptitle(f"{title}: each sampler at its best step size", fontsize=13, color=INK)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=COLOURS[k], marker=MARKERS[k], linestyle="", label=f"health: {LABELS[k]}") for k in MARKERS
    ]
    handles.append(Line2D([], [], color=GUESS, marker="_", linestyle="", label="the guess d/2"))
    handles.append(Patch(color="#DDDDDD", label="within 15 %"))
    if any(plan.truth_kind != "exact" for plan in plans.values()):
        handles.append(
            Line2D([], [], color=INK, marker="o", markerfacecolor="w", linestyle="", label="λ a lower bound")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _scatter(axis: Axes, row: Row, plans: Mapping[Key, Plan], limits: np.ndarray) -> None:
    axis.fill_between(limits, limits * (1 - RIGHT), limits * (1 + RIGHT), color="#DDDDDD", linewidth=0)
    axis.plot(limits, limits, color=INK, linewidth=1)
    for truth, cell in zip(row.truths, row.cells, strict=True):
        plan, kind = plans[cell["seed"], cell["index"]], state(cell)
        axis.plot(truth, plan.parameters / 2, "_", color=GUESS, markersize=7, zorder=1)
        if kind == "no number":
            continue
        face = COLOURS[kind] if plan.truth_kind == "exact" else "white"
        style = {"marker": MARKERS[kind], "markersize": 6, "markerfacecolor": face, "elinewidth": 1, "linestyle": ""}
        axis.errorbar(
            truth, cell["estimate"], yerr=cell["stderr"] or 0.0, color=COLOURS[kind], alpha=0.9, zorder=3, **style
        )
    axis.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    for scale in (axis.xaxis, axis.yaxis):
        scale.set_major_locator(LogLocator(subs=(1, 2, 5)))
        scale.set_major_formatter("{x:g}")
        scale.set_minor_locator(NullLocator())
    axis.set_box_aspect(1)
    missing = row.states()["no number"]
    note = f"step size {row.step_size:g}\nmedian |error| {row.error.median:.3f}\norder {row.order:.3f}"
    note += f"\n{missing} without a number" if missing else ""
    axis.text(0.97, 0.04, note, transform=axis.transAxes, va="bottom", ha="right", fontsize=9, color=INK)
    _clean(axis)


def steps(rows: Rows, plans: Mapping[Key, Plan], title: str) -> Figure:
    """|relative error|, order and health against the step size, one column a sampler."""
    count, columns = len(rows), min(len(rows), COLUMNS)
    height = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(13, 5.2 * height + 0.8), dpi=130, layout="constrained")
    grid = figure.add_gridspec(height * 3, columns, height_ratios=[3, 1.6, 0.9] * height)
    truths = [plan.truth for plan in plans.values()]
    guess = next(iter(guesses(plans).values()))
    trivial = spread(absolute(relative_errors(guess, truths))).median, order_preservation(guess, truths)
    for place, (name, found) in enumerate(rows.items()):
        block, column = divmod(place, columns)
        three = [figure.add_subplot(grid[3 * block + part, column]) for part in range(3)]
        _error_panel(three[0], found, trivial[0])
        _order_panel(three[1], found, trivial[1])
        _health_panel(three[2], found)
        three[0].set_title(name, fontsize=11, color=INK, loc="left")
        three[2].set_xlabel("step size")
        span = [found[0].step_size / 1.8, found[-1].step_size * 1.8]
        for axis in three:
            axis.set(xscale="log", xlim=span)
            axis.axvline(best(found).step_size, color=INK, linewidth=0.8, linestyle=":", zorder=0)
        for axis in three[:2]:
            axis.tick_params(labelbottom=False)
        for axis, label in zip(three, ("|relative error|", "order", "health"), strict=True):
            axis.set_ylabel(label if column == 0 else "")
            axis.tick_params(labelleft=column == 0 and label != "health")
    figure.suptitle(f"{title}: error, order and health against step size", fontsize=13, color=INK)
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=LINE, marker="o", markersize=4, label="median, quartiles shaded"),
        Line2D([], [], color=GUESS, linestyle="--", label="without sampling: d/2, or its order"),
        Line2D([], [], color=INK, linestyle=":", label="best step size"),
        *(Patch(color=COLOURS[kind], label=LABELS[kind]) for kind in COLOURS),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _error_panel(axis: Axes, found: Sequence[Row], trivial: float) -> None:
    x = [row.step_size for row in found]
    lower, median, upper = (np.clip(v, *ERRORS) for v in zip(*(row.error for row in found), strict=True))
    axis.fill_between(x, lower, upper, color=LINE, alpha=0.18, linewidth=0)
    axis.plot(x, median, color=LINE, marker="o", markersize=4)
    axis.axhline(trivial, color=GUESS, linestyle="--", linewidth=1)
    axis.set(yscale="log", ylim=(ERRORS[0], ERRORS[1] * 1.15))
    axis.set_yticks([0.01, 0.1, 1, 10], ["0.01", "0.1", "1", "≥ 10"])
    axis.minorticks_off()
    _clean(axis)


def _order_panel(axis: Axes, found: Sequence[Row], trivial: float) -> None:
    axis.plot([row.step_size for row in found], [row.order for row in found], color=LINE, marker="o", markersize=4)
    axis.axhline(trivial, color=GUESS, linestyle="--", linewidth=1)
    axis.set(ylim=(-0.05, 1.05))
    axis.set_yticks([0, 0.5, 1])
    _clean(axis)


def _health_panel(axis: Axes, found: Sequence[Row]) -> None:
    edge = 10**0.2
    for row in found:
        bottom, states = 0.0, row.states()
        for kind, colour in COLOURS.items():
            share = states[kind] / len(row.cells)
            left, right = row.step_size / edge, row.step_size * edge
            axis.bar(left, share, width=right - left, align="edge", bottom=bottom, color=colour)
            bottom += share
    axis.set(ylim=(0, 1), yticks=[])
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _clean(axis: Axes) -> None:
    axis.grid(True, color="#EEEEEE", linewidth=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
