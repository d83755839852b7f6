"""What users give, in words, and what functions of theirs take: for errors that say what to write."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache
from typing import Any

import numpy as np
from torch import Tensor, nn

HOW_TO_WRITE_A_LOSS = """write one of:
    def loss_fn(module, batch):            # and pass loss_fn=loss_fn
        x, y = batch
        return torch.nn.functional.cross_entropy(module(x), y, reduction="none")   # one loss per sample
or the same as a method of the module:
    def per_sample_loss(self, batch): ..."""

_FRAMEWORKS = {"lightning_slt", "lightning", "pytorch_lightning", "lightning_fabric", "torch", "contextlib"}
"""Packages whose lines say nothing to a user about where a warning comes from."""

_TARGETS = ("target", "targets", "label", "labels", "y_true")


def warn_user(message: str) -> None:
    """Warn with the line of the user's own code that led here, such as ``trainer.fit(…)``, rather than one of ours.

    How many frames lie between depends on the hook, so that ``stacklevel=`` cannot say it.
    """
    here = frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _FRAMEWORKS:
        frame = frame.f_back
    place = frame or here
    assert place is not None
    warnings.warn_explicit(message, UserWarning, place.f_code.co_filename, place.f_lineno)


def describe(value: Any) -> str:
    """A value in a few words, with the shapes or keys that tell what it is.

    >>> import torch
    >>> describe(torch.zeros(8, 3)), describe({"x": 1}), describe((1, 2))
    ('a tensor of shape (8, 3)', 'a dict with the keys x', 'a tuple of 2')
    """
    if is_array(value):
        return f"{'a tensor' if isinstance(value, Tensor) else 'an array'} of shape {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} with the keys {', '.join(map(str, value))}"
    if isinstance(value, str):
        return f"the string {value!r}"
    if isinstance(value, list | tuple):
        if value and all(map(is_array, value)):
            return f"a {kind} of tensors of shapes {', '.join(str(tuple(part.shape)) for part in value[:3])}"
        return f"a {kind} of {len(value)}"
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def is_array(value: Any) -> bool:
    """Whether something is a tensor or an array of numpy's."""
    return isinstance(value, Tensor | np.ndarray)


def make_plain(settings: Any) -> None:
    """Put python's numbers in the place of numpy's in a frozen dataclass: JSON and checkpoints hold no others."""
    for field in fields(settings):
        value = getattr(settings, field.name)
        if isinstance(value, np.generic):
            object.__setattr__(settings, field.name, value.item())


def check_module(module: Any) -> None:
    """Refuse what is no network.

    Raises:
        TypeError: If it is something else, a class of networks say.
    """
    if isinstance(module, type):
        raise TypeError(
            f"module must be a torch.nn.Module, got the class {module.__name__}; write {module.__name__}(…)"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {describe(module)}; write estimate(module, data, …)")


def check_loss_fn(loss_fn: Any) -> None:
    """Refuse what cannot be called with a module and a batch.

    Raises:
        TypeError: If it cannot; the message shows the lines to write.
    """
    if not callable(loss_fn) or isinstance(loss_fn, type):
        given = f"the class {loss_fn.__name__}" if isinstance(loss_fn, type) else type(loss_fn).__name__
        raise TypeError(f"loss_fn must be callable with (module, batch), got {given}; {ready_made()}")
    function = loss_fn.forward if isinstance(loss_fn, nn.Module) else loss_fn
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins without a signature
        return
    names = ", ".join(signature.parameters)
    try:
        taken = tuple(signature.bind("module", "batch").arguments)
    except TypeError:
        raise TypeError(f"loss_fn takes ({names}), expected (module, batch); {HOW_TO_WRITE_A_LOSS}") from None
    if taken[-1] in _TARGETS:
        raise TypeError(
            f"loss_fn takes ({', '.join(taken)}), a prediction and its target, expected (module, batch); "
            + ready_made()
        )


def ready_made() -> str:
    """Losses that need not be written, and how to write one."""
    return (
        "for batches (x, y) write loss_fn=slt.losses.classification (cross-entropy) or slt.losses.regression (squared "
        f"error), for others {HOW_TO_WRITE_A_LOSS}"
    )


@cache
def accepts(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument of this name; signatures are slow to read."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


@cache
def batch_index(step: Callable[..., Any], *, bound: bool) -> tuple[tuple[int, ...], dict[str, int]]:
    """What a ``training_step`` takes besides the batch, as Lightning would pass it; signatures are slow to read.

    Raises:
        TypeError: If it takes an iterator.
    """
    parameters = inspect.signature(step).parameters
    if "dataloader_iter" in parameters:
        raise TypeError(f"training_step takes dataloader_iter, so it has no loss of one batch; {HOW_TO_WRITE_A_LOSS}")
    kinds = [p.kind for p in parameters.values()]
    places = sum(k in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD) for k in kinds)
    if places - bound > 1 or inspect.Parameter.VAR_POSITIONAL in kinds:
        return (0,), {}
    return (), {"batch_idx": 0} if "batch_idx" in parameters else {}
