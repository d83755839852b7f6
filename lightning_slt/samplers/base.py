r"""What every sampler is: a frozen description with ``init`` and ``step``.

All work on rows of free coordinates ``[chain, coordinate]``. A restriction to a component needs nothing here: rows
hold only what moves. All use the same convention, the one of arXiv:2308.12108: drift ε/2, noise variance ε.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

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
class Sampler(ABC):
    r"""Base of all samplers.

    Args:
        step_size: ε ≥ 0; 0 stands still.
        temperature: Scales the noise variance; 0 is gradient flow, for tests.

    Raises:
        ValueError: If ε or the temperature is negative or not finite.
    """

    full_batch: ClassVar[bool] = False
    """Whether every step needs all samples, as an exact accept-or-reject step does."""

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no sampler can use."""
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

    def drift_to_noise(self, force: Tensor) -> Tensor | None:
        r"""``‖(ε/2)∇U‖ / ‖√ε ξ‖`` of a step at each chain ``[chain]``; ``force`` is ∇U ``[chain, coordinate]``.

        None for samplers whose step has no such parts.
        """
        scale = math.sqrt(self.step_size * max(self.temperature, 1e-30) * force.shape[1])
        ratio: Tensor = self.step_size / 2 * force.norm(dim=1) / max(scale, 1e-30)
        return ratio
