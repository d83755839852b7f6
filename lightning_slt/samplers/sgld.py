r"""Stochastic-gradient Langevin dynamics (Welling & Teh 2011; arXiv:2308.12108, Algorithm 1).

.. math:: w \leftarrow w - \tfrac{\epsilon}{2}\,\big[ n\beta\, g + \gamma (w - w^*) \big] + \sqrt{\epsilon}\;\xi,
          \qquad \xi \sim N(0, I)

Stationary variance on a quadratic of precision ``P = nβh + γ``, with standard deviation s of the noise of nβ g:
``Var · P = (1 + ε s²/4) / (1 − ε P/4)``; it diverges at ``ε P ≥ 4``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Forces, Noise, Sampler, State, constant_norm


@dataclass(frozen=True, kw_only=True)
class SGLD(Sampler):
    r"""Langevin dynamics with minibatch gradients.

    Args:
        step_size: ε. Keep ``ε (nβ λ_max + γ)`` below about 0.2 where values matter.
        temperature: Scales the noise variance; 0 is gradient flow.

    >>> SGLD(step_size=1e-4)
    SGLD(step_size=0.0001, temperature=1.0)
    """

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, anchor = state["position"], here.posterior.anchor_row
        eps, nbeta, gamma = self.step_size, here.posterior.nbeta, here.posterior.localization
        # (γ/2)(w* − w) as an interpolation: one pass over memory, and exactly nothing at w = w*
        w.lerp_(anchor, eps / 2 * gamma)
        here.gradient.add_to(w, scale=-eps / 2 * nbeta)
        w.add_(noise.normals(), alpha=math.sqrt(eps * self.temperature))
        return state

    def stability(self, precision: float) -> float:
        """``ε P``."""
        return self.step_size * precision

    def log_proposal(self, start: Tensor, end: Tensor, force: Tensor) -> Tensor | None:
        r"""``−‖end − start + (ε/2)∇U‖² / 2εT``; None where nothing is random."""
        variance = self.step_size * self.temperature
        if variance == 0:
            return None
        residual = (end - start).add_(force, alpha=self.step_size / 2)
        return residual.square_().sum(1) / (-2 * variance)

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√ε ξ‖ / (ε/2)``; None at ε = 0."""
        return constant_norm(state["position"], 4 * self.temperature, self.step_size)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``(ε/4) nβ∇L · ∇U``."""
        return self.step_size / 4 * forces.total.mul_(forces.loss).sum(1)

    def drift_to_noise(self, force: Tensor) -> Tensor | None:
        r"""``‖(ε/2)∇U‖ / ‖√ε ξ‖`` of a step at each chain ``[chain]``; ``force`` is ∇U ``[chain, coordinate]``."""
        scale = math.sqrt(self.step_size * max(self.temperature, 1e-30) * force.shape[1])
        ratio: Tensor = self.step_size / 2 * force.norm(dim=1) / max(scale, 1e-30)
        return ratio
