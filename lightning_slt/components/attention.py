"""Attention modules of a network, found by structure and shapes where those tell, else by the names of their layers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from lightning_slt.components.slices import Piece, fused_owners, key_owners, query_owners

HEADS = re.compile(r"(n|num|nb|number_of)?_?(attention|attn|query|q)?_?heads?")
"""Attributes that hold the number of heads, of the module or of its ``config``."""

HEAD_SIZE = re.compile(r"(d|dim)_?heads?|(attention_)?head_?(dim|size)|dim_per_head")
"""Attributes that hold the width of a head, where there is no number."""

_AFFIX = "(w|to|in|lin|linear|fc|c|proj|projection|layer|net|attn)?"
ROLES = {
    role: re.compile(f"{_AFFIX}({names}){_AFFIX}")
    for role, names in {
        "query": "q|query|queries",
        "key": "k|key|keys",
        "value": "v|val|value|values",
        "fused": "qkv|querykeyvalue|cattn",
        "pair": "kv|keyvalue",
        "out": "o|out|output|dense|proj|resid",
    }.items()
}
"""What a projection is for, by its name in lower case without underscores: ``q_proj``, ``to_q``, ``W_Q``, ``wq``, …"""

LAYOUTS = ({"query", "key", "value", "out"}, {"fused", "out"}, {"query", "pair", "out"})
"""What makes an attention of linear layers."""

BY_HEAD = ("query_key_value",)
"""Fused projections whose rows come head by head (query, key, value), as in GPT-NeoX; in all others the queries of all
heads come first, then the keys, then the values. Shapes do not tell."""


@dataclass(frozen=True)
class Attention:
    """One attention module.

    Attributes:
        path: Its name in the network.
        num_heads: Query heads.
        pieces: Its parameters that belong to heads.
    """

    path: str
    num_heads: int
    pieces: tuple[Piece, ...]


class UnreadableError(ValueError):
    """A module that looks like an attention whose heads cannot be told apart; the message says what is missing."""


def find_attentions(module: nn.Module) -> tuple[list[Attention], dict[str, str]]:
    """The attention modules of a network, each the smallest module with queries, keys, values and an output.

    Args:
        module: The network.

    Returns:
        What was found, in the network's order, and why modules that look like one are not, by name.
    """
    found: dict[str, Attention] = {}
    missed: dict[str, str] = {}
    seen: set[nn.Module] = set()
    modules = dict(module.named_modules())
    smallest_first = sorted(modules.items(), key=lambda item: sum(1 for _ in item[1].modules()))
    for path, part in smallest_first:
        if any(inner in seen for inner in part.modules()):
            continue
        try:
            pieces = _pieces(part)
        except UnreadableError as error:
            missed[path] = str(error)
        else:
            if not pieces:
                continue
            found[path] = Attention(path, len(pieces[0].owners), pieces)
        seen.add(part)
    return [found[path] for path in modules if path in found], {p: missed[p] for p in modules if p in missed}


def _pieces(module: nn.Module) -> tuple[Piece, ...]:
    """The parameters of an attention cut into heads; none where the module is no attention."""
    if isinstance(module, nn.MultiheadAttention):
        return tuple(_of_torch(module))
    if stacked := _stacked(module):
        return stacked
    for depth in (1, 2):
        roles = _roles(module, depth)
        if any(needed <= roles.keys() for needed in LAYOUTS):
            return tuple(_projected(module, roles))
    return ()


def _of_torch(module: nn.MultiheadAttention) -> Iterator[Piece]:
    heads = module.num_heads
    each, fused = query_owners(heads), fused_owners(heads, heads, by_head=False)
    for parameter, axis, owners in (
        (module.in_proj_weight, 0, fused),
        (module.q_proj_weight, 0, each),
        (module.k_proj_weight, 0, each),
        (module.v_proj_weight, 0, each),
        (module.in_proj_bias, 0, fused),
        (module.bias_k, 2, each),
        (module.bias_v, 2, each),
        (module.out_proj.weight, 1, each),
    ):
        if isinstance(parameter, nn.Parameter):
            yield Piece(parameter, axis, owners)


def _stacked(module: nn.Module) -> tuple[Piece, ...]:
    """Weights with an axis of heads in front, ``W_Q [head, d, d_head]`` and so on, as in TransformerLens."""
    own = {name.lstrip("_"): parameter for name, parameter in module.named_parameters(recurse=False)}
    if not {"W_Q", "W_K", "W_V", "W_O"} <= own.keys():
        return ()
    if any(own[f"W_{role}"].ndim != 3 for role in "QKVO"):
        raise UnreadableError("its W_Q, W_K, W_V and W_O do not all have an axis of heads in front [head, ., .]")
    heads, groups = own["W_Q"].shape[0], own["W_K"].shape[0]
    query, key = query_owners(heads), key_owners(heads, groups)
    names = {"W_Q": query, "b_Q": query, "W_K": key, "b_K": key, "W_V": key, "b_V": key, "W_O": query}
    return tuple(Piece(own[name], 0, owners) for name, owners in names.items() if name in own)


Projections = dict[str, list[tuple[str, nn.Module]]]
"""Layers with their paths, by what they are for."""


def _roles(module: nn.Module, depth: int) -> Projections:
    """Matrices of a module and of those up to ``depth`` below it."""
    roles: Projections = {}
    others: list[tuple[str, nn.Module]] = []
    for path, layer in module.named_modules():
        if not 1 <= len(_named(path)) <= depth or not _is_matrix(layer):
            continue
        role = next((r for r in ("query", "key", "value", "fused", "pair") if _is_called(path, r)), None)
        (others if role is None else roles.setdefault(role, [])).append((path, layer))
    if not roles and len(others) == 2:
        return _by_shape(others)
    if "query" in roles and "fused" in roles:  # GPT-2's cross-attention: c_attn makes keys and values alone
        roles["pair"] = roles.pop("fused")
    out = others if len(others) == 1 else [(path, layer) for path, layer in others if _is_called(path, "out")]
    return {**roles, "out": out} if len(out) == 1 else roles


def _named(path: str) -> list[str]:
    """The parts of a path that are no places in a list."""
    return [part for part in path.split(".") if part and not part.isdigit()]


def _is_called(path: str, role: str) -> bool:
    return ROLES[role].fullmatch(_named(path)[-1].lower().replace("_", "")) is not None


def _by_shape(pair: Sequence[tuple[str, nn.Module]]) -> Projections:
    """Two matrices of which one makes three times what the other takes, whatever their names."""
    for fused, out in (pair, pair[::-1]):
        if _sizes(fused[1])[1] == 3 * _sizes(out[1])[0]:
            return {"fused": [fused], "out": [out]}
    return {}


def _projected(module: nn.Module, roles: Projections) -> Iterator[Piece]:
    """Pieces of an attention that is made of linear layers."""
    out = roles["out"][0][1]
    width = _sizes(out)[0]
    apart = len(roles.get("query", ())) > 1  # every head is a module with projections of its own
    heads = len(roles["query"]) if apart else _num_heads(module, width)
    if heads < 1 or width % heads:
        raise UnreadableError(f"its output projection takes {width} features, which {heads} heads do not divide")
    if not apart and any(len(layers) > 1 for layers in roles.values()):
        raise UnreadableError("it holds several projections of one kind")
    yield Piece(_weight(out), 1 - _out_axis(out), query_owners(heads))
    if apart:
        yield from _apart(roles, heads)
    elif "fused" in roles:
        path, layer = roles["fused"][0]
        groups = _groups(heads, (_sizes(layer)[1] * heads / width - heads) / 2, path)
        yield from _outputs(layer, fused_owners(heads, groups, by_head=path.split(".")[-1] in BY_HEAD))
    else:
        path, layer = roles["pair" if "pair" in roles else "value"][0]
        groups = _groups(heads, _sizes(layer)[1] * heads / width / (2 if "pair" in roles else 1), path)
        key = key_owners(heads, groups)
        yield from _outputs(roles["query"][0][1], query_owners(heads))
        for role, owners in {"key": key, "value": key, "pair": torch.cat([key, key], 1)}.items():
            for _, layer in roles.get(role, ()):
                yield from _outputs(layer, owners)


def _apart(roles: Projections, heads: int) -> Iterator[Piece]:
    for role in ("query", "key", "value"):
        layers = roles.get(role, ())
        if len(layers) != heads:
            raise UnreadableError(f"it holds {heads} query projections, but {len(layers)} {role} projections")
        for head, (_, layer) in enumerate(layers):
            yield from _outputs(layer, query_owners(heads)[:, head : head + 1])


def _groups(heads: int, groups: float, path: str) -> int:
    """Number of groups of heads that share keys and values, where it is one."""
    if groups < 1 or groups != int(groups) or heads % int(groups):
        raise UnreadableError(f"the width of {path!r} does not fit {heads} heads")
    return int(groups)


def _outputs(layer: nn.Module, owners: Tensor) -> Iterator[Piece]:
    """The pieces of a layer whose outputs are blocks of heads."""
    if _sizes(layer)[1] % owners.shape[1]:
        raise UnreadableError(f"{_sizes(layer)[1]} outputs of a projection do not make {owners.shape[1]} equal blocks")
    yield Piece(_weight(layer), _out_axis(layer), owners)
    if isinstance(bias := getattr(layer, "bias", None), nn.Parameter):
        yield Piece(bias, 0, owners)


def _is_matrix(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or isinstance(layer, nn.Embedding):
        return False
    return weight.ndim >= 2 and all(size == 1 for size in weight.shape[2:])


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _out_axis(layer: nn.Module) -> int:
    """Axis of the outputs: 0 in ``nn.Linear``; 1 in the ``Conv1D`` of GPT-2, which calls their number ``nf``."""
    return 1 if hasattr(layer, "nf") else 0


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Numbers of inputs and of outputs."""
    shape, axis = _weight(layer).shape, _out_axis(layer)
    return shape[1 - axis], shape[axis]


def _num_heads(module: nn.Module, width: int) -> int:
    """Number of heads by an attribute of the module or of one in it, or of their configuration."""
    holders = list(module.modules())
    configs = [c for m in holders for c in (getattr(m, "config", None), getattr(m, "cfg", None)) if c is not None]
    for holder in chain(holders, configs):
        if (number := _attribute(holder, HEADS)) is not None:
            return number
        if size := _attribute(holder, HEAD_SIZE):
            return width // size
    raise UnreadableError("nothing tells its number of heads; set self.num_heads")


def _attribute(holder: object, names: re.Pattern[str]) -> int | None:
    values = {n: v for n, v in getattr(holder, "__dict__", {}).items() if names.fullmatch(n)}
    return next((v for v in values.values() if isinstance(v, int) and not isinstance(v, bool)), None)
