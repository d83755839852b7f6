"""Estimates as scalars under ``<name>/<component>/<quantity>/<field>``."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from lightning_slt.types import Estimate

FIELDS = ("mean", "stderr", "lower", "upper", "rhat", "ok")
LEVEL = 0.9
"""Coverage of the band from ``lower`` to ``upper``."""

_NOTHING = {**dict.fromkeys(FIELDS, math.nan), "ok": 0.0}


def scalars(
    name: str, results: Mapping[str, Mapping[str, Any]], *, worthless: Collection[str] = ()
) -> dict[str, float]:
    """All scalars of one reading by tag.

    Args:
        name: The monitor's.
        results: ``{component: {key: estimate}}``.
        worthless: Those of them, as ``<component>/<key>``, whose numbers are none: NaN, and not ok.

    Returns:
        Floats by tag; NaN where a number does not exist.
    """
    tagged = {}
    for component, estimates in results.items():
        for key, estimate in estimates.items():
            tag = f"{component}/{key}"
            fields = {**_NOTHING, "rhat": estimate_fields(estimate)["rhat"]} if tag in worthless else None
            for field, value in {**(fields or estimate_fields(estimate)), **_diagnostics(estimate)}.items():
                tagged[f"{name}/{tag}/{field}"] = value
    return tagged


def _diagnostics(estimate: Any) -> dict[str, float]:
    """All that health has measured, where the user asked for it; few tags make a log that is read."""
    wanted = getattr(estimate, "diagnostics", False)
    return {f"health/{name}": value for name, value in estimate.health.values.items()} if wanted else {}


def estimate_fields(estimate: Estimate) -> dict[str, float]:
    """Mean, error, 90 % interval, R̂ and health of one scalar estimate."""
    lower, upper = estimate.interval(LEVEL)
    values = (
        estimate.mean,
        estimate.stderr,
        lower,
        upper,
        estimate.health.values.get("rhat", math.nan),
        float(estimate.health.ok),
    )
    return dict(zip(FIELDS, values, strict=True))


def missing(name: str, keys: Mapping[str, list[str]]) -> dict[str, float]:
    """The same tags for a reading that failed: NaN, and not ok."""
    return {
        f"{name}/{component}/{key}/{field}": value
        for component, names in keys.items()
        for key in names
        for field, value in _NOTHING.items()
    }
