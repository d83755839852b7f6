"""Normal crossings and quadratics: published vectors, special functions, weighted draws and exact recursions."""

import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from lightning_slt.theory import (
    normal_crossing_learning_coefficient,
    normal_crossing_posterior_llc,
    normal_crossing_sum_learning_coefficient,
    quadratic_llc,
    sgld_quadratic_llc,
)


class TestNormalCrossing:
    @pytest.mark.parametrize(
        ("exponents", "expected"),
        [((0, 1), (2, 1)), ((0, 2), (4, 1)), ((1, 1), (2, 2)), ((1, 2), (4, 1)), ((2, 2), (4, 2)), ((3, 1, 3), (6, 2))],
    )
    def test_product(self, exponents: tuple[int, ...], expected: tuple[int, int]) -> None:
        assert normal_crossing_learning_coefficient(exponents) == (Fraction(1, expected[0]), expected[1])

    def test_sum(self) -> None:
        assert normal_crossing_sum_learning_coefficient([1, 1, 2, 3]) == Fraction(1) + Fraction(1, 4) + Fraction(1, 6)

    @pytest.mark.parametrize(
        ("exponents", "values"),
        [
            ((0, 1), (0.4983, 0.4998)),
            ((0, 2), (0.2431, 0.2475)),
            ((1, 1), (0.3614, 0.3912)),
            ((1, 2), (0.2095, 0.2254)),
            ((2, 2), (0.1504, 0.1658)),
        ],
    )
    def test_known_finite_values(self, exponents: tuple[int, int], values: tuple[float, float]) -> None:
        for nbeta, value in zip((144.8, 1085.7), values, strict=True):
            found = normal_crossing_posterior_llc(exponents, nbeta=nbeta, localization=1.0)
            assert found == pytest.approx(value, abs=5.1e-5)

    @pytest.mark.parametrize("nbeta", [1e-2, 1.0, 144.8, 1e4, 1e8])
    @pytest.mark.parametrize("localization", [1e-2, 1.0, 300.0])
    def test_closed_forms_of_quadratics(self, nbeta: float, localization: float) -> None:
        one = normal_crossing_posterior_llc([1], nbeta=nbeta, localization=localization)
        two = normal_crossing_posterior_llc([1, 1], nbeta=nbeta, localization=localization)
        assert one == pytest.approx(quadratic_llc([2.0], nbeta=nbeta, localization=localization), rel=1e-9, abs=1e-11)
        # Z(nbeta) is proportional to nbeta^(-1/2) e^z K_0(z) at z = localization^2 / (8 nbeta).
        z = torch.tensor(localization**2 / (8 * nbeta), dtype=torch.float64)
        ratio = torch.special.scaled_modified_bessel_k1(z) / torch.special.scaled_modified_bessel_k0(z)
        # The closed form itself cancels to z times the rounding error.
        assert two == pytest.approx(float(0.5 + z * (1 - ratio)), rel=1e-9, abs=1e-11 + 1e-15 * float(z))

    @pytest.mark.parametrize("k", [1, 2, 3, 6])
    def test_without_localization_one_coordinate_gives_the_coefficient(self, k: int) -> None:
        assert normal_crossing_posterior_llc([0, k, 0], nbeta=100.0, localization=1e-12) == pytest.approx(
            1 / (2 * k), abs=1e-10
        )

    @pytest.mark.parametrize("exponents", [(1, 2), (2, 2), (3, 1)])
    def test_agrees_with_weighted_draws_from_the_prior(self, exponents: tuple[int, int]) -> None:
        nbeta, localization = 144.8, 1.0
        draws = torch.randn(2, 400_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        loss = (draws[0] / localization**0.5) ** (2 * exponents[0]) * draws[1] ** (2 * exponents[1])
        weight = torch.exp(-nbeta * loss)
        mean = nbeta * (weight * loss).mean() / weight.mean()
        stderr = (weight * (nbeta * loss - mean)).std() / weight.mean() / math.sqrt(loss.numel())
        exact = normal_crossing_posterior_llc(exponents, nbeta=nbeta, localization=localization)
        assert abs(float((mean - exact) / stderr)) < 4
        assert float(stderr) < 0.005 * exact

    def test_order_does_not_matter_and_the_coefficient_is_the_limit(self) -> None:
        pair = [normal_crossing_posterior_llc(k, nbeta=50.0, localization=2.0) for k in ((1, 3), (3, 1))]
        assert pair[0] == pytest.approx(pair[1], rel=1e-12)
        far = [normal_crossing_posterior_llc([1, 3], nbeta=10.0**power, localization=1.0) for power in (3, 6, 9, 12)]
        gaps = [1 / 6 - value for value in far]
        assert gaps == sorted(gaps, reverse=True)
        assert 0 < gaps[-1] < 1e-4

    @pytest.mark.parametrize(
        ("function", "exponents", "message"),
        [
            (normal_crossing_learning_coefficient, [0, 0], r"integers k of at least 0, not all 0, .* got \[0, 0\]"),
            (normal_crossing_learning_coefficient, [], r"not all 0, .* got \[\]"),
            (normal_crossing_learning_coefficient, [1, -1], r"got \[1, -1\]"),
            (normal_crossing_learning_coefficient, [0.5], r"such as \[1, 2\] for the powers 2 and 4; got \[0.5\]"),
            (normal_crossing_sum_learning_coefficient, [1, 0], r"integers k of at least 1.* got \[1, 0\]"),
        ],
    )
    def test_bad_exponents(self, function: Callable[[list[int]], object], exponents: list[int], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            function(exponents)

    def test_bad_posterior(self) -> None:
        with pytest.raises(ValueError, match=r"one or two positive values for the quadrature; got \[1, 1, 1\]"):
            normal_crossing_posterior_llc([1, 1, 1], nbeta=1.0, localization=1.0)
        for nbeta, localization in ((0.0, 1.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan)):
            with pytest.raises(ValueError, match=rf"must be positive and finite; got {nbeta} and {localization}"):
                normal_crossing_posterior_llc([1], nbeta=nbeta, localization=localization)


class TestQuadratic:
    @pytest.mark.parametrize(("localization", "value"), [(0.1, 0.4997), (1.0, 0.4966), (10.0, 0.4677), (100.0, 0.2958)])
    def test_known_values(self, localization: float, value: float) -> None:
        found = quadratic_llc([1.0], nbeta=144.8, localization=localization)
        assert found == pytest.approx(value, abs=5.1e-5)

    def test_directions_add_and_flat_or_unweighted_ones_give_nothing(self) -> None:
        total = quadratic_llc(torch.tensor([0.0, 0.5, 2.0]), nbeta=10.0, localization=1.0)
        parts = [quadratic_llc([h], nbeta=10.0, localization=1.0) for h in (0.5, 2.0)]
        assert total == pytest.approx(sum(parts), rel=1e-12)
        assert quadratic_llc([1.0, 2.0], nbeta=0.0, localization=1.0) == 0.0
        assert quadratic_llc([1.0, 2.0], nbeta=3.0, localization=0.0) == 1.0

    @pytest.mark.parametrize(("stiffness", "inflation"), [(0.01, 1.0025), (0.1, 1.0256), (1.0, 1.3333), (3.0, 4.0)])
    def test_step_size_inflates_by_the_known_factor(self, stiffness: float, inflation: float) -> None:
        arguments = {"nbeta": 99.0, "localization": 1.0}
        ratio = sgld_quadratic_llc([1.0], step_size=stiffness / 100, **arguments) / quadratic_llc([1.0], **arguments)
        assert ratio == pytest.approx(inflation, abs=5e-5)

    def test_is_the_fixed_point_of_the_variance_recursion(self) -> None:
        h = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
        noise = torch.tensor([0.0, 4.0, 9.0], dtype=torch.float64)
        nbeta, localization, step_size = 20.0, 2.0, 0.02
        variance = torch.zeros(3, dtype=torch.float64)
        for _ in range(2000):
            contraction = 1 - step_size / 2 * (nbeta * h + localization)
            variance = contraction**2 * variance + (step_size / 2 * noise) ** 2 + step_size
        found = sgld_quadratic_llc(h, nbeta=nbeta, localization=localization, step_size=step_size, gradient_noise=noise)
        assert found == pytest.approx(float(0.5 * nbeta * (h * variance).sum()), rel=1e-10)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match=r"must be positive: raise `localization`; the least is 0.0"):
            quadratic_llc([1.0, 0.0], nbeta=1.0, localization=0.0)
        with pytest.raises(ValueError, match=r"must be positive: .* the least is -9.0"):
            quadratic_llc([-1.0], nbeta=10.0, localization=1.0)
        for step_size in (0.4, 1.0, -0.1):
            with pytest.raises(ValueError, match=rf"`step_size` must be .* = 0.4, where .* got {step_size}"):
                sgld_quadratic_llc([1.0, 0.5], nbeta=9.0, localization=1.0, step_size=step_size)
