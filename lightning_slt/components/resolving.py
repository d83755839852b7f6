"""What a user wrote as ``components``, as named components of one module."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Collection, Mapping

from torch import Tensor, nn

from lightning_slt.components.component import Component
from lightning_slt.components.heads import head_components, why_no_heads

FULL = "full"
"""Name of the component of all parameters that require gradients."""


def resolve_components(
    module: nn.Module, components: str | Mapping[str, Component] | Component | None
) -> dict[str, Component]:
    """Turn what a user wrote into named components of one module.

    Args:
        module: The network.
        components: ``None`` for all parameters that require gradients, under the name ``full``; ``"layers"`` for one
            component per sub-module that owns parameters; ``"heads"`` for one per attention head; a pattern of
            parameter names (``"encoder.*"``), which is also the component's name; a pattern of heads' names
            (``"blocks.0.h*"``) for one component per head; a ``Component``; or a mapping from names to components.

    Returns:
        Components by name, each checked against the module.

    Raises:
        ValueError: If nothing matches; the message lists the nearest names. If a lazy parameter has no shape yet.
        TypeError: If ``components`` is of another kind.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if lazy := [name for name, p in trainable.items() if isinstance(p, nn.UninitializedParameter)]:
        raise ValueError(f"{lazy[0]!r} has no shape yet: run one batch through the module before it is sampled")
    if not trainable:
        raise ValueError("no parameter of the module requires gradients, so there is nothing to sample")
    if components is None:
        return {FULL: Component(tuple(trainable))}
    if isinstance(components, Component):
        components = {"component": components}
    if isinstance(components, str):
        if components == "heads":
            return _heads(module)
        return _layers(trainable) if components == "layers" else _matching(components, module, trainable)
    if not isinstance(components, Mapping) or not all(isinstance(c, Component) for c in components.values()):
        raise TypeError(
            "components must be None, 'heads', 'layers', a pattern of names, a Component or {name: Component}; "
            f"got {components!r}"
        )
    if not components:
        raise ValueError("components is an empty mapping; write None for all weights")
    for component in components.values():
        _check(component, module, trainable)
    return dict(components)


def _layers(trainable: Mapping[str, Tensor]) -> dict[str, Component]:
    groups: dict[str, list[str]] = {}
    for name in trainable:
        groups.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {layer: Component(tuple(names)) for layer, names in groups.items()}


def _matching(pattern: str, module: nn.Module, trainable: Mapping[str, Tensor]) -> dict[str, Component]:
    if names := tuple(n for n in trainable if _matches(n, pattern)):
        return {pattern: Component(names)}
    heads = head_components(module)
    if some := {head: component for head, component in heads.items() if fnmatch.fnmatchcase(head, pattern)}:
        return some
    raise ValueError(f"no trainable parameter matches {pattern!r}; {_why_none(pattern, module, (*trainable, *heads))}")


def _heads(module: nn.Module) -> dict[str, Component]:
    if not (heads := head_components(module)):
        raise ValueError(f"components='heads': {why_no_heads(module)}")
    return heads


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def _check(component: Component, module: nn.Module, trainable: Mapping[str, Tensor]) -> None:
    for name in component.parameters:
        if name not in trainable:
            raise ValueError(f"no trainable parameter is called {name!r}; {_why_none(name, module, trainable)}")
        mask = component.masks.get(name)
        if mask is not None and mask.shape != trainable[name].shape:
            raise ValueError(
                f"mask of {name!r} has shape {tuple(mask.shape)}, the parameter {tuple(trainable[name].shape)}"
            )


def _why_none(pattern: str, module: nn.Module, known: Collection[str]) -> str:
    """The nearest names, or why a parameter that does match is not one of them: it is frozen, or tied to another."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if _matches(name, pattern):
            if not parameter.requires_grad:
                return f"{name!r} is frozen (requires_grad=False), and only weights that train are sampled"
            first = next(n for n, p in module.named_parameters() if p is parameter)
            return f"{name!r} is the same parameter as {first!r}; write that name"
    near = difflib.get_close_matches(pattern, known, n=5, cutoff=0.3) or list(known)[:5]
    return f"the nearest of its {len(known)} names: {', '.join(near)}"
