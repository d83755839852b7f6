"""Saved weights of a run: where they are, of which step they are, and how they get into a module.

Files are read without running code that they may hold (``weights_only``, safetensors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_slt.types import Params

ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
WHOLE_MODELS = ("model.safetensors", "pytorch_model.bin")
"""What a folder of a Hugging Face revision holds."""

WRAPPERS = ("module.", "model.", "_forward_module.", "_orig_mod.")
"""Prefixes that wrappers (DDP, a LightningModule around the network, Fabric, ``torch.compile``) put before names."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights of one step.

    Attributes:
        path: Where they are.
        step: The x axis of the logs: batches that stepped the optimizer.
        global_step: Optimizer steps.
        epoch: Epoch; 0 where the file does not say.
        callbacks: States of the run's callbacks, where the file has them.
    """

    path: Path
    step: int
    global_step: int
    epoch: int = 0
    callbacks: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def weights(self) -> Params:
        """The weights and buffers by name."""
        content = _content(self.path)
        found = content.get("state_dict", content)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def find_checkpoints(place: str | Path | Sequence[str | Path]) -> list[Checkpoint]:
    """All checkpoints of a run in the order of their steps; of one step only the first by name.

    Args:
        place: A folder with checkpoints of Lightning (``.ckpt``), saved state dicts (``.pt``, ``.pth``, ``.bin``,
            ``.safetensors``) or folders of Hugging Face revisions; a single file; or a list of these. Files that do not
            say their step have it in their name, or in that of their folder: ``step=100.pt``, ``step1000/``.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If a file cannot be read, or its step is not known.
    """
    places = [place] if isinstance(place, str | Path) else list(place)
    paths = [path for given in places for path in _files(Path(given))]
    if not paths:
        raise FileNotFoundError(
            f"no checkpoints in {', '.join(map(str, places))}; expected files that end in {', '.join(ENDINGS)}"
        )
    found: dict[int, Checkpoint] = {}
    for checkpoint in map(_describe, paths):
        found.setdefault(checkpoint.step, checkpoint)
    return [found[step] for step in sorted(found)]


def load_into(module: nn.Module, weights: Params, *, where: str = "the checkpoint") -> None:
    """Put weights into a module; names may differ by the prefix of a wrapper.

    Raises:
        ValueError: If names or shapes do not fit, with the first that do not.
    """
    own = {name: value.shape for name, value in module.state_dict().items()}
    for named in _renamed(weights):
        if named.keys() >= own.keys() and all(named[name].shape == shape for name, shape in own.items()):
            module.load_state_dict({name: named[name] for name in own})
            return
    closest = max(_renamed(weights), key=lambda named: len(named.keys() & own.keys()))
    missing = [name for name in own if name not in closest]
    wrong = [
        f"{name} {tuple(closest[name].shape)} for {tuple(shape)}"
        for name, shape in own.items()
        if name in closest and closest[name].shape != shape
    ]
    raise ValueError(
        f"{where} does not fit {type(module).__name__}: missing {missing[:4] or 'nothing'}, of another shape "
        f"{wrong[:4] or 'none'}, unknown {[name for name in closest if name not in own][:4] or 'nothing'}. "
        "Build the module with the settings that it was trained with"
    )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    whole = [place / name for name in WHOLE_MODELS if (place / name).is_file()]
    if whole:
        return whole[:1]
    below = [path for path in sorted(place.iterdir()) if path.suffix in ENDINGS] if place.is_dir() else []
    revisions = [file for path in sorted(place.glob("*/")) for file in _files(path)] if place.is_dir() else []
    return [path for path in (*below, *revisions) if not path.name.startswith(".")]


def _content(path: Path) -> Mapping[str, Any]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} cannot be read as plain weights: {reason}. Files that hold other objects are not run; save their "
            "weights alone: torch.save(module.state_dict(), 'step=100.pt')"
        ) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, expected weights by name")
    return content


def _describe(path: Path) -> Checkpoint:
    content = {} if path.suffix == ".safetensors" else _content(path)
    if "global_step" not in content:
        step = _step_of_name(path)
        return Checkpoint(path=path, step=step, global_step=step)
    return Checkpoint(
        path=path,
        step=_logged_step(content),
        global_step=content["global_step"],
        epoch=content.get("epoch", 0),
        callbacks=content.get("callbacks", {}),
    )


def _logged_step(content: Mapping[str, Any]) -> int:
    """Where Lightning's loggers have these weights: it counts a batch only after the hooks in which it saves.

    With automatic optimization that is the number of optimizer steps; a batch of manual optimization may make several.
    """
    loop = content.get("loops", {}).get("fit_loop", {})
    manual = loop.get("epoch_loop.manual_optimization.optim_step_progress", {}).get("total", {}).get("completed", 0)
    if not manual:
        return int(content["global_step"])
    batches = loop["epoch_loop.batch_progress"]["total"]
    within = batches["ready"] > batches["completed"]
    return int(loop["epoch_loop.state_dict"]["_batches_that_stepped"]) + int(within)


def _step_of_name(path: Path) -> int:
    for name in (path.stem, path.parent.name):
        marked = re.findall(r"step[=_-]?(\d+)", name)
        numbers = marked or re.findall(r"\d+", name)
        if numbers:
            return int(numbers[-1])
    raise ValueError(f"the step of {path} is not known: name it for instance {path.stem}-step=100{path.suffix}")


def _renamed(weights: Params) -> list[Params]:
    """The weights as named, and without the prefixes that wrappers put before names, or with one."""
    compiled = {name.replace("_orig_mod.", ""): value for name, value in weights.items()}
    found = [weights, compiled]
    for prefix in WRAPPERS:
        inner = {name.removeprefix(prefix): v for name, v in compiled.items() if name.startswith(prefix)}
        found += [inner] if inner else []
        found.append({f"{prefix}{name}": value for name, value in compiled.items()})
    return found
