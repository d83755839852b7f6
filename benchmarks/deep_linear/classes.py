"""The classes of networks, from a thousand parameters to a hundred million, each with the run that it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

RECIPES = ("deepest", "paper")


@dataclass(frozen=True, kw_only=True)
class NetworkClass:
    """How large the networks are, and how they are sampled.

    Attributes:
        name: Key on the command line and in the results.
        layers: Fewest and most layers.
        widths: Least and largest width.
        step_size: SGLD's ε; the grids of all samplers are centred by it.
        num_steps: Sampler steps of a chain.
        burnin: Share of the steps that is discarded.
        num_samples: Size n of the data set; it defines nβ = n/log n.
        batch_size: Samples in one minibatch.
        input_bound: Inputs are uniform between minus this and this.
        networks: How many networks by default.
        num_chains: Chains of one estimate.
        thinning: Steps between two draws.
    """

    name: str
    layers: tuple[int, int]
    widths: tuple[int, int]
    step_size: float
    num_steps: int
    burnin: float = 0.9
    num_samples: int
    batch_size: int = 500
    input_bound: float = 10.0
    networks: int = 100
    num_chains: int = 4
    thinning: int = 4

    @property
    def nbeta(self) -> float:
        """Effective inverse temperature nβ = n/log n."""
        return self.num_samples / math.log(self.num_samples)

    @property
    def num_burnin(self) -> int:
        """Steps before the first kept draw."""
        return round(self.burnin * self.num_steps)

    @property
    def num_draws(self) -> int:
        """Kept draws of a chain."""
        return (self.num_steps - self.num_burnin) // self.thinning


LOCALIZATION = 1.0
"""Strength γ of the pull towards the anchor, for all classes."""

CLASSES = {
    entry.name: entry
    for entry in (
        NetworkClass(
            name="small", layers=(2, 4), widths=(4, 12), step_size=1e-4, num_steps=2000, burnin=0.5,
            num_samples=10_000, batch_size=256, input_bound=1.0, networks=12,
        ),
        NetworkClass(
            name="1K", layers=(2, 5), widths=(5, 50), step_size=5e-7, num_steps=10_000,
            num_samples=100_000, networks=12,
        ),
        NetworkClass(
            name="10K", layers=(2, 10), widths=(5, 100), step_size=5e-7, num_steps=10_000,
            num_samples=100_000,
        ),
        NetworkClass(
            name="100K", layers=(2, 10), widths=(50, 500), step_size=1e-7, num_steps=50_000,
            num_samples=1_000_000, thinning=10,
        ),
        NetworkClass(
            name="1M", layers=(2, 20), widths=(100, 1000), step_size=5e-8, num_steps=50_000,
            num_samples=1_000_000, thinning=10,
        ),
        NetworkClass(
            name="10M", layers=(2, 20), widths=(500, 2000), step_size=2e-8, num_steps=50_000,
            num_samples=1_000_000, thinning=10,
        ),
        NetworkClass(
            name="100M", layers=(2, 40), widths=(500, 3000), step_size=2e-8, num_steps=50_000,
            num_samples=1_000_000, thinning=10,
        ),
    )
}  # fmt: skip
