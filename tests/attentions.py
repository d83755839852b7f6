"""Attention modules in the layouts of common libraries: the names, shapes and attributes of theirs, none of their code.

``slices`` says by hand which elements are head h's; the last one is that of the output projection. That the twins are
like the libraries' own modules is shown by ``test_heads_in_libraries.py``, where those are installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

HEADS, SIZE, WIDTH, GROUPS = 4, 3, 12, 2


@dataclass(frozen=True)
class Layout:
    """How to make an attention, to run it, and to find a head's weights in it."""

    make: Callable[[], nn.Module]
    slices: Callable[[Any, int], list[Tensor]]
    per_group: int = 1
    run: Callable[[Any, Tensor], Tensor] = lambda module, x: module(x)


def rows(head: int, size: int = SIZE) -> slice:
    return slice(head * size, (head + 1) * size)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int = HEADS, groups: int = HEADS) -> Tensor:
    """Scaled dot-product attention of ``[batch, token, head · size]``."""
    q = q.unflatten(2, (heads, -1)).transpose(1, 2)
    k, v = (t.unflatten(2, (groups, -1)).transpose(1, 2).repeat_interleave(heads // groups, 1) for t in (k, v))
    weights = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
    return (weights @ v).transpose(1, 2).flatten(2)


class Conv1D(nn.Module):
    """A linear layer with its weight the other way round."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class GPT2Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim = HEADS, SIZE, WIDTH
        self.c_attn, self.c_proj = Conv1D(3 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(attend(*self.c_attn(x).split(WIDTH, 2)))


def gpt2(m: Any, h: int) -> list[Tensor]:
    thirds = [slice(i * WIDTH + h * SIZE, i * WIDTH + (h + 1) * SIZE) for i in range(3)]
    fused = [t for s in thirds for t in (m.c_attn.weight[:, s], m.c_attn.bias[s])]
    return [*fused, m.c_proj.weight[rows(h)]]


class GPT2CrossAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.embed_dim = HEADS, SIZE, WIDTH
        self.c_attn, self.q_attn = Conv1D(2 * WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.c_proj = Conv1D(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(attend(self.q_attn(x), *self.c_attn(x.flip(1)).split(WIDTH, 2)))


def gpt2_cross(m: Any, h: int) -> list[Tensor]:
    halves = [slice(i * WIDTH + h * SIZE, i * WIDTH + (h + 1) * SIZE) for i in range(2)]
    pair = [t for s in halves for t in (m.c_attn.weight[:, s], m.c_attn.bias[s])]
    return [*pair, m.q_attn.weight[:, rows(h)], m.q_attn.bias[rows(h)], m.c_proj.weight[rows(h)]]


class GPTNeoXAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config, self.head_size = SimpleNamespace(num_attention_heads=HEADS, hidden_size=WIDTH), SIZE
        self.query_key_value, self.dense = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        by_head = self.query_key_value(x).unflatten(2, (HEADS, 3, SIZE))
        return self.dense(attend(*(t.flatten(2) for t in by_head.unbind(3))))


def neox(m: Any, h: int) -> list[Tensor]:
    own = rows(h, 3 * SIZE)
    return [m.query_key_value.weight[own], m.query_key_value.bias[own], m.dense.weight[:, rows(h)]]


class FalconAttention(nn.Module):
    """Queries of a group, then its key and its value, group after group."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_heads, self.groups = HEADS, groups
        self.query_key_value = nn.Linear(WIDTH, (HEADS + 2 * groups) * SIZE, bias=False)
        self.dense = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        by_group = self.query_key_value(x).unflatten(2, (self.groups, -1, SIZE))
        q, k, v = by_group.split([HEADS // self.groups, 1, 1], 3)
        return self.dense(attend(q.flatten(2), k.flatten(2), v.flatten(2), groups=self.groups))


def falcon(m: Any, h: int) -> list[Tensor]:
    each = HEADS // m.groups
    first = (h // each) * (each + 2) * SIZE
    weight, query = m.query_key_value.weight, first + (h % each) * SIZE
    shared = slice(first + each * SIZE, first + (each + 2) * SIZE)
    return [weight[query : query + SIZE], weight[shared], m.dense.weight[:, rows(h)]]


class LlamaAttention(nn.Module):
    """Keys and values shared by two query heads each; heads together are wider than the model."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_attention_heads=HEADS, num_key_value_heads=GROUPS, hidden_size=WIDTH - 2)
        self.head_dim, self.num_key_value_groups = SIZE, HEADS // GROUPS
        self.q_proj = nn.Linear(WIDTH - 2, HEADS * SIZE, bias=False)
        self.k_proj = nn.Linear(WIDTH - 2, GROUPS * SIZE, bias=False)
        self.v_proj = nn.Linear(WIDTH - 2, GROUPS * SIZE, bias=False)
        self.o_proj = nn.Linear(HEADS * SIZE, WIDTH - 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.o_proj(attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), groups=GROUPS))


def llama(m: Any, h: int) -> list[Tensor]:
    shared = rows(h // (HEADS // GROUPS))
    q, k, v, o = (layer.weight for layer in (m.q_proj, m.k_proj, m.v_proj, m.o_proj))
    return [q[rows(h)], k[shared], v[shared], o[:, rows(h)]]


class LensAttention(nn.Module):
    """TransformerLens: an axis of heads in front; keys and values of groups have names with an underscore."""

    def __init__(self, groups: int = HEADS) -> None:
        super().__init__()
        self.prefix = "" if groups == HEADS else "_"
        for role, count in (("Q", HEADS), ("K", groups), ("V", groups)):
            prefix = "" if role == "Q" else self.prefix
            self.register_parameter(f"{prefix}W_{role}", nn.Parameter(torch.randn(count, WIDTH - 2, SIZE)))
            self.register_parameter(f"{prefix}b_{role}", nn.Parameter(torch.randn(count, SIZE)))
        self.W_O, self.b_O = nn.Parameter(torch.randn(HEADS, SIZE, WIDTH - 2)), nn.Parameter(torch.randn(WIDTH - 2))

    def weights(self, role: str) -> tuple[Tensor, Tensor]:
        prefix = "" if role in "QO" else self.prefix
        return getattr(self, f"{prefix}W_{role}"), getattr(self, f"{prefix}b_{role}")

    def forward(self, x: Tensor) -> Tensor:
        made = []
        for w, b in (self.weights(role) for role in "QKV"):
            made.append((torch.einsum("btd,hds->bths", x, w) + b).flatten(2))
        z = attend(*made, groups=len(self.weights("K")[0])).unflatten(2, (HEADS, SIZE))
        return torch.einsum("bths,hsd->btd", z, self.W_O) + self.b_O


def lens(m: Any, h: int) -> list[Tensor]:
    slices = []
    for role in "QKV":
        slices += [t[h * len(t) // HEADS] for t in m.weights(role)]
    return [*slices, m.W_O[h]]


class Fused(nn.Module):
    """nanoGPT's ``c_attn`` and ``n_head``, timm's ``qkv`` and ``num_heads``, or names of one's own."""

    def __init__(self, names: tuple[str, str], heads: str, groups: int = HEADS) -> None:
        super().__init__()
        self.names, self.groups = names, groups
        setattr(self, heads, HEADS)
        self.add_module(names[0], nn.Linear(WIDTH, (HEADS + 2 * groups) * SIZE))
        self.add_module(names[1], nn.Linear(WIDTH, WIDTH))
        self.q_norm = nn.LayerNorm(SIZE)

    def forward(self, x: Tensor) -> Tensor:
        fused, out = (getattr(self, name) for name in self.names)
        shared = self.groups * SIZE
        return out(attend(*fused(x).split([WIDTH, shared, shared], 2), groups=self.groups))


def fused(m: Any, h: int) -> list[Tensor]:
    made, out = (getattr(m, name) for name in m.names)
    group = rows(h * m.groups // HEADS)
    keys = slice(WIDTH + group.start, WIDTH + group.stop)
    values = slice(WIDTH + m.groups * SIZE + group.start, WIDTH + m.groups * SIZE + group.stop)
    return [t[s] for t in (made.weight, made.bias) for s in (rows(h), keys, values)] + [out.weight[:, rows(h)]]


class Separate(nn.Module):
    """A linear layer each, by names of one's own."""

    def __init__(self, names: tuple[str, str, str, str], bias: bool = True, **attributes: int) -> None:
        super().__init__()
        self.names = names
        for name, value in attributes.items():
            setattr(self, name, value)
        for name in names:
            self.add_module(name, nn.Linear(WIDTH, WIDTH, bias=bias))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, out = (getattr(self, name) for name in self.names)
        return out(attend(q(x), k(x), v(x)))


def separate(m: Any, h: int) -> list[Tensor]:
    q, k, v, out = (getattr(m, name) for name in m.names)
    made = [t[rows(h)] for layer in (q, k, v) for t in (layer.weight, layer.bias) if t is not None]
    return [*made, out.weight[:, rows(h)]]


class T5Attention(Separate):
    """Beside the four layers a table of position biases, which is no head's."""

    def __init__(self) -> None:
        super().__init__(("q", "k", "v", "o"), bias=False, n_heads=HEADS, key_value_proj_dim=SIZE)
        self.relative_attention_bias = nn.Embedding(8, HEADS)


class BertAttention(nn.Module):
    """Queries, keys and values in a module of their own, the output in another."""

    def __init__(self) -> None:
        super().__init__()
        self.self = nn.Module()
        self.self.num_attention_heads, self.self.attention_head_size = HEADS, SIZE
        for name in ("query", "key", "value"):
            self.self.add_module(name, nn.Linear(WIDTH, WIDTH))
        self.output = nn.Module()
        self.output.dense, self.output.LayerNorm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.output.dense(attend(self.self.query(x), self.self.key(x), self.self.value(x)))


def bert(m: Any, h: int) -> list[Tensor]:
    layers = (m.self.query, m.self.key, m.self.value)
    return [t[rows(h)] for layer in layers for t in (layer.weight, layer.bias)] + [m.output.dense.weight[:, rows(h)]]


class ListOfHeads(nn.Module):
    """Every head a module of its own, as lectures write it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Module() for _ in range(HEADS))
        for head in self.heads:
            head.key, head.query, head.value = (nn.Linear(WIDTH, SIZE, bias=False) for _ in range(3))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        each = [attend(m.query(x), m.key(x), m.value(x), heads=1, groups=1) for m in self.heads]
        return self.proj(torch.cat(each, 2))


def list_of_heads(m: Any, h: int) -> list[Tensor]:
    head = m.heads[h]
    return [head.key.weight, head.query.weight, head.value.weight, m.proj.weight[:, rows(h)]]


def torch_attention(**changes: Any) -> nn.Module:
    module = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **changes)
    for parameter in module.parameters():  # biases start at zero
        nn.init.normal_(parameter)
    return module


def of_torch(m: Any, h: int) -> list[Tensor]:
    thirds = [slice(i * WIDTH + h * SIZE, i * WIDTH + (h + 1) * SIZE) for i in range(3)]
    packed = m.in_proj_weight is not None
    apart = [w[rows(h)] for w in (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight) if w is not None]
    slices = [m.in_proj_weight[s] for s in thirds] if packed else apart
    slices += [m.in_proj_bias[s] for s in thirds] if m.in_proj_bias is not None else []
    slices += [b[..., rows(h)] for b in (m.bias_k, m.bias_v) if b is not None]
    return [*slices, m.out_proj.weight[:, rows(h)]]


def run_torch(m: Any, x: Tensor) -> Tensor:
    others = (x, x) if m._qkv_same_embed_dim else (x[..., : m.kdim], x[..., : m.vdim])
    output: Tensor = m(x, *others, need_weights=False)[0]
    return output


LAYOUTS = {
    "torch": Layout(torch_attention, of_torch, run=run_torch),
    "torch_without_bias": Layout(lambda: torch_attention(bias=False), of_torch, run=run_torch),
    "torch_other_widths": Layout(lambda: torch_attention(kdim=5, vdim=7), of_torch, run=run_torch),
    "torch_bias_kv": Layout(lambda: torch_attention(add_bias_kv=True), of_torch, run=run_torch),
    "gpt2": Layout(GPT2Attention, gpt2),
    "gpt2_cross": Layout(GPT2CrossAttention, gpt2_cross),
    "gpt_neox": Layout(GPTNeoXAttention, neox),
    "falcon": Layout(lambda: FalconAttention(GROUPS), falcon, HEADS // GROUPS),
    "falcon_one_group": Layout(lambda: FalconAttention(1), falcon, HEADS),
    "llama": Layout(LlamaAttention, llama, HEADS // GROUPS),
    "lens": Layout(LensAttention, lens),
    "lens_grouped": Layout(lambda: LensAttention(GROUPS), lens, HEADS // GROUPS),
    "nanogpt": Layout(lambda: Fused(("c_attn", "c_proj"), "n_head"), fused),
    "timm": Layout(lambda: Fused(("qkv", "proj"), "num_heads"), fused),
    "phi3": Layout(lambda: Fused(("qkv_proj", "o_proj"), "num_heads", GROUPS), fused, HEADS // GROUPS),
    "fused_by_shape": Layout(lambda: Fused(("mix", "back"), "heads"), fused),
    "own_names": Layout(lambda: Separate(("to_q", "to_k", "to_v", "mixed"), n_heads=HEADS), separate),
    "head_size_alone": Layout(lambda: Separate(("wq", "wk", "wv", "wo"), head_dim=SIZE), separate),
    "t5": Layout(T5Attention, separate),
    "bert": Layout(BertAttention, bert),
    "list_of_heads": Layout(ListOfHeads, list_of_heads),
}
