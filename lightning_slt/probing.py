"""Probes made ready: samples fetched once, losses per sample, and what they are at the anchor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from lightning_slt.batches import ChainBatch, side_by_side
from lightning_slt.boundary import HOW_TO_WRITE_A_LOSS
from lightning_slt.data import load_data
from lightning_slt.functional import ModuleLoss, one_by_one, per_sample_losses
from lightning_slt.preflight import steady
from lightning_slt.probes import Probe, ProbeAtAnchor
from lightning_slt.sampling import ProbeData
from lightning_slt.seeding import generator
from lightning_slt.sources import source_parts
from lightning_slt.types import Batch, FunctionalLoss, Params

PROBE_MEMORY = 2**30
"""Bytes of samples that a probe may hold."""


@dataclass(frozen=True, kw_only=True)
class FetchedProbe:
    """A probe with its samples in memory.

    Attributes:
        probe: Which.
        batches: All samples in order.
        labels: ``[sample]``, or None.
        indices: Which samples of the user's data these are ``[sample]``.
    """

    probe: Probe
    batches: tuple[ChainBatch, ...]
    labels: Tensor | None
    indices: Tensor


@dataclass(frozen=True, kw_only=True)
class ReadyProbe:
    """A probe as the chains around one anchor meet it.

    Attributes:
        data: For :func:`lightning_slt.sampling.sample`.
        known: For estimators.
    """

    data: ProbeData
    known: ProbeAtAnchor


@dataclass(frozen=True)
class EachAlone:
    """A loss that gives a mean, evaluated on every sample alone."""

    loss: FunctionalLoss

    def __call__(self, weights: Params, batch: Batch) -> Tensor:
        """Losses ``[sample]``."""
        return one_by_one(self.loss, weights, batch)


def fetch(probe: Probe, source: Any = None, *, to_device: Callable[[Batch], Batch], seed: int) -> FetchedProbe:
    """Fetch a probe's samples once; call inside ``isolated``.

    Args:
        probe: Which.
        source: The chains' own data, for a probe without any.
        to_device: Moves a collated batch to the device and dtype of the loss.
        seed: Of the run: chooses the samples.

    Raises:
        TypeError: If labels do not fit, or data cannot be indexed.
        ValueError: If the probe asks for more samples than its data have, or they do not fit into memory.
    """
    dataset, collate = source_parts(source if probe.data is None else probe.data)
    if probe.data is not None and (probe.num_samples or 0) > len(dataset):
        raise ValueError(
            f"probe {probe.name!r} asks for num_samples={probe.num_samples}, and its data have {len(dataset)}; leave "
            "num_samples out for all of them"
        )
    indices = torch.arange(len(dataset))
    if probe.num_samples is not None and probe.num_samples < len(dataset):
        chosen = torch.randperm(len(dataset), generator=generator(seed, "probe"))[: probe.num_samples]
        indices = chosen.sort().values
    subset = DataLoader(Subset(dataset, indices.tolist()), collate_fn=collate)
    samples = load_data(subset, to_device=to_device, seed=seed, memory_limit=PROBE_MEMORY)
    if len(samples) < len(indices):
        raise ValueError(
            f"probe {probe.name!r} has {len(indices)} samples, more than {PROBE_MEMORY >> 30} GiB of memory hold; "
            f"write Probe(…, num_samples={len(samples)}) or less"
        )
    batches = tuple(samples.chain_batch(part) for part in torch.split(torch.arange(len(samples)), probe.batch_size))
    labels = _labels(probe, indices, len(dataset), [batch.of_chain(0) for batch in batches])
    return FetchedProbe(probe=probe, batches=batches, labels=labels, indices=indices)


def make_ready(fetched: FetchedProbe, module_loss: ModuleLoss, default: FunctionalLoss, *, seed: int) -> ReadyProbe:
    """Find out how a probe's losses are had, and what they are at an anchor; call inside ``isolated``.

    Args:
        fetched: The probe.
        module_loss: Holds the anchor.
        default: The loss that is sampled, for probes without one of their own.
        seed: Of the run.

    Raises:
        TypeError: If losses per sample cannot be had.
        ValueError: If a loss is not finite at the anchor.
    """
    loss, first = default, fetched.batches[0].of_chain(0)
    if fetched.probe.loss_fn is not None:
        loss = steady(module_loss.with_loss(fetched.probe.loss_fn), module_loss.weights, first, seed=seed)
    first_losses = loss(module_loss.weights, first) if module_loss.shards.spread else None
    if first_losses is not None and first_losses.ndim == 0:
        raise TypeError(
            f"probe {fetched.probe.name!r} needs losses per sample, and those of a sharded network (FSDP2) cannot be "
            f"derived from a mean, sample by sample: {HOW_TO_WRITE_A_LOSS}"
        )
    loss, anchor = _per_sample(loss, module_loss.weights, fetched.batches, fetched.probe.name)
    known = ProbeAtAnchor(anchor=anchor, labels=fetched.labels, indices=fetched.indices)
    return ReadyProbe(data=ProbeData(batches=fetched.batches, loss=loss), known=known)


def _per_sample(
    loss: FunctionalLoss, weights: Params, batches: Sequence[ChainBatch], name: str
) -> tuple[FunctionalLoss, Tensor]:
    """A loss per sample, checked on the first batch, and its values at the anchor."""
    with torch.no_grad():
        first = batches[0].of_chain(0)
        if per_sample_losses(loss, weights, first).shape != loss(weights, first).shape:
            loss = EachAlone(loss)
        anchor = side_by_side([loss(weights, batch.of_chain(0))[None] for batch in batches])[0]
    if not bool(anchor.isfinite().all()):
        bad = (~anchor.reshape(len(anchor), -1).isfinite().all(1)).nonzero()[:, 0].tolist()
        raise ValueError(
            f"{len(bad)} samples of probe {name!r} have a loss at the anchor that is not finite: {bad[:5]}…"
        )
    return loss, anchor


def _labels(probe: Probe, indices: Tensor, total: int, batches: Sequence[Batch]) -> Tensor | None:
    if probe.labels is not None:
        labels = torch.as_tensor(probe.labels)
        if labels.shape != (total,):
            raise TypeError(f"labels of probe {probe.name!r} have shape {tuple(labels.shape)} for {total} samples")
        return labels[indices]
    targets = [b[1] for b in batches if isinstance(b, tuple | list) and len(b) == 2 and isinstance(b[1], Tensor)]
    whole = len(targets) == len(batches) and all(t.ndim == 1 and not t.is_floating_point() for t in targets)
    return torch.cat(targets).cpu() if whole else None
