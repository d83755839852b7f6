"""Watch the development of a network live: singular learning theory as PyTorch Lightning callbacks."""

from lightning_slt import losses, theory
from lightning_slt.calibration import Settings
from lightning_slt.callbacks import (
    CompressibilityMonitor,
    InfluenceMonitor,
    LLCMonitor,
    LogSteps,
    LossKernelMonitor,
    RefinedLLCMonitor,
    SamplerFinder,
    SLTMonitor,
    StageAlert,
    StageBoundary,
    StageCheckpoint,
    StageMonitor,
    StageStopping,
    SusceptibilityMonitor,
    TrajectoryMonitor,
    analyze,
)
from lightning_slt.comparing import compare
from lightning_slt.components import Component
from lightning_slt.data import SamplingData, load_data
from lightning_slt.estimators import (
    LLC,
    AtAnchor,
    BayesianInfluence,
    Compressibility,
    Estimator,
    Information,
    LossKernel,
    Susceptibility,
    Trajectory,
    View,
)
from lightning_slt.events import RunEvent, load_events
from lightning_slt.finding import Calibration, calibrate
from lightning_slt.health import Thresholds
from lightning_slt.plan import FailedReadingError, estimate
from lightning_slt.posterior import LocalPosterior
from lightning_slt.preflight import PreflightError
from lightning_slt.probes import Probe
from lightning_slt.published import Preset, presets
from lightning_slt.records import Reading, load_anchor, load_records
from lightning_slt.samplers import HMC, MALA, SGHMC, SGLD, SGNHT, AdamSGLD, RMSPropSGLD, Sampler, UnderdampedLangevin
from lightning_slt.sampling import SamplingConfig, sample
from lightning_slt.store import to_xarray
from lightning_slt.types import Draw, Estimate, Health
from lightning_slt.version import __version__

__all__ = [
    "HMC",
    "LLC",
    "MALA",
    "SGHMC",
    "SGLD",
    "SGNHT",
    "AdamSGLD",
    "AtAnchor",
    "BayesianInfluence",
    "Calibration",
    "Component",
    "Compressibility",
    "CompressibilityMonitor",
    "Draw",
    "Estimate",
    "Estimator",
    "FailedReadingError",
    "Health",
    "InfluenceMonitor",
    "Information",
    "LLCMonitor",
    "LocalPosterior",
    "LogSteps",
    "LossKernel",
    "LossKernelMonitor",
    "PreflightError",
    "Preset",
    "Probe",
    "RMSPropSGLD",
    "Reading",
    "RefinedLLCMonitor",
    "RunEvent",
    "SLTMonitor",
    "Sampler",
    "SamplerFinder",
    "SamplingConfig",
    "SamplingData",
    "Settings",
    "StageAlert",
    "StageBoundary",
    "StageCheckpoint",
    "StageMonitor",
    "StageStopping",
    "Susceptibility",
    "SusceptibilityMonitor",
    "Thresholds",
    "Trajectory",
    "TrajectoryMonitor",
    "UnderdampedLangevin",
    "View",
    "__version__",
    "analyze",
    "calibrate",
    "compare",
    "estimate",
    "load_anchor",
    "load_data",
    "load_events",
    "load_records",
    "losses",
    "presets",
    "sample",
    "theory",
    "to_xarray",
]
