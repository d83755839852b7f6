"""One reading, as it is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = "slt_records"
FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One reading of one monitor.

    Attributes:
        name: The monitor's.
        index: Which reading of the run, from 0.
        step: The x axis of the logs: batches that stepped the optimizer.
        global_step: Optimizer steps, as the Trainer counts them.
        epoch: Epoch in which the anchor was taken.
        time: When the reading ended, in seconds since 1970.
        duration: What it took, in seconds.
        overhead: Reading time over training time so far, this reading included; NaN before 5 % of the fit.
        settings: Sampler, nβ, γ, resolution, counts and what was calibrated.
        estimates: ``{component: {key: estimate}}``, an :class:`lightning_slt.types.Estimate` or, for what has arrays, a
            :class:`lightning_slt.results.Result`; empty where the reading failed.
        failure: Why it failed, or None.
        revises: Index of the earlier reading of the same weights that this one replaces: the run had outgrown its
            settings; None for a first one.
        anchor: File with the weights that were sampled around, where the monitor saved them.
    """

    name: str
    index: int
    step: int
    global_step: int
    epoch: int
    time: float
    duration: float
    overhead: float
    settings: Mapping[str, Any]
    estimates: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    failure: str | None = None
    revises: int | None = None
    anchor: Path | None = None


PLAIN_FIELDS = tuple(f for f in Reading.__dataclass_fields__ if f not in ("estimates", "anchor"))
"""Those that stand in a line as they are."""
