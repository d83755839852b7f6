"""Suggested changes of the data against linear regression, where the response to them is known in closed form."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_slt.analysis.reweighting import suggest_reweighting
from lightning_slt.estimators import Responses
from lightning_slt.types import Health

NBETA, GAMMA, DOUBLE = 40.0, 3.0, torch.float64
BLOCKS = {"first": [0, 1], "second": [2, 3], "third": [4]}


def inputs() -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randn(30, 5, generator=g, dtype=DOUBLE) * torch.tensor([1.0, 0.7, 1.5, 0.4, 1.1], dtype=DOUBLE)


def rise(weights: Tensor, block: list[int]) -> Tensor:
    """``E_C[L − L(w*)]`` under the posterior of data weighted so, around the minimum for equal weights.

    ½ tr(H S_h) and a term of second order, because the minimum moves; L is that of equal weights all along.
    """
    x = inputs()[:, block]
    h, mixed = x.T @ x / len(x), x.T @ (weights[:, None] * x)
    return (h @ torch.linalg.inv(NBETA * mixed + GAMMA * torch.eye(len(block), dtype=DOUBLE))).trace() / 2


def mixture(change: Tensor) -> Tensor:
    return (1 - change.sum()) / len(change) + change


def responses(stderr: float = 0.0, method: str = "restricted", seed: int | None = None) -> Responses:
    """χ of every sample and block by differentiating the closed form, with errors where a seed is given."""
    nothing = torch.zeros(30, dtype=DOUBLE)
    columns = [
        torch.autograd.functional.jacobian(lambda change, block=block: rise(mixture(change), block), nothing) / NBETA
        for block in BLOCKS.values()
    ]
    matrix = torch.stack(columns, 1)
    if seed is not None:
        matrix = matrix + stderr * torch.randn(
            matrix.shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE
        )
    empty = torch.zeros(3, dtype=DOUBLE)
    return Responses(
        matrix=matrix,
        stderr=torch.full_like(matrix, stderr),
        by_probe=matrix[:1],
        by_probe_stderr=matrix[:1],
        rise=empty,
        delta=matrix,
        rows=torch.zeros(30, 3),
        components=tuple(BLOCKS),
        probes=("p",),
        method=method,
        signal=9.0,
        uniform=0.0,
        parts={},
        health=Health(ok=True),
    )


@pytest.mark.parametrize("wished", [{"first": 1e-3}, {"second": -2e-3, "third": 1e-3}, {}])
def test_the_change_is_as_wished_to_first_order(wished: dict[str, float]) -> None:
    found = suggest_reweighting(responses(), wished, nbeta=NBETA)
    target = torch.tensor([wished.get(name, 0.0) for name in BLOCKS], dtype=DOUBLE)
    assert torch.allclose(found.expected, target, atol=1e-12)
    before = torch.stack([rise(mixture(torch.zeros(30, dtype=DOUBLE)), block) for block in BLOCKS.values()])
    gaps = []
    for share in (1e-2, 1e-3):
        after = torch.stack([rise(mixture(share * found.weights), block) for block in BLOCKS.values()])
        gaps.append(float(((after - before) / share - target).norm()))
    # what is left is of second order: it falls in proportion to the share that is applied
    assert gaps[1] <= 0.11 * gaps[0] + 1e-9


def test_it_is_the_smallest_that_does_it() -> None:
    found = suggest_reweighting(responses(), {"first": 1e-3}, nbeta=NBETA)
    slope = NBETA * responses().matrix
    expected = torch.linalg.pinv(slope.T) @ torch.tensor([1e-3, 0.0, 0.0], dtype=DOUBLE)
    assert torch.allclose(found.weights, expected, atol=1e-12)


def test_directions_below_the_noise_are_left_out() -> None:
    sizes = torch.linalg.svdvals(responses().matrix)
    level = float(sizes[1] * sizes[2]) ** 0.5 / (30**0.5 + 3**0.5)
    found = suggest_reweighting(responses(level), {"first": 1e-3}, nbeta=NBETA)
    assert found.rank == 2
    assert not torch.allclose(found.expected, torch.tensor([1e-3, 0, 0], dtype=DOUBLE), atol=1e-5)
    none = suggest_reweighting(responses(10.0), {"first": 1e-3}, nbeta=NBETA)
    assert none.rank == 0
    assert bool((none.weights == 0).all())


def test_the_error_is_that_of_the_matrix() -> None:
    exact, level, wished = responses(), 1e-7, {"first": 1e-3}
    found = suggest_reweighting(responses(level), wished, nbeta=NBETA)
    # E_C[g] of the exact slope, for suggestions made from noisy ones: off by the noise of the slope times the weights
    offs = []
    for seed in range(400):
        mine = suggest_reweighting(responses(level, seed=seed), wished, nbeta=NBETA)
        offs.append((NBETA * exact.matrix.T @ mine.weights - mine.expected) / found.stderr)
    spread = torch.stack(offs).std(0)
    assert bool(((spread - 1).abs() < 5 / (2 * 400) ** 0.5).all())  # five standard errors of a standard deviation


def test_what_cannot_be_answered() -> None:
    with pytest.raises(ValueError, match=r"known up to a factor for each component; write Susceptibility\(…, method="):
        suggest_reweighting(responses(method="two_chain"), {"first": 1.0}, nbeta=NBETA)
    with pytest.raises(ValueError, match="no component is called 'frist'; the matrix has first, second, third"):
        suggest_reweighting(responses(), {"frist": 1.0}, nbeta=NBETA)
