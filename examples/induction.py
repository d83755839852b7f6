"""Bigrams and repeated sequences, a network that learns both, and how far it and its heads have come with induction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from attention_only import Transformer, next_token
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Sizes of network, data and readings.

    `words` says of how many tokens repeated sequences are made, `longest` how many stand in them before they repeat;
    None for the whole vocabulary and for half of the sequence.
    """

    vocabulary: int = 64
    length: int = 32
    words: int | None = None
    longest: int | None = None
    width: int = 32
    num_heads: int = 4
    steps: int = 1500
    every: int = 150
    batch: int = 64
    learning_rate: float = 1e-2
    sequences: int = 32_768
    sampled: int = 512
    chains: int = 4
    draws: int = 60
    burnin: int = 10
    minibatch: int = 16
    accelerator: str = "cpu"


SCALES = {
    "small": Scale(),
    "few-words": Scale(words=24, longest=12),
    "paper": Scale(
        vocabulary=5000, length=1024, width=256, num_heads=8, steps=50_000, every=1000, batch=100, learning_rate=1e-3,
        sequences=50_000, sampled=4096, draws=200, burnin=0, minibatch=64, accelerator="auto",
    ),
}  # fmt: skip
SUCCESSORS = (1 / torch.arange(1.0, 17)) / (1 / torch.arange(1.0, 17)).sum()
"""Probabilities of the tokens that may follow a token: Zipf's law."""


def bigrams(count: int, scale: Scale, *, seed: int) -> Tensor:
    """Markov chains in which sixteen tokens may follow a token, the same ones for every seed ``[sample, token]``."""
    follow = torch.randint(
        scale.vocabulary, (scale.vocabulary, len(SUCCESSORS)), generator=torch.Generator().manual_seed(12345)
    )
    g = torch.Generator().manual_seed(seed)
    ways = torch.multinomial(SUCCESSORS, count * scale.length, replacement=True, generator=g).view(count, -1)
    tokens = torch.randint(scale.vocabulary, (count, scale.length), generator=g)
    for t in range(1, scale.length):
        tokens[:, t] = follow[tokens[:, t - 1], ways[:, t]]
    return tokens


def repeated(count: int, scale: Scale, *, seed: int) -> tuple[Tensor, Tensor]:
    """Random tokens, all different, over and over with a random period, so that no fixed distance foretells one.

    Periods reach from two fifths of the longest one to the longest one.

    Returns:
        Tokens ``[sample, token]`` and periods ``[sample, 1]``.
    """
    g = torch.Generator().manual_seed(seed)
    longest = scale.longest or scale.length // 2
    period = torch.randint(2 * longest // 5, longest + 1, (count, 1), generator=g)
    shown = torch.rand(count, scale.words or scale.vocabulary, generator=g).argsort(1)[:, :longest]
    return shown.gather(1, torch.arange(scale.length) % period), period


class Language(L.LightningModule):
    """Next tokens by Adam; nothing in it knows of the monitor."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.learning_rate = scale.learning_rate
        self.net = Transformer(
            vocabulary=scale.vocabulary, length=scale.length, width=scale.width, num_heads=scale.num_heads
        )

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return next_token(self, batch).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


def attention_scores(net: Transformer, tokens: Tensor, period: Tensor) -> dict[str, Tensor]:
    """Shares of each head's attention that the two halves of an induction circuit need.

    Returns:
        "induction": to tokens behind an earlier showing of the present one, in places that have one; "previous": to the
        token before, in all places but the first. Both ``[head]``.
    """
    x = net.tokens(tokens) + net.positions.weight[: tokens.shape[1]]
    scores: dict[str, list[Tensor]] = {"induction": [], "previous": []}
    place = torch.arange(tokens.shape[1], device=tokens.device)
    before = torch.cat([torch.full_like(tokens[:, :1], -1), tokens[:, :-1]], 1)
    seen = place[:, None] >= place
    matches = (tokens[:, :, None] == before[:, None]) & seen
    for block in net.blocks:
        attn, normalized = block.attn, block.norm(x)
        q, k = (p(normalized).unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for p in (attn.q_proj, attn.k_proj))
        pattern = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~seen, -torch.inf).softmax(3)
        matched = (pattern * matches[:, None]).sum(3)
        scores["induction"].append(matched.transpose(0, 1)[:, place >= period].mean(1))
        scores["previous"].append(pattern.diagonal(offset=-1, dim1=2, dim2=3).mean((0, 2)))
        x = block(x)
    return {name: torch.cat(heads) for name, heads in scores.items()}


class Progress(L.Callback):
    """What the network has learnt at the steps of the readings, on sequences of its own."""

    def __init__(self, scale: Scale) -> None:
        self.every = scale.every
        self.tokens, self.period = repeated(64, scale, seed=10**6)
        self.chains = bigrams(64, scale, seed=10**6)
        self.steps: list[int] = []
        self.loss: dict[str, list[float]] = {"induction": [], "bigrams": []}
        self.scores: dict[str, list[Tensor]] = {"induction": [], "previous": []}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.look(trainer, pl_module)

    @torch.no_grad()
    def look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Losses where induction foretells the token, and of bigrams; every head's scores."""
        tokens, period, chains = (x.to(module.device) for x in (self.tokens, self.period, self.chains))
        told = torch.arange(tokens.shape[1] - 1, device=module.device) >= period
        losses = {
            "induction": float(next_token(module, (tokens,))[told].mean()),
            "bigrams": float(next_token(module, (chains,)).mean()),
        }
        self.steps.append(trainer.global_step)
        for name, heads in attention_scores(module.net, tokens, period).items():
            self.scores[name].append(heads.double().cpu())
        for name, loss in losses.items():
            self.loss[name].append(loss)
        for logger in trainer.loggers:
            logger.log_metrics({f"loss/{name}": loss for name, loss in losses.items()}, trainer.global_step)
