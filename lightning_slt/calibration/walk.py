"""Chains on their way to the absolute target, with what is measured along it: curvature, minibatch noise, losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lightning_slt.batches import ChainBatch
from lightning_slt.calibration.curvature import ITERATIONS, curvature_at
from lightning_slt.chains import Ensemble, Setting
from lightning_slt.data import SamplingData
from lightning_slt.posterior import LocalPosterior
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import generator

SAFE, UNSAFE = 0.3, 0.9
"""``ε Λ`` of the pilot: what it aims for, and what sends it back."""

PILOT_CHUNKS, LONGEST_CHUNK = 16, 100
CURVATURE_SAMPLES = 1024

Advance = Callable[[int], None]


class Walk:
    """Where chains of one posterior are, and what it is like there.

    Args:
        posterior: What is sampled.
        data: Samples.
        config: Chains, batch size, seed and route.
        anchor_losses: Loss of every sample at the anchor ``[sample]``, where known.
        on_step: Called after every step with the number of chains that made it.

    Attributes:
        steps: Of a chain, so far.
    """

    def __init__(
        self,
        posterior: LocalPosterior,
        data: SamplingData,
        config: SamplingConfig,
        anchor_losses: Tensor | None,
        on_step: Advance | None,
    ) -> None:
        """Start at the anchor."""
        self.posterior, self.data, self.config = posterior, data, config
        self.anchor_losses, self.on_step = anchor_losses, on_step
        self.steps = 0
        self._batches = _curvature_batch(data, config)
        self._direction = self._normals("absolute curvature")

    def pilot(self) -> tuple[float, Tensor]:
        """Walk away from the anchor with SGLD, the step as long as the curvature on the way allows.

        Returns:
            Λ over the last chunks, and where the chains are ``[chain, coordinate]``.
        """
        step_size, length, seen = self._safe_start(), 2, []
        ensemble = self.ensemble([SGLD(step_size=step_size)])
        for _ in range(PILOT_CHUNKS):
            before = ensemble.position.clone()
            ensemble.use([Setting(posterior=self.posterior, sampler=SGLD(step_size=step_size))])
            self.advance(ensemble, length)
            curvature = self.curvature(ensemble.position[0])
            if not step_size * curvature < UNSAFE:
                ensemble.position.copy_(before)
                step_size, length = step_size / 3, max(2, length // 2)
                continue
            seen.append(curvature)
            step_size, length = min(2 * step_size, SAFE / max(seen[-4:])), min(2 * length, LONGEST_CHUNK)
        if not seen:
            raise ValueError("chains cannot leave the anchor at any step size: the loss is not finite around it")
        return max(seen[-4:]), ensemble.position[0].clone()

    def _safe_start(self) -> float:
        anchor = self.posterior.anchor_row.repeat(self.config.num_chains, 1)
        curvature = self.curvature(anchor, iterations=ITERATIONS)
        if not math.isfinite(curvature):
            raise ValueError(f"the loss has curvature {curvature} at the anchor: expected a finite number")
        step_size, noise = SAFE / curvature, self._normals("safe start")
        while not step_size * self.curvature(anchor + math.sqrt(step_size) * noise) <= 1.05 * SAFE:
            step_size /= 2
        return step_size

    def noise(self, position: Tensor) -> float:
        """S at some places ``[chain, coordinate]``: the largest eigenvalue of the covariance of nβ g there."""
        if self.config.batch_size >= len(self.data):
            return 0.0
        ensemble = self.ensemble([SGLD(step_size=0.0)])
        ensemble.position.copy_(position)
        mean = torch.zeros_like(position)
        for batch in _epoch(self.data):
            ensemble.gradient(batch).add_to(mean, scale=len(batch.indices) / len(self.data))
        apart = []
        for look in range(max(2, 128 // len(position))):
            ensemble.draws(look)
            apart.append(ensemble.gradient().rows - mean)
        scatter = self.posterior.nbeta * torch.cat(apart).double()
        products = self.posterior.shards.add(scatter @ scatter.T)
        return float(torch.linalg.eigvalsh(products / len(scatter))[-1])

    def curvature(self, position: Tensor, *, iterations: int = 8) -> float:
        """Λ over some places; infinite where a chain is lost."""
        values, direction = curvature_at(
            self.posterior, position, self._batches, self.config, self._direction, iterations=iterations
        )
        values = self.posterior.nbeta * values + self.posterior.localization
        if not bool(values.isfinite().all()):
            return math.inf
        self._direction = direction
        return float(values.max())

    def advance(self, ensemble: Ensemble, steps: int) -> Tensor:
        """Some steps, and the loss above the anchor at each ``[setting, chain, step]``, in nats."""
        rises = []
        for index in range(steps):
            rises.append(torch.stack([d.loss.double() - d.anchor_loss.double() for d in ensemble.draws(index)]))
            ensemble.move()
            self.steps += 1
            if self.on_step is not None:
                self.on_step(len(ensemble.settings) * len(ensemble.chains))
        return torch.stack(rises, 2).cpu()

    def ensemble(self, samplers: Sequence[Sampler]) -> Ensemble:
        """Chains at the anchor, the same for every sampler."""
        settings = [Setting(posterior=self.posterior, sampler=sampler) for sampler in samplers]
        return Ensemble(settings, self.data, self.config, anchor_losses=self.anchor_losses)

    def _normals(self, purpose: str) -> Tensor:
        row = self.posterior.anchor_row
        g = generator(self.posterior.shards.own_seed(self.config.seed), purpose)
        return torch.randn(self.config.num_chains, row.shape[1], generator=g, dtype=row.dtype).to(row.device)


def _curvature_batch(data: SamplingData, config: SamplingConfig) -> list[ChainBatch]:
    order = torch.randperm(len(data), generator=generator(config.seed, "curvature data"))
    return [data.chain_batch(order[:CURVATURE_SAMPLES])]


def _epoch(data: SamplingData) -> Iterator[ChainBatch]:
    for start in range(0, len(data), CURVATURE_SAMPLES):
        yield data.chain_batch(torch.arange(start, min(start + CURVATURE_SAMPLES, len(data))))
