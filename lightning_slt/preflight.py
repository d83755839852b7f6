"""What is checked once before chains run: the loss answers to the weights, which route works, how many chains fit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_slt.data import ChainBatch, SamplingData
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed, generator
from lightning_slt.types import Batch, FunctionalLoss, Params

_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError)


class PreflightError(ValueError):
    """A posterior that cannot be sampled; the message says what to write."""


def steady(loss: FunctionalLoss, weights: Params, batch: Batch, *, seed: int) -> FunctionalLoss:
    """The loss itself, or, where it draws random numbers, the loss with the same ones at every evaluation.

    A variational autoencoder's sampled latent, say: fresh numbers at ``w_t`` and at ``w*`` would not cancel.
    """
    before = torch.random.get_rng_state()
    loss(weights, batch)
    if torch.equal(before, torch.random.get_rng_state()):
        return loss
    fixed = derive_seed(seed, "loss")

    def seeded(weights: Params, batch: Batch) -> Tensor:
        torch.manual_seed(fixed)
        return loss(weights, batch)

    return seeded


def check_response(posterior: LocalPosterior, batch: ChainBatch, *, seed: int) -> None:
    """Refuse a loss that is not finite at the anchor, or that ignores the weights that it is given.

    Compares losses at ``w*`` and at one draw of ``w* + N(0, 1/γ)``, bit by bit.

    Raises:
        PreflightError: In both cases.
    """
    rows = _anchor_and_neighbour(posterior, seed)
    here, there = SequentialPasses(posterior, rows).loss(_for_two(batch)).tolist()
    if not torch.isfinite(torch.tensor(here)):
        raise PreflightError(
            f"the loss at the anchor is {here}: expected a finite number. A torchmetrics Metric that enters the loss "
            "reads NaN here (compute that part without the Metric); else look at the weights and the data"
        )
    if here == there:
        raise PreflightError(
            f"the loss is {here} at the anchor and at {posterior.dimension} weights moved away from it: it ignores the "
            "weights that the sampler gives. Sharded modules and losses on copies of the network do that; write "
            "loss_fn(module, batch) so that it runs the module that it gets"
        )


def choose_route(posterior: LocalPosterior, batch: ChainBatch, config: SamplingConfig) -> SamplingConfig:
    """Resolve ``chain_method="auto"`` by trying ``vmap`` once and comparing with the sequential route.

    Returns:
        The config with ``"vectorized"`` or ``"sequential"``.

    Raises:
        PreflightError: If ``"vectorized"`` was asked for and is refused; names the cause.
    """
    if config.chain_method == "sequential":
        return config
    cause = _why_not_vectorized(posterior, batch, config.seed)
    if cause is None:
        return replace(config, chain_method="vectorized")
    if config.chain_method == "vectorized":
        raise PreflightError(
            f"the loss cannot be vectorized over chains: {cause}. Write SamplingConfig(chain_method='sequential')"
        )
    warnings.warn(
        f"the loss cannot be vectorized over chains, so they run one after another, which is slower: {cause}. "
        "SamplingConfig(chain_method='sequential') says so without this warning",
        stacklevel=2,
    )
    return replace(config, chain_method="sequential")


def fit_chunk(posterior: LocalPosterior, batch: ChainBatch, config: SamplingConfig) -> SamplingConfig:
    """Choose how many chains run together from the free memory, where the user did not."""
    if config.chunk_size is not None:
        return config
    per_chain = 8 * posterior.anchor_row.numel() * posterior.anchor_row.element_size()
    per_chain += 2 * _saved_bytes(SequentialPasses(posterior, posterior.anchor_row.clone()), batch)
    fitting = int(0.5 * free_memory(posterior.anchor_row.device) / max(per_chain, 1))
    return replace(config, chunk_size=max(1, min(config.num_chains, fitting)))


def anchor_losses(loss: FunctionalLoss, weights: Params, data: SamplingData, config: SamplingConfig) -> Tensor | None:
    """Loss of every sample at the anchor ``[sample]``, where the loss gives it and one pass over the data pays."""
    if data.whole is None or len(data) > config.num_chains * config.num_draws * config.batch_size:
        return None
    rows = []
    with torch.no_grad():
        for start in range(0, len(data), 256):
            index = torch.arange(start, min(start + 256, len(data)))
            losses = loss(weights, data.batch(index))
            if losses.ndim == 0 or len(losses) != len(index):
                return None
            rows.append(losses.reshape(len(index), -1).mean(1))
    return torch.cat(rows)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    return 4 * 2**30


def _anchor_and_neighbour(posterior: LocalPosterior, seed: int) -> Tensor:
    row = posterior.anchor_row
    noise = torch.randn(row.shape, generator=generator(seed, "response"), dtype=row.dtype).to(row.device)
    scale = posterior.localization**-0.5 if posterior.localization else 1.0
    return torch.cat([row, row + scale * noise])


def _for_two(batch: ChainBatch) -> ChainBatch:
    """One shared batch as two equal batches of two chains."""
    if not batch.shared:
        return batch.rows(0, 2)
    leaves = tuple(leaf.expand(2, *leaf.shape) for leaf in batch.leaves)
    return batch._replace(leaves=leaves, shared=False, indices=batch.indices.expand(2, -1))


def _why_not_vectorized(posterior: LocalPosterior, batch: ChainBatch, seed: int) -> str | None:
    """None where the vectorized route gives what the sequential one gives, else the reason in a few words."""
    if batch.ragged:
        return "minibatches of different chains have different shapes"
    rows, both = _anchor_and_neighbour(posterior, seed), _for_two(batch)
    loss, gradient = SequentialPasses(posterior, rows).loss_and_gradient(both)
    try:
        together, slopes = VectorizedPasses(posterior, rows).loss_and_gradient(both)
    except _REFUSALS as error:
        return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    close = (together - loss).abs() <= 1e-2 * loss.abs() + 1e-4
    alike = (slopes - gradient).norm(dim=1) <= 5e-2 * gradient.norm(dim=1) + 1e-4
    finite = torch.isfinite(loss) & torch.isfinite(gradient).all(1)
    if not bool((close & alike)[finite].all()):
        return f"it gives {together.tolist()} in place of {loss.tolist()} nats"
    return None


def _saved_bytes(passes: Passes, batch: ChainBatch) -> int:
    """Bytes that one chain's forward pass keeps for its backward pass."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(note, unpack):
        passes.loss_and_gradient(batch if batch.shared or batch.ragged else batch.rows(0, 1))
    return sum(seen.values())
