r"""Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996): SGLD's step, accepted or rejected.

.. math:: w' = w - \tfrac{\epsilon}{2} \nabla U(w) + \sqrt{\epsilon}\; \xi, \qquad
          \log r = U(w) - U(w') + \log q(w \mid w') - \log q(w' \mid w)

accepted with probability ``min(1, r)``, each chain on its own. With ``k = ½ √ε (∇U(w) + ∇U(w'))`` the last two terms
are ``k · (ξ − k/2)``. The stationary law is the posterior itself, at any ε: an exact reference for small problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Noise, Sampler, State, metropolis, require


@dataclass(frozen=True, kw_only=True)
class MALA(Sampler):
    r"""Langevin dynamics without error: every step sees all samples, and is rejected where it went astray.

    ``batch_size`` is ignored, each step costs two passes over all data. ``state["accepted"]`` counts acceptances of
    each chain; the best mixing is near a rate of 0.57.

    Args:
        step_size: ε, as for SGLD.
        temperature: T > 0; the target is ``exp(−U/T)``.

    Raises:
        ValueError: If ε is negative, or the temperature not above 0.

    >>> MALA(step_size=1e-4)
    MALA(step_size=0.0001, temperature=1.0)
    """

    full_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """A ratio of densities needs a density."""
        super().__post_init__()
        require(self, "temperature", self.temperature > 0, "above 0, as there is no density at 0", "1.0")

    def init(self, position: Tensor, noise: Noise) -> State:
        """Numbers of accepted steps ``[chain]`` beside the positions."""
        return {"position": position, "accepted": torch.zeros(len(position), dtype=torch.long, device=position.device)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """Propose, look and decide, in place; see the module's formula."""
        w, posterior = state["position"], here.posterior
        eps, temperature = self.step_size, self.temperature
        previous, potential = w.clone(), posterior.potential(w, here.loss)
        force, xi = posterior.gradient(w, here.gradient), noise.normals()
        w.add_(force, alpha=-eps / 2).add_(xi, alpha=math.sqrt(eps * temperature))

        loss, gradient = here.again()
        proposed = posterior.potential(w, loss)
        k = force.add_(posterior.gradient(w, gradient)).mul_(math.sqrt(eps / temperature) / 2)
        log_ratio = (potential - proposed) / temperature + posterior.shards.add((k * (xi - k / 2)).sum(1))
        metropolis(state, previous, log_ratio, proposed, noise)
        return state

    def stability(self, precision: float) -> float:
        """``ε P`` of the proposal. The chain never diverges; it stops accepting instead."""
        return self.step_size * precision
