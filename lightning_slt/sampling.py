r"""The one sampling loop: chains move around the anchor, and every kept position is measured.

A position ``w_t`` is measured on the minibatch of step t, before the step that uses it, and compared with the anchor
on that same minibatch: the noise common to both cancels (a *paired baseline*). The anchor itself is never a draw.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch, side_by_side
from lightning_slt.boundary import make_plain
from lightning_slt.data import SamplingData, Streams, load_data
from lightning_slt.motion import acceptance, depart, measure
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import Evaluation, LocalPosterior
from lightning_slt.precision import Precision, check_precision
from lightning_slt.samplers.base import Sampler, State
from lightning_slt.seeding import derive_seed, generator
from lightning_slt.sharding import WHOLE, Shards
from lightning_slt.types import Draw, FunctionalLoss, Motion

RECORDED_FROM = 128
"""Steps of a run from which recording the passes pays: it costs as much as it saves in 60 to 130 of them."""

ChainMethod = Literal["auto", "vectorized", "sequential"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How many chains and draws, and how they run.

    Args:
        num_chains: Independent chains; error bars come from their spread, so two at least.
        num_draws: Kept draws of each chain.
        num_burnin: Steps before the first kept draw; None is chosen by calibration, 0 is the published form.
        thinning: Steps per kept draw.
        batch_size: Samples a minibatch; as many as there are, or more, is the full set.
        seed: Chain c depends on (seed, c) alone.
        chain_method: ``"auto"`` runs chains together where the module allows it and says so where not,
            ``"vectorized"`` raises there, ``"sequential"`` never tries.
        chunk_size: Chains run together; None fits them to the free memory.
        share_batches: One minibatch for all chains of a step instead of one stream each.
        precision: Of the passes: ``"float32"``, ``"tf32"`` or ``"bf16"``; None is that of training. Positions and noise
            stay as they are.

    Raises:
        ValueError: If a count is too small, or the method or the precision unknown.

    >>> SamplingConfig(num_chains=4, num_draws=200).thinning
    1
    """

    num_chains: int = 8
    num_draws: int = 200
    num_burnin: int | None = None
    thinning: int = 1
    batch_size: int = 64
    seed: int = 0
    chain_method: ChainMethod = "auto"
    chunk_size: int | None = None
    share_batches: bool = False
    precision: Precision | None = None

    def __post_init__(self) -> None:
        """Refuse counts that cannot be."""
        make_plain(self)
        least = {"num_chains": 1, "num_draws": 1, "thinning": 1, "batch_size": 1}
        least |= {"num_burnin": 0} if self.num_burnin is not None else {}
        least |= {"chunk_size": 1} if self.chunk_size is not None else {}
        for name, low in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"SamplingConfig.{name} must be a whole number of at least {low}, got {value!r}")
        if self.chain_method not in ("auto", "vectorized", "sequential"):
            raise ValueError(
                f"SamplingConfig.chain_method must be 'auto', 'vectorized' or 'sequential', got {self.chain_method!r}"
            )
        check_precision(self.precision)

    @property
    def num_steps(self) -> int:
        """Sampler steps of one chain: burn-in + draws × thinning."""
        return (self.num_burnin or 0) + self.num_draws * self.thinning


@dataclass(frozen=True, kw_only=True)
class ProbeData:
    """A probe ready to be evaluated: fixed batches and the loss per sample."""

    batches: tuple[ChainBatch, ...]
    loss: FunctionalLoss | None = None


