r"""SGLD preconditioned as RMSProp does (Li et al. 2016; arXiv:2507.21449), frozen before the first draw.

.. math:: v \leftarrow b_2 v + (1 - b_2)\, g^2, \qquad \hat v = v / (1 - b_2^t), \qquad
          \epsilon_t = \epsilon / (\sqrt{\hat v} + a)
.. math:: w \leftarrow w - \tfrac{\epsilon_t}{2} \big[ n\beta\, g + \gamma (w - w^*) \big] + \sqrt{\epsilon_t}\; \xi

per coordinate; v is built from the gradient g of the mean loss alone, never from nβ or the localization. With
``|g| ≪ a`` it *is* SGLD at ``ε/a`` once v has forgotten its start, so step sizes of different samplers are not
comparable.

Once frozen, coordinates that are independent directions follow SGLD's law, each at its own step size:
``Var · P = (1 + ε_t s²/4) / (1 − ε_t P/4)``.

While it adapts, the chain lacks a term Γ (the divergence of the preconditioner), which everyone omits, and is biased
where gradients are not dominated by minibatch noise: steps are short where gradients are large, so the chain lingers
far out. At ``|g| = a`` and a relaxation time of 100 steps ``Var · P`` is 1.44, 1.37, 1.16, 1.03 with b₂ = 0.5, 0.9,
0.99, 0.999, and up to 1.95 where ``|g| ≫ a``; the LLC of a quadratic in 200 dimensions (curvatures 0.01 to 1,
nβ = 100, γ = 0, ε = a/500, all data) comes out 8 %, 42 %, 81 % too large at a = 0.1, 0.01, 0.001, and frozen less than
1 %. Who must adapt always should keep ``1/(1 − b₂)`` well above the relaxation time ``2/(ε_t P)``, or ``a ≳ |g|``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Forces, Noise, Sampler, State, require
from lightning_slt.samplers.preconditioning import Adaptation, Preconditioner, check_adaptation
from lightning_slt.types import is_amount


@dataclass(frozen=True, kw_only=True)
class RMSPropSGLD(Sampler):
    r"""Langevin dynamics with a step size for each coordinate.

    The two published forms are ``RMSPropSGLD(step_size=ε, adaptation="always")`` (arXiv:2507.21449) and
    ``RMSPropSGLD(step_size=ε, adaptation="always", second_moment="zero")`` (devinterp).

    Args:
        step_size: ε, to be compared with ``a`` times the ε of SGLD where gradients are small.
        temperature: Scales the noise variance; 0 is preconditioned descent.
        decay: b₂ in [0, 1).
        damping: a > 0.
        adaptation: ``"burnin"``: v adapts for ``num_adapt`` steps before the burn-in; then ``v̂`` is fixed at its mean
            over the last half of them, without what is left of v's initial value, and the chain has no bias but
            SGLD's. ``"always"``: the published form, biased as the module says.
        num_adapt: Steps of the adaptation; not used with ``"always"``.
        second_moment: ``"one"``: v starts at one, and ``v̂ = v/(1 − b₂ᵗ)``. ``"zero"``: v starts at zero, and
            ``v̂ = v`` without correction, so that the first steps are long ones.

    Raises:
        ValueError: If an argument is out of its range.

    >>> RMSPropSGLD(step_size=1e-5).adaptation_steps
    500
    >>> RMSPropSGLD(step_size=1e-5, adaptation="always").adaptation_steps
    0
    """

    decay: float = 0.99
    damping: float = 0.1
    adaptation: Adaptation = "burnin"
    num_adapt: int = 500
    second_moment: Literal["one", "zero"] = "one"

    def __post_init__(self) -> None:
        """Check the preconditioner's settings too."""
        super().__post_init__()
        require(self, "decay", is_amount(self.decay) and self.decay < 1, "at least 0 and below 1", "0.99")
        check_adaptation(self, damping=self.damping, adaptation=self.adaptation, num_adapt=self.num_adapt)
        require(self, "second_moment", self.second_moment in ("one", "zero"), "'one' or 'zero'", "'one'")

    @property
    def adaptation_steps(self) -> int:
        """``num_adapt`` where the preconditioner is frozen after them, else 0."""
        return self.preconditioner.adaptation_steps

    @property
    def preconditioner(self) -> Preconditioner:
        """How the step sizes follow the gradients."""
        return Preconditioner(
            decay=self.decay,
            damping=self.damping,
            adaptation=self.adaptation,
            num_adapt=self.num_adapt,
            from_one=self.second_moment == "one",
        )

    def init(self, position: Tensor, noise: Noise) -> State:
        """The preconditioner's averages ``[chain, coordinate]`` beside the positions."""
        return {"position": position, **self.preconditioner.init(position)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, eps = state["position"], self.step_size
        root = self.preconditioner.root(state, here.gradient)
        force = here.posterior.gradient(w, here.gradient)
        w.addcmul_(force.mul_(root), root, value=-eps / 2)
        w.addcmul_(noise.normals(), root, value=math.sqrt(eps * self.temperature))
        return state

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√ε_t ξ / (ε_t/2)‖``; None at ε = 0."""
        return self.preconditioner.noise_norm(state, self.step_size, self.temperature)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``¼ nβ∇L · ε_t ∇U``; without the bias of the adaptation where that goes on."""
        step_sizes = self.step_size * self.preconditioner.present(state).square()
        return (forces.loss * step_sizes * forces.total).sum(1) / 4

    def stability(self, precision: float) -> float:
        """NaN: it is ``ε_t P``, and ε_t is known only to be below ``ε/a``, which tells nothing where ``|g| ≫ a``."""
        return math.nan
