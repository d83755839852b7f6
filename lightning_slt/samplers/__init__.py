"""Samplers of the local posterior, one algorithm a file."""

from lightning_slt.samplers.base import Sampler
from lightning_slt.samplers.sgld import SGLD

__all__ = ["SGLD", "Sampler"]
