"""The arithmetic of a reading's passes: what is asked for, in every pass, and of that nothing anywhere else."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import Classifier, assert_untouched, blobs, few_draws, loader_of, trainer_for
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt import sampling
from lightning_slt.data import load_data
from lightning_slt.functional import ModuleLoss, one_by_one
from lightning_slt.isolation import isolated
from lightning_slt.losses import classification
from lightning_slt.passes import SequentialPasses, VectorizedPasses
from lightning_slt.precision import _PLACES, kernels

pytestmark = pytest.mark.usefixtures("elsewhere", "switches")

FEW = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=16)
ROUTES = ["vectorized", "sequential"]
SEEN = {"float32": (False, "highest", False), "tf32": (False, "high", True), "bf16": (True, "medium", True)}
"""Whether there is autocast, and torch's switches: bf16 leaves them as the training of these tests has them."""


@pytest.fixture
def switches() -> Iterator[None]:
    """Torch's own as they were."""
    matmul, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    each = [place.fp32_precision for place in _PLACES]
    everything = getattr(torch.backends, "fp32_precision", None)
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution
    if everything is not None:
        torch.backends.fp32_precision = everything
    for place, value in zip(_PLACES, each, strict=True):
        place.fp32_precision = value


def state() -> list[Any]:
    """All that can be read of them; torch refuses to say some where others were set apart."""

    def read(get: Any) -> Any:
        try:
            return get()
        except RuntimeError:
            return "refused"

    legacy = [read(torch.get_float32_matmul_precision), read(lambda: torch.backends.cudnn.allow_tf32)]
    return [*legacy, *(place.fp32_precision for place in _PLACES)]


def here() -> tuple[bool, str, bool]:
    return torch.is_autocast_enabled("cpu"), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


class Watched(torch.autograd.Function):
    """The identity, which notes the arithmetic of forward and backward passes."""

    generate_vmap_rule = True
    seen: list[tuple[str, tuple[bool, str, bool]]] = []  # noqa: RUF012

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        Watched.seen.append(("forward", here()))
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        return None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        Watched.seen.append(("backward", here()))
        return gradient.clone()


def watched_loss(module: Any, batch: Any) -> Tensor:
    x, y = batch
    logits = Watched.apply(module(x))  # type: ignore[no-untyped-call]
    return F.cross_entropy(logits.float(), y, reduction="none")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def read(sampling: slt.SamplingConfig = FEW, module: nn.Module | None = None, **options: Any) -> slt.Estimate:
    options = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 20.0, "localization": 5.0, **options}
    options = {"loss_fn": classification, **options}
    found: slt.Estimate = slt.estimate(module or net(), blobs(), [slt.LLC()], sampling=sampling, **options)["llc"]
    return found


def config(**changes: Any) -> slt.SamplingConfig:
    return slt.SamplingConfig(**{"num_chains": 2, "num_draws": 4, "num_burnin": 2, "batch_size": 16, **changes})


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("precision", SEEN)
def test_every_pass_runs_in_it_and_nothing_else(precision: Any, route: Any) -> None:
    """Under the autocast and the switches of a training that has others."""
    Watched.seen = []
    outside: list[Any] = []
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    before = state()
    with torch.autocast("cpu", torch.bfloat16):
        found = read(
            config(precision=precision, chain_method=route),
            loss_fn=watched_loss,
            on_step=lambda count: outside.append(here()),
        )
        assert state() == before
    assert torch.isfinite(found.per_chain).all()
    assert {seen for kind, seen in Watched.seen if kind == "forward"} == {SEEN[precision]}
    # a backward pass follows the types of the forward one, and is not itself under autocast but for that of training
    assert {seen[1:] for kind, seen in Watched.seen if kind == "backward"} == {SEEN[precision][1:]}
    assert set(outside) == {(True, "medium", True)}


def test_none_leaves_everything_to_training() -> None:
    torch.set_float32_matmul_precision("medium")
    Watched.seen = []
    with torch.autocast("cpu", torch.bfloat16):
        read(loss_fn=watched_loss)
    assert {seen for _, seen in Watched.seen} == {(True, "medium", True)}


