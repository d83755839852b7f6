"""Streaming statistics against torch's own, whole and merged from parts."""

import pytest
import torch

from lightning_slt.statistics import Moments, Traces

VALUES = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5.0


def filled(chains=(0, 1, 2), draws=range(50), values=VALUES):
    moments = Moments(3, torch.full((4,), 4.5))
    for index in draws:
        moments.update(chains, values[list(chains), index])
    return moments


def test_moments_equal_torchs_own():
    within = sum(torch.cov(chain.T) * 49 for chain in VALUES) / (3 * 49)
    moments = filled()
    assert torch.allclose(moments.covariance(), within, rtol=1e-10, atol=0)
    assert torch.allclose(moments.covariance(pooled=True), torch.cov(VALUES.flatten(0, 1).T), rtol=1e-10, atol=0)
    assert torch.allclose(moments.mean(), VALUES.mean(1), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "split", [[((0,), range(50)), ((1, 2), range(50))], [((0, 1, 2), range(20)), ((0, 1, 2), range(20, 50))]]
)
def test_parts_add_up_to_the_whole(split):
    parts = [filled(chains, draws) for chains, draws in split]
    whole = filled()
    for name in ("count", "total", "products"):
        summed = sum(getattr(part, name) for part in parts)
        assert torch.allclose(summed, getattr(whole, name), rtol=1e-12, atol=0)


def test_sums_are_kept_in_double_precision():
    """A large common part with small variations, which float32 products would lose."""
    values = (1e4 + VALUES).float()
    moments = filled(values=values)
    exact = sum(torch.cov(chain.double().T) * 49 for chain in values) / (3 * 49)
    assert torch.allclose(moments.covariance(), exact, rtol=1e-6, atol=0)


def test_traces_keep_every_value_in_double_precision():
    traces = Traces(3, 50)
    for index in range(50):
        traces.update((2, 0), index, VALUES[[2, 0], index, 0])
    assert torch.equal(traces.compute()[[0, 2]], VALUES[[0, 2], :, 0])
    assert not traces.compute()[1].any()
