"""Twelve tasks with a known answer, on which one default has to find its own settings.

Truths are the exact values at the nβ = n/log n and γ = 1 of the absolute target, and λ for deep linear networks at
their deepest points.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_slt import theory


class Point(nn.Module):
    """Weights at zero, of which a loss is a plain function."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))


class DeepLinear(nn.Module):
    """A deep linear network at its deepest point."""

    def __init__(self, widths: list[int], rank: int) -> None:
        super().__init__()
        self.factors = nn.ParameterList(theory.deepest_point(widths, rank=rank, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = x @ factor.T
        return x


@dataclass(frozen=True)
class Task:
    """A module at its anchor, with data, loss and truth; ``within`` is the error that is allowed."""

    module: nn.Module
    data: TensorDataset
    loss_fn: Callable[[nn.Module, Any], Tensor]
    truth: float
    within: float


def potential(loss: Callable[[Tensor], Tensor], size: int, truth: Callable[[float], float], *, n: int) -> Task:
    """A function of the weights, without samples but as many as n for nβ."""
    return Task(
        module=Point(size),
        data=TensorDataset(torch.zeros(n, 1)),
        loss_fn=lambda module, batch: loss(module.w).expand(len(batch[0])),
        truth=truth(n / math.log(n)),
        within=0.1,
    )


def quadratic(curvatures: Tensor, *, n: int) -> Task:
    return potential(
        lambda w: 0.5 * (curvatures * w.square()).sum(),
        len(curvatures),
        lambda nbeta: theory.quadratic_llc(curvatures, nbeta=nbeta, localization=1.0),
        n=n,
    )


CROSSINGS = {(0, 2): 0.2431, (1, 1): 0.3614, (1, 2): 0.2095, (2, 2): 0.1504}
"""nβ E[K] at nβ = 144.8 and γ = 1, by quadrature."""


def crossing(exponents: tuple[int, int]) -> Task:
    def loss(w: Tensor) -> Tensor:
        return torch.stack([x ** (2 * k) for x, k in zip(w, exponents, strict=True) if k]).prod()

    return potential(loss, 2, lambda nbeta: CROSSINGS[exponents], n=1000)


def regression(*, n: int) -> Task:
    """Least squares with noise at its minimum: minibatch noise, and an exact answer."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, 8, generator=g) * torch.logspace(-1, 0, 8)
    y = x @ torch.randn(8, 1, generator=g) + 0.3 * torch.randn(n, 1, generator=g)
    net = nn.Linear(8, 1, bias=False)
    net.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    curvatures = torch.linalg.eigvalsh(2 * x.T @ x / n)
    truth = theory.quadratic_llc(curvatures, nbeta=n / math.log(n), localization=1.0)
    return Task(net, TensorDataset(x, y), squared_error, truth, 0.1)


def deep_linear(widths: list[int], rank: int) -> Task:
    g = torch.Generator().manual_seed(1)
    x = (2 * torch.rand(10_000, widths[0], generator=g) - 1) * math.sqrt(3)
    net = DeepLinear(widths, rank)
    truth = float(theory.deep_linear_learning_coefficient(widths, rank=rank)[0])
    return Task(net, TensorDataset(x, net(x).detach()), squared_error, truth, 0.2)


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    return (module(batch[0]) - batch[1]).square().mean(-1)


TASKS: Mapping[str, Callable[[], Task]] = {
    "quadratic, condition 100": partial(quadratic, torch.logspace(-2, 0, 20), n=1000),
    "quadratic, condition 1000": partial(quadratic, torch.logspace(-2, 1, 50), n=10_000),
    "regression": partial(regression, n=1000),
    **{f"crossing {k}": partial(crossing, k) for k in CROSSINGS},
    "deep linear 5-3-5, rank 2": partial(deep_linear, [5, 3, 5], 2),
    "deep linear 6-5-6, rank 3": partial(deep_linear, [6, 5, 6], 3),
    "deep linear 4-4-4-4, rank 2": partial(deep_linear, [4, 4, 4, 4], 2),
    "deep linear 6-4-5-6, rank 2": partial(deep_linear, [6, 4, 5, 6], 2),
    "deep linear 4-4-4-4-4, rank 1": partial(deep_linear, [4, 4, 4, 4, 4], 1),
}
