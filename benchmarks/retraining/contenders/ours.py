"""Bayesian influence with the settings of `examples/influence_retraining.py`, its pilot for λ_max included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.covariances.cases import perceptron
from benchmarks.turns import Work
from examples.influence_retraining import DAMPING, NBETA, bayesian_influence


def prepare(question: Mapping[str, Any], *, num_chains: int = 32, num_draws: int = 400) -> Work:
    """`influence` and `normalized` `[train, query]`."""
    net = perceptron(question["hidden"])
    net.load_state_dict(question["state"])
    train, query = TensorDataset(*question["train"]), TensorDataset(*question["query"])

    def work(small: bool) -> dict[str, Tensor]:
        sampling = slt.SamplingConfig(
            num_chains=2 if small else num_chains,
            num_draws=20 if small else num_draws,
            num_burnin=300,
            thinning=8,
            batch_size=len(train),
            seed=question["seed"],
        )
        found = bayesian_influence(net, train, query, nbeta=NBETA, localization=DAMPING * NBETA, sampling=sampling)
        return {"influence": found.influence, "normalized": found.normalized}

    return work
