"""Saved weights of a run: where they are, and of which step they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_slt.records.reading import FOLDER as RECORDS
from lightning_slt.types import Params
from lightning_slt.weights import content_of, parts_of

ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
WHOLE_MODELS = (
    "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
)  # fmt: skip
"""What a folder of a Hugging Face revision holds, the one to take first."""

COUNTERS = {"step", "global_step", "epoch"}
"""What may stand as a tensor beside weights that are under a name of their own."""

SNAPSHOTS, REFS = "snapshots", "refs"
"""Folders of a repository in Hugging Face's cache: ``snapshots/<hash>/`` with files, ``refs/<name>`` with a hash."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Weights of one step.

    Attributes:
        path: Where they are; of shards their index.
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
        """The weights and buffers by name.

        Raises:
            ValueError: If the file cannot be read.
        """
        content = content_of(self.path)
        named = _tensors(content.get("state_dict", content))
        return named if named.keys() - COUNTERS else _only_inner(content) or named

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(part.stat().st_size for part in parts_of(self.path))

    @property
    def version(self) -> tuple[tuple[str, int, int], ...]:
        """What changes where the files do: names, sizes and times."""
        stats = [(part.name, part.stat()) for part in parts_of(self.path)]
        return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def find_checkpoints(
    place: str | Path | Sequence[str | Path], *, broken: dict[Path, str] | None = None
) -> list[Checkpoint]:
    """All checkpoints of a run in the order of their steps; of one step only the first by name.

    Args:
        place: A folder with checkpoints of Lightning (``.ckpt``), saved state dicts (``.pt``, ``.pth``, ``.bin``,
            ``.safetensors``; also under one name of a larger dict, ``{"model": …}``) or folders of Hugging Face
            revisions, whole or in shards; a repository of Hugging Face's cache, ``models--<owner>--<name>``; a single
            file; or a list of these. Files that do not say their step have it in their name, in that of their folder,
            or of the revision: ``step=100.pt``, ``step1000/``. Folders of records, ``slt_records``, are passed over.
        broken: Takes files that cannot be read, or whose step is not known, with the reason; None raises there.

    Raises:
        FileNotFoundError: If there is nothing.
        ValueError: If a file cannot be read, or its step is not known, or nothing can be read.
    """
    places = [place] if isinstance(place, str | Path) else list(place)
    paths = [path for given in places for path in _files(Path(given))]
    if not paths:
        raise FileNotFoundError(
            f"no checkpoints in {', '.join(map(str, places))}; expected files that end in {', '.join(ENDINGS)}"
        )
    found: dict[int, Checkpoint] = {}
    for path in paths:
        try:
            checkpoint = _describe(path)
        except ValueError as error:
            if broken is None or len(paths) == 1:
                raise
            broken[path] = str(error)
        else:
            found.setdefault(checkpoint.step, checkpoint)
    if not found:
        assert broken
        first, reason = next(iter(broken.items()))
        raise ValueError(f"none of {len(paths)} files can be read; the first is {first}: {reason}")
    return [found[step] for step in sorted(found)]


