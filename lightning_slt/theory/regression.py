r"""In-context linear regression: the two predictors that a network may turn into (arXiv:2501.17745).

A sequence shows pairs with ``x ~ N(0, I)`` and ``y ~ N(t·x, σ²)`` for a task t of its own, and each y is to be
foretold from the pairs before it. If tasks come from N(0, I), the best predictor is ridge regression; if they come from
a list of M tasks, it is the mean of these tasks under their posterior (dMMSE).
"""

import torch
from torch import Tensor


def ridge_estimates(x: Tensor, y: Tensor, *, noise_variance: float) -> Tensor:
    r"""Posterior mean of the task when tasks come from N(0, I), from the pairs before each position.

    .. math:: \hat t_k = (X_{<k}^\top X_{<k} + \sigma^2 I)^{-1} X_{<k}^\top y_{<k}, \qquad \hat t_1 = 0

    Args:
        x: ``[…, position, coordinate]``.
        y: ``[…, position]``.
        noise_variance: σ².

    Returns:
        ``[…, position, coordinate]``; the prediction is ``t̂_k · x_k``.

    Raises:
        ValueError: If shapes do not fit or σ² is not positive.

    >>> ridge_estimates(torch.ones(3, 1), torch.tensor([2.0, 2.0, 2.0]), noise_variance=1.0)[:, 0]
    tensor([0.0000, 1.0000, 1.3333])
    """
    _check(x, y, noise_variance)
    moment = _before(x[..., :, None] * x[..., None, :], dim=-3)
    cross = _before(x * y[..., None], dim=-2)
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    estimates: Tensor = torch.linalg.solve(moment + noise_variance * identity, cross[..., None])[..., 0]
    return estimates


def dmmse_estimates(x: Tensor, y: Tensor, tasks: Tensor, *, noise_variance: float) -> Tensor:
    r"""Posterior mean of the task when tasks come evenly from a list, from the pairs before each position.

    .. math:: \hat t_k = \sum_m \operatorname{softmax}_m\Big(-\sum_{j<k} \frac{(y_j - t_m \cdot x_j)^2}{2\sigma^2}\Big)
              \, t_m

    At the first position it is the mean of the tasks.

    Args:
        x: ``[…, position, coordinate]``.
        y: ``[…, position]``.
        tasks: ``[task, coordinate]``.
        noise_variance: σ².

    Returns:
        ``[…, position, coordinate]``; the prediction is ``t̂_k · x_k``.

    Raises:
        ValueError: If shapes do not fit or σ² is not positive.

    >>> tasks = torch.tensor([[2.0], [-2.0]])
    >>> dmmse_estimates(torch.ones(2, 1), torch.tensor([2.0, 2.0]), tasks, noise_variance=0.125)[:, 0]
    tensor([0., 2.])
    """
    _check(x, y, noise_variance)
    if tasks.ndim != 2 or tasks.shape[1] != x.shape[-1] or not len(tasks):
        raise ValueError(f"`tasks` must be [task, {x.shape[-1]}] with one task at least; got {tuple(tasks.shape)}.")
    misfit = (y[..., None] - x @ tasks.T).square() / (2 * noise_variance)
    return _before(-misfit, dim=-2).softmax(-1) @ tasks


def _before(terms: Tensor, *, dim: int) -> Tensor:
    """Sums over all earlier positions; zero at the first."""
    sums = terms.cumsum(dim).narrow(dim, 0, terms.shape[dim] - 1)
    return torch.cat([torch.zeros_like(terms.narrow(dim, 0, 1)), sums], dim)


def _check(x: Tensor, y: Tensor, noise_variance: float) -> None:
    if x.ndim < 2 or x.shape[:-1] != y.shape:
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise ValueError(f"`x` must be [..., position, coordinate] and `y` [..., position]; got shapes {shapes}.")
    if not noise_variance > 0:
        raise ValueError(f"`noise_variance` must be positive; got {noise_variance}.")
