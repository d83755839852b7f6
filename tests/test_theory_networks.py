"""Deep linear networks: published vectors, the two-layer paper's own formula, brute force and autograd."""

import random
from fractions import Fraction
from itertools import pairwise, permutations, product

import pytest
import torch
from torch import Tensor
from torch.func import jacrev

from lightning_slt.theory import (
    deep_linear_layer_llc,
    deep_linear_learning_coefficient,
    deepest_point,
    quadratic_llc,
    two_factor_local_learning_coefficient,
)


def aoyagi_watanabe_2005(inputs: int, hidden: int, outputs: int, rank: int) -> tuple[Fraction, int]:
    """Reduced-rank regression, by the four cases of the paper (M inputs, H hidden, N outputs)."""
    m, h, n, r = inputs, hidden, outputs, rank
    if m + h < n + r:
        return Fraction(h * m - h * r + n * r, 2), 1
    if n + h < m + r:
        return Fraction(h * n - h * r + m * r, 2), 1
    if m + n < h + r:
        return Fraction(m * n, 2), 1
    odd = (m + h + n + r) % 2
    return Fraction(-((h + r) ** 2) - m**2 - n**2 + 2 * (h + r) * (m + n) + 2 * m * n + odd, 8), 1 + odd


def two_layers(largest: int) -> list[tuple[int, int, int, int]]:
    """All (inputs, hidden, outputs, rank) with widths up to the largest."""
    sizes = product(range(1, largest + 1), repeat=3)
    return [(*widths, rank) for widths in sizes for rank in range(min(widths) + 1)]


def feasible_ranks(inputs: int, hidden: int, outputs: int, rank: int) -> list[tuple[int, int]]:
    """Ranks (a, b) that two factors can have where their product has the given one."""
    pairs = product(range(rank, min(inputs, hidden) + 1), range(rank, min(hidden, outputs) + 1))
    return [(a, b) for a, b in pairs if a + b - hidden <= rank]


class TestDeepLinear:
    @pytest.mark.parametrize(
        ("widths", "rank", "coefficient", "multiplicity"),
        [
            ((2, 2, 2), 0, Fraction(3, 2), 1),
            ((2, 2, 2), 1, Fraction(2), 2),
            ((3, 3, 3), 1, Fraction(4), 1),
            ((5, 3, 5), 0, Fraction(13, 2), 2),
            ((5, 4, 5), 2, Fraction(21, 2), 1),
            ((10, 4, 10), 4, Fraction(32), 1),
            ((3, 3, 3, 3), 0, Fraction(3), 1),
            ((10, 8, 6, 10), 3, Fraction(33), 3),
            ((11, 7, 4), 3, Fraction(20), 1),
            ((100, 80, 120, 100), 30, Fraction(7967, 2), 3),
        ],
    )
    def test_known_values(self, widths: tuple[int, ...], rank: int, coefficient: Fraction, multiplicity: int) -> None:
        assert deep_linear_learning_coefficient(widths, rank=rank) == (coefficient, multiplicity)

    def test_one_layer_is_regular(self) -> None:
        for inputs, outputs in product(range(1, 7), repeat=2):
            for rank in range(min(inputs, outputs) + 1):
                found = deep_linear_learning_coefficient([inputs, outputs], rank=rank)
                assert found == (Fraction(inputs * outputs, 2), 1)

    def test_two_layers_are_reduced_rank_regression(self) -> None:
        for *widths, rank in two_layers(8):
            assert deep_linear_learning_coefficient(widths, rank=rank) == aoyagi_watanabe_2005(*widths, rank)

    @pytest.mark.parametrize("ends", [(1, 1), (1, 5), (4, 3), (3, 3)])
    @pytest.mark.parametrize("ones", [1, 2, 4])
    def test_scalar_layers_at_zero_are_a_normal_crossing(self, ends: tuple[int, int], ones: int) -> None:
        # f = u (c_1 ... c_k) v^T, so K = |u|^2 c_1^2 ... c_k^2 |v|^2, and |u|^2 in n dimensions has coefficient n/2.
        values = [Fraction(ends[0], 2), *[Fraction(1, 2)] * (ones - 1), Fraction(ends[1], 2)]
        found = deep_linear_learning_coefficient([ends[0], *[1] * ones, ends[1]], rank=0)
        assert found == (min(values), values.count(min(values)))

    def test_random_networks_obey_the_bounds_and_symmetries(self) -> None:
        draw = random.Random(0)
        for _ in range(200):
            widths = [draw.randint(1, 12) for _ in range(draw.randint(2, 6))]
            rank = draw.randint(0, min(widths))
            coefficient, multiplicity = deep_linear_learning_coefficient(widths, rank=rank)
            dimension = sum(left * right for left, right in pairwise(widths))
            # The function class alone needs the dimension of the rank-r matrices, and holds at most all matrices.
            assert rank * (widths[0] + widths[-1] - rank) <= 2 * coefficient <= min(dimension, widths[0] * widths[-1])
            assert 1 <= multiplicity <= dimension
            assert deep_linear_learning_coefficient(widths[::-1], rank=rank) == (coefficient, multiplicity)

    def test_hidden_widths_commute(self) -> None:
        for hidden in permutations([3, 5, 4, 8]):
            found = deep_linear_learning_coefficient([6, *hidden, 7], rank=2)
            assert found == deep_linear_learning_coefficient([6, 3, 4, 5, 8, 7], rank=2)

    def test_wide_hidden_layers_change_nothing(self) -> None:
        for width in (14, 20, 1000):
            assert deep_linear_learning_coefficient([7, width, 7], rank=2) == (Fraction(49, 2), 1)

    @pytest.mark.parametrize(
        ("widths", "rank", "message"),
        [
            ([10], 1, r"`widths` must be two or more positive integers such as \[10, 8, 6, 10\]; got \[10\]"),
            ([3, 0, 3], 0, r"positive integers .* got \[3, 0, 3\]"),
            ([3, 2.5], 0, r"positive integers .* got \[3, 2.5\]"),
            ([3, 2, 3], 3, r"`rank` must be an integer from 0 to the least width 2; got 3"),
            ([3, 2, 3], -1, r"`rank` must be an integer from 0 .* got -1"),
            ([3, 2, 3], 1.0, r"`rank` must be an integer .* got 1.0"),
        ],
    )
    def test_bad_input(self, widths: list[int], rank: int, message: str) -> None:
        for function in (deep_linear_learning_coefficient, deepest_point):
            with pytest.raises(ValueError, match=message):
                function(widths, rank=rank)


