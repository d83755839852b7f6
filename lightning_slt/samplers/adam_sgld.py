r"""SGLD preconditioned as Adam does (arXiv:2507.21449), with the preconditioner frozen for the draws.

.. math:: m \leftarrow b_1 m + (1 - b_1)\, g, \qquad \hat m = m / (1 - b_1^t), \qquad
          v \leftarrow b_2 v + (1 - b_2)\, g^2, \qquad \hat v = v / (1 - b_2^t)
.. math:: w \leftarrow w - \tfrac{\epsilon_t}{2} \big[ n\beta\,\hat m + \gamma (w - w^*) \big] + \sqrt{\epsilon_t}\, \xi
.. math:: \epsilon_t = \epsilon / (\sqrt{\hat v} + a)

per coordinate; m starts at zero and v at one, both are built from the gradient g of the mean loss alone. m keeps moving
when the preconditioner is frozen: it is part of the dynamics.

The drift lags behind the position, which heats the chain: once frozen, ``Var · P`` is about
``1 + (ε_t nβ h / 2) b₁/(1 − b₁)`` on a quadratic of curvature h, times SGLD's own ``1/(1 − ε_t P/4)``. While it
adapts, the bias of :class:`RMSPropSGLD` comes on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Forces, Noise, Sampler, State, require
from lightning_slt.samplers.preconditioning import Adaptation, Preconditioner, check_adaptation
from lightning_slt.types import is_amount


@dataclass(frozen=True, kw_only=True)
class AdamSGLD(Sampler):
    r"""Langevin dynamics with averaged gradients and a step size for each coordinate.

    The published form is ``AdamSGLD(step_size=ε, adaptation="always")``.

    Args:
        step_size: ε, to be compared with ``a`` times the ε of SGLD where gradients are small.
        temperature: Scales the noise variance; 0 is preconditioned descent.
        betas: b₁ and b₂, each in [0, 1); ``b₁ = 0`` is RMSPropSGLD.
        damping: a > 0.
        adaptation: ``"burnin"``: v adapts for ``num_adapt`` steps before the burn-in; then ``v̂`` is fixed at its mean
            over the last half of them, without what is left of v's initial value. ``"always"``: the published form,
            biased as RMSPropSGLD's module says.
        num_adapt: Steps of the adaptation; not used with ``"always"``.

    Raises:
        ValueError: If an argument is out of its range.

    >>> AdamSGLD(step_size=1e-5).adaptation_steps
    500
    """

    betas: tuple[float, float] = (0.9, 0.99)
    damping: float = 0.1
    adaptation: Adaptation = "burnin"
    num_adapt: int = 500

    def __post_init__(self) -> None:
        """Check the averages' settings too."""
        super().__post_init__()
        pair = isinstance(self.betas, tuple) and len(self.betas) == 2
        sound = pair and all(is_amount(b) and b < 1 for b in self.betas)
        require(self, "betas", sound, "two numbers, each at least 0 and below 1", "(0.9, 0.99)")
        check_adaptation(self, damping=self.damping, adaptation=self.adaptation, num_adapt=self.num_adapt)

    @property
    def adaptation_steps(self) -> int:
        """``num_adapt`` where the preconditioner is frozen after them, else 0."""
        return self.preconditioner.adaptation_steps

    @property
    def preconditioner(self) -> Preconditioner:
        """How the step sizes follow the gradients."""
        return Preconditioner(
            decay=self.betas[1],
            damping=self.damping,
            adaptation=self.adaptation,
            num_adapt=self.num_adapt,
            from_one=True,
        )

    def init(self, position: Tensor, noise: Noise) -> State:
        """The averages of gradients and of their squares ``[chain, coordinate]`` beside the positions."""
        momentum = {"momentum": torch.zeros_like(position), "weight": 1.0}
        return {"position": position, **momentum, **self.preconditioner.init(position)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """One step of every chain, in place; see the module's formula."""
        w, m, eps, b1 = state["position"], state["momentum"], self.step_size, self.betas[0]
        state["weight"] *= b1
        m.mul_(b1)
        here.gradient.add_to(m, scale=1 - b1)
        root = self.preconditioner.root(state, here.gradient)
        nbeta, gamma = here.posterior.nbeta, here.posterior.localization
        force = (w - here.posterior.anchor_row).mul_(gamma).add_(m, alpha=nbeta / (1 - state["weight"]))
        w.addcmul_(force.mul_(root), root, value=-eps / 2)
        w.addcmul_(noise.normals(), root, value=math.sqrt(eps * self.temperature))
        return state

    def noise_norm(self, state: State) -> Tensor | None:
        """``‖√ε_t ξ / (ε_t/2)‖``; None at ε = 0."""
        return self.preconditioner.noise_norm(state, self.step_size, self.temperature)

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""``nβm̂ · ε_t { ¼ [nβm̂ + γ(w − w*)] + ½ b₁/(1 − b₁) nβm̂ }``; not the bias of an adaptation that goes on."""
        b1 = self.betas[0]
        average = forces.nbeta * b1 * state["momentum"] + (1 - b1) * forces.loss
        average = average / (1 - b1 * state["weight"])
        step_sizes = self.step_size * self.preconditioner.present(state).square()
        lag = b1 / (1 - b1) / 2 * average
        heating: Tensor = (average * step_sizes * ((average + forces.localization) / 4 + lag)).sum(1)
        return heating

    def stability(self, precision: float) -> float:
        """NaN: it is ``ε_t P``, and ε_t is known only to be below ``ε/a``, which tells nothing where ``|g| ≫ a``."""
        return math.nan
