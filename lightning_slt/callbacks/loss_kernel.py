"""LossKernelMonitor: the loss kernel of a probe over a run, and how far it has come."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_slt.analysis.comparison import cka, kernel_features
from lightning_slt.assignment import divide
from lightning_slt.callbacks.checks import explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.components import Component
from lightning_slt.estimators import KernelEstimate, LossKernel
from lightning_slt.gram import compressed, trace_factor
from lightning_slt.plan import OnFailure
from lightning_slt.records import Reading
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn


class LossKernelMonitor(SLTMonitor):
    """The loss kernel of a probe over a training run: ``Trainer(callbacks=[LossKernelMonitor(probe=held_out)])``.

    Beside what a kernel logs there is, for stages and alerts, how far it has come since the first reading and since the
    last one, ``<name>/<component>/loss_kernel/distance`` and ``…/change``: 1 − centred alignment, with ``…_stderr``.
    Noise alone makes both larger than zero, the more the fewer independent draws there are.

    Args:
        probe: A Probe, or anything that a Probe takes.
        sampler: See :class:`SLTMonitor`, here and below.
        nbeta: Effective inverse temperature nβ.
        localization: Strength γ of the pull towards the anchor.
        sampling: Counts of chains and draws.
        components: What moves.
        data: Samples to draw minibatches from.
        loss_fn: Loss of a batch.
        every_n_train_steps: Optimizer steps between readings.
        every_n_epochs: Epochs between readings.
        train_time_interval: Time between readings.
        at_steps: Explicit steps.
        at_checkpoints: Also at every checkpoint.
        at_end: Also when the fit ends.
        max_overhead: Largest share of reading time over training time.
        name: First part of all tags.
        on_failure: "warn" or "raise".
        snapshots: Save the anchors.
        offload: Keep what a reading does not need in the host's memory while it is made.
        pictures: Figures in TensorBoard, here and below.
        tables: Tables on its text page.
        embeddings: Maps of samples in its projector.
        hparams: Settings against final values on its HPARAMS page.
        layout: Charts on its custom-scalars page.
        traces: Keep the losses of all draws in the records.
        sprites: Pictures of the samples, see :class:`lightning_slt.estimators.LossKernel`.

    >>> LossKernelMonitor(probe=[0, 1, 2], every_n_train_steps=200).name
    'slt'
    """

    @explained
    def __init__(
        self,
        *,
        probe: Any,
        sampler: Sampler | None = None,
        nbeta: float | None = None,
        localization: float | None = None,
        sampling: SamplingConfig | None = None,
        components: str | Mapping[str, Component] | None = None,
        data: Any = None,
        loss_fn: LossFn | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        train_time_interval: timedelta | None = None,
        at_steps: Sequence[int] | LogSteps | None = None,
        at_checkpoints: bool = False,
        at_end: bool = False,
        max_overhead: float | None = None,
        name: str = "slt",
        on_failure: OnFailure = "warn",
        snapshots: bool = False,
        offload: bool = False,
        pictures: bool = True,
        tables: bool = True,
        embeddings: bool = True,
        hparams: bool = True,
        layout: bool = True,
        traces: bool = False,
        sprites: Tensor | None = None,
    ) -> None:
        """Ask for the loss kernel alone."""
        super().__init__(
            [LossKernel(probe, traces=traces, sprites=sprites)],
            sampler=sampler,
            nbeta=nbeta,
            localization=localization,
            sampling=sampling,
            components=components,
            data=data,
            loss_fn=loss_fn,
            every_n_train_steps=every_n_train_steps,
            every_n_epochs=every_n_epochs,
            train_time_interval=train_time_interval,
            at_steps=at_steps,
            at_checkpoints=at_checkpoints,
            at_end=at_end,
            max_overhead=max_overhead,
            name=name,
            on_failure=on_failure,
            snapshots=snapshots,
            offload=offload,
            pictures=pictures,
            tables=tables,
            embeddings=embeddings,
            hparams=hparams,
            layout=layout,
        )
        self.probe, self.traces, self.sprites = probe, traces, sprites
        self._kept: dict[str, list[Tensor]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can be known to fail, and forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self._kept = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the derived numbers stand in ``callback_metrics`` from the start, then read."""
        for tag in self._derived_tags(pl_module):
            trainer.callback_metrics.setdefault(tag, torch.tensor(math.nan))
        super().on_train_start(trainer, pl_module)

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Measure how far the kernels of its own readings have come."""
        if reading.name != self.name:
            return
        key = self.estimators[0].name
        for component, found in reading.estimates.items():
            if isinstance(kernel := found.get(key), KernelEstimate) and len(kernel.traces):
                self._follow(trainer, f"{self.name}/{component}/{key}", component, kernel, reading.step)

    def _follow(self, trainer: pl.Trainer, tag: str, component: str, kernel: KernelEstimate, step: int) -> None:
        now = compressed(kernel_features(kernel.factor), kernel.rank)
        chains = [kernel_features(trace_factor(kernel.traces[c : c + 1])) for c in range(len(kernel.traces))]
        first, last = self._kept.get(component, [now, now])
        values = {}
        for name, before in (("distance", first), ("change", last)) if component in self._kept else ():
            apart = torch.tensor([1 - cka(before.double(), chain) for chain in chains], dtype=torch.float64)
            values[f"{tag}/{name}"] = 1 - cka(before.double(), now)
            values[f"{tag}/{name}_stderr"] = float(apart.std()) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
        self._kept[component] = [first, now]
        for logger in trainer.loggers if values else ():
            logger.log_metrics(values, step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only."""
        return {**super().state_dict(), "kernels": {name: list(kept) for name, kept in self._kept.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "kernels"})
        self._kept = {name: list(kept) for name, kept in state_dict.get("kernels", {}).items()}

    def _tags(self, module: pl.LightningModule) -> list[str]:
        return [*super()._tags(module), *self._derived_tags(module)]

    def _derived_tags(self, module: pl.LightningModule) -> list[str]:
        columns = divide(module, self.components, self.estimators).columns
        where = [f"{self.name}/{component}/{key}" for key, components in columns.items() for component in components]
        return [f"{place}/{name}" for place in where for name in ("distance", "change")]
