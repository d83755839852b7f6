r"""A set of weights, and its algebra.

A weight-refined LLC (arXiv:2410.02984) samples one component ``C`` with everything else frozen. A component names
parameters, and optionally the elements of a parameter that belong to it. Parameters outside it have no chain copies,
no gradient and no noise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Component:
    r"""A set of weights that moves.

    Components of one module combine as sets of elements: ``a | b``, ``a & b``, ``a - b`` and ``a.complement(module)``.

    Args:
        parameters: Names of the parameters, as in ``module.named_parameters()``.
        masks: For a parameter that belongs only in part: a boolean tensor of its shape, true where it moves.

    Raises:
        ValueError: If no parameter is named, or a mask belongs to none of them.
        TypeError: If a mask is not boolean.

    >>> first, both = Component(("0.weight",)), Component(("0.weight", "0.bias"))
    >>> (both - first).parameters
    ('0.bias',)
    >>> both.complement(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))).parameters
    ('1.weight', '1.bias')
    """

    parameters: tuple[str, ...]
    masks: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the names against the masks."""
        given: object = self.parameters
        if isinstance(given, str):
            raise TypeError(f"parameters must be a tuple of names, got a string; write Component(({given!r},))")
        object.__setattr__(self, "parameters", tuple(self.parameters))
        if not self.parameters:
            raise ValueError("a Component needs at least one parameter name; write Component(('layer.weight',))")
        for name, mask in self.masks.items():
            if name not in self.parameters:
                raise ValueError(f"mask for {name!r}, which is not among the component's parameters {self.parameters}")
            if mask.dtype != torch.bool:
                raise TypeError(f"mask of {name!r} must be a boolean tensor, got {mask.dtype}; write mask.bool()")

    def __or__(self, other: Component) -> Component:
        """The elements of either."""
        names = dict.fromkeys((*self.parameters, *other.parameters))
        return _component({name: _either(self._part(name), other._part(name)) for name in names}, "union")

    def __and__(self, other: Component) -> Component:
        """The elements of both.

        Raises:
            ValueError: If there are none.
        """
        return _component(
            {name: _both(self._part(name), other._part(name)) for name in self.parameters}, "intersection"
        )

    def __sub__(self, other: Component) -> Component:
        """The elements of this one that are not the other's.

        Raises:
            ValueError: If there are none.
        """
        parts = {name: _both(self._part(name), _outside(other._part(name))) for name in self.parameters}
        return _component(parts, "difference")

    def complement(self, module: nn.Module) -> Component:
        """All elements of the module's parameters that require gradients, but for this component's.

        Args:
            module: The network. A tied parameter may be named by any of its names.

        Raises:
            ValueError: If none is left, or a name is not the module's.
        """
        first = {parameter: name for name, parameter in module.named_parameters()}
        every = dict(module.named_parameters(remove_duplicate=False))
        if unknown := [name for name in self.parameters if name not in every]:
            raise ValueError(f"no parameter of the module is called {unknown[0]!r}, so it has no complement there")
        canonical: dict[str, Part] = {}
        for name in self.parameters:
            key = first[every[name]]
            canonical[key] = _either(canonical.get(key, False), self._part(name))
        trainable = Component(tuple(name for name, p in module.named_parameters() if p.requires_grad))
        return trainable - _component(canonical, "component")

    def _part(self, name: str) -> Part:
        return self.masks.get(name, True) if name in self.parameters else False


Part = Tensor | bool
"""What of a parameter belongs: all of it, nothing, or where a mask is true."""


def _either(a: Part, b: Part) -> Part:
    if isinstance(a, bool):
        return a or b
    return (b or a) if isinstance(b, bool) else _combined(torch.logical_or, a, b)


def _both(a: Part, b: Part) -> Part:
    if isinstance(a, bool):
        return a and b
    return (b and a) if isinstance(b, bool) else _combined(torch.logical_and, a, b)


def _outside(part: Part) -> Part:
    return not part if isinstance(part, bool) else ~part


def _combined(rule: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    if a.shape != b.shape:
        raise ValueError(f"two masks of one parameter have shapes {tuple(a.shape)} and {tuple(b.shape)}")
    return rule(a, b.to(a.device))


def _component(parts: Mapping[str, Part], operation: str) -> Component:
    """The component of these parts, without empty masks, and without masks that are true everywhere."""
    masks = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    whole = [name for name, part in parts.items() if part is True or (name in masks and masks[name].all())]
    some = {name: mask for name, mask in masks.items() if name not in whole and mask.any()}
    names = tuple(name for name in parts if name in whole or name in some)
    if not names:
        raise ValueError(f"the {operation} of these components holds no weight")
    return Component(names, some)
