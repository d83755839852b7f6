"""One component for each attention head of a network."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from lightning_slt.components.attention import Attention, find_attentions
from lightning_slt.components.component import Component


def head_components(module: nn.Module) -> dict[str, Component]:
    """The attention heads of a network, without what is frozen.

    Args:
        module: The network.

    Returns:
        Components by ``<module>.h<index>``, where the module is the one that holds the attention, if it holds no
        other: ``blocks.0.h3`` for head 3 of ``blocks.0.attn``.
    """
    names: dict[Tensor, str] = {p: name for name, p in module.named_parameters() if p.requires_grad}
    attentions, _ = find_attentions(module)
    heads = {}
    for attention, path in zip(attentions, _short([a.path for a in attentions]), strict=True):
        for head in range(attention.num_heads):
            if component := _component(attention, head, names):
                heads[f"{path}.h{head}" if path else f"h{head}"] = component
    return heads


def why_no_heads(module: nn.Module) -> str:
    """Why a network has no head components, and what to write instead."""
    attentions, missed = find_attentions(module)
    if attentions:
        return f"all weights of {attentions[0].path or 'the attention'!r} are frozen, and only weights that train move"
    paths = [path for path, _ in module.named_modules() if path]
    near = [path for path in paths if "att" in path.rpartition(".")[2].lower()]
    near = (near or difflib.get_close_matches("attention", paths, cutoff=0.3) or paths)[:5]
    reasons = "".join(f" {path or 'the module'!r} looks like one, but {why}." for path, why in list(missed.items())[:3])
    return (
        f"found no attention in {type(module).__name__}. Looked for torch.nn.MultiheadAttention; for weights W_Q, W_K, "
        "W_V, W_O with an axis of heads in front; and for modules with linear layers for queries, keys and values "
        "(q_proj, k_proj, v_proj, or one qkv) and an output, which tell their number of heads (num_heads)."
        f"{reasons} The nearest modules: {', '.join(near)}. Write {{name: Component(parameters, masks)}}"
    )


def _component(attention: Attention, head: int, names: Mapping[Tensor, str]) -> Component | None:
    """What a head has of the parameters that train; of one that serves twice (tied), both places."""
    whole: dict[str, None] = {}
    masks: dict[str, Tensor] = {}
    for piece in attention.pieces:
        name, owns = names.get(piece.parameter), piece.owners[head]
        if name is None or not owns.any():
            continue
        if owns.all():
            whole[name] = None
        else:
            masks[name] = piece.mask(head) | masks[name] if name in masks else piece.mask(head)
    parameters = tuple(dict.fromkeys((*whole, *masks)))
    return Component(parameters, {n: m for n, m in masks.items() if n not in whole}) if parameters else None


def _short(paths: Sequence[str]) -> list[str]:
    """Paths without their last part (``.attn``), where that leaves one name for one attention."""
    parents = ["" if path.rpartition(".")[2].isdigit() else path.rpartition(".")[0] for path in paths]
    count = Counter(parents)
    return [parent if parent and count[parent] == 1 else path for path, parent in zip(paths, parents, strict=True)]
