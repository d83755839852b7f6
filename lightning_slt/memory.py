r"""``remembered(objects)``: whatever user code does to these objects meanwhile, they are as they were afterwards.

Follows references from the given objects: containers of any nesting, arrays, tensors, random generators, helper
objects with attributes, closures. Objects stay the same objects; their content is put back. What cannot be put back
(iterators, files) and what a loss does not touch (data sets, Trainers and other machinery of libraries) is left out.
"""

from __future__ import annotations

import functools
import random
import sys
import types
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

Undo = Callable[[], None]

_ATOMS = frozenset({type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size})
_MACHINERY = (
    *("torch", "numpy", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics"),
    *("tensorboard", "rich", "tqdm"),
)
_LIBRARIES = frozenset({*_MACHINERY, *sys.stdlib_module_names})
_PLAIN = (types.SimpleNamespace, Namespace, nn.Module)


@contextmanager
def remembered(roots: Iterable[Any], *, known: Iterable[Any] = ()) -> Iterator[None]:
    """Put the content of everything that can be reached from ``roots`` back in the end, also after an exception.

    Args:
        roots: Objects to start from.
        known: Objects to leave alone, with what can be reached only through them.

    >>> books = {"losses": [1.0], "rng": random.Random(0)}
    >>> with remembered([books]):
    ...     books["losses"].append(books["rng"].random())
    >>> books["losses"], books["rng"].random() == random.Random(0).random()
    ([1.0], True)
    """
    undo: list[Undo] = []
    seen = {id(value): value for value in known}
    waiting = list(roots)
    while waiting:
        value = waiting.pop()
        if type(value) in _ATOMS or id(value) in seen:
            continue
        seen[id(value)] = value  # also keeps it alive, so that no other object takes over its id
        step, inside = _remember(value)
        undo.extend([step] if step else [])
        waiting.extend(inside)
    try:
        yield
    finally:
        for step in undo:
            step()


def _remember(value: Any) -> tuple[Undo | None, Iterable[Any]]:
    """How to put one object back, and what to look at next."""
    if isinstance(value, Tensor):
        return _tensor(value), ()
    if isinstance(value, np.ndarray):
        return _array(value), value.flat if value.dtype.hasobject else ()
    for kind, remember in _GENERATORS.items():
        if isinstance(value, kind):
            return remember(value), ()
    if isinstance(value, tuple | frozenset):
        return None, value
    if isinstance(value, types.MethodType):
        return None, (value.__self__, value.__func__)
    if isinstance(value, functools.partial):
        return None, (value.func, value.args, value.keywords)
    if isinstance(value, types.FunctionType):
        return None, value.__closure__ or ()
    if isinstance(value, types.CellType):
        return _cell(value)
    content, inside = _container(value)
    attributes, more = _attributes(value)

    def put_back() -> None:
        for step in (content, attributes):
            if step is not None:
                step()

    return put_back if content or attributes else None, [*inside, *more]


def _container(value: Any) -> tuple[Undo | None, Iterable[Any]]:
    """The base class's own methods: a subclass may give ``update`` or ``clear`` another meaning."""
    for kind in (list, deque):
        if isinstance(value, kind):
            entries = list(value)
            return functools.partial(_refill, value, entries, kind.clear, kind.extend), entries
    if isinstance(value, set):
        members = set(value)
        return functools.partial(_refill, value, members, set.clear, set.update), members
    if isinstance(value, dict):
        ordered = OrderedDict if isinstance(value, OrderedDict) else dict
        pairs = list(value.items())
        return functools.partial(_refill_pairs, value, pairs, ordered), [v for _, v in pairs]
    return None, ()


def _refill(value: Any, entries: Any, clear: Callable[[Any], Any], extend: Callable[[Any, Any], Any]) -> None:
    if len(value) != len(entries) or any(a is not b for a, b in zip(value, entries, strict=True)):
        clear(value)
        extend(value, entries)


def _refill_pairs(value: Any, pairs: list[tuple[Any, Any]], kind: type[dict[Any, Any]]) -> None:
    now = list(kind.items(value))
    if len(now) != len(pairs) or any(a[0] is not b[0] or a[1] is not b[1] for a, b in zip(now, pairs, strict=True)):
        kind.clear(value)
        kind.update(value, pairs)


def _attributes(value: Any) -> tuple[Undo | None, Iterable[Any]]:
    """Attributes of helper objects that users write; those of libraries are left alone."""
    kind = type(value)
    plain = isinstance(value, _PLAIN) or kind.__module__.partition(".")[0] not in _LIBRARIES
    if not plain or isinstance(value, type | types.ModuleType | Dataset):
        return None, ()
    names = [name for c in kind.__mro__ for name in _slots(c)]
    slots = {name: getattr(value, name) for name in names if hasattr(value, name)}
    content = getattr(value, "__dict__", None)
    attributes = dict(content) if isinstance(content, dict) else {}

    def put_back() -> None:
        for name in names:
            if name in slots:
                object.__setattr__(value, name, slots[name])
            elif hasattr(value, name):
                object.__delattr__(value, name)
        if isinstance(content, dict):
            _refill_pairs(content, list(attributes.items()), dict)

    return put_back, [*slots.values(), *attributes.values()]


def _slots(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    return [s for s in ((slots,) if isinstance(slots, str) else slots) if s not in ("__dict__", "__weakref__")]


def _tensor(value: Tensor) -> Undo | None:
    if value.is_inference() or value.is_meta or is_lazy(value):
        return None
    version, copied, grad = value._version, value.detach().clone(), value.grad if value.is_leaf else None
    comparable = type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided

    def put_back() -> None:
        # batch normalization moves its buffers without a new version; untouched memory may be read-only
        if value._version != version or (comparable and not torch.equal(value, copied)):
            value.data.copy_(copied)
        if value.is_leaf and value.grad is not grad:
            value.grad = grad

    return put_back


def _array(value: np.ndarray[Any, Any]) -> Undo | None:
    if not value.flags.writeable:
        return None
    copied = value.copy()

    def put_back() -> None:
        value[...] = copied

    return put_back


def _cell(cell: types.CellType) -> tuple[Undo | None, Iterable[Any]]:
    try:
        content = cell.cell_contents
    except ValueError:  # an empty cell
        return None, ()
    return functools.partial(setattr, cell, "cell_contents", content), (content,)


_GENERATORS: dict[type, Callable[[Any], Undo | None]] = {
    random.SystemRandom: lambda value: None,
    random.Random: lambda value: functools.partial(value.setstate, value.getstate()),
    torch.Generator: lambda value: functools.partial(value.set_state, value.get_state()),
    np.random.RandomState: lambda value: functools.partial(value.set_state, value.get_state()),
    np.random.Generator: lambda value: functools.partial(
        setattr, value.bit_generator, "state", value.bit_generator.state
    ),
    np.random.BitGenerator: lambda value: functools.partial(setattr, value, "state", value.state),
}
