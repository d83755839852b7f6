"""Two-layer linear networks in time against their own gradient flow, and against finite differences."""

from __future__ import annotations

import pytest
import torch

from lightning_slt.theory.dynamics import learning_times, linear_network_influence, mode_strengths, weight_response

DOUBLE, INITIAL = torch.float64, 1e-3


def problem(outputs: int = 6, inputs: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(outputs, inputs, generator=g, dtype=DOUBLE))[0]
    v = torch.linalg.qr(torch.randn(inputs, inputs, generator=g, dtype=DOUBLE))[0]
    return u, torch.tensor([3.0, 2.0, 1.2, 0.5], dtype=DOUBLE)[:inputs], v


def test_strengths_are_those_of_gradient_flow() -> None:
    u, s, v = problem()
    target, root = u @ s.diag() @ v.T, INITIAL**0.5
    first, second = root * v.T, root * u
    step, time = 1e-4, 0.0
    for _ in range(20_000):
        gap = target - second @ first
        middle = first + step / 2 * second.T @ gap, second + step / 2 * gap @ first.T  # midpoint rule
        gap = target - middle[1] @ middle[0]
        first, second = first + step * middle[1].T @ gap, second + step * gap @ middle[0].T
        time += step
    expected = mode_strengths(s, time, initial=INITIAL)
    assert torch.allclose((u.T @ second @ first @ v).diag(), expected, rtol=1e-5)


def test_half_of_the_strength_at_the_learning_time() -> None:
    _, s, _ = problem()
    for k, time in enumerate(learning_times(s, initial=INITIAL)):
        assert float(mode_strengths(s, float(time), initial=INITIAL)[k] / s[k]) == pytest.approx(0.5, abs=1e-9)


def moved(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor, change: torch.Tensor, time: float) -> torch.Tensor:
    """The map at time t for changed statistics, its initial weights along the changed modes."""
    left, values, right = torch.linalg.svd(u @ s.diag() @ v.T + change, full_matrices=False)
    return left @ mode_strengths(values, time, initial=INITIAL).diag() @ right


@pytest.mark.parametrize("outputs", [4, 6])  # complete and thin U
@pytest.mark.parametrize("time", [0.5, 1.5, 3.0, 20.0])
def test_the_response_is_the_derivative(outputs: int, time: float) -> None:
    u, s, v = problem(outputs)
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(4, generator=g, dtype=DOUBLE), torch.randn(outputs, generator=g, dtype=DOUBLE)
    found = weight_response(u, s, v, x, y, time, initial=INITIAL)
    step = 1e-6
    change = step * torch.outer(y, x)
    expected = (moved(u, s, v, change, time) - moved(u, s, v, -change, time)) / (2 * step)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    query = torch.randn(4, generator=g, dtype=DOUBLE), torch.randn(outputs, generator=g, dtype=DOUBLE)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return (query[1] - w @ query[0]).square().sum() / 2

    slope = (loss(moved(u, s, v, change, time)) - loss(moved(u, s, v, -change, time))) / (2 * step)
    assert linear_network_influence(u, s, v, (x, y), query, time, initial=INITIAL) == pytest.approx(
        float(slope), rel=1e-5
    )


def test_equal_singular_values_are_refused() -> None:
    u, _, v = problem()
    with pytest.raises(ValueError, match="singular values must differ"):
        weight_response(u, torch.ones(4, dtype=DOUBLE), v, v[0], u[:, 0], 1.0, initial=INITIAL)
