"""Numbers of one estimate as a record has them, for a timeline: what is worthless is missing, and says why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from lightning_slt.health import DIVERGES, SMALL_IS_BAD, Thresholds
from lightning_slt.types import LEVEL, student_t_quantile

USUAL = Thresholds()

DIGITS = 6
"""Significant digits of numbers on a timeline; a reading by itself has all of them."""


class Point(NamedTuple):
    """One number of one estimate at one reading; None stands for what does not exist."""

    value: float | None
    stderr: float | None = None
    lower: float | None = None
    upper: float | None = None
    ok: bool = True
    reason: str | None = None
    chains: tuple[float | None, ...] = ()


def number(value: Any, *, digits: int | None = None) -> float | None:
    """A number of a record as JSON can hold it: None where it does not exist or is infinite.

    >>> number(1.23456789, digits=6), number(None), number("inf"), number(2)
    (1.23457, None, None, 2.0)
    """
    if value is None or value in ("inf", "-inf"):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {value!r}")
    if not math.isfinite(value):
        return None
    return float(value) if digits is None else float(f"{value:.{digits}g}")


def short(value: Any) -> float | None:
    """A number to the digits of a timeline."""
    if type(value) is float and -math.inf < value < math.inf:  # as nearly all are, and there are a million of them
        return float("%.6g" % value)  # noqa: UP031  # twice as fast as format
    return number(value, digits=DIGITS)


def points_of(estimate: Mapping[str, Any], *, exact: bool, chains: bool) -> Iterator[tuple[str, Point]]:
    """The numbers of one estimate. One that is worthless is missing, as in the scalars that were logged.

    Args:
        estimate: As a record has it.
        exact: Whether the sampler accepts or rejects, so that a long step makes no value diverge.
        chains: Whether to keep each chain's value: of many components they would take most of the time and memory.

    Yields:
        Name of the number, and the number.
    """
    health = estimate["health"]
    ok = bool(health["ok"])
    stability = number(health["values"].get("step_size")) if "step_size" in health["failed"] else None
    diverges = not exact and stability is not None and stability >= DIVERGES
    reason = None if ok else reasons(health)
    if "kind" in estimate:
        for name, value in estimate["numbers"].items():
            yield str(name), Point(None if diverges else short(value), ok=ok, reason=reason)
        return
    per_chain = estimate["per_chain"]
    mean, stderr = number(estimate["mean"]), number(estimate["stderr"])
    if diverges or mean is None:
        words = "the step diverges, and the value is none" if diverges else "no chain finished"
        yield "mean", Point(None, ok=False, reason=f"{words}: {reason}" if reason else words)
        return
    degrees = len(per_chain) - per_chain.count(None) - 1
    half = None if stderr is None or degrees < 1 else _quantile(degrees) * stderr
    lower, upper = (None, None) if half is None else (short(mean - half), short(mean + half))
    drawn = tuple(short(value) for value in per_chain) if chains else ()
    yield "mean", Point(short(mean), short(stderr), lower, upper, ok, reason, drawn)


@lru_cache
def _quantile(degrees: int) -> float:
    return student_t_quantile(0.5 + LEVEL / 2, degrees=degrees)


def reasons(health: Mapping[str, Any]) -> str:
    """Which checks failed and by how much, in one line, with the limit where the usual one explains it.

    A user may have set another one, which the records do not hold.

    Args:
        health: As a record has it.

    >>> reasons({"failed": ["rhat", "finite"], "values": {"rhat": 1.4, "finite": 2}, "dead_chains": {"1": 30}})
    'rhat = 1.4 (limit 1.3), finite = 2 (limit 0), dead chains: 1 at step 30'
    """
    words = []
    for check in map(str, health["failed"]):
        value, limit = number(health["values"].get(check)), getattr(USUAL, check, (None, None))[1]
        sign = -1 if check in SMALL_IS_BAD else 1
        explains = value is not None and limit is not None and sign * value > sign * limit
        shown = "nothing" if value is None else f"{value:.3g}"
        words.append(f"{check} = {shown} (limit {limit:g})" if explains else f"{check} = {shown}")
    if dead := health["dead_chains"]:
        words.append("dead chains: " + ", ".join(f"{chain} at step {step}" for chain, step in dead.items()))
    return ", ".join(words)
