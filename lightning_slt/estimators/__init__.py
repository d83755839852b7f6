"""What is estimated from the draws, one quantity a file."""

from lightning_slt.estimators.base import Accumulator, Estimator, Run
from lightning_slt.estimators.influence import BayesianInfluence, Influence
from lightning_slt.estimators.llc import LLC

__all__ = ["LLC", "Accumulator", "BayesianInfluence", "Estimator", "Influence", "Run"]
