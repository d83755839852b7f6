"""What a comparison found, as a report and as a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_slt.analysis.comparison import Alignment, Difference, Preference
from lightning_slt.analysis.trajectories import JointTrajectories
from lightning_slt.components import FULL
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FIRST, SECOND = "#333333", "#3366AA", "#CC6633"

WHOLE = f"{FULL}/llc"

SIGNIFICANT = 3.0
"""Standard errors from which on a difference is called one."""


MOST_CURVES = 3
"""Scalars of two runs that are drawn over their steps."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two sides, and where they differ; ``print`` it for a report.

    Attributes:
        names: Of the sides.
        differences: Of every scalar that both have, by ``<component>/<key>``.
        alignments: Of every kernel and response matrix that both have, by ``<component>/<key>``.
        preference: Which side the free energy favours; None without an LLC of all weights on both.
        curves: Of two runs, every difference at every step that both read: ``{where: {step: difference}}``.
        trajectories: Of two runs that recorded them, in the axes that they share.
        notes: What to know before believing any of it.
    """

    names: tuple[str, str]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    alignments: Mapping[str, Alignment] = field(default_factory=dict)
    preference: Preference | None = None
    curves: Mapping[str, Mapping[int, Difference]] = field(default_factory=dict, repr=False)
    trajectories: JointTrajectories | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The report, in Markdown."""
        first, second = self.names
        parts = [f"# {first} and {second}", "", *_scalars(self), *_alignments(self), *_preferred(self), *_ways(self)]
        if self.notes:
            parts += ["**Notes**", "", *(f"- {note}" for note in self.notes), ""]
        return "\n".join(parts).rstrip() + "\n"

    def plot(self) -> Figure:
        """Differences with their errors, and the curves of two runs where there are any; see :func:`draw`."""
        return draw(self)


def _scalars(found: Comparison) -> list[str]:
    if not found.differences:
        return []
    first, second = found.names
    rows = [f"| | {first} | {second} | difference | standard errors | p |", "|---|---|---|---|---|---|"]
    for where, d in found.differences.items():
        mark = "" if d.ok else " (unreliable)"
        rows.append(
            f"| {where}{mark} | {d.first:.4g} | {d.second:.4g} | {d.difference:+.3g} ± {d.stderr:.2g} | {d.z:+.1f} | "
            f"{_probability(d.p)} |"
        )
    apart = [where for where, d in found.differences.items() if d.ok and abs(d.z) > SIGNIFICANT]
    verdict = f"Apart by more than {SIGNIFICANT:g} standard errors: {', '.join(apart) or 'nothing'}."
    return ["**Scalars**", "", *rows, "", verdict, *_since(found, apart), ""]


def _since(found: Comparison, apart: list[str]) -> list[str]:
    """Since which step runs have differed all along."""
    lines = []
    for where in (w for w in apart if len(found.curves.get(w, {})) > 1):
        steps = sorted(found.curves[where])
        since = steps[-1]
        for step in reversed(steps):
            if not abs(found.curves[where][step].z) > SIGNIFICANT:
                break
            since = step
        lines.append(f"{where} has differed since step {since}.")
    return lines


def _alignments(found: Comparison) -> list[str]:
    if not found.alignments:
        return []
    rows = ["| | alignment | by chance | p | seeds of one kind | differs |", "|---|---|---|---|---|---|"]
    for where, a in found.alignments.items():
        kind = f"{min(a.baseline):.3f} to {max(a.baseline):.3f}" if a.baseline else "not given"
        far = f", {a.baseline_z:.1f} deviations below them" if math.isfinite(a.baseline_z) else ""
        differs = "unknown" if a.differs is None else f"yes{far}" if a.differs else "no"
        rows.append(
            f"| {where} | {a.cka:.3f} ± {a.stderr:.2g} | {a.by_chance:.3f} | {_probability(a.p)} | {kind} | {differs} |"
        )
    said = "Centred kernel alignment: 1 where both treat samples alike, up to a factor; p of having nothing in common."
    return ["**Kernels and responses**", "", *rows, "", said, ""]


