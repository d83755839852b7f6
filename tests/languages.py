"""A language model with the parameter names of GPT-NeoX, and tokens for it: what Pythia is, in small."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

VOCABULARY, WIDTH, LENGTH = 11, 8, 6


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_key_value, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query_key_value(x).chunk(3, dim=-1)
        return self.dense(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class _Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = _Attention()
        self.mlp = nn.ModuleDict(
            {"dense_h_to_4h": nn.Linear(WIDTH, 4 * WIDTH), "dense_4h_to_h": nn.Linear(4 * WIDTH, WIDTH)}
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = nn.functional.gelu(self.mlp["dense_h_to_4h"](self.post_attention_layernorm(x)))
        return x + self.attention(self.input_layernorm(x)) + self.mlp["dense_4h_to_h"](inner)


class NeoX(nn.Module):
    """Gives an object with ``logits``, as models of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.gpt_neox = nn.ModuleDict(
            {
                "embed_in": nn.Embedding(VOCABULARY, WIDTH),
                "layers": nn.ModuleList(_Layer() for _ in range(2)),
                "final_layer_norm": nn.LayerNorm(WIDTH),
            }
        )
        self.embed_out = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.gpt_neox["embed_in"](input_ids)
        for layer in self.gpt_neox["layers"]:
            x = layer(x)
        return SimpleNamespace(logits=self.embed_out(self.gpt_neox["final_layer_norm"](x)))


def make_model():  # type: ignore[no-untyped-def]
    """Without annotations, as many such functions are."""
    return NeoX()


def tokens(count: int = 24) -> Dataset[Any]:
    g = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randint(0, VOCABULARY, (count, LENGTH), generator=g))