def test_recorded_passes_run_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts are among the recorded operations; switches are set around what is replayed."""
    monkeypatch.setattr(sampling, "RECORDED_FROM", 10**9)
    plain = {p: read(config(precision=p, num_draws=20)).per_chain for p in SEEN}
    monkeypatch.setattr(sampling, "RECORDED_FROM", 0)
    for precision, expected in plain.items():
        assert torch.equal(read(config(precision=precision, num_draws=20)).per_chain, expected)  # type: ignore[arg-type]
    assert not torch.equal(plain["bf16"], plain["float32"])


@pytest.mark.parametrize("route", ROUTES)
def test_positions_noise_and_losses_stay_in_float32(route: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the noise to the bit: without the loss chains move alike in every precision."""
    noise: list[Tensor] = []
    drawn = sampling.ChainNoise.normals

    def normals(self: sampling.ChainNoise) -> Tensor:
        noise.append(drawn(self).clone())
        return noise[-1]

    monkeypatch.setattr(sampling.ChainNoise, "normals", normals)
    module = net()
    walks = {}
    for precision in (None, "bf16"):
        noise.clear()
        with isolated(module, seed=0):
            loss = ModuleLoss(module, classification, precision=precision)  # type: ignore[arg-type]
            posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=0.0, localization=5.0)
            chosen = config(precision=precision, chain_method=route)
            draws = list(slt.sample(posterior, slt.SGLD(step_size=1e-3), blobs(), chosen))
        walks[precision] = torch.stack(noise), draws[-1].position.clone(), draws[-1].loss
    for plain, bf16 in zip(walks[None][:2], walks["bf16"][:2], strict=True):
        assert plain.dtype == bf16.dtype == torch.float32
        assert torch.equal(plain, bf16)
    assert walks["bf16"][2].dtype == torch.float32
    assert not torch.equal(walks[None][2], walks["bf16"][2])


def short(x: Tensor, y: Tensor) -> Tensor:
    return -x.log_softmax(-1)[torch.arange(len(y)), y]


LOSSES = {
    "cross_entropy": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    "log_softmax": short,
    "softmax": lambda x, y: -torch.softmax(x, -1).log()[torch.arange(len(y)), y],
    "bce": lambda x, y: F.binary_cross_entropy_with_logits(x[:, 0], (y == 0).float(), reduction="none"),
    "mse": lambda x, y: F.mse_loss(x[:, 0], y.float(), reduction="none"),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("training", [True, False])
def test_losses_of_coarse_logits_are_exact(name: str, training: bool) -> None:
    """Chain by chain, many chains, sample by sample: a layer in bfloat16, and the loss of its logits in float32.

    ``vmap`` takes functions apart before autocast sees them, so that it would lose the second. The logits are multiples
    of a quarter, which bfloat16 holds without rounding.
    """
    g = torch.Generator().manual_seed(0)
    module = nn.Linear(4, 3)
    for weights in module.parameters():
        weights.data = torch.randint(-4, 5, weights.shape, generator=g) / 4
    x, y = torch.randint(-2, 3, (64, 4), generator=g).float(), torch.randint(0, 3, (64,), generator=g)
    expected = LOSSES[name](module(x).detach(), y)
    dtypes: set[torch.dtype] = set()

    def own_loss(module: Any, batch: Any) -> Tensor:
        logits = module(batch[0])
        dtypes.add(logits.dtype)
        return LOSSES[name](logits, batch[1])

    with isolated(module, seed=0), torch.autocast("cpu", torch.bfloat16, enabled=training):
        loss = ModuleLoss(module, own_loss, precision=None if training else "bf16")
        mean = loss.with_loss(lambda module, batch: own_loss(module, batch).mean())
        posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=1.0, localization=1.0)
        batch = load_data(TensorDataset(x, y)).chain_batch(torch.arange(64))
        for passes in (VectorizedPasses, SequentialPasses):
            for row in passes(posterior, posterior.anchor_row.repeat(2, 1)).losses(batch):
                torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)
        alone = one_by_one(mean, loss.weights, (x, y))
    torch.testing.assert_close(alone.detach(), expected, rtol=1e-5, atol=1e-6)
    assert dtypes == {torch.bfloat16}


