r"""Normal crossings and quadratics: values in the limit, of the localized posterior, and of SGLD's own law.

Watanabe 2009, *Algebraic Geometry and Statistical Learning Theory*; the localized posterior at finite
:math:`n\beta`: arXiv:2308.12108. All values are dimensionless.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from numbers import Integral

import torch
from torch import Tensor


def normal_crossing_learning_coefficient(exponents: Sequence[int]) -> tuple[Fraction, int]:
    r"""Learning coefficient of the normal crossing :math:`K = \prod_i w_i^{2 k_i}` (Watanabe 2009).

    :math:`\lambda = \min_i 1/(2 k_i)`, and :math:`m` counts how often the minimum is attained.

    Args:
        exponents: :math:`k_i \ge 0`, at least one of them positive.

    Returns:
        The learning coefficient :math:`\lambda` and its multiplicity :math:`m`.

    Raises:
        ValueError: If an exponent is negative or no integer, or all are zero.

    Example:
        >>> normal_crossing_learning_coefficient([1, 2, 2])
        (Fraction(1, 4), 2)
    """
    _check_exponents(exponents, minimum=0)
    return Fraction(1, 2 * int(max(exponents))), list(exponents).count(max(exponents))


def normal_crossing_sum_learning_coefficient(exponents: Sequence[int]) -> Fraction:
    r"""Learning coefficient of :math:`K = \sum_i w_i^{2 k_i}`: :math:`\lambda = \sum_i 1/(2 k_i)` (Watanabe 2009).

    Args:
        exponents: :math:`k_i \ge 1`.

    Returns:
        The learning coefficient :math:`\lambda`; its multiplicity is 1.

    Raises:
        ValueError: If an exponent is below 1 or no integer.

    Example:
        >>> normal_crossing_sum_learning_coefficient([1, 2])
        Fraction(3, 4)
    """
    _check_exponents(exponents, minimum=1)
    return sum((Fraction(1, 2 * int(exponent)) for exponent in exponents), start=Fraction(0))


def normal_crossing_posterior_llc(exponents: Sequence[int], *, nbeta: float, localization: float) -> float:
    r"""Finite-:math:`n\beta` value :math:`n\beta\, E[K]` of :math:`K = \prod_i w_i^{2 k_i}`, by quadrature.

    The mean is under :math:`p(w) \propto \exp(-n\beta\, K(w) - \frac{\gamma}{2} \|w\|^2)` (arXiv:2308.12108). With
    :math:`w_i = e^{t_i}` the spikes of :math:`p` along the axes become ridges of constant width, on which the
    trapezoidal rule converges geometrically.

    Args:
        exponents: :math:`k_i \ge 0`, one or two of them positive; :math:`K` does not depend on the others.
        nbeta: Effective inverse temperature :math:`n\beta`.
        localization: Strength :math:`\gamma`.

    Returns:
        The expected estimate, to ten digits.

    Raises:
        ValueError: If the exponents are others, or `nbeta` or `localization` is not positive.

    Example:
        >>> round(normal_crossing_posterior_llc([1, 2], nbeta=144.8, localization=1.0), 4)
        0.2095
    """
    _check_exponents(exponents, minimum=0)
    powers = [2 * int(exponent) for exponent in exponents if exponent]
    if len(powers) > 2:
        raise ValueError(f"`exponents` must hold one or two positive values for the quadrature; got {list(exponents)}.")
    if not (0 < nbeta < math.inf and 0 < localization < math.inf):
        raise ValueError(f"`nbeta` and `localization` must be positive and finite; got {nbeta} and {localization}.")
    # Mass below e^-32 of the narrowest scale, or beyond the prior density e^-32, is left out. The integrand is
    # analytic for |Im t| < pi / (2 power), so a step h leaves an error of exp(-pi^2 / (power h)) = e^-32 too.
    top = 0.5 * math.log(2 * 32 / localization)
    narrowest = [min(top, -(math.log(nbeta) + (sum(powers) - power) * top) / power) for power in powers]
    steps = [math.pi**2 / (32 * power) for power in powers]
    grids = zip(narrowest, steps, strict=True)
    t = torch.meshgrid([torch.arange(low - 32, top + h, h, dtype=torch.float64) for low, h in grids], indexing="ij")

    zero = torch.zeros((), dtype=torch.float64)
    log_loss = sum((power * t_i for power, t_i in zip(powers, t, strict=True)), start=zero)
    square = sum((torch.exp(2 * t_i) for t_i in t), start=zero)
    log_density = -nbeta * torch.exp(log_loss) - 0.5 * localization * square + sum(t, start=zero)
    log_mean = torch.logsumexp((log_loss + log_density).flatten(), 0) - torch.logsumexp(log_density.flatten(), 0)
    return nbeta * math.exp(log_mean)


def quadratic_llc(curvatures: Sequence[float] | Tensor, *, nbeta: float, localization: float) -> float:
    r"""LLC of a quadratic loss at finite :math:`n\beta`, exact (arXiv:2308.12108).

    .. math:: \hat\lambda = \sum_i \tfrac12 \frac{n\beta\, h_i}{n\beta\, h_i + \gamma}

    Args:
        curvatures: Eigenvalues :math:`h_i` of the Hessian of the loss, [direction].
        nbeta: Effective inverse temperature :math:`n\beta`.
        localization: Strength :math:`\gamma`.

    Returns:
        The expected estimate under the localized posterior.

    Raises:
        ValueError: If a precision :math:`n\beta h_i + \gamma` is not positive.

    Example:
        >>> round(quadratic_llc([1.0], nbeta=144.8, localization=10.0), 4)
        0.4677
    """
    return sgld_quadratic_llc(curvatures, nbeta=nbeta, localization=localization, step_size=0.0)


def sgld_quadratic_llc(
    curvatures: Sequence[float] | Tensor,
    *,
    nbeta: float,
    localization: float,
    step_size: float,
    gradient_noise: float | Sequence[float] | Tensor = 0.0,
) -> float:
    r"""What SGLD at a finite step size estimates on a quadratic loss, exact.

    Under :math:`w \leftarrow w - \frac{\epsilon}{2} (P w + s \eta) + \sqrt{\epsilon}\, \xi`,
    :math:`P_i = n\beta h_i + \gamma`, the stationary law gives

    .. math::
        \hat\lambda = \sum_i \tfrac12 \frac{n\beta\, h_i}{P_i} \, \mathrm{Var}_i P_i, \quad
        \mathrm{Var}_i P_i = \frac{1 + \epsilon s_i^2 / 4}{1 - \epsilon P_i / 4}

    Args:
        curvatures: Eigenvalues :math:`h_i` of the Hessian of the loss, [direction].
        nbeta: Effective inverse temperature :math:`n\beta`.
        localization: Strength :math:`\gamma`.
        step_size: :math:`\epsilon` in the convention of arXiv:2308.12108; 0 gives the continuous posterior.
        gradient_noise: Standard deviation :math:`s` of the minibatch noise of :math:`n\beta \nabla L`, one for all
            directions or [direction].

    Returns:
        The expected estimate.

    Raises:
        ValueError: If a precision is not positive, the step size is negative, or :math:`\epsilon P_i \ge 4`.

    Example:
        >>> round(sgld_quadratic_llc([1.0], nbeta=99.0, localization=1.0, step_size=0.01), 4)
        0.66
    """
    h = torch.as_tensor(curvatures, dtype=torch.float64)
    s = torch.as_tensor(gradient_noise, dtype=torch.float64).expand_as(h)
    precision = nbeta * h + localization
    if not bool((precision > 0).all()):
        least = float(precision.min())
        raise ValueError(
            f"Every nbeta * h + localization must be positive: raise `localization`; the least is {least}."
        )
    if step_size < 0 or not bool((step_size * precision < 4).all()):
        limit = f"4 / (nbeta * h + localization) = {4 / float(precision.max()):.4g}"
        raise ValueError(f"`step_size` must be at least 0 and below {limit}, where SGLD diverges; got {step_size}.")
    inflation = (1 + step_size * s**2 / 4) / (1 - step_size * precision / 4)
    return float((0.5 * nbeta * h / precision * inflation).sum())


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral)


def _check_exponents(exponents: Sequence[int], *, minimum: int) -> None:
    valid = all(_is_integer(exponent) and exponent >= minimum for exponent in exponents)
    if not valid or not any(exponents):
        expected = f"integers k of at least {minimum}, not all 0, such as [1, 2] for the powers 2 and 4"
        raise ValueError(f"`exponents` must be {expected}; got {list(exponents)}.")
