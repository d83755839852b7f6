"""How files beside the logs are written: whole or not at all. Lines of text, and arrays in safetensors.

Arrays: safetensors whose header says what they hold, so that one alone is understood.

The header's ``__metadata__`` has, as text: ``monitor``, ``reading``, ``step``, ``global_step``, ``epoch``, and what the
file ``holds`` (``traces`` or ``anchor``); and as JSON ``kind`` (``{"full/influence": "Influence"}``), ``axes``
(``{"full/influence/influence": ["train", "query"]}``) and ``names`` of rows and columns. Read it anywhere with
``safetensors.safe_open(path, "np").metadata()``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_slt.types import Params

JSON = ("kind", "axes", "names")
"""Entries of the header that are JSON; the others are plain text."""


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: By name.
        header: What it says of itself.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def append_line(path: Path, text: str) -> None:
    """Add a line to a file of text, on disk before this returns: whole, or, where there is no space for it, not at all.

    A line that a process which was killed left unfinished is ended first, so that it spoils nothing but itself.

    Args:
        path: The file; made where there is none.
        text: Without the end of the line.

    Raises:
        OSError: If it cannot be written.
    """
    with path.open("ab+", buffering=0) as file:  # a buffer would write the rest of a failed line when it is closed
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(-1, os.SEEK_END)
        rest = memoryview((b"" if not size or file.read(1) == b"\n" else b"\n") + text.encode() + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # then the next line ends this one
                file.truncate(size)
            raise


def save(tensors: Params, target: Path, header: Mapping[str, Any]) -> None:
    """Write beside, then rename: a file of that name is always whole.

    Args:
        tensors: Not empty.
        target: The file; its folder is made.
        header: Of the file; see above.

    Raises:
        OSError: If it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    text = {key: json.dumps(value) if key in JSON else str(value) for key, value in header.items()}
    try:
        save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, partial, metadata=text)
        partial.replace(target)
    except SafetensorError as error:  # what safetensors makes of a full disk
        raise OSError(str(error)) from error
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path) -> Contents:
    """Tensors and header; an empty one of files that were written without."""
    with safe_open(path, framework="pt") as file:
        text = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return Contents(tensors, {key: json.loads(value) if key in JSON else value for key, value in text.items()})
