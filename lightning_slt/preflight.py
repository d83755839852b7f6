"""What is checked once before chains run: the loss answers to the weights, which route works, how many chains fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slt.batches import ChainBatch
from lightning_slt.boundary import warn_user
from lightning_slt.components import FULL
from lightning_slt.data import SamplingData
from lightning_slt.isolation import seed_everything
from lightning_slt.passes import Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed, generator
from lightning_slt.types import Batch, FunctionalLoss, Params

LARGE_PASS = 1_250_000
"""Bytes of activations that one chain keeps for its backward pass, above which running together gains nothing on a CPU.

Both routes recorded, on one thread, chains together cost this times chains one after another: perceptrons 0.8 at 0.3
MB, 0.9 at 0.6, 0.9 to 1.5 at 1.2; convolutions 0.9 at 1.0 MB, 0.9 to 1.2 at 1.4, 1.2 at 2.1; transformers 0.6 at 1.2
MB, 0.8 at 1.8, 0.9 to 1.0 at 2.3, 1.1 to 1.4 at 4.7; the ranges are between runs on a machine with other work.
Weights and minibatch, which either route only reads, do not count.
"""

COPIES_ALONE, COPIES_TOGETHER = 8, 10
"""Rows as long as the weights that a chain takes, alone and vectorized, as ``benchmarks/peak_memory.py`` measures."""

ROWS_AT_ONCE = 256
"""Samples that are evaluated together where nothing is kept for a backward pass."""

_NEEDS_A_GRAPH = "does not require grad"
"""What autograd says where something is to be differentiated that gradients were off for."""

_HIDES_WHAT_IT_KEEPS = ("saved tensor hooks", "data pointer")
"""What torch says where transforms of ``torch.func``, or tensors without memory, do not let themselves be looked at."""

_REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError)


class PreflightError(ValueError):
    """A posterior that cannot be sampled; the message says what to write."""


@dataclass(frozen=True)
class SeededLoss:
    """A loss that draws random numbers, with the same ones at every evaluation.

    A variational autoencoder's sampled latent, say: fresh numbers at ``w_t`` and at ``w*`` would not cancel.
    """

    loss: FunctionalLoss
    seed: int

    def __call__(self, weights: Params, batch: Batch) -> Tensor:
        """The loss after seeding all generators."""
        seed_everything(self.seed)
        return self.loss(weights, batch)


@dataclass(frozen=True)
class SparingLoss:
    """A loss that writes into its batch, handed a copy: what it left behind would be measured at ``w*``."""

    loss: FunctionalLoss

    def __call__(self, weights: Params, batch: Batch) -> Tensor:
        """The loss on a copy of the batch."""
        return self.loss(weights, pytree.tree_map_only(Tensor, torch.clone, batch))


@dataclass(frozen=True)
class DifferentiatingLoss:
    """A loss that takes derivatives itself, with the graph that it needs also where nobody wants its own gradient.

    Penalties of gradients with respect to inputs, say, or residuals of differential equations.
    """

    loss: FunctionalLoss

    def __call__(self, weights: Params, batch: Batch) -> Tensor:
        """The loss; detached where gradients are off."""
        if torch.is_grad_enabled():
            return self.loss(weights, batch)
        with torch.enable_grad():
            return self.loss(weights, batch).detach()


def steady(loss: FunctionalLoss, weights: Params, batch: Batch, *, seed: int) -> FunctionalLoss:
    """The loss itself, or one that gives the same value at every evaluation, where this one does not or fails.

    Args:
        loss: Function of (weights, batch), evaluated once, or twice where it takes derivatives.
        weights: By parameter name.
        batch: One collated batch, used up.
        seed: Of the run.

    Returns:
        The loss, its random numbers fixed if it draws any, its batch copied if it writes into it, its graph kept if it
        takes derivatives.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)]
    versions, generators = [t._version for t in tensors], _generators()
    try:
        with torch.no_grad():
            loss(weights, batch)
    except RuntimeError as error:
        if _NEEDS_A_GRAPH not in str(error):
            raise
        loss = DifferentiatingLoss(loss)
        loss(weights, batch)
    if versions != [t._version for t in tensors]:
        loss = SparingLoss(loss)
    return loss if generators == _generators() else SeededLoss(loss, derive_seed(seed, "loss"))


