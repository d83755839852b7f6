"""Settings and readings as Markdown tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lightning_slt.calibration import Settings


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Settings of a reading as plain values, for records and tables."""
    sampling = asdict(settings.sampling)
    return {
        "sampler": type(settings.sampler).__name__,
        **{f"sampler.{k}": v for k, v in asdict(settings.sampler).items()},
        "nbeta": settings.nbeta,
        "localization": settings.localization,
        "resolution": settings.resolution,
        "curvature": settings.curvature,
        "stability": settings.stability,
        **sampling,
        "calibrated": ", ".join(settings.calibrated) or "none",
    }


MEANINGS = {
    "nbeta": "effective inverse temperature nβ",
    "localization": "strength γ of the pull towards the anchor",
    "resolution": "γ/nβ: directions of smaller curvature do not count",
    "curvature": "largest curvature of the loss at this anchor",
    "stability": "ε(nβ·curvature + γ); kept below 0.2",
    "sampler": "nβ and γ stay fixed for the run, so that readings are comparable",
    "sampler.step_size": "ε of this reading; cut later where the curvature has grown (see the records)",
    "num_chains": "independent chains; error bars come from their spread",
    "num_draws": "kept draws of each chain",
    "num_burnin": "steps before the first kept draw",
    "thinning": "steps per kept draw",
    "batch_size": "samples a minibatch",
    "precision": "of the passes; None is that of training",
    "calibrated": "found by the monitor rather than given",
    "samples": "samples in use, of those in the data set",
}


def settings_table(values: Mapping[str, Any]) -> str:
    """A Markdown table of settings with what each means."""
    rows = ["| setting | value | meaning |", "|---|---|---|"]
    for key, value in values.items():
        text = f"{value:.4g}" if isinstance(value, float) and math.isfinite(value) else str(value)
        rows.append(f"| {key} | {text} | {MEANINGS.get(key, '')} |")
    return "\n".join(rows)
