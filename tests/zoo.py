"""The zoo as data: targets x samplers x estimators, and every kind of model; contract tests run over the tables.

A new sampler or estimator is one more row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import oracles
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.data import SamplingData
from lightning_slt.estimators import Estimator
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.samplers import Sampler

DOUBLE = torch.float64


class Target(NamedTuple):
    """A posterior and the data of its minibatches."""

    posterior: slt.LocalPosterior
    data: SamplingData


def _data(count: int, *shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def quadratic() -> Target:
    h = torch.tensor([0.1, 1.0, 3.0], dtype=DOUBLE)
    data = oracles.in_memory(TensorDataset(_data(20, 3)))
    return Target(oracles.quadratic_posterior(h, nbeta=10.0, localization=2.0), data)


def crossing() -> Target:
    def loss(weights: Mapping[str, Tensor], batch: Any) -> Tensor:
        return (weights["u"] * weights["v"] ** 2).square() + (batch[0] * weights["u"]).mean()

    anchor = {"u": torch.tensor(0.3, dtype=DOUBLE), "v": torch.tensor(-0.2, dtype=DOUBLE)}  # scalars
    posterior = slt.LocalPosterior(loss=loss, anchor=anchor, nbeta=30.0, localization=1.0)
    return Target(posterior, oracles.in_memory(TensorDataset(_data(20))))


def perceptron(masked: bool = False, dtype: torch.dtype = DOUBLE) -> Target:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)
    with isolated(net, seed=0):
        module_loss = ModuleLoss(net, slt.losses.classification)
    masks = {}
    if masked:
        masks = {"0.weight": torch.arange(20).view(5, 4) % 3 == 0, "2.bias": torch.tensor([True, False, True])}
    posterior = slt.LocalPosterior(
        loss=module_loss, anchor=dict(module_loss.weights), nbeta=20.0, localization=5.0, masks=masks
    )
    labels = torch.arange(24) % 3
    return Target(posterior, oracles.in_memory(TensorDataset(_data(24, 4, dtype=dtype), labels)))


TARGETS: dict[str, Callable[[], Target]] = {
    "quadratic": quadratic,
    "crossing": crossing,
    "perceptron": perceptron,
    "masked": lambda: perceptron(masked=True),
    "float32": lambda: perceptron(dtype=torch.float32),
}

SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "sgld": slt.SGLD,
    "rmsprop": partial(slt.RMSPropSGLD, num_adapt=3),
    "adam": partial(slt.AdamSGLD, num_adapt=3),
    "sghmc": slt.SGHMC,
    "sgnht": slt.SGNHT,
    "underdamped": partial(slt.UnderdampedLangevin, friction=2.0),
    "mala": slt.MALA,
    "hmc": partial(slt.HMC, num_leapfrog=3),
}
"""Each takes ``step_size`` and ``temperature``."""

ESTIMATORS: dict[str, Callable[[], Estimator]] = {"llc": lambda: slt.LLC(traces=True)}


class Convolutional(nn.Module):
    """BatchNorm, dropout, buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.head = nn.Linear(3 * 4 * 4, 3)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.body(x))


class Encoder(nn.Module):
    """torch's own transformer layers."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(1))


class Tied(nn.Module):
    """Tokens through an embedding whose transpose is the unembedding, and causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 8)
        self.qkv = nn.Linear(8, 24)
        self.unembed = nn.Linear(8, 7, bias=False)
        self.unembed.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        q, k, v = self.qkv(x).view(*tokens.shape, 2, 12).transpose(1, 2).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.unembed(x + mixed.transpose(1, 2).flatten(2))


class Recurrent(nn.Module):
    """RNN, LSTM or GRU, read at the last step."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell = kind(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


class LowRank(nn.Module):
    """A frozen layer with a trained adapter of rank two."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 3).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Assorted(nn.Module):
    """ModuleList, ParameterList, ParameterDict, a scalar parameter, a plain tensor attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 3)])
        self.shifts = nn.ParameterList([nn.Parameter(torch.full((4,), 0.1)), nn.Parameter(torch.zeros(3))])
        self.named = nn.ParameterDict({"scale": nn.Parameter(torch.tensor(1.5))})
        self.plain = torch.linspace(0.5, 1.5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.plain.to(x)
        for layer, shift in zip(self.layers, self.shifts, strict=True):
            x = layer(x).sin() + shift
        return self.named["scale"] * x


def _parametrized(kind: str) -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    if kind == "weight":
        nn.utils.parametrizations.weight_norm(net[0])
    else:
        nn.utils.parametrizations.spectral_norm(net[0])
    return net


@dataclass(frozen=True)
class Model:
    """One kind of network with data; ``vectorizes`` says whether chains can run together."""

    module: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    loss: Callable[[nn.Module, Any], Tensor] = slt.losses.classification
    vectorizes: bool = True


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.LayerNorm(8), nn.Dropout(0.3), nn.Linear(8, 3))


def _flat() -> Tensor:
    return _data(40, 4, dtype=torch.float32)


def _series() -> Tensor:
    return _data(40, 6, 4, dtype=torch.float32)


MODELS: dict[str, Model] = {
    "mlp": Model(_mlp, _flat),
    "cnn": Model(Convolutional, lambda: _data(40, 1, 6, 6, dtype=torch.float32)),
    "encoder": Model(Encoder, lambda: _data(40, 5, 8, dtype=torch.float32)),
    "tied": Model(Tied, lambda: (_data(40, 6) * 10).long() % 7, loss=slt.losses.next_token),
    "rnn": Model(lambda: Recurrent(nn.RNN), _series, vectorizes=False),
    "lstm": Model(lambda: Recurrent(nn.LSTM), _series, vectorizes=False),
    "gru": Model(lambda: Recurrent(nn.GRU), _series, vectorizes=False),
    "low_rank": Model(LowRank, _flat),
    "assorted": Model(Assorted, _flat),
    "weight_norm": Model(lambda: _parametrized("weight"), _flat),
    "spectral_norm": Model(lambda: _parametrized("spectral"), _flat),
}


def model(name: str, dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, TensorDataset, Model]:
    """A module of the table with its data."""
    kind = MODELS[name]
    torch.manual_seed(0)
    module, x = kind.module().to(dtype), kind.inputs()
    x = x.to(dtype) if x.is_floating_point() else x
    return module, TensorDataset(x, torch.arange(len(x)) % 3), kind
