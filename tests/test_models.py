"""Right losses and gradients for every kind of model, by both routes, against plain autograd of the module itself."""

import copy
import warnings
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

import lightning_slt as slt
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated

DOUBLE = torch.float64
ROUTES = ("vectorized", "sequential")
Pair = namedtuple("Pair", ["x", "y"])


def read(module: nn.Module, data: Any, loss_fn: Callable[..., Tensor] | None = None, **more: Any) -> slt.Estimate:
    """A short LLC on minibatches, with its trace; a warning about a slow route is an error unless asked for."""
    counts = {"num_chains": 3, "num_draws": 5, "num_burnin": 2, "batch_size": 8, "seed": 1} | more
    return slt.estimate(
        module,
        data,
        [slt.LLC(traces=True)],
        loss_fn=loss_fn,
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=20.0,
        localization=1.0,
        sampling=slt.SamplingConfig(**counts),
    )["llc"]


def routes_agree(module: nn.Module, data: Any, loss_fn: Callable[..., Tensor] | None = None, **more: Any) -> Tensor:
    """Traces ``[chain, draw]`` of the vectorized route, which must equal those of the sequential one."""
    together, apart = (read(module, data, loss_fn, chain_method=route, **more).traces["loss"] for route in ROUTES)
    assert bool(together.isfinite().all())
    assert bool((together != 0).all())
    torch.testing.assert_close(together, apart, rtol=1e-8, atol=1e-8)
    return together


def first_step(
    module: nn.Module, loss_fn: Callable[..., Tensor], batch: Any, route: str
) -> tuple[dict[str, Tensor], slt.Draw]:
    """One step at ``εnβ/2 = 1`` without noise: ``w* − g``, so the gradient by name; and the draw there."""
    with isolated(module, seed=0):
        loss = ModuleLoss(module, loss_fn)
        anchor = {n: loss.weights[n] for n, p in module.named_parameters() if p.requires_grad}
        posterior = slt.LocalPosterior(loss=loss, anchor=anchor, nbeta=2.0, localization=0.0)
        data = oracles.in_memory(TensorDataset(*batch))
        config = slt.SamplingConfig(num_chains=2, num_draws=1, num_burnin=0, batch_size=len(data), chain_method=route)
        (draw,) = slt.sample(posterior, slt.SGLD(step_size=1.0, temperature=0.0), data, config)
    row = (posterior.anchor_row - draw.position)[1]
    return {leaf.name: row[leaf.start : leaf.stop].view(leaf.shape) for leaf in posterior.leaves}, draw


