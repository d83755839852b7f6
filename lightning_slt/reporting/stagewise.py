"""Influence over training as a picture and as a table of what happened."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_slt.analysis.stagewise import Event, InfluenceCurves
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, HELPFUL, HARMFUL = "#333333", "#3366AA", "#CC6633"
MOST_PANELS = 12
"""Curves that are drawn: those that move most against their errors."""


def events_table(events: Sequence[Event]) -> str:
    """Flips and peaks as a Markdown table."""
    if not events:
        return "No influence has changed its sign or peaked beyond its error."
    rows = ["| step | influence of → on | what | standard errors |", "|---|---|---|---|"]
    for e in events:
        what = "turns" if e.kind == "flip" else "peak,"
        between = f" (between {e.first} and {e.last})" if e.kind == "flip" else ""
        sign = "positive (harmful)" if e.sign > 0 else "negative (helpful)"
        rows.append(f"| {e.step:.4g}{between} | {e.name} | {what} {sign} | {e.z:.1f} |")
    return "\n".join(rows)


@picture
def stagewise_figure(
    curves: InfluenceCurves, events: Sequence[Event], *, title: str = "", boundaries: Sequence[float] = ()
) -> Figure:
    """One panel a curve, with bands of two standard errors, flips as lines and peaks as triangles.

    Args:
        curves: All curves; those that move most against their errors are drawn.
        events: What happened to them.
        title: Above all panels.
        boundaries: Steps at which stages end, drawn through all panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    moved = (curves.values / curves.stderr).nan_to_num(0.0, 0.0, 0.0).abs().amax(0)
    shown = sorted(moved.argsort(descending=True)[:MOST_PANELS].tolist())
    across = min(4, len(shown))
    down = -(-len(shown) // across)
    figure = Figure(figsize=(1 + 3.2 * across, 0.6 + 2.2 * down), dpi=110, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 45 * across)), fontsize=10, color=INK, x=0.01, ha="left")
    steps = curves.steps.tolist()
    panels = figure.subplots(down, across, squeeze=False, sharex=True).ravel()
    for axis, index in zip(panels, shown, strict=False):
        value, width = curves.values[:, index], 2 * curves.stderr[:, index]
        axis.axhline(0, color="#BBBBBB", lw=0.8)
        for boundary in boundaries:
            axis.axvline(boundary, color="#999999", lw=0.8, ls="--")
        axis.plot(steps, value.tolist(), color=INK, lw=1.2, marker=".", ms=3)
        axis.fill_between(steps, (value - width).tolist(), (value + width).tolist(), color=INK, alpha=0.15, lw=0)
        for event in (e for e in events if e.name == curves.names[index]):
            colour = HARMFUL if event.sign > 0 else HELPFUL
            if event.kind == "flip":
                axis.axvline(event.step, color=colour, lw=1.2)
            else:
                at = float(value[steps.index(event.first)])
                axis.plot([event.step], [at], color=colour, marker="v" if event.sign > 0 else "^", ms=7)
        if len(steps) > 2 and steps[-1] > 30 * max(1, steps[1]):
            axis.set_xscale("symlog", linthresh=max(1, steps[1]))
        axis.set_title(curves.names[index], fontsize=9, color=INK, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in panels[len(shown) :]:
        axis.set_visible(False)
    legend = "step; lines: the sign turns; triangles: peaks; orange positive (harmful), blue negative"
    figure.supxlabel("\n".join(textwrap.wrap(legend, 55 * across)), fontsize=8)
    return figure
