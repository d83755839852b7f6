"""Settings of a run in a checkpoint, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from lightning_slt import samplers
from lightning_slt.calibration import Settings
from lightning_slt.reading import Reader


def freeze(settings: Settings | None) -> dict[str, Any] | None:
    """Settings as plain values: checkpoints are loaded with weights only."""
    if settings is None:
        return None
    return {
        "sampler": type(settings.sampler).__name__,
        "sampler_settings": asdict(settings.sampler),
        "nbeta": settings.nbeta,
        "localization": settings.localization,
        "num_burnin": settings.sampling.num_burnin,
        "curvature": settings.curvature,
        "stability": settings.stability,
        "calibrated": list(settings.calibrated),
    }


def thaw(state: Mapping[str, Any] | None, reader: Reader) -> Settings | None:
    """Settings of the earlier part of the run; what the user gives now wins over what was found then."""
    if state is None:
        return None
    request = reader.request
    burnin = reader.sampling.num_burnin
    return Settings(
        sampler=request.sampler or getattr(samplers, state["sampler"])(**state["sampler_settings"]),
        nbeta=state["nbeta"] if request.nbeta is None else request.nbeta,
        localization=state["localization"] if request.localization is None else request.localization,
        sampling=replace(reader.sampling, num_burnin=state["num_burnin"] if burnin is None else burnin),
        curvature=state["curvature"],
        stability=state["stability"],
        calibrated=tuple(state["calibrated"]),
    )
