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

    def __str__(self) -> str:
        """One line for tables and logs."""
        counts = self.sampling
        parts = (
            f"nβ={self.nbeta:.4g}{self._found('nbeta')}, γ={self.localization:.4g}{self._found('localization')}, "
            f"resolution γ/nβ={self.resolution:.4g}",
            f"{type(self.sampler).__name__} with ε={self.step_size:.4g}{self._found('sampler')}",
            f"{counts.num_draws} draws a chain, thinning {counts.thinning}, "
            f"burn-in {counts.num_burnin}{self._found('num_burnin')}, batches of {counts.batch_size}"
            + (f", passes in {counts.precision}" if counts.precision else ""),
        )
        return "; ".join(parts)

    def _found(self, name: str) -> str:
        return " (found)" if name in self.calibrated else ""

    @property
    def step_size(self) -> float:
        """ε of this reading; for samplers of Hamiltonian kind the time step."""
        return self.sampler.step_size

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
