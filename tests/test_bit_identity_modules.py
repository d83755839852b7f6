"""Training with readings is bit-identical to training without, for networks and precisions of every kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import (
    Classifier,
    WithDropoutAndBatchNorm,
    assert_untouched,
    blob_loader,
    dropout_and_batchnorm,
    few_draws,
    footprint,
)
from torch import nn

from lightning_slt.losses import classification

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.mark.filterwarnings("ignore:Found . module.s. in eval mode at the start of training")
def test_frozen_batchnorm() -> None:
    class Frozen(Classifier):
        def __init__(self) -> None:
            super().__init__(dropout_and_batchnorm())
            self.net[1].eval().requires_grad_(False)

        def train(self, mode: bool = True) -> Any:
            super().train(mode)
            self.net[1].eval()
            return self

    without, _ = assert_untouched(Frozen)
    assert without.modes["net.3"]
    assert not without.modes["net.1"]


@pytest.mark.filterwarnings("ignore:You passed .Trainer.accelerator='cpu', precision='16-mixed'")  # then it is bf16
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true", "16-mixed"])
def test_precision(precision: str) -> None:
    assert_untouched(WithDropoutAndBatchNorm, precision=precision)


def test_forward_replaced_on_the_instance() -> None:
    class Replaced(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.forward = lambda x: 2 * self.net(x)  # type: ignore[method-assign]

    def first_reading(module: Any) -> float:
        _, watched = assert_untouched(module)
        return watched.monitor_rows[0][1]["slt/full/llc/mean"]

    class Written(Classifier):
        def forward(self, x: Any) -> Any:
            return 2 * self.net(x)

    assert first_reading(Replaced) == first_reading(Written)


class Adversarial(Classifier):
    """Two optimizers, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        first, second = self.optimizers()
        loss = F.cross_entropy(self(x), y) + self.critic(self(x)).mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 2:
            second.zero_grad()
            self.manual_backward(self.critic(self(x).detach()).square().mean())
            second.step()
        self.log("train/loss", loss)

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(self.net.parameters(), lr=1e-2), torch.optim.SGD(self.critic.parameters(), lr=1e-2)]


def test_manual_optimization() -> None:
    monitor = few_draws(loss_fn=classification, components="net")
    assert_untouched(Adversarial, monitor=monitor)


class Compiled(WithDropoutAndBatchNorm):
    """Compiled as a whole; the compiler refuses ``self.log``."""

    compiled = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        return F.cross_entropy(self(x), y)


class CompiledInside(Classifier):
    def __init__(self) -> None:
        super().__init__(torch.compile(dropout_and_batchnorm(), backend="aot_eager"))  # type: ignore[arg-type]


class NotCompiled(Compiled):
    compiled = False


@pytest.mark.parametrize("module", [Compiled, CompiledInside])
def test_compiled(module: Any) -> None:
    """Readings run eagerly, so that they neither see old weights nor make the compiler work again."""
    graphs = []
    for monitors in ([], [few_draws()]):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        graphs.append((footprint(module, blob_loader, monitors), dict(torch._dynamo.utils.counters["stats"])))
    (without, compiled), (watched, compiled_too) = graphs
    assert without.differences(watched) == []
    assert compiled == compiled_too
    assert compiled["unique_graphs"] >= 1
    eager = footprint(NotCompiled, blob_loader, [few_draws()])
    means = [[row["slt/full/llc/mean"] for _, row in run.monitor_rows] for run in (watched, eager)]
    assert means[0] == means[1]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, 5, batch_first=True, dropout=0.2, num_layers=2)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(x.view(-1, 2, 2))[0][:, -1])


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x: Any) -> Any:
        return self.out(self.block(x.view(-1, 1, 4))[:, 0])


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.out = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x: Any) -> Any:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("net", [Recurrent, Attending, Tied])
@pytest.mark.filterwarnings("ignore:the loss cannot be vectorized:UserWarning")
def test_networks(net: Any) -> None:
    assert_untouched(lambda: Classifier(net()))
