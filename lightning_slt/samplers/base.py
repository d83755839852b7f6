r"""What every sampler is: a frozen description with ``init`` and ``step``.

All work on rows of free coordinates ``[chain, coordinate]``. A restriction to a component needs nothing here: rows
hold only what moves. Where a step has a drift and a noise, the convention is that of arXiv:2308.12108: drift ε/2,
noise variance ε. ``U = nβ L + (γ/2)‖w − w*‖²`` is the potential, P its curvature in one direction.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lightning_slt.boundary import make_plain
from lightning_slt.posterior import Evaluation
from lightning_slt.types import is_amount

State = dict[str, Any]
"""What a sampler carries from step to step; ``state["position"]`` is moved in place."""


class Noise(Protocol):
    """Random numbers of every chain, each from that chain's own generator."""

    def normals(self) -> Tensor:
        """Fresh standard normals ``[chain, coordinate]``, in storage that the next call overwrites."""
        ...

    def uniforms(self) -> Tensor:
        """Fresh numbers between 0 and 1, one a chain ``[chain]``."""
        ...


@dataclass(frozen=True, kw_only=True)
class Forces:
    """The two parts of ∇U at the place of the chains, each ``[chain, coordinate]``.

    What can be made of others is made anew each time that it is asked for, because rows are as long as the weights.

    Attributes:
        nbeta: nβ.
        gamma: γ.
        offset: ``w − w*``.
        loss: ``nβ ∇L``, on the minibatch of the coming step.
        again: The same on another minibatch; what ``loss`` is where there is none.
    """

    nbeta: float
    gamma: float
    offset: Tensor
    loss: Tensor
    again: Tensor

    @property
    def localization(self) -> Tensor:
        """``γ (w − w*)``."""
        return self.offset * self.gamma

    @property
    def total(self) -> Tensor:
        """``∇U``."""
        return self.localization.add_(self.loss)

    @property
    def noise(self) -> Tensor:
        """Variance of the minibatch noise of nβ∇L, all coordinates together ``[chain]``, without bias."""
        return (self.loss - self.again).square_().sum(1) / 2

    @property
    def product(self) -> Tensor:
        """``nβ∇L · ∇U`` without minibatch noise ``[chain]``, without bias."""
        return self.localization.add_(self.again).mul_(self.loss).sum(1)


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    r"""Base of all samplers.

    Args:
        step_size: ε ≥ 0; 0 stands still.
        temperature: Scales the noise variance; 0 is gradient flow, for tests.

    Raises:
        ValueError: If ε or the temperature is negative or not finite.
    """

    full_batch: ClassVar[bool] = False
    """Whether every step needs all samples, as an exact accept-or-reject step does; ``batch_size`` is ignored then."""

    second_look: ClassVar[bool] = False
    """Whether :meth:`heating` needs the gradient on another minibatch, to tell noise from curvature."""

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no sampler can use."""
        make_plain(self)
        for name in ("step_size", "temperature"):
            value = getattr(self, name)
            if not is_amount(value):
                raise ValueError(f"{type(self).__name__}.{name} must be a finite number, zero or more, got {value!r}")

    @property
    def adaptation_steps(self) -> int:
        """Steps before the burn-in in which the sampler still adapts itself, so that nothing may be kept."""
        return 0

    def init(self, position: Tensor, noise: Noise) -> State:
        """State at the first position; samplers with more than a position extend it.

        Args:
            position: ``[chain, coordinate]``, the storage that the chains move in.
            noise: Random numbers of each chain.
        """
        return {"position": position}

    @abstractmethod
    def step(self, state: State, here: Evaluation, noise: Noise) -> State:
        """Advance every chain by one step, in place.

        Args:
            state: From :meth:`init` or the last step.
            here: Loss and gradient at the position; ``here.gradient.rows`` is ``[chain, coordinate]``.
            noise: Random numbers of each chain.

        Returns:
            The state after the step.
        """

    @abstractmethod
    def stability(self, precision: float) -> float:
        r"""How near the sampler is to divergence on a quadratic: at 4 it diverges, well below 4 it is accurate.

        Args:
            precision: ``P = nβ h + γ`` of the stiffest direction, h its curvature.

        Returns:
            A number in proportion to P; NaN where the step size and P alone do not tell.
        """

    def log_proposal(self, start: Tensor, end: Tensor, force: Tensor) -> Tensor | None:
        """Log density, up to a constant, of a step that leads from ``start`` to ``end``, each ``[chain, coordinate]``.

        Args:
            start: Where the step begins.
            end: Where it leads.
            force: ∇U at its start ``[chain, coordinate]``.

        Returns:
            ``[chain]``; None for samplers whose step has no density, or depends on more than the position.
        """
        return None

    def noise_norm(self, state: State) -> Tensor | None:
        """Norm of a step's noise in units of ∇U ``[chain]``: of the force that would move the chains as far.

        Args:
            state: Of the chains, before a step.

        Returns:
            The root of its expected square; None for samplers whose step has no such part.
        """
        return None

    def heating(self, state: State, forces: Forces) -> Tensor | None:
        r"""What the length of a step and the noise of its minibatch add to ``E[(w − w*)·nβ∇L]`` ``[chain]``.

        A stationary density has ``E[(w − w*)·∇U] = d T`` (Stein); what the chain of a sampler has in its place follows
        from that the mean squares of its positions and momenta do not change either. The difference is made of the
        gradients and momenta of one step, without the fluctuation of flat directions, in which there is no gradient.
        On a quadratic half of it is by how much the LLC is too high: :attr:`Motion.heating`.

        Args:
            state: Of the chains, before a step.
            forces: At the position, on the minibatch of that step.

        Returns:
            One measurement for each chain; None for exact samplers.
        """
        return None

    def drift_to_noise(self, force: Tensor) -> Tensor | None:
        r"""Norm of the drift of a step over that of its noise ``[chain]``; ``force`` is ∇U ``[chain, coordinate]``.

        None for samplers whose step has no such parts.
        """
        return None


def constant_norm(position: Tensor, variance: float, scale: float) -> Tensor | None:
    """``√(d · variance / scale)`` of every chain; None at scale 0."""
    if scale == 0:
        return None
    return position.new_full(position.shape[:1], math.sqrt(position.shape[1] * variance / scale))


def require(sampler: Sampler, name: str, sound: bool, expected: str, write: str) -> None:
    """Say what was given, what was expected and what to write, where an argument of a sampler is not sound."""
    if not sound:
        kind, value = type(sampler).__name__, getattr(sampler, name)
        raise ValueError(f"{kind}.{name} must be {expected}, got {value!r}; write e.g. {name}={write}")


def is_count(value: object) -> bool:
    """Whether a setting is a whole number of at least one."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def metropolis(state: State, previous: Tensor, log_ratio: Tensor, potential: Tensor, noise: Noise) -> None:
    r"""Accept each chain's proposal with probability ``min(1, exp(log_ratio))``, or put it back; count in ``accepted``.

    Args:
        state: ``position`` holds the proposals, ``accepted`` how many each chain has accepted ``[chain]``.
        previous: Where the chains were ``[chain, coordinate]``.
        log_ratio: Logarithm of the acceptance ratio ``[chain]``; NaN rejects.
        potential: Of the proposals ``[chain]``; one that is not finite is rejected.
        noise: Random numbers of each chain.
    """
    w: Tensor = state["position"]
    accept = (noise.uniforms().log() < log_ratio) & potential.isfinite()
    w.copy_(torch.where(accept[:, None], w, previous))
    state["accepted"] += accept
