"""The tables that are printed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from benchmarks.chain_speed.report import align
from benchmarks.deep_linear.contestants import CONTESTANTS
from benchmarks.deep_linear.metrics import absolute, median_interval, order_preservation, relative_errors, spread
from benchmarks.deep_linear.networks import Plan
from benchmarks.deep_linear.summary import VERDICTS, Key, Row, best, state, verdict

Rows = Mapping[str, Sequence[Row]]


def render(rows: Rows, plans: Mapping[Key, Plan]) -> str:
    """Everything: each sampler at its best, all step sizes, and what health said."""
    parts = [
        ranking(rows, plans),
        "All step sizes: median |relative error| (quartiles), order, and cells by health (ok/warned/failed/no number)",
        step_sizes(rows),
        "What health said of right and wrong values, all step sizes",
        health(rows),
        conclusion(rows),
    ]
    return "\n\n".join(parts)


def ranking(rows: Rows, plans: Mapping[Key, Plan]) -> str:
    """Each sampler at its best step size, above the guesses that cost nothing."""
    header = (
        "sampler", "step size", "median |rel. error|", "90 % interval", "quartiles", "order", "ok/warned/failed/none",
        "s/cell", "success",
    )  # fmt: skip
    lines = [header]
    for row in sorted((best(found) for found in rows.values()), key=lambda r: r.error.median):
        low, high = median_interval(absolute(row.errors))
        lines.append(
            (
                row.sampler,
                f"{row.step_size:g}",
                _number(row.error.median),
                f"{_number(low)}..{_number(high)}",
                f"{_number(row.error.lower)}..{_number(row.error.upper)}",
                f"{row.order:.3f}",
                _states(row),
                f"{row.seconds:.2f}",
                _success(row),
            )
        )
    for name, guess in guesses(plans).items():
        truths = [plan.truth for plan in plans.values()]
        error, order = spread(absolute(relative_errors(guess, truths))), order_preservation(guess, truths)
        quartiles = f"{_number(error.lower)}..{_number(error.upper)}"
        lines.append((name, "", _number(error.median), "", quartiles, f"{order:.3f}", "", "", ""))
    return align(lines)


def guesses(plans: Mapping[Key, Plan]) -> dict[str, list[float]]:
    """Values that anyone can give without sampling; d/2 also ranks networks as the number of parameters does."""
    return {"guess d/2 (order: parameters)": [plan.parameters / 2 for plan in plans.values()]}


def step_sizes(rows: Rows) -> str:
    """One line for each sampler and step size."""
    lines = [
        ("sampler", "step size", "median ratio", "|rel. error|", "quartiles", "order", "ok/warned/failed/none", "flags")
    ]
    for found in rows.values():
        for row in found:
            ratio = spread([math.nan if e is None else 1 + e for e in row.errors if e is not None] or [math.nan])
            lines.append(
                (
                    row.sampler,
                    f"{row.step_size:g}" + ("*" if row is best(found) else " "),
                    _number(ratio.median),
                    _number(row.error.median),
                    f"{_number(row.error.lower)}..{_number(row.error.upper)}",
                    f"{row.order:.3f}",
                    _states(row),
                    flags(row.cells),
                )
            )
    return align(lines)


def health(rows: Rows) -> str:
    """Of the values that are right, too low, too high or missing: how many were flagged, and by what."""
    lines = [("sampler", "value", "cells", "failed", "warned only", "silent", "flags")]
    everything = [
        (e, c) for found in rows.values() for row in found for e, c in zip(row.errors, row.cells, strict=True)
    ]
    for name, found in [("all", []), *rows.items()]:
        cells = [(e, c) for row in found for e, c in zip(row.errors, row.cells, strict=True)] or everything
        for kind in VERDICTS:
            of_kind = [cell for error, cell in cells if verdict(error) == kind]
            states = Counter(state(cell) for cell in of_kind)
            if of_kind:
                share = len(of_kind) / 100
                failed = states["failed"] + states["no number"]
                lines.append(
                    (
                        name,
                        kind,
                        str(len(of_kind)),
                        f"{failed / share:.0f} %",
                        f"{states['warned'] / share:.0f} %",
                        f"{states['ok'] / share:.0f} %",
                        flags(of_kind),
                    )
                )
    return align(lines)


def flags(cells: Sequence[Mapping[str, object]], most: int = 4) -> str:
    """The commonest flags with the share of cells that raise them; warnings in brackets."""
    counts: Counter[str] = Counter()
    for cell in cells:
        counts.update(str(name) for name in _names(cell["failed"]))
        if cell["estimate"] is not None:  # without a number every check that could not be made is a warning
            counts.update(f"({name})" for name in _names(cell["warnings"]))
    shares = [f"{name} {100 * count / len(cells):.0f}%" for name, count in counts.most_common(most)]
    return " ".join(shares) or "-"


def conclusion(rows: Rows) -> str:
    """Which samplers succeed, and which one wins."""
    winners = sorted((best(found) for found in rows.values()), key=lambda r: (r.error.median, -r.order))
    first = winners[0]
    reached = [row.sampler for row in winners if row.success]
    missed = [row.sampler for row in winners if not row.success]
    _, high = median_interval(absolute(first.errors))
    close = [r.sampler for r in winners[1:] if median_interval(absolute(r.errors))[0] <= high]
    text = [
        "Success at the best step size (median |relative error| at most 0.15 and order at least 0.90; AdamSGLD 0.20"
        f" and 0.88): {', '.join(reached) or 'none'}" + (f"; missed by {', '.join(missed)}" if missed else ""),
        f"Least error: {first.sampler} at {first.step_size:g} ({_number(first.error.median)}, order {first.order:.3f})."
        + (f" Not told apart from it by these networks: {', '.join(close)}." if close else ""),
    ]
    top = max(winners, key=lambda r: r.order)
    text.append(f"Best order: {top.sampler} ({top.order:.3f}).")
    return "\n".join(text)


def _success(row: Row) -> str:
    largest, least = CONTESTANTS[row.sampler].success
    seeds = sorted({cell["seed"] for cell in row.cells})
    passed = sum(row.of_seed(seed).success for seed in seeds)
    rate = f", {passed} of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"{'yes' if row.success else 'NO'} ({largest:.2f}, {least:.2f}{rate})"


def _states(row: Row) -> str:
    states = row.states()
    return "/".join(str(states[name]) for name in ("ok", "warned", "failed", "no number"))


def _names(value: object) -> Sequence[object]:
    return value if isinstance(value, list) else []


def _number(value: float) -> str:
    return "none" if math.isnan(value) else "inf" if math.isinf(value) else f"{value:.3g}"
