"""``remembered``: the content of objects of every kind is put back."""

from __future__ import annotations

import random
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from models import blobs, compare, copied
from torch import nn

from lightning_slt.isolation import isolated
from lightning_slt.memory import remembered


class Slotted:
    __slots__ = ("items", "missing")

    def __init__(self) -> None:
        self.items: Any = [1]


@dataclass
class Meter:
    total: float = 0.0
    history: Any = None


class Cautious(dict):  # type: ignore[type-arg]
    """A dictionary whose own methods refuse what is done with it."""

    def clear(self) -> None:
        raise RuntimeError("not like this")

    update = clear  # type: ignore[assignment]


def closure() -> Any:
    count, seen = 0, []

    def call() -> list[Any]:
        nonlocal count
        count += 1
        seen.append(count)
        return [count, list(seen)]

    return call


VALUES: dict[str, tuple[Any, Any]] = {
    "list": (lambda: [1, [2]], lambda v: v[1].append(3)),
    "list replaced": (lambda: [1, [2]], lambda v: v.__setitem__(1, 5)),
    "dict": (lambda: {"a": {"b": 1}}, lambda v: v["a"].pop("b")),
    "order of a dict": (lambda: {"a": 1, "b": 2}, lambda v: v.__setitem__("a", v.pop("a"))),
    "ordered dict": (lambda: OrderedDict(a=1, b=2), lambda v: v.move_to_end("a")),
    "default dict": (lambda: defaultdict(list, a=[1]), lambda v: (v["b"].append(1), v["a"].append(2))),
    "counter": (lambda: Counter("aab"), lambda v: v.update("b")),
    "cautious dict": (lambda: Cautious(a=1), lambda v: v.pop("a")),
    "set": (lambda: {1, 2}, lambda v: v.add(3)),
    "deque": (lambda: deque([1, 2, 3], maxlen=3), lambda v: v.append(4)),
    "tuple": (lambda: ([1], {"a": [2]}), lambda v: v[1]["a"].clear()),
    "tensor": (lambda: torch.zeros(3), lambda v: v.add_(1)),
    "part of a tensor": (lambda: [torch.zeros(3)], lambda v: v[0][1:].fill_(2)),
    "data of a tensor": (lambda: torch.zeros(3), lambda v: v.data.fill_(2)),
    "tensor by numpy": (lambda: torch.zeros(3), lambda v: v.numpy().fill(2)),
    "array": (lambda: np.arange(3.0), lambda v: v.fill(7)),
    "array of objects": (lambda: np.array([[1], None], dtype=object), lambda v: v[0].append(2)),
    "numpy generator": (lambda: np.random.default_rng(0), lambda v: v.normal()),
    "numpy state": (lambda: np.random.RandomState(0), lambda v: v.normal()),
    "numpy bits": (lambda: np.random.PCG64(0), lambda v: v.random_raw()),
    "python generator": (lambda: random.Random(0), lambda v: v.random()),
    "torch generator": (lambda: torch.Generator().manual_seed(0), lambda v: torch.rand(1, generator=v)),
    "namespace": (lambda: SimpleNamespace(a=[1]), lambda v: (v.a.append(2), setattr(v, "b", 1))),
    "arguments": (lambda: Namespace(a=1), lambda v: setattr(v, "a", 2)),
    "dataclass": (lambda: Meter(1.0, [1]), lambda v: (v.history.append(2), setattr(v, "total", 2.0))),
    "slots": (lambda: Slotted(), lambda v: (v.items.append(2), setattr(v, "missing", 1))),
    "bound method": (lambda: Meter(1.0, [1]).__eq__, lambda v: v.__self__.history.append(2)),
    "partial": (lambda: partial(print, [1], end=["x"]), lambda v: (v.args[0].append(2), v.keywords["end"].append(3))),
    "module in a list": (lambda: [nn.BatchNorm1d(2)], lambda v: v[0](torch.randn(4, 2))),
}


def look(value: Any) -> Any:
    """The whole content, to compare."""
    if isinstance(value, np.random.Generator):
        return look(value.bit_generator)
    if isinstance(value, np.random.RandomState):
        return value.get_state(legacy=False)
    if isinstance(value, np.random.BitGenerator):
        return copied(value.state)
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, torch.Generator):
        return value.get_state().clone()
    if isinstance(value, nn.Module):
        return copied(dict(value.state_dict()))
    if isinstance(value, partial):
        return look([value.args, value.keywords])
    if isinstance(value, Slotted):
        return look([value.items, hasattr(value, "missing")])
    if hasattr(value, "__self__") and callable(value):
        return look(value.__self__)
    if isinstance(value, np.ndarray):
        return look(value.tolist())
    if isinstance(value, SimpleNamespace | Namespace | Meter):
        return look(vars(value))
    if isinstance(value, dict):
        return {k: look(v) for k, v in value.items()}
    if isinstance(value, list | tuple | deque | set):
        return [look(v) for v in value]
    return copied(value)


@pytest.mark.parametrize("name", VALUES)
def test_content_is_put_back(name: str) -> None:
    make, change = VALUES[name]
    value = make()
    before, kind = look(value), type(value)
    holder = nn.Module()
    holder.value = value
    with isolated(holder, seed=0):
        change(holder.value)
        found: list[str] = []
        compare(look(value), before, "", found)
        assert found, "the change itself must show"
    found = []
    compare(look(value), before, "", found)
    assert found == []
    assert holder.value is value
    assert type(value) is kind


def test_closures_are_put_back() -> None:
    call = closure()
    call()
    with remembered([call]):
        assert call() == [2, [1, 2]]
    assert call() == [2, [1, 2]]


def test_identity_and_sharing_survive() -> None:
    shared = [1]
    holder = nn.Module()
    holder.a, holder.b, holder.loop = shared, {"x": shared}, []
    holder.loop.append(holder.loop)
    with isolated(holder, seed=0):
        holder.a = [9]
        holder.b["x"] = None
    assert holder.a is holder.b["x"] is shared
    assert holder.loop[0] is holder.loop


def test_what_is_left_alone() -> None:
    """Data sets are copied elsewhere, and read-only memory is never written."""
    data, frozen = blobs(), np.arange(3.0)
    frozen.setflags(write=False)
    data.calls = 0
    holder = nn.Module()
    holder.data, holder.frozen, holder.lines = data, frozen, iter([1, 2])
    with isolated(holder, seed=0):
        holder.data.calls += 1
        next(holder.lines)
    assert data.calls == 1
    assert next(holder.lines) == 2
