r"""Chains of several components that share their passes.

Each component's chains live in rows of their own, with their own noise and sampler state, exactly as in
:func:`lightning_slt.sampling.sample`; equal seeds make them common random numbers. Before a step they are written into
rows of all parameters that move in any component, ``[component · chain, coordinate]``, whose other coordinates stay at
the anchor, and one pass over these serves all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.data import SamplingData, load_data
from lightning_slt.passes import RECORDED_AT_MOST, Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import Gradient, LocalPosterior, Part
from lightning_slt.preflight import COPIES_TOGETHER, free_memory, saved_bytes
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import RECORDED_FROM, Chunk, ProbeData, SamplingConfig
from lightning_slt.types import Draw, FunctionalLoss, Params

SMALL_PASS = 250_000
"""Bytes of activations of one chain up to which components of different parameters share passes.

Gradients of all their parameters are then computed for every chain, needed or not. On one thread, with four chains of
200 steps, together cost this times one after another, all components, and those of the same parameters alone: layers of
perceptrons 0.49 and 0.89 at 0.07 MB, 1.04 and 0.84 at 0.27; layers of a transformer 0.52 and 0.81 at 0.21 MB; heads of
transformers 0.45 and 0.46 at 0.20 MB, 0.77 and 0.72 at 0.79.
"""


def sample_together(
    posteriors: Mapping[str, LocalPosterior],
    sampler: Sampler,
    batches: Any,
    config: SamplingConfig,
    *,
    probes: Mapping[str, ProbeData] | None = None,
    anchor_losses: Tensor | None = None,
    chains: Sequence[int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Draw]]:
    """Run the chains of several components side by side; arguments as for :func:`lightning_slt.sampling.sample`.

    Args:
        posteriors: By component; they differ in what moves alone, not in loss, nβ or γ.
        sampler: How.
        batches: The samples.
        config: Counts; the vectorized route. ``chunk_size`` chains of every component run together.
        probes: Named fixed sets.
        anchor_losses: Loss of every sample at the anchor ``[sample]``.
        chains: Run only these.
        on_step: Called after every step of every component.

    Yields:
        For each chunk and kept position one draw of every component, which is that of its own run; on losses and
        gradients of more chains in one pass up to rounding.

    >>> from lightning_slt.samplers import SGLD
    >>> anchor = {"a": torch.zeros(2), "b": torch.zeros(3)}
    >>> def bowl(weights, batch): return sum(w.square().sum() for w in (anchor | weights).values())
    >>> each = {n: LocalPosterior(loss=bowl, anchor={n: w}, nbeta=1.0, localization=1.0) for n, w in anchor.items()}
    >>> config = SamplingConfig(num_chains=2, num_draws=3)
    >>> for draws in sample_together(each, SGLD(step_size=1e-3), [torch.zeros(1)], config):
    ...     print({name: tuple(draw.position.shape) for name, draw in draws.items()})
    {'a': (2, 2), 'b': (2, 3)}
    {'a': (2, 2), 'b': (2, 3)}
    {'a': (2, 2), 'b': (2, 3)}
    """
    data = batches if isinstance(batches, SamplingData) else load_data(batches, seed=config.seed)
    todo = list(range(config.num_chains) if chains is None else chains)
    size = config.chunk_size or len(todo)
    for start in range(0, len(todo), size):
        chunk = todo[start : start + size]
        members = [Chunk(p, sampler, data, config, chunk, anchor_losses) for p in posteriors.values()]
        shared = _SharedPasses(members, record=sampler.adaptation_steps + config.num_steps >= RECORDED_FROM)
        for member, passes in zip(members, shared.members, strict=True):
            member.passes = passes
        for found in zip(*(member.run(probes or {}, on_step) for member in members), strict=True):
            draws = {name: draw for name, draw in zip(posteriors, found, strict=True) if draw is not None}
            if draws:
                yield draws
            else:
                shared.next_step()


def groups(
    posteriors: Mapping[str, LocalPosterior], batch: ChainBatch, config: SamplingConfig
) -> list[tuple[str, ...]]:
    """Which components to run together: those that gain from it, as many as fit the memory.

    Args:
        posteriors: By component.
        batch: A minibatch for two chains.
        config: With the route and the number of chains that run together.

    Returns:
        Names of components, each once, in the order given; a single name where it is run on its own.
    """
    if config.chain_method == "sequential" or batch.ragged:
        return [(name,) for name in posteriors]
    saved = {n: saved_bytes(SequentialPasses(p, p.anchor_row.clone()), batch) for n, p in posteriors.items()}
    small = max(saved.values()) <= SMALL_PASS
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, posterior in posteriors.items():
        alike.setdefault(() if small else tuple(posterior.anchor), []).append(name)
    found: list[tuple[str, ...]] = []
    for names in alike.values():
        anchor = _union([posteriors[name] for name in names])
        coordinates = sum(value.numel() for value in anchor.values())
        value = next(iter(anchor.values()))
        per_chain = COPIES_TOGETHER * coordinates * value.element_size() + 2 * max(saved[name] for name in names)
        chains = max(2, min(config.num_chains, config.chunk_size or config.num_chains))
        fitting = min(RECORDED_AT_MOST // coordinates, int(0.5 * free_memory(value.device) / per_chain)) // chains
        size = max(1, fitting)
        found += [tuple(names[start : start + size]) for start in range(0, len(names), size)]
    return found


def _union(posteriors: Sequence[LocalPosterior]) -> Params:
    return {name: value for posterior in posteriors for name, value in posterior.anchor.items()}


class _SharedPasses:
    """Evaluates all members at once, when the first of them asks, and hands each its own part."""

    def __init__(self, chunks: Sequence[Chunk], *, record: bool) -> None:
        first = chunks[0].posterior
        union = replace(first, anchor=_union([chunk.posterior for chunk in chunks]), masks={})
        self.count = len(chunks[0].position)
        self.rows = union.anchor_rows(len(chunks) * self.count)
        self.passes = VectorizedPasses(union, self.rows, record=record)
        starts = {leaf.name: leaf.start for leaf in union.leaves}
        # alone each evaluates what a sampler looks at again: exact ones do at every step, others four times a run
        often = record and chunks[0].sampler.full_batch
        alone = [VectorizedPasses(chunk.posterior, chunk.position, record=often) for chunk in chunks]
        self.members = [
            _Member(passes, self, place, _columns(passes.posterior, starts)) for place, passes in enumerate(alone)
        ]
        self.next_step()

    def next_step(self) -> None:
        """Forget what was evaluated: the members have moved since."""
        self._gradients: list[tuple[Tensor, Gradient]] = []
        self._losses: dict[tuple[int, int], Tensor] = {}
        for member in self.members:
            member.served = []
        self._written = False

    def gradient(self, order: int, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        """What the members' minibatch number ``order`` of this step gives, for all of them."""
        if order == len(self._gradients):
            self._write()
            self._gradients.append(self.passes.loss_and_gradient(batch.repeat(len(self.members))))
        return self._gradients[order]

    def losses(self, batch: ChainBatch, loss: FunctionalLoss | None) -> Tensor:
        """Of all members, on a part of a probe."""
        key = (id(batch), id(loss))
        if key not in self._losses:
            self._write()
            self._losses[key] = self.passes.losses(batch.repeat(len(self.members)), loss)
        return self._losses[key]

    def _write(self) -> None:
        if not self._written:
            for member in self.members:
                self.rows[member.part].index_copy_(1, member.columns, member.position)
        self._written = True


