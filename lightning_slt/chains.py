r"""Chains of several settings that move together: one pass for all of them, then each setting's own step.

A search over step sizes, nβ and γ runs many short chains of one loss. Passes are dear and steps are cheap, so all
chains share their passes; a chain moves exactly as it would in :func:`lightning_slt.sampling.sample` on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.data import SamplingData, Streams
from lightning_slt.motion import acceptance, depart, measure
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import Evaluation, Gradient, LocalPosterior
from lightning_slt.samplers.base import Sampler, State
from lightning_slt.sampling import ChainNoise, SamplingConfig
from lightning_slt.types import Draw


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One posterior and one way to sample it."""

    posterior: LocalPosterior
    sampler: Sampler


class Ensemble:
    """The same chains once for every setting: equal noise, equal minibatches.

    Args:
        settings: What runs side by side; their posteriors differ in nβ and γ alone.
        data: Samples.
        config: Gives number of chains, batch size, seed and route; draws and burn-in are the caller's affair.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known.

    Attributes:
        settings: Those in use.
        position: Free coordinates ``[setting, chain, coordinate]``.

    >>> import torch
    >>> from lightning_slt.data import load_data
    >>> from lightning_slt.samplers import SGLD
    >>> bowl = LocalPosterior(loss=lambda w, batch: 0.5 * w["w"].square().sum(), anchor={"w": torch.zeros(4)},
    ...                       nbeta=100.0, localization=1.0)
    >>> both = [Setting(posterior=bowl, sampler=SGLD(step_size=e)) for e in (1e-4, 1e-3)]
    >>> ensemble = Ensemble(both, load_data([torch.zeros(1)]), SamplingConfig(num_chains=3))
    >>> for step in range(5):
    ...     draws = ensemble.draws(step)
    ...     ensemble.move()
    >>> [tuple(draw.loss.shape) for draw in draws]
    [(3,), (3,)]
    """

    def __init__(
        self,
        settings: Sequence[Setting],
        data: SamplingData,
        config: SamplingConfig,
        *,
        anchor_losses: Tensor | None = None,
    ) -> None:
        """Put every chain on the anchor."""
        self.data, self.config, self.anchor_losses = data, config, anchor_losses
        self.posterior = settings[0].posterior
        self.chains = tuple(range(config.num_chains))
        rows = self.posterior.anchor_rows(len(settings) * len(self.chains))
        self.position = rows.view(len(settings), len(self.chains), -1)
        self._passes = self._passes_at(rows)
        self._at_anchor: Passes | None = None
        shards = self.posterior.shards
        self._noise = [ChainNoise(self.chains, like=part, seed=config.seed, shards=shards) for part in self.position]
        self._streams = Streams(
            len(data),
            batch_size=len(data) if any(s.sampler.full_batch for s in settings) else config.batch_size,
            seed=config.seed,
            chains=self.chains,
            share_batches=config.share_batches,
        )
        self._batch: ChainBatch | None = None
        self._here: list[Evaluation] = []
        self._accepted: list[Tensor | None] = []
        self._steps = 0
        self.use(settings)

    def use(self, settings: Sequence[Setting]) -> None:
        """Go on from the present positions with other settings, as many as before; momenta are drawn anew."""
        self.settings = tuple(settings)
        self._states: list[State] = [
            s.sampler.init(part, noise) for s, part, noise in zip(settings, self.position, self._noise, strict=True)
        ]

    def draws(self, index: int, *, look: bool = False) -> list[Draw]:
        """Measure every setting's chains where they are, on the minibatch of the coming step.

        Args:
            index: Which draw this is, from 0.
            look: Measure how they move, too.
        """
        batch = self._next_batch()
        self._here = self._evaluate(batch)
        anchor_loss = self._anchor_loss(batch)
        accepted = self._accepted or [None] * len(self.settings)
        everyone = slice(0, len(self.chains))
        return [
            Draw(
                chains=self.chains,
                index=index,
                step=self._steps,
                loss=here.loss,
                anchor_loss=anchor_loss,
                position=part,
                motion=measure(setting.sampler, state, here, rate, everyone) if look else None,
            )
            for setting, state, here, part, rate in zip(
                self.settings, self._states, self._here, self.position, accepted, strict=True
            )
        ]

    def move(self, *, look: bool = False) -> None:
        """Take the step that :meth:`draws` prepared.

        Args:
            look: Ask whether a Metropolis correction would accept it, for the motion of the next draws; one more pass.
        """
        pairs = zip(self.position, self._here, strict=True)
        starts = [depart(part, here) for part, here in pairs] if look else []
        for i, setting in enumerate(self.settings):
            self._states[i] = setting.sampler.step(self._states[i], self._here[i], self._noise[i])
        self._steps += 1
        self._accepted = []
        if look:
            there = self._evaluate(self._next_batch(again=True))
            starts = [replace(start, again=partial(_known, here)) for start, here in zip(starts, there, strict=True)]
            arrived = zip(self.settings, starts, self.position, strict=True)
            self._accepted = [acceptance(s.sampler, start, part) for s, start, part in arrived]

    def gradient(self, batch: ChainBatch | None = None) -> Gradient:
        """Of the loss where the chains are, on one batch for all, or on that of the coming step."""
        return self._passes.loss_and_gradient(self._next_batch(again=True) if batch is None else batch)[1]

    def _evaluate(self, batch: ChainBatch) -> list[Evaluation]:
        """What each setting's sampler may know, from one pass of all."""
        batch, count = batch.repeat(len(self.settings)), len(self.chains)

        def part(index: int) -> tuple[Tensor, Gradient]:
            return _part(self._passes.loss_and_gradient(batch), index * count, (index + 1) * count)

        everything = self._passes.loss_and_gradient(batch)
        evaluations = []
        for i, setting in enumerate(self.settings):
            loss, gradient = _part(everything, i * count, (i + 1) * count)
            again = partial(part, i)
            evaluations.append(Evaluation(posterior=setting.posterior, loss=loss, gradient=gradient, again=again))
        return evaluations

    def _passes_at(self, rows: Tensor) -> Passes:
        if self.config.chain_method == "sequential":
            return SequentialPasses(self.posterior, rows)
        return VectorizedPasses(self.posterior, rows, record=True)

    def _next_batch(self, *, again: bool = False) -> ChainBatch:
        if self._batch is None or not (again or self._streams.full):
            self._batch = self.data.chain_batch(self._streams.next())
        return self._batch

    def _anchor_loss(self, batch: ChainBatch) -> Tensor:
        count = len(self.chains)
        if self.anchor_losses is not None:
            return self.anchor_losses[batch.indices.to(self.anchor_losses.device)].mean(-1).expand(count)
        if self._at_anchor is None:
            self._at_anchor = self._passes_at(self.posterior.anchor_rows(count))
        return self._at_anchor.loss(batch)


def _part(everything: tuple[Tensor, Gradient], start: int, stop: int) -> tuple[Tensor, Gradient]:
    loss, gradient = everything
    return loss[start:stop], gradient.of(start, stop)


def _known(here: Evaluation) -> tuple[Tensor, Gradient]:
    return here.loss, here.gradient
