"""Small networks, data sets and a memory of what training did, for the tests of the live side."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_slt import LLCMonitor, SamplingConfig
from lightning_slt.losses import classification
from lightning_slt.reading import Reader

FEW = SamplingConfig(num_chains=2, num_draws=4, num_burnin=2, batch_size=8)


def few_draws(**changes: Any) -> LLCMonitor:
    """A monitor whose readings are as short as they can be."""
    return LLCMonitor(**{"sampling": FEW, "every_n_train_steps": 2, **changes})


def blobs(count: int = 32, *, seed: int = 1) -> TensorDataset:
    """Points in four dimensions in three classes."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (count,), generator=g)
    return TensorDataset(torch.randn(count, 4, generator=g) + y[:, None], y)


class Classifier(pl.LightningModule):
    """An ordinary LightningModule: logs its loss, trains with Adam."""

    def __init__(self, net: nn.Module | None = None, *, lr: float = 1e-2) -> None:
        super().__init__()
        self.net = net or nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class SignalledOnSome(Classifier):
    """Processes get a signal in the middle of a reading, and one may fail in it beside."""

    reading = False

    def __init__(
        self,
        signalled: Sequence[int],
        failing: int | None = None,
        *,
        net: nn.Module | None = None,
        number: int = signal.SIGUSR1,
    ) -> None:
        super().__init__(net)
        self.signalled, self.failing, self.number = signalled, failing, number

    def on_train_start(self) -> None:
        self.came: list[int] = []
        if self.number == signal.SIGUSR1:
            signal.signal(self.number, lambda *_: self.came.append(self.trainer.global_step))

    def per_sample_loss(self, batch: Any) -> Any:
        if self.reading:
            type(self).reading = False
            if self.global_rank in self.signalled:
                signal.raise_signal(self.number)
            if self.global_rank == self.failing:
                raise ArithmeticError("not here")
        return classification(self, batch)

    def on_train_end(self) -> None:
        assert self.came == ([2] if self.global_rank in self.signalled else [])


def signal_in_reading(monkeypatch: pytest.MonkeyPatch, module: type[SignalledOnSome], *, step: int) -> None:
    """Have it come once the reading at this step has begun."""
    read = Reader.read

    def begun(reader: Reader, *args: Any, **kwargs: Any) -> Any:
        module.reading = reader.module.trainer.global_step == step
        return read(reader, *args, **kwargs)

    monkeypatch.setattr(Reader, "read", begun)


class Validated(Classifier):
    """The same with a validation loop."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val/loss", F.cross_entropy(self(x), y))


def dropout_and_batchnorm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


class MemoryLogger(Logger):
    """Keeps every row that is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> str:
        return "0"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, {k: float(v) for k, v in metrics.items()}))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        return None

    def series(self, tag: str) -> list[tuple[int, float]]:
        """Steps and values of one tag, in the order in which they came."""
        return [(step, row[tag]) for step, row in self.rows if tag in row]

    def steps(self, tag: str = "slt/full/llc/mean") -> list[int]:
        return [step for step, _ in self.series(tag)]


