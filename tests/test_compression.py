"""Compression and its critical settings, against brute force and closed forms."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from models import blobs
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.compression import (
    Scheme,
    critical,
    factorization,
    noise,
    pruning,
    quantization,
    quantized,
    removal,
    rises,
)
from lightning_slt.data import load_data
from lightning_slt.estimators.compressibility import Compression
from lightning_slt.functional import ModuleLoss
from lightning_slt.types import LossFn
from tests.attentions import GPT2Attention, LlamaAttention, gpt2, llama

CLIPS = (1.0, 0.7, 0.4)


def scheme_of(losses: list[float], *, smooth: bool = True) -> Scheme:
    """A dial 1, 1/2^(1/4), … whose losses are given."""
    dials = tuple(2 ** (-k / 4) for k in range(len(losses)))
    return Scheme(dials=dials, candidates=lambda k: iter([{"loss": torch.tensor(losses[k])}]), smooth=smooth)


def read_loss(weights: dict[str, Tensor]) -> float:
    return float(weights["loss"])


def crossing(dials: tuple[float, ...], rising: list[float], tolerance: float) -> float:
    """By hand: the first failure from the fine side, and the interpolation before it."""
    for k, rise in enumerate(rising):
        if rise > tolerance:
            share = (tolerance - rising[k - 1]) / (rise - rising[k - 1])
            return dials[k - 1] * (dials[k] / dials[k - 1]) ** share
    raise AssertionError("nothing fails")


def small_network() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    x, y = blobs().tensors
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, {name: p.detach().double() for name, p in net.double().named_parameters() if p.ndim == 2}


def loss_of(net: nn.Module) -> float:
    x, y = blobs().tensors
    with torch.no_grad():
        return float(F.cross_entropy(net(x.double()), y))


def loss_with(net: nn.Module, weights: dict[str, Tensor]) -> float:
    x, y = blobs().tensors
    with torch.no_grad():
        return float(F.cross_entropy(torch.func.functional_call(net, weights, x.double()), y))


def test_quantization_rounds_to_the_nearest_of_the_levels() -> None:
    w = {"a": torch.randn(5, 7, dtype=torch.float64), "b": 10 * torch.randn(3, dtype=torch.float64)}
    largest = max(float(v.abs().max()) for v in w.values())
    for levels, clip, per_tensor in itertools.product((2, 3, 4, 9), (1.0, 0.5), (False, True)):
        for name, value in quantized(w, levels, clip=clip, per_tensor=per_tensor).items():
            m = clip * (float(w[name].abs().max()) if per_tensor else largest)
            grid = torch.linspace(-m, m, levels, dtype=torch.float64)
            nearest = grid[(w[name][..., None] - grid).abs().argmin(-1)]
            assert torch.allclose(value, nearest, atol=1e-12)
    assert torch.equal(quantized({"a": torch.zeros(2, 2)}, 5)["a"], torch.zeros(2, 2))
    assert torch.allclose(quantized({"a": torch.tensor([[-0.3]])}, 2)["a"], torch.tensor([[-0.3]]))


@pytest.mark.parametrize("tolerance", [0.02, 0.1])
def test_quantization_against_every_level_and_every_clip(tolerance: float) -> None:
    net, weights = small_network()
    anchor = loss_of(net)
    scheme = quantization(weights, clips=CLIPS)
    assert set(range(2, 33)) <= set(scheme.dials)
    everything = [
        min(loss_with(net, quantized(weights, round(n), clip=c)) for c in CLIPS) - anchor for n in scheme.dials
    ]
    expected = crossing(scheme.dials, everything, tolerance)
    for exhaustive in (False, True):
        seen = rises(
            scheme, lambda w: loss_with(net, w), anchor_loss=anchor, tolerances=[tolerance], exhaustive=exhaustive
        )
        assert critical(scheme, seen, tolerance).dial == pytest.approx(expected, rel=1e-10)
        assert (len(seen) == len(scheme.dials)) == exhaustive


@pytest.mark.parametrize("make", [factorization, pruning, lambda w: noise(w, count=3, seed=0)])
def test_other_schemes_against_every_setting(make) -> None:
    net, weights = small_network()
    anchor, scheme = loss_of(net), make(weights)

    def loss(some: dict[str, Tensor]) -> float:
        return loss_with(net, some)

    everything = [scheme.settle([loss(w) for w in scheme.candidates(k)]) - anchor for k in range(len(scheme.dials))]
    for tolerance in (0.02, 0.1):
        seen = rises(scheme, loss, anchor_loss=anchor, tolerances=[tolerance])
        expected = crossing(scheme.dials, everything, tolerance)
        assert critical(scheme, seen, tolerance).dial == pytest.approx(expected, rel=1e-10)
        assert len(seen) < len(scheme.dials)


def test_the_contiguous_range_counts() -> None:
    """A loss that recovers: what is borne again further on is no compression to rely on."""
    losses = [0.0, 0.01, 0.02, 0.2, 0.01, 0.01, 0.01, 0.01, 0.01, 0.9]
    scheme = scheme_of(losses, smooth=False)
    whole = rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.1], exhaustive=True)
    assert critical(scheme, whole, 0.1).dial == pytest.approx(crossing(scheme.dials, losses, 0.1))
    assert list(whole) == list(range(10))


def test_a_bump_between_bisections_is_swept() -> None:
    """Bisection is left where the losses that were seen do not rise steadily."""
    losses = [0.0, 0.01, 0.02, 0.03, 0.05, 0.2, 0.02, 0.09, 0.3, 0.4]
    scheme = scheme_of(losses)
    seen = rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.1])
    assert {4, 5, 6, 8} <= seen.keys()  # the middle, 6, is lower than the start, 4
    assert critical(scheme, seen, 0.1).dial == pytest.approx(crossing(scheme.dials, losses, 0.1))


def test_what_is_not_reached_is_nothing_and_says_why() -> None:
    scheme = scheme_of([0.0, 0.01, 0.02, 0.03, 0.05])
    seen = rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.5])
    nothing = critical(scheme, seen, 0.5)
    assert math.isnan(nothing.dial)
    assert "even 0.5 stays" in nothing.reason
    seen = rises(scheme, read_loss, anchor_loss=-1.0, tolerances=[0.5])
    nothing = critical(scheme, seen, 0.5)
    assert math.isnan(nothing.dial)
    assert "1 already costs 1" in nothing.reason
    exact = critical(scheme, rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.0]), 0.0)
    assert exact.dial == 1.0


def test_a_loss_that_is_no_number_is_not_borne() -> None:
    scheme = scheme_of([0.0, 0.01, 0.02, math.nan, 0.0])
    seen = rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.1], exhaustive=True)
    assert critical(scheme, seen, 0.1).dial == scheme.dials[2]


def test_critical_noise_of_a_quadratic() -> None:
    r"""``E = ½ σ² rms² Σ h`` in expectation; with the noises in use exactly ``½ σ² rms² · mean Σ h ξ²``."""
    g = torch.Generator().manual_seed(0)
    w = torch.randn(40, 50, generator=g, dtype=torch.float64)
    h = torch.rand(40, 50, generator=g, dtype=torch.float64)
    count, tolerance = 64, 0.3
    scheme = noise({"w": w}, count=count, seed=1)

    def loss(weights: dict[str, Tensor]) -> float:
        return float((h * (weights["w"] - w).square()).sum() / 2)

    seen = rises(scheme, loss, anchor_loss=0.0, tolerances=[tolerance])
    sigma = critical(scheme, seen, tolerance).dial
    rms2 = w.square().mean()
    expected = float((2 * tolerance / (rms2 * h.sum())).sqrt())
    spread = float((2 * h.square().sum() / count).sqrt() / h.sum()) / 2  # of σ, as Var ξ² = 2
    between = 2 ** (1 / 16) - 1  # interpolation bends by less than a setting's square
    assert abs(sigma / expected - 1) < 4 * spread + between**2
    assert spread < 0.01


def test_the_rank_of_a_product_is_found() -> None:
    g = torch.Generator().manual_seed(0)
    w = torch.randn(12, 3, generator=g, dtype=torch.float64) @ torch.randn(3, 10, generator=g, dtype=torch.float64)
    scheme = factorization({"w": w})

    def loss(weights: dict[str, Tensor]) -> float:
        return float((weights["w"] - w).square().sum())

    seen = rises(scheme, loss, anchor_loss=0.0, tolerances=[1e-9], exhaustive=True)
    assert [round(10 * scheme.dials[k]) for k, rise in seen.items() if rise <= 1e-9] == [10, 9, 8, 7, 6, 5, 4, 3]
    # Eckart and Young: what is lost is the sum of the squares of what is left out
    values = torch.linalg.svdvals(w)
    for k, rise in seen.items():
        rank = round(10 * scheme.dials[k])
        assert rise == pytest.approx(float(values[rank:].square().sum()), abs=1e-9)


def test_pruning_leaves_out_the_smallest_of_all_tensors() -> None:
    w = {"a": torch.tensor([[4.0, -0.5]]), "b": torch.tensor([1.0, -3.0, 0.1, 2.0])}
    scheme = pruning(w)
    kept = {round(6 * dial): next(scheme.candidates(k)) for k, dial in enumerate(scheme.dials)}
    assert torch.equal(kept[3]["a"], torch.tensor([[4.0, 0.0]]))
    assert torch.equal(kept[3]["b"], torch.tensor([0.0, -3.0, 0.0, 2.0]))
    assert torch.equal(kept[1]["b"], torch.zeros(4))
    zeros = pruning({"a": torch.zeros(2, 2)})
    assert all(torch.equal(next(zeros.candidates(k))["a"], torch.zeros(2, 2)) for k in range(len(zeros.dials)))


def test_parts_go_in_the_order_of_their_worth() -> None:
    worth = [0.5, 0.1, 0.3, 0.2]

    def without(removed) -> dict[str, Tensor]:
        return {"loss": torch.tensor(sum(worth[k] for k in removed), dtype=torch.float64)}

    scheme = removal(4, without, read_loss)
    seen = rises(scheme, read_loss, anchor_loss=0.0, tolerances=[0.35], exhaustive=True)
    assert [round(rise, 10) for rise in seen.values()] == [0.0, 0.1, 0.3, 0.6, 1.1]
    assert critical(scheme, seen, 0.35).dial == 0.5


# ---------------------------------------------------------------- the estimator


def measured(net: nn.Module, **options) -> Compression:
    found = slt.estimate(net, blobs(), [slt.Compressibility(**options)], loss_fn=slt.losses.classification)
    assert isinstance(found["compressibility"], Compression)
    return found["compressibility"]


def view_of(net: nn.Module, loss: LossFn = slt.losses.classification) -> slt.View:
    held = ModuleLoss(net, loss)
    return slt.View(module_loss=held, loss=held, data=load_data(blobs()))


def changed_by(net: nn.Module, **options) -> tuple[set[str], Compression]:
    """Names of the parameters, or parts of them by hand, that any compression changed."""
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    changed: dict[str, Tensor] = {}

    def spy(module: nn.Module, batch) -> Tensor:
        for n, p in module.named_parameters():
            changed[n] = changed.get(n, torch.zeros_like(p, dtype=torch.bool)) | (p.detach() != before[n])
        return slt.losses.classification(module, batch)

    found = slt.Compressibility(**options).measure(view_of(net, spy))
    return {n for n, where in changed.items() if where.any()}, replace(found, curves={**found.curves, **changed})


def test_matrices_only_unless_asked() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3))
    assert changed_by(net)[0] == {"0.weight", "3.weight"}
    assert changed_by(net, components="0.*")[0] == {"0.weight", "0.bias"}
    assert changed_by(net, components="*")[0] == set(dict(net.named_parameters()))
    frozen = copy.deepcopy(net)
    frozen[3].weight.requires_grad_(False)
    assert changed_by(frozen)[0] == {"0.weight"}


def test_a_mask_leaves_the_rest_alone() -> None:
    torch.manual_seed(0)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[1, :2] = True
    part = slt.Component(("0.weight",), {"0.weight": mask})
    names, found = changed_by(nn.Sequential(nn.Linear(4, 3)), components=part)
    assert names == {"0.weight"}
    assert torch.equal(found.curves["0.weight"], mask)
    assert any(reason.startswith("factorization: factorization needs whole weights") for reason in found.reasons)
    assert math.isfinite(found.critical["sigma_0.1"])


def test_the_subset_is_fixed_and_the_loss_is_its() -> None:
    net, _ = small_network()
    a, b = measured(net.float(), num_samples=8), measured(net, num_samples=8)
    assert a.scalars() == b.scalars()
    assert a.loss != measured(net, num_samples=None).loss
    x, y = blobs().tensors
    assert measured(net, num_samples=None).loss == pytest.approx(float(F.cross_entropy(net(x), y).detach()), rel=1e-6)


def test_hostile_networks() -> None:
    zero = nn.Sequential(nn.Linear(4, 3))
    nn.init.zeros_(zero[0].weight)
    found = measured(zero)
    assert all(math.isnan(v) for v in found.critical.values())
    assert found.health.ok
    assert found.health.warnings == ("unreached",)
    assert len(found.reasons) == 12
    one = nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (-1, 1)), nn.Linear(1, 1))
    tiny = slt.estimate(
        one, [(torch.randn(1), torch.randn(1)) for _ in range(9)],
        [slt.Compressibility(tolerances=(0.0, 0.1))], loss_fn=slt.losses.regression,
    )["compressibility"]  # fmt: skip
    assert set(tiny.scalars()) == set(slt.Compressibility(tolerances=(0.0, 0.1)).fields)
    half = small_network()[0].to(torch.bfloat16)
    found = measured(half)
    assert math.isfinite(found.critical["bits_0.1"])
    assert all(p.dtype == torch.bfloat16 for p in half.parameters())
    bad = small_network()[0].float()
    with torch.no_grad():
        bad[0].weight[0, 0] = torch.nan
    broken = slt.Compressibility().measure(view_of(bad))
    assert not broken.health.ok
    assert broken.health.failed == ("finite",)
    assert all(math.isnan(v) for v in broken.critical.values())


def test_without_a_matrix_it_says_what_to_write() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale)[:, :3]

    with pytest.raises(ValueError, match=r"write Compressibility\(components='\*'\)"):
        measured(Scale())
    found = measured(Scale(), components="*")
    assert math.isfinite(found.critical["sigma_0.1"])


@pytest.mark.parametrize(("make", "slices"), [(LlamaAttention, llama), (GPT2Attention, gpt2)])
def test_heads_go_with_all_that_is_theirs_alone(make, slices) -> None:
    """Against zeroing a head's slice of the output projection by hand; shared keys stay while a head needs them."""
    torch.manual_seed(0)
    net = SequenceClassifier(make())
    width = 10 if make is LlamaAttention else 12
    x, y = 2 * torch.randn(16, 5, width), torch.randint(0, 3, (16,))
    found = slt.estimate(
        net, torch.utils.data.TensorDataset(x, y), [slt.Compressibility(schemes=("heads",), exhaustive=True)],
        loss_fn=slt.losses.classification,
    )["compressibility"]  # fmt: skip
    before = copy.deepcopy(net.state_dict())
    losses = {}
    for removed in (r for count in range(5) for r in itertools.combinations(range(4), count)):
        net.load_state_dict(before)
        with torch.no_grad():
            for head in removed:
                slices(net.attention, head)[-1].zero_()
            losses[removed] = float(F.cross_entropy(net(x), y).detach())
    order = sorted(range(4), key=lambda head: losses[(head,)])
    expected = [losses[tuple(sorted(order[:k]))] - losses[()] for k in range(5)]
    curve = found.curves["heads"]
    assert curve[:, 0].tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert curve[:, 1].tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert max(map(abs, expected)) > 1e-3


