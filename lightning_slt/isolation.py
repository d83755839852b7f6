r"""``isolated(module)``: run user code on a live module and leave no trace.

A reading happens in the middle of training. Whatever the user's loss does meanwhile (draw random numbers, update
buffers or metrics, log, append to a list) must not reach the training run: weights, buffers, optimizer state, random
number generators and logged values stay bit-identical to a run without readings.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_slt.memory import remembered
from lightning_slt.offload import on_host
from lightning_slt.sharding import preserved_shards

_MUTED_METHODS = ("log", "log_dict", "print", "toggle_optimizer", "untoggle_optimizer")


@contextmanager
def isolated(
    module: nn.Module, *, seed: int, also: Iterable[Any] = (), unneeded: Iterable[Tensor] = ()
) -> Iterator[None]:
    """Put a module in eval mode, mute it, seed all generators, and restore everything in the end.

    Restored even after an exception: generators of python, numpy, torch and every accelerator; the training flag,
    ``requires_grad`` and ``p.grad`` of each part; parameters by reference, buffers and all attributes with their
    content (see :mod:`lightning_slt.memory`), and the shards of a sharded module. Inside, ``log``, ``log_dict``,
    ``print`` and the Trainer's loggers do nothing, as do ``forward``, ``update`` and ``compute`` of torchmetrics (they
    return NaN, so that a metric that enters the loss is noticed), and compiled functions run eagerly.

    Args:
        module: The network; a LightningModule or any other.
        seed: Seeds the global generators inside, so that augmentations are the same at every reading.
        also: Other objects that user code may change meanwhile, such as a loss or a collate function.
        unneeded: Tensors whose content waits in the host's memory meanwhile.

    >>> net = nn.Dropout(0.5)
    >>> state = torch.random.get_rng_state()
    >>> with isolated(net, seed=0):
    ...     assert not net.training and torch.rand(1) >= 0
    >>> net.training, torch.equal(state, torch.random.get_rng_state())
    (True, True)
    """
    with ExitStack() as stack:
        stack.enter_context(_preserved_generators())
        stack.enter_context(preserved_shards(module))  # first: parameters are the shards from here on
        stack.enter_context(_preserved_parameters(module))
        stack.enter_context(remembered([module, *also], known=module.parameters()))
        stack.enter_context(on_host(unneeded))  # after what is copied, some of which may lie in them
        stack.enter_context(_eager())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        seed_everything(seed)
        module.eval()
        for part in module.modules():
            stack.enter_context(_silent_trainer(part))
            _mute(part)
        yield


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch; only ever called inside :func:`isolated`.

    Not ``torch.manual_seed``, which would also leave a seed for accelerators that are first used later.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def _preserved_generators() -> Iterator[None]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
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
def _preserved_parameters(module: nn.Module) -> Iterator[None]:
    """Without gradients inside: a backward pass of the user's own must not add to those of training."""
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.grad = None
        yield
    finally:
        for parameter, requires_grad, grad in before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


@contextmanager
def _silent_trainer(part: nn.Module) -> Iterator[None]:
    """The Trainer's own attributes as they were (``should_stop``, say), and loggers that do nothing."""
    trainer = part.__dict__.get("_trainer")
    attributes = getattr(trainer, "__dict__", {})
    if not isinstance(attributes.get("_loggers"), list):
        yield
        return
    before = dict(attributes)
    attributes["_loggers"] = [_Silence() for _ in before["_loggers"]]
    try:
        yield
    finally:
        attributes.clear()
        attributes.update(before)


class _Silence:
    """Whatever is asked of it, there is nothing."""

    def __getattr__(self, name: str) -> _Silence:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        return None

    def __getitem__(self, key: Any) -> _Silence:
        return self


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
