"""What estimators give beside the scalar :class:`lightning_slt.types.Estimate`: numbers to log and arrays to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from lightning_slt.types import Health


@dataclass(frozen=True, kw_only=True)
class Result:
    """Base of results with arrays: subclasses are frozen dataclasses of floats and tensors.

    Attributes:
        health: What the checks said.
        settings: Sampler, constants and counts that it was made with.
    """

    health: Health
    settings: Any = field(default=None, repr=False)

    def scalars(self) -> dict[str, float]:
        """Numbers for the loggers: every field that holds one."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: float(v) for name, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}

    def arrays(self) -> dict[str, Tensor]:
        """Arrays for the records: every field that holds a tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, Tensor)}

    def names(self) -> dict[str, tuple[str, ...]]:
        """What rows and columns of the arrays are called, for the records: every field that holds a tuple of words."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        words = {name: v for name, v in values.items() if isinstance(v, tuple) and all(isinstance(w, str) for w in v)}
        return {name: v for name, v in words.items() if v}

    def by_component(self) -> dict[str, dict[str, float]]:
        """Numbers of each component for the loggers, with ``ok``, where the result spans components."""
        return {}


@dataclass(frozen=True, kw_only=True)
class StoredResult(Result):
    """A result as it was recorded; its numbers and arrays are attributes, too: ``stored.covariance``.

    Attributes:
        kind: Name of the class that it was.
        numbers: Its scalars.
        tensors: Its arrays.
        words: Its names of rows and columns.
    """

    kind: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        """A number, an array or names of that name."""
        for values in (self.__dict__.get(kind, {}) for kind in ("numbers", "tensors", "words")):
            if name in values:
                return values[name]
        raise AttributeError(f"a stored {self.__dict__.get('kind', 'result')} has no {name!r}")

    def scalars(self) -> dict[str, float]:
        """The numbers."""
        return dict(self.numbers)

    def arrays(self) -> dict[str, Tensor]:
        """The arrays."""
        return dict(self.tensors)

    def names(self) -> dict[str, tuple[str, ...]]:
        """The names."""
        return dict(self.words)
