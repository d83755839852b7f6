"""Curves of many components over a run: those that develop alike side by side, as a picture and as a table."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from lightning_slt.analysis.curves import Curves, Groups
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#333333"
LOG_FROM = 30
"""Ratio of the last step to the first one above zero from which the axis is logarithmic."""


def groups_table(curves: Curves, groups: Groups) -> str:
    """Groups as a Markdown table: who belongs, and from where to where their mean goes."""
    rows = ["| group | curves | first | largest | last |", "|---|---|---|---|---|"]
    for number in range(int(groups.labels.max()) + 1):
        mine = groups.labels == number
        names = ", ".join(name for name, member in zip(curves.names, mine.tolist(), strict=True) if member)
        mean = curves.values[mine].nanmean(0)
        seen = mean[mean.isfinite()]
        highest = int(mean.nan_to_num(float("-inf")).argmax())
        largest = f"{mean[highest]:.3g} at step {int(curves.steps[highest])}"
        rows.append(f"| {number + 1} | {names} | {seen[0]:.3g} | {largest} | {seen[-1]:.3g} |")
    return "\n".join([*rows, "", f"silhouette {groups.silhouette:.2f} (below about 0.25 there are no groups)"])


@picture
def groups_figure(curves: Curves, groups: Groups, *, title: str = "", quantity: str = "λ̂") -> Figure:
    """One panel a group, all curves in grey behind those of the group, with bands of one standard error.

    Args:
        curves: The curves.
        groups: Who belongs together.
        title: Above all panels.
        quantity: What the curves are of.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    panels = int(groups.labels.max()) + 1
    figure = Figure(figsize=(min(16, 1 + 4 * panels), 4), dpi=110, layout="constrained")
    figure.suptitle("\n".join(textwrap.wrap(title, 60 * panels)), fontsize=10, color=INK, x=0.01, ha="left")
    steps = curves.steps.tolist()
    positive = [step for step in steps if step > 0]
    for number, axis in enumerate(figure.subplots(1, panels, sharey=True, squeeze=False)[0]):
        mine = (groups.labels == number).nonzero()[:, 0].tolist()
        for row in curves.values:
            axis.plot(steps, row.tolist(), color="#DDDDDD", lw=0.8, zorder=1)
        for place, index in enumerate(mine):
            colour = colormaps["viridis"](0.1 + 0.8 * place / max(1, len(mine) - 1))
            value, width = curves.values[index], curves.stderr[index]
            axis.plot(steps, value.tolist(), color=colour, lw=1.5, label=curves.names[index], zorder=3)
            low, high = (value - width).tolist(), (value + width).tolist()
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, lw=0, zorder=2)
        if len(positive) > 1 and positive[-1] > LOG_FROM * positive[0]:
            axis.set_xscale("symlog", linthresh=positive[0])
        axis.set_title(f"group {number + 1}", fontsize=10, color=INK, loc="left")
        axis.set_xlabel("step")
        axis.legend(frameon=False, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(quantity)
    return figure
