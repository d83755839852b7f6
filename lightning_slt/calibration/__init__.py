"""Settings without the user: curvature, the rules made of it, and the search that checks them."""

from lightning_slt.calibration.curvature import Curvature, curvatures, largest_curvature, leading_curvature
from lightning_slt.calibration.relative import (
    MAX_STRETCH,
    NBETA,
    OUTGROWN,
    STABILITY,
    calibrate_relative,
    follow_curvature,
    renew,
)
from lightning_slt.calibration.settings import Settings

__all__ = [
    "MAX_STRETCH",
    "NBETA",
    "OUTGROWN",
    "STABILITY",
    "Curvature",
    "Settings",
    "calibrate_relative",
    "curvatures",
    "follow_curvature",
    "largest_curvature",
    "leading_curvature",
    "renew",
]
