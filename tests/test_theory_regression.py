"""Ridge and dMMSE against Bayes' rule written out, position by position."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_slt import theory

NOISE = 0.125


def sequences() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 6, 2, generator=g).double(), torch.randn(2, 3, 6, generator=g).double()


def test_ridge_is_the_mean_of_the_gaussian_posterior() -> None:
    """By quadrature over a grid of tasks, which knows nothing of linear algebra."""
    x, y = sequences()
    axis = torch.linspace(-6, 6, 601, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    found = theory.ridge_estimates(x, y, noise_variance=NOISE)[1, 2]
    for k in range(6):
        misfit = (y[1, 2, :k] - grid @ x[1, 2, :k].T).square().sum(1) / (2 * NOISE)
        weights = (-misfit - grid.square().sum(1) / 2).softmax(0)
        assert torch.allclose(found[k], weights @ grid, atol=1e-9)


def test_dmmse_is_bayes_rule_over_the_list() -> None:
    x, y = sequences()
    tasks = torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()
    found = theory.dmmse_estimates(x, y, tasks, noise_variance=NOISE)[0, 1]
    for k in range(6):
        densities = [
            math.prod(math.exp(-float((y[0, 1, j] - t @ x[0, 1, j]) ** 2) / (2 * NOISE)) for j in range(k))
            for t in tasks
        ]
        mean = sum(p * t for p, t in zip(densities, tasks, strict=True)) / sum(densities)
        assert torch.allclose(found[k], mean, atol=1e-10)


def test_dmmse_of_very_many_gaussian_tasks_is_ridge() -> None:
    """A mean over M draws from the prior: the error is that of importance sampling, a few standard errors here."""
    x, y = (part[0, 0] for part in sequences())
    tasks = torch.randn(400_000, 2, generator=torch.Generator().manual_seed(2)).double()
    ridge = theory.ridge_estimates(x, y, noise_variance=1.0)
    dmmse = theory.dmmse_estimates(x, y, tasks, noise_variance=1.0)
    for k in range(6):
        misfit = (y[:k] - tasks @ x[:k].T).square().sum(1) / 2
        weights = (-misfit).softmax(0)
        stderr = (weights.square()[:, None] * (tasks - ridge[k]).square()).sum(0).sqrt()
        assert bool(((dmmse[k] - ridge[k]).abs() < 4 * stderr).all())


def test_the_prediction_does_not_see_its_own_answer() -> None:
    x, y = sequences()
    other = y.clone()
    other[..., 3:] += 5.0
    tasks = torch.eye(2, dtype=torch.float64)
    for a, b in (
        (theory.ridge_estimates(x, y, noise_variance=NOISE), theory.ridge_estimates(x, other, noise_variance=NOISE)),
        (
            theory.dmmse_estimates(x, y, tasks, noise_variance=NOISE),
            theory.dmmse_estimates(x, other, tasks, noise_variance=NOISE),
        ),
    ):
        assert torch.equal(a[..., :4, :], b[..., :4, :])
        assert not torch.allclose(a[..., 4, :], b[..., 4, :])


def test_what_does_not_fit_is_refused() -> None:
    x, y = sequences()
    with pytest.raises(ValueError, match="got shapes"):
        theory.ridge_estimates(x, y[..., :5], noise_variance=NOISE)
    with pytest.raises(ValueError, match="must be positive"):
        theory.ridge_estimates(x, y, noise_variance=0.0)
    with pytest.raises(ValueError, match=r"`tasks` must be \[task, 2\]"):
        theory.dmmse_estimates(x, y, torch.zeros(4, 3), noise_variance=NOISE)
