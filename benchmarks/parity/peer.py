"""Runs in an interpreter with devinterp 1.3.2: its optimizers on given noise, `peer.py question.npz answer.npz`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from devinterp.optim.sgld import SGLD
from devinterp.optim.sgmcmc import SGMCMC
from torch import Tensor, nn

METHODS: dict[str, tuple[Callable[..., torch.optim.Optimizer], str]] = {
    "SGLD": (SGLD, "sgld_step_size"),
    "SGMCMC.sgld": (SGMCMC.sgld, "sgld_step_size"),
    "SGMCMC.rmsprop_sgld": (SGMCMC.rmsprop_sgld, "rmsprop_step_size"),
}


def walk(make: Callable[..., torch.optim.Optimizer], step_size: float, given: dict[str, Tensor], chain: int) -> Tensor:
    """Positions after every step of one chain, `[step, coordinate]`."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.vector_to_parameters(given["anchor"].clone(), net.parameters())
    settings = {name: float(given[name]) for name in ("nbeta", "localization")}
    optimizer = make(net.parameters(), lr=step_size, **settings)
    path = []
    for noise, batch in zip(given["noise"][chain], given["batches"][chain], strict=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(given["x"][batch]), given["y"][batch]).backward()
        with mock.patch("torch.normal", handing_out(noise)):
            optimizer.step()
        path.append(nn.utils.parameters_to_vector(net.parameters()).detach().clone())
    return torch.stack(path)


def handing_out(noise: Tensor) -> Callable[..., Tensor]:
    """A `torch.normal` that gives the entries of `noise` one after another."""
    rest: Iterator[Tensor] = iter(noise)

    def normal(mean: float, std: float, size: torch.Size, **more: Any) -> Tensor:
        assert (mean, std) == (0.0, 1.0)
        return torch.stack([next(rest) for _ in range(size.numel())]).view(size)

    return normal


def main(question: str, answer: str) -> None:
    """All methods, all chains."""
    with np.load(question) as file:
        given = {name: torch.from_numpy(array) for name, array in file.items()}
    paths = {}
    for name, (make, step_size) in METHODS.items():
        chains = [walk(make, float(given[step_size]), given, chain) for chain in range(len(given["noise"]))]
        every = int(given["every"])
        paths[name] = torch.stack(chains)[:, every - 1 :: every].numpy()
    np.savez(answer, **paths)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