def check_response(posterior: LocalPosterior, batch: ChainBatch, *, seed: int, component: str = FULL) -> None:
    """Refuse a loss that is not finite at the anchor, that ignores the weights it is given, or has no gradient.

    Compares losses at ``w*`` and at one draw of ``w* + N(0, 1/γ)`` on the same minibatch, bit by bit. A gradient of
    zero is legal, a loss outside the graph is not.

    Args:
        posterior: Gives the loss and the anchor.
        batch: A minibatch.
        seed: Of the run.
        component: What moves; part of the message.

    Raises:
        PreflightError: In these cases.
    """
    rows = _anchor_and_neighbour(posterior, seed)
    passes = SequentialPasses(posterior, rows)
    here, there = passes.loss(_same_for_two(batch)).tolist()
    if not torch.isfinite(torch.tensor(here)):
        raise PreflightError(
            f"the loss at the anchor is {here}: expected a finite number. A torchmetrics Metric that enters the loss "
            "reads NaN here (compute that part without the Metric); else look at the weights and the data"
        )
    if here == there:
        raise PreflightError(
            f"the loss is {here} at the anchor and with the {posterior.dimension} weights of {component!r} moved away "
            f"from it: it ignores the weights that the sampler gives. {_why_ignored(component, posterior)}"
        )
    if not passes.has_gradient(batch):
        raise PreflightError(
            "the loss changes with the weights but carries no gradient: it is computed under torch.no_grad(), or from "
            "detached or rounded outputs (.detach(), .item(), .argmax()); return the differentiable loss itself"
        )
    if torch.isnan(passes.loss_and_gradient(_same_for_two(batch))[1].rows[0]).any():
        raise PreflightError(
            "the loss is finite at the anchor, but its gradient is NaN there. The root or the norm of zero has none, "
            "nor has torch.where where the part left out is infinite; add a small constant inside the root"
        )


def choose_route(posterior: LocalPosterior, batch: ChainBatch, config: SamplingConfig) -> SamplingConfig:
    """Resolve ``chain_method="auto"`` by trying ``vmap`` once and comparing with the sequential route.

    On the CPU, chains whose passes keep more than ``LARGE_PASS`` bytes run one after another: there the time goes into
    arithmetic, and batched kernels do it 10 to 20 % slower than plain ones.

    Returns:
        The config with ``"vectorized"`` or ``"sequential"``.

    Raises:
        PreflightError: If ``"vectorized"`` was asked for and is refused; names the cause.
    """
    if posterior.shards.spread and config.chain_method == "vectorized":
        raise PreflightError(
            "chains of a sharded network (FSDP2) move one after another, as each lies in the network's own shards. "
            "Write SamplingConfig(chain_method='auto')"
        )
    alone = config.chain_method == "auto" and (posterior.shards.spread or _large_on_cpu(posterior, batch))
    if config.chain_method == "sequential" or alone:
        return replace(config, chain_method="sequential")
    cause = _why_not_vectorized(posterior, batch, config.seed)
    if cause is None:
        return replace(config, chain_method="vectorized")
    if config.chain_method == "vectorized":
        raise PreflightError(
            f"the loss cannot be vectorized over chains: {cause}. Write SamplingConfig(chain_method='sequential')"
        )
    warn_user(
        f"the loss cannot be vectorized over chains, so they run one after another, which is slower: {cause}. "
        "SamplingConfig(chain_method='sequential') says so without this warning"
    )
    return replace(config, chain_method="sequential")


def fit_chunk(posterior: LocalPosterior, batch: ChainBatch, config: SamplingConfig) -> SamplingConfig:
    """Choose how many chains run together from the free memory, where the user did not."""
    if config.chunk_size is not None:
        return config
    copies = COPIES_ALONE if config.chain_method == "sequential" else COPIES_TOGETHER
    per_chain = copies * posterior.anchor_row.numel() * posterior.anchor_row.element_size()
    per_chain += 2 * saved_bytes(SequentialPasses(posterior, posterior.anchor_row.clone()), batch)
    fitting = int(0.5 * free_memory(posterior.anchor_row.device) / max(per_chain, 1))
    return replace(config, chunk_size=max(1, min(config.num_chains, posterior.shards.least(fitting))))


def anchor_losses(
    loss: FunctionalLoss, weights: Params, data: SamplingData, config: SamplingConfig, *, rows: int = ROWS_AT_ONCE
) -> Tensor | None:
    """Loss of every sample at the anchor ``[sample]``, where the loss gives it and one pass over the data pays.

    None too where the loss of a sample depends on the company it keeps (contrastive losses, random numbers): there
    only the anchor on the very minibatch is a paired baseline.
    """
    if data.whole is None or len(data) > config.num_chains * config.num_draws * config.batch_size:
        return None
    if isinstance(loss, SeededLoss):
        return None
    found = []
    with torch.no_grad():
        for start in range(0, len(data), rows):
            index = torch.arange(start, min(start + rows, len(data)))
            losses = loss(weights, data.batch(index))
            if losses.ndim == 0 or len(losses) != len(index):
                return None
            found.append(losses.reshape(len(index), -1).mean(1))
        known = torch.cat(found)
        mixed = torch.randperm(len(data), generator=generator(config.seed, "company"))[: config.batch_size]
        among_others = loss(weights, data.batch(mixed)).reshape(len(mixed), -1).mean(1)
    apart = (known[mixed.to(known.device)] - among_others).abs()
    return known if bool((apart <= 1e-4 * known.abs().mean() + 1e-6).all()) else None