class _Member(Passes):
    """The passes of one component among others; one that it asks for twice in a step it makes alone.

    It has no leaves of its own to be filled, so that it answers in the place of the base's methods.
    """

    def __init__(self, alone: Passes, shared: _SharedPasses, place: int, columns: Tensor) -> None:
        self.posterior, self.position = alone.posterior, alone.position
        self.alone, self.shared, self.columns = alone, shared, columns
        self.part = slice(place * shared.count, (place + 1) * shared.count)
        self.served: list[ChainBatch] = []

    def loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        """Of this component's chains; alone where a sampler looks again from a place that it has moved to."""
        if any(batch is before for before in self.served):
            return self.alone.loss_and_gradient(batch)
        self.served.append(batch)
        loss, gradient = self.shared.gradient(len(self.served) - 1, batch)
        leaves = {leaf.name: leaf for leaf in self.posterior.leaves}
        own = gradient.of(self.part.start, self.part.stop).parts
        parts = tuple(Part(chains, leaves[leaf.name], values) for chains, leaf, values in own if leaf.name in leaves)
        return loss[self.part], Gradient(parts, self.position)

    def loss(self, batch: ChainBatch) -> Tensor:
        """Mean minibatch loss ``[chain]``, in nats; once a run, so that a pass of its own is not worth recording."""
        return self.loss_and_gradient(batch)[0]

    def losses(self, batch: ChainBatch, loss: FunctionalLoss | None = None) -> Tensor:
        """Losses of each sample of a probe ``[chain, sample]`` or ``[chain, sample, token]``, in nats."""
        return self.shared.losses(batch, loss)[self.part]

    def _loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        return self.loss_and_gradient(batch)

    def _mean_losses(self, batch: ChainBatch) -> Tensor:
        return self.loss(batch)

    def _losses(self, loss: FunctionalLoss, batch: ChainBatch) -> Tensor:
        return self.losses(batch, loss)


def _columns(posterior: LocalPosterior, starts: Mapping[str, int]) -> Tensor:
    """Where a component's coordinates lie among those of all parameters."""
    device = posterior.anchor_row.device
    whole = [torch.arange(value.numel(), device=device) for value in posterior.anchor.values()]
    pieces = [
        starts[leaf.name] + (index if leaf.moving is None else leaf.moving)
        for leaf, index in zip(posterior.leaves, whole, strict=True)
    ]
    return torch.cat(pieces)
