"""Stages of a run as a Markdown table, and as a picture: the curve with its band, the loss below, the stages shaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from lightning_slt.analysis.announcing import Alert, Announcement
from lightning_slt.analysis.stages import ENOUGH, Boundary, Series, Stage
from lightning_slt.reporting.canvas import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#333333"
CURVE, FIT, LOSS = "#1B4F8A", "#E08214", "#6B6B6B"
SHADES: Mapping[str, str] = {"A": "#DCE9F6", "B": "#FBE3CF"}


def stages_table(
    found: Sequence[Stage],
    boundaries: Sequence[Boundary],
    *,
    announced: Sequence[Announcement] = (),
    alerts: Sequence[Alert] = (),
    notes: Sequence[str] = (),
) -> str:
    """Stages, boundaries and alerts as Markdown.

    Args:
        found: Stages in order.
        boundaries: Between them.
        announced: Those that were announced while the run went on.
        alerts: So far.
        notes: What is to be said beside.
    """
    rows = ["| stage | steps | change | change of the loss | |", "|---|---|---|---|---|"]
    for stage in found:
        loss = f"{stage.loss_change:+.3g} ± {stage.loss_change_stderr:.1g}"
        change = f"{stage.change:+.3g} ± {stage.change_stderr:.1g}"
        rows.append(
            f"| {stage.name} | {stage.start:.0f} to {stage.end:.0f} | {change} | {loss} "
            f"| {'hidden: the loss does not move' if stage.hidden else ''} |"
        )
    when = {a.boundary: f"announced at step {a.step}, {a.delay} readings later" for a in announced}
    rows += ["", "| boundary | plateau | stands out by | known |", "|---|---|---|---|"]
    for boundary in boundaries:
        rows.append(
            f"| step {boundary.step:.0f} | {boundary.earliest:.0f} to {boundary.latest:.0f} "
            f"| {boundary.prominence:.1f} standard errors | {when.get(boundary, 'from all readings together')} |"
        )
    for alert in alerts:
        rows += [
            "",
            f"Alert at step {alert.step}: since step {alert.start} the quantity has changed by {alert.change:+.3g} "
            f"(t = {alert.score:.1f}), the loss by {alert.loss_change:+.2g} (t = {alert.loss_score:.1f}).",
        ]
    return "\n".join([*rows, *(f"\n{note}" for note in notes)])


def reservations(series: Series, *, failed: int = 0) -> list[str]:
    """What is to be kept in mind with these readings: too few, of unknown error, or unreliable.

    Args:
        series: The readings.
        failed: How many of them failed a health check.
    """
    count, notes = int(series.usable.sum()), []
    if count < ENOUGH:
        notes.append(
            f"Only {count} readings at steps above zero; stages need about {ENOUGH}, evenly spaced in log t "
            "(at_steps=slt.LogSteps(first, last, 24))."
        )
    if len(series.steps) and not bool(series.stderr[series.usable].isfinite().any()):
        notes.append("The quantity has no standard error: the scatter of the curve stands in for it.")
    if failed:
        notes.append(f"{failed} of {len(series.steps)} readings failed a health check.")
    return notes


@picture
def stages_figure(
    series: Series,
    found: Sequence[Stage],
    *,
    alerts: Sequence[Alert] = (),
    bandwidth: float = 0.35,
    quantity: str = "λ̂",
    title: str = "",
) -> Figure:
    """The curve with its band of one standard error and its local fit, the loss below, stages shaded and named.

    Args:
        series: The readings.
        found: Stages in order.
        alerts: Marked below the curve.
        bandwidth: Of the fit.
        quantity: Label of the curve.
        title: Above it.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), dpi=110, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    kept = series.usable
    steps, values, stderr = series.steps[kept], series.values[kept], series.stderr[kept].nan_to_num(0.0)
    upper.fill_between(steps.tolist(), (values - stderr).tolist(), (values + stderr).tolist(), color=CURVE, alpha=0.2,
                       lw=0, label="± one standard error")  # fmt: skip
    upper.plot(steps.tolist(), values.tolist(), color=CURVE, marker="o", ms=3, lw=1.5, label=quantity)
    if len(steps) > 2:
        at = torch.linspace(float(steps[0].log()), float(steps[-1].log()), 200, dtype=torch.float64)
        fit = series.fit(at, bandwidth=bandwidth)
        upper.plot(at.exp().tolist(), fit.level.tolist(), color=FIT, lw=1, ls="--", label="local fit")
    known = kept & series.loss.isfinite()
    lower.plot(series.steps[known].tolist(), series.loss[known].tolist(), color=LOSS, marker="o", ms=3, lw=1.5)
    for axis in (upper, lower):
        axis.set_xscale("log")
        for stage in found:
            axis.axvspan(stage.start, stage.end, color=SHADES[stage.kind], alpha=0.6, lw=0, zorder=0)
        for stage in found[1:]:
            axis.axvline(stage.start, color=INK, lw=0.8)
        axis.spines[["top", "right"]].set_visible(False)
    for stage in found:
        middle = (stage.start * stage.end) ** 0.5
        name = f"{stage.name}, hidden" if stage.hidden else stage.name
        upper.text(middle, 1.0, name, transform=upper.get_xaxis_transform(), ha="center", va="bottom", color=INK)
    for alert in alerts:
        upper.plot(alert.step, 0.03, marker="^", color="#C0392B", transform=upper.get_xaxis_transform())
    upper.set_title(title, fontsize=10, color=INK, loc="left", pad=18)
    upper.set_ylabel(quantity)
    upper.legend(frameon=False, fontsize=8, loc="upper left")
    lower.set_ylabel("loss at the anchor")
    lower.set_xlabel("step")
    return figure


def event_scalars(tag: str, announcements: Sequence[Any], alerts: Sequence[Any], count: int) -> dict[str, float]:
    """What a reading changes, as scalars below ``<tag>/``: the number of boundaries, the last one's step and delay."""
    values = {f"{tag}/boundaries": float(count)}
    for announcement in announcements:
        values |= {f"{tag}/boundary": announcement.boundary.step, f"{tag}/delay": float(announcement.delay)}
    for alert in alerts:
        values |= {f"{tag}/alert": alert.change, f"{tag}/alert_score": alert.score}
    return values
