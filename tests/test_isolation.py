"""``isolated``: whatever user code does inside, everything is as it was."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from models import Classifier, compare, dropout_and_batchnorm, seed_all
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from lightning_slt.isolation import isolated


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_generators() -> None:
    """Restored after an error too, and the same inside whatever they were before."""
    inside = []
    for seed in (1, 2):
        net = nn.Linear(1, 1)
        seed_all(seed)
        expected = [random.getstate(), np.random.get_state(legacy=False), torch.random.get_rng_state()]
        with pytest.raises(ZeroDivisionError), isolated(net, seed=7):
            inside.append(draws()) or 1 / 0  # type: ignore[func-returns-value]
        found: list[str] = []
        compare(
            expected, [random.getstate(), np.random.get_state(legacy=False), torch.random.get_rng_state()], "", found
        )
        assert found == []
    assert inside[0] == inside[1]
    with isolated(nn.Linear(1, 1), seed=8):
        assert draws() != inside[0]


def test_modes_gradients_and_flags() -> None:
    net = dropout_and_batchnorm()
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net[4].weight.grad = torch.ones_like(net[4].weight)
    grads = [p.grad for p in net.parameters()]
    modes = {name: part.training for name, part in net.named_modules()}
    weights = dict(net.named_parameters())
    with torch.no_grad(), isolated(net, seed=0):
        assert not any(part.training for part in net.modules())
        assert torch.is_grad_enabled()
        assert all(p.grad is None for p in net.parameters())
        net.requires_grad_(True)
        net(torch.randn(5, 4)).sum().backward()
        net.train()
        net(torch.randn(5, 4) + 100)
        net[0].weight = nn.Parameter(torch.zeros(1))
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    assert torch.equal(net[4].weight.grad, torch.ones_like(net[4].weight))
    assert {name: part.training for name, part in net.named_modules()} == modes
    assert not net[0].weight.requires_grad
    assert net[0].bias.requires_grad
    assert all(weights[name] is p for name, p in net.named_parameters())
    assert torch.equal(net[1].running_mean, torch.zeros(8))
    assert int(net[1].num_batches_tracked) == 0


def test_grad_and_inference_mode() -> None:
    with torch.inference_mode():
        with isolated(nn.Linear(1, 1), seed=0):
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
            assert not torch.zeros(1).is_inference()
        assert torch.is_inference_mode_enabled()


def test_nested() -> None:
    net = nn.Dropout()
    state = torch.random.get_rng_state()
    with isolated(net, seed=0):
        first = torch.rand(())
        with isolated(net, seed=1):
            torch.rand(())
        second = torch.rand(())
    with isolated(net, seed=0):
        assert [torch.rand(()), torch.rand(())] == [first, second]
    assert net.training
    assert torch.equal(state, torch.random.get_rng_state())


def test_structure_of_the_module() -> None:
    """Parts and hooks that are added, taken away or exchanged inside."""
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    first, hooks = net[0], []
    handle = net.register_forward_hook(lambda *args: None)
    with isolated(net, seed=0):
        net[0] = nn.Identity()
        net.add_module("extra", nn.Linear(1, 1))
        net.register_buffer("late", torch.zeros(1))
        hooks.append(net.register_forward_hook(lambda *args: 1 / 0))
        del net[1]
    assert net[0] is first
    assert len(net) == 2
    assert not hasattr(net, "late")
    assert len(net._forward_hooks) == 1
    handle.remove()
    net(torch.zeros(1, 2))


class Talkative(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.many = MetricCollection({"a": MeanMetric(), "b": MeanMetric()}, prefix="x/")


def test_muting() -> None:
    """Inside, logging does nothing and metrics give NaN; afterwards both are themselves again."""
    module = Talkative()
    module.mean.update(2.0)
    with isolated(module, seed=0):
        module.log("a", 1.0)
        module.log_dict({"b": 1.0})
        module.print("hello")
        assert torch.isnan(module.mean(5.0))
        module.mean.update(5.0)
        assert torch.isnan(module.mean.compute())
        assert list(module.many(torch.ones(1))) == ["x/a", "x/b"]
        module.mean.reset()
    assert float(module.mean.compute()) == 2.0
    assert set(vars(module)) & {"log", "log_dict", "print", "toggle_optimizer"} == set()
    assert float(module.many(torch.ones(1))["x/a"]) == 1.0


def test_the_trainer_is_silent_and_unchanged() -> None:
    module, log = Talkative(), []

    class Loud(pl.loggers.logger.DummyLogger):
        def log_metrics(self, *args: Any, **kwargs: Any) -> None:
            log.append(args)

    trainer = pl.Trainer(logger=Loud(), accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False)
    module.trainer = trainer
    loggers = trainer.loggers
    with isolated(module, seed=0):
        module.logger.log_metrics({"a": 1}, step=0)
        module.logger.experiment.add_scalar("a", 1, 2)
        module.loggers[0].experiment.anything["at"].all()
        trainer.should_stop = True
    assert log == []
    assert not trainer.should_stop
    assert trainer.loggers is loggers
    module.logger.log_metrics({"a": 1}, step=0)
    assert len(log) == 1


def test_every_step_of_the_undoing_runs() -> None:
    """Also where entering failed half way."""

    class Stubborn(nn.Module):
        def train(self, mode: bool = True) -> Any:
            torch.rand(3)
            raise RuntimeError("no")

    net, state = Stubborn(), torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="no"), isolated(net, seed=0):
        pass
    assert torch.equal(state, torch.random.get_rng_state())
