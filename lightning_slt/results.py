"""What estimators give beside the scalar :class:`lightning_slt.types.Estimate`: numbers to log and arrays to keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor

from lightning_slt.types import Health


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """Base of results with arrays: subclasses are frozen dataclasses of floats and tensors.

    Written with ``@dataclass(frozen=True, kw_only=True, repr=False)`` they show themselves in one line.

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

    def axes(self) -> dict[str, tuple[str, ...]]:
        """What the axes of the arrays are called, for the records and for xarray, of those arrays that have names.

        An axis ``x`` takes the whole numbers of an array ``x_indices`` for its coordinates, where there is one, or the
        words of a field ``xs``.
        """
        return {}

    def by_component(self) -> dict[str, dict[str, float]]:
        """Numbers of each component for the loggers, with ``ok``, where the result spans components."""
        return {}

    def __repr__(self) -> str:
        """Its kind, the shape and mean of its first array, its numbers and its health, in one line."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return _line(type(self).__name__, tensors, self.scalars(), self.health)


@dataclass(frozen=True, kw_only=True, repr=False)
class StoredResult(Result):
    """A result as it was recorded; its numbers and arrays are attributes, too: ``stored.covariance``.

    Attributes:
        kind: Name of the class that it was.
        numbers: Its scalars.
        tensors: Its arrays.
        words: Its names of rows and columns.
        dims: Names of the axes of its arrays.
    """

    kind: str
    numbers: Mapping[str, float] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    dims: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

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

    def axes(self) -> dict[str, tuple[str, ...]]:
        """The names of axes."""
        return dict(self.dims)

    def __repr__(self) -> str:
        """As of the result that it was."""
        return _line(f"{type(self).__name__} of {self.kind}", self.tensors, self.numbers, self.health)


def _line(kind: str, tensors: Mapping[str, Tensor], numbers: Mapping[str, float], health: Health) -> str:
    parts = [f"{name} {list(t.shape)} of mean {float(t.double().mean()):.3g}" for name, t in tensors.items()][:1]
    parts += [", ".join(f"{name} {value:.3g}" for name, value in numbers.items())] if numbers else []
    return f"{kind}({'; '.join([*parts, str(health)])})"
