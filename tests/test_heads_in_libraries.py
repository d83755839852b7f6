"""Attention heads of Hugging Face and TransformerLens models, where these are installed; nothing is downloaded.

Shows that the twins in ``attentions.py`` are like them: equal parameters, equal masks, and one head alone
changes in the library's own forward pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_slt.components import resolve_components
from tests.attentions import GROUPS, HEADS, LAYOUTS, SIZE, WIDTH
from tests.test_heads import elements, made, moved

pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(12).view(2, 6)


def library(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} is not installed: tests/attentions.py stands for it")


def gpt2() -> nn.Module:
    t = library("transformers")
    config = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "vocab_size": 12, "n_positions": 6}
    return t.GPT2LMHeadModel(t.GPT2Config(**config, bos_token_id=0, eos_token_id=0))


def gpt_neox() -> nn.Module:
    t = library("transformers")
    config = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 24, "num_hidden_layers": 2}
    return t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**config, vocab_size=12, bos_token_id=0, eos_token_id=0))


def llama() -> nn.Module:
    t = library("transformers")
    config = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 24, "num_hidden_layers": 2}
    config |= {"num_key_value_heads": GROUPS, "head_dim": SIZE + 1, "vocab_size": 12}  # an even size, to rotate
    return t.LlamaForCausalLM(t.LlamaConfig(**config))


def bert() -> nn.Module:
    t = library("transformers")
    config = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 24, "num_hidden_layers": 2}
    return t.BertForMaskedLM(t.BertConfig(**config, vocab_size=12))


def t5() -> nn.Module:
    t = library("transformers")
    return t.T5EncoderModel(t.T5Config(d_model=WIDTH, d_kv=SIZE, num_heads=HEADS, d_ff=24, num_layers=2, vocab_size=12))


def lens(groups: int | None = None) -> nn.Module:
    t = library("transformer_lens")
    config = {"n_layers": 2, "d_model": WIDTH - 2, "n_ctx": 6, "d_head": SIZE, "n_heads": HEADS, "d_vocab": 12}
    return t.HookedTransformer(t.HookedTransformerConfig(**config, n_key_value_heads=groups, act_fn="gelu"))


MODELS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "gpt2": (gpt2, "transformer.h.1", "attn"),
    "gpt_neox": (gpt_neox, "gpt_neox.layers.1", "attention"),
    "llama": (llama, "model.layers.1", "self_attn"),
    "bert": (bert, "bert.encoder.layer.1", "attention"),
    "t5": (t5, "encoder.block.1.layer.0", "SelfAttention"),
    "lens": (lens, "blocks.1", "attn"),
    "lens_grouped": (lambda: lens(GROUPS), "blocks.1", "attn"),
}
CASES = pytest.mark.parametrize("name", MODELS)


def model(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = MODELS[name][0]().double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # biases start at zero, and GPT-2 with tiny weights
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@CASES
def test_the_twin_is_like_it(name: str) -> None:
    network, (_, block, attention) = model(name), MODELS[name]
    own, twin = network.get_submodule(f"{block}.{attention}"), made(LAYOUTS[name])
    shapes = {n: (p.ndim, p.shape[0] > p.shape[-1]) for n, p in own.named_parameters()}
    expected = {n: (p.ndim, p.shape[0] > p.shape[-1]) for n, p in twin.named_parameters() if n in shapes}
    assert shapes == expected
    extra = {n for n, _ in twin.named_parameters()} - shapes.keys()
    assert extra <= {"relative_attention_bias.weight"}  # in T5's first block only
    if name != "llama":  # a wider head than the twin's, so that its own size counts
        masks, others = (resolve_components(m, "heads")["h2"].masks for m in (own, twin))
        assert masks.keys() == others.keys()
        assert all(torch.equal(masks[n], others[n]) for n in masks)


@CASES
def test_moving_a_component_changes_what_that_head_hands_to_the_output_projection(name: str) -> None:
    network, (_, block, attention) = model(name), MODELS[name]
    heads = {n: c for n, c in resolve_components(network, "heads").items() if n.startswith(f"{block}.h")}
    assert list(heads) == [f"{block}.h{h}" for h in range(HEADS)]
    before = handed_on(network, f"{block}.{attention}")
    for h, component in enumerate(heads.values()):
        masks = {
            n: mask & (n not in output_weights(network, block)) for n, mask in elements(component, network).items()
        }
        after = handed_on(moved(network, masks), f"{block}.{attention}")
        for other in range(HEADS):
            alike = torch.equal(before[:, :, other], after[:, :, other])
            each = HEADS // GROUPS if name in ("llama", "lens_grouped") else 1
            assert alike == (other // each != h // each)


@CASES
def test_without_their_slices_of_the_output_nothing_is_left_but_its_bias(name: str) -> None:
    network, (_, block, attention) = model(name), MODELS[name]
    path = f"{block}.{attention}"
    weights = output_weights(network, block)
    heads = [c for n, c in resolve_components(network, "heads").items() if n.startswith(f"{block}.h")]
    assert all(weights <= set(component.parameters) for component in heads)
    with torch.no_grad():
        for component in heads:
            for weight in weights:
                network.get_parameter(weight).masked_fill_(component.masks[weight], 0)
    assert not any(network.get_parameter(weight).any() for weight in weights)
    assert path in dict(network.named_modules())


def output_weights(network: nn.Module, block: str) -> set[str]:
    ends = ("c_proj.weight", "dense.weight", "o_proj.weight", ".o.weight", "W_O")
    inside = [n for n, _ in network.named_parameters() if n.startswith(f"{block}.") and ".mlp" not in n]
    return {n for n in inside if n.endswith(ends) and "intermediate" not in n and f"{block}.output" not in n}


def handed_on(network: nn.Module, path: str) -> Tensor:
    """What the heads hand to the output projection ``[batch, token, head, size]``."""
    caught: list[Tensor] = []
    module = network.get_submodule(path)
    if hasattr(module, "hook_z"):
        handle = module.hook_z.register_forward_hook(lambda m, args, output: caught.append(output))
    else:
        out = next(c for n, c in module.named_modules() if n in ("c_proj", "dense", "o_proj", "o", "output.dense"))
        handle = out.register_forward_pre_hook(lambda m, args: caught.append(args[0]))
    with torch.no_grad():
        network(TOKENS)
    handle.remove()
    return caught[0].unflatten(-1, (HEADS, -1)) if caught[0].ndim == 3 else caught[0]
