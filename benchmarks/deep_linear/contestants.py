"""The samplers in the contest, and the nine step sizes that each one tries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import lightning_slt as slt
from benchmarks.deep_linear.classes import NetworkClass
from lightning_slt.samplers import Sampler

GRID = tuple(range(-4, 5))
"""Half decades around the centre: two decades to either side."""


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A sampler of the package with the centre of its grid.

    Attributes:
        name: What the tables call it.
        make: Makes it for a step size.
        centre: Centre of its grid for a class of networks.
        default: Whether it runs when no sampler is named.
        success: Largest median |relative error| and least order at its best step size that count as success.
    """

    name: str
    make: Callable[[float, NetworkClass], Sampler]
    centre: Callable[[NetworkClass], float]
    default: bool = True
    success: tuple[float, float] = (0.15, 0.90)

    def step_sizes(self, network_class: NetworkClass) -> tuple[float, ...]:
        """The grid, ascending, to two digits."""
        return tuple(float(f"{self.centre(network_class) * 10 ** (half / 2):.1e}") for half in GRID)


# Centres, from SGLD's ε: where gradients are well below the damping a = 0.1, a preconditioned step is one of ε/a. Where
# momentum lasts 1/α = 10 steps, ε acts as ε/α while the limit of stability hardly moves: √α ε lies between. The time
# step h of the underdamped dynamics is to be compared with √ε; its momentum lasts 33 steps at the centre.
CONTESTANTS = {
    entry.name: entry
    for entry in (
        Contestant(name="SGLD", make=lambda e, _: slt.SGLD(step_size=e), centre=lambda c: c.step_size),
        Contestant(
            name="RMSPropSGLD", make=lambda e, _: slt.RMSPropSGLD(step_size=e), centre=lambda c: 0.1 * c.step_size
        ),
        Contestant(
            name="RMSPropSGLD published",
            make=lambda e, _: slt.RMSPropSGLD(step_size=e, adaptation="always"),
            centre=lambda c: 0.1 * c.step_size,
        ),
        Contestant(
            name="AdamSGLD",
            make=lambda e, _: slt.AdamSGLD(step_size=e),
            centre=lambda c: 0.1 * c.step_size,
            success=(0.20, 0.88),
        ),
        Contestant(
            name="AdamSGLD published",
            make=lambda e, _: slt.AdamSGLD(step_size=e, adaptation="always"),
            centre=lambda c: 0.1 * c.step_size,
            success=(0.20, 0.88),
        ),
        Contestant(name="SGHMC", make=lambda e, _: slt.SGHMC(step_size=e), centre=lambda c: 0.3 * c.step_size),
        Contestant(name="SGNHT", make=lambda e, _: slt.SGNHT(step_size=e), centre=lambda c: 0.3 * c.step_size),
        Contestant(
            name="UnderdampedLangevin",
            make=lambda h, c: slt.UnderdampedLangevin(step_size=h, friction=0.1 / c.step_size**0.5),
            centre=lambda c: 0.3 * c.step_size**0.5,
        ),
        Contestant(name="MALA", make=lambda e, _: slt.MALA(step_size=e), centre=lambda c: c.step_size, default=False),
    )
}
