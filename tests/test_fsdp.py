"""Sharded weights (FSDP2) in two processes on the CPU: training untouched, and readings those of one process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from models import Classifier, Watch, blobs, compare, copied, few_draws, loader_of, seed_all, trainer_for
from torch import nn
from torch.distributed.fsdp import fully_shard

import lightning_slt as slt

pytestmark = [pytest.mark.ddp, pytest.mark.usefixtures("elsewhere")]

TIMEOUT = timedelta(seconds=15)
FEW = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=24)
"""Short readings: with two minibatches, every gather of weights counts."""


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


def uneven_net() -> nn.Sequential:
    """Seven hidden units and three outputs: no layer splits evenly over two processes."""
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3))


def shard(net: nn.Sequential, mesh: Any) -> nn.Sequential:
    """The first layer as a part of its own, the rest with the whole."""
    fully_shard(net[0], mesh=mesh)
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


def train(folder: str, *callbacks: Any, make: Any = None, processes: int = 2, **options: Any) -> list[dict[str, Any]]:
    """Train two epochs on each process's part of the data; give what every process wrote down."""

    def fit(rank: int) -> None:
        seed_all(3)
        strategy = ModelParallelStrategy(
            data_parallel_size=processes, tensor_parallel_size=1, process_group_backend="gloo", timeout=TIMEOUT
        )
        parallel = {"strategy": strategy, "devices": processes, "logger": CSVLogger(folder, name="logs")}
        trainer = trainer_for(*callbacks, Diary(folder), **{"max_epochs": 2, **parallel, **options})
        trainer.fit((make or Sharded)(), loader_of(blobs(48)))

    in_processes(fit, count=processes)
    return [torch.load(Path(folder) / f"rank{rank}.pt", weights_only=True) for rank in range(processes)]


def differences(a: Any, b: Any) -> list[str]:
    found: list[str] = []
    compare(a, b, "", found)
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_bit_identical(accumulate: int) -> None:
    without = train("without", accumulate_grad_batches=accumulate)
    watched = train("watched", few_draws(sampling=FEW), accumulate_grad_batches=accumulate)
    for rank in range(2):
        trained = {k: v for k, v in watched[rank]["metrics"].items() if not k.startswith("slt/")}
        assert differences(without[rank], {**watched[rank], "metrics": trained}) == []
    own = [{k: v for k, v in rank["metrics"].items() if k.startswith("slt/")} for rank in watched]
    assert own[0] == own[1]
    assert len(own[0]) == 7
    assert [r.step for r in slt.load_records("watched")] == ([0, 2, 4, 6] if accumulate == 1 else [0, 2, 4])
