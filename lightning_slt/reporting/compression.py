"""Compression as pictures and tables: the loss along every dial, and λ̂ beside critical numbers over a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from lightning_slt.analysis.compression import COLLINEAR, Correlated
from lightning_slt.estimators.compressibility import NUMBERS, Compression
from lightning_slt.reporting.canvas import picture
from lightning_slt.results import StoredResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, BLUE, ORANGE, GREY = "#333333", "#0072B2", "#D55E00", "#888888"

DIALS = {
    "quantization": "levels n_q",
    "factorization": "share of singular values kept",
    "noise": "noise over the rms of a tensor",
    "pruning": "share of weights kept",
    "heads": "share of heads kept",
}
"""What a dial is, by scheme."""


def compression_pictures(result: Compression) -> Mapping[str, Any]:
    """The curves of one reading; none where the loss was not finite."""
    return {"curves": partial(compression_figure, result)} if result.curves else {}


@picture
def compression_figure(result: Compression | StoredResult, *, title: str | None = None) -> Figure:
    """Rise of the loss along the dial of each scheme, with the tolerances and the critical settings.

    Args:
        result: Of :class:`lightning_slt.estimators.Compressibility`, or what was recorded of it.
        title: Above all panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    curves = {name: values for name, values in result.arrays().items() if name in DIALS}
    numbers = result.scalars()
    figure = Figure(figsize=(3.6 * len(curves), 3.6), dpi=100)
    figure.subplots_adjust(left=0.2 / len(curves), right=0.98, bottom=0.16, top=0.82, wspace=0.25)
    heading = title or f"rise of the loss where weights are compressed, from {numbers['loss']:.4g} nats"
    figure.suptitle(heading, fontsize=10, color=INK, x=0.01, ha="left")
    for axis, (name, values) in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        dials, rises = values[:, 0].tolist(), values[:, 1].tolist()
        axis.plot(dials, rises, "o-", color=BLUE, lw=1.2, ms=3)
        tolerances = {
            float(key.partition("_")[2]): value for key, value in numbers.items() if key.startswith(f"{NUMBERS[name]}_")
        }
        for tolerance, critical in tolerances.items():
            axis.axhline(tolerance, color=GREY, lw=0.7, ls=":")
            place = 2**critical if name == "quantization" else critical
            if math.isfinite(place):
                axis.plot([place], [tolerance], "D", color=ORANGE, ms=5, zorder=3)
                axis.annotate(f"{critical:.2g}", (place, tolerance), color=ORANGE, fontsize=8, xytext=(4, 4),
                              textcoords="offset points")  # fmt: skip
        if name != "heads":
            axis.set_xscale("log")
        if name not in ("heads", "noise"):
            ends = sorted((math.log2(dials[0]), math.log2(dials[-1])))
            ticks = [2.0**k for k in range(math.ceil(ends[0] - 1e-9), math.floor(ends[1] + 1e-9) + 1)]
            axis.set_xticks(ticks, [f"{tick:.2g}" if tick < 1 else f"{tick:.0f}" for tick in ticks])
            axis.minorticks_off()
        if dials[0] > dials[-1]:
            axis.invert_xaxis()
        axis.set_ylim(*_window(rises, max(tolerances, default=0.1)))
        axis.set_xlabel(DIALS[name], fontsize=8)
        axis.set_title(f"{name}: {NUMBERS[name]}", fontsize=10, color=INK, loc="left")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("rise of the loss, nats", fontsize=8)
    return figure


def correlation_table(found: Sequence[Correlated]) -> str:
    """Correlations as a Markdown table, one critical number a row."""
    rows = [
        "| critical number | readings | λ̂ | λ̂ given the loss | −loss alone | of λ̂ explained by the loss |",
        "|---|---|---|---|---|---|",
    ]
    several = len({c.quantity for c in found}) > 1
    for c in found:
        name = c.number.rpartition("/")[2] + (f", λ̂ of {c.quantity.split('/')[-2]}" if several else "")
        rows.append(
            f"| {name} | {len(c.steps)} | {c.plain} | {c.partial} | {c.loss_alone} | {c.explained:.0%}"
            f"{' (collinear)' if c.collinear else ''} |"
        )
    notes = [
        "Pearson correlations over the readings, in brackets Fisher's 95 % interval as if readings were independent, "
        "which those of one run are not. A larger sigma and smaller bits, rank, kept or heads mean more compressible."
    ]
    if any(c.collinear for c in found):
        notes.append(
            f"**Collinear**: an affine function of the loss explains {COLLINEAR:.0%} of λ̂ or more, so that readings "
            "cannot tell them apart. A larger nbeta looks at the loss more closely."
        )
    return "\n".join([*rows, "", *notes])


@picture
def correlation_figure(found: Correlated, *, title: str = "") -> Figure:
    """Critical number, λ̂ and loss over steps; then λ̂ against the number, coloured by step.

    Args:
        found: One pair of quantities.
        title: Above both panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    name, steps = found.number.rpartition("/")[2], [max(1, step) for step in found.steps.tolist()]
    loss, llc = left.twinx(), left.twinx()
    llc.spines["right"].set_position(("axes", 1.16))
    lines = left.plot(steps, found.values.tolist(), "o-", color=INK, ms=3, label=name)
    lines += loss.plot(steps, found.loss.tolist(), "s--", color=GREY, ms=3, lw=1, label="loss, nats")
    error = found.stderr.nan_to_num().tolist()
    lines += [llc.errorbar(steps, found.llc.tolist(), yerr=error, fmt="o-", color=BLUE, ms=3, label="λ̂ ± 1 s.e.")]
    for axis, label, colour in ((left, name, INK), (loss, "loss, nats", GREY), (llc, "λ̂", BLUE)):
        axis.set_ylabel(label, color=colour)
        axis.tick_params(axis="y", colors=colour, labelsize=8)
        axis.spines["top"].set_visible(False)
    left.set_xscale("log")
    left.set_xlabel("step")
    left.legend(handles=lines, frameon=False, fontsize=8)
    points = right.scatter(
        found.llc.tolist(), found.values.tolist(), c=[math.log10(step) for step in steps], cmap="viridis", s=24
    )
    figure.colorbar(points, ax=right, shrink=0.8, label="log₁₀ step")
    right.set_xlabel("λ̂")
    right.set_ylabel(name)
    right.set_title(
        f"plain {found.plain.value:+.2f}, given the loss {found.partial.value:+.2f}, "
        f"−loss alone {found.loss_alone.value:+.2f}", fontsize=9, color=INK, loc="left",
    )  # fmt: skip
    right.spines[["top", "right"]].set_visible(False)
    return figure


def _window(rises: Sequence[float], tolerance: float) -> tuple[float, float]:
    """What lies far above every tolerance is not shown."""
    seen = [rise for rise in rises if math.isfinite(rise)]
    top = max(min(max(seen, default=0.0), 3 * tolerance), tolerance or 1e-3)
    bottom = max(min(0.0, *seen, 0.0), -3 * top)
    return bottom - 0.05 * top, 1.1 * top
