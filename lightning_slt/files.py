"""Files of arrays beside the records: safetensors whose header says what they hold, so that one alone is understood.

The header's ``__metadata__`` has, as text: ``monitor``, ``reading``, ``step``, ``global_step``, ``epoch``, and what the
file ``holds`` (``traces`` or ``anchor``); and as JSON ``kind`` (``{"full/influence": "Influence"}``), ``axes``
(``{"full/influence/influence": ["train", "query"]}``) and ``names`` of rows and columns. Read it anywhere with
``safetensors.safe_open(path, "np").metadata()``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open
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


def save(tensors: Params, target: Path, header: Mapping[str, Any]) -> None:
    """Write beside, then rename: a file of that name is always whole.

    Args:
        tensors: Not empty.
        target: The file; its folder is made.
        header: Of the file; see above.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    text = {key: json.dumps(value) if key in JSON else str(value) for key, value in header.items()}
    save_file({name: value.contiguous().cpu() for name, value in tensors.items()}, partial, metadata=text)
    partial.replace(target)


def load(path: Path) -> Contents:
    """Tensors and header; an empty one of files that were written without."""
    with safe_open(path, framework="pt") as file:
        text = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    return Contents(tensors, {key: json.loads(value) if key in JSON else value for key, value in text.items()})
