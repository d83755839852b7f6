"""Chains that go wrong, each on a small real problem: the cases that failure_modes.py draws."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from digits import Digits, digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt


@dataclass(frozen=True, kw_only=True)
class Case:
    """One panel.

    Attributes:
        title: What is wrong.
        setup: The problem and the settings that matter.
        run: Makes the estimate, with its traces.
        truth: What it should be, where that is known: λ, or the exact value at these nβ and γ.
        outliers: Whether the picture is of single draws, rather than of the typical ones.
    """

    title: str
    setup: str
    run: Callable[[], slt.Estimate]
    truth: float | None = None
    outliers: bool = False


# Problems: each gives an estimate from a sampler, nβ, γ and the counts.


class Point(nn.Module):
    """Bare weights, of which the loss is a plain function."""

    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(w.double())


class DeepLinear(nn.Module):
    """A deep linear network at its deepest point, where its λ is known."""

    def __init__(self, widths: list[int], rank: int) -> None:
        super().__init__()
        self.factors = nn.ParameterList(slt.theory.deepest_point(widths, rank=rank, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = x @ factor.T
        return x


def measure(net: nn.Module, data: TensorDataset, loss_fn: Any, keywords: dict[str, Any]) -> slt.Estimate:
    """An LLC with its traces; ``control``, sampler, nβ and γ by their names, all other keywords are counts."""
    llc = slt.LLC(traces=True, control=keywords.pop("control", False))
    constants = {name: keywords.pop(name) for name in ("sampler", "nbeta", "localization") if name in keywords}
    counts = slt.SamplingConfig(**{"num_draws": 400, **keywords})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the loss was not finite in chain")  # it is what we want to see
        return slt.estimate(net, data, [llc], loss_fn=loss_fn, sampling=counts, **constants)["llc"]


def potential(loss: Callable[[Tensor], Tensor], start: Tensor, **keywords: Any) -> slt.Estimate:
    """The LLC of a function of the weights at one place."""
    return measure(
        Point(start), TensorDataset(torch.zeros(4, 1)), lambda m, batch: loss(m.w).expand(len(batch[0])), keywords
    )


CURVATURES = torch.logspace(-2, 0, 20, dtype=torch.float64)
STIFFEST = 100.0 * 1.0 + 10.0
"""P = nβ h + γ of the bowl's steepest direction at the settings below."""


def bowl(w: Tensor) -> Tensor:
    """A quadratic with twenty curvatures from 0.01 to 1."""
    return (CURVATURES * w.square()).sum() / 2


def crossing(k1: int, k2: int) -> Callable[[Tensor], Tensor]:
    """The normal crossing ``w₁^2k₁ · w₂^2k₂``."""
    return lambda w: w[0] ** (2 * k1) * w[1] ** (2 * k2)


def two_basins(w: Tensor) -> Tensor:
    """Minima at w₁ = −1 and +1, the second lower by 0.3, behind a barrier of 0.2; five more directions."""
    smoothstep = (w[0] + 1) ** 2 * (2 - w[0]) / 4
    return 0.2 * (w[0] ** 2 - 1) ** 2 - 0.3 * smoothstep + w[1:].square().sum() / 2


def deep(widths: list[int], rank: int, **keywords: Any) -> slt.Estimate:
    """A deep linear network on inputs whose second moment is the identity, all data at every step."""
    net, x = DeepLinear(widths, rank), math.sqrt(widths[0]) * torch.eye(widths[0])
    data = TensorDataset(x, net(x).detach())
    return measure(net, data, slt.losses.regression, {"nbeta": 1085.7, "batch_size": len(x), **keywords})


def deep_samples() -> tuple[nn.Module, TensorDataset]:
    """A deep linear network with 10 000 samples, so that n/log n is the nβ of :func:`deep`."""
    net = DeepLinear([4, 4, 4, 4], 1)
    x = math.sqrt(3) * (2 * torch.rand(10_000, 4, generator=torch.Generator().manual_seed(1)) - 1)
    return net, TensorDataset(x, net(x).detach())