class SequenceClassifier(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.out = attention, nn.LazyLinear(3)
        width = 10 if isinstance(attention, LlamaAttention) else 12
        self.out(torch.zeros(1, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x).mean(1))


def test_heads_of_a_network_without_any() -> None:
    found = measured(small_network()[0].float(), schemes=("heads",))
    assert math.isnan(found.critical["heads_0.02"])
    assert "found no attention" in found.reasons[0]


def test_int8_is_torchs_own() -> None:
    net = small_network()[0].float()
    found = measured(net, schemes=("quantization",), int8=True, num_samples=None)
    x, y = blobs().tensors
    with pytest.warns(DeprecationWarning, match=r"torch\.ao\.quantization"):
        theirs = torch.ao.quantization.quantize_dynamic(net.eval(), {nn.Linear}, dtype=torch.qint8)
    expected = float(F.cross_entropy(theirs(x), y).detach()) - float(F.cross_entropy(net(x), y).detach())
    assert found.int8 == pytest.approx(expected, abs=1e-6)
    assert abs(expected) < 0.02
    assert found.scalars()["int8"] == found.int8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schemes": ("zip",)}, "'zip' is no scheme; there are quantization"),
        ({"schemes": "noise"}, "schemes must be a tuple"),
        ({"tolerances": ()}, "tolerances must be a tuple of at least one"),
        ({"tolerances": (-0.1,)}, "tolerances are nats, zero or more, got -0.1"),
        ({"tolerances": (0.1, 0.1)}, "holds one twice"),
        ({"clips": (1.5,)}, "above 0 and up to 1"),
        ({"num_samples": 0}, "num_samples must be a whole number"),
        ({"num_noise": 1.5}, "num_noise must be a whole number"),
    ],
)
def test_what_cannot_be(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        slt.Compressibility(**options)
