r"""The local posterior around a snapshot of the weights (arXiv:2308.12108, eq. 13).

.. math:: p(w_C) \propto \exp\!\big( -n\beta\, L_n(w_C) - \tfrac{\gamma}{2} \lVert w_C - w^*_C \rVert^2 \big)

``w*`` is the anchor, ``C`` the component that moves; everything else stays at the anchor. γ is not multiplied by β.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.precision import Precision
from lightning_slt.sharding import WHOLE, Shards
from lightning_slt.types import FunctionalLoss, Params, Product, is_amount

ALIGNMENT = 64
"""Bytes; what libraries of linear algebra ask for, and what torch's own storages begin at."""


class Leaf(NamedTuple):
    """Where one parameter lies in a row of free coordinates."""

    name: str
    shape: torch.Size
    start: int
    stop: int
    moving: Tensor | None
    """Flat indices of the elements that move, or None where all of them do."""


class Part(NamedTuple):
    """Gradient of some chains with respect to one leaf ``[chain, *shape]``."""

    chains: slice
    leaf: Leaf
    values: Tensor | Product


@dataclass(frozen=True)
class Gradient:
    """Gradient of each chain's loss, leaf by leaf as the backward pass leaves it.

    Laying it out in rows costs as much as a sampler's whole step, so that only those who need rows ask for them.

    Attributes:
        parts: What there is; a leaf that the loss does not use is left out, and its gradient is zero.
        like: Free coordinates that it belongs to ``[chain, coordinate]``.
    """

    parts: tuple[Part, ...]
    like: Tensor

    def add_to(self, rows: Tensor, *, scale: float) -> None:
        """``rows += scale · gradient`` in place; rows are ``[chain, coordinate]``."""
        for chains, leaf, values in self.parts:
            target = rows[chains, leaf.start : leaf.stop]
            if leaf.moving is None and isinstance(values, Product):
                values.add_to(target.view(len(target), *leaf.shape), scale=scale)
                continue
            dense = values.dense if isinstance(values, Product) else values
            if leaf.moving is None:
                target.view(dense.shape).add_(dense, alpha=scale)
            else:
                target.add_(dense.flatten(1)[:, leaf.moving], alpha=scale)

    def of(self, start: int, stop: int) -> Gradient:
        """The gradient of the chains from ``start`` up to ``stop``."""
        parts = []
        for chains, leaf, values in self.parts:
            first, last, _ = chains.indices(len(self.like))
            low, high = max(first, start), min(last, stop)
            if low < high:
                own = slice(low - first, high - first)
                kept = Product(values.left[own], values.right[own]) if isinstance(values, Product) else values[own]
                parts.append(Part(slice(low - start, high - start), leaf, kept))
        return Gradient(tuple(parts), self.like[start:stop])

    @property
    def rows(self) -> Tensor:
        """The gradient as rows ``[chain, coordinate]``."""
        rows = torch.zeros_like(self.like)
        self.add_to(rows, scale=1.0)
        return rows


