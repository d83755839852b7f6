"""Settings of a run in a checkpoint, and back."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from lightning_slt import samplers
from lightning_slt.calibration import Settings
from lightning_slt.reading import Reader
from lightning_slt.samplers import SGLD


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
    r"""Settings of the earlier part of the run; what the user gives now wins over what was found then.

    A γ that was found for another nβ keeps its resolution γ/nβ, and a step that was found its stability number
    ``s = ε (nβ λ_max + γ)``: what would have been found at the first anchor with the present nβ.
    """
    if state is None:
        return None
    request, before = reader.request, state["nbeta"]
    nbeta = before if request.nbeta is None else request.nbeta
    localization = state["localization"]
    if "localization" in state["calibrated"] and nbeta > 0 and before > 0:
        localization *= nbeta / before
    localization = localization if request.localization is None else request.localization
    sampler = request.sampler or _sampler(state)
    stiffness = nbeta * state["curvature"] + localization
    if request.sampler is None and isinstance(sampler, SGLD) and 0 < stiffness < math.inf:
        then = before * state["curvature"] + state["localization"]
        sampler = replace(sampler, step_size=sampler.step_size * (then / stiffness))
    burnin = reader.sampling.num_burnin
    return Settings(
        sampler=sampler,
        nbeta=nbeta,
        localization=localization,
        sampling=replace(reader.sampling, num_burnin=state["num_burnin"] if burnin is None else burnin),
        curvature=state["curvature"],
        stability=state["stability"],
        calibrated=tuple(state["calibrated"]),
    )


def _sampler(state: Mapping[str, Any]) -> samplers.Sampler:
    """One of ours by its name, and nothing else that a file may name."""
    kinds: dict[str, type[samplers.Sampler]] = {
        name: kind for name, kind in vars(samplers).items() if _is_sampler(kind)
    }
    if state["sampler"] not in kinds:
        known = ", ".join(kinds)
        raise ValueError(f"the saved state names a sampler {state['sampler']!r}; expected one of {known}")
    return kinds[state["sampler"]](**state["sampler_settings"])


def _is_sampler(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, samplers.Sampler) and not inspect.isabstract(kind)


def changes(state: Mapping[str, Any] | None, settings: Settings | None) -> str | None:
    """What to tell of a run that goes on at another posterior than its earlier part had; None where it is the same."""
    if state is None or settings is None:
        return None
    constants = {"nbeta": settings.nbeta, "localization": settings.localization}
    moved = [f"{key} {state[key]:.4g} → {now:.4g}" for key, now in constants.items() if state[key] != now]
    if not moved:
        return None
    kept = state["nbeta"] > 0 and math.isclose(state["localization"] / state["nbeta"], settings.resolution)
    words = f", which keeps the resolution γ/nβ at {settings.resolution:.4g}" if kept else ""
    return f"goes on with {', '.join(moved)}{words}; readings from here on are not comparable with the earlier ones"
