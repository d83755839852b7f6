"""Trajectories as a picture, with reference predictors as stars, and their turns as a table."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lightning_slt.analysis.forms import Form, lissajous
from lightning_slt.analysis.trajectories import JointTrajectories
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#333333"
STAR = "#D62728"

HOW_TO_READ = (
    "Principal components of any smooth curve oscillate, those of a random walk too: a Lissajous figure, turns and "
    "all. Compare with references rather than read shapes."
)
"""Stands beside every picture and table of a trajectory."""


def how_to_read(joint: JointTrajectories) -> str:
    """The warning, and how far each axis is what a random walk would show, runs with three readings or more."""
    likeness = {name: lissajous(points) for name, points in joint.points.items() if len(points) > 2}
    if not likeness:
        return HOW_TO_READ
    shown = list(likeness.items())[:1] if len(likeness) == 1 else _extremes(likeness)
    told = "; ".join(
        (f"{name}: " if len(likeness) > 1 else "") + ", ".join(f"{float(v):.2f}" for v in values)
        for name, values in shown
    )
    return f"{HOW_TO_READ} Squared correlation of axes 1, 2, … with those of a random walk: {told}."


def _extremes(likeness: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The runs least and most like a random walk."""
    ordered = sorted(likeness.items(), key=lambda item: float(item[1].nan_to_num(0).mean()))
    return [ordered[0], ordered[-1]]


def forms_table(joint: JointTrajectories, found: Mapping[str, Sequence[Form]]) -> str:
    """Turns as a Markdown table with the reference that is nearest in the axes, and the warning below.

    Args:
        joint: The trajectories.
        found: Turns of each run, see :func:`lightning_slt.analysis.forms.forms`.
    """
    rows = ["| run | step | form | turning | radius | nearest reference |", "|---|---|---|---|---|---|"]
    for name, turns in found.items():
        for form in turns:
            step, place = int(joint.steps[name][form.index]), joint.points[name][form.index]
            radius = f"{1 / form.curvature:.3g}" if form.curvature > 0 else "0"
            rows.append(
                f"| {name} | {step} | {form.kind} | {form.turning:.0f}° | {radius} | {_nearest(joint, place)} |"
            )
    if len(rows) == 2:
        rows = ["No cusp and no vertex stands out."]
    shares = ", ".join(f"{float(share):.1%}" for share in joint.shares)
    lines = [*rows, "", f"Axes explain {shares} of the variance."]
    hidden = [f"{name} {share:.0%}" for name, share in joint.outside.items()]
    if hidden:
        lines.append(f"Of the squared distances of references from the mean no axis shows {', '.join(hidden)}.")
    return "\n".join([*lines, how_to_read(joint)])


def _nearest(joint: JointTrajectories, place: Tensor) -> str:
    apart = {name: float((place - reference).norm()) for name, reference in joint.references.items()}
    if not apart:
        return ""
    name = min(apart, key=lambda key: apart[key])
    return f"{name} at {apart[name]:.3g}"


@picture
def trajectory_figure(
    joint: JointTrajectories, *, found: Mapping[str, Sequence[Form]] | None = None, title: str = ""
) -> Figure:
    """Axis 1 against axes 2 and 3; a single run coloured by step, several each in a colour of its own.

    Args:
        joint: The trajectories.
        found: Turns of each run, ringed.
        title: Above all panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    axes = len(joint.shares)
    others: list[int | None] = [*range(1, min(axes, 3))] or [None]
    figure = Figure(figsize=(1 + 4.5 * len(others), 4.9), dpi=110, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 55 * len(others))), fontsize=10, color=INK, x=0.01, ha="left")
    figure.supxlabel(
        "\n".join(textwrap.wrap(how_to_read(joint), 75 * len(others))), fontsize=7, color=INK, x=0.01, ha="left"
    )
    panels = figure.subplots(1, len(others), squeeze=False)[0]
    colours = colormaps["viridis"]
    for panel, other in zip(panels, others, strict=True):
        drawn = None
        for number, (name, points) in enumerate(joint.points.items()):
            x, y = _coordinates(points, other)
            if len(joint.points) == 1:
                panel.plot(x, y, color="#BBBBBB", lw=1, zorder=1)
                times = joint.steps[name].double().add(1).log10().tolist()
                drawn = panel.scatter(x, y, c=times, cmap=colours, s=18, zorder=2)
            else:
                colour = colours(0.9 * number / (len(joint.points) - 1))
                panel.plot(x, y, color=colour, lw=1.2, marker=".", ms=3, label=name, zorder=2)
                panel.plot(x[-1:], y[-1:], "s", color=colour, ms=5, zorder=3)
            for form in (found or {}).get(name, ()):
                panel.plot(x[form.index], y[form.index], "o", mfc="none", mec=INK, ms=10, zorder=4)
        _stars(panel, joint.references, other)
        panel.set_xlabel(_label(joint, 0))
        panel.set_ylabel("" if other is None else _label(joint, other))
        panel.spines[["top", "right"]].set_visible(False)
        if len(joint.points) > 1 and panel is panels[-1]:
            panel.legend(frameon=False, fontsize=7)
        if drawn is not None and panel is panels[-1]:
            bar = figure.colorbar(drawn, ax=panel, shrink=0.8, label="step")
            shown = [step for step in (0, *(10**k for k in range(1, 12))) if step <= 10 ** max(times) - 1]
            bar.set_ticks([math.log10(step + 1) for step in shown], labels=[f"{step:g}" for step in shown])
    return figure


def _coordinates(points: Tensor, other: int | None) -> tuple[list[float], list[float]]:
    return points[:, 0].tolist(), [0.0] * len(points) if other is None else points[:, other].tolist()


def _label(joint: JointTrajectories, axis: int) -> str:
    return f"axis {axis + 1} ({float(joint.shares[axis]):.0%} of the variance)"


def _stars(panel: Any, references: Mapping[str, Tensor], other: int | None) -> None:
    for name, place in references.items():
        x, y = float(place[0]), 0.0 if other is None else float(place[other])
        if math.isfinite(x) and math.isfinite(y):
            panel.plot(x, y, "*", color=STAR, ms=11, zorder=5)
            panel.annotate(name, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=STAR)