@pytest.mark.parametrize(
    ("name", "route"), [(n, r) for n, kind in zoo.MODELS.items() for r in ROUTES if kind.vectorizes or r == ROUTES[1]]
)
def test_losses_and_gradients_equal_those_of_the_module(name: str, route: str) -> None:
    module, data, kind = zoo.model(name)
    module.train()
    state = copy.deepcopy(module.state_dict())
    found, draw = first_step(module, kind.loss, data.tensors, route)
    for key, value in module.state_dict().items():
        assert torch.equal(value, state[key]), f"{key} changed"
    twin = copy.deepcopy(module)
    expected = oracles.module_gradient(twin, kind.loss, data.tensors)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-9, atol=1e-11, msg=lambda m, key=key: f"{key}: {m}")
    with torch.no_grad():
        twin.eval()
        before = kind.loss(twin, data.tensors).mean()
        for key, parameter in twin.named_parameters():
            if key in expected:
                parameter -= expected[key]
        after = kind.loss(twin, data.tensors).mean()
    torch.testing.assert_close(draw.anchor_loss, before.expand(2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(draw.loss, after.expand(2), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [name for name, kind in zoo.MODELS.items() if kind.vectorizes])
@pytest.mark.parametrize("more", [{}, {"batch_size": 10**6}, {"share_batches": True}], ids=["mini", "full", "shared"])
def test_both_routes_estimate_the_same(name: str, more: dict[str, Any]) -> None:
    module, data, kind = zoo.model(name)
    routes_agree(module, data, kind.loss, **more)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_cells_go_one_by_one_with_one_warning(kind: type[nn.RNNBase]) -> None:
    module, data, model = zoo.model(kind.__name__.lower())
    with pytest.warns(UserWarning, match=r"cannot be vectorized over chains.*Batching rule not implemented") as caught:
        auto = read(module, data, model.loss)
    assert len(caught) == 1
    assert torch.equal(auto.traces["loss"], read(module, data, model.loss, chain_method="sequential").traces["loss"])


def branching(module: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    out = module(x)
    return F.cross_entropy(out if out.mean() > -1e9 else -out, y, reduction="none")


def reading_an_item(module: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    out = module(x)
    return F.cross_entropy(out / max(out.detach().abs().max().item(), 1.0), y, reduction="none")


@pytest.mark.parametrize(
    ("loss_fn", "cause"), [(branching, "data-dependent control flow"), (reading_an_item, r"\.item\(\)")]
)
def test_what_vmap_refuses(loss_fn: Callable[..., Tensor], cause: str) -> None:
    module, data, _ = zoo.model("low_rank")
    with pytest.warns(UserWarning, match=f"one after another.*{cause}.*chain_method='sequential'") as caught:
        auto = read(module, data, loss_fn)
    assert len(caught) == 1
    with pytest.raises(slt.PreflightError, match=f"cannot be vectorized over chains: .*{cause}"):
        read(module, data, loss_fn, chain_method="vectorized")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        silent = read(module, data, loss_fn, chain_method="sequential")
    assert torch.equal(auto.traces["loss"], silent.traces["loss"])


def test_the_sequential_route_never_tries() -> None:
    module, data, _ = zoo.model("low_rank")

    def only_plain(module: nn.Module, batch: Any) -> Tensor:
        if torch._C._functorch.is_batchedtensor(batch[0]):
            raise AssertionError("vmap was tried")
        return slt.losses.classification(module, batch)

    read(module, data, only_plain, chain_method="sequential")
    with pytest.raises(AssertionError, match="vmap was tried"):
        read(module, data, only_plain, chain_method="auto")


LAYOUTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "no_heads": ((6, 4), {}),
    "one_axis": ((3, 6, 4), {}),
    "heads": ((3, 2, 6, 4), {}),
    "five_axes": ((3, 2, 2, 6, 4), {}),
    "causal": ((3, 2, 6, 4), {"is_causal": True}),
    "causal_no_heads": ((6, 4), {"is_causal": True}),
    "scale": ((3, 2, 6, 4), {"scale": 0.3}),
}
MASKS: dict[str, tuple[int, ...]] = {
    "none": (),
    "LS": (6, 6),
    "1LS": (1, 6, 6),
    "HLS": (2, 6, 6),
    "B1LS": (3, 1, 6, 6),
    "11LS": (1, 1, 6, 6),
    "BHLS": (3, 2, 6, 6),
    "B11S": (3, 1, 1, 6),
}


class Attend(nn.Module):
    """Attention of projections of a data tensor, with a mask that is constant, of the data, or of the weights."""

    def __init__(self, shape: tuple[int, ...], options: dict[str, Any], mask: Tensor | None, origin: str) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.tilt = nn.Parameter(torch.ones(()))
        self.shape, self.options, self.mask, self.origin = shape, options, mask, origin

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self.shape)[0]
        mask = self.mask
        if mask is not None and self.origin != "constant":
            mask = mask * (self.tilt if self.origin == "weights" else 1 + x.flatten()[0].abs())
        return F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), mask, **self.options)


def attention_data(shape: tuple[int, ...], blocks: int = 8) -> TensorDataset:
    """``blocks`` minibatches of one sample each."""
    return TensorDataset(zoo._data(blocks, *shape))


