"""R-hat, ESS and autocorrelation time: against ArviZ, against known laws, and where nothing can be told."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from torch import Tensor

from lightning_slt.diagnostics import autocorrelation_time, ess_bulk, rhat, split_rhat

ALL = [rhat, split_rhat, ess_bulk, autocorrelation_time]
SHAPES = [
    (1, 4),
    (1, 37),
    (2, 4),
    (2, 5),
    (3, 6),
    (2, 7),
    (4, 8),
    (3, 9),
    (2, 10),
    (2, 12),
    (4, 100),
    (4, 201),
    (8, 1000),
]


def ar1(phi: float, chains: int, draws: int, *, seed: int, innovation: str = "normal") -> Tensor:
    """AR(1) chains from their stationary law (for Gaussian innovations), of unit variance, [chain, draw]."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_cauchy((chains, draws)) if innovation == "cauchy" else rng.standard_normal((chains, draws))
    path = np.empty_like(noise)
    path[:, 0] = noise[:, 0]
    for t in range(1, draws):
        path[:, t] = phi * path[:, t - 1] + math.sqrt(1 - phi**2) * noise[:, t]
    return torch.from_numpy(path)


def arviz(name: str, traces: Tensor) -> float:
    """The same diagnosis by ArviZ."""
    values = traces.numpy()
    calls: dict[str, Callable[[], object]] = {
        "rhat": lambda: array_stats.rhat(values, method="rank"),
        "split_rhat": lambda: array_stats.rhat(values, method="split"),
        "ess_bulk": lambda: array_stats.ess(values, method="bulk"),
        "autocorrelation_time": lambda: 1 / array_stats.ess(values, method="mean", relative=True),
    }
    return float(calls[name]())  # type: ignore[arg-type]


@pytest.mark.parametrize("diagnosis", ALL)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("phi", [-0.9, -0.3, 0.0, 0.5, 0.9, 0.99])
def test_agrees_with_arviz(diagnosis: Callable[[Tensor], float], shape: tuple[int, int], phi: float) -> None:
    for seed in range(8):
        traces = ar1(phi, *shape, seed=seed)
        assert diagnosis(traces) == pytest.approx(arviz(diagnosis.__name__, traces), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("diagnosis", ALL)
@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + torch.arange(len(x))[:, None],
        lambda x: x * (1 + torch.arange(len(x)))[:, None],
        lambda x: x + torch.linspace(0, 3, x.shape[1]),
        lambda x: (4 * x).round(),
        lambda x: 3.2 + 1e-6 * x,
        lambda x: -x,
        lambda x: (x > 0).double(),
    ],
    ids=["shifted", "scaled", "drifting", "ties", "offset", "negated", "two values"],
)
def test_agrees_with_arviz_on_hard_traces(
    diagnosis: Callable[[Tensor], float], change: Callable[[Tensor], Tensor]
) -> None:
    for innovation in ("normal", "cauchy"):
        traces = change(ar1(0.5, 4, 101, seed=5, innovation=innovation))
        with np.errstate(divide="ignore", invalid="ignore"):
            expected = arviz(diagnosis.__name__, traces)
        # Rounding an offset of 3e6 standard deviations leaves ten digits of a trace, and fewer of its covariance.
        assert diagnosis(traces) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("phi", [-0.5, 0.0, 0.5, 0.9])
def test_finds_the_autocorrelation_time_of_an_ar1_process(phi: float) -> None:
    estimates = torch.tensor([autocorrelation_time(ar1(phi, 4, 20_000, seed=seed)) for seed in range(12)])
    stderr = float(estimates.std()) / math.sqrt(len(estimates))
    assert abs(float(estimates.mean()) - (1 + phi) / (1 - phi)) < 4 * stderr


def test_effective_size_is_draws_over_autocorrelation_time() -> None:
    traces = ar1(0.8, 4, 20_000, seed=0)
    assert ess_bulk(traces) == pytest.approx(traces.numel() / 9, rel=0.1)


def test_rhat_is_one_for_agreeing_chains_and_sees_location_and_scale() -> None:
    traces = ar1(0.0, 4, 2000, seed=1)
    scale = torch.tensor([1.0, 1.0, 1.0, 5.0])[:, None]
    assert rhat(traces) < 1.01
    assert rhat(traces + scale) > 1.3
    # Scale is seen by folding alone.
    assert split_rhat(traces * scale) < 1.01 < 1.1 < rhat(traces * scale)


def test_split_sees_a_common_drift() -> None:
    assert split_rhat(ar1(0.0, 4, 1000, seed=2) + torch.linspace(0, 6, 1000)) > 1.3


def test_rank_normalization_ignores_a_monotone_change() -> None:
    traces = ar1(0.5, 4, 200, seed=3)
    assert ess_bulk(traces.exp()) == ess_bulk(traces)


@pytest.mark.parametrize("diagnosis", ALL)
def test_does_not_depend_on_the_order_of_chains(diagnosis: Callable[[Tensor], float]) -> None:
    traces = ar1(0.5, 4, 200, seed=4)
    assert diagnosis(traces.flip(0)) == pytest.approx(diagnosis(traces), rel=1e-10)


@pytest.mark.parametrize("diagnosis", ALL)
@pytest.mark.parametrize(
    "traces",
    [
        torch.full((4, 100), 0.1),
        torch.full((4, 9), 0.1).index_fill(1, torch.tensor([4]), 1.0),
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.randn(4, 0),
        torch.randn(0, 10),
        torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).index_fill(1, torch.tensor([7]), math.nan),
        torch.randn(4, 100, generator=torch.Generator().manual_seed(0)).index_fill(1, torch.tensor([7]), math.inf),
    ],
    ids=["constant", "constant but the middle", "three draws", "no draws", "no chains", "nan", "inf"],
)
def test_is_nan_where_nothing_can_be_told(diagnosis: Callable[[Tensor], float], traces: Tensor) -> None:
    assert math.isnan(diagnosis(traces))


def test_one_chain_has_an_effective_size_but_no_rhat() -> None:
    chain = ar1(0.5, 1, 1000, seed=6)
    assert math.isnan(rhat(chain))
    assert math.isnan(split_rhat(chain))
    assert ess_bulk(chain) == pytest.approx(1000 / 3, rel=0.3)


@pytest.mark.parametrize("diagnosis", [rhat, split_rhat])
def test_frozen_chains_that_differ_never_agree(diagnosis: Callable[[Tensor], float]) -> None:
    for draws in (4, 50, 777):
        assert diagnosis(torch.tensor([0.1, 0.7, 1 / 3], dtype=torch.float64)[:, None].expand(3, draws)) == math.inf


@pytest.mark.parametrize("diagnosis", ALL)
def test_computes_in_float64_and_leaves_its_input_alone(diagnosis: Callable[[Tensor], float]) -> None:
    traces = ar1(0.5, 4, 100, seed=7).float().requires_grad_()
    before = traces.detach().clone()
    assert diagnosis(traces) == diagnosis(traces.detach().double())
    assert torch.equal(traces.detach(), before)


@pytest.mark.parametrize("diagnosis", ALL)
@pytest.mark.parametrize("shape", [(10,), (4, 10, 2)])
def test_other_shapes_are_errors(diagnosis: Callable[[Tensor], float], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"one scalar per draw, \[chain, draw\]; got shape .* Write traces\[None\]"):
        diagnosis(torch.zeros(shape))
