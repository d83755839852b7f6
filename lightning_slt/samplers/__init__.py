"""Samplers of the local posterior, one algorithm a file."""

from lightning_slt.samplers.adam_sgld import AdamSGLD
from lightning_slt.samplers.base import Sampler
from lightning_slt.samplers.hmc import HMC
from lightning_slt.samplers.mala import MALA
from lightning_slt.samplers.rmsprop_sgld import RMSPropSGLD
from lightning_slt.samplers.sghmc import SGHMC
from lightning_slt.samplers.sgld import SGLD
from lightning_slt.samplers.sgnht import SGNHT
from lightning_slt.samplers.underdamped import UnderdampedLangevin

__all__ = ["HMC", "MALA", "SGHMC", "SGLD", "SGNHT", "AdamSGLD", "RMSPropSGLD", "Sampler", "UnderdampedLangevin"]
