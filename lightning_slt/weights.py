"""Weights in files, read without running code that they may hold, and how they get into a module."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_slt.types import Params

INDEX = ".index.json"
"""Ending of the file that says which shard holds which weights, in Hugging Face's layout."""

WRAPPERS = ("module.", "model.", "_forward_module.")
"""Prefixes that wrappers (DDP, a LightningModule around the network, Fabric) put before names."""

_NOT_PLAIN = (
    UnpicklingError, RuntimeError, EOFError, MemoryError, ValueError, TypeError, AttributeError, LookupError,
    AssertionError, OverflowError,
)  # fmt: skip
"""What torch raises of files that were broken, or made to break it."""

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into names, wherever a part was compiled."""


def content_of(path: Path) -> Mapping[str, Any]:
    """What a file holds: weights by name, or a checkpoint of Lightning.

    Args:
        path: A file of safetensors, one that ``torch.save`` wrote, or the index of shards of either kind.

    Raises:
        ValueError: If it cannot be read as plain weights, with the reason.
    """
    if path.name.endswith(INDEX):
        return {name: value for shard in parts_of(path) for name, value in content_of(shard).items()}
    if path.is_dir():
        raise ValueError(
            f"{path} is a sharded checkpoint; make one file of it: python -m "
            f"lightning.pytorch.utilities.consolidate_checkpoint {path}"
        )
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_plain(path, mmap=True)
    except (ValueError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as plain weights: {_first_line(error)}. Files that hold other objects are not run; "
            "save their weights alone: torch.save(module.state_dict(), 'step=100.pt')"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, expected weights by name")
    return content


def load_plain(path: Path, *, mmap: bool = False) -> Any:
    """What ``torch.save`` wrote, on the CPU, as long as it is tensors and plain values.

    Args:
        path: The file.
        mmap: Read tensors when they are used; files in the format before archives, and compressed ones, are refused.

    Raises:
        ValueError: If it holds anything else, is broken, or claims more than there is memory.
        OSError: If it cannot be opened.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected pickle protocol")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except _NOT_PLAIN as error:
        raise ValueError(_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def parts_of(path: Path) -> list[Path]:
    """The files that hold the weights: the file itself, or the shards that an index names, each once.

    Raises:
        ValueError: If the index cannot be read, a shard is missing, or lies outside the index's folder.
    """
    if not path.name.endswith(INDEX):
        return [path]
    try:
        names = list(dict.fromkeys(json.loads(path.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of shards, a JSON with weight_map: {error!r}") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path} names a shard outside its folder: {name!r}")
        if not (path.parent / name).is_file():
            raise ValueError(f"{path} names the shard {name}, which is not there")
    return [path.parent / name for name in names]


def load_into(module: nn.Module, weights: Params, *, where: str = "the checkpoint") -> None:
    """Put weights into a module; names may differ by a prefix, and one name of a tied weight is enough.

    Weights of another precision are converted to the module's.

    Raises:
        ValueError: If names or shapes do not fit, with the first that do not; or fit under several prefixes.
    """
    own = _Names.of(module)
    fits = [named for named in _renamed(weights, own) if own.fit(named)]
    if fits:
        module.load_state_dict(own.filled(fits[0]), strict=False)  # all tensors are there; other states are kept
        return
    closest = max(_renamed(weights, own), key=lambda named: len(named.keys() & own.shapes.keys()))
    missing = [name for name in own.shapes if name not in own.filled(closest)]
    wrong = [
        f"{name} {tuple(closest[name].shape)} for {tuple(shape)}"
        for name, shape in own.shapes.items()
        if name in closest and closest[name].shape != shape
    ]
    raise ValueError(
        f"{where} does not fit {type(module).__name__}: missing {missing[:4] or 'nothing'}, of another shape "
        f"{wrong[:4] or 'none'}, unknown {[name for name in closest if name not in own.shapes][:4] or 'nothing'}. "
        "Build the module with the settings that it was trained with"
    )


class _Names(NamedTuple):
    """What a module's weights and buffers are called.

    Attributes:
        shapes: By name.
        twins: For every name all names of the same tensor, itself included.
    """

    shapes: dict[str, torch.Size]
    twins: dict[str, list[str]]

    @classmethod
    def of(cls, module: nn.Module) -> _Names:
        found = {n: v for n, v in module.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        names: dict[int, list[str]] = {}
        for name, value in found.items():
            names.setdefault(id(value), []).append(name)
        return cls({n: v.shape for n, v in found.items()}, {n: names[id(v)] for n, v in found.items()})

    @property
    def distinct(self) -> int:
        """How many tensors there are."""
        return len({twins[0] for twins in self.twins.values()})

    def filled(self, named: Params) -> Params:
        """The module's own part, a tied weight that is left out taken from its twin."""
        given = {name: next((twin for twin in twins if twin in named), None) for name, twins in self.twins.items()}
        return {name: named[name if name in named else twin] for name, twin in given.items() if twin is not None}

    def fit(self, named: Params) -> bool:
        """Whether every tensor is there in its shape."""
        filled = self.filled(named)
        return filled.keys() == self.shapes.keys() and all(filled[n].shape == s for n, s in self.shapes.items())


def _renamed(weights: Params, own: _Names) -> Iterator[Params]:
    """The weights as named, under the names of known wrappers, and under any other prefix that makes them fit.

    Raises:
        ValueError: If several of these others fit: a small module may be found in many places of a large file.
    """
    yield weights
    plain = {name.replace(COMPILED, ""): value for name, value in weights.items()}
    mine = {name.replace(COMPILED, ""): name for name in own.shapes}
    candidates = [(prefix, "") for prefix in WRAPPERS] + [("", prefix) for prefix in WRAPPERS]
    yield _translated(plain, mine, "", "")
    yield from (_translated(plain, mine, *change) for change in candidates)
    counted = Counter((head, "") for name in plain for head, rest in _heads(name) if rest in mine)
    counted += Counter(("", head) for name in mine for head, rest in _heads(name) if rest in plain)
    likely = [change for change, count in counted.items() if count >= own.distinct and change not in candidates]
    fits = [change for change in likely if own.fit(_translated(plain, mine, *change))]
    if len(fits) > 1:
        where = " and ".join(repr(head or added) for head, added in fits[:3])
        raise ValueError(f"the weights fit under more than one prefix, {where}; save those that are meant alone")
    yield from (_translated(plain, mine, *change) for change in fits)


def _heads(name: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a name behind a dot."""
    words = name.split(".")
    return ((".".join(words[:k]) + ".", ".".join(words[k:])) for k in range(1, len(words)))


def _translated(plain: Params, mine: Mapping[str, str], without: str, added: str) -> Params:
    """Weights whose names lose one prefix and gain another, as the module calls them where it has them."""
    named = {f"{added}{n.removeprefix(without)}": value for n, value in plain.items() if n.startswith(without)}
    return {mine.get(name, name): value for name, value in named.items()}
