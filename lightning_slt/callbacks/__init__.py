"""Lightning callbacks: thin hooks around readings."""

from lightning_slt.callbacks.compressibility import CompressibilityMonitor
from lightning_slt.callbacks.finder import SamplerFinder
from lightning_slt.callbacks.influence import InfluenceMonitor
from lightning_slt.callbacks.llc import LLCMonitor
from lightning_slt.callbacks.loss_kernel import LossKernelMonitor
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.offline import analyze
from lightning_slt.callbacks.refined import RefinedLLCMonitor, SusceptibilityMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.callbacks.stage_actions import StageCheckpoint, StageStopping
from lightning_slt.callbacks.stages import StageAlert, StageBoundary, StageMonitor
from lightning_slt.callbacks.trajectory import TrajectoryMonitor

__all__ = [
    "CompressibilityMonitor",
    "InfluenceMonitor",
    "LLCMonitor",
    "LogSteps",
    "LossKernelMonitor",
    "RefinedLLCMonitor",
    "SLTMonitor",
    "SamplerFinder",
    "StageAlert",
    "StageBoundary",
    "StageCheckpoint",
    "StageMonitor",
    "StageStopping",
    "SusceptibilityMonitor",
    "TrajectoryMonitor",
    "analyze",
]
