r"""How chains move, looked at a few times in a run: how far they are, what drives a step, whether it was too long.

A Metropolis correction would accept the step from ``w`` to ``w'`` with probability

.. math:: \min\Big(1,\; \exp\big\{ [U(w) - U(w')]/T + \log q(w \mid w') - \log q(w' \mid w) \big\}\Big)

The step itself is never rejected. Both potentials are taken on the minibatch that the step used. A rate of 0.9 to 0.95
is the classic choice of a step size; below that the discretization shows in the values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from lightning_slt.posterior import Evaluation, Gradient, LocalPosterior
from lightning_slt.samplers.base import Forces, Sampler, State
from lightning_slt.types import Motion


@dataclass(frozen=True, kw_only=True)
class Departure:
    """The place that a step leaves, and how to evaluate on the minibatch that it uses."""

    posterior: LocalPosterior
    again: Callable[[], tuple[Tensor, Gradient]]
    position: Tensor
    potential: Tensor
    force: Tensor


def depart(position: Tensor, here: Evaluation) -> Departure:
    """Copy the place before the chains move."""
    return Departure(
        posterior=here.posterior,
        again=here.again,
        position=position.clone(),
        potential=here.posterior.potential(position, here.loss),
        force=here.posterior.gradient(position, here.gradient),
    )


def acceptance(sampler: Sampler, start: Departure, position: Tensor) -> Tensor | None:
    """Probability of accepting the step to ``position`` ``[chain]``; None where it is no proposal of known density.

    Args:
        sampler: Gives the density of its proposals.
        start: What the step left.
        position: Where it led ``[chain, coordinate]``.
    """
    posterior = start.posterior
    there = sampler.log_proposal(start.position, position, start.force)
    if there is None:
        return None
    loss, gradient = start.again()
    force = posterior.gradient(position, gradient)
    del gradient  # as long as the weights, as is what comes
    back = sampler.log_proposal(position, start.position, force)
    assert back is not None
    gain = (start.potential - posterior.potential(position, loss)) / sampler.temperature
    return (gain + posterior.shards.add(back - there)).clamp(max=0).exp()


def measure(
    sampler: Sampler,
    state: State,
    here: Evaluation,
    accepted: Tensor | None,
    alive: slice,
    *,
    again: Tensor | None = None,
) -> Motion:
    """Norms at the present place of the chains that count.

    Args:
        sampler: Tells what its steps are made of.
        state: Of all chains, before the next step.
        here: What that step will know.
        accepted: Acceptance of the last step.
        alive: The chains that count.
        again: ∇L on another minibatch ``[chain, coordinate]``; None where there is no other, or no need of it.
    """
    posterior = here.posterior
    offset = state["position"] - posterior.anchor_row
    loss = here.gradient.rows.mul_(posterior.nbeta)
    forces = Forces(
        nbeta=posterior.nbeta,
        gamma=posterior.localization,
        offset=offset,
        loss=loss,
        again=loss if again is None else posterior.nbeta * again,
    )

    shards = posterior.shards
    noise_norm, heating = sampler.noise_norm(state), sampler.heating(state, forces)
    drift_to_noise = sampler.drift_to_noise(forces.total)
    if shards.spread:  # samplers see this process's coordinates: squares of norms, and sums over coordinates, add up
        own, all_of_them = offset.shape[1], posterior.dimension
        noise_norm = None if noise_norm is None else shards.add(noise_norm.square()).sqrt()
        heating = None if heating is None else shards.add(heating)
        if drift_to_noise is not None:
            drift_to_noise = (shards.add(drift_to_noise.square() * own) / all_of_them).sqrt()

    def of(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[alive]

    return Motion(
        distance=shards.norm(offset)[alive],
        gradient_norm=shards.norm(loss)[alive],
        localization_norm=shards.norm(forces.localization)[alive],
        noise_norm=of(noise_norm),
        drift_to_noise=of(drift_to_noise),
        acceptance=of(accepted),
        heating=of(heating),
    )
