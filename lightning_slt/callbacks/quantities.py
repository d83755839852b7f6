"""One number of a reading by its tag, with its error, its chains, and the loss at the same weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_slt import samplers
from lightning_slt.analysis.announcing import Row
from lightning_slt.records import Reading
from lightning_slt.reporting.advice import worthless
from lightning_slt.reporting.scalars import scalars
from lightning_slt.types import Estimate


def owner(quantity: str, monitors: Iterable[str]) -> str | None:
    """The monitor that a tag belongs to: the longest name that begins it."""
    return max((name for name in monitors if quantity.startswith(f"{name}/")), key=len, default=None)


def check_quantity(quantity: str, monitors: Iterable[str], tags: Iterable[str]) -> str:
    """Refuse a tag that no monitor of the Trainer logs.

    Args:
        quantity: ``<monitor>/<component>/<key>`` of an estimate with an error, or a full tag of any scalar.
        monitors: Their names.
        tags: All that they log.

    Returns:
        The monitor that it belongs to.

    Raises:
        MisconfigurationException: With the tags that come nearest.
    """
    known, mine = set(tags), owner(quantity, monitors)
    if mine is not None and {quantity, f"{quantity}/mean"} & known:
        return mine
    shown = sorted(tag.removesuffix("/mean") for tag in known)
    near = ", ".join(difflib.get_close_matches(quantity, shown, n=4, cutoff=0.0)) or "none: there is no monitor"
    raise MisconfigurationException(
        f"StageMonitor(quantity={quantity!r}) waits for a number that no monitor of this Trainer logs; the nearest "
        f"that are: {near}"
    )


def row_of(reading: Reading, quantity: str, derived: Mapping[str, Any] | None = None) -> Row:
    """One number of a reading; NaN where the reading failed or its number is none.

    Args:
        reading: Of the monitor that the quantity belongs to.
        quantity: As in :func:`check_quantity`.
        derived: What the monitor has derived from its readings so far, by tag: the Trainer's ``callback_metrics``.
    """
    place, estimate = _estimate(reading, quantity)
    rejects = getattr(getattr(samplers, str(reading.settings.get("sampler")), None), "full_batch", False)
    bad = worthless(reading.estimates, exact=bool(rejects))
    value, stderr, chains = math.nan, math.nan, ()
    if isinstance(estimate, Estimate) and quantity in (place, f"{place}/mean"):
        value, stderr, chains = estimate.mean, estimate.stderr, tuple(estimate.per_chain.tolist())
    elif reading.estimates:
        numbers = {**(derived or {}), **scalars(reading.name, reading.estimates, worthless=bad)}
        value = float(numbers.get(quantity, math.nan))
        stderr = float(numbers.get(f"{quantity}_stderr", math.nan))
    if place.removeprefix(f"{reading.name}/") in bad:
        value = math.nan
    ok = estimate is not None and estimate.health.ok
    return Row(
        index=reading.index, step=reading.step, value=value, stderr=stderr, loss=_loss(reading, place),
        per_chain=chains, reliable=ok, revises=reading.revises,
    )  # fmt: skip


def _estimate(reading: Reading, quantity: str) -> tuple[str, Estimate | None]:
    """The estimate that a tag is a number of, and the tag of that estimate."""
    found = {f"{reading.name}/{c}/{key}": e for c, by_key in reading.estimates.items() for key, e in by_key.items()}
    fits = [place for place in found if quantity == place or quantity.startswith(f"{place}/")]
    place = max(fits, key=len, default=quantity)
    return place, found.get(place)


def _loss(reading: Reading, place: str) -> float:
    """The anchor's loss as that estimate has it, or as any other one of the reading has."""
    rest = [e for by_key in reading.estimates.values() for e in by_key.values()]
    for estimate in [e for e in (_estimate(reading, place)[1],) if e is not None] + rest:
        if math.isfinite(loss := estimate.health.values.get("anchor_loss", math.nan)):
            return float(loss)
    return math.nan
