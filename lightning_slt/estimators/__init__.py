"""What is estimated from the draws, one quantity a file."""

from lightning_slt.estimators.base import Accumulator, AtAnchor, Estimator, Run, View
from lightning_slt.estimators.compressibility import Compressibility, Compression
from lightning_slt.estimators.influence import BayesianInfluence, Influence
from lightning_slt.estimators.information import Information, InformationEstimate
from lightning_slt.estimators.llc import LLC
from lightning_slt.estimators.loss_kernel import KernelEstimate, LossKernel
from lightning_slt.estimators.susceptibility import Responses, Susceptibility
from lightning_slt.estimators.trajectory import Position, Trajectory

__all__ = [
    "LLC",
    "Accumulator",
    "AtAnchor",
    "BayesianInfluence",
    "Compressibility",
    "Compression",
    "Estimator",
    "Influence",
    "Information",
    "InformationEstimate",
    "KernelEstimate",
    "LossKernel",
    "Position",
    "Responses",
    "Run",
    "Susceptibility",
    "Trajectory",
    "View",
]
