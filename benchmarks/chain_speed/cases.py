"""The networks, data and sampler settings that every contender runs, on torch alone.

The interpreter of a peer imports this file too, so it must not import anything but torch. The data are synthetic:
the cost of a step does not depend on them, and the comparison of estimates only needs that both sides see the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, ...]
Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row of the benchmark: a network, its data, and the chains that are run on it.

    Attributes:
        name: Key on the command line and in the results.
        title: What the table calls it.
        build: Makes the untrained network.
        make_data: Makes the training set, (inputs [n, ...], targets [n, ...]), from a size and a generator.
        batch_size: Samples in one minibatch.
        num_samples: Size n of the training set.
        num_chains: Chains run together.
        step_size: SGLD step size ε.
        nbeta: Effective inverse temperature nβ.
        localization: Strength γ of the pull towards the anchor.
        train_steps: Adam steps that make the anchor w*.
        devices: Device types on which the case is part of the default selection.
    """

    name: str
    title: str
    build: Callable[[], nn.Module]
    make_data: Callable[[int, torch.Generator], Batch]
    batch_size: int
    num_samples: int = 2048
    num_chains: int = 8
    step_size: float = 1e-4
    nbeta: float = 30.0
    localization: float = 300.0
    train_steps: int = 300
    devices: tuple[str, ...] = ("cpu", "cuda")


def per_sample_loss(module: Network, batch: Batch) -> Tensor:
    """Cross-entropy in nats of every sample, [B], or of every token, [B, T]."""
    inputs, targets = batch
    logits = module(inputs)
    losses: Tensor = functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    return losses.view(targets.shape)


def mean_loss(module: Network, batch: Batch) -> Tensor:
    """The batch mean of `per_sample_loss`, in one fused operation."""
    inputs, targets = batch
    loss: Tensor = functional.cross_entropy(module(inputs).flatten(0, -2), targets.flatten())
    return loss


class Block(nn.Module):
    """Pre-norm transformer block with causal self-attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, T, width] to [B, T, width]."""
        x = x + self.attention(self.norm_attention(x))
        return x + self.mlp(self.norm_mlp(x))

    def attention(self, x: Tensor) -> Tensor:
        """What attention adds to the residual stream, [B, T, width]."""
        batch, length, width = x.shape
        heads = self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Transformer(nn.Module):
    """A decoder for next-token prediction: token and position embeddings, blocks, unembedding."""

    def __init__(self, vocabulary: int, context: int, width: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(width)
        self.unembed = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Maps tokens [B, T] to logits [B, T, vocabulary]."""
        return self.unembed(self.norm(self.blocks(self.token(tokens) + self.position)))


def mlp(*widths: int) -> nn.Module:
    """A ReLU network with these widths."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Two 3x3 convolutions (8 and 16 channels), each followed by ReLU and pooling, and a linear readout."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(16 * 4 * 4, 10),
    )  # fmt: skip


def clusters(*shape: int) -> Callable[[int, torch.Generator], Batch]:
    """Ten overlapping Gaussian classes of inputs with this shape, entries of order one."""

    def make(num_samples: int, generator: torch.Generator) -> Batch:
        centres = torch.randn(10, *shape, generator=generator)
        labels = torch.randint(10, (num_samples,), generator=generator)
        separation = 3.0 / centres[0].numel() ** 0.5
        return separation * centres[labels] + torch.randn(num_samples, *shape, generator=generator), labels

    return make


def token_chains(vocabulary: int, context: int) -> Callable[[int, torch.Generator], Batch]:
    """Sequences that follow a fixed permutation of the tokens with probability 3/4; targets are the next tokens."""

    def make(num_samples: int, generator: torch.Generator) -> Batch:
        follow = torch.randperm(vocabulary, generator=generator)
        tokens = torch.randint(vocabulary, (num_samples, context + 1), generator=generator)
        keep = torch.rand(num_samples, context + 1, generator=generator) < 0.75
        for position in range(1, context + 1):
            tokens[:, position] = torch.where(keep[:, position], follow[tokens[:, position - 1]], tokens[:, position])
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    return make


_ALL = (
    Case(
        name="mlp-small",
        title="MLP 64-32-10, batch 64",
        build=lambda: mlp(64, 32, 10),
        make_data=clusters(64),
        batch_size=64,
        num_chains=32,
        step_size=5e-4,
        localization=100.0,
    ),
    Case(
        name="mlp-wide",
        title="MLP 784-128-10, batch 64",
        build=lambda: mlp(784, 128, 10),
        make_data=clusters(784),
        batch_size=64,
        step_size=5e-5,
        localization=1000.0,
    ),
    Case(
        name="transformer",
        title="transformer 2x64, context 32, batch 16",
        build=lambda: Transformer(vocabulary=64, context=32, width=64, num_heads=4, num_layers=2),
        make_data=token_chains(64, 32),
        batch_size=16,
    ),
    Case(
        name="conv",
        title="convolutions 8-16 on 16x16 images, batch 64",
        build=convolutional,
        make_data=clusters(1, 16, 16),
        batch_size=64,
    ),
    Case(
        name="mlp-118k",
        title="MLP 784-128-128-10, batch 256",
        build=lambda: mlp(784, 128, 128, 10),
        make_data=clusters(784),
        num_samples=4096,
        batch_size=256,
        step_size=5e-5,
        localization=1000.0,
    ),
    Case(
        name="transformer-paper",
        title="transformer 2x256, context 1024, vocabulary 5000, batch 16",
        build=lambda: Transformer(vocabulary=5000, context=1024, width=256, num_heads=8, num_layers=2),
        make_data=token_chains(5000, 1024),
        num_samples=512,
        batch_size=16,
        num_chains=4,
        train_steps=100,
        devices=("cuda",),
    ),
)
CASES = {case.name: case for case in _ALL}
