r"""How chains move, looked at a few times in a run: how far they are, what drives a step, whether it was too long.

A Metropolis correction would accept the step from ``w`` to ``w'`` with probability

.. math:: \min\Big(1,\; \exp\big\{ [U(w) - U(w')]/T + \log q(w \mid w') - \log q(w' \mid w) \big\}\Big)

The step itself is never rejected. Both potentials are taken on the minibatch that the step used. A rate of 0.9 to 0.95
is the classic choice of a step size; below that the discretization shows in the values.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_slt.posterior import Evaluation
from lightning_slt.samplers.base import Sampler
from lightning_slt.types import Motion


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The place that a step leaves."""

    position: Tensor
    potential: Tensor
    force: Tensor


def depart(position: Tensor, here: Evaluation) -> Departure:
    """Copy the place before the chains move."""
    return Departure(
        position=position.clone(),
        potential=here.posterior.potential(position, here.loss),
        force=here.posterior.gradient(position, here.gradient),
    )


def acceptance(sampler: Sampler, start: Departure, position: Tensor, here: Evaluation) -> Tensor | None:
    """Probability of accepting the step to ``position`` ``[chain]``; None where it is no proposal of known density.

    Args:
        sampler: Gives the density of its proposals.
        start: What the step left.
        position: Where it led ``[chain, coordinate]``.
        here: Evaluates there, on the minibatch of the step.
    """
    there = sampler.log_proposal(start.position, position, start.force)
    if there is None:
        return None
    loss, gradient = here.again()
    back = sampler.log_proposal(position, start.position, here.posterior.gradient(position, gradient))
    assert back is not None
    gain = (start.potential - here.posterior.potential(position, loss)) / sampler.temperature
    return (gain + back - there).clamp(max=0).exp()


def measure(sampler: Sampler, position: Tensor, here: Evaluation, accepted: Tensor | None, alive: slice) -> Motion:
    """Norms at the present place of the chains that count."""
    ratio = sampler.drift_to_noise(here.posterior.gradient(position, here.gradient))
    return Motion(
        distance=(position - here.posterior.anchor_row).norm(dim=1)[alive],
        drift_to_noise=None if ratio is None else ratio[alive],
        acceptance=None if accepted is None else accepted[alive],
    )
