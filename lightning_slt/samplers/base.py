r"""What every sampler is: a frozen description with ``init`` and ``step``.

All work on rows of free coordinates ``[chain, coordinate]``. A restriction to a component needs nothing here: rows
hold only what moves. All use the same convention, the one of arXiv:2308.12108: drift ε/2, noise variance ε.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_slt.posterior import Gradient, LocalPosterior
from lightning_slt.types import is_amount

State = dict[str, Any]
"""What a sampler carries from step to step; ``state["position"]`` is moved in place."""


@dataclass(frozen=True, kw_only=True)
class Sampler(ABC):
    r"""Base of all samplers.

    Args:
        step_size: ε ≥ 0; 0 stands still.
        temperature: Scales the noise variance; 0 is gradient flow, for tests.

    Raises:
        ValueError: If ε or the temperature is negative or not finite.
    """

    step_size: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what no sampler can use."""
        for name in ("step_size", "temperature"):
            value = getattr(self, name)
            if not is_amount(value):
                raise ValueError(f"{type(self).__name__}.{name} must be a finite number, zero or more, got {value!r}")

    def init(self, position: Tensor, noise: Callable[[], Tensor]) -> State:
        """State at the first position; samplers with more than a position extend it.

        Args:
            position: ``[chain, coordinate]``, the storage that the chains move in.
            noise: Gives a row of standard normals for every chain ``[chain, coordinate]``, valid until the next call.
        """
        return {"position": position}

    @abstractmethod
    def step(self, state: State, gradient: Gradient, noise: Callable[[], Tensor], posterior: LocalPosterior) -> State:
        """Advance every chain by one step, in place.

        Args:
            state: From :meth:`init` or the last step.
            gradient: Minibatch gradient of the mean loss at the position; ``gradient.rows`` is ``[chain, coordinate]``.
            noise: As for :meth:`init`.
            posterior: Gives nβ, γ and the anchor.

        Returns:
            The state after the step.
        """

    def drift_to_noise(self, force: Tensor) -> Tensor:
        r"""``‖(ε/2)∇U‖ / ‖√ε ξ‖`` of a step at each chain ``[chain]``; ``force`` is ∇U ``[chain, coordinate]``."""
        scale = math.sqrt(self.step_size * max(self.temperature, 1e-30) * force.shape[1])
        ratio: Tensor = self.step_size / 2 * force.norm(dim=1) / max(scale, 1e-30)
        return ratio
