r"""Chains of several settings that move together: one pass for all of them, then each setting's own step.

A search over step sizes, nβ and γ runs many short chains of one loss. Passes are dear and steps are cheap, so all
chains share their passes; a chain moves exactly as it would in :func:`lightning_slt.sampling.sample` on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.data import SamplingData, Streams
from lightning_slt.motion import Departure, acceptance, depart
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import Evaluation, Gradient, LocalPosterior
from lightning_slt.samplers.base import Sampler, State
from lightning_slt.sampling import RECORDED_FROM, ChainNoise, SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One posterior and one way to sample it."""

    posterior: LocalPosterior
    sampler: Sampler


class Ensemble:
    """Some chains of every setting.

    Args:
        settings: What runs side by side; their posteriors differ in nβ and γ alone.
        data: Samples.
        config: Gives number of chains, batch size, seed and route; draws and burn-in are the caller's affair.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known.

    Attributes:
        position: Free coordinates ``[setting, chain, coordinate]``.
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
        chains = range(config.num_chains)
        self._rows = self.posterior.anchor_row.repeat(len(settings) * len(chains), 1)
        self.position = self._rows.view(len(settings), len(chains), -1)
        self._passes = self._passes_at(self._rows)
        self._at_anchor: Passes | None = None
        self._noise = [ChainNoise(chains, like=part, seed=config.seed) for part in self.position]
        self._streams = Streams(
            len(data),
            batch_size=len(data) if any(s.sampler.full_batch for s in settings) else config.batch_size,
            seed=config.seed,
            chains=chains,
            share_batches=config.share_batches,
        )
        self._batch: ChainBatch | None = None
        self.use(settings)

    def use(self, settings: Sequence[Setting]) -> None:
        """Go on from the present positions with other settings, as many as before; momenta are drawn anew."""
        self.settings = tuple(settings)
        self._states: list[State] = [
            s.sampler.init(part, noise) for s, part, noise in zip(settings, self.position, self._noise, strict=True)
        ]

    def step(self, *, look: bool = False) -> tuple[Tensor, Tensor | None]:
        """Move every chain once.

        Args:
            look: Also ask whether a Metropolis correction would accept the step; costs one more pass.

        Returns:
            Loss above the anchor before the step, on the step's own minibatch ``[setting, chain]``, in nats; and the
            probability of acceptance ``[setting, chain]``, NaN for samplers that propose nothing of known density.
        """
        own = self._next_batch()
        batch = own.repeat(len(self.settings))
        here = self._evaluate(batch)
        rise = torch.stack([e.loss for e in here]) - self._anchor_loss(own)
        starts = [depart(part, e) for part, e in zip(self.position, here, strict=True)] if look else []
        for i, setting in enumerate(self.settings):
            self._states[i] = setting.sampler.step(self._states[i], here[i], self._noise[i])
        return rise, self._acceptance(starts, batch) if look else None

    def _evaluate(self, batch: ChainBatch) -> list[Evaluation]:
        """What each setting's sampler may know, from one pass of all."""
        count = self.position.shape[1]
        loss, gradient = self._passes.loss_and_gradient(batch)

        def again(index: int) -> tuple[Tensor, Gradient]:
            loss, gradient = self._passes.loss_and_gradient(batch)
            return loss[index * count : (index + 1) * count], gradient.of(index * count, (index + 1) * count)

        return [
            Evaluation(
                posterior=setting.posterior,
                loss=loss[i * count : (i + 1) * count],
                gradient=gradient.of(i * count, (i + 1) * count),
                again=partial(again, i),
            )
            for i, setting in enumerate(self.settings)
        ]

    def _acceptance(self, starts: Sequence[Departure], batch: ChainBatch) -> Tensor:
        rates = []
        for setting, start, part, there in zip(
            self.settings, starts, self.position, self._evaluate(batch), strict=True
        ):
            known = replace(there, again=partial(_pair, there.loss, there.gradient))
            rate = acceptance(setting.sampler, start, part, known)
            rates.append(torch.full_like(there.loss, torch.nan) if rate is None else rate)
        return torch.stack(rates)

    def _passes_at(self, rows: Tensor) -> Passes:
        if self.config.chain_method == "sequential":
            return SequentialPasses(self.posterior, rows)
        return VectorizedPasses(self.posterior, rows, record=True)

    def _next_batch(self) -> ChainBatch:
        if self._batch is None or not self._streams.full:
            self._batch = self.data.chain_batch(self._streams.next())
        return self._batch

    def _anchor_loss(self, batch: ChainBatch) -> Tensor:
        """On the minibatch of each chain ``[chain]``, or of all ``[1]``."""
        if self.anchor_losses is not None:
            return self.anchor_losses[batch.indices.to(self.anchor_losses.device)].mean(-1)
        if self._at_anchor is None:
            self._at_anchor = self._passes_at(self.posterior.anchor_row.repeat(self.position.shape[1], 1))
        return self._at_anchor.loss(batch)


def _pair(loss: Tensor, gradient: Gradient) -> tuple[Tensor, Gradient]:
    return loss, gradient
