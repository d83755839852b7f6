"""benchmarks/kernel_size.py: every step runs, on a kernel that knows its labels."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks.kernel_size import OF_KERNELS, computed, made_up, measure

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")


@pytest.mark.parametrize("name", [*OF_KERNELS, "chains and kernel"])
def test_steps_run(name: str) -> None:
    torch.manual_seed(0)
    found = measure(name, samples=300, chains=2, draws=12)
    assert set(found) == {"seconds", "passed", "more"}
    assert found["passed"] > 0


def test_made_up_losses_know_their_labels() -> None:
    """Half of a loss's variance is its label's, so that R within labels is ½ and 0 between."""
    kernel = computed(*made_up(100, 8, 100))
    assert kernel.purity == 1.0
    within = kernel.correlation[::10, ::10]
    assert float(within.fill_diagonal_(0).sum() / 90) == pytest.approx(0.5, abs=4 / 800**0.5)
