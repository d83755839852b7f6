r"""Hamiltonian Monte Carlo (Duane et al. 1987; Neal 2011): a fresh momentum, L leapfrog steps, accept or reject.

.. math:: p \sim N(0, I); \qquad
          p \leftarrow p - \tfrac h2 \nabla U(w), \quad w \leftarrow w + h\, p, \quad
          p \leftarrow p - \tfrac h2 \nabla U(w) \quad (L \text{ times})
.. math:: \log r = H - H', \qquad H = U(w) + \tfrac12 \lVert p \rVert^2

accepted with probability ``min(1, r)``, each chain on its own. The stationary law is the posterior itself, at any h:
an exact reference for small problems.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Noise, Sampler, State, is_count, metropolis, require


@dataclass(frozen=True, kw_only=True)
class HMC(Sampler):
    r"""Trajectories without error: every step sees all samples L + 1 times, and is rejected where it went astray.

    ``batch_size`` is ignored. ``state["accepted"]`` counts acceptances of each chain; the best mixing is near a rate of
    0.65. Directions in which ``h L √P`` is near a multiple of π return to where they were and hardly mix.

    Args:
        step_size: h, the time step of the leapfrog; h² is to be compared with the ε of SGLD.
        num_leapfrog: L, leapfrog steps per step of the chain; 1 is MALA at ``ε = h²``.
        temperature: T > 0; the target is ``exp(−U/T)``.

    Raises:
        ValueError: If h is negative, L below 1, or the temperature not above 0.

    >>> HMC(step_size=1e-2)
    HMC(step_size=0.01, temperature=1.0, num_leapfrog=10)
    """

    full_batch: ClassVar[bool] = True

    num_leapfrog: int = 10

    def __post_init__(self) -> None:
        """Check the number of leapfrog steps too."""
        super().__post_init__()
        require(self, "temperature", self.temperature > 0, "above 0, as there is no density at 0", "1.0")
        require(self, "num_leapfrog", is_count(self.num_leapfrog), "a whole number of at least 1", "10")

    def init(self, position: Tensor, noise: Noise) -> State:
        """Numbers of accepted steps ``[chain]`` beside the positions."""
        return {"position": position, "accepted": torch.zeros(len(position), dtype=torch.long, device=position.device)}

    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """Run the trajectory and decide, in place; see the module's formula."""
        w, posterior, h = state["position"], here.posterior, self.step_size
        p = noise.normals().mul_(math.sqrt(self.temperature))
        add = posterior.shards.add
        previous, potential, kinetic = w.clone(), posterior.potential(w, here.loss), add(p.square().sum(1)) / 2

        p.add_(posterior.gradient(w, here.gradient), alpha=-h / 2)
        for leap in range(1, self.num_leapfrog + 1):
            w.add_(p, alpha=h)
            loss, gradient = here.again()
            # two half kicks that follow each other are one
            p.add_(posterior.gradient(w, gradient), alpha=-h if leap < self.num_leapfrog else -h / 2)

        proposed = posterior.potential(w, loss)
        log_ratio = (potential + kinetic - proposed - add(p.square().sum(1)) / 2) / self.temperature
        metropolis(state, previous, log_ratio, proposed, noise)
        return state

    def stability(self, precision: float) -> float:
        """``h² P`` of the leapfrog. The chain never diverges; it stops accepting instead."""
        return self.step_size**2 * precision
