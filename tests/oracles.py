"""Twins of ten lines: what the package computes, written again in the plainest way, and exact laws."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.data import SamplingData, load_data
from lightning_slt.seeding import generator
from lightning_slt.types import Params


def naive_sgld(
    gradient: Callable[[Tensor, int], Tensor],
    anchor: Tensor,
    noise: Tensor,
    *,
    step_size: float,
    nbeta: float,
    localization: float,
    temperature: float = 1.0,
) -> Tensor:
    """Positions ``[step, coordinate]`` of one chain, the anchor first; ``gradient(w, step)`` of the mean loss."""
    w, path = anchor.clone(), [anchor.clone()]
    for step, xi in enumerate(noise):
        drift = nbeta * gradient(w, step) + localization * (w - anchor)
        w = w - step_size / 2 * drift + math.sqrt(step_size * temperature) * xi
        path.append(w.clone())
    return torch.stack(path)


def chain_noise(seed: int, chain: int, steps: int, dimension: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The normals that a chain uses, ``[step, coordinate]``."""
    g = generator(seed, "noise", chain)
    return torch.stack([torch.empty(dimension, dtype=dtype).normal_(generator=g) for _ in range(steps)])


def batch_order(count: int, size: int, seed: int, chain: int, steps: int) -> list[Tensor]:
    """The minibatches that a chain uses: without replacement, reshuffled each epoch, the remainder left out."""
    if size >= count:
        return [torch.arange(count)] * steps
    g, rows = generator(seed, "batches", chain), []
    while len(rows) < steps:
        order = torch.randperm(count, generator=g)
        rows += [order[i : i + size] for i in range(0, count - size + 1, size)]
    return rows[:steps]


def naive_llc(loss: Sequence[Tensor], anchor_loss: Sequence[Tensor], nbeta: float) -> float:
    """``nβ`` times the mean of paired differences, by Python's exact sum."""
    rises = [float(a) - float(b) for a, b in zip(loss, anchor_loss, strict=True)]
    return nbeta * math.fsum(rises) / len(rises)


def module_gradient(module: nn.Module, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> Params:
    """Plain autograd of the module itself in eval mode, by name; nothing functional about it."""
    was_training = module.training
    module.eval()
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss_fn(module, batch).mean(), list(trained.values()), allow_unused=True)
    module.train(was_training)
    pairs = zip(trained.items(), gradients, strict=True)
    return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}


def sgld_variance(precision: Tensor, step_size: float, noise: float = 0.0) -> Tensor:
    """Stationary variance of SGLD on a quadratic, exact; ``noise`` is the standard deviation of that of nβ∇L."""
    return (1 + step_size * noise**2 / 4) / (1 - step_size * precision / 4) / precision


def sgld_variance_at(precision: Tensor, step_size: float, steps: Tensor, noise: float = 0.0) -> Tensor:
    """The same ``[step, direction]`` after a number of steps from the anchor: ``V (1 − a^2t)``, ``a = 1 − εP/2``."""
    forgotten = (1 - step_size * precision / 2).abs() ** (2 * steps[:, None])
    return sgld_variance(precision, step_size, noise) * (1 - forgotten)


def quadratic(curvatures: Tensor) -> Callable[[Params, Any], Tensor]:
    """``½ Σ h_i w_i²`` of the parameter ``w``, plus the mean of the batch's ``z · w``: noise of the gradient."""

    def loss(weights: Params, batch: Any) -> Tensor:
        w = weights["w"]
        return 0.5 * (curvatures * w.square()).sum() + (batch[0] @ w).mean()

    return loss


def noiseless(count: int = 2, dimension: int = 1, dtype: torch.dtype = torch.float64) -> SamplingData:
    """Data of nothing but zeros."""
    return in_memory(TensorDataset(torch.zeros(count, dimension, dtype=dtype)))


def in_memory(dataset: Any, seed: int = 0) -> SamplingData:
    """Samples as they are."""
    return load_data(dataset, to_device=lambda batch: batch, seed=seed)


def quadratic_posterior(curvatures: Tensor, *, nbeta: float, localization: float, **more: Any) -> slt.LocalPosterior:
    """A quadratic around zero."""
    anchor = {"w": torch.zeros(len(curvatures), dtype=curvatures.dtype)}
    return slt.LocalPosterior(loss=quadratic(curvatures), anchor=anchor, nbeta=nbeta, localization=localization, **more)


def positions(draws: Iterator[slt.Draw]) -> Tensor:
    """Where all chains were, ``[chain, draw, coordinate]``."""
    rows: dict[int, list[Tensor]] = {}
    for draw in draws:
        for chain, position in zip(draw.chains, draw.position, strict=True):
            rows.setdefault(chain, []).append(position.clone())
    return torch.stack([torch.stack(rows[chain]) for chain in sorted(rows)])


def z_scores(samples: Tensor, expected: Tensor) -> Tensor:
    """Distance of the mean of independent ``samples [sample, …]`` from what is expected, in standard errors."""
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


class Quadratic(nn.Module):
    """``½ Σ h_i (w_i − w*_i)²`` as a module, whose data only add minibatch noise: ``loss_fn=quadratic_loss``."""

    def __init__(self, curvatures: Sequence[float] | Tensor, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.register_buffer("h", torch.as_tensor(curvatures, dtype=dtype))
        self.w = nn.Parameter(torch.zeros(len(curvatures), dtype=dtype))


def quadratic_loss(module: nn.Module, batch: Any) -> Tensor:
    """Losses of each sample ``[sample]``."""
    return 0.5 * (module.h * module.w.square()).sum() + batch[0] @ module.w
