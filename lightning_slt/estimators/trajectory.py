r"""Where a network stands in function space, in loss space or in weight space: one row a reading (arXiv:2501.17745).

Rows of all readings, of several runs if need be, make a trajectory; see
:func:`lightning_slt.analysis.trajectories.joint_trajectories`. A row that is too long is sketched: entry i goes to a
random place h(i) with a random sign s(i),

.. math:: b_j = \sqrt{m / n} \sum_{i : h(i) = j} s(i)\, a_i,

which keeps every mean square in expectation, with a relative standard deviation of at most ``√(2/m)`` (count sketch;
Charikar, Chen & Farach-Colton 2002; Weinberger et al. 2009).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lightning_slt.boundary import describe
from lightning_slt.estimators.base import AtAnchor, View
from lightning_slt.probes import Probe, as_probe
from lightning_slt.results import Result
from lightning_slt.seeding import generator
from lightning_slt.types import Batch, Health

Space = Literal["outputs", "losses", "weights"]
OutputFn = Callable[[nn.Module, Batch], Tensor]
Reference = Callable[[Batch], Tensor]

DTYPES = {"float32": torch.float32, "float16": torch.float16}

HOW_TO_WRITE_OUTPUTS = """write
    def output_fn(module, batch):          # and pass output_fn=output_fn
        x, y = batch
        return module(x)                   # [sample, …]"""


@dataclass(frozen=True, kw_only=True, repr=False)
class Position(Result):
    """Where a network stands.

    Attributes:
        norm: Root mean square of the row, before it was sketched.
        distances: Root mean square distance from each reference predictor, by name, likewise.
        row: ``[column]``; mean squares of differences are those of the whole rows.
        references: Rows of the reference predictors ``[reference, column]``.
        reference_names: Their names.
        made_of: What the row is and how it was kept, in words.
    """

    norm: float
    distances: Mapping[str, float] = field(default_factory=dict)
    row: Tensor = field(repr=False)
    references: Tensor = field(repr=False)
    reference_names: tuple[str, ...] = ()
    made_of: tuple[str, ...] = ()

    def axes(self) -> dict[str, tuple[str, ...]]:
        """Columns, and references by name."""
        return {"row": ("column",), "references": ("reference_name", "column")}

    def scalars(self) -> dict[str, float]:
        """The norm, and the distances as ``distance_<reference>``."""
        return {"norm": self.norm, **{f"distance_{name}": value for name, value in self.distances.items()}}


