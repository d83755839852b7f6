"""Which chains are run for whom: sets of chains, each of one component and on one set of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_slt.components import FULL, Component, resolve_components
from lightning_slt.estimators.base import AtAnchor, Estimator
from lightning_slt.probes import distinct

SPANNING = "all"
"""In the place of a component's name, for results that span all of them."""


@dataclass(frozen=True, kw_only=True)
class ChainSet:
    """Chains that are run once.

    Attributes:
        component: What moves.
        source: Name of the samples that minibatches come from; None for the reading's own.
        estimators: Whom the draws are for.
    """

    component: str
    source: str | None
    estimators: tuple[Estimator, ...]

    @property
    def passes(self) -> int:
        """How often the chains run: twice where an estimator asks for the control run at nβ = 0."""
        return 2 if any(e.control for e in self.estimators) else 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a reading has to run.

    Attributes:
        estimators: For whom.
        components: Everything that moves for any of them, by name.
        columns: The components that each estimator asked for, by its name.
        sets: Sets of chains.
        sources: Samples of estimators that bring their own, by name.
    """

    estimators: tuple[Estimator, ...]
    components: Mapping[str, Component]
    columns: Mapping[str, tuple[str, ...]]
    sets: tuple[ChainSet, ...]
    sources: Mapping[str, Any]

    @property
    def at_anchor(self) -> tuple[AtAnchor, ...]:
        """Those that need no chains."""
        return tuple(e for e in self.estimators if isinstance(e, AtAnchor))

    @property
    def passes(self) -> int:
        """How often a set of chains runs, control runs included."""
        return sum(chains.passes for chains in self.sets)


def divide(
    module: nn.Module,
    components: str | Mapping[str, Component] | Component | None,
    estimators: Sequence[Estimator],
) -> Work:
    """Find out which chains serve all estimators, each run once.

    Args:
        module: The network.
        components: What moves for estimators that do not say it themselves.
        estimators: Checked ones; without any the components are resolved and no chains are run, nor for those that look
            at the anchor alone.

    Raises:
        ValueError: If two different components share a name, or nothing matches.
    """
    own = resolve_components(module, components)
    everything: dict[str, Component] = {} if estimators else dict(own)
    columns: dict[str, tuple[str, ...]] = {}
    for estimator in estimators:
        if isinstance(estimator, AtAnchor):
            columns[estimator.name] = (FULL,)
            continue
        asked = own if estimator.moves is None else resolve_components(module, estimator.moves)
        columns[estimator.name] = tuple(asked)
        _add(everything, asked)
        if estimator.whole:
            _add(everything, resolve_components(module, None))
    sources: dict[str | None, Any] = {None: None}
    for estimator in estimators:
        if estimator.source is not None:
            sources.setdefault(estimator.source.name, estimator.source.data)
    sets = [
        ChainSet(component=name, source=source, estimators=wanting)
        for name in everything
        for source in sources
        if (wanting := tuple(e for e in estimators if _wants(e, name, source, columns[e.name])))
    ]
    return Work(
        estimators=tuple(estimators),
        components=everything,
        columns=columns,
        sets=tuple(sets),
        sources={name: data for name, data in sources.items() if name is not None},
    )


def _add(everything: dict[str, Component], more: Mapping[str, Component]) -> None:
    for name, component in more.items():
        if not _same(everything.setdefault(name, component), component):
            raise ValueError(
                f"two different components are called {name!r}"
                + (", which stands for all weights" if name == FULL else "")
                + "; give one of them another name: components={'other': Component(…)}"
            )


def _same(a: Component, b: Component) -> bool:
    masks = a.masks.keys() == b.masks.keys() and all(torch.equal(a.masks[name], b.masks[name]) for name in a.masks)
    return masks and set(a.parameters) == set(b.parameters)


def _wants(estimator: Estimator, component: str, source: str | None, columns: Sequence[str]) -> bool:
    if isinstance(estimator, AtAnchor):
        return False
    mine = None if estimator.source is None else estimator.source.name
    return mine == source and (component in columns or (estimator.whole and component == FULL))


def result_keys(work: Work) -> dict[str, dict[str, tuple[str, ...]]]:
    """Names of the scalars of every result: ``{component: {key: fields}}``."""
    keys: dict[str, dict[str, tuple[str, ...]]] = {}
    for estimator in work.estimators:
        fields = estimator.component_fields if estimator.spanning else estimator.fields
        for component in work.columns[estimator.name] if fields else ():
            keys.setdefault(component, {})[estimator.name] = fields
    for estimator in (e for e in work.estimators if e.spanning):
        keys.setdefault(SPANNING, {})[estimator.name] = estimator.fields
    return keys


def check_estimators(estimators: Sequence[Estimator]) -> tuple[Estimator, ...]:
    """Refuse what is no list of estimators with different names.

    Raises:
        TypeError: If it holds something else.
        ValueError: If it is empty or a name repeats.
    """
    if isinstance(estimators, Estimator) or not isinstance(estimators, Sequence):
        raise TypeError(f"estimators must be a list such as [LLC()], got {estimators!r}")
    if not estimators:
        raise ValueError("estimators is empty; write [LLC()]")
    for estimator in estimators:
        if not isinstance(estimator, Estimator):
            raise TypeError(f"estimators must hold estimators such as LLC(), got {estimator!r}")
    names = [e.name for e in estimators]
    if len(set(names)) != len(names):
        raise ValueError(f"two estimators share a name in {names}; give each its own: LLC(name='other')")
    distinct([probe for e in estimators for probe in e.probes])
    named: dict[str, Any] = {}
    for source in (e.source for e in estimators if e.source is not None):
        if named.setdefault(source.name, source.data) is not source.data:
            raise ValueError(f"two different data sets are called {source.name!r}; give one of them another name")
    return tuple(estimators)
