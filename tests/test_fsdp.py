"""Sharded weights (FSDP2) in two processes on the CPU: training untouched, and readings those of one process."""

from __future__ import annotations

import copy
import math
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from models import (
    Classifier,
    SignalledOnSome,
    Watch,
    blobs,
    compare,
    copied,
    few_draws,
    loader_of,
    seed_all,
    signal_in_reading,
    trainer_for,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import lightning_slt as slt
from lightning_slt import sampling
from lightning_slt.calibration.curvature import curvature_at
from lightning_slt.callbacks.checks import check_shards
from lightning_slt.components import Component, resolve_components
from lightning_slt.data import load_data
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.losses import classification
from lightning_slt.offload import Waiting
from lightning_slt.posterior import LocalPosterior
from lightning_slt.seeding import generator
from lightning_slt.sharding import WHOLE, Shards, rest

pytestmark = [pytest.mark.ddp, pytest.mark.usefixtures("elsewhere")]

TIMEOUT = timedelta(seconds=15)
FEW = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=48)
"""Short readings of the whole set: every gather of weights counts."""


def in_processes(function: Callable[..., None], *args: Any, count: int = 2) -> None:
    """Run a function of (rank, …) in several processes that can form a group; an error in one is raised here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_started, args=(function, port, count, args), nprocs=count, start_method="fork")


def _started(rank: int, function: Callable[..., None], port: int, count: int, args: Any) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    launcher = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in {**place, **launcher}.items()})
    torch.set_num_threads(1)
    function(rank, *args)
    if dist.is_initialized():
        dist.destroy_process_group()


QUICK: dict[str, Any] = {
    "sampler": slt.RMSPropSGLD(step_size=1e-4, adaptation="always"),
    "nbeta": 10.0,
    "localization": 10.0,
    "sampling": FEW,
}
"""Settings for which no curvature is measured, which costs most of a short reading."""


def quick_draws(**changes: Any) -> slt.LLCMonitor:
    return few_draws(**{**QUICK, **changes})


class Scale(nn.Module):
    """One number, of which the second process holds nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x


def uneven_net() -> nn.Sequential:
    """Seven hidden units, three outputs and one number: nothing splits evenly over two processes."""
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3), Scale())


