"""Chain c depends on (seed, c) alone: bits over chunk sizes, numbers of chains and routes."""

from typing import Any

import oracles
import pytest
import torch
import zoo
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.data import Streams
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.sampling import ChainNoise

VECTORIZED = [name for name, kind in zoo.MODELS.items() if kind.vectorizes]
BATCHES: dict[str, dict[str, Any]] = {"mini": {}, "full": {"batch_size": 10**6}, "shared": {"share_batches": True}}


class Wide(nn.Module):
    """Sizes at which kernels block their work: convolutions, pools, a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3))
        self.head = nn.Linear(32 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu().flatten(1))


def run(name: str, dtype: torch.dtype, **more: Any) -> Tensor:
    """Weights, losses and losses at the anchor of every chain and draw, ``[chain, draw, value]``."""
    if name == "wide":
        torch.manual_seed(0)
        module, kind = Wide().to(dtype), zoo.MODELS["cnn"]
        data: Any = torch.utils.data.TensorDataset(zoo._data(48, 3, 16, 16, dtype=dtype), torch.arange(48) % 10)
    else:
        module, data, kind = zoo.model(name, dtype)
    counts = {"num_chains": 5, "num_draws": 3, "num_burnin": 2, "batch_size": 16, "seed": 7} | more
    with isolated(module, seed=0):
        loss = ModuleLoss(module, kind.loss)
        anchor = {n: loss.weights[n] for n, p in module.named_parameters() if p.requires_grad}
        posterior = slt.LocalPosterior(loss=loss, anchor=anchor, nbeta=10.0, localization=1.0)
        rows: dict[int, list[Tensor]] = {}
        draws = slt.sample(posterior, slt.SGLD(step_size=1e-3), oracles.in_memory(data), slt.SamplingConfig(**counts))
        for draw in draws:
            for i, chain in enumerate(draw.chains):
                row = [draw.position[i], draw.loss[i : i + 1], draw.anchor_loss[i : i + 1]]
                rows.setdefault(chain, []).append(torch.cat(row))
    return torch.stack([torch.stack(rows[chain]) for chain in sorted(rows)])


@pytest.mark.parametrize("batches", BATCHES)
@pytest.mark.parametrize("name", [*(name for name in VECTORIZED if name != "spectral_norm"), "wide"])
def test_the_same_bits_whatever_the_company(name: str, batches: str) -> None:
    more = {"chain_method": "vectorized", **BATCHES[batches]}
    whole = run(name, torch.float32, **more)
    assert bool(whole.isfinite().all())
    for chunk_size in (1, 2, 3):
        assert torch.equal(run(name, torch.float32, chunk_size=chunk_size, **more), whole), f"chunks of {chunk_size}"
    for num_chains in (1, 2):
        assert torch.equal(run(name, torch.float32, num_chains=num_chains, **more), whole[:num_chains])


def test_a_product_with_one_vector_common_to_all_chains_rounds_by_its_place() -> None:
    """The one exception, of the spectral norm's ``u`` and of frozen layers with one output: the last bit."""
    whole = run("spectral_norm", torch.float32, chain_method="vectorized")
    for chunk_size in (1, 2, 3):
        some = run("spectral_norm", torch.float32, chain_method="vectorized", chunk_size=chunk_size)
        torch.testing.assert_close(some, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", VECTORIZED)
@pytest.mark.parametrize("batches", BATCHES)
def test_both_routes_give_the_same_numbers(name: str, batches: str) -> None:
    more = BATCHES[batches]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        together = run(name, dtype, chain_method="vectorized", **more)
        apart = run(name, dtype, chain_method="sequential", **more)
        torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["lstm", "mlp"])
def test_sequential_chains_know_nothing_of_each_other(name: str) -> None:
    whole = run(name, torch.float32, chain_method="sequential")
    for more in ({"chunk_size": 2}, {"num_chains": 2}, {"num_chains": 1}):
        some = run(name, torch.float32, chain_method="sequential", **more)
        assert torch.equal(some, whole[: len(some)])


def test_noise_and_minibatches_depend_on_seed_and_chain_alone() -> None:
    like = torch.empty(6, 1000)
    noise = ChainNoise(range(6), like=like, seed=1)
    streams = Streams(50, batch_size=8, seed=1, chains=range(6), share_batches=False)
    rows = [(noise.normals().clone(), streams.next()) for _ in range(13)]  # beyond an epoch
    for chains in ([3], [5, 3], [0, 1, 2, 3, 4]):
        some = ChainNoise(chains, like=like[: len(chains)], seed=1)
        order = Streams(50, batch_size=8, seed=1, chains=chains, share_batches=False)
        for normals, indices in rows:
            assert torch.equal(some.normals(), normals[list(chains)])
            assert torch.equal(order.next(), indices[list(chains)])
    for chain in range(6):
        naive = oracles.batch_order(50, 8, 1, chain, 13)
        assert all(torch.equal(naive[t], rows[t][1][chain]) for t in range(13))
    assert len(torch.stack([indices[0] for _, indices in rows[:6]]).unique()) == 48  # without replacement


def test_shared_minibatches_are_one_stream() -> None:
    one = Streams(50, batch_size=8, seed=1, chains=[0, 1, 2], share_batches=True)
    other = Streams(50, batch_size=8, seed=1, chains=[4], share_batches=True)
    for _ in range(13):
        indices = one.next()
        assert indices.shape == (8,)
        assert torch.equal(indices, other.next())


def test_estimate_twice_gives_the_same_bits_and_leaves_generators_alone() -> None:
    module, data, kind = zoo.model("cnn", torch.float32)
    before = torch.random.get_rng_state()

    def read(seed: int) -> Tensor:
        return slt.estimate(
            module,
            data,
            [slt.LLC(traces=True)],
            loss_fn=kind.loss,
            sampling=slt.SamplingConfig(num_chains=3, num_draws=5, num_burnin=3, batch_size=8, seed=seed),
        )["llc"].traces["loss"]

    first = read(0)
    torch.rand(3)  # the user's own generator is somewhere else by now
    assert torch.equal(read(0), first)
    assert not torch.equal(read(1), first)
    torch.random.set_rng_state(before)
    read(0)
    assert torch.equal(torch.random.get_rng_state(), before)
