"""What a monitor refuses when it is made or set up."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from numbers import Integral
from typing import ParamSpec

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_slt import plan
from lightning_slt.estimators.base import AtAnchor, Estimator
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.sharding import at_rest, shards_of

P = ParamSpec("P")

_HIDE_WEIGHTS = ("FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy", "MegatronStrategy")
"""Strategies, by name, that keep the weights where no chain can move them: in flat buffers, or engines of their own."""


def explained(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that answers a keyword which it does not take with the nearest ones that it does.

    Args:
        init: The ``__init__`` of a monitor.
    """
    taken = [name for name in inspect.signature(init).parameters if name != "self"]

    @wraps(init)
    def checked(*args: P.args, **keywords: P.kwargs) -> None:
        unknown = [name for name in keywords if name not in taken]
        if unknown:
            near = difflib.get_close_matches(unknown[0], taken, n=3)
            hint = f"did you mean {', '.join(f'{name}=' for name in near)}" if near else f"it takes {', '.join(taken)}"
            raise TypeError(f"{type(args[0]).__name__} takes no {unknown[0]}=; {hint}")
        init(*args, **keywords)

    return checked


def check_name(name: str) -> None:
    """Refuse what cannot begin a log tag and name a file below the log folder.

    Raises:
        ValueError: For an empty name, or one that leads out of that folder.
    """
    parts = name.replace("\\", "/").split("/") if isinstance(name, str) else []
    if not parts or any(part.strip() in ("", ".", "..") or ":" in part or "\0" in part for part in parts):
        raise ValueError(
            f"name must be a non-empty string that can begin a log tag, such as 'slt' or 'llc/encoder', got {name!r}"
        )


def check_settings(
    *, nbeta: float | None, localization: float | None, sampler: Sampler | None, sampling: SamplingConfig
) -> tuple[float | None, float | None]:
    """Refuse settings that no reading can have.

    Returns:
        nβ and γ as plain floats, which records and checkpoints can hold.

    Raises:
        ValueError: For constants or counts that cannot be.
        TypeError: For a sampler that is none, or counts that are no SamplingConfig.
    """
    constants = plan.check_settings(nbeta=nbeta, localization=localization, sampler=sampler, sampling=sampling)
    if sampling.num_chains < 2:
        raise ValueError("a monitor needs at least two chains for an error bar; write SamplingConfig(num_chains=4)")
    return constants


def check_steps(at_steps: Iterable[int] | None) -> tuple[int, ...]:
    """Refuse what is no collection of optimizer steps.

    Raises:
        ValueError: If it is no collection, or one of something else than whole numbers from zero on.
    """
    steps: object = () if at_steps is None else at_steps
    listed = tuple(steps) if isinstance(steps, Iterable) and not isinstance(steps, str) else None
    if listed is None or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 0 for s in listed):
        given, instead = (steps, steps) if listed is None else (list(listed), "10, 100")
        raise ValueError(
            f"at_steps must be whole numbers, zero or more, got {given!r}; write at_steps=[{instead}], or "
            "at_steps=slt.LogSteps(first, last, count) for steps on a log scale"
        )
    return tuple(int(s) for s in listed)


def check_free(name: str, trainer: pl.Trainer, *, at_work: pl.Trainer | None) -> None:
    """Refuse a monitor that is in the middle of another fit: the states of both would be mixed up.

    Raises:
        MisconfigurationException: If it is.
    """
    if at_work is not None and at_work is not trainer:
        raise MisconfigurationException(
            f"the monitor {name!r} is at work in another Trainer whose fit has not ended; give this Trainer one of its "
            "own: callbacks=[LLCMonitor(...)]"
        )


def check_names(names: Sequence[str]) -> None:
    """Refuse two monitors of one name, whose tags and states would be mixed up.

    Raises:
        MisconfigurationException: If a name repeats.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise MisconfigurationException(f"two monitors are called {twice[0]!r}; give one of them another name=")


def check_strategy(trainer: pl.Trainer) -> None:
    """Refuse strategies under which the weights of the module are not those that it is evaluated with.

    Raises:
        MisconfigurationException: For FSDP1, DeepSpeed and their kin; the message names the alternatives.
    """
    strategy = type(getattr(trainer, "strategy", None))
    if any(kind.__name__ in _HIDE_WEIGHTS for kind in strategy.__mro__):
        raise MisconfigurationException(
            f"no readings can be made under {strategy.__name__}: it keeps the weights in buffers of its own. Write "
            "strategy='ddp' where the network fits each device; strategy=ModelParallelStrategy(data_parallel_size=…, "
            "tensor_parallel_size=1) with fully_shard in configure_model() where it does not (FSDP2); or read saved "
            "checkpoints afterwards: lightning-slt analyze"
        )


def check_shards(module: nn.Module, estimators: Sequence[Estimator], *, snapshots: bool) -> None:
    """Refuse what needs whole weights, where each process holds only its shards of them.

    Raises:
        ValueError: If the weights are sharded in a way that chains cannot move in.
        MisconfigurationException: For snapshots of sharded weights, and estimators that work on them.
    """
    with at_rest(module):
        if not shards_of(module).spread:
            return
    if snapshots:
        raise MisconfigurationException(
            "snapshots=True saves whole anchors, and of sharded weights (FSDP2) each process holds only a part: write "
            "snapshots=False, and ModelCheckpoint for the weights"
        )
    for estimator in estimators:
        if isinstance(estimator, AtAnchor) and estimator.needs_whole_weights:
            raise MisconfigurationException(
                f"{type(estimator).__name__} {estimator.name!r} works on whole weights, of which each process holds "
                "only its shards (FSDP2): leave it out, and run it on saved checkpoints: lightning-slt analyze"
            )
