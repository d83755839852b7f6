"""Everything that a reading runs with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_slt.samplers import Sampler
from lightning_slt.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    r"""Everything that a reading runs with.

    Attributes:
        sampler: With the step size of this reading.
        nbeta: nβ, fixed for a run.
        localization: γ, fixed for a run.
        sampling: Counts of this reading, burn-in resolved.
        curvature: λ_max at the anchor where it was measured, else NaN.
        stability: The sampler's own number of that curvature, ``ε (nβ λ_max + γ)`` for SGLD; NaN where unknown.
        steps: Share of the steps that this anchor's curvature asks for; below 1 where the cap on them was met.
        calibrated: Which of these were found rather than given.
    """

    sampler: Sampler
    nbeta: float
    localization: float
    sampling: SamplingConfig
    curvature: float = math.nan
    stability: float = math.nan
    steps: float = 1.0
    calibrated: tuple[str, ...] = ()

    @property
    def resolution(self) -> float:
        """Curvature ``γ/nβ`` below which a direction does not count; infinite without the loss."""
        return self.localization / self.nbeta if self.nbeta else math.inf

    @property
    def num_steps(self) -> int:
        """Sampler steps of one chain: adaptation + burn-in + draws × thinning."""
        return self.sampler.adaptation_steps + self.sampling.num_steps

    @property
    def condition(self) -> float:
        """``κ = nβ λ_max / γ``."""
        return self.nbeta * self.curvature / self.localization if self.localization else math.inf
