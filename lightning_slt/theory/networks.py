r"""Deep linear networks: the learning coefficient at the deepest point, local values of two factors, single layers.

Aoyagi 2024, *Consideration on the learning efficiency of multiple-layered neural networks with linear units*; two
layers: Aoyagi & Watanabe 2005, *Stochastic complexities of reduced rank regression in Bayesian estimation*; one layer
of a localized posterior: arXiv:2410.02984. All values are dimensionless.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations, pairwise
from numbers import Integral

import torch
from torch import Tensor

from lightning_slt.theory.crossings import quadratic_llc


def deep_linear_learning_coefficient(widths: Sequence[int], *, rank: int) -> tuple[Fraction, int]:
    r"""Learning coefficient of a deep linear network :math:`f(x) = A^{(L)} \cdots A^{(1)} x` (Aoyagi 2024).

    With the reduced widths :math:`H^{(s)} - r` sorted to :math:`d_0 \le \dots \le d_L`,

    .. math::
        \ell &= \max\{l \in 1..L : d_0 + \dots + d_l \ge l\, d_l\}, \quad S = d_0 + \dots + d_\ell, \quad
        a = S - (\lceil S/\ell \rceil - 1)\,\ell \\
        \lambda &= \tfrac12 [r (H^{(1)} + H^{(L+1)}) - r^2] + \frac{a (\ell - a)}{4 \ell}
        - \frac{(\ell - 1) S^2}{4 \ell} + \tfrac12 \sum_{0 \le i < j \le \ell} d_i d_j, \quad
        m = a (\ell - a) + 1

    This is the least value over all factorizations of the same product, attained at :func:`deepest_point`.

    Args:
        widths: :math:`H^{(1)}, \dots, H^{(L+1)}`, from the input to the output.
        rank: Rank :math:`r` of the true product.

    Returns:
        The learning coefficient :math:`\lambda` and its multiplicity :math:`m`.

    Raises:
        ValueError: If there are fewer than two widths, a width is below 1, or no product has this rank.

    Example:
        >>> deep_linear_learning_coefficient([10, 8, 6, 10], rank=3)
        (Fraction(33, 1), 3)
    """
    _check_widths(widths, rank)
    d = sorted(int(width) - rank for width in widths)
    ell = max(last for last in range(1, len(d)) if sum(d[: last + 1]) >= last * d[last])
    total = sum(d[: ell + 1])
    a = total - (math.ceil(Fraction(total, ell)) - 1) * ell

    regular = Fraction(rank * int(widths[0] + widths[-1]) - rank**2, 2)
    pairs = Fraction(sum(first * second for first, second in combinations(d[: ell + 1], 2)), 2)
    coefficient = regular + Fraction(a * (ell - a), 4 * ell) - Fraction((ell - 1) * total**2, 4 * ell) + pairs
    return coefficient, a * (ell - a) + 1


def two_factor_local_learning_coefficient(
    widths: Sequence[int], *, first_rank: int, second_rank: int, rank: int
) -> Fraction:
    r"""Local learning coefficient of :math:`f(x) = B A x` at one factorization of the true product.

    With :math:`a, b, r` the ranks of :math:`A`, :math:`B` and :math:`BA`, and :math:`q = M_{out} a + b N_{in} - a b`,
    :math:`p = M_{out} - b`, :math:`p' = N_{in} - a`, :math:`h = H + r - a - b`,

    .. math:: \lambda = \tfrac12 \big[q + \min_{0 \le t \le \min(h, p')} \big(h p' + t (p - h - p') + t^2\big)\big]

    :math:`q` directions are regular; the rest is a reduced-rank regression of widths :math:`(p', h, p)` at zero
    (Aoyagi & Watanabe 2005). At :math:`a = b = r` this is the global value.

    Args:
        widths: :math:`N_{in}, H, M_{out}`.
        first_rank: Rank :math:`a` of :math:`A`, the layer next to the input.
        second_rank: Rank :math:`b` of :math:`B`.
        rank: Rank :math:`r` of the product.

    Returns:
        The local learning coefficient.

    Raises:
        ValueError: If there are not three widths, or no factors of these shapes have these ranks.

    Example:
        >>> [two_factor_local_learning_coefficient([4, 4, 4], first_rank=a, second_rank=0, rank=0) for a in (0, 2, 4)]
        [Fraction(6, 1), Fraction(6, 1), Fraction(8, 1)]
    """
    if len(widths) != 3:
        raise ValueError(f"`widths` must be the three widths [N_in, H, M_out] of two layers; got {list(widths)}.")
    _check_widths(widths, rank)
    inputs, hidden, outputs = (int(width) for width in widths)
    a, b = first_rank, second_rank
    if not (rank <= a <= min(inputs, hidden) and rank <= b <= min(hidden, outputs) and a + b - hidden <= rank):
        raise ValueError(
            f"No factors of widths {list(widths)} have first_rank={a}, second_rank={b} and a product of rank={rank}: "
            "write rank <= first_rank <= min(N_in, H), rank <= second_rank <= min(H, M_out) and "
            "first_rank + second_rank - H <= rank."
        )
    q, p, p_in, h = outputs * a + b * inputs - a * b, outputs - b, inputs - a, hidden + rank - a - b
    return Fraction(q + min(h * p_in + t * (p - h - p_in) + t**2 for t in range(min(h, p_in) + 1)), 2)


def deepest_point(widths: Sequence[int], *, rank: int, dtype: torch.dtype | None = None) -> list[Tensor]:
    r"""Factors at which a deep linear network attains its learning coefficient (Aoyagi 2024).

    Every :math:`A^{(s)}` is :math:`\mathrm{diag}(1, \dots, 1, 0, \dots, 0)` with exactly :math:`r` ones. Invertible
    changes of basis of any layer keep the value.

    Args:
        widths: :math:`H^{(1)}, \dots, H^{(L+1)}`, from the input to the output.
        rank: Rank :math:`r` of every factor and of the product.
        dtype: Type of the factors; None for torch's default.

    Returns:
        :math:`A^{(1)}, \dots, A^{(L)}`, each of shape [out, in] as the weight of `torch.nn.Linear`.

    Raises:
        ValueError: As :func:`deep_linear_learning_coefficient`.

    Example:
        >>> [factor.tolist() for factor in deepest_point([2, 1, 2], rank=1)]
        [[[1.0, 0.0]], [[1.0], [0.0]]]
    """
    _check_widths(widths, rank)
    ones = (torch.arange(max(widths)) < rank).to(dtype or torch.get_default_dtype())
    return [torch.diag(ones)[:outputs, :inputs].clone() for inputs, outputs in pairwise(widths)]


def deep_linear_layer_llc(
    weights: Sequence[Tensor], *, layer: int, nbeta: float, localization: float, second_moment: Tensor | None = None
) -> float:
    r"""Weight-refined LLC of one layer of a deep linear network, exact at finite :math:`n\beta`.

    The squared error, averaged over the outputs, is quadratic in one layer (arXiv:2410.02984):

    .. math::
        \hat\lambda = \sum_{jk} \tfrac12 \frac{n\beta\, h_{jk}}{n\beta\, h_{jk} + \gamma}, \quad
        h_{jk} = \frac{2 \alpha_j \kappa_k}{d_{out}}, \quad
        \alpha = \mathrm{eig}(A_{<i} \Sigma A_{<i}^\top), \quad \kappa = \mathrm{eig}(A_{>i}^\top A_{>i})

    Args:
        weights: :math:`A^{(1)}, \dots, A^{(L)}`, each [out, in] as the weight of `torch.nn.Linear`.
        layer: Index of the layer that moves, from 0.
        nbeta: Effective inverse temperature :math:`n\beta`.
        localization: Strength :math:`\gamma`.
        second_moment: :math:`\Sigma = E[x x^\top]`, [in, in]; None for the identity.

    Returns:
        The expected estimate under the localized posterior of this layer.

    Raises:
        ValueError: If shapes do not chain, there is no such layer, or `localization` is not positive.

    Example:
        >>> weights = deepest_point([3, 2, 4], rank=2)
        >>> [round(deep_linear_layer_llc(weights, layer=i, nbeta=1e3, localization=1.0), 4) for i in (0, 1)]
        [2.994, 3.992]
    """
    inputs, outputs = weights[0].shape[-1], weights[-1].shape[0]
    sigma = torch.eye(inputs, dtype=torch.float64) if second_moment is None else second_moment.double()
    shapes = [tuple(sigma.shape), *(tuple(weight.shape) for weight in weights)]
    if any(len(shape) != 2 for shape in shapes) or any(left[0] != right[1] for left, right in pairwise(shapes)):
        raise ValueError(f"`second_moment` [in, in] and `weights` [out, in] must chain; got the shapes {shapes}.")
    if not 0 <= layer < len(weights):
        raise ValueError(f"`layer` must be an index from 0 to {len(weights) - 1}; got {layer}.")
    if localization <= 0:
        raise ValueError(f"`localization` must be positive, since layers have flat directions; got {localization}.")
    before, after = _product(weights[:layer], inputs), _product(weights[layer + 1 :], weights[layer].shape[0])
    alpha = torch.linalg.eigvalsh(before @ sigma @ before.T)
    kappa = torch.linalg.eigvalsh(after.T @ after)
    return quadratic_llc(2 * torch.outer(alpha, kappa).flatten() / outputs, nbeta=nbeta, localization=localization)


def _product(factors: Sequence[Tensor], inputs: int) -> Tensor:
    product = torch.eye(inputs, dtype=torch.float64)
    for factor in factors:
        product = factor.detach().double() @ product
    return product


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral)


def _check_widths(widths: Sequence[int], rank: int) -> None:
    if len(widths) < 2 or not all(_is_integer(width) and width >= 1 for width in widths):
        raise ValueError(f"`widths` must be two or more positive integers such as [10, 8, 6, 10]; got {list(widths)}.")
    if not (_is_integer(rank) and 0 <= rank <= min(widths)):
        raise ValueError(f"`rank` must be an integer from 0 to the least width {min(widths)}; got {rank}.")