class TestTwoFactors:
    def test_least_local_value_is_the_global_one_and_the_deepest_point_has_it(self) -> None:
        for *widths, rank in two_layers(6):
            local = {
                (a, b): two_factor_local_learning_coefficient(widths, first_rank=a, second_rank=b, rank=rank)
                for a, b in feasible_ranks(*widths, rank)
            }
            coefficient, _ = deep_linear_learning_coefficient(widths, rank=rank)
            assert min(local.values()) == local[rank, rank] == coefficient

    def test_residual_is_reduced_rank_regression_at_zero(self) -> None:
        for inputs, hidden, outputs, rank in two_layers(6):
            for a, b in feasible_ranks(inputs, hidden, outputs, rank):
                widths = [inputs, hidden, outputs]
                local = two_factor_local_learning_coefficient(widths, first_rank=a, second_rank=b, rank=rank)
                q = outputs * a + b * inputs - a * b
                residual, _ = aoyagi_watanabe_2005(inputs - a, hidden + rank - a - b, outputs - b, 0)
                assert local == Fraction(q, 2) + residual

    @pytest.mark.parametrize(("a", "b", "rank"), [(4, 2, 2), (3, 3, 2), (2, 4, 2), (4, 4, 4), (1, 3, 0), (4, 0, 0)])
    def test_regular_points_have_half_the_rank_of_the_jacobian(self, a: int, b: int, rank: int) -> None:
        inputs, hidden, outputs = 5, 4, 6
        diagonal = torch.eye(8, dtype=torch.float64)
        first = diagonal[:hidden, :inputs] * (torch.arange(hidden) < a)[:, None]
        # Shares the first `rank` hidden directions with A, and has the rest of its rank outside A's image.
        uses = torch.tensor([*range(rank), *range(a, a + b - rank)], dtype=torch.long)
        second = diagonal[:outputs, :b] @ diagonal[:hidden, :hidden][uses]
        jacobian = jacrev(lambda A, B: B @ A, argnums=(0, 1))(first, second)
        flat = torch.cat([block.reshape(outputs * inputs, -1) for block in jacobian], dim=1)
        local = two_factor_local_learning_coefficient([inputs, hidden, outputs], first_rank=a, second_rank=b, rank=rank)
        assert a + b - rank == hidden
        assert local == Fraction(int(torch.linalg.matrix_rank(flat)), 2)

    @pytest.mark.parametrize("ranks", [(5, 1, 1), (1, 0, 1), (3, 3, 1), (0, 4, 0)])
    def test_infeasible_ranks(self, ranks: tuple[int, int, int]) -> None:
        a, b, rank = ranks
        with pytest.raises(ValueError, match=rf"No factors .* first_rank={a}, second_rank={b} .* rank={rank}: write"):
            two_factor_local_learning_coefficient([4, 4, 3], first_rank=a, second_rank=b, rank=rank)

    def test_needs_two_layers(self) -> None:
        with pytest.raises(ValueError, match=r"three widths \[N_in, H, M_out\] of two layers; got \[4, 4\]"):
            two_factor_local_learning_coefficient([4, 4], first_rank=0, second_rank=0, rank=0)