def deep_truth(widths: list[int], rank: int) -> float:
    """Its λ."""
    return float(slt.theory.deep_linear_learning_coefficient(widths, rank=rank)[0])


def noisy_line() -> tuple[nn.Module, TensorDataset]:
    """Least squares with noise of 0.5 in eight directions, at its minimum: 1000 samples."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 8, generator=g)
    y = x @ torch.randn(8, 1, generator=g) + 0.5 * torch.randn(1000, 1, generator=g)
    net = nn.Linear(8, 1, bias=False)
    net.weight.data = torch.linalg.lstsq(x, y).solution.T.contiguous()
    return net, TensorDataset(x, y)


def line(**keywords: Any) -> slt.Estimate:
    """The LLC of the noisy line."""
    constants = {"nbeta": 145.0, "localization": 10.0, "sampler": slt.SGLD(step_size=3e-4)}
    return measure(*noisy_line(), slt.losses.regression, {**constants, **keywords})


def line_truth() -> float:
    """The exact value at the nβ and γ above."""
    x, _ = noisy_line()[1].tensors
    return slt.theory.quadratic_llc(torch.linalg.eigvalsh(2 * x.T @ x / len(x)), nbeta=145.0, localization=10.0)


def digit_network(steps: int) -> tuple[nn.Module, TensorDataset]:
    """The classifier of digits.py after some training steps, with its data."""
    data, _ = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Digits()
    optimizer, g = module.configure_optimizers(), torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = data[torch.randint(len(data), (64,), generator=g)]
        optimizer.zero_grad()
        F.cross_entropy(module.net(x), y).backward()
        optimizer.step()
    return module.net, data


def network(steps: int, **keywords: Any) -> slt.Estimate:
    """The LLC of the digit classifier; what is not given is found."""
    return measure(*digit_network(steps), slt.losses.classification, {"num_draws": 300, **keywords})


def cases() -> list[Case]:
    """All panels in the order of the picture."""
    at = {"nbeta": 100.0, "localization": 10.0}
    exact = slt.theory.quadratic_llc(CURVATURES, **at)
    flat, origin, fine = torch.zeros(20), torch.zeros(2), slt.SGLD(step_size=1.2e-3)
    hot = {"nbeta": 144.8, "localization": 1.0, "sampler": slt.SGLD(step_size=5e-3), "thinning": 10}

    def crossing_truth(*exponents: int) -> float:
        return slt.theory.normal_crossing_posterior_llc(exponents, nbeta=144.8, localization=1.0)

    def sgld(stability: float, **counts: Any) -> Callable[[], slt.Estimate]:
        return lambda: potential(bowl, flat, sampler=slt.SGLD(step_size=stability / STIFFEST), **at, **counts)

    return [
        Case(title="A good chain", setup="quadratic, εP = 0.1", run=sgld(0.1, thinning=4), truth=exact),
        Case(
            title="A good chain of a network",
            setup="digits, 1000 training steps, nβ = 30",
            run=lambda: network(1000, sampler=fine, thinning=4),
        ),
        Case(
            title="Same network, other settings",
            setup="as panel 2, but nβ = n/log n, γ = 1",
            run=lambda: network(
                1000, nbeta=1437 / math.log(1437), localization=1.0, sampler=slt.SGLD(step_size=3e-4), thinning=4
            ),
        ),
        Case(
            title="γ hides the loss",
            setup="deep linear, γ = 100, all else right",
            run=lambda: deep(
                [4, 4, 4, 4], 1, localization=100.0, sampler=slt.SGLD(step_size=1e-4), thinning=5, control=True
            ),
            truth=deep_truth([4, 4, 4, 4], 1),
        ),
        Case(title="Step too long", setup="quadratic, εP = 2", run=sgld(2.0), truth=exact),
        Case(
            title="Step too long for a network",
            setup="as panel 2, four times the step",
            run=lambda: network(1000, sampler=slt.SGLD(step_size=4.8e-3)),
        ),
        Case(
            title="Step too long, AdamSGLD",
            setup="deep linear, ε = 1e-4",
            run=lambda: deep(
                [4, 4, 4, 4], 1, localization=1.0, sampler=slt.AdamSGLD(step_size=1e-4), thinning=4, num_burnin=1000
            ),
            truth=deep_truth([4, 4, 4, 4], 1),
        ),
        Case(
            title="Step too long, MALA",
            setup="quadratic, εP = 10",
            run=lambda: potential(bowl, flat, sampler=slt.MALA(step_size=10 / STIFFEST), **at),
            truth=exact,
        ),
        Case(
            title="Divergence",
            setup="w₁⁴w₂⁴, ε = 0.005; a cross marks a death",
            run=lambda: potential(crossing(2, 2), origin, **hot),
            truth=crossing_truth(2, 2),
            outliers=True,
        ),
        Case(
            title="Spikes",
            setup="w₁²w₂², ε = 0.005",
            run=lambda: potential(crossing(1, 1), origin, **hot),
            truth=crossing_truth(1, 1),
            outliers=True,
        ),
        Case(
            title="The same by HMC",
            setup="h = 0.04, 25 leapfrog steps",
            run=lambda: potential(
                crossing(1, 1),
                origin,
                sampler=slt.HMC(step_size=0.04, num_leapfrog=25),
                nbeta=144.8,
                localization=1.0,
                num_burnin=10,
            ),
            truth=crossing_truth(1, 1),
            outliers=True,
        ),
        Case(title="Step too short", setup="quadratic, εP = 0.001", run=sgld(0.001, num_burnin=100), truth=exact),
        Case(title="No burn-in", setup="quadratic, εP = 0.02", run=sgld(0.02, num_burnin=0), truth=exact),
        Case(
            title="Slow directions, held by γ",
            setup="deep linear, two factors, ε = 2e-5",
            run=lambda: deep(
                [6, 4, 6], 0, localization=1.0, sampler=slt.SGLD(step_size=2e-5), num_draws=1000, num_burnin=1000
            ),
            truth=deep_truth([6, 4, 6], 0),
        ),
        Case(
            title="The same, hardly seen",
            setup="deep linear, three factors, ε = 3e-5",
            run=lambda: deep(
                [5, 5, 5, 5], 2, localization=1.0, sampler=slt.SGLD(step_size=3e-5), num_draws=1000, num_burnin=1000
            ),
            truth=deep_truth([5, 5, 5, 5], 2),
        ),
        Case(
            title="Chains in another basin",
            setup="two minima, nβ = 40",
            run=lambda: potential(
                two_basins,
                torch.tensor([-1.0, 0, 0, 0, 0, 0]),
                sampler=slt.SGLD(step_size=5e-3),
                nbeta=40.0,
                localization=0.1,
                thinning=2,
                num_burnin=200,
            ),
        ),
        Case(
            title="nβ too large for the stage",
            setup="digits, 60 training steps, nβ = n/log n",
            run=lambda: network(60, nbeta=1437 / math.log(1437)),
        ),
        Case(
            title="Same network at nβ = 30",
            setup="digits, 60 training steps",
            run=lambda: network(60, sampler=fine, thinning=4),
        ),
        Case(
            title="The anchor is no minimum",
            setup="quadratic with its minimum 0.3 away",
            run=lambda: potential(
                lambda w: bowl(w - 0.3), flat, sampler=slt.SGLD(step_size=0.1 / STIFFEST), thinning=2, **at
            ),
        ),
        Case(
            title="Minibatches too small",
            setup="noisy least squares, batches of 4",
            run=lambda: line(batch_size=4, thinning=4),
            truth=line_truth(),
        ),
        Case(
            title="Shared minibatches",
            setup="noisy least squares, batches of 4",
            run=lambda: line(batch_size=4, thinning=4, share_batches=True),
            truth=line_truth(),
        ),
    ]
