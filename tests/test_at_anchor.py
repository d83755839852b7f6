"""Estimators that look at the anchor alone, and callbacks that listen to readings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from models import FEW, Classifier, MemoryLogger, blobs, footprint, loader_of, seed_all, trainer_for
from torch import Tensor

import lightning_slt as slt
from lightning_slt.probes import Probe
from lightning_slt.results import Result
from lightning_slt.types import Health

pytestmark = pytest.mark.usefixtures("elsewhere")


@dataclass(frozen=True, kw_only=True)
class Found(Result):
    norm: float
    loss: float
    doubled: float
    outputs: Tensor


@dataclass(frozen=True)
class Look(slt.AtAnchor):
    """The norm of the weights, the loss, the loss at twice the weights, and outputs on a probe."""

    probe: Probe
    name: str = "look"
    fields = ("norm", "loss", "doubled")

    @property
    def probes(self) -> tuple[Probe, ...]:
        return (self.probe,)

    def measure(self, view: slt.View) -> Found:
        batches = view.probe_batches[self.probe.name]
        outputs = [view.evaluate(lambda module, batch: module(batch[0]), view.weights, batch) for batch in batches]
        return Found(
            norm=float(sum(w.square().sum() for w in view.weights.values())) ** 0.5,
            loss=view.mean_loss({}),
            doubled=view.mean_loss({name: 2 * w for name, w in view.weights.items()}, size=7),
            outputs=torch.cat(outputs),
            health=Health(ok=True),
        )


class Ears(pl.Callback):
    """Listens."""

    def __init__(self, *, broken: bool = False) -> None:
        self.heard: list[slt.Reading] = []
        self.broken = broken

    def hear(self, trainer: pl.Trainer, reading: slt.Reading) -> None:
        self.heard.append(reading)
        if self.broken:
            raise ZeroDivisionError("of the listener")


def fit(*callbacks: Any, **options: Any) -> pl.Trainer:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    trainer.fit(Classifier(), loader_of(blobs()))
    return trainer


def look() -> Look:
    return Look(Probe(blobs(6, seed=3), name="held out"))


def expected(module: Classifier) -> dict[str, Any]:
    data = blobs()
    x, y = data.tensors
    with torch.no_grad():
        loss = F.cross_entropy(module(x), y)
        norm = torch.cat([p.flatten() for p in module.parameters()]).norm()
        outputs = module(blobs(6, seed=3).tensors[0])
        twice = Classifier()
        twice.load_state_dict({name: 2 * p for name, p in module.state_dict().items()})
        doubled = F.cross_entropy(twice(x), y)
    return {"loss": float(loss), "norm": float(norm), "outputs": outputs, "doubled": float(doubled)}


def agree(found: Any, wanted: dict[str, Any]) -> None:
    for name in ("loss", "norm", "doubled"):
        assert getattr(found, name) == pytest.approx(wanted[name], rel=1e-5)
    assert torch.allclose(found.outputs, wanted["outputs"], atol=1e-6)


def test_without_a_trainer_and_without_chains() -> None:
    seed_all(0)
    module = Classifier()
    results = slt.estimate(module, blobs(), [look()])
    agree(results["look"], expected(module))


def test_beside_chains() -> None:
    seed_all(0)
    module = Classifier()
    both = slt.estimate(module, blobs(), [slt.LLC(), look()], sampling=FEW)
    alone = slt.estimate(module, blobs(), [slt.LLC()], sampling=FEW)
    agree(both["look"], expected(module))
    assert torch.equal(both["llc"].per_chain, alone["llc"].per_chain)


@pytest.mark.parametrize("chains", [False, True])
def test_in_a_monitor(chains: bool) -> None:
    estimators = [slt.LLC(), look()] if chains else [look()]
    ears = Ears()
    trainer = fit(slt.SLTMonitor(estimators, every_n_train_steps=3, at_end=True, sampling=FEW), ears)
    last = ears.heard[-1]
    assert last.step == trainer.global_step
    assert last.failure is None
    agree(last.estimates["full"]["look"], expected(trainer.lightning_module))  # type: ignore[arg-type]
    assert float(trainer.callback_metrics["slt/full/look/norm"]) == pytest.approx(last.estimates["full"]["look"].norm)
    assert ("slt/full/llc/mean" in trainer.callback_metrics) == chains
    assert [reading.step for reading in slt.load_records(".")] == [reading.step for reading in ears.heard]
    assert torch.equal(
        slt.load_records(".")[-1].estimates["full"]["look"].outputs, last.estimates["full"]["look"].outputs
    )


def test_training_is_bit_identical() -> None:
    def loader() -> Any:
        return loader_of(blobs())

    alone = footprint(Classifier, loader, [])
    monitored = footprint(Classifier, loader, [slt.SLTMonitor([look()], every_n_train_steps=1)])
    assert alone.differences(monitored) == []


def test_within_a_budget() -> None:
    ticks = iter(range(10**6))
    monitor = slt.SLTMonitor([look()], every_n_train_steps=1, max_overhead=0.5, at_end=True)
    monitor._clock = lambda: float(next(ticks))
    trainer = fit(monitor)
    readings = slt.load_records(".")
    assert 1 <= len(readings) <= trainer.global_step + 1
    assert all(reading.failure is None for reading in readings)


def test_a_listener_that_fails_is_told_and_leaves_training_alone() -> None:
    ears = Ears(broken=True)
    with pytest.warns(
        UserWarning, match="Ears failed at the reading of .slt. at step [048]: ZeroDivisionError: of the"
    ):
        trainer = fit(slt.SLTMonitor([look()], every_n_train_steps=4), ears)
    assert len(ears.heard) > 1
    assert trainer.global_step == 8
    with pytest.raises(ZeroDivisionError):
        fit(slt.SLTMonitor([look()], every_n_train_steps=4, on_failure="raise"), Ears(broken=True))


def test_takes_no_draws() -> None:
    with pytest.raises(TypeError, match="Look looks at the anchor alone"):
        look().start(None)  # type: ignore[arg-type]