def shard(net: nn.Sequential, mesh: Any) -> nn.Sequential:
    """Both layers as parts of their own, the rest with the whole."""
    fully_shard(net[0], mesh=mesh)
    fully_shard(net[2], mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


class Sharded(Classifier):
    """A classifier that is sharded as Lightning wants it."""

    def __init__(self, net: nn.Sequential | None = None) -> None:
        super().__init__(net or uneven_net())

    def configure_model(self) -> None:
        shard(self.net, self.device_mesh["data_parallel"])


class Diary(pl.Callback):
    """Every process writes down what it has at the end."""

    def __init__(self, folder: str) -> None:
        self.folder, self.watch = Path(folder), Watch()
        self.on_train_batch_start = self.watch.on_train_batch_start

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.watch.outputs.append(copied(outputs))
        self.watch.gradients.append(shards(p.grad for p in pl_module.parameters()))
        shown = trainer.callback_metrics
        self.watch.metrics.append({k: float(v) for k, v in shown.items() if not k.startswith("slt/")})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.folder.mkdir(exist_ok=True)
        states = trainer.optimizers[0].state.values()
        content = {
            "weights": shards(pl_module.parameters()),
            "buffers": copied(dict(pl_module.named_buffers())),
            "optimizer": [shards(state.values()) for state in states],
            "random": torch.random.get_rng_state(),
            "watch": [self.watch.batches, self.watch.outputs, self.watch.gradients, self.watch.metrics],
            "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        }
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")


def shards(tensors: Any) -> list[Any]:
    """Copies of this process's parts."""
    parts = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
    return copied(parts)


def fit(
    folder: str,
    *callbacks: Any,
    make: Any = None,
    val: Any = None,
    resume: str | None = None,
    processes: int = 2,
    **options: Any,
) -> None:
    """Train two epochs in one of the processes."""
    seed_all(3)
    strategy = ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, process_group_backend="gloo", timeout=TIMEOUT
    )
    parallel = {"strategy": strategy, "devices": processes, "logger": CSVLogger(folder, name="logs")}
    trainer = trainer_for(*callbacks, Diary(folder), **{"max_epochs": 2, **parallel, **options})
    trainer.fit((make or Sharded)(), loader_of(blobs(48)), val, ckpt_path=resume)


def train(folder: str, *callbacks: Any, processes: int = 2, **options: Any) -> list[dict[str, Any]]:
    """Train two epochs on each process's part of the data; give what every process wrote down."""

    def started(rank: int) -> None:
        fit(folder, *callbacks, processes=processes, **options)

    in_processes(started, count=processes)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def differences(a: Any, b: Any) -> list[str]:
    found: list[str] = []
    compare(a, b, "", found)
    return found


def untouched(without: Sequence[Mapping[str, Any]], watched: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where training with readings differs from training without, in any process."""
    trained = [{k: v for k, v in rank["metrics"].items() if not k.startswith("slt/")} for rank in watched]
    return differences(without, [{**rank, "metrics": m} for rank, m in zip(watched, trained, strict=True)])


def slt_metrics(ranks: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    return [{k: v for k, v in rank["metrics"].items() if k.startswith("slt/")} for rank in ranks]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_bit_identical(accumulate: int) -> None:
    without = train("without", accumulate_grad_batches=accumulate)
    monitor = quick_draws() if accumulate == 2 else few_draws(sampling=FEW)
    watched = train("watched", monitor, accumulate_grad_batches=accumulate)
    assert untouched(without, watched) == []
    assert differences(without[0]["watch"], without[1]["watch"]) != []
    own = slt_metrics(watched)
    assert own[0] == own[1]
    assert len(own[0]) == 7
    assert [r.step for r in slt.load_records("watched")] == ([0, 2, 4, 6] if accumulate == 1 else [0, 2, 4])


def test_states_of_optimizers_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved to the host and back, here within the host's memory, they are those of training without readings."""
    for place in ("offload", "callbacks.history", "callbacks.live"):
        monkeypatch.setattr(f"lightning_slt.{place}.has_memory_of_its_own", lambda device: True)
    sizes: list[int] = []
    init = Waiting.__init__

    def noted(self: Waiting, tensors: Any) -> None:
        init(self, tensors)
        sizes.append(self.nbytes)
        torch.save(sizes, f"sizes{dist.get_rank()}.pt")

    monkeypatch.setattr(Waiting, "__init__", noted)
    assert untouched(train("without"), train("watched", quick_draws(offload=True))) == []
    assert max(torch.load("sizes0.pt")) > 0


class CutNoise:
    """Of noise that is drawn for whole rows, the coordinates of this process: sharded chains move as whole ones do."""

    def __init__(
        self, chains: Sequence[int], *, like: Tensor, seed: int, shards: Shards = WHOLE, index: Tensor, total: int
    ) -> None:
        self.generators = [generator(seed, "noise", chain) for chain in chains]
        self.like, self.index, self.total = like, index, total

    def normals(self) -> Tensor:
        rows = [torch.randn(self.total, generator=g, dtype=self.like.dtype)[self.index] for g in self.generators]
        return torch.stack(rows)

    def uniforms(self) -> Tensor:
        return torch.cat([torch.rand(1, generator=g, dtype=self.like.dtype) for g in self.generators])


def components_of(net: nn.Module) -> dict[str, Component]:
    """Everything; a checkered part of each matrix with a whole bias; rows that lie in the first process alone."""
    shapes = {name: p.shape for name, p in net.named_parameters()}
    checkered = {n: torch.arange(shapes[n].numel()).view(shapes[n]) % 3 == 0 for n in ("0.weight", "2.weight")}
    first = torch.zeros(shapes["0.weight"], dtype=torch.bool)
    first[:2] = True
    return {
        **resolve_components(net, None),
        "checkered": Component(("0.weight", "2.weight", "2.bias"), checkered),
        "first": Component(("0.weight",), {"0.weight": first}),
    }


SAMPLERS: dict[str, slt.Sampler] = {
    "sgld": slt.SGLD(step_size=1e-3),
    "rmsprop": slt.RMSPropSGLD(step_size=1e-4, adaptation="always"),
    "adam": slt.AdamSGLD(step_size=1e-4, adaptation="always"),
    "sghmc": slt.SGHMC(step_size=1e-3),
    "sgnht": slt.SGNHT(step_size=1e-3),
    "underdamped": slt.UnderdampedLangevin(step_size=1e-2, friction=1.0),
    "mala": slt.MALA(step_size=1e-2),
    "hmc": slt.HMC(step_size=0.2, num_leapfrog=3),
}


def walks(net: nn.Module) -> dict[str, Any]:
    """Positions, losses and motions of every sampler and component, and which of all coordinates these are."""
    found: dict[str, Any] = {}
    with isolated(net, seed=0), pytest.MonkeyPatch.context() as patch:
        loss = ModuleLoss(net, classification)
        x, y = blobs(16).tensors
        data = load_data(torch.utils.data.TensorDataset(x.double(), y))
        for where, component in components_of(net).items():
            index, total = coordinates(net, loss, component)
            patch.setattr(sampling, "ChainNoise", partial(CutNoise, index=index, total=total))
            posterior = LocalPosterior(
                loss=loss,
                anchor={name: loss.weights[name] for name in component.parameters},
                nbeta=20.0,
                localization=5.0,
                masks=loss.cut(component.masks),
                shards=loss.shards,
            )
            assert posterior.dimension == total
            found[f"{where}/curvature"] = curvature_of(posterior, data)
            for name, sampler in SAMPLERS.items():
                if where != "checkered" or name == "sgld":
                    draws = list(map(written, slt.sample(posterior, sampler, data, WALK)))
                    found[f"{where}/{name}"] = {"index": index, "total": total, "draws": draws}
    return found


def curvature_of(posterior: LocalPosterior, data: Any) -> float:
    """λ_max over all samples from a random direction, after so many iterations that the direction does not count."""
    row, g = posterior.anchor_row, generator(posterior.shards.own_seed(1), "direction")
    start = torch.randn(row.shape, generator=g, dtype=row.dtype)
    return float(curvature_at(posterior, row, [data.chain_batch(torch.arange(16))], WALK, start, iterations=40)[0])


WALK = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=1, thinning=1, batch_size=8, chain_method="sequential")


def coordinates(net: nn.Module, loss: ModuleLoss, component: Component) -> tuple[Tensor, int]:
    """Which of the whole network's free coordinates lie here, and how many there are."""
    pieces, start = [], 0
    for name in component.parameters:
        shape = dict(net.named_parameters())[name].shape
        mask = component.masks.get(name, torch.ones(shape, dtype=torch.bool))
        places = torch.full(shape, -1)
        places[mask] = start + torch.arange(int(mask.sum()))
        start += int(mask.sum())
        mine = loss.cut({name: places})[name].flatten()
        pieces.append(mine[mine >= 0])
    return torch.cat(pieces), start


def written(draw: slt.Draw) -> dict[str, Any]:
    motion = {} if draw.motion is None else {k: v for k, v in asdict(draw.motion).items() if v is not None}
    return copied({"loss": draw.loss, "anchor_loss": draw.anchor_loss, "position": draw.position, "motion": motion})


def double_net() -> nn.Sequential:
    torch.manual_seed(5)
    return uneven_net().double()


def walk_sharded(rank: int) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    net = shard(double_net(), init_device_mesh("cpu", (2,)))
    before = shards(net.parameters())
    torch.save(walks(net), f"walks{rank}.pt")
    assert differences(before, shards(net.parameters())) == []


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The walks of a whole network in this process, and of its shards in two others."""
    folder = tmp_path_factory.mktemp("walks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        in_processes(walk_sharded)
    return walks(double_net()), [torch.load(folder / f"walks{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("walk", [f"{where}/{s}" for where in ("full", "first") for s in SAMPLERS] + ["checkered/sgld"])
def test_shards_move_as_the_whole_does(walked: Any, walk: str) -> None:
    """With the same noise positions, losses and what is measured of the motion are those of a single process."""
    whole, ranks = walked[0][walk], [rank[walk] for rank in walked[1]]
    parts = [rank["index"].tolist() for rank in ranks]
    assert sorted(parts[0] + parts[1]) == whole["index"].tolist() == list(range(whole["total"]))
    assert (parts[1] == []) == walk.startswith("first")
    for step, expected in enumerate(whole["draws"]):
        found = [rank["draws"][step] for rank in ranks]
        together = torch.empty_like(expected["position"])
        for rank, draw in zip(ranks, found, strict=True):
            together[:, rank["index"]] = draw["position"]
        torch.testing.assert_close(together, expected["position"], rtol=1e-10, atol=1e-10)
        for draw in found:
            torch.testing.assert_close(draw["loss"], expected["loss"], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(draw["anchor_loss"], expected["anchor_loss"], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(draw["motion"], expected["motion"], rtol=1e-9, atol=1e-10)
    assert len(whole["draws"]) == 4
    assert any(draw["motion"] for draw in whole["draws"])


@pytest.mark.parametrize("where", ["full", "checkered", "first"])
def test_curvature_is_that_of_the_whole(walked: Any, where: str) -> None:
    """From other directions, and also where a process holds nothing that moves."""
    whole, *ranks = (found[f"{where}/curvature"] for found in (walked[0], *walked[1]))
    assert ranks[0] == ranks[1] == pytest.approx(whole, rel=1e-3)


def test_noise_of_shards_is_independent() -> None:
    """Each process has noise of its own in every chain, and all accept or reject a chain's proposal alike."""
    like = torch.empty(2, 20_000)
    noises = [sampling.ChainNoise((0, 1), like=like, seed=3, shards=Shards("two", rank, 2)) for rank in range(2)]
    first, second = (noise.normals().clone() for noise in noises)
    rows = torch.cat([first, second])
    correlation = torch.corrcoef(rows) - torch.eye(4)
    assert float(correlation.abs().max()) < 4 / math.sqrt(like.shape[1])
    assert torch.equal(noises[0].uniforms(), noises[1].uniforms())
    replica = sampling.ChainNoise((0, 1), like=like, seed=3, shards=Shards("a copy of the first two", 1, 2))
    assert torch.equal(second, replica.normals())


def exact_regression() -> tuple[nn.Sequential, Any]:
    """Twelve weights with a loss of curvature 2/3 in each, zero at the anchor."""
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    x = torch.linalg.qr(torch.randn(32, 4))[0] * math.sqrt(32)
    return net, torch.utils.data.TensorDataset(x, net(x).detach())


def read_regression(rank: int) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    net, data = exact_regression()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    before = shards(net.parameters())
    found = slt.estimate(net, data, [slt.LLC()], loss_fn=slt.losses.regression, **REGRESSION)["llc"]
    assert differences(before, shards(net.parameters())) == []
    torch.save([found.per_chain, found.health.ok, found.settings.curvature], f"llc{rank}.pt")


REGRESSION: dict[str, Any] = {
    "sampler": slt.SGLD(step_size=1e-2),
    "nbeta": 50.0,
    "localization": 10.0,
    "sampling": slt.SamplingConfig(num_chains=8, num_draws=50, num_burnin=20, batch_size=32),
}


def test_llc_has_its_exact_value() -> None:
    """Of a quadratic with precision P = nβh + γ in d directions it is (d/2) nβh / [P (1 − εP/4)]."""
    in_processes(read_regression)
    first, second = (torch.load(f"llc{rank}.pt") for rank in range(2))
    assert differences(first, second) == []
    h, epsilon, nbeta, gamma = 2 / 3, 1e-2, 50.0, 10.0
    precision = nbeta * h + gamma
    expected = 12 / 2 * nbeta * h / (precision * (1 - epsilon * precision / 4))
    net, data = exact_regression()
    alone = slt.estimate(net, data, [slt.LLC()], loss_fn=slt.losses.regression, **REGRESSION)["llc"]
    for per_chain in (first[0], alone.per_chain):
        z = (per_chain.mean() - expected) / (per_chain.std() / math.sqrt(len(per_chain)))
        assert abs(float(z)) < 4
    assert first[1]
    assert first[2] == pytest.approx(h, rel=1e-3)  # of the loss in all directions, whichever shard they lie in


class Trip(nn.Module):
    """Between two layers, where user code may fail too."""

    armed = False

    def forward(self, x: Tensor) -> Tensor:
        if self.armed:
            raise ArithmeticError("not here")
        return x.tanh()


class FailsOnOne(Sharded):
    """One process cannot evaluate its loss, at one pass of the reading at step 2."""

    def __init__(self, rank: int, where: str, call: int) -> None:
        net = uneven_net()
        net[1] = Trip()
        super().__init__(net)
        self.rank, self.where, self.call, self.calls = rank, where, call, 0

    def per_sample_loss(self, batch: Any) -> Any:
        self.calls += 1
        due = (self.global_rank, self.trainer.global_step, self.calls) == (self.rank, 2, self.call)
        if due and self.where == "before":
            raise ArithmeticError("not here")
        self.net[1].armed = due and self.where == "within"
        losses = classification(self, batch)
        if due and self.where == "after":
            raise ArithmeticError("not here")
        return losses


@pytest.mark.parametrize(("rank", "where", "call"), [(0, "before", 1), (1, "within", 8), (0, "after", 9)])
@pytest.mark.filterwarnings("ignore:slt. the reading at step 2 failed")
def test_an_error_in_one_process(rank: int, where: str, call: int) -> None:
    """All give up the reading, none waits for the other's shards, and training is what it would have been."""
    make = partial(FailsOnOne, rank, where, call)
    without = train("without", make=make)
    watched = train("watched", quick_draws(), make=make)
    assert untouched(without, watched) == []
    own = slt_metrics(watched)
    assert own[0] == own[1]
    records = slt.load_records("watched")
    assert [r.step for r in records if r.failure] == [2]
    assert [r.step for r in records] == [0, 2, 4, 6]
    message = "ArithmeticError: not here" if rank == 0 else "PeerFailedError: another process failed"
    assert message in (records[1].failure or "")


class ShardedAndSignalled(SignalledOnSome):
    """Its weights are sharded."""

    def configure_model(self) -> None:
        shard(self.net, self.device_mesh["data_parallel"])


@pytest.mark.parametrize("signalled", [[0], [1], [0, 1]])
def test_a_signal_to_some_processes(signalled: Sequence[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All give the reading up before the next pass, none waits for the other's shards."""
    signal_in_reading(monkeypatch, ShardedAndSignalled, step=2)
    without = train("without")
    watched = train("watched", quick_draws(), make=lambda: ShardedAndSignalled(signalled, net=uneven_net()))
    assert untouched(without, watched) == []
    assert [(r.step, r.failure) for r in slt.load_records("watched")] == [(0, None), (4, None), (6, None)]
    own = slt_metrics(watched)
    assert own[0] == own[1]


def end_by_sigterm(rank: int) -> None:
    with pytest.raises(SystemExit):
        fit("watched", quick_draws(), make=lambda: ShardedAndSignalled([0, 1], net=uneven_net(), number=signal.SIGTERM))


def test_sigterm_to_all_processes_ends_the_reading_and_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """As clusters send it: Lightning's handlers, which agree with each other, run once none waits in a reading."""
    signal_in_reading(monkeypatch, ShardedAndSignalled, step=2)
    in_processes(end_by_sigterm)
    assert [(r.step, r.failure) for r in slt.load_records("watched")] == [(0, None)]


def accumulate(rank: int) -> None:
    """Gradients of two batches of which only the second is reduced, without and with a reading between them."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (2,))
    x, y = blobs(16, seed=rank).tensors
    found = []
    for read in (False, True):
        torch.manual_seed(0)
        net = shard(uneven_net(), mesh)
        net.set_requires_gradient_sync(False)
        net.set_reshard_after_backward(False)
        nn.functional.cross_entropy(net(x), y).backward()
        if read:
            with torch.no_grad():
                net(x)  # as a validation does, which leaves the outermost part gathered
            gathered = [(type(p), p.shape) for p in net.parameters()]
            results = slt.estimate(net, blobs(16), [slt.LLC()], loss_fn=classification, sampling=FEW)
            assert bool(results["llc"].per_chain.isfinite().all())
            assert [(type(p), p.shape) for p in net.parameters()] == gathered
            assert nn.Parameter in [kind for kind, _ in gathered]
        net.set_requires_gradient_sync(True)
        nn.functional.cross_entropy(net(x), y).backward()
        rest(net)
        found.append([shards(net.parameters()), shards(p.grad for p in net.parameters())])
    assert differences(*found) == []
    assert all(g is not None for g in found[0][1])


def test_gradients_that_wait_to_be_reduced_survive() -> None:
    in_processes(accumulate)


def fails_the_second_time(net: Any, batch: Any) -> Tensor:
    classification(net, batch)
    net[1].armed = True
    return classification(net, batch)


def refuse_and_go_on(rank: int) -> None:
    """A pass that user code breaks off on all processes, as for a batch of a size that it does not take."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    torch.manual_seed(0)
    whole = uneven_net()
    whole[1] = Trip()
    net = shard(copy.deepcopy(whole), init_device_mesh("cpu", (2,)))
    batch = blobs(8).tensors
    with isolated(net, seed=0):
        loss = ModuleLoss(net, classification)
        for shift, refusing in ((0.0, loss), (0.5, loss.with_loss(fails_the_second_time))):
            net[1].armed = refusing is loss
            with pytest.raises(ArithmeticError):
                refusing(loss.weights, batch)
            net[1].armed = False
            moved = {name: w + shift for name, w in loss.weights.items()}
            expected = torch.func.functional_call(whole, {n: p + shift for n, p in whole.named_parameters()}, batch[:1])
            losses = nn.functional.cross_entropy(expected, batch[1], reduction="none")
            torch.testing.assert_close(loss(moved, batch), losses)


def test_a_pass_that_was_broken_off_leaves_nothing() -> None:
    in_processes(refuse_and_go_on)


class Pinned(pl.LightningModule):
    """Layers made where Lightning says large ones should be, with statistics and dropout, read in validation too."""

    def configure_model(self) -> None:
        if not hasattr(self, "net"):
            layers = nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Linear(7, 3), nn.Dropout(0.3)
            self.net = shard(nn.Sequential(*layers), self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = classification_mean(self, batch)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", classification_mean(self, batch), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def classification_mean(module: Any, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(module.net(x), y)


def test_layers_made_late_and_readings_in_validation() -> None:
    """Scores of checkpoints are read before validation ends, after a pass that leaves the outermost part gathered."""
    tag = "slt/net.2/llc/mean"

    def run(folder: str, *monitors: Any) -> list[dict[str, Any]]:
        saving = ModelCheckpoint(f"{folder}-saved", monitor=tag if monitors else None, save_top_k=-1)
        return train(folder, *monitors, saving, make=Pinned, val=loader_of(blobs(16, seed=2), shuffle=False))

    monitor = quick_draws(every_n_train_steps=None, at_checkpoints=True, components="net.2")
    without, watched = run("without"), run("watched", monitor)
    assert untouched(without, watched) == []
    assert differences(without[0]["buffers"], without[1]["buffers"]) != []
    own = slt_metrics(watched)
    assert own[0] == own[1]
    records = slt.load_records("watched")
    assert [r.step for r in records] == [0, 3, 6]
    assert {c for r in records for c in r.estimates} == {"net.2"}
    assert own[0][tag] == pytest.approx(records[-1].estimates["net.2"]["llc"].mean, rel=1e-6)


def test_a_watched_tag_that_never_comes() -> None:
    """Where layers are made after set-up, it is refused before training."""
    never = ModelCheckpoint(monitor="slt/net/llc/mean")
    with pytest.raises(Exception, match="waits for a tag that is never logged"):
        train("watched", few_draws(), never, make=Pinned, val=loader_of(blobs(16), shuffle=False))


def test_kernels_and_influence() -> None:
    """Losses of every sample are had as they are, and are the same on all processes."""
    probe = slt.Probe(blobs(6, seed=5), name="six", loss_fn=classification)
    monitor = slt.SLTMonitor(
        [slt.LLC(), slt.LossKernel(probe), slt.BayesianInfluence(train=probe, query=probe)],
        **QUICK,
        at_end=True,
        every_n_train_steps=100,
    )
    first, second = slt_metrics(train("watched", monitor))
    assert first == second
    kernel = slt.load_records("watched")[-1].estimates["full"]["loss_kernel"]
    assert kernel.covariance.shape == (6, 6)
    assert bool((kernel.covariance.diagonal() > 0).all())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_resumed_run_reads_the_same() -> None:
    def run(folder: str, **options: Any) -> list[dict[str, Any]]:
        saving = ModelCheckpoint(
            Path(f"{folder}-saved").absolute(), every_n_epochs=1, save_top_k=-1, filename="{epoch}"
        )
        return train(folder, quick_draws(every_n_train_steps=3), saving, **options)

    through = run("through")
    again = run("again", resume=str(Path("through-saved/epoch=0.ckpt").absolute()))
    assert differences([r["weights"] for r in through], [r["weights"] for r in again]) == []
    first, second = (
        {r.step: r.estimates["full"]["llc"].per_chain for r in slt.load_records(f)} for f in ("through", "again")
    )
    assert (list(first), list(second)) == ([0, 3, 6], [6])
    assert differences(first[6], second[6]) == []


@pytest.mark.parametrize("kind", [FSDPStrategy, DeepSpeedStrategy, type("MegatronStrategy", (), {})])
@pytest.mark.parametrize("callback", [few_draws(), slt.SamplerFinder()])
def test_strategies_that_hide_the_weights_are_refused(kind: type, callback: pl.Callback) -> None:
    trainer: Any = SimpleNamespace(strategy=object.__new__(kind))
    with pytest.raises(MisconfigurationException, match=f"{kind.__name__}.*ModelParallelStrategy.*analyze"):
        callback.setup(trainer, Classifier(), "fit")


def refused(rank: int) -> None:
    """What cannot be sampled says so, on every process, before anything runs."""
    dist.init_process_group("gloo", timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (2,))

    def expect(message: str, net: nn.Module, estimators: Any = None, **options: Any) -> None:
        estimators = estimators or [slt.LLC()]
        options = {"loss_fn": classification, "sampling": FEW, "nbeta": 10.0, "localization": 1.0, **options}
        with pytest.raises((ValueError, TypeError), match=message):
            slt.estimate(net, blobs(16), estimators, **options)

    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    split = parallelize_module(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), mesh, plan)
    expect("'0.weight' is split by tensor parallelism", split)
    partly = uneven_net()
    fully_shard(partly[0], mesh=mesh)
    expect("'2.weight' is not sharded while '0.weight' is", partly)
    expect("shards of '0.weight' are torch.bfloat16", shard(uneven_net().bfloat16(), mesh))
    cast = uneven_net()
    fully_shard(cast, mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    expect("'tf32', but fully_shard casts the weights to torch.bfloat16", cast, sampling=replace(FEW, precision="tf32"))
    whole = shard(uneven_net(), mesh)
    vectorized = replace(FEW, chain_method="vectorized")
    expect("move one after another", whole, sampling=vectorized)
    expect("'kernel' needs losses per sample", whole, [kernel_of_means()])
    for estimator in (slt.Compressibility(), slt.Trajectory(space="weights")):
        with pytest.raises(MisconfigurationException, match="works on whole weights"):
            check_shards(whole, [estimator], snapshots=False)
    with pytest.raises(MisconfigurationException, match="write snapshots=False"):
        check_shards(whole, [], snapshots=True)


def gradient_flow(net: nn.Sequential, precision: Any) -> Tensor:
    """LLC of each chain without noise, where rounding is all that can differ."""
    options: dict[str, Any] = {"loss_fn": classification, "nbeta": 20.0, "localization": 5.0}
    sampling = replace(FEW, precision=precision, chain_method="sequential")
    sampler = slt.SGLD(step_size=1e-3, temperature=0.0)
    found: slt.Estimate = slt.estimate(net, blobs(48), [slt.LLC()], sampler=sampler, sampling=sampling, **options)[
        "llc"
    ]
    return found.per_chain


def seeded_net() -> nn.Sequential:
    torch.manual_seed(5)
    return uneven_net()


def flow_in_precisions(rank: int) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    net = shard(seeded_net(), init_device_mesh("cpu", (2,)))
    torch.save({p: gradient_flow(net, p) for p in ("bf16", "float32")}, f"flow{rank}.pt")


def test_precision_of_the_passes() -> None:
    """Gathered weights are cast as those of a whole network are."""
    in_processes(flow_in_precisions)
    whole = {p: gradient_flow(seeded_net(), p) for p in ("bf16", "float32")}
    assert not torch.equal(whole["bf16"], whole["float32"])
    for rank in range(2):
        found = torch.load(f"flow{rank}.pt")
        for precision, expected in whole.items():
            assert torch.equal(found[precision], expected)


def kernel_of_means() -> slt.LossKernel:
    mean = lambda module, batch: classification(module, batch).mean()  # noqa: E731
    return slt.LossKernel(slt.Probe(blobs(4), name="kernel", loss_fn=mean))


def test_what_cannot_be_sampled_is_refused() -> None:
    in_processes(refused)


def walk_replicated(rank: int) -> None:
    dist.init_process_group("gloo", timeout=TIMEOUT)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    torch.save(walks(shard(double_net(), mesh)), f"walks{rank}.pt")


@pytest.mark.slow
def test_replicas_of_shards() -> None:
    """Two copies of the shards (HSDP): each pair of processes moves as the whole does."""
    in_processes(walk_replicated, count=4)
    ranks = [torch.load(f"walks{rank}.pt") for rank in range(4)]
    whole = walks(double_net())
    for pair in (ranks[:2], ranks[2:]):
        for name in SAMPLERS:
            test_shards_move_as_the_whole_does((whole, pair), f"full/{name}")
