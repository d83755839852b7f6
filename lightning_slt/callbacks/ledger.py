"""What an analysis of saved checkpoints keeps of itself beside the records, so that it can go on later."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_slt.boundary import is_array
from lightning_slt.records import FOLDER
from lightning_slt.sources import source_parts
from lightning_slt.weights import load_plain

STATE = "analysis.pt"
"""The file, beside the records."""

if sys.platform != "win32":
    import fcntl

READ_ANYWAY = {
    "every_n_train_steps", "every_n_epochs", "train_time_interval", "at_steps", "at_checkpoints", "at_end",
    "max_overhead", "on_failure", "snapshots", "offload", "pictures", "tables", "embeddings",
    "hparams", "layout", "on_boundary", "on_alert",
}  # fmt: skip
"""Arguments of callbacks that change no number of a reading of saved checkpoints."""

MOST_WORDS = 64
"""Entries up to which a list is described one by one."""


class Ledger:
    """Which checkpoints were read, for what, and the callbacks' states after the last of them.

    Args:
        run_dir: Of the analysis.

    Attributes:
        steps: Of the checkpoints that were read.
        states: Of the callbacks, by key.
        asked: What they were asked for, in words, by key.
        broken: Files that the last run could not read, with the reason.
        spent: Seconds of all devices together.
        alone: Whether the folder held no logs of others when the analysis began.

    Raises:
        ValueError: If there is one that cannot be read.
    """

    def __init__(self, run_dir: Path) -> None:
        """Take up what an earlier part left."""
        self.run_dir, self.path = run_dir, run_dir / FOLDER / STATE
        saved: Mapping[str, Any] = {}
        if self.path.is_file():
            try:
                saved = load_plain(self.path)
            except (ValueError, OSError) as error:
                raise ValueError(
                    f"{self.path} cannot be read, so that it is not known which checkpoints were; give another "
                    f"run_dir, or delete {run_dir} to begin anew"
                ) from error
        self.steps: list[int] = list(saved.get("steps", []))
        self.states: dict[str, Any] = dict(saved.get("states", {}))
        self.asked: dict[str, dict[str, str]] = dict(saved.get("asked", {}))
        self.broken: dict[str, str] = dict(saved.get("broken", {}))
        self.spent: float = saved.get("spent", 0.0)
        self.alone: bool = saved.get("alone", not saved and not any(run_dir.glob("events.out.tfevents.*")))

    def begin(self, asked: Mapping[str, Mapping[str, str]]) -> None:
        """Refuse to go on with something else than was begun.

        Raises:
            ValueError: If what was asked for has changed, with what.
        """
        for key, now in asked.items() if self.steps and self.asked else ():
            if (then := self.asked.get(key)) is None:
                raise ValueError(
                    f"{self.run_dir} was begun without {key!r}, which would miss the {len(self.steps)} checkpoints "
                    f"that were read; give another run_dir, or delete {self.run_dir} to begin anew"
                )
            names = [name for name in dict.fromkeys((*then, *now)) if then.get(name) != now.get(name)]
            if names:
                name = names[0]
                raise ValueError(
                    f"{self.run_dir} was begun with {key}: {name}={then.get(name)}, and is to go on with "
                    f"{now.get(name)}: its readings would not be comparable. Give another run_dir, or delete "
                    f"{self.run_dir} to begin anew"
                )
        self.asked = {key: dict(words) for key, words in asked.items()}
        self.broken = {}
        self.states = {key: state for key, state in self.states.items() if key in self.asked}

    def save(self, callbacks: Sequence[Callback], *, waiting: Collection[int] = ()) -> None:
        """Write beside, then rename: the file is always whole.

        Args:
            callbacks: Whose states to keep.
            waiting: Steps that were put off: they are read again by a run that goes on from here.
        """
        self.states |= {callback.state_key: callback.state_dict() for callback in callbacks}
        content = {
            "steps": [step for step in self.steps if step not in waiting],
            "states": self.states,
            "asked": self.asked,
            "broken": self.broken,
            "spent": self.spent,
            "alone": self.alone,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial_file = self.path.with_suffix(".partial")
        torch.save(content, partial_file)
        partial_file.replace(self.path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from writing into the same folder meanwhile; who dies lets go, too.

        Raises:
            ValueError: If another process does.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("w") as file:
            if sys.platform != "win32":  # which has no such locks
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise ValueError(
                        f"another analysis is at work in {self.run_dir}; let it end, or give another run_dir"
                    ) from error
            yield

    @property
    def seconds(self) -> float | None:
        """Of one checkpoint on one device; None before the first."""
        return self.spent / len(self.steps) if self.steps and self.spent else None


def asked_for(callback: Callback) -> dict[str, str]:
    """The arguments of a callback that its numbers depend on, in words, as far as words can tell."""
    names = [*inspect.signature(type(callback).__init__).parameters, "estimators"]
    given = {name: getattr(callback, name) for name in names if hasattr(callback, name) and name not in READ_ANYWAY}
    return {"kind": type(callback).__name__, **{name: in_words(value) for name, value in given.items()}}


def data_in_words(data: Any) -> str:
    """The samples that a source gives, as far as that can be told without fetching them."""
    return in_words(source_parts(data)[0])


def in_words(value: Any) -> str:
    """A setting, the same for the same in another process; content of data sets is not looked at.

    >>> in_words({"a": [1, 2.0], "f": len}), in_words(torch.zeros(2))[:22]
    ("{'a': [1, 2.0], 'f': builtins.len}", 'tensor (2,) 374708fff7')
    """
    if is_array(value):
        array = torch.as_tensor(value).detach().double().cpu().numpy()
        return f"tensor {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = [f"{f.name}={in_words(getattr(value, f.name))}" for f in fields(value)]
        source = getattr(value, "_source", None)
        return f"{type(value).__name__}({', '.join(parts if source is None else [*parts, in_words(source)])})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {in_words(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple) and len(value) <= MOST_WORDS:
        return "[" + ", ".join(map(in_words, value)) + "]"
    if isinstance(value, partial):
        return f"{in_words(value.func)}{in_words(value.args)}{in_words(value.keywords)}"
    if isinstance(value, Callable) and hasattr(value, "__qualname__"):  # type: ignore[arg-type]
        return f"{value.__module__}.{value.__qualname__}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, Sized) else type(value).__name__
