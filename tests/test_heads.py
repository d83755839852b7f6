"""Attention heads: each component holds exactly one head's weights, in every layout."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.components import Component, resolve_components
from tests.attentions import HEADS, LAYOUTS, WIDTH, GPT2Attention, Layout, LlamaAttention, Separate

NO_HEADS = {
    *("out_proj.bias", "c_proj.bias", "dense.bias", "proj.bias", "o_proj.bias", "b_O", "back.bias", "mixed.bias"),
    *("wo.bias", "o.bias", "output.dense.bias", "output.LayerNorm.weight", "output.LayerNorm.bias"),
    *("q_norm.weight", "q_norm.bias", "relative_attention_bias.weight"),
}
"""What belongs to no head in any of the layouts: output biases, norms, positions."""

CASES = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
EACH_HEAD = pytest.mark.parametrize("head", range(HEADS))


def made(layout: Layout) -> nn.Module:
    torch.manual_seed(0)
    return layout.make().double()


def elements(component: Component, module: nn.Module) -> dict[str, Tensor]:
    """A mask for every parameter of the module."""
    masks = {}
    for name, parameter in module.named_parameters():
        whole = torch.full(parameter.shape, name in component.parameters)
        masks[name] = component.masks.get(name, whole)
    return masks


def marked(module: nn.Module, slices: Iterable[Tensor]) -> dict[str, Tensor]:
    """Where slices of a module's parameters lie, by writing into them; the module is used up."""
    with torch.no_grad():
        views = [view.detach() for view in slices]
        for parameter in module.parameters():
            parameter.zero_()
        for view in views:
            view.fill_(1)
    return {name: parameter != 0 for name, parameter in module.named_parameters()}


def moved(module: nn.Module, masks: dict[str, Tensor]) -> nn.Module:
    """A copy with other values under the masks."""
    copy = deepcopy(module)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in copy.named_parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g, dtype=parameter.dtype) * masks[name])
    return copy


def contribution(layout: Layout, module: nn.Module, head: int, x: Tensor) -> Tensor:
    """What one head adds to the output: all others' slices of the output projection are zero."""
    alone, none = deepcopy(module), deepcopy(module)
    with torch.no_grad():
        for other in range(HEADS):
            layout.slices(none, other)[-1].zero_()
            if other != head:
                layout.slices(alone, other)[-1].zero_()
        return layout.run(alone, x) - layout.run(none, x)


def features(module: nn.Module) -> int:
    """Width of the input."""
    return WIDTH - 2 if type(module).__name__ in ("LlamaAttention", "LensAttention") else WIDTH


@CASES
@EACH_HEAD
def test_a_component_is_exactly_the_heads_own_slices(layout: Layout, head: int) -> None:
    module = made(layout)
    components = resolve_components(module, "heads")
    assert list(components) == [f"h{h}" for h in range(HEADS)]
    expected = marked(copy := deepcopy(module), layout.slices(copy, head))
    found = elements(components[f"h{head}"], module)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@CASES
