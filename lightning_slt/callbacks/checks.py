"""What a monitor refuses when it is made or set up."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig


def check_name(name: str) -> None:
    """Refuse what cannot begin a log tag and name a file below the log folder.

    Raises:
        ValueError: For an empty name, or one that leads out of that folder.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else []
    if not parts or any(part.strip() in ("", ".", "..") or ":" in part or "\0" in part for part in parts):
        raise ValueError(
            f"name must be a non-empty string that can begin a log tag, such as 'slt' or 'llc/encoder', got {name!r}"
        )


def check_settings(
    *, nbeta: float | None, localization: float | None, sampler: Sampler | None, sampling: SamplingConfig
) -> None:
    """Refuse settings that no reading can have.

    Raises:
        ValueError: For constants or counts that cannot be.
        TypeError: For a sampler that is none, or counts that are no SamplingConfig.
    """
    for key, value in (("nbeta", nbeta), ("localization", localization)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{key} must be a finite number, zero or more, or None to be found, got {value}")
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a sampler such as SGLD(step_size=1e-4), got {sampler!r}")
    if not isinstance(sampling, SamplingConfig):
        raise TypeError(f"sampling must be a SamplingConfig such as SamplingConfig(num_chains=4), got {sampling!r}")
    if sampling.num_chains < 2:
        raise ValueError("a monitor needs at least two chains for an error bar; write SamplingConfig(num_chains=4)")


def check_names(names: Sequence[str]) -> None:
    """Refuse two monitors of one name, whose tags and states would be mixed up.

    Raises:
        MisconfigurationException: If a name repeats.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MisconfigurationException(f"two monitors are called {twice[0]!r}; give one of them another name=")
