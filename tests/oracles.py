"""Twins of ten lines: what the package computes, written again in the plainest way, and exact laws."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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


class Dice:
    """The random numbers of one chain, in the order in which a sampler asks for them."""

    def __init__(self, seed: int, chain: int, dimension: int) -> None:
        self.generator, self.dimension = generator(seed, "noise", chain), dimension

    def normals(self) -> Tensor:
        return torch.empty(self.dimension, dtype=torch.float64).normal_(generator=self.generator)

    def uniform(self) -> float:
        return float(torch.empty(1, dtype=torch.float64).uniform_(generator=self.generator))


@dataclass(frozen=True)
class Hill:
    """A potential ``U = nβ L + (γ/2)‖w − w*‖²`` of one chain; ``loss(w, step)`` and ``gradient(w, step)`` of L."""

    loss: Callable[[Tensor, int], Tensor]
    gradient: Callable[[Tensor, int], Tensor]
    anchor: Tensor
    nbeta: float
    localization: float

    def potential(self, w: Tensor, step: int) -> float:
        return float(self.nbeta * self.loss(w, step) + self.localization / 2 * ((w - self.anchor) ** 2).sum())

    def force(self, w: Tensor, step: int) -> Tensor:
        return self.nbeta * self.gradient(w, step) + self.localization * (w - self.anchor)


def naive_adam_sgld(hill: Hill, dice: Dice, steps: int, sampler: Any, *, b1: float, b2: float, v0: float) -> Tensor:
    """Positions ``[step, coordinate]`` as below; with ``b1 = 0`` RMSPropSGLD."""
    eps, a, w, path = sampler.step_size, sampler.damping, hill.anchor, [hill.anchor]
    m, v, recent, half = torch.zeros_like(w), torch.full_like(w, v0), [], sampler.num_adapt // 2
    for t in range(1, steps + 1):
        g = hill.gradient(w, t - 1)
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_hat = v / (1 - b2**t) if v0 else v
        if half < t <= sampler.num_adapt:
            recent.append((v - b2**t * v0) / (1 - b2**t))
        if sampler.adaptation == "burnin" and t > sampler.num_adapt:
            v_hat = torch.stack(recent).mean(0)
        eps_t = eps / (v_hat.sqrt() + a)
        drift = hill.nbeta * m / (1 - b1**t) + hill.localization * (w - hill.anchor)
        w = w - eps_t / 2 * drift + (eps_t * sampler.temperature).sqrt() * dice.normals()
        path.append(w)
    return torch.stack(path)


def naive_sghmc(hill: Hill, dice: Dice, steps: int, sampler: Any) -> Tensor:
    """Positions ``[step, coordinate]`` of one chain, the anchor first; so below."""
    eta, alpha, temperature, w, path = sampler.step_size / 2, sampler.friction, sampler.temperature, hill.anchor, []
    u = math.sqrt(eta * temperature) * dice.normals()
    for step in range(steps):
        path.append(w)
        u = (1 - alpha) * u - eta * hill.force(w, step) + math.sqrt(2 * alpha * eta * temperature) * dice.normals()
        w = w + u
    return torch.stack([*path, w])


def naive_sgnht(hill: Hill, dice: Dice, steps: int, sampler: Any) -> Tensor:
    """The same for the thermostat."""
    eta, a, temperature, w, path = sampler.step_size / 2, sampler.diffusion, sampler.temperature, hill.anchor, []
    u, zeta = math.sqrt(eta * temperature) * dice.normals(), a
    for step in range(steps):
        path.append(w)
        u = u - zeta * u - eta * hill.force(w, step) + math.sqrt(2 * a * eta * temperature) * dice.normals()
        w = w + u
        zeta = zeta + float(u @ u) / len(u) - eta * temperature
    return torch.stack([*path, w])


def naive_underdamped(hill: Hill, dice: Dice, steps: int, sampler: Any) -> Tensor:
    """The same for BAOAB."""
    h, temperature, w, path = sampler.step_size, sampler.temperature, hill.anchor, []
    v, c = math.sqrt(temperature) * dice.normals(), math.exp(-sampler.friction * sampler.step_size)
    for step in range(steps):
        path.append(w)
        v = v - h * hill.force(w, step)
        w = w + h / 2 * v
        v = c * v + math.sqrt((1 - c**2) * temperature) * dice.normals()
        w = w + h / 2 * v
    return torch.stack([*path, w])


def naive_mala(hill: Hill, dice: Dice, steps: int, sampler: Any) -> Tensor:
    """The same for MALA, with both proposal densities written out."""
    eps, temperature, w, path = sampler.step_size, sampler.temperature, hill.anchor, []

    def log_q(to: Tensor, at: Tensor) -> float:
        return -float(((to - at + eps / 2 * hill.force(at, 0)) ** 2).sum()) / (2 * eps * temperature)

    for _ in range(steps):
        path.append(w)
        new = w - eps / 2 * hill.force(w, 0) + math.sqrt(eps * temperature) * dice.normals()
        log_r = (hill.potential(w, 0) - hill.potential(new, 0)) / temperature + log_q(w, new) - log_q(new, w)
        w = new if math.log(dice.uniform()) < log_r else w
    return torch.stack([*path, w])


def naive_hmc(hill: Hill, dice: Dice, steps: int, sampler: Any) -> Tensor:
    """The same for HMC, half kick by half kick."""
    h, temperature, w, path = sampler.step_size, sampler.temperature, hill.anchor, []
    for _ in range(steps):
        path.append(w)
        p = start = math.sqrt(temperature) * dice.normals()
        new = w
        for _ in range(sampler.num_leapfrog):
            p = p - h / 2 * hill.force(new, 0)
            new = new + h * p
            p = p - h / 2 * hill.force(new, 0)
        log_r = hill.potential(w, 0) - hill.potential(new, 0) + float(start @ start - p @ p) / 2
        w = new if math.log(dice.uniform()) < log_r / temperature else w
    return torch.stack([*path, w])


@dataclass(frozen=True, kw_only=True)
class Watched(slt.Sampler):
    """Another sampler, whose states can be looked at afterwards."""

    inner: slt.Sampler
    states: list[dict[str, Any]] = field(default_factory=list)

    @property
    def full_batch(self) -> bool:  # type: ignore[override]
        return self.inner.full_batch

    @property
    def adaptation_steps(self) -> int:
        return self.inner.adaptation_steps

    def init(self, position: Tensor, noise: Any) -> dict[str, Any]:
        self.states.append(self.inner.init(position, noise))
        return self.states[-1]

    def step(self, state: dict[str, Any], here: Any, noise: Any) -> dict[str, Any]:
        return self.inner.step(state, here, noise)

    def stability(self, precision: float) -> float:
        return self.inner.stability(precision)


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


def sghmc_variance(precision: Tensor, step_size: float, friction: float, noise: float = 0.0) -> Tensor:
    """Stationary variance of SGHMC on a quadratic, exact."""
    heated = 1 + step_size * noise**2 / (4 * friction)
    return heated / (1 - step_size * precision / (4 * (2 - friction))) / precision


def sgnht_variance(precision: Tensor, step_size: float, diffusion: float, noise: float = 0.0) -> Tensor:
    """Stationary variance of SGNHT on a quadratic with very many directions, all of this precision."""
    c = 1 - step_size * precision / 8
    return (1 - (c - (c**2 - 2 * diffusion - step_size * noise**2 / 2).sqrt()) / 2) / precision


def underdamped_variance(precision: Tensor, step_size: float, friction: float, noise: float = 0.0) -> Tensor:
    """Stationary variance of BAOAB with merged half kicks on a quadratic, exact."""
    heated = step_size**2 * noise**2 / 4 / math.tanh(friction * step_size / 2)
    return (1 + heated / (1 - step_size**2 * precision / 4)) / precision


def adam_sgld_variance(
    curvature: Tensor, step_sizes: Tensor, *, b1: float, nbeta: float, localization: float
) -> Tensor:
    """Stationary variance of AdamSGLD with frozen step sizes ε_t, exact: of (w, m), by its covariance equation."""
    e, zero = step_sizes, torch.zeros_like(step_sizes)
    lag = (1 - b1) * curvature  # m' = b1 m + lag w;  w' = w − (ε/2)(nβ m' + γ w) + √ε ξ
    rows = [1 - e / 2 * (nbeta * lag + localization), -e / 2 * nbeta * b1, lag + zero, b1 + zero]
    return stationary(torch.stack(rows, -1).unflatten(-1, (2, 2)), torch.stack([e, zero, zero, zero], -1))[..., 0, 0]


def stationary(matrix: Tensor, noise: Tensor) -> Tensor:
    """Covariance C of ``x' = M x + n``: ``C = M C Mᵀ + N``; ``matrix [..., k, k]``, ``noise`` of k² entries."""
    k = matrix.shape[-1]
    twice = torch.einsum("...ab,...cd->...acbd", matrix, matrix).reshape(*matrix.shape[:-2], k * k, k * k)
    return torch.linalg.solve(torch.eye(k * k, dtype=matrix.dtype) - twice, noise).unflatten(-1, (k, k))


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