@pytest.mark.parametrize("route", ROUTES)
def test_losses_without_a_module(route: Any) -> None:
    """A function of the weights alone is evaluated in it too, and what it returns is made float32."""
    dtypes: set[torch.dtype] = set()

    def loss(weights: Any, batch: Any) -> Tensor:
        product = batch[0] @ weights["w"]
        dtypes.add(product.dtype)
        return product.square().mean()

    posterior = slt.LocalPosterior(loss=loss, anchor={"w": torch.ones(4, 2)}, nbeta=10.0, localization=1.0)
    for precision, expected in (("bf16", torch.bfloat16), ("tf32", torch.float32), (None, torch.float32)):
        dtypes.clear()
        draws = list(
            slt.sample(posterior, slt.SGLD(step_size=1e-4), blobs(), config(precision=precision, chain_method=route))
        )
        assert dtypes == {expected}
        assert {draw.loss.dtype for draw in draws} == {draw.position.dtype for draw in draws} == {torch.float32}


@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.parametrize("before", ["default", "high", "apart", "convolutions", "all"])
def test_switches_are_put_back_to_the_bit(before: str, precision: Any) -> None:
    """Also where a user set single kinds of operations, so that torch refuses to tell of the whole."""
    if before == "high":
        torch.set_float32_matmul_precision("high")
    if before in ("apart", "convolutions") and not _PLACES:
        pytest.skip("this version of torch has one switch only")
    if before == "apart":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    if before == "convolutions":
        torch.backends.cudnn.conv.fp32_precision = "ieee"
    if before == "all" and _PLACES:
        torch.backends.fp32_precision = "tf32"
        torch.set_float32_matmul_precision("high")
    told = state()
    assert ("refused" in told) == (before in ("apart", "convolutions"))
    inside: list[Any] = []

    @kernels(precision)
    def fails() -> None:
        inside.extend(state())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert state() == told
    wanted = "tf32" if precision == "tf32" else "ieee"
    if "refused" not in inside:
        assert inside[:2] == list(SEEN[precision][1:])
    assert set(inside[2:5]) <= {wanted}  # products of matrices, convolutions, recurrent networks, on CUDA


def test_a_failing_loss_puts_them_back() -> None:
    before = state()

    def fails(module: Any, batch: Any) -> Tensor:
        losses = watched_loss(module, batch)
        if len(Watched.seen) > 20:
            raise ZeroDivisionError
        return losses

    Watched.seen = []
    with pytest.raises(ZeroDivisionError):
        read(config(precision="tf32", num_draws=50, chain_method="sequential"), loss_fn=fails)
    assert state() == before


