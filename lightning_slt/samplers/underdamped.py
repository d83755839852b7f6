r"""Underdamped Langevin dynamics, BAOAB with its two half kicks merged (Leimkuhler & Matthews 2013).

.. math:: v \leftarrow v - h\, \nabla U(w), \qquad w \leftarrow w + \tfrac h2 v, \qquad
          v \leftarrow e^{-\eta h}\, v + \sqrt{1 - e^{-2 \eta h}}\; \xi, \qquad w \leftarrow w + \tfrac h2 v

with ``v₀ ~ N(0, I)``. Read after the second half drift, positions on a quadratic of precision ``P = nβh + γ`` have no
discretization bias: ``Var · P = 1`` for every ``h² P < 4``, beyond which it diverges. Gradient noise of standard
deviation s (of nβ g) adds ``(h² s²/4) coth(ηh/2) / (1 − h² P/4)``, about ``h s² / (2η)``.
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
class UnderdampedLangevin(Sampler):
    r"""Langevin dynamics with momentum, without discretization bias on quadratics.

    Its time step h and the ε of SGLD are different things: h² is to be compared with ε.

    Args:
        step_size: h, the time step.
        friction: η > 0, the rate at which momentum is forgotten, per unit of time. About ``2√P`` of the softest
            direction that matters; more where minibatches are noisy.
        temperature: Scales the momenta's variance; 0 is descent with momentum.

    Raises:
        ValueError: If an argument is out of its range.

    >>> UnderdampedLangevin(step_size=1e-2, friction=2.0)
    UnderdampedLangevin(step_size=0.01, temperature=1.0, friction=2.0)
    """

    second_look: ClassVar[bool] = True

    friction: float

    def __post_init__(self) -> None:
        """Check the friction too."""
        super().__post_init__()
        require(self, "friction", is_amount(self.friction) and self.friction > 0, "a finite number above 0", "2.0")

    def init(self, position: Tensor, noise: Noise) -> State:
        """Velocities ``[chain, coordinate]`` beside the positions."""
        return {"position": position, "velocity": noise.normals() * math.sqrt(self.temperature)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, v, h = state["position"], state["velocity"], self.step_size
        force = here.posterior.gradient(w, here.gradient)
        v.add_(force, alpha=-h)
        w.add_(v, alpha=h / 2)
        v.mul_(math.exp(-self.friction * h))
        # −expm1(−x) is 1 − e^(−x) without cancellation
        v.add_(noise.normals(), alpha=math.sqrt(-math.expm1(-2 * self.friction * h) * self.temperature))
        w.add_(v, alpha=h / 2)
        return state

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√(1 − e^(−2ηh)) ξ‖ / h``; None at h = 0."""
        h = self.step_size
        return constant_norm(state["position"], -math.expm1(-2 * self.friction * h) * self.temperature, h**2)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``(h²/4) coth(ηh/2) s²``, s² the minibatch noise of all coordinates; the same to leading order in h²P/4."""
        if self.step_size == 0:
            return None
        h = self.step_size
        return h**2 / 4 / math.tanh(self.friction * h / 2) * forces.noise

    def stability(self, precision: float) -> float:
        """``h² P``."""
        return self.step_size**2 * precision
