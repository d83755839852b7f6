"""What gradients at the anchor foretell: their dot product, and the exact damped Gauss–Newton influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from benchmarks.covariances.cases import perceptron
from benchmarks.turns import Work
from examples.influence_retraining import gauss_newton, gradients


def prepare(question: Mapping[str, Any], *, dampings: Sequence[str] = ()) -> Work:
    """`[train, query]` for every damping; without any, the dot product."""
    net = perceptron(question["hidden"])
    net.load_state_dict(question["state"])
    train, query = TensorDataset(*question["train"]), TensorDataset(*question["query"])

    def work(_small: bool) -> dict[str, Tensor]:
        of_train, of_query = gradients(net, train), gradients(net, query)
        if not dampings:
            return {"dot": -of_train @ of_query.T}
        curvature, unit = gauss_newton(net, train), torch.eye(of_train.shape[1])
        return {d: -of_train @ torch.linalg.solve(curvature + float(d) * unit, of_query.T) for d in dampings}

    return work