@dataclass(frozen=True, kw_only=True)
class LocalPosterior:
    r"""Loss, anchor and the two constants that define ``p(w)``.

    Args:
        loss: ``loss(weights, batch)``: losses in nats, per sample or their mean. Weights that are not in ``anchor``
            are the loss's own affair; see :class:`lightning_slt.functional.ModuleLoss`.
        anchor: ``w*`` by parameter name: the parameters of the component, floating point.
        nbeta: Effective inverse temperature nβ ≥ 0; 0 is the control run without the loss.
        localization: Strength γ ≥ 0 of the pull towards the anchor.
        masks: For parameters that move only in part: boolean tensors of their shape.
        shards: How rows are spread over processes, where each holds only a part of the coordinates.
        precision: Of forward and backward passes; None for what the loss itself sets up.

    Raises:
        ValueError: If nβ or γ is negative or not finite, a mask does not fit its parameter, or nothing moves.

    >>> w = {"w": torch.zeros(3)}
    >>> p = LocalPosterior(loss=lambda w, b: (w["w"] ** 2).sum(), anchor=w, nbeta=10.0, localization=1.0)
    >>> p.dimension
    3
    """

    loss: FunctionalLoss
    anchor: Params
    nbeta: float
    localization: float
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    shards: Shards = WHOLE
    precision: Precision | None = None

    def __post_init__(self) -> None:
        """Check the constants and lay out the free coordinates."""
        for name, constant in (("nbeta", self.nbeta), ("localization", self.localization)):
            if not is_amount(constant):
                raise ValueError(f"{name} must be a finite number, zero or more, got {constant!r}")
        if not self.anchor:
            raise ValueError("the anchor holds no parameter, so there is nothing to sample")
        for name, mask in self.masks.items():
            _check_mask(name, mask, self.anchor)
        leaves, start = [], 0
        for name, value in self.anchor.items():
            whole = name not in self.masks
            index = None if whole else self.masks[name].to(value.device).flatten().nonzero()[:, 0]
            stop = start + (value.numel() if index is None else index.numel())
            leaves.append(Leaf(name, value.shape, start, stop, index))
            start = stop
        dimension = self.shards.count(start)
        if dimension == 0:
            raise ValueError("the component's masks select no element, so there is nothing to sample")
        row = torch.cat([_free(self.anchor[leaf.name].detach().reshape(1, -1), leaf) for leaf in leaves], 1)
        object.__setattr__(self, "_leaves", tuple(leaves))
        object.__setattr__(self, "_anchor_row", row)
        object.__setattr__(self, "_dimension", dimension)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """The parameters in the order in which they lie in a row."""
        leaves: tuple[Leaf, ...] = self._leaves  # type: ignore[attr-defined]
        return leaves

    @property
    def anchor_row(self) -> Tensor:
        """Free coordinates of the anchor ``[1, coordinate]``."""
        row: Tensor = self._anchor_row  # type: ignore[attr-defined]
        return row

    def anchor_rows(self, count: int) -> Tensor:
        """The anchor for each of some chains ``[chain, coordinate]``, in storage of their own.

        Every row begins at a multiple of :data:`ALIGNMENT` bytes: some processors round by where in memory a matrix
        begins, and a chain's bits must not depend on its place among others.
        """
        row = self.anchor_row
        unit = ALIGNMENT // row.element_size()
        width = -(-row.shape[1] // unit) * unit
        return row.new_empty(count, width)[:, : row.shape[1]].copy_(row)

    @property
    def dimension(self) -> int:
        """Number d of free coordinates, of all processes together."""
        return int(self._dimension)  # type: ignore[attr-defined]

    def potential(self, position: Tensor, loss: Tensor) -> Tensor:
        r"""``U(w) = nβ L(w) + (γ/2) ‖w − w*‖²``.

        Args:
            position: ``[chain, coordinate]``.
            loss: Mean loss of each chain there ``[chain]``, in nats.

        Returns:
            ``[chain]``, dimensionless.
        """
        square = self.shards.add((position - self.anchor_row).square_().sum(1))
        return self.nbeta * loss + self.localization / 2 * square

    def gradient(self, position: Tensor, loss_gradient: Gradient) -> Tensor:
        r"""``∇U(w) = nβ ∇L(w) + γ (w − w*)``, ``[chain, coordinate]``."""
        force = (position - self.anchor_row).mul_(self.localization)
        loss_gradient.add_to(force, scale=self.nbeta)
        return force


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a sampler may know of the place where its chains are, all on one minibatch.

    Attributes:
        posterior: Gives nβ, γ and the anchor.
        loss: Mean loss of each chain ``[chain]``, in nats.
        gradient: Its gradient.
        again: Evaluates loss and gradient anew on the same minibatch, after the position was moved in place; for
            samplers that look before they leap.
    """

    posterior: LocalPosterior
    loss: Tensor
    gradient: Gradient
    again: Callable[[], tuple[Tensor, Gradient]]


def _check_mask(name: str, mask: Tensor, anchor: Params) -> None:
    if name not in anchor:
        raise ValueError(f"mask for {name!r}, which is not in the anchor; its parameters are {', '.join(anchor)}")
    if mask.dtype != torch.bool or mask.shape != anchor[name].shape:
        raise ValueError(
            f"mask of {name!r} must be a boolean tensor of shape {tuple(anchor[name].shape)}, "
            f"got {mask.dtype} of shape {tuple(mask.shape)}"
        )


def _free(rows: Tensor, leaf: Leaf) -> Tensor:
    return rows if leaf.moving is None else rows[:, leaf.moving]
