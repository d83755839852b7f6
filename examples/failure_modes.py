"""What goes wrong in a reading, and what the health checks say of it: the pictures of docs/samplers.md.

`python examples/failure_modes.py` runs every case of failing_chains.py, prints what health says of each, and writes
`failure_modes.png`, `calibration_digits.png` and both as numbers (`.json`). A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from failing_chains import Case, cases, deep_samples, deep_truth, digit_network
from torch import Tensor

import lightning_slt as slt

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMNS = 3
# Okabe & Ito, told apart with every kind of colour vision; verdicts are told by words and marks too
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#000000")
INK, GOOD, WARN, BAD = "#333333", "#00694D", "#8A6100", "#B23C00"
WRONG = 0.15
"""Relative error from which a value is called wrong, as in the benchmark."""


def row(case: Case, estimate: slt.Estimate) -> dict[str, Any]:
    """What came out of a case, to be stored."""
    health = estimate.health
    return {
        "title": case.title,
        "setup": case.setup,
        "mean": float(f"{estimate.mean:.4g}"),
        "stderr": float(f"{estimate.stderr:.2g}"),
        "truth": None if case.truth is None else float(f"{case.truth:.4g}"),
        "failed": list(health.failed),
        "warnings": list(health.warnings),
        "spread": float(f"{_spread(estimate):.2g}"),
        "dead_chains": len(health.dead_chains),
        "values": {name: float(f"{v:.3g}") if math.isfinite(v) else str(v) for name, v in health.values.items()},
        "settings": str(estimate.settings),
    }


def _spread(estimate: slt.Estimate) -> float:
    """Standard error as the spread between the chains alone would have it."""
    alive = estimate.per_chain[estimate.per_chain.isfinite()]
    return float(alive.std()) / math.sqrt(len(alive))


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Number, title, value, truth and the checks that fire (in brackets: that warn), a line of Markdown each."""
    lines = []
    for number, result in enumerate(results, 1):
        checks = [f"`{name}`" for name in result["failed"]] + [f"(`{name}`)" for name in result["warnings"]]
        value = f"{result['mean']:.3g} ± {result['stderr']:.1g}".replace("-", "−")
        truth = "" if result["truth"] is None else f"{result['truth']:.3g}"
        lines.append(f"| {number} {result['title']} | {value} | {truth} | {' '.join(checks) or 'none'} |")
    return lines


def is_wrong(result: dict[str, Any]) -> bool:
    """Whether the value is known to be off by more than ``WRONG``."""
    truth = result["truth"]
    return truth is not None and not abs(result["mean"] / truth - 1) <= WRONG


def verdict(result: dict[str, Any]) -> tuple[str, str]:
    """What health says, in words, and their colour."""
    values = result["values"]
    failed = [f"{name} {_short(float(values[name]))}" for name in result["failed"]]
    warned = "warns " + ", ".join(result["warnings"]) if result["warnings"] else ""
    if failed:
        return "✗ " + "; ".join(filter(None, [", ".join(failed), warned])), BAD
    wrong = is_wrong(result)
    words = f"! {warned}" if warned else "✓ healthy, and yet wrong" if wrong else "✓ healthy"
    return words, WARN if warned or wrong else GOOD


def _short(value: float) -> str:
    return (f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}").replace("-", "−")


