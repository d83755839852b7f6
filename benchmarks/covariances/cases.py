"""Networks, data and chains that every contender runs, on torch alone: interpreters of peers import this file too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is estimated, and how: the same for all contenders.

    Attributes:
        name: Key on the command line and in the results.
        title: What the table calls it.
        num_train: Samples that minibatches come from, and the first set of traces.
        num_query: Samples of the second set; 0 for the kernel of the first one.
        hidden: Width of the perceptron.
        num_chains: Chains.
        num_draws: Kept draws of each.
        num_burnin: Steps before the first.
        thinning: Steps per kept draw.
        batch_size: Samples of a minibatch, and of a part of the measured sets.
        step_size: SGLD's ε.
        nbeta: nβ.
        localization: γ.
    """

    name: str
    title: str
    num_train: int
    num_query: int
    hidden: int
    num_chains: int = 8
    num_draws: int = 250
    num_burnin: int = 200
    thinning: int = 4
    batch_size: int = 100
    step_size: float = 5e-4
    nbeta: float = 100.0
    localization: float = 100.0

    def small(self) -> Case:
        """The same with few chains and draws."""
        return replace(self, num_chains=2, num_draws=min(40, self.num_draws), num_burnin=10)


CASES = {
    case.name: case
    for case in (
        Case(name="kernel", title="kernel of 2000 digits, MLP 64-32-10", num_train=2000, num_query=0, hidden=32),
        Case(name="influence", title="influence of 200 on 100 digits, MLP 64-16-10", num_train=200, num_query=100,
             hidden=16),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """A question, read.

    Attributes:
        case: What is asked.
        net: The trained network.
        images: Of all samples, those of the first set first.
        labels: Of all samples.
        anchor_loss: Mean loss of the first set, in nats.
        seed: Of the chains.
    """

    case: Case
    net: nn.Module
    images: Tensor
    labels: Tensor
    anchor_loss: float
    seed: int

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """The first set."""
        return self.images[: self.case.num_train], self.labels[: self.case.num_train]

    @property
    def query(self) -> tuple[Tensor, Tensor]:
        """The second set, empty for a kernel."""
        return self.images[self.case.num_train :], self.labels[self.case.num_train :]


def perceptron(hidden: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def per_sample_loss(net: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy ``[sample]``, in nats."""
    images, labels = batch
    return functional.cross_entropy(net(images), labels, reduction="none")


def write_question(
    case: Case, net: nn.Module, images: Tensor, labels: Tensor, *, loss: float, seed: int
) -> dict[str, Any]:
    """What :func:`read_question` reads."""
    return {
        "case": asdict(case), "state": net.state_dict(), "images": images, "labels": labels, "loss": loss, "seed": seed
    }  # fmt: skip


def read_question(question: Mapping[str, Any]) -> Problem:
    """In the contender's interpreter."""
    case = Case(**question["case"])
    net = perceptron(case.hidden)
    net.load_state_dict(question["state"])
    return Problem(case, net, question["images"], question["labels"], question["loss"], question["seed"])


@torch.no_grad()
def mean_loss(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """In nats."""
    return float(per_sample_loss(net, (images, labels)).mean())
