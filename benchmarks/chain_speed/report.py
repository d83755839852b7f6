"""From measurements to the table and the JSON file."""

from __future__ import annotations

import math
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.chain_speed.cases import Case
from benchmarks.chain_speed.measure import Budget, Measurement

BARE = ("bare loop", "bare vmap")
TRAIN, NOISE = "training step", "noise"
TARGET = 0.01  # relative standard error of the LLC that "time to 1 %" means

COLUMNS = (
    "contender", "chain-steps/s", "us/chain-step", "range", "vs peer", "vs bare", "less noise", "vs training",
    "peak MB", "first call s", "LLC", "s to 1 %",
)  # fmt: skip


def fastest(measurements: dict[str, Measurement], names: tuple[str, ...]) -> str | None:
    """The cheapest of these contenders among those measured."""
    measured = [name for name in names if name in measurements and not math.isnan(measurements[name].cost)]
    return min(measured, key=lambda name: measurements[name].cost) if measured else None


def ratio(over: Measurement | None, under: Measurement | None, less: Measurement | None = None) -> float:
    """Median over the repeats of (over − less) / under, NaN where one of them is missing."""
    if over is None or under is None or not over.step_seconds or not under.step_seconds:
        return math.nan
    minus = less.step_seconds if less is not None else [0.0] * len(over.step_seconds)
    return median((a - b) / c for a, b, c in zip(over.step_seconds, minus, under.step_seconds, strict=False))


def seconds_to_target(measurement: Measurement, budget: Budget, llc: float) -> float:
    """Sampling time to a standard error of `TARGET`·llc: burn-in, then draws in proportion to the variance."""
    if measurement.accuracy is None or not measurement.step_seconds:
        return math.nan
    factor = (measurement.accuracy.run_stderr / (TARGET * llc)) ** 2
    return measurement.cost * (budget.accuracy_burnin + budget.accuracy_draws * factor)


def summarize(
    case: Case, measurements: dict[str, Measurement], peers: tuple[str, ...], budget: Budget
) -> dict[str, Any]:
    """The numbers of one case: every row with its raw timings and its ratios.

    Returns:
        `case`, its settings; `fastest_bare` and `fastest_peer`, which rows the ratios refer to; `agreement`, the
        difference of our LLC and the peer's in standard errors; `rows`.
    """
    bare_name, peer_name = fastest(measurements, BARE), fastest(measurements, peers)
    bare, peer = measurements.get(bare_name or ""), measurements.get(peer_name or "")
    accuracies = [m.accuracy for m in measurements.values() if m.accuracy is not None]
    llc = sum(a.mean for a in accuracies) / len(accuracies) if accuracies else math.nan
    rows = []
    for m in measurements.values():
        noisy = m.contender not in (*BARE, TRAIN, NOISE)
        rows.append(
            asdict(m)
            | {
                "chain_steps_per_second": case.num_chains / m.cost,
                "speed_over_peer": ratio(peer, m),
                "cost_over_bare": ratio(m, bare),
                "cost_less_noise_over_bare": ratio(m, bare, measurements.get(NOISE)) if noisy else math.nan,
                "cost_over_training_step": ratio(m, measurements.get(TRAIN)),
                "seconds_to_target": seconds_to_target(m, budget, llc),
            }
        )
    settings = {
        key: getattr(case, key)
        for key in ("name", "title", "num_samples", "batch_size", "num_chains", "step_size", "nbeta", "localization")
    }
    return {
        "case": settings,
        "fastest_bare": bare_name,
        "fastest_peer": peer_name,
        "agreement": agreement(measurements, peers),
        "rows": rows,
    }


def agreement(measurements: dict[str, Measurement], peers: tuple[str, ...]) -> float:
    """Difference between our LLC and the first peer's, in standard errors of the difference."""
    ours = next((m.accuracy for n, m in measurements.items() if n.startswith("ours") and m.accuracy), None)
    theirs = next((m.accuracy for n, m in measurements.items() if n in peers and m.accuracy), None)
    if ours is None or theirs is None:
        return math.nan
    return (ours.mean - theirs.mean) / math.hypot(ours.stderr, theirs.stderr)


def render(summary: dict[str, Any]) -> str:
    """One case as text: a heading, the table, and what the ratios refer to."""
    case = summary["case"]
    heading = (
        f"\n{case['name']}: {case['title']}, {case['num_chains']} chains"
        f" (SGLD, step size {case['step_size']:g}, nbeta {case['nbeta']:g}, localization {case['localization']:g})"
    )
    notes = [f"peer = {summary['fastest_peer']}, bare = {summary['fastest_bare']}"]
    if not math.isnan(summary["agreement"]):
        notes.append(f"LLC, ours less the peer's: {summary['agreement']:+.1f} standard errors")
    failures = [f"{row['contender']} failed: {row['error']}" for row in summary["rows"] if row["error"]]
    table = align([COLUMNS, *(_cells(row, case["num_chains"]) for row in summary["rows"])])
    return "\n".join([heading, table, "; ".join(notes), *failures])


def render_profile(row: dict[str, Any]) -> str:
    """Where the time of one contender goes."""
    profile = row["profile"]
    lines = [
        f"  {row['contender']}: {profile['seconds'] * 1e6:.1f} us/chain-step with set-up"
        f" ({profile['profiled_seconds'] * 1e6:.1f} under the profiler)"
    ]
    for kind in ("phases", "operations", "functions"):
        cells = "  ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in profile[kind].items())
        lines.append(f"    {kind}: {cells or 'none'}")
    return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """The same nested value with None for every NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def align(rows: list[tuple[str, ...]]) -> str:
    """Rows of cells as a table whose columns line up; the first row is the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [" | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "-+-".join("-" * width for width in widths), *lines[1:]])


def _cells(row: dict[str, Any], num_chains: int) -> tuple[str, ...]:
    times = [seconds / num_chains * 1e6 for seconds in row["step_seconds"]]
    accuracy = row["accuracy"]
    return (
        row["contender"],
        _number(row["chain_steps_per_second"], ",.0f"),
        _number(median(times) if times else math.nan, ".1f"),
        f"{min(times):.1f}..{max(times):.1f}" if times else "",
        _number(row["speed_over_peer"], ".2f"),
        _number(row["cost_over_bare"], ".2f"),
        _number(row["cost_less_noise_over_bare"], ".2f"),
        _number(row["cost_over_training_step"], ".2f"),
        f"{row['peak_bytes'] / 2**20:.0f}",
        _number(row["first_call_seconds"], ".2f"),
        f"{accuracy['mean']:.2f} +- {accuracy['stderr']:.2f}" if accuracy else "",
        _number(row["seconds_to_target"], ".2f"),
    )


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else format(value, form)
