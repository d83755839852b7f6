"""Closed forms: what an estimate of the learning coefficient should be, where that is known."""

from lightning_slt.theory.crossings import (
    normal_crossing_learning_coefficient,
    normal_crossing_posterior_llc,
    normal_crossing_sum_learning_coefficient,
    quadratic_llc,
    sgld_quadratic_llc,
)
from lightning_slt.theory.dynamics import (
    learning_times,
    linear_network_influence,
    mode_strengths,
    weight_response,
)
from lightning_slt.theory.networks import (
    deep_linear_layer_llc,
    deep_linear_learning_coefficient,
    deepest_point,
    two_factor_local_learning_coefficient,
)
from lightning_slt.theory.regression import dmmse_estimates, ridge_estimates

__all__ = [
    "deep_linear_layer_llc",
    "deep_linear_learning_coefficient",
    "deepest_point",
    "dmmse_estimates",
    "learning_times",
    "linear_network_influence",
    "mode_strengths",
    "normal_crossing_learning_coefficient",
    "normal_crossing_posterior_llc",
    "normal_crossing_sum_learning_coefficient",
    "quadratic_llc",
    "ridge_estimates",
    "sgld_quadratic_llc",
    "two_factor_local_learning_coefficient",
    "weight_response",
]
