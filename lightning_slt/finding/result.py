"""What a search for settings found, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lightning_slt.calibration import Settings
from lightning_slt.calibration.sweep import Trial
from lightning_slt.reporting.calibration import calibration_figure, calibration_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Target = Literal["relative", "absolute"]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a search found.

    Attributes:
        target: "relative" or "absolute".
        trials: Every setting tried, with its estimate and trace; of the absolute target the last one at h and at 2h.
        chosen: The trial that is suggested; None where none can be relied on.
        settings: All that a reading needs; None where nothing is suggested.
        reason: Why this one, or why none.
        curvature: λ_max at the anchor.
    """

    target: Target
    trials: tuple[Trial, ...]
    chosen: Trial | None
    settings: Settings | None
    reason: str
    curvature: float

    @property
    def accepted(self) -> bool:
        """Whether there is a suggestion."""
        return self.settings is not None

    def keywords(self) -> dict[str, Any]:
        """Keywords for monitors and ``estimate``: ``LLCMonitor(**calibration.keywords())``.

        Returns:
            ``sampler``, ``nbeta``, ``localization`` and ``sampling``.

        Raises:
            ValueError: If nothing is suggested; says why.
        """
        if self.settings is None:
            raise ValueError(f"the calibration suggests nothing: {self.reason}")
        found = self.settings
        return {
            "sampler": found.sampler,
            "nbeta": found.nbeta,
            "localization": found.localization,
            "sampling": found.sampling,
        }

    def plot(self) -> Figure:
        """The sweep as a picture; needs matplotlib (``pip install lightning_slt[plot]``)."""
        return calibration_figure(self.trials, self.chosen, title=f"{self.target} target: {self.reason}")

    def table(self) -> str:
        """All trials as a Markdown table."""
        return calibration_table(self.trials, self.chosen)

    def __str__(self) -> str:
        """The suggestion and its reason."""
        if self.chosen is None:
            return f"no suggestion ({self.target} target): {self.reason}"
        estimate = self.chosen.estimate
        return (
            f"{self.chosen.sampler}, nbeta={self.chosen.nbeta:.4g}, localization={self.chosen.localization:.4g}: "
            f"LLC {estimate.mean:.4g} ± {estimate.stderr:.2g}; {self.reason}"
        )
