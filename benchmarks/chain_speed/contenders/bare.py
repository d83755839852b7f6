"""The passes that no chain can do without, and nothing else: no sampler, no data loading, no statistics.

`loop`   an ordinary forward and `loss.backward()`, once per chain.
`vmap`   the same passes as one `torch.vmap` over the stacked chains, with `torch.autograd.grad`.
`train`  a bare training step per chain: `loop` with `zero_grad` and a step of plain `torch.optim.SGD`.
`noise`  no pass at all: one flat row of d standard normals per chain and step, one `torch.Generator` per chain.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.chain_speed.cases import Batch, mean_loss
from benchmarks.chain_speed.worker import Problem

NUM_BATCHES = 4  # gathered beforehand, so that fetching data is not part of the bare cost


@dataclass(frozen=True)
class Bare:
    """Repeats one step over a few batches gathered beforehand, each a batch with a leading chain axis."""

    step: Callable[[Batch], Any]
    batches: list[Batch]

    def run(self, *, num_steps: int, num_burnin: int, seed: int) -> dict[str, Any]:
        """Takes the steps; there is nothing to estimate and nothing random."""
        for batch in islice(cycle(self.batches), num_burnin + num_steps):
            self.step(batch)
        return {}


def build(problem: Problem, *, kind: str) -> Bare:
    """Makes the contender of this kind: "loop", "vmap", "train" or "noise"."""
    steps = {"loop": loop_step, "vmap": vmap_step, "train": train_step, "noise": noise_step}
    return Bare(steps[kind](problem), gather_batches(problem))


def gather_batches(problem: Problem) -> list[Batch]:
    """A few batches, inputs [chain, batch, ...] and targets [chain, batch, ...]."""
    generator = torch.Generator().manual_seed(0)
    shape = (problem.case.num_chains, problem.case.batch_size)
    rows = [torch.randint(problem.case.num_samples, shape, generator=generator) for _ in range(NUM_BATCHES)]
    return [tuple(tensor[index.to(problem.device)] for tensor in problem.data) for index in rows]


def loop_step(problem: Problem) -> Callable[[Batch], None]:
    """One ordinary pass per chain; every chain has a module of its own, as its weights differ."""
    modules = [deepcopy(problem.module) for _ in range(problem.case.num_chains)]

    def step(batches: Batch) -> None:
        for module, inputs, targets in zip(modules, *batches, strict=True):
            module.zero_grad(set_to_none=True)
            mean_loss(module, (inputs, targets)).backward()

    return step


def train_step(problem: Problem) -> Callable[[Batch], None]:
    """One ordinary training step per chain, at a learning rate that leaves the weights where they are."""
    modules = [deepcopy(problem.module) for _ in range(problem.case.num_chains)]
    optimizers = [torch.optim.SGD(module.parameters(), lr=1e-12) for module in modules]

    def step(batches: Batch) -> None:
        for module, optimizer, inputs, targets in zip(modules, optimizers, *batches, strict=True):
            optimizer.zero_grad()
            mean_loss(module, (inputs, targets)).backward()
            optimizer.step()

    return step


def vmap_step(problem: Problem) -> Callable[[Batch], tuple[Tensor, ...]]:
    """All chains in one vectorized pass, over contiguous leaves [chain, *shape]."""
    module, chains = problem.module, problem.case.num_chains
    leaves = {
        name: leaf.detach().expand(chains, *leaf.shape).clone().requires_grad_()
        for name, leaf in module.named_parameters()
    }

    def chain_loss(parameters: dict[str, Tensor], batch: Batch) -> Tensor:
        return mean_loss(lambda inputs: functional_call(module, parameters, (inputs,)), batch)

    losses = torch.vmap(chain_loss)

    def step(batches: Batch) -> tuple[Tensor, ...]:
        return torch.autograd.grad(losses(leaves, batches).sum(), tuple(leaves.values()))

    return step


def noise_step(problem: Problem) -> Callable[[Batch], None]:
    """Only the random numbers of an SGLD step."""
    size = sum(leaf.numel() for leaf in problem.module.parameters())
    rows = torch.empty(problem.case.num_chains, size, device=problem.device)
    generators = [torch.Generator(problem.device).manual_seed(chain) for chain in range(len(rows))]

    def step(_batches: Batch) -> None:
        for row, generator in zip(rows, generators, strict=True):
            row.normal_(generator=generator)

    return step