def draw_case(axis: Axes, number: int, case: Case, estimate: slt.Estimate) -> None:
    """Traces of every chain, smoothed in colour before the raw ones in grey, with the truth and the verdict."""
    rise = estimate.settings.nbeta * estimate.traces["loss"]
    window = max(1, rise.shape[1] // 25)
    for colour, chain in zip(COLOURS, rise, strict=True):
        alive = chain[: int(chain.isfinite().cumprod(0).sum())]
        if not case.outliers:
            axis.plot(alive, color="#DDDDDD", lw=0.3, zorder=1, antialiased=False)
            smooth = alive.unfold(0, window, 1).mean(1)
            axis.plot([window / 2 + i for i in range(len(smooth))], smooth, color=colour, lw=1, zorder=2)
        else:
            axis.plot(alive, color=colour, lw=0.6, zorder=2)
        if len(alive) < len(chain):
            axis.plot(
                len(alive), 0.95, "X", color=colour, mec="black", ms=9, zorder=4, transform=axis.get_xaxis_transform()
            )
    if case.truth is not None:
        axis.axhline(case.truth, color="black", lw=1.4, ls=(0, (4, 2)), zorder=3)
    axis.axhline(0, color=INK, lw=0.6, zorder=0)
    limit(axis, case, rise)
    decorate(axis, number, case, row(case, estimate))


def limit(axis: Axes, case: Case, rise: Tensor) -> None:
    """Show zero, the truth, and nearly all draws, or quite all."""
    values = rise[rise.isfinite()]
    tail = 0.0 if case.outliers else 0.005
    low, high = (float(values.quantile(q)) for q in (tail, 1 - tail))
    low, high = min(low, 0.0, case.truth or 0.0), max(high, 0.0, case.truth or 0.0)
    margin = 0.06 * (high - low)
    axis.set_ylim(low - margin, high + margin)


def decorate(axis: Axes, number: int, case: Case, result: dict[str, Any]) -> None:
    """Title, setting, value and verdict, stacked above the panel."""
    words, colour = verdict(result)
    known = "" if result["truth"] is None else f", should be {result['truth']:.3g}"
    value = f"λ̂ = {result['mean']:.3g} ± {result['stderr']:.1g}{known}".replace("-", "−")

    def write(height: float, text: str, **style: Any) -> None:
        axis.annotate(text, (0, 1), (0, height), xycoords="axes fraction", textcoords="offset points", **style)

    write(52, f"{number}  {case.title}", fontsize=10, fontweight="bold", color=INK)
    write(40, case.setup, fontsize=8, color=INK)
    write(29, value, fontsize=8, color=INK)
    write(24, textwrap.fill(words, 37), fontsize=8, color=colour, fontweight="bold", linespacing=1.1, va="top")
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def draw(shown: Sequence[tuple[Case, slt.Estimate]]) -> Figure:
    """All panels, each 2 inches high, its words included."""
    rows = math.ceil(len(shown) / COLUMNS)
    height = 2.3 * rows + 0.3
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(9, height), squeeze=False)
    figure.subplots_adjust(
        left=0.075, right=0.995, top=1 - 0.95 / height, bottom=0.5 / height, wspace=0.17, hspace=1.2 / 1.15
    )
    for number, (axis, (case, estimate)) in enumerate(zip(axes.flat, shown, strict=False), 1):
        draw_case(axis, number, case, estimate)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    figure.supylabel("nβ (L − L(w*)) of each chain", fontsize=9, color=INK, x=0.005)
    figure.supxlabel("draw", fontsize=9, color=INK, y=0.08 / height)
    return figure


def calibrations() -> dict[str, tuple[slt.Calibration, int]]:
    """The digit classifier with the default counts and with more draws, and the other target; each with its passes."""
    classifier, line = digit_network(1000), deep_samples()
    more = {"sampling": slt.SamplingConfig(num_draws=800)}
    return {
        "default": search(*classifier, loss_fn=slt.losses.classification),
        "more draws": search(*classifier, loss_fn=slt.losses.classification, **more),
        "absolute": search(*line, loss_fn=slt.losses.regression, target="absolute"),
    }


def search(*problem: Any, **keywords: Any) -> tuple[slt.Calibration, int]:
    """A search, and how many passes of one chain it made."""
    passes: list[int] = []
    return slt.calibrate(*problem, **keywords, on_step=passes.append), sum(passes)


def found(calibration: slt.Calibration, passes: int) -> dict[str, Any]:
    """What a search suggests, to be stored."""
    return {
        "text": str(calibration),
        "settings": str(calibration.settings),
        "passes": passes,
        "table": calibration.table().splitlines(),
    }


def for_page(figure: Figure) -> Figure:
    """The package's picture at the width of a page."""
    figure.set_size_inches(9, 7)
    figure.suptitle(textwrap.fill(figure.get_suptitle(), 110), fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def store(path: Path, content: Any) -> None:
    """As JSON."""
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def main() -> None:
    """Run, tabulate, draw, store."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    parser.add_argument("--only", nargs="*", help="words of the titles to run; nothing is stored then but the picture")
    options = parser.parse_args()
    chosen = [c for c in cases() if options.only is None or any(word in c.title for word in options.only)]
    shown, results = [], []
    for case in chosen:
        shown.append((case, case.run()))
        results.append(row(*shown[-1]))
        print(f"{case.title:32} {results[-1]['mean']:>9.4g}  {verdict(results[-1])[0]}", flush=True)
    options.folder.mkdir(parents=True, exist_ok=True)
    draw(shown).savefig(options.folder / "failure_modes.png", dpi=140)
    if options.only is None:
        store(options.folder / "failure_modes.json", results)
        searches = calibrations()
        stored = {"absolute truth": deep_truth([4, 4, 4, 4], 1), **{name: found(*s) for name, s in searches.items()}}
        store(options.folder / "calibration_digits.json", stored)
        for name, (calibration, _) in searches.items():
            print(f"\n{name}: {calibration}")
        for_page(searches["more draws"][0].plot()).savefig(options.folder / "calibration_digits.png", dpi=160)


if __name__ == "__main__":
    main()