def squares(module: nn.Module, batch: Any) -> Tensor:
    return module(batch[0]).square().mean()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_folded_attention_equals_the_plain_one(layout: str) -> None:
    shape, options = LAYOUTS[layout]
    torch.manual_seed(0)
    module = Attend(shape, options, None, "constant").double()
    for more in ({"batch_size": 1}, {"batch_size": 1, "share_batches": True}):
        routes_agree(module, attention_data(shape), squares, **more)


@pytest.mark.parametrize("origin", ["constant", "data", "weights"])
@pytest.mark.parametrize("mask", [name for name in MASKS if name != "none"])
def test_folded_attention_with_masks(mask: str, origin: str) -> None:
    torch.manual_seed(0)
    bias = zoo._data(1, *MASKS[mask], seed=3)[0]
    module = Attend((3, 2, 6, 4), {}, bias, origin).double()
    routes_agree(module, attention_data((3, 2, 6, 4)), squares, batch_size=1)
    flags = Attend((3, 2, 6, 4), {}, bias > -0.5, "constant").double()
    routes_agree(flags, attention_data((3, 2, 6, 4)), squares, batch_size=1)


@pytest.mark.parametrize(
    ("shape", "inner"), [((6, 6), (6, 4)), ((6, 6), (3, 6, 4)), ((3, 6, 6), (3, 6, 4)), ((1, 6, 6), (3, 6, 4))]
)
def test_folded_attention_with_masks_of_fewer_axes(shape: tuple[int, ...], inner: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = Attend(inner, {}, zoo._data(1, *shape, seed=3)[0], "data").double()
    routes_agree(module, attention_data(inner), squares, batch_size=1)


class Grouped(nn.Module):
    """Grouped-query attention whose keys do not depend on the data, and cross attention of one shared memory."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.memory = nn.Linear(4, 16), nn.Parameter(torch.randn(1, 2, 5, 4))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).view(*x.shape[:2], 4, 4).transpose(1, 2)
        memory = self.memory.expand(len(x), -1, -1, -1)
        return F.scaled_dot_product_attention(q, memory, memory, enable_gqa=True)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_grouped_query_and_cross_attention() -> None:
    torch.manual_seed(0)
    routes_agree(Grouped().double(), TensorDataset(zoo._data(20, 6, 4)), squares)


def as_dict(samples: list[Any]) -> Any:
    x, y = default_collate(samples)
    return {"inputs": {"x": x}, "y": [y], "n": len(y)}


def as_pair(samples: list[Any]) -> Any:
    return Pair(*default_collate(samples))


@pytest.mark.parametrize(
    ("collate", "loss_fn"),
    [
        (as_dict, lambda m, b: F.cross_entropy(m(b["inputs"]["x"]), b["y"][0], reduction="none") + 0 * b["n"]),
        (as_pair, lambda m, b: F.cross_entropy(m(b.x), b.y, reduction="none") + (0 if type(b) is Pair else torch.nan)),
    ],
    ids=["dict", "namedtuple"],
)
def test_batches_arrive_as_collated(collate: Callable[..., Any], loss_fn: Callable[..., Tensor]) -> None:
    module, data, _ = zoo.model("low_rank")
    plain = routes_agree(module, data, slt.losses.classification)
    nested = routes_agree(module, DataLoader(data, batch_size=3, collate_fn=collate), loss_fn)
    torch.testing.assert_close(nested, plain, rtol=1e-10, atol=1e-12)


def test_frozen_weights_and_components_stay() -> None:
    module, data, _ = zoo.model("low_rank")
    assert "base.weight" not in first_step(module, slt.losses.classification, data.tensors, "vectorized")[0]
    pattern = slt.estimate(
        module,
        data,
        [slt.LLC()],
        loss_fn=slt.losses.classification,
        components="up",
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=20.0,
        localization=1.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=3, num_burnin=0, batch_size=8),
    )
    assert set(pattern) == {"up"}
    assert pattern["up"]["llc"].mean != 0