class Watch(pl.Callback):
    """Records what training saw and did at every batch."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.outputs: list[Any] = []
        self.gradients: list[Any] = []
        self.metrics: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batches.append(copied(batch))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.outputs.append(copied(outputs))
        self.gradients.append(copied([p.grad for p in pl_module.parameters()]))
        shown = trainer.callback_metrics
        self.metrics.append({k: float(v) for k, v in shown.items() if not k.startswith("slt/")})


class Trajectory(pl.Callback):
    """The weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: dict[int, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.note(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.note(trainer, pl_module)

    def note(self, trainer: Any, pl_module: Any) -> None:
        self.weights.setdefault(trainer.global_step, copied(dict(pl_module.named_parameters())))


def copied(value: Any) -> Any:
    """A copy of tensors in any nesting that later steps do not reach."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [copied(v) for v in value]
    return value


@dataclass
class Footprint:
    """Everything of a training run that readings must not change."""

    weights: dict[str, Tensor]
    optimizers: list[Any]
    schedulers: list[Any]
    python: Any
    numpy: Any
    torch: Tensor
    modes: dict[str, bool]
    watch: Watch
    logged: list[tuple[int, dict[str, float]]]
    attributes: Any = None
    monitor_rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def differences(self, other: Footprint) -> list[str]:
        """Where two runs differ, bit by bit; empty where they do not."""
        found: list[str] = []
        for name in (
            "weights",
            "optimizers",
            "schedulers",
            "python",
            "numpy",
            "torch",
            "modes",
            "logged",
            "attributes",
        ):
            compare(getattr(self, name), getattr(other, name), name, found)
        for name in ("batches", "outputs", "gradients", "metrics"):
            compare(getattr(self.watch, name), getattr(other.watch, name), name, found)
        return found


def compare(a: Any, b: Any, where: str, found: list[str]) -> None:
    """Note every place where two nestings differ; NaN equals NaN, types count."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or bits(a) != bits(b):
            found.append(where)
    elif isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            found.append(where)
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            found.append(f"{where}: keys {list(a)} and {list(b)}")
        for key in a.keys() & b.keys():
            compare(a[key], b[key], f"{where}.{key}", found)
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            found.append(f"{where}: {len(a)} and {len(b)} entries")
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            compare(x, y, f"{where}[{index}]", found)
    elif type(a) is not type(b) or (a != b and not (a != a and b != b)):
        found.append(f"{where}: {a!r} and {b!r}")


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def trainer_for(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """A quiet Trainer on one CPU."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def footprint(
    make_module: Callable[[], pl.LightningModule],
    make_loader: Callable[[], Any],
    monitors: Sequence[pl.Callback] = (),
    *,
    val: Callable[[], Any] | None = None,
    attributes: Callable[[pl.LightningModule], Any] = lambda module: None,
    ckpt_path: str | None = None,
    **options: Any,
) -> Footprint:
    """Train once from fixed seeds and remember everything."""
    seed_all(3)
    module, loader, watch, logger = make_module(), make_loader(), Watch(), MemoryLogger()
    trainer = trainer_for(*monitors, watch, **{"max_epochs": 2, "logger": logger, **options})
    target = torch.compile(module, backend="eager") if getattr(module, "compiled", False) else module
    trainer.fit(target, loader, val() if val else None, ckpt_path=ckpt_path)  # type: ignore[arg-type]
    rows = [(step, {k: v for k, v in row.items() if not k.startswith("slt/")}) for step, row in logger.rows]
    return Footprint(
        weights={k: v.clone() for k, v in module.state_dict().items()},
        optimizers=[o.state_dict() for o in trainer.optimizers],
        schedulers=[c.scheduler.state_dict() for c in trainer.lr_scheduler_configs],
        python=random.getstate(),
        numpy=np.random.get_state(legacy=False),
        torch=torch.random.get_rng_state(),
        modes={name: part.training for name, part in module.named_modules()},
        watch=watch,
        logged=[(step, row) for step, row in rows if row],
        attributes=attributes(module),
        monitor_rows=[(step, row) for step, row in logger.rows if any(k.startswith("slt/") for k in row)],
    )


class Shuffled(Dataset[Any]):
    """Random augmentation from every generator there is, and from one of the data set's own."""

    def __init__(self) -> None:
        self.inner = blobs()
        self.rng = np.random.default_rng(0)
        self.calls = 0

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        self.calls += 1
        x, y = self.inner[index]
        jitter = self.rng.normal() + random.random() + np.random.rand() + float(torch.rand(()))
        return x + 0.1 * jitter, y


def loader_of(dataset: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(dataset, **{"batch_size": 8, "shuffle": True, **options})


def blob_loader() -> Any:
    return loader_of(blobs())


def assert_untouched(
    make_module: Any,
    make_loader: Any = blob_loader,
    *,
    monitor: LLCMonitor | None = None,
    readings: int = 3,
    **options: Any,
) -> tuple[Footprint, Footprint]:
    """Train without and with a monitor, compare, and give both."""
    without = footprint(make_module, make_loader, **options)
    watched = footprint(make_module, make_loader, [monitor or few_draws()], **options)
    assert len(watched.monitor_rows) >= readings
    assert without.differences(watched) == []
    return without, watched


class WithDropoutAndBatchNorm(Classifier):
    def __init__(self) -> None:
        super().__init__(dropout_and_batchnorm())


class BlobData(pl.LightningDataModule):
    def __init__(self, count: int = 32) -> None:
        super().__init__()
        self.count = count

    def train_dataloader(self) -> Any:
        return loader_of(blobs(self.count))
