"""Settings found by experiment: ``calibrate`` sweeps, or walks until a value can be relied on, and says why."""

from lightning_slt.finding.calibrating import calibrate
from lightning_slt.finding.result import Calibration
from lightning_slt.finding.searches import Amounts, Grids, grid_size, grid_values, search

__all__ = ["Amounts", "Calibration", "Grids", "calibrate", "grid_size", "grid_values", "search"]
