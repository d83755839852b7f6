r"""``isolated(module)``: run user code on a live module and leave no trace.

A reading happens in the middle of training. Whatever the user's loss does meanwhile (draw random numbers, update
buffers or metrics, log, append to a list) must not reach the training run: weights, buffers, optimizer state, random
number generators and logged values stay bit-identical to a run without readings.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

_MUTED_METHODS = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")
_COMPILED_METHODS = ("forward", "training_step", "per_sample_loss")


@contextmanager
def isolated(module: nn.Module, *, seed: int) -> Iterator[None]:
    """Put a module in eval mode, mute it, seed all generators, and restore everything in the end.

    Restored even after an exception: generators of python, numpy, torch and every accelerator; the training flag,
    ``requires_grad`` and ``p.grad`` of each part; parameters and buffers by reference; plain attributes, the content
    of lists, dicts, sets and deques among them. Inside, ``log``, ``log_dict`` and ``print`` do nothing, as do
    ``forward``, ``update`` and ``compute`` of torchmetrics (they return NaN, so that a metric that enters the loss
    is noticed), and compiled functions run eagerly.

    Args:
        module: The network; a LightningModule or any other.
        seed: Seeds the global generators inside, so that augmentations are the same at every reading.

    >>> net = nn.Dropout(0.5)
    >>> state = torch.random.get_rng_state()
    >>> with isolated(net, seed=0):
    ...     assert not net.training and torch.rand(1) >= 0
    >>> net.training, torch.equal(state, torch.random.get_rng_state())
    (True, True)
    """
    with ExitStack() as stack:
        stack.enter_context(_preserved_generators())
        stack.enter_context(_preserved_parts(module))
        stack.enter_context(_eager())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        seed_everything(seed)
        module.eval()
        for part in module.modules():
            _mute(part)
        yield


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch; only ever called inside :func:`isolated`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def _preserved_generators() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.random.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)


@contextmanager
def _preserved_parts(module: nn.Module) -> Iterator[None]:
    parts = list(module.modules())
    restore = [_snapshot(part) for part in parts]
    parameters = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        yield
    finally:
        for undo in restore:
            undo()
        for parameter, requires_grad, grad in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


def _snapshot(part: nn.Module) -> Callable[[], None]:
    """Remember one module's own dictionary; plain tensors are swapped for copies so that in-place code hits those."""
    attributes = dict(part.__dict__)
    contents = {k: copy.copy(v) for k, v in attributes.items() if type(v) in (list, dict, set, deque, _ORDERED)}
    for name, value in attributes.items():
        if isinstance(value, Tensor) and value.is_leaf:
            part.__dict__[name] = value.detach().clone().requires_grad_(value.requires_grad)

    def undo() -> None:
        part.__dict__.clear()
        part.__dict__.update(attributes)
        for name, content in contents.items():
            _refill(attributes[name], content)

    return undo


_ORDERED = type(nn.Module()._forward_hooks)


def _refill(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list | deque) else container.update(content)


def _mute(part: nn.Module) -> None:
    """Shadow methods on the instance; the snapshot takes the shadows away again."""
    if isinstance(part, Metric):
        for name in ("forward", "update", "compute"):
            part.__dict__[name] = _not_a_number
    elif isinstance(part, MetricCollection):
        for name in ("forward", "update", "compute"):
            part.__dict__[name] = partial(_no_numbers, tuple(str(key) for key, _ in part.items()))
    elif callable(getattr(type(part), "training_step", None)):
        for name in _MUTED_METHODS:
            if hasattr(type(part), name):
                part.__dict__[name] = _do_nothing
        for name in _COMPILED_METHODS:
            if hasattr(type(part), name):
                part.__dict__.pop(name, None)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _no_numbers(keys: tuple[str, ...], *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    return dict.fromkeys(keys, _not_a_number())


def _not_a_number(*args: Any, **kwargs: Any) -> Tensor:
    return torch.tensor(float("nan"))


@contextmanager
def _eager() -> Iterator[None]:
    """Compiled callables run eagerly: a compiled graph would go on with the weights that it was traced with."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # has no batching rule, and is taken where gradients are off
    try:
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="There is a performance drop because")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