def _preferred(found: Comparison) -> list[str]:
    p = found.preference
    if p is None:
        return []
    first, second = found.names
    if not found.differences[WHOLE].ok:
        return ["**Free energy**", "", "Not told: an LLC of all weights failed its health checks.", ""]
    favoured = second if p.free_energy < 0 else first
    sure = abs(p.free_energy) > 2 * p.stderr
    ends = " to ".join(f"{n:.3g}" if math.isfinite(n) else "never" for n in p.switch_range)
    switch = (
        f"The preference switches at n = {p.switch:.3g} ({ends} within one standard error of Δλ̂)."
        if math.isfinite(p.switch)
        else "It does not switch with n: one side is better in both, or the loss decides at every n."
    )
    return [
        "**Free energy**",
        "",
        f"n Δℓ + Δλ̂ log n = {p.free_energy:+.3g} ± {p.stderr:.2g} nats at n = {p.num_samples} (Δℓ = {p.loss:+.3g}, "
        f"Δλ̂ = {p.llc:+.3g}): {f'favours {favoured}' if sure else 'no clear preference'}. {switch}",
        "",
    ]


def _ways(found: Comparison) -> list[str]:
    if found.trajectories is None:
        return []
    first, second = (found.trajectories.points[name] for name in found.names)
    apart = float((first[-1] - second[-1]).norm())
    length = float(first.diff(dim=0).norm(dim=1).sum())
    said = f"In the axes that both share they end {apart:.3g} apart, after a way of {length:.3g} for {found.names[0]}."
    return ["**Trajectories**", "", said, ""]


def _probability(p: float) -> str:
    return "unknown" if math.isnan(p) else f"{p:.3f}" if p >= 1e-3 else f"{p:.1g}"


@picture
def draw(found: Comparison) -> Figure:
    """All differences in standard errors, all alignments beside those of seeds, and curves that two runs both have.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    curves = {where: steps for where, steps in found.curves.items() if len(steps) > 1}
    panels = [bool(found.differences), bool(found.alignments)]
    number = sum(panels) + min(MOST_CURVES, len(curves))
    rows = max(len(found.differences), len(found.alignments))
    figure = Figure(
        figsize=(4.6 * number, 1.6 + 0.3 * min(40, rows) + 1.6 * bool(curves)), dpi=110, layout="constrained"
    )
    axes = list(figure.subplots(1, number, squeeze=False)[0])
    if found.differences:
        _draw_differences(axes.pop(0), found)
    if found.alignments:
        _draw_alignments(axes.pop(0), found)
    for axis, (where, steps) in zip(axes, curves.items(), strict=False):
        for name, kind, colour in ((found.names[0], "first", FIRST), (found.names[1], "second", SECOND)):
            axis.plot(list(steps), [getattr(d, kind) for d in steps.values()], color=colour, label=name, marker=".")
        axis.set_title(where, fontsize=10, color=INK, loc="left")
        axis.set_xlabel("step")
        axis.legend(frameon=False, fontsize=8)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_differences(axis: Any, found: Comparison) -> None:
    """A dot with a bar of one standard error each; hollow where an estimate is unreliable."""
    places = range(len(found.differences), 0, -1)
    axis.axvspan(-SIGNIFICANT, SIGNIFICANT, color="#EEEEEE", lw=0)
    for place, d in zip(places, found.differences.values(), strict=True):
        colour = SECOND if abs(d.z) > SIGNIFICANT else "#888888"
        axis.errorbar([d.z], [place], xerr=[[1], [1]], color=colour, marker="o", mfc=colour if d.ok else "white")
    axis.set_yticks(list(places), list(found.differences), fontsize=8)
    axis.set_ylim(0.4, len(found.differences) + 0.6)
    axis.set_xlabel(f"{found.names[1]} − {found.names[0]}, in standard errors\n(hollow: failed a check)", fontsize=8)
    axis.set_title("differences", fontsize=10, color=INK, loc="left")


def _draw_alignments(axis: Any, found: Comparison) -> None:
    """The alignment with its error, beside those of seeds of one kind and that of chance."""
    places = range(len(found.alignments), 0, -1)
    for place, a in zip(places, found.alignments.values(), strict=True):
        axis.plot(
            a.baseline, [place] * len(a.baseline), ls="", marker="|", ms=14, color=FIRST, label="seeds of one kind"
        )
        axis.plot([a.by_chance], [place], ls="", marker="x", color="#888888", label="by chance")
        axis.errorbar([a.cka], [place], xerr=[a.stderr], color=SECOND, marker="o", label="of the two")
    axis.set_yticks(list(places), list(found.alignments), fontsize=8)
    axis.set_ylim(0.4, len(found.alignments) + 0.6)
    axis.set_xlim(0, 1.02)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(
        handles[:3], labels[:3], frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.25), ncols=3
    )
    axis.set_title("alignment of kernels and responses", fontsize=10, color=INK, loc="left")