@EACH_HEAD
def test_moving_a_component_changes_that_heads_contribution_alone(layout: Layout, head: int) -> None:
    module = made(layout)
    x = torch.randn(2, 5, features(module), dtype=torch.float64)
    masks = elements(resolve_components(module, "heads")[f"h{head}"], module)
    other = moved(module, masks)
    change = layout.run(other, x) - layout.run(module, x)
    group = [h for h in range(HEADS) if h // layout.per_group == head // layout.per_group]
    for h in range(HEADS):
        before, after = contribution(layout, module, h, x), contribution(layout, other, h, x)
        assert torch.equal(before, after) == (h not in group)
        change = change - (after - before)
    assert change.abs().max() < 1e-10


@CASES
@EACH_HEAD
def test_zeroing_a_component_takes_that_heads_contribution_out(layout: Layout, head: int) -> None:
    module = made(layout)
    x = torch.randn(2, 5, features(module), dtype=torch.float64)
    masks = elements(resolve_components(module, "heads")[f"h{head}"], module)
    without = deepcopy(module)
    with torch.no_grad():
        for name, parameter in without.named_parameters():
            parameter.masked_fill_(masks[name], 0)
    group = [h for h in range(HEADS) if h // layout.per_group == head // layout.per_group]
    assert not contribution(layout, without, head, x).any()
    for h in set(range(HEADS)) - set(group):
        assert torch.equal(contribution(layout, without, h, x), contribution(layout, module, h, x))


@CASES
def test_heads_are_disjoint_but_for_shared_keys_and_values(layout: Layout) -> None:
    module = made(layout)
    heads = [elements(c, module) for c in resolve_components(module, "heads").values()]
    for name, parameter in module.named_parameters():
        times = torch.stack([head[name] for head in heads]).sum(0)
        assert times.shape == parameter.shape
        assert set(times.unique().tolist()) <= {0, 1, layout.per_group}


@CASES
def test_all_heads_and_the_output_bias_are_the_whole_attention(layout: Layout) -> None:
    module = made(layout)
    first, *others = resolve_components(module, "heads").values()
    for head in others:
        first = first | head
    assert not first.masks
    outside = {name for name, _ in module.named_parameters()} - set(first.parameters)
    assert outside == {name for name, _ in module.named_parameters()} & NO_HEADS


def test_masks_take_no_memory_of_the_size_of_the_weights() -> None:
    module = LlamaAttention()
    for component in resolve_components(module, "heads").values():
        for name, mask in component.masks.items():
            assert mask.untyped_storage().nbytes() == max(mask.shape[a] for a in range(2) if mask.stride(a)), name


class Block(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attn, self.mlp = attention, nn.Sequential(nn.Linear(WIDTH, 36), nn.GELU(), nn.Linear(36, WIDTH))


def names(module: nn.Module) -> list[str]:
    return list(resolve_components(module, "heads"))


def test_names_leave_the_attention_out_where_it_is_the_only_one_of_its_block() -> None:
    net = nn.ModuleDict({"blocks": nn.ModuleList(Block(GPT2Attention()) for _ in range(2))})
    assert names(net) == [f"blocks.{b}.h{h}" for b in range(2) for h in range(HEADS)]


def test_names_keep_the_attention_where_a_block_has_two() -> None:
    layer = nn.TransformerDecoderLayer(8, 2, 16)
    assert names(layer) == ["self_attn.h0", "self_attn.h1", "multihead_attn.h0", "multihead_attn.h1"]
    assert names(nn.Sequential(layer))[::2] == ["0.self_attn.h0", "0.multihead_attn.h0"]


def test_names_keep_places_in_a_list() -> None:
    net = nn.ModuleDict({"attns": nn.ModuleList([GPT2Attention()])})
    assert names(net) == [f"attns.0.h{h}" for h in range(HEADS)]


def test_an_attention_at_the_top_keeps_its_name() -> None:
    assert names(Block(GPT2Attention())) == [f"attn.h{h}" for h in range(HEADS)]


def test_encoder_layers() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    assert names(encoder) == ["layers.0.h0", "layers.0.h1", "layers.1.h0", "layers.1.h1"]


def test_a_pattern_of_heads() -> None:
    net = nn.ModuleDict({"blocks": nn.ModuleList(Block(GPT2Attention()) for _ in range(2))})
    assert list(resolve_components(net, "blocks.1.h[01]")) == ["blocks.1.h0", "blocks.1.h1"]
    assert list(resolve_components(net, "blocks.1.h3")) == ["blocks.1.h3"]
    with pytest.raises(ValueError, match=r"blocks\.1\.h4.*nearest.*blocks\.1\.h3"):
        resolve_components(net, "blocks.1.h4")


def test_an_attention_that_serves_twice_is_one() -> None:
    attention = GPT2Attention()
    net = nn.ModuleDict({"a": Block(attention), "b": Block(attention)})
    assert names(net) == [f"a.h{h}" for h in range(HEADS)]


def test_tied_queries_and_keys_hold_both_places() -> None:
    module = Separate(("q", "k", "v", "o"), num_heads=HEADS)
    module.k.weight = module.q.weight
    component = resolve_components(module, "heads")["h1"]
    assert set(component.parameters) == {"q.weight", "q.bias", "k.bias", "v.weight", "v.bias", "o.weight"}
    resolve_components(module, {"h1": component})


def test_frozen_weights_are_left_out() -> None:
    net = nn.Sequential(Separate(("q", "k", "v", "o"), num_heads=HEADS), nn.Linear(WIDTH, 1))
    net[0].k.requires_grad_(False)
    assert not any(".k." in name for name in resolve_components(net, "heads")["0.h1"].parameters)
    net[0].requires_grad_(False)
    with pytest.raises(ValueError, match=r"all weights of '0' are frozen"):
        resolve_components(net, "heads")


def test_no_attention_says_what_was_looked_for_and_what_is_near() -> None:
    net = nn.ModuleDict({"encoder": nn.Linear(2, 2), "attend_pool": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"found no attention in ModuleDict.*MultiheadAttention.*q_proj.*attend_pool"):
        resolve_components(net, "heads")


def test_an_attention_without_its_number_of_heads_is_named() -> None:
    net = nn.ModuleDict({"block": Block(Separate(("q", "k", "v", "o")))})
    with pytest.raises(ValueError, match=r"'block\.attn' looks like one, but .*set self\.num_heads"):
        resolve_components(net, "heads")


def test_heads_that_do_not_divide_the_width_are_told() -> None:
    with pytest.raises(ValueError, match=r"takes 12 features, which 5 heads do not divide"):
        resolve_components(Separate(("q", "k", "v", "o"), num_heads=5), "heads")


def test_flat_stacked_weights_are_told() -> None:
    module = nn.Module()
    for role in "QKV":
        module.register_parameter(f"W_{role}", nn.Parameter(torch.randn(4, 12, 3)))
    module.W_O = nn.Parameter(torch.randn(12, 12))
    with pytest.raises(ValueError, match=r"do not all have an axis of heads in front"):
        resolve_components(module, "heads")


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_perceptrons_are_no_attention(factor: int) -> None:
    class Perceptron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = HEADS  # a configuration that every module of the network holds
            self.gate_up_proj, self.down_proj = nn.Linear(WIDTH, factor * WIDTH), nn.Linear(WIDTH * factor, WIDTH)
            if factor == 2:  # gated: the second takes half of what the first makes
                self.down_proj = nn.Linear(WIDTH, WIDTH)

    with pytest.raises(ValueError, match="found no attention"):
        resolve_components(Perceptron(), "heads")


@pytest.mark.parametrize("method", ["vectorized", "sequential"])
def test_every_head_has_an_llc_of_its_own(method: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    before = deepcopy(net.state_dict())
    found = slt.estimate(
        net,
        torch.utils.data.TensorDataset(torch.randn(16, 3, 8)),
        [slt.LLC()],
        loss_fn=lambda module, batch: module(batch[0])[..., 0].square().mean(1),
        sampler=slt.SGLD(step_size=1e-4),
        nbeta=10.0,
        localization=10.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=0, batch_size=8, chain_method=method),
        components="heads",
    )
    assert list(found) == ["layers.0.h0", "layers.0.h1", "layers.1.h0", "layers.1.h1"]
    values = [estimates["llc"].mean for estimates in found.values()]
    assert len(set(values)) == 4
    assert torch.tensor(values).isfinite().all()
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
