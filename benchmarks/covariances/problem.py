"""The driver's side of a question: digits, and the network that is trained on them."""

from __future__ import annotations

from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from benchmarks.covariances.cases import Case, mean_loss, per_sample_loss, perceptron, write_question

TRAIN_STEPS = 300


def digits(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images ``[sample, 64]`` between 0 and 1 and labels, at random; beyond the 1797, some shifted by a pixel."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
    shifted = x.view(-1, 8, 8).roll(1, dims=2).flatten(1)
    return torch.cat([x, shifted])[:count], torch.cat([y, y])[:count]


def make_question(case: Case, seed: int) -> dict[str, Any]:
    """The network at its anchor, trained on the first set, and all samples; the seed is that of the chains alone."""
    images, labels = digits(case.num_train + case.num_query)
    train = images[: case.num_train], labels[: case.num_train]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = perceptron(case.hidden)
    descent = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(TRAIN_STEPS):
        descent.zero_grad()
        per_sample_loss(net, train).mean().backward()
        descent.step()
    return write_question(case, net, images, labels, loss=mean_loss(net, *train), seed=seed)
