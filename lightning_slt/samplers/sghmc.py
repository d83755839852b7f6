r"""Stochastic-gradient Hamiltonian Monte Carlo (Chen, Fox & Guestrin 2014, eq. 15; settings of arXiv:2507.21449).

.. math:: u \leftarrow (1 - \alpha)\, u - \eta\, \nabla U(w) + N(0,\, 2 \alpha \eta), \qquad w \leftarrow w + u,
          \qquad \eta = \epsilon / 2, \quad u_0 \sim N(0, \eta)

Stationary variance on a quadratic of precision ``P = nβh + γ``, with standard deviation s of the noise of nβ g:
``Var · P = (1 + ε s²/(4α)) / (1 − ε P / (4 (2 − α)))``; it diverges at ``ε P ≥ 4 (2 − α)``. At α = 1 it is SGLD.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Forces, Noise, Sampler, State, constant_norm, require
from lightning_slt.types import is_amount


@dataclass(frozen=True, kw_only=True)
class SGHMC(Sampler):
    r"""Langevin dynamics with momentum and minibatch gradients.

    Minibatch noise heats it 1/α times as much as SGLD at the same ε.

    Args:
        step_size: ε; twice the η of the source.
        friction: α in (0, 1], the share of the momentum that is lost in a step.
        temperature: Scales the noise variance; 0 is descent with momentum.

    Raises:
        ValueError: If an argument is out of its range.

    >>> SGHMC(step_size=1e-4)
    SGHMC(step_size=0.0001, temperature=1.0, friction=0.1)
    """

    second_look: ClassVar[bool] = True

    friction: float = 0.1

    def __post_init__(self) -> None:
        """Check the friction too."""
        super().__post_init__()
        require(self, "friction", is_amount(self.friction) and 0 < self.friction <= 1, "above 0 and at most 1", "0.1")

    def init(self, position: Tensor, noise: Noise) -> State:
        """Momenta ``[chain, coordinate]`` beside the positions."""
        eta = self.step_size / 2
        return {"position": position, "momentum": noise.normals() * math.sqrt(eta * self.temperature)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, u = state["position"], state["momentum"]
        alpha, eta = self.friction, self.step_size / 2
        force = here.posterior.gradient(w, here.gradient)
        u.mul_(1 - alpha).add_(force, alpha=-eta)
        u.add_(noise.normals(), alpha=math.sqrt(2 * alpha * eta * self.temperature))
        w.add_(u)
        return state

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√(2αη) ξ‖ / η``; None at ε = 0."""
        return constant_norm(state["position"], 4 * self.friction * self.temperature, self.step_size)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``(ε/4) [ s²/α + nβ∇L·∇U/(2 − α) ]``, s² the minibatch noise of all coordinates."""
        alpha = self.friction
        return self.step_size / 4 * (forces.noise / alpha + forces.product / (2 - alpha))

    def stability(self, precision: float) -> float:
        """``ε P / (2 − α)``."""
        return self.step_size * precision / (2 - self.friction)