def trained() -> nn.Sequential:
    """A network at a minimum of its loss on 256 points."""
    module, data = net(), blobs(256)
    optimizer = torch.optim.Adam(module.parameters(), 2e-2)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(module(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    return module


def test_the_llc_in_bf16_is_that_of_float32() -> None:
    """The same noise and minibatches: what rounding adds is known to a hundredth of the LLC's own standard error."""
    module, data = trained(), blobs(256)

    def llc(precision: Any) -> slt.Estimate:
        counts = config(num_chains=8, num_draws=100, num_burnin=100, batch_size=64, precision=precision)
        options: dict[str, Any] = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 46.0, "localization": 10.0}
        found: slt.Estimate = slt.estimate(
            module, data, [slt.LLC()], sampling=counts, loss_fn=classification, **options
        )["llc"]
        return found

    exact, coarse = llc("float32"), llc("bf16")
    difference = coarse.per_chain - exact.per_chain
    error = float(difference.std()) / 8**0.5
    assert error > 0
    assert abs(float(difference.mean())) + 4 * error < exact.stderr


def test_rounding_of_large_logits_is_no_reason_to_go_one_by_one() -> None:
    """Losses of a network that is sure of itself differ by some percent between the routes; a warning would raise."""
    module = trained()
    labels = copy.deepcopy(module)
    module[2].weight.data *= 8
    module[2].bias.data *= 8

    def own(net: Any, batch: Any) -> Tensor:
        return F.cross_entropy(net(batch[0]), labels(batch[0]).argmax(-1), reduction="none")

    found = read(config(precision="bf16"), module, loss_fn=own, sampler=slt.SGLD(step_size=1e-5), localization=5000.0)
    assert found.settings.sampling.chain_method == "vectorized"


@pytest.mark.parametrize("training", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("precision", SEEN)
def test_training_is_bit_identical(training: Any, precision: Any) -> None:
    monitor = few_draws(sampling=config(precision=precision))
    assert_untouched(Classifier, monitor=monitor, precision=training)


class Observed(Classifier):
    """Notes the types of its products, apart in training and in readings, where a reading does not put them back."""

    seen: dict[bool, set[torch.dtype]] = {True: set(), False: set()}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        for dtypes in Observed.seen.values():
            dtypes.clear()

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        Observed.seen[self.training].add(logits.dtype)
        return logits


@pytest.mark.parametrize(
    ("training", "precision", "expected"),
    [
        ("32-true", "bf16", torch.bfloat16),
        ("32-true", None, torch.float32),
        ("bf16-mixed", "float32", torch.float32),
        ("bf16-mixed", "tf32", torch.float32),
        ("bf16-mixed", None, torch.bfloat16),
        ("bf16-true", "bf16", torch.bfloat16),
        ("bf16-true", None, torch.float32),
    ],
)
def test_live_whatever_training_has(training: Any, precision: Any, expected: torch.dtype) -> None:
    monitor = few_draws(sampling=config(precision=precision), at_steps=[2])
    trainer_for(monitor, max_steps=3, precision=training).fit(Observed(), loader_of(blobs()))
    assert {reading.settings["precision"] for reading in slt.load_records(".")} == {precision}
    assert Observed.seen[False] == {expected}
    assert Observed.seen[True] == {torch.float32 if training == "32-true" else torch.bfloat16}


@pytest.mark.parametrize("trained_in", ["32-true", "bf16-mixed"])
def test_saved_checkpoints_are_read_in_it(trained_in: str) -> None:
    module = Observed()
    torch.save({"state_dict": module.state_dict()}, "step=1.ckpt")
    monitor = slt.LLCMonitor(sampling=config(precision="bf16"), sampler=slt.SGLD(step_size=1e-3), nbeta=9.0)
    readings = slt.analyze(module, ["step=1.ckpt"], [monitor], data=blobs(), precision=trained_in, progress=False)
    assert [reading.settings["precision"] for reading in readings] == ["bf16"]
    assert Observed.seen[False] == {torch.bfloat16}
    exact = slt.LLCMonitor(sampling=config(precision="float32"), sampler=slt.SGLD(step_size=1e-3), nbeta=9.0)
    Observed.seen[False].clear()
    slt.analyze(module, ["step=1.ckpt"], [exact], data=blobs(), precision=trained_in, progress=False, run_dir="exactly")
    assert Observed.seen[False] == {torch.float32}


def test_settings_say_it() -> None:
    assert "passes in bf16" in str(read(config(precision="bf16")).settings)
    assert "passes in" not in str(read().settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("float16", "small gradients vanish in float16"),
        ("16-mixed", "Write precision='bf16'"),
        (torch.float16, "small gradients vanish"),
        ("bfloat16", "write precision='bf16'"),
        (torch.bfloat16, "write precision='bf16'"),
        ("32-true", "write precision='float32'"),
        ("high", "must be 'float32', 'tf32', 'bf16', or None for that of training, got 'high'"),
        (True, "got True"),
    ],
)
def test_anything_else_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        slt.SamplingConfig(precision=given)


@pytest.mark.parametrize("precision", SEEN)
def test_double_networks_are_refused(precision: Any) -> None:
    with pytest.raises(ValueError, match=r"float64 weights.*write precision=None"):
        read(config(precision=precision), net().double())


def test_double_networks_are_refused_before_training() -> None:
    class Double(Classifier):
        def on_train_batch_start(self, *_: Any) -> None:
            raise AssertionError("training began")

    trainer: pl.Trainer = trainer_for(few_draws(sampling=config(precision="bf16")), max_steps=1, precision="64-true")
    with pytest.raises(ValueError, match="float64 weights"):
        trainer.fit(Double(), loader_of(blobs()))
