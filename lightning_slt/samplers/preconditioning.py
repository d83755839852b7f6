r"""The diagonal preconditioner that RMSPropSGLD and AdamSGLD share: step sizes from squared gradients of the loss.

.. math:: v \leftarrow b_2 v + (1 - b_2)\, g^2, \qquad \epsilon_t = \epsilon\, G, \qquad G = 1 / (\sqrt{\hat v} + a)

``v = s + b₂ᵗ v₀``, where s is the same average started at zero; s is what is kept, as it stays exact where v₀ = 1 would
swamp small squares.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_slt.posterior import Gradient
from lightning_slt.samplers.base import Sampler, State, is_count, require
from lightning_slt.types import is_amount

Adaptation = Literal["burnin", "always"]


def check_adaptation(sampler: Sampler, *, damping: object, adaptation: object, num_adapt: object) -> None:
    """Raise ValueError where the settings that both samplers name alike cannot be."""
    sound = is_amount(damping) and damping != 0
    require(sampler, "damping", sound, "a finite number above 0", "0.1")
    require(sampler, "adaptation", adaptation in ("burnin", "always"), "'burnin' or 'always'", "'burnin'")
    require(sampler, "num_adapt", is_count(num_adapt), "a whole number of at least 1", "500")


@dataclass(frozen=True, kw_only=True)
class Preconditioner:
    r"""How G follows the gradients.

    Args:
        decay: b₂.
        damping: a.
        adaptation: ``"always"``, or ``"burnin"``: for ``num_adapt`` steps, after which ``v̂`` is the mean of
            ``s/(1 − b₂ᵗ)`` over the last half of them, for good.
        num_adapt: Steps of the adaptation.
        from_one: ``v₀ = 1`` and ``v̂ = v/(1 − b₂ᵗ)``; else ``v₀ = 0`` and ``v̂ = v``.
    """

    decay: float
    damping: float
    adaptation: Adaptation
    num_adapt: int
    from_one: bool

    @property
    def adaptation_steps(self) -> int:
        """``num_adapt`` where it is frozen after them, else 0."""
        return self.num_adapt if self.adaptation == "burnin" else 0

    def init(self, position: Tensor) -> State:
        """What to carry from step to step, beside the position."""
        state: State = {"steps": 0, "squares": torch.zeros_like(position)}
        if self.adaptation == "burnin":
            state["mean"] = torch.zeros_like(position)
        return state

    def root(self, state: State, gradient: Gradient) -> Tensor:
        """``√G`` of this step ``[chain, coordinate]``, after it has seen the step's gradient of the loss."""
        if "root" not in state:
            root = self._adapt(state, gradient.rows)
            if self.adaptation == "burnin" and state["steps"] == self.num_adapt:
                state["root"] = self._damped(state.pop("mean"))
                del state["squares"]
            return root
        frozen: Tensor = state["root"]
        return frozen

    def present(self, state: State) -> Tensor:
        """``√G`` of the last step ``[chain, coordinate]``."""
        if "root" in state:
            frozen: Tensor = state["root"]
            return frozen
        return self._damped(self._v_hat(state))

    def noise_norm(self, state: State, step_size: float, temperature: float) -> Tensor | None:
        """``‖2 √T ξ / √ε_t‖`` of each chain ``[chain]``; None at ε = 0."""
        if step_size == 0:
            return None
        norm: Tensor = (4 * temperature / step_size * self.present(state).pow(-2).sum(1)).sqrt()
        return norm

    def _adapt(self, state: State, g: Tensor) -> Tensor:
        state["steps"] += 1
        s, forgotten = state["squares"], self.decay ** state["steps"]
        s.mul_(self.decay).addcmul_(g, g, value=1 - self.decay)
        window = self.num_adapt - self.num_adapt // 2
        if self.adaptation == "burnin" and state["steps"] > self.num_adapt - window:
            state["mean"].add_(s, alpha=1 / (window * (1 - forgotten)))
        return self._damped(self._v_hat(state))

    def _v_hat(self, state: State) -> Tensor:
        s: Tensor = state["squares"]
        forgotten = self.decay ** state["steps"]
        return s.add(forgotten).div_(1 - forgotten) if self.from_one else s.clone()

    def _damped(self, v_hat: Tensor) -> Tensor:
        return v_hat.sqrt_().add_(self.damping).rsqrt_()
