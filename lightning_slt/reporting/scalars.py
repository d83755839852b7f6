"""Estimates as scalars under ``<name>/<component>/<quantity>/<field>``."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lightning_slt.estimators.base import SCALAR_FIELDS
from lightning_slt.results import Result
from lightning_slt.types import LEVEL, Estimate

FIELDS = (*SCALAR_FIELDS, "ok")

Keys = Mapping[str, Mapping[str, tuple[str, ...]]]
"""Names of the scalars of every estimate, beside ``ok``: ``{component: {key: fields}}``."""


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
            fields = _fields(estimate)
            if tag in worthless:
                fields = {**_nothing(fields), "rhat": fields.get("rhat", math.nan)}
            for field, value in {**fields, **_diagnostics(estimate)}.items():
                tagged[f"{name}/{tag}/{field}"] = value
            for part, numbers in _by_component(estimate).items():
                shown = _nothing(numbers) if tag in worthless else numbers
                tagged |= {f"{name}/{part}/{key}/{field}": value for field, value in shown.items()}
    return tagged


def _fields(estimate: Any) -> dict[str, float]:
    if isinstance(estimate, Estimate):
        return estimate_fields(estimate)
    return {**estimate.scalars(), "ok": float(estimate.health.ok)}


def _by_component(estimate: Any) -> dict[str, dict[str, float]]:
    return estimate.by_component() if isinstance(estimate, Result) else {}


def _nothing(fields: Iterable[str]) -> dict[str, float]:
    return {**dict.fromkeys(fields, math.nan), "ok": 0.0}


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


def missing(name: str, keys: Keys) -> dict[str, float]:
    """The same tags for a reading that failed: NaN, and not ok."""
    return {
        f"{name}/{component}/{key}/{field}": value
        for component, estimates in keys.items()
        for key, fields in estimates.items()
        for field, value in _nothing(fields).items()
    }
