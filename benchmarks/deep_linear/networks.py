r"""Deep linear networks at a point whose learning coefficient is known, their data, and their loss.

Both recipes draw the same widths and ranks from a seed. Each layer is rank-reduced with probability ½, to a rank
between 1 and full (a layer of rank 0 would make the whole network zero); the product then has the least of these
ranks, r.

- ``deepest``: every factor has rank exactly r, the point at which the learning coefficient λ of Aoyagi 2024 is
  attained. Its padded identities are turned by a random rotation of every layer's space, which changes neither λ nor
  the spectrum of the Hessian but takes away the alignment with the axes that diagonal preconditioners would live on.
- ``paper``: Glorot-normal factors, each cut to its own rank (arXiv:2308.12108, arXiv:2507.21449). The local value is
  exact for two layers; otherwise λ is a lower bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.deep_linear.classes import NetworkClass
from lightning_slt import theory
from lightning_slt.data import MEMORY_LIMIT

Batch = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is known of one network before its weights are made.

    Attributes:
        recipe: ``"deepest"`` or ``"paper"``.
        seed: Of the set of networks.
        index: Which of the set.
        widths: From the input to the output.
        ranks: Of every layer's factor.
        rank: Of the product.
        truth: Learning coefficient λ at the point.
        truth_kind: ``"exact"``, or ``"lower bound"`` where only the least value over all factorizations is known.
        parameters: Number d of weights.
    """

    recipe: str
    seed: int
    index: int
    widths: tuple[int, ...]
    ranks: tuple[int, ...]
    rank: int
    truth: float
    truth_kind: Literal["exact", "lower bound"]
    parameters: int


def plan_network(network_class: NetworkClass, recipe: str, *, seed: int, index: int) -> Plan:
    """Draw widths and ranks, and look up λ."""
    g = _generator(seed, index, purpose=0)
    depth = _between(*network_class.layers, g)
    widths = tuple(_between(*network_class.widths, g) for _ in range(depth + 1))
    full = [min(shape) for shape in pairwise(widths)]
    reduced = [(bool(torch.rand((), generator=g) < 0.5), _between(1, most, g)) for most in full]
    ranks = tuple(drawn if cut else most for (cut, drawn), most in zip(reduced, full, strict=True))
    rank = min(ranks)
    truth, kind = _truth(recipe, widths, ranks, rank)
    return Plan(
        recipe=recipe,
        seed=seed,
        index=index,
        widths=widths,
        ranks=ranks if recipe == "paper" else (rank,) * depth,
        rank=rank,
        truth=truth,
        truth_kind=kind,
        parameters=sum(a * b for a, b in pairwise(widths)),
    )


def _truth(
    recipe: str, widths: tuple[int, ...], ranks: tuple[int, ...], rank: int
) -> tuple[float, Literal["exact", "lower bound"]]:
    if recipe == "paper" and len(ranks) == 2:
        local = theory.two_factor_local_learning_coefficient(
            widths, first_rank=ranks[0], second_rank=ranks[1], rank=rank
        )
        return float(local), "exact"
    least, _ = theory.deep_linear_learning_coefficient(widths, rank=rank)
    return float(least), "exact" if recipe == "deepest" else "lower bound"


def make_factors(plan: Plan) -> list[Tensor]:
    """The weights at the anchor, each [out, in], in float64."""
    g = _generator(plan.seed, plan.index, purpose=1)
    if plan.recipe == "deepest":
        turns = [_rotation(width, g) for width in plan.widths]
        padded = theory.deepest_point(plan.widths, rank=plan.rank, dtype=torch.float64)
        return [after @ a @ before.T for a, (before, after) in zip(padded, pairwise(turns), strict=True)]
    shapes = pairwise(plan.widths)
    return [_glorot(inputs, outputs, rank, g) for (inputs, outputs), rank in zip(shapes, plan.ranks, strict=True)]


def _rotation(width: int, g: torch.Generator) -> Tensor:
    """An orthogonal matrix, uniform over all of them."""
    q, r = torch.linalg.qr(torch.randn(width, width, generator=g, dtype=torch.float64))
    return q * r.diagonal().sign()


def _glorot(inputs: int, outputs: int, rank: int, g: torch.Generator) -> Tensor:
    """Glorot-normal, cut to its largest singular values."""
    scale = math.sqrt(2 / (inputs + outputs))
    u, s, v = torch.linalg.svd(scale * torch.randn(outputs, inputs, generator=g, dtype=torch.float64))
    return u[:, :rank] * s[:rank] @ v[:rank]


class DeepLinear(nn.Module):
    """f(x) = A⁽ᴸ⁾ … A⁽¹⁾ x, beside the true product that it is compared with.

    Args:
        factors: A⁽¹⁾, …, A⁽ᴸ⁾, each [out, in].
    """

    target: Tensor

    def __init__(self, factors: list[Tensor]) -> None:
        super().__init__()
        dtype = torch.get_default_dtype()
        self.factors = nn.ParameterList([nn.Parameter(a.to(dtype)) for a in factors])
        # of the rounded factors: the loss at the anchor is then rounding of one product, and not of every factor
        self.register_buffer("target", multiply([a.detach().double() for a in self.factors]).to(dtype))

    def product(self) -> Tensor:
        """A⁽ᴸ⁾ … A⁽¹⁾, [out, in]."""
        return multiply(list(self.factors))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [sample, in] to [sample, out], layer by layer."""
        for factor in self.factors:
            x = x @ factor.T
        return x


def multiply(factors: list[Tensor]) -> Tensor:
    """A⁽ᴸ⁾ … A⁽¹⁾."""
    product = factors[0]
    for factor in factors[1:]:
        product = factor @ product
    return product


def sample_loss(module: DeepLinear, batch: Batch) -> Tensor:
    """Squared error against noise-free targets, averaged over outputs, [sample]."""
    (x,) = batch
    return (module(x) - x @ module.target.T).square().mean(1)


def moment_loss(module: DeepLinear, batch: Batch) -> Tensor:
    r"""The batch mean of `sample_loss`, which depends on the batch through :math:`X^\top X / B` alone.

    .. math:: L_B = \tfrac{1}{d_{out}} \mathrm{tr}\big( \Delta \, \tfrac{X^\top X}{B} \, \Delta^\top \big), \qquad
              \Delta = A^{(L)} \cdots A^{(1)} - A^*
    """
    (x,) = batch
    error = module.product() - module.target
    moment = x.T @ x / len(x)
    return (error @ moment * error).sum() / len(error)


def make_data(network_class: NetworkClass, plan: Plan) -> Tensor:
    """Inputs [sample, in]: all n of them, or as many as the package keeps in memory."""
    inputs = plan.widths[0]
    count = min(network_class.num_samples, MEMORY_LIMIT // (inputs * torch.get_default_dtype().itemsize))
    x = torch.rand(count, inputs, generator=_generator(plan.seed, plan.index, purpose=2))
    return x.mul_(2).sub_(1).mul_(network_class.input_bound)


def _generator(seed: int, index: int, *, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed * 10_000 + index) * 10 + purpose)


def _between(least: int, most: int, g: torch.Generator) -> int:
    return int(torch.randint(least, most + 1, (), generator=g))