@dataclass(frozen=True)
class Trajectory(AtAnchor):
    """Keeps what the network does on a fixed probe at every reading. Costs two forward passes over the probe.

    Args:
        probe: A Probe, or anything that a Probe takes; not needed for weights.
        space: "outputs" of the network, its "losses" per sample, or its "weights".
        output_fn: ``output_fn(module, batch)`` → ``[sample, …]``; None calls the module on the first entry of a tuple
            or list, on the entries of a dict as keywords, else on the batch, and takes ``.logits`` where there are any.
        references: ``{name: function of a batch}`` with the outputs (or losses) of predictors to compare with, shaped
            like the network's. They are kept with every reading.
        size: Longest row that is kept as it is; longer ones are sketched to this length.
        dtype: "float32" or "float16", in which rows are kept. Small late movements need float32.
        seed: Of the sketch: runs that are to be compared need one, one probe and one size.
        name: Key of the result and part of the log tags.

    Raises:
        ValueError: For a space, size or dtype that there is not, for a space that needs a probe and has none, and for
            weights with an output function or references.

    >>> Trajectory([0, 1, 2]).fields
    ('norm',)
    """

    probe: Any = None
    _: KW_ONLY
    space: Space = "outputs"
    output_fn: OutputFn | None = None
    references: Mapping[str, Reference] | None = None
    size: int = 16384
    dtype: Literal["float32", "float16"] = "float32"
    seed: int = 0
    name: str = "trajectory"

    def __post_init__(self) -> None:
        """Take bare data for a probe; refuse what cannot be."""
        if self.space not in ("outputs", "losses", "weights"):
            raise ValueError(f"space must be 'outputs', 'losses' or 'weights', got {self.space!r}")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be 'float32' or 'float16', got {self.dtype!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size must be a whole number of at least 1, got {self.size!r}")
        if self.output_fn is not None and (not callable(self.output_fn) or self.space != "outputs"):
            raise ValueError(
                f"output_fn goes with space='outputs' and takes (module, batch), got {self.output_fn!r} with "
                f"space={self.space!r}"
            )
        if self.space == "weights":
            if self.references:
                raise ValueError("references are predictors, which have no weights to compare; leave them out")
            return
        if self.probe is None:
            raise ValueError(f"space={self.space!r} needs samples: write Trajectory(probe=held_out)")
        for key, reference in (self.references or {}).items():
            if not callable(reference) or not key.strip() or "/" in key:
                raise ValueError(
                    f"references must be {{name without '/': function of a batch}}, got {key!r}: {reference!r}"
                )
        object.__setattr__(self, "probe", as_probe(self.probe))

    @property
    def fields(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the scalars."""
        return ("norm", *(f"distance_{name}" for name in self.references or {}))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The one whose outputs or losses make the row."""
        return () if self.space == "weights" else (self.probe,)

    @property
    def needs_whole_weights(self) -> bool:
        """Where the weights themselves make the row."""
        return self.space == "weights"

    def measure(self, view: View) -> Position:
        """The row at this anchor.

        Raises:
            TypeError: If outputs are no tensor with one entry a sample; the message shows what to write.
            ValueError: If a row is not finite, or does not fit into float16.
        """
        whole, made_of = self._row(view), [f"{self.space}", *self._probe_words(view)]
        if not bool(whole.isfinite().all()):
            raise ValueError(f"{int((~whole.isfinite()).sum())} of {len(whole)} {self.space} are not finite")
        others = {name: self._reference(view, name, len(whole)) for name in self.references or {}}
        made_of.append(self._how(len(whole)))
        kept = [self._kept(row) for row in (whole, *others.values())]
        return Position(
            norm=_rms(whole),
            distances={name: _rms(whole.double() - row.double()) for name, row in others.items()},
            row=kept[0],
            references=torch.stack(kept[1:]) if others else kept[0].new_empty(0, len(kept[0])),
            reference_names=tuple(others),
            made_of=tuple(made_of),
            health=Health(ok=True),
        )

    def _row(self, view: View) -> Tensor:
        if self.space == "weights":
            return _joined(list(view.weights.values()))
        if self.space == "losses":
            return _joined([view.probes[self.probe.name].anchor])
        function = self.output_fn or forward_outputs
        batches = view.probe_batches[self.probe.name]
        return _joined([_checked(view.evaluate(function, view.weights, batch), batch) for batch in batches])

    def _reference(self, view: View, name: str, columns: int) -> Tensor:
        assert self.references is not None
        with torch.no_grad():
            row = _joined([self.references[name](batch) for batch in view.probe_batches[self.probe.name]])
        if len(row) != columns:
            raise ValueError(
                f"reference {name!r} gives {len(row)} numbers for the probe, the network {columns}; it must return, "
                "for a batch, a tensor shaped like the network's outputs"
            )
        return row

    def _probe_words(self, view: View) -> Sequence[str]:
        if self.space == "weights":
            return ()
        return (f"{len(view.probes[self.probe.name].indices)} samples, {_digest(view.probe_batches[self.probe.name])}",)

    def _how(self, columns: int) -> str:
        if columns <= self.size:
            return f"{columns} numbers in {self.dtype}"
        return f"{columns} numbers sketched to {self.size} with seed {self.seed} in {self.dtype}"

    def _kept(self, row: Tensor) -> Tensor:
        kept = sketch(row, self.size, seed=self.seed).to(DTYPES[self.dtype])
        if not bool(kept.isfinite().all()):
            raise ValueError(f"a row with numbers up to {float(row.abs().max()):.3g} needs dtype='float32'")
        return kept


def forward_outputs(module: nn.Module, batch: Batch) -> Tensor:
    """What a module returns on a batch's inputs, as :class:`Trajectory` takes it where nobody says how.

    Args:
        module: The network.
        batch: A tuple or list whose first entry it takes, a dict of its keywords, or what it takes itself.

    Raises:
        TypeError: If it returns no tensor and no logits, or cannot be called so.
    """
    try:
        if isinstance(batch, Mapping):
            found = module(**batch)
        else:
            found = module(batch[0] if isinstance(batch, tuple | list) else batch)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(
            f"{type(module).__name__} cannot be called on {describe(batch)} ({error}); {HOW_TO_WRITE_OUTPUTS}"
        ) from error
    logits = found.get("logits") if isinstance(found, Mapping) else getattr(found, "logits", found)
    if not isinstance(logits, Tensor):
        raise TypeError(f"{type(module).__name__} returns {describe(found)}; {HOW_TO_WRITE_OUTPUTS}")
    return logits


def sketch(row: Tensor, size: int, *, seed: int = 0) -> Tensor:
    """A row of at most so many numbers, with its mean square kept in expectation; see the module's formula.

    Args:
        row: ``[column]``.
        size: Longest row that stays as it is.
        seed: Of places and signs, which hang on nothing else but the length.

    >>> row = torch.ones(100_000)
    >>> round(float(sketch(row, 1000).square().mean()), 1)
    1.0
    """
    columns = len(row)
    if columns <= size:
        return row
    random = generator(seed, "sketch")
    places = torch.randint(size, (columns,), generator=random)
    signs = torch.randint(2, (columns,), generator=random) * 2 - 1
    sums = torch.zeros(size, dtype=torch.float64).index_add_(0, places, row.double() * signs)
    return (sums * math.sqrt(size / columns)).to(row.dtype)


def _checked(outputs: Any, batch: Batch) -> Tensor:
    samples = next((len(x) for x in pytree.tree_leaves(batch) if isinstance(x, Tensor) and x.ndim), None)
    if not isinstance(outputs, Tensor) or not outputs.ndim or (samples is not None and len(outputs) != samples):
        raise TypeError(
            f"outputs must be a tensor [sample, …] with {samples} samples, got {describe(outputs)}; "
            f"{HOW_TO_WRITE_OUTPUTS}"
        )
    return outputs


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.detach().cpu().float().flatten() for part in parts])


def _rms(row: Tensor) -> float:
    return float(row.double().square().mean().sqrt())


def _digest(batches: Sequence[Batch]) -> str:
    """A few letters that tell probes apart."""
    hashed = hashlib.blake2b(digest_size=4)
    for leaf in pytree.tree_leaves(list(batches)):
        if isinstance(leaf, Tensor):
            hashed.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return f"digest {hashed.hexdigest()}"
