r"""Stochastic-gradient Nosé–Hoover thermostat (Ding et al. 2014, Algorithm 2; settings of arXiv:2507.21449).

.. math:: u \leftarrow u - \zeta u - \eta\, \nabla U(w) + \sqrt{2 A \eta}\; \xi, \qquad w \leftarrow w + u, \qquad
          \zeta \leftarrow \zeta + \lVert u \rVert^2 / d - \eta, \qquad \eta = \epsilon / 2

with ``ζ₀ = A`` and ``u₀ ~ N(0, η)``: one thermostat ζ a chain over all its d free coordinates, which takes up the
minibatch noise. With many directions of one curvature P, and standard deviation s of the noise of nβ g, the friction
settles at ``ζ̄ = c − √(c² − 2A − ε s²/2)``, ``c = 1 − ε P/8``, and the variance at ``Var · P = 1 − ζ̄/2``: about A/2 is
lost at any ε. There is no equilibrium where the root is of a negative number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_slt.posterior import Evaluation, LocalPosterior
from lightning_slt.samplers.base import Forces, Noise, Sampler, State, constant_norm, require
from lightning_slt.types import is_amount


@dataclass(frozen=True, kw_only=True)
class SGNHT(Sampler):
    r"""Langevin dynamics with momentum and a friction that holds the momenta at the temperature.

    The friction takes about ``2A/ε`` steps to settle: with a small ε and few steps this is SGHMC at ``α = A``.

    Args:
        step_size: ε; twice the η of the formula.
        diffusion: A, noise and initial friction, in (0, 1/2): above it no friction could take up the noise.
        temperature: Scales the noise variance and the momenta's; 0 is descent with momentum.

    Raises:
        ValueError: If an argument is out of its range.

    >>> SGNHT(step_size=1e-4)
    SGNHT(step_size=0.0001, temperature=1.0, diffusion=0.1)
    """

    second_look: ClassVar[bool] = True

    diffusion: float = 0.1

    def __post_init__(self) -> None:
        """Check the diffusion too."""
        super().__post_init__()
        require(self, "diffusion", is_amount(self.diffusion) and 0 < self.diffusion < 0.5, "above 0, below 0.5", "0.1")

    def init(self, position: Tensor, noise: Noise) -> State:
        """Momenta ``[chain, coordinate]`` and thermostats ``[chain, 1]`` beside the positions."""
        eta = self.step_size / 2
        return {
            "position": position,
            "momentum": noise.normals() * math.sqrt(eta * self.temperature),
            "thermostat": position.new_full((len(position), 1), self.diffusion),
        }

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, u, zeta = state["position"], state["momentum"], state["thermostat"]
        eta = self.step_size / 2
        force = here.posterior.gradient(w, here.gradient)
        u.mul_(1 - zeta).add_(force, alpha=-eta)
        u.add_(noise.normals(), alpha=math.sqrt(2 * self.diffusion * eta * self.temperature))
        w.add_(u)
        zeta.add_(_mean_square(u, here.posterior)[:, None] - eta * self.temperature)
        return state

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√(2Aη) ξ‖ / η``; None at ε = 0."""
        return constant_norm(state["position"], 4 * self.diffusion * self.temperature, self.step_size)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``(1 − ζ/A) (w − w*)·nβ∇L + (ε/4A) [ s² + nβ∇L·∇U ζ/(2 − ζ) ]``: SGHMC's where ζ = A."""
        a, zeta = self.diffusion, state["thermostat"][:, 0]
        virial = (forces.offset * (forces.loss + forces.again)).sum(1) / 2
        heated = self.step_size / (4 * a) * (forces.noise + forces.product * zeta / (2 - zeta))
        excess: Tensor = (1 - zeta / a) * virial + heated
        return excess

    def stability(self, precision: float) -> float:
        """``ε P / (2 (1 − √(2A)))``: exact for many directions of one curvature, cautious where only a few are stiff.

        Few stiff directions leave the thermostat to the others and follow SGHMC at ``α = ζ̄``.
        """
        return self.step_size * precision / (2 * (1 - math.sqrt(2 * self.diffusion)))


def _mean_square(u: Tensor, posterior: LocalPosterior) -> Tensor:
    """``‖u‖²/d`` over all coordinates ``[chain]``."""
    if not posterior.shards.spread:
        return u.square().mean(1)
    return posterior.shards.add(u.square().sum(1)) / posterior.dimension
