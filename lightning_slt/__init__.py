"""Watch the development of a network live: singular learning theory as PyTorch Lightning callbacks.

Names are imported when they are first used (PEP 562), so that ``import lightning_slt`` costs nothing, and TensorBoard's
tab, which needs few of them, opens without waiting for Lightning.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning_slt.version import __version__

if TYPE_CHECKING:
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
    from lightning_slt.samplers import (
        HMC,
        MALA,
        SGHMC,
        SGLD,
        SGNHT,
        AdamSGLD,
        RMSPropSGLD,
        Sampler,
        UnderdampedLangevin,
    )
    from lightning_slt.sampling import SamplingConfig, sample
    from lightning_slt.store import to_xarray
    from lightning_slt.types import Draw, Estimate, Health

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

_NAMES = {
    "calibration": "Settings",
    "callbacks": (
        "CompressibilityMonitor InfluenceMonitor LLCMonitor LogSteps LossKernelMonitor RefinedLLCMonitor "
        "SamplerFinder SLTMonitor StageAlert StageBoundary StageCheckpoint StageMonitor StageStopping "
        "SusceptibilityMonitor TrajectoryMonitor analyze"
    ),
    "comparing": "compare",
    "components": "Component",
    "data": "SamplingData load_data",
    "estimators": (
        "LLC AtAnchor BayesianInfluence Compressibility Estimator Information LossKernel Susceptibility Trajectory View"
    ),
    "events": "RunEvent load_events",
    "finding": "Calibration calibrate",
    "health": "Thresholds",
    "plan": "FailedReadingError estimate",
    "posterior": "LocalPosterior",
    "preflight": "PreflightError",
    "probes": "Probe",
    "published": "Preset presets",
    "records": "Reading load_anchor load_records",
    "samplers": "HMC MALA SGHMC SGLD SGNHT AdamSGLD RMSPropSGLD Sampler UnderdampedLangevin",
    "sampling": "SamplingConfig sample",
    "store": "to_xarray",
    "types": "Draw Estimate Health",
}
"""Modules and the public names that come from them, the same as above; a test holds that they agree."""

_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

if not TYPE_CHECKING:  # type checkers would take any name for one of the package's

    def __getattr__(name: str) -> object:
        """A public name, or a module of the package, imported now."""
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        if not name.startswith("_") and find_spec(f"{__name__}.{name}"):
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Everything public, imported or not."""
    return sorted({*globals(), *__all__})


if "lightning.pytorch" in sys.modules:
    # LightningCLI takes bare names ("--trainer.callbacks+=LLCMonitor") for classes that are loaded.
    import_module(f"{__name__}.callbacks")