def choose(
    found: Sequence[Checkpoint],
    *,
    steps: str | Collection[int] | None = None,
    every: int = 1,
    last: int | None = None,
) -> list[Checkpoint]:
    """Some of the checkpoints.

    Args:
        found: In the order of steps.
        steps: Those at these steps, as numbers or written "0,1,2,1000:143000:1000": both ends of ``first:last:stride``
            are meant. A single step that there is none of is an error, one inside a range is not.
        every: The first of them, and every so many from there.
        last: The last so many of these.

    Raises:
        ValueError: If nothing is left, or the words make no sense.

    >>> of = [Checkpoint(path=Path(f"step{s}"), step=s, global_step=s) for s in (0, 1, 2, 1000, 2000, 3000)]
    >>> [c.step for c in choose(of, steps="0,1000:3000:1000")], [c.step for c in choose(of, every=2, last=2)]
    ([0, 1000, 2000, 3000], [2, 2000])
    """
    for name, count in (("every", every), ("last", 1 if last is None else last)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{name} must be a whole number from 1, got {count!r}")
    known = [checkpoint.step for checkpoint in found]
    wanted = set(known) if steps is None else _wanted(steps, known)
    chosen = [checkpoint for checkpoint in found if checkpoint.step in wanted][::every]
    if not chosen:
        raise ValueError(f"none of the {len(found)} checkpoints, steps {known[0]} to {known[-1]}, is among {steps!r}")
    return chosen if last is None else chosen[-last:]


def _wanted(steps: str | Collection[int], known: Sequence[int]) -> set[int]:
    wanted: set[int] = set()
    for part in steps.split(",") if isinstance(steps, str) else map(str, steps):
        if re.fullmatch(r"\s*\d+\s*(:\s*\d+\s*(:\s*0*[1-9]\d*\s*)?)?", part) is None:
            raise ValueError(
                f"steps are written 1000, or first:last, or first:last:stride, several with commas; got {part!r}"
            )
        first, *rest = (int(number) for number in part.split(":"))
        span, stride = range(first, (rest or [first])[0] + 1), (*rest, 1, 1)[1]
        here = {step for step in known if step in span and (step - first) % stride == 0}
        if not rest and not here:
            nearest = min(known, key=lambda step: abs(step - first))
            raise ValueError(f"there is no checkpoint of step {first}; the nearest is of step {nearest}")
        wanted |= here
    return wanted


def _tensors(content: Mapping[str, Any]) -> Params:
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _only_inner(content: Mapping[str, Any]) -> Params:
    """The weights under a name of the user's, ``{"model": …, "optimizer": …}``, where one entry alone holds tensors."""
    inner = [found for value in content.values() if isinstance(value, Mapping) and (found := _tensors(value))]
    return inner[0] if len(inner) == 1 else {}


def _files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place] if place.is_file() else []
    whole = [place / name for name in WHOLE_MODELS if (place / name).is_file()]
    if whole:
        return whole[:1]
    folders = [path for path in sorted(place.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    folders = [path for path in folders if path.name != RECORDS]  # arrays and anchors of readings, no checkpoints
    repositories = [path.name for path in folders if (path / SNAPSHOTS).is_dir()]
    if len(repositories) > 1:
        raise ValueError(f"{place} holds several models, {', '.join(repositories)}; name the folder of one")
    sharded = [path for path in folders if path.suffix in ENDINGS and (path / ".metadata").is_file()]
    alone = [path for path in sorted(place.iterdir()) if path.is_file() and path.suffix in ENDINGS]
    below = [path for path in (*alone, *sharded) if not path.name.startswith(".")]
    revisions = [file for path in folders if path not in sharded for file in _files(path)]
    named = [file for file in revisions if not _is_unnamed_revision(file)]
    return [*below, *named] if named else [*below, *revisions]


def _is_unnamed_revision(path: Path) -> bool:
    """Whether this is what ``main`` or no name at all points to in Hugging Face's cache."""
    return path.parent.parent.name == SNAPSHOTS and _step_in(_names(path)) is None


def _describe(path: Path) -> Checkpoint:
    parts_of(path)  # shards that are missing are told of here
    content = {} if ".safetensors" in path.suffixes else content_of(path)
    if "global_step" not in content:
        step = _step_in(_names(path))
        if step is None:
            raise ValueError(f"the step of {path} is not known: {_how_to_name(path)}")
        return Checkpoint(path=path, step=step, global_step=step)
    return Checkpoint(
        path=path,
        step=_logged_step(content),
        global_step=int(content["global_step"]),
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


def _names(path: Path) -> Iterator[str]:
    """Names that may hold the step of a file: its own, and its folder's or those of a revision in a cache."""
    folder = path.parent
    if folder.parent.name == SNAPSHOTS:
        refs = folder.parent.parent / REFS
        found = [file for file in sorted(refs.rglob("*")) if file.is_file()] if refs.is_dir() else []
        named = {file.relative_to(refs).as_posix(): file.read_text().strip() for file in found}
        yield from (name for name, digest in named.items() if digest == folder.name and not name.startswith("pr/"))
    else:
        yield path.stem
        yield from re.findall(r"step[=_-]?\d+|\d+$", folder.name)[:1]  # no 70 of a folder called pythia-70m


def _step_in(names: Iterator[str]) -> int | None:
    for name in names:
        numbers = re.findall(r"step[=_-]?(\d+)", name) or re.findall(r"\d+", name)
        if numbers:
            return int(numbers[-1])
    return None


def _how_to_name(path: Path) -> str:
    if path.parent.parent.name == SNAPSHOTS:
        return f"no file of {path.parent.parent.parent / REFS} with a step in its name holds {path.parent.name}"
    return f"name it for instance {path.stem}-step=100{path.suffix}"