class TestDeepestPoint:
    def test_factors_and_product_have_the_rank(self) -> None:
        factors = deepest_point([5, 4, 6, 3], rank=2, dtype=torch.float64)
        assert [tuple(factor.shape) for factor in factors] == [(4, 5), (6, 4), (3, 6)]
        chain = factors[2] @ factors[1] @ factors[0]
        assert all(int(torch.linalg.matrix_rank(matrix)) == 2 for matrix in [*factors, chain])
        assert all(factor.dtype == torch.float64 and factor.is_contiguous() for factor in factors)

    def test_factors_share_no_memory(self) -> None:
        first, second = deepest_point([3, 3, 3], rank=1)
        first.zero_()
        assert second.sum() == 1


class TestLayer:
    def test_known_values(self) -> None:
        ranks = (3, 4, 4)
        matrices = [torch.eye(6)[:5] * (torch.arange(5) < 3)[:, None], torch.eye(5)[:4], torch.eye(6)[:, :4]]
        assert tuple(int(torch.linalg.matrix_rank(matrix)) for matrix in matrices) == ranks
        moment = torch.eye(6) / 3
        found = [
            deep_linear_layer_llc(matrices, layer=i, nbeta=1085.7, localization=1.0, second_moment=moment)
            for i in range(3)
        ]
        assert found == pytest.approx([11.901, 5.951, 8.926], abs=5e-4)

    @pytest.mark.parametrize("layer", [0, 1, 2])
    def test_equals_the_quadratic_of_the_hessian(self, layer: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shapes = [(3, 4), (5, 3), (2, 5)]
        weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        inputs = torch.randn(50, 4, generator=generator, dtype=torch.float64)

        def forward(moved: Tensor) -> Tensor:
            output = inputs.T
            for i, weight in enumerate(weights):
                output = (moved if i == layer else weight) @ output
            return output

        target = forward(weights[layer])
        # Reverse over reverse: forward mode compiles its rules with a deprecated part of torch, which warns.
        curvature = jacrev(jacrev(lambda moved: (forward(moved) - target).square().mean()))(weights[layer])
        size = weights[layer].numel()
        expected = quadratic_llc(torch.linalg.eigvalsh(curvature.reshape(size, size)), nbeta=30.0, localization=5.0)
        moment = inputs.T @ inputs / len(inputs)
        found = deep_linear_layer_llc(weights, layer=layer, nbeta=30.0, localization=5.0, second_moment=moment)
        assert found == pytest.approx(expected, rel=1e-10)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"layer": 2}, r"`layer` must be an index from 0 to 1; got 2"),
            ({"layer": -1}, r"`layer` must be an index from 0 to 1; got -1"),
            ({"localization": 0.0}, r"`localization` must be positive, .* got 0.0"),
            ({"second_moment": torch.eye(2)}, r"must chain; got the shapes \[\(2, 2\), \(4, 3\), \(2, 4\)\]"),
            ({"weights": [torch.zeros(4, 3), torch.zeros(4, 2)]}, r"must chain; got the shapes .*\(4, 2\)"),
        ],
    )
    def test_bad_input(self, change: dict[str, object], message: str) -> None:
        arguments = {"weights": deepest_point([3, 4, 2], rank=1), "layer": 0, "nbeta": 1.0, "localization": 1.0}
        with pytest.raises(ValueError, match=message):
            deep_linear_layer_llc(**{**arguments, **change})  # type: ignore[arg-type]