def _why_ignored(component: str, posterior: LocalPosterior) -> str:
    if component == FULL:
        return (
            "Losses on copies of the network do that; write loss_fn(module, batch) so that it runs "
            "the module that it gets"
        )
    named = ", ".join(list(posterior.anchor)[:3])
    return (
        f"Leave {named} out of components= where the loss does not use them (an unused head, a layer that only another "
        "loss trains), or give the loss that does: loss_fn=loss_fn"
    )


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


def _generators() -> tuple[object, ...]:
    """State of every global generator that a loss could draw from, to be compared."""
    name, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    tensors = [torch.random.get_rng_state(), *cuda]
    return (random.getstate(), name, np.asarray(keys).tobytes(), *rest, *(t.numpy().tobytes() for t in tensors))


def _same_for_two(batch: ChainBatch) -> ChainBatch:
    """The first chain's minibatch for two chains."""
    if batch.shared:
        return _for_two(batch)
    leaves = tuple(leaf[[0, 0]] for leaf in batch.leaves)
    return batch._replace(leaves=leaves, indices=batch.indices[[0, 0]], ragged=batch.ragged[:1] * 2)


def _for_two(batch: ChainBatch) -> ChainBatch:
    """One shared batch as two equal batches of two chains."""
    if not batch.shared:
        return batch.rows(0, 2)
    leaves = tuple(leaf.expand(2, *leaf.shape) for leaf in batch.leaves)
    return batch._replace(leaves=leaves, shared=False, indices=batch.indices.expand(2, -1))


def _why_not_vectorized(posterior: LocalPosterior, batch: ChainBatch, seed: int) -> str | None:
    """None where the vectorized route gives what the sequential one gives, else the reason in a few words."""
    if batch.ragged:
        return "minibatches of different chains differ in shape, or in entries that are no tensors"
    rows, both = _anchor_and_neighbour(posterior, seed), _for_two(batch)
    loss, one_by_one = SequentialPasses(posterior, rows).loss_and_gradient(both)
    try:
        together, at_once = VectorizedPasses(posterior, rows).loss_and_gradient(both)
    except _REFUSALS as error:
        return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    gradient, slopes = one_by_one.rows, at_once.rows
    # large logits of a network that has converged, rounded to bfloat16, move its small losses by some percent
    near, steep = (0.2, 0.5) if posterior.precision == "bf16" else (1e-2, 5e-2)
    close = (together - loss).abs() <= near * loss.abs() + 1e-4
    alike = (slopes - gradient).norm(dim=1) <= steep * gradient.norm(dim=1) + 1e-4
    finite = torch.isfinite(loss) & torch.isfinite(gradient).all(1)
    if not bool((close & alike)[finite].all()):
        return f"it gives {together.tolist()} in place of {loss.tolist()} nats"
    return None


def _large_on_cpu(posterior: LocalPosterior, batch: ChainBatch) -> bool:
    row = posterior.anchor_row
    if row.device.type != "cpu":
        return False
    position = row.clone()
    return saved_bytes(SequentialPasses(posterior, position), batch, besides=(position, *batch.leaves)) > LARGE_PASS


def saved_bytes(passes: Passes, batch: ChainBatch, *, besides: Sequence[Tensor] = ()) -> int:
    """Bytes that one chain's forward pass keeps for its backward pass, besides what it was given.

    A loss that runs transforms of ``torch.func`` or nested tensors inside lets nobody look at what it keeps: there it
    is everything that its passes make, which is more.
    """
    batch = batch if batch.shared or batch.ragged else batch.rows(0, 1)
    seen: dict[int, int] = {}
    given = {tensor.untyped_storage().data_ptr() for tensor in besides}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    unpack: Callable[[Tensor], Tensor] = lambda tensor: tensor  # noqa: E731
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, unpack):
            passes.loss_and_gradient(batch)
    except RuntimeError as error:
        if not any(words in str(error) for words in _HIDES_WHAT_IT_KEEPS):  # else all processes fail alike
            raise
        with _Made() as made:
            passes.loss_and_gradient(batch)
        return int(made.bytes)
    return sum(seen.values())


class _Made(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of all results inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        self.bytes += sum(leaf.numel() * leaf.element_size() for leaf in made)
        return result