def sample(
    posterior: LocalPosterior,
    sampler: Sampler,
    batches: Any,
    config: SamplingConfig,
    *,
    probes: Mapping[str, ProbeData] | None = None,
    anchor_losses: Tensor | None = None,
    chains: Sequence[int] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Draw]:
    """Run the chains and yield their kept draws, chunk by chunk.

    A chunk holds as many chains as fit; all draws of one chunk come before the next. One generator per chain drives
    its noise and one its minibatches, so a chain's bits do not depend on how many others run.

    Args:
        posterior: What is sampled.
        sampler: How.
        batches: The samples to draw minibatches from: what :func:`lightning_slt.data.load_data` gives, or anything
            that it takes.
        config: Counts. ``chain_method="auto"`` is taken as vectorized; :func:`lightning_slt.preflight.choose_route`
            finds out whether a loss allows that.
        probes: Named fixed sets, evaluated at every kept draw.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known; saves one forward pass a draw.
        chains: Run only these; None for all.
        on_step: Called after every step with the number of chains that made it.

    Yields:
        One :class:`Draw` per chunk and kept position.

    >>> from lightning_slt.samplers import SGLD
    >>> bowl = LocalPosterior(loss=lambda w, batch: 0.5 * w["w"].square().sum(), anchor={"w": torch.zeros(4)},
    ...                       nbeta=100.0, localization=1.0)
    >>> config = SamplingConfig(num_chains=2, num_draws=3, num_burnin=10, thinning=5)
    >>> [(draw.chains, draw.index, draw.step) for draw in sample(bowl, SGLD(step_size=1e-3), [torch.zeros(1)], config)]
    [((0, 1), 0, 15), ((0, 1), 1, 20), ((0, 1), 2, 25)]
    """
    data = batches if isinstance(batches, SamplingData) else load_data(batches, seed=config.seed)
    if config.precision not in (None, posterior.precision):
        posterior = replace(posterior, precision=config.precision)
    todo = list(range(config.num_chains) if chains is None else chains)
    size = config.chunk_size or len(todo)
    for start in range(0, len(todo), size):
        chunk = todo[start : start + size]
        run = Chunk(posterior, sampler, data, config, chunk, anchor_losses).run(probes or {}, on_step)
        yield from filter(_is_draw, run)  # which holds on to none, so that the next chunk finds room


def _is_draw(found: Draw | None) -> TypeGuard[Draw]:
    return found is not None


