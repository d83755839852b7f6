"""What must not change an LLC, and the traps that others fell into: each a test that can fail."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt

CURVATURES = (0.2, 1.0, 4.0) * 4
NBETA, GAMMA, EPS = 50.0, 2.0, 2e-3  # ε P = 0.024 to 0.404
LIMIT = 4.0  # standard errors


def quadratic_llc(
    *,
    noise: float = 0.0,
    loss_scale: float = 1.0,
    sampler: slt.Sampler | None = None,
    nbeta: float = NBETA,
    **more: Any,
) -> slt.Estimate:
    """LLC of a quadratic whose minibatches of one shift the gradient by ``noise · N(0, I)``."""
    counts = {"num_chains": 64, "num_draws": 400, "num_burnin": 600, "batch_size": 4, "seed": 0} | more
    z = torch.randn(4096, len(CURVATURES), generator=torch.Generator().manual_seed(1))
    data = TensorDataset(noise * (z - z.mean(0)) / z.std(0))
    results = slt.estimate(
        oracles.Quadratic(CURVATURES),
        data,
        [slt.LLC(traces=True)],
        loss_fn=lambda module, batch: loss_scale * oracles.quadratic_loss(module, batch),
        sampler=sampler or slt.SGLD(step_size=EPS),
        nbeta=nbeta,
        localization=GAMMA,
        sampling=slt.SamplingConfig(**counts),
    )
    return results["llc"]


def exact_llc(noise: float = 0.0, batch_size: int = 4) -> float:
    spread = NBETA * noise / math.sqrt(batch_size) * math.sqrt(1 - batch_size / 4096)
    return slt.theory.sgld_quadratic_llc(
        CURVATURES, nbeta=NBETA, localization=GAMMA, step_size=EPS, gradient_noise=spread
    )


def agree(a: slt.Estimate, b: slt.Estimate | float) -> bool:
    """Within ``LIMIT`` standard errors, which are themselves within three percent."""
    other, error = (b.mean, b.stderr) if isinstance(b, slt.Estimate) else (b, 0.0)
    assert math.hypot(a.stderr, error) < 0.03 * abs(a.mean)
    return abs(a.mean - other) < LIMIT * math.hypot(a.stderr, error)


@pytest.mark.parametrize("num_burnin", [300, 1500])
def test_burnin_beyond_equilibrium_changes_nothing(num_burnin: int) -> None:
    assert agree(quadratic_llc(num_burnin=num_burnin), exact_llc())


def test_no_burnin_at_all_is_seen() -> None:
    """The same with too few steps: the tests above could fail."""
    assert not agree(quadratic_llc(num_burnin=0, num_draws=30, num_chains=128), exact_llc())


def test_thinning_changes_nothing() -> None:
    assert agree(quadratic_llc(thinning=5, num_draws=100), exact_llc())


@pytest.mark.parametrize("batch_size", [2, 8])
def test_batch_size_changes_the_llc_by_its_noise_alone(batch_size: int) -> None:
    noise = 1.2
    found = quadratic_llc(noise=noise, batch_size=batch_size, num_chains=64)
    assert agree(found, exact_llc(noise, batch_size))
    assert exact_llc(noise, 2) > 1.3 * exact_llc(noise, 8) > 1.3 * exact_llc()  # so that the noise matters


def test_default_nbeta_knows_nothing_of_the_batch_size() -> None:
    counts = {"num_chains": 2, "num_draws": 20, "num_burnin": 0}
    given = quadratic_llc(nbeta=30.0, **counts)
    for batch_size in (4, 64, 10_000):
        found = quadratic_llc(nbeta=None, batch_size=batch_size, **counts)
        torch.testing.assert_close(found.traces["loss"], given.traces["loss"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("scale", [2.0**-7, 2.0, 2.0**9])
def test_scaling_the_loss_and_nbeta_gives_the_same_bits(scale: float) -> None:
    counts = {"num_chains": 3, "num_draws": 20, "num_burnin": 5}
    plain = quadratic_llc(noise=0.5, **counts)
    scaled = quadratic_llc(noise=0.5, loss_scale=scale, nbeta=NBETA / scale, **counts)
    assert torch.equal(plain.traces["loss"] * scale, scaled.traces["loss"])
    assert torch.equal(plain.per_chain, scaled.per_chain)


class Cliff(nn.Module):
    """A quadratic that is not a number beyond a radius."""

    def __init__(self, radius: float) -> None:
        super().__init__()
        self.w, self.radius = nn.Parameter(torch.zeros(2)), radius


def cliff_loss(module: Cliff, batch: Any) -> Tensor:
    square = module.w.square().sum()
    return 0.5 * square + torch.where(square > module.radius**2, torch.nan, 0.0) + 0 * batch[0].sum(1)


def cliff(radius: float, **more: Any) -> slt.Estimate:
    counts = {"num_chains": 6, "num_draws": 60, "num_burnin": 20, "batch_size": 4, "seed": 0} | more
    return slt.estimate(
        Cliff(radius),
        TensorDataset(torch.zeros(4, 1)),
        [slt.LLC(traces=True)],
        loss_fn=cliff_loss,
        sampler=slt.SGLD(step_size=0.02),
        nbeta=10.0,
        localization=1.0,
        sampling=slt.SamplingConfig(**counts),
    )["llc"]


@pytest.mark.parametrize("chain_method", ["vectorized", "sequential"])
def test_a_dead_chain_is_left_out_and_named_with_its_step(chain_method: str) -> None:
    safe = cliff(1e9, chain_method=chain_method)
    with pytest.warns(UserWarning, match=r"full/llc: the loss was not finite in chain \d at step \d+") as caught:
        hurt = cliff(0.95, chain_method=chain_method)
    assert len(caught) == 1
    dead = hurt.health.dead_chains
    assert 0 < len(dead) < 6
    assert not hurt.health.ok
    assert "finite" in hurt.health.failed
    alive = [c for c in range(6) if c not in dead]
    assert torch.equal(hurt.traces["loss"][alive], safe.traces["loss"][alive])
    assert hurt.mean == pytest.approx(float(safe.per_chain[alive].mean()), rel=1e-12)
    assert hurt.stderr == pytest.approx(float(safe.per_chain[alive].std() / math.sqrt(len(alive))), rel=1e-12)
    for chain, step in dead.items():
        trace = hurt.traces["loss"][chain]
        assert math.isnan(hurt.per_chain[chain])
        first = step - 20 - 1
        assert bool(trace[:first].isfinite().all())
        assert not math.isfinite(trace[first])


def test_all_chains_dead_is_no_number() -> None:
    with pytest.warns(UserWarning, match="not finite"):
        none = cliff(0.05)
    assert math.isnan(none.mean)
    assert math.isnan(none.stderr)
    assert bool(none.per_chain.isnan().all())
    assert all(math.isnan(end) for end in none.interval())
    assert not none.health.ok
    assert len(none.health.dead_chains) == 6


def test_a_failed_chain_raises_where_asked() -> None:
    with pytest.raises(slt.FailedReadingError, match=r"chain \d at step"):
        slt.estimate(
            Cliff(0.05),
            TensorDataset(torch.zeros(4, 1)),
            [slt.LLC()],
            loss_fn=cliff_loss,
            sampler=slt.SGLD(step_size=0.02),
            nbeta=10.0,
            localization=1.0,
            sampling=slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=20),
            on_failure="raise",
        )


def standing_still(module: nn.Module, data: Any, loss_fn: Callable[..., Tensor] | None, **more: Any) -> slt.Estimate:
    config = slt.SamplingConfig(**{"num_chains": 3, "num_draws": 12, "num_burnin": 2, "batch_size": 8} | more)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the loss cannot be vectorized")
        return slt.estimate(
            module,
            data,
            [slt.LLC(traces=True)],
            loss_fn=loss_fn,
            sampler=slt.SGLD(step_size=0.0),
            nbeta=1000.0,
            localization=1.0,
            sampling=config,
        )["llc"]


@pytest.mark.parametrize("name", zoo.MODELS)
def test_at_step_size_zero_the_trace_is_constant_and_the_llc_zero(name: str) -> None:
    """Dropout, batch statistics or an unpaired baseline would show here; the models are in train mode."""
    module, data, kind = zoo.model(name)
    module.train()
    found = standing_still(module, data, kind.loss)
    assert float(found.traces["loss"].abs().max()) < 1e-12
    assert abs(found.mean) < 1e-9
    assert found.health.dead_chains == {}
    assert module.training


def noisy(module: nn.Module, batch: Any) -> Tensor:
    """A stochastic loss per sample, as a variational autoencoder has."""
    x, y = batch
    return nn.functional.cross_entropy(module(x + torch.randn_like(x)), y, reduction="none")


def contrastive(module: nn.Module, batch: Any) -> Tensor:
    """A loss per sample that depends on the rest of the batch."""
    out = nn.functional.normalize(module(batch[0]), dim=1)
    return nn.functional.cross_entropy(out @ out.T, torch.arange(len(out)), reduction="none")


def careless(module: nn.Module, batch: Any) -> Tensor:
    """Writes into its batch."""
    x, y = batch
    x.mul_(0.5)
    return nn.functional.cross_entropy(module(x), y, reduction="none")


@pytest.mark.parametrize("loss_fn", [noisy, contrastive, careless])
@pytest.mark.parametrize("more", [{}, {"batch_size": 40}, {"share_batches": True}, {"chain_method": "sequential"}])
def test_the_baseline_stays_paired(loss_fn: Callable[..., Tensor], more: dict[str, Any]) -> None:
    module, data, _ = zoo.model("mlp")
    assert float(standing_still(module, data, loss_fn, **more).traces["loss"].abs().max()) < 1e-12


def test_two_models_share_nothing() -> None:
    def read(module: nn.Module, data: Any) -> slt.Estimate:
        return slt.estimate(
            module,
            data,
            [slt.LLC(traces=True)],
            loss_fn=slt.losses.classification,
            sampler=slt.SGLD(step_size=1e-3),
            nbeta=10.0,
            localization=1.0,
            sampling=slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=0, batch_size=8),
        )["llc"]

    first, data, _ = zoo.model("mlp")
    second = zoo.MODELS["mlp"].module().double()
    alone = read(second, data)
    before = read(first, data)
    again = read(second, data)
    assert torch.equal(alone.traces["loss"], again.traces["loss"])
    assert not torch.equal(alone.traces["loss"], before.traces["loss"])
    with torch.no_grad():  # the same object with other weights is another network
        first.load_state_dict(second.state_dict())
    assert torch.equal(read(first, data).traces["loss"], alone.traces["loss"])
    turned = TensorDataset(data.tensors[0], data.tensors[1].flip(0))
    assert not torch.equal(read(second, turned).traces["loss"], alone.traces["loss"])


def test_a_loss_that_does_not_vary_gives_zero_and_not_nan() -> None:
    run = slt.estimators.Run(num_chains=4, num_draws=10, nbeta=10.0, localization=1.0, dimension=3)
    accumulator = slt.LLC().start(run)
    for index in range(10):
        level = torch.full((4,), 0.7)
        accumulator.update(
            slt.Draw(
                chains=(0, 1, 2, 3),
                index=index,
                step=index + 1,
                loss=level,
                anchor_loss=level,
                position=torch.zeros(4, 3),
            )
        )
    found = accumulator.compute()
    assert (found.mean, found.stderr, found.interval()) == (0.0, 0.0, (0.0, 0.0))


def test_tied_weights_move_together() -> None:
    """The weights of the unembedding are those of the embedding at every step: their gradient holds both parts."""
    module, data, kind = zoo.model("tied")
    names = [name for name, _ in module.named_parameters()]
    assert "unembed.weight" not in names

    def untied(module: nn.Module, batch: Any) -> Tensor:
        return kind.loss(module, batch) + (torch.nan if module.unembed.weight is not module.embed.weight else 0.0)

    found = slt.estimate(
        module,
        data,
        [slt.LLC()],
        loss_fn=untied,
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=10.0,
        localization=1.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=0, batch_size=8, chain_method="sequential"),
    )["llc"]
    assert found.health.dead_chains == {}
    assert found.mean != 0
