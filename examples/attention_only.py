"""An attention-only transformer, and what it reads: sequences of two mechanisms or a file of tokens; for examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from lightning_slt.components import resolve_components


class Attention(nn.Module):
    """Causal self-attention of several heads."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention of normalized inputs, added to the residual stream."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(width), Attention(width, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(self.norm(x))


class Transformer(nn.Module):
    """Embeddings of tokens and positions, blocks without perceptrons, logits."""

    def __init__(self, *, vocabulary: int, length: int, width: int, num_heads: int, layers: int = 2) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, num_heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def next_token(module: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of every next token ``[sample, token]``, in nats."""
    logits = module(batch[0][:, :-1])
    return F.cross_entropy(logits.transpose(1, 2), batch[0][:, 1:], reduction="none")


PLAIN, SKIP, INDUCTION = 0, 1, 2
VOCABULARY, HALF, LENGTH = 19, 7, 27


def two_mechanisms(count: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Twelve tokens of a skip-bigram, a separator, and seven random tokens shown twice, in either order.

    ``y_t = perm(y_{t−2})`` with probability 0.9, else any token; the permutation does not depend on the seed.

    Returns:
        Tokens ``[sample, token]``, and what would predict each but the first one: plain chance, the skip-bigram, or
        induction ``[sample, token − 1]``.
    """
    words = VOCABULARY - 1
    rule = torch.randperm(words, generator=torch.Generator().manual_seed(12345))
    g = torch.Generator().manual_seed(seed)
    skip = torch.randint(words, (count, LENGTH - 2 * HALF - 1), generator=g)
    kinds = torch.zeros(skip.shape, dtype=torch.long)
    for t in range(2, skip.shape[1]):
        follows = torch.rand(count, generator=g) < 0.9
        skip[:, t] = torch.where(follows, rule[skip[:, t - 2]], skip[:, t])
        kinds[:, t] = torch.where(skip[:, t] == rule[skip[:, t - 2]], SKIP, PLAIN)
    shown = torch.stack([torch.randperm(words, generator=g)[:HALF] for _ in range(count)])
    repeated, of_repeated = torch.cat([shown, shown], 1), torch.full((count, 2 * HALF), PLAIN)
    of_repeated[:, HALF + 1 :] = INDUCTION
    separator, nothing = torch.full((count, 1), words), torch.full((count, 1), PLAIN)
    first = torch.rand(count, 1, generator=g) < 0.5
    tokens = torch.where(first, torch.cat([skip, separator, repeated], 1), torch.cat([repeated, separator, skip], 1))
    kind = torch.where(first, torch.cat([kinds, nothing, of_repeated], 1), torch.cat([of_repeated, nothing, kinds], 1))
    return tokens, kind[:, 1:]


def token_rows(file: Path, *, vocabulary: int, length: int, count: int, skip: int = 0) -> Tensor:
    """Sequences from a file of tokens, read no further than asked for ``[sample, token]``.

    Args:
        file: ``.npy`` of integers, or anything else as bare 16-bit unsigned integers, one a token.
        vocabulary: Every token must be below it.
        length: Of a sequence.
        count: How many of them.
        skip: How many to leave out first.

    Raises:
        ValueError: If the file is too short, holds no integers, or tokens outside the vocabulary.
    """
    stored = np.load(file, mmap_mode="r") if file.suffix == ".npy" else np.memmap(file, dtype=np.uint16, mode="r")
    if stored.dtype.kind not in "iu":
        raise ValueError(f"{file} must hold integers, got {stored.dtype}; write np.save(file, ids.astype(np.uint16))")
    held, needed = stored.size // length, skip + count
    if held < needed:
        raise ValueError(f"{file} holds {held} sequences of {length} tokens, expected {needed}; write a longer file")
    rows = stored.reshape(-1)[skip * length : needed * length].reshape(count, length).astype(np.int64)
    if rows.min() < 0 or rows.max() >= vocabulary:
        raise ValueError(f"{file} has tokens {rows.min()} to {rows.max()}, expected 0 to {vocabulary - 1}")
    return torch.from_numpy(rows)


def seen_pairs(tokens: Tensor) -> Tensor:
    """Induction where the same two tokens followed each other earlier in the sequence ``[sample, token − 1]``."""
    pairs = tokens[:, :-1] * (tokens.max() + 1) + tokens[:, 1:]
    values, order = pairs.sort(dim=1, stable=True)
    again = F.pad(values[:, 1:] == values[:, :-1], (1, 0))
    return torch.full_like(pairs, PLAIN).scatter(1, order, torch.where(again, INDUCTION, PLAIN))


def fit(net: Transformer, tokens: Tensor, *, steps: int, batch: int, seed: int, learning_rate: float = 3e-3) -> None:
    """Adam on random minibatches of sequences, on the network's device."""
    optimizer, device = torch.optim.Adam(net.parameters(), lr=learning_rate), net.head.weight.device
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(tokens), (batch,), generator=order)
        loss = next_token(net, (tokens[rows].to(device),)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def train_language(seed: int, *, steps: int, width: int = 48, num_heads: int = 4, batch: int = 128) -> Transformer:
    """A transformer that has learnt :func:`two_mechanisms`."""
    torch.manual_seed(seed)
    net = Transformer(vocabulary=VOCABULARY, length=LENGTH, width=width, num_heads=num_heads)
    fit(net, two_mechanisms(batch * 64, seed=seed)[0], steps=steps, batch=batch, seed=seed)
    return net


def language(count: int, *, seed: int) -> TensorDataset:
    """Samples of the language."""
    return TensorDataset(two_mechanisms(count, seed=seed)[0])


@torch.no_grad()
def ablations(net: Transformer, tokens: Tensor) -> Tensor:
    """How much each token's loss rises where a head says nothing ``[sample, token, head]``, heads as in "heads"."""
    base, rises = next_token(net, (tokens,)), []
    for component in resolve_components(net, "heads").values():
        ((name, mask),) = [(n, m) for n, m in component.masks.items() if n.endswith("o_proj.weight")]
        weight = net.get_parameter(name)
        kept = weight.clone()
        weight.masked_fill_(mask, 0.0)
        rises.append(next_token(net, (tokens,)) - base)
        weight.copy_(kept)
    return torch.stack(rises, 2)