class Chunk:
    """Some chains that run together; a single one gets an idle twin, because kernels round a batch of one apart."""

    def __init__(
        self,
        posterior: LocalPosterior,
        sampler: Sampler,
        data: SamplingData,
        config: SamplingConfig,
        chains: Sequence[int],
        anchor_losses: Tensor | None,
    ) -> None:
        self.posterior, self.sampler, self.data, self.config = posterior, sampler, data, config
        self.chains = tuple(chains)
        self.sequential = config.chain_method == "sequential"
        twins = len(self.chains) == 1 and not self.sequential
        self.rows = [*self.chains, *self.chains] if twins else list(self.chains)
        self.position = posterior.anchor_rows(len(self.rows))
        self.passes = self._passes_at(self.position)
        self.noise = ChainNoise(self.rows, like=self.position, seed=config.seed, shards=posterior.shards)
        self.streams = self._streams(config.seed)
        self._others: Streams | None = None
        self.anchor_losses = anchor_losses
        self._at_anchor: Passes | None = None
        self._fixed: ChainBatch | None = None

    def _passes_at(self, position: Tensor) -> Passes:
        steps = self.sampler.adaptation_steps + self.config.num_steps
        route = SequentialPasses if self.sequential else VectorizedPasses
        return route(self.posterior, position, record=steps >= RECORDED_FROM)

    def run(self, probes: Mapping[str, ProbeData], on_step: Callable[[int], None] | None) -> Iterator[Draw | None]:
        """Step t uses minibatch t at position t; positions 1 … total may be draws, position 0 is the anchor.

        Yields None before each step's passes: there chunks that share passes wait for one another.
        """
        config, first = self.config, self.sampler.adaptation_steps
        total = first + config.num_steps
        state = self.sampler.init(self.position, self.noise)
        every = max(1, config.num_draws // 4)
        accepted: Tensor | None = None
        for step in range(total + 1):
            batch = self._next_batch()
            index = _kept(step - first, config)
            yield None
            if step == total:
                yield self._draw(config.num_draws - 1, step, batch, self.passes.loss(batch), None, probes)
                return
            look = index is not None and index % every == 0
            second = self._second_look() if look else None  # before the step's own pass, whose gradient must last
            again = partial(self.passes.loss_and_gradient, batch)
            loss, gradient = again()
            here = Evaluation(posterior=self.posterior, loss=loss, gradient=gradient, again=again)
            if index is not None:
                motion = self._motion(state, here, accepted, second) if look else None
                yield self._draw(index, step, batch, loss, motion, probes)
            following = _kept(step + 1 - first, config)
            start = depart(self.position, here) if following is not None and following % every == 0 else None
            state = self.sampler.step(state, here, self.noise)
            del here, loss, gradient, again  # rows as long as the weights, before there are new ones
            accepted = None if start is None else acceptance(self.sampler, start, self.position)
            del start
            if on_step is not None:
                on_step(len(self.chains))

    def _next_batch(self) -> ChainBatch:
        if self.streams.full:
            self._fixed = self._fixed or self.data.chain_batch(self.streams.next())
            return self._fixed
        return self.data.chain_batch(self.streams.next())

    def _draw(
        self,
        index: int,
        step: int,
        batch: ChainBatch,
        loss: Tensor,
        motion: Motion | None,
        probes: Mapping[str, ProbeData],
    ) -> Draw:
        alive = slice(0, len(self.chains))
        return Draw(
            chains=self.chains,
            index=index,
            step=step,
            loss=loss[alive],
            anchor_loss=self._anchor_loss(batch, len(loss))[alive],
            position=self.position[alive],
            probes={name: self._probe(probe)[alive] for name, probe in probes.items()},
            motion=motion,
        )

    def _anchor_loss(self, batch: ChainBatch, count: int) -> Tensor:
        if self.anchor_losses is not None:
            known = self.anchor_losses[batch.indices.to(self.anchor_losses.device)].mean(-1)
            return known.expand(count) if batch.shared else known
        if self._at_anchor is None:
            self._at_anchor = self._passes_at(self._anchor_rows(count))
        if self._fixed is None:
            return self._at_anchor.loss(batch)
        if not hasattr(self, "_fixed_loss"):
            self._fixed_loss = self._at_anchor.loss(batch)
        return self._fixed_loss

    def _anchor_rows(self, count: int) -> Tensor:
        """The anchor for each of the chains; where they run one after another they can share it."""
        return self.posterior.anchor_row.expand(count, -1) if self.sequential else self.posterior.anchor_rows(count)

    def _probe(self, probe: ProbeData) -> Tensor:
        return side_by_side([self.passes.losses(batch, probe.loss) for batch in probe.batches])

    def _motion(self, state: State, here: Evaluation, accepted: Tensor | None, second: Tensor | None) -> Motion:
        return measure(self.sampler, state, here, accepted, slice(0, len(self.chains)), again=second)

    def _second_look(self) -> Tensor | None:
        """∇L where the chains are, on a minibatch that no step uses; None without need, or without another one."""
        if not self.sampler.second_look or self.streams.full:
            return None
        self._others = self._others or self._streams(derive_seed(self.config.seed, "second look"))
        return self.passes.loss_and_gradient(self.data.chain_batch(self._others.next()))[1].rows

    def _streams(self, seed: int) -> Streams:
        return Streams(
            len(self.data),
            batch_size=len(self.data) if self.sampler.full_batch else self.config.batch_size,
            seed=seed,
            chains=self.rows,
            share_batches=self.config.share_batches,
        )


def _kept(step: int, config: SamplingConfig) -> int | None:
    """Which draw a step is, or None: after the burn-in, every ``thinning``-th position."""
    past = step - (config.num_burnin or 0)
    return past // config.thinning - 1 if past > 0 and past % config.thinning == 0 else None


class ChainNoise:
    """One row of standard normals per chain and step, from that chain's own generator.

    On the CPU the rows are drawn by a few threads at once: a row is one serial stream, and for wide networks it costs
    as much as the passes.
    """

    def __init__(self, chains: Sequence[int], *, like: Tensor, seed: int, shards: Shards = WHOLE) -> None:
        """Seed one generator per chain; and one for what all processes that hold a chain's shards must draw alike."""
        self.rows = torch.empty_like(like)
        self._each = self.rows.unbind()
        own, device = shards.own_seed(seed), like.device
        self._generators = [generator(own, "noise", chain, device=device) for chain in chains]
        apart = [generator(seed, "uniforms", chain, device=device) for chain in chains]
        self._common = apart if shards.spread else self._generators
        threads = min(len(chains), torch.get_num_threads(), os.cpu_count() or 1)
        parallel = like.device.type == "cpu" and threads > 1 and like.shape[1] >= 4096
        self._pool = ThreadPoolExecutor(threads) if parallel else None

    def normals(self) -> Tensor:
        """Fresh standard normals ``[chain, coordinate]``, in storage that the next call overwrites."""
        if self._pool is None:
            for chain in range(len(self._generators)):
                self._fill(chain)
        else:
            list(self._pool.map(self._fill, range(len(self._generators))))
        return self.rows

    def uniforms(self) -> Tensor:
        """Fresh numbers between 0 and 1 ``[chain]``."""
        return torch.cat([self.rows.new_empty(1).uniform_(generator=g) for g in self._common])

    def _fill(self, chain: int) -> None:
        self._each[chain].normal_(generator=self._generators[chain])
