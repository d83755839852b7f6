"""CompressibilityMonitor: critical compression beside λ̂ over a run, and how the two go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slt.analysis.compression import FEWEST, Correlated, correlate, values_of
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.components import Component
from lightning_slt.estimators import LLC
from lightning_slt.estimators.base import Estimator
from lightning_slt.estimators.compressibility import CLIPS, Compressibility, SchemeName
from lightning_slt.plan import OnFailure
from lightning_slt.records import Reading
from lightning_slt.reporting.compression import correlation_figure, correlation_table
from lightning_slt.reporting.tensorboard import write_figure, write_text
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn


class CompressibilityMonitor(SLTMonitor):
    """How far the network can be compressed, over a training run: ``Trainer(callbacks=[CompressibilityMonitor()])``.

    Every reading logs ``<name>/full/compressibility/bits_0.02`` and the like, and λ̂ of the same weights beside them.
    When the fit ends, their correlations stand in a table and a picture: plain, given the loss, and of the loss alone.

    Args:
        schemes: Of "quantization", "factorization", "noise", "pruning" and "heads".
        tolerances: By how much the loss may rise, in nats.
        quantity: Tag of the λ̂ of another monitor to correlate with, such as ``"slt/full/llc"``; this one then runs no
            chains. It needs readings at the same steps. None for this monitor's own.
        num_samples: Losses on so many samples, chosen at random once; None for all.
        clips: See :class:`lightning_slt.Compressibility`, here and below.
        per_tensor: A range of the grid for each tensor.
        num_noise: Noises to average over.
        exhaustive: Look at every setting of a dial.
        int8: Also the rise of the loss in torch's own int8 format.
        sampler: See :class:`SLTMonitor`, here and below.
        nbeta: Effective inverse temperature nβ: the larger, the smaller the tolerance that λ̂ answers to.
        localization: Strength γ of the pull towards the anchor.
        sampling: Counts of chains and draws.
        components: What moves, and what is compressed; None for all weights, and all with two axes or more.
        data: Samples to draw minibatches from, and to evaluate on.
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
        pictures: Figures in TensorBoard, here and below.
        tables: Tables on its text page.
        embeddings: Maps of samples in its projector.
        hparams: Settings against final values on its HPARAMS page.
        layout: Charts on its custom-scalars page.

    >>> [e.name for e in CompressibilityMonitor(tolerances=(0.02,), every_n_train_steps=200).estimators]
    ['compressibility', 'llc']
    """

    def __init__(
        self,
        *,
        schemes: Sequence[SchemeName] = ("quantization", "factorization", "noise", "pruning"),
        tolerances: Sequence[float] = (0.02, 0.05, 0.1),
        quantity: str | None = None,
        num_samples: int | None = 1024,
        clips: Sequence[float] = CLIPS,
        per_tensor: bool = False,
        num_noise: int = 8,
        exhaustive: bool = False,
        int8: bool = False,
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
        pictures: bool = True,
        tables: bool = True,
        embeddings: bool = True,
        hparams: bool = True,
        layout: bool = True,
    ) -> None:
        """Ask for critical compression, and for λ̂ where no other monitor has it."""
        compressibility = Compressibility(
            schemes=schemes, tolerances=tolerances, components=components, num_samples=num_samples, clips=clips,
            per_tensor=per_tensor, num_noise=num_noise, exhaustive=exhaustive, int8=int8,
        )  # fmt: skip
        estimators: list[Estimator] = [compressibility]
        super().__init__(
            estimators if quantity is not None else [*estimators, LLC()],
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
            pictures=pictures,
            tables=tables,
            embeddings=embeddings,
            hparams=hparams,
            layout=layout,
        )
        self.schemes, self.tolerances, self.quantity, self.num_samples = schemes, tolerances, quantity, num_samples
        self.clips, self.per_tensor, self.num_noise = clips, per_tensor, num_noise
        self.exhaustive, self.int8 = exhaustive, int8
        self.heard: dict[int, dict[str, float]] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """A fit from its start knows of no readings yet."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self.heard = {}

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Note critical numbers of this monitor, and λ̂ of this or another; readings made again replace the earlier."""
        wanted = f"{self.name}/" if self.quantity is None else f"{self.quantity.removesuffix('/mean')}/"
        mine = f"{self.name}/full/compressibility/"
        values = {tag: v for tag, v in values_of(reading).items() if tag.startswith((wanted, mine))}
        if values:
            self.heard.setdefault(reading.step, {}).update(values)

    def correlations(self) -> list[Correlated]:
        """How λ̂ of each component goes together with each critical number; where there are enough readings so far."""
        numbers = [f for f in self.estimators[0].fields if f not in ("loss", "int8")]
        tags = {tag for row in self.heard.values() for tag in row}
        known = [tag for f in numbers if (tag := f"{self.name}/full/compressibility/{f}") in tags]
        llcs = sorted(tag for tag in tags if tag.endswith("/llc/mean" if self.quantity is None else "/mean"))
        found = [correlate(self.heard, number=tag, quantity=llc) for llc in llcs for tag in known]
        return [c for c in found if len(c.steps) >= FEWEST]

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell the correlations, once all monitors have made their last readings."""
        super().on_fit_end(trainer, pl_module)
        found = self.correlations()
        if found:
            self._tell(trainer, found)
        elif self.quantity is not None and len(self.heard) >= FEWEST:
            known = sum(any(tag.endswith("/mean") for tag in row) for row in self.heard.values())
            rank_zero_warn(
                f"{self.name}: of its {len(self.heard)} readings, {known} have a value of {self.quantity!r} at the "
                f"same step; correlations need {FEWEST} with critical numbers. Give both monitors the same schedule"
            )

    def _tell(self, trainer: pl.Trainer, found: Sequence[Correlated]) -> None:
        table, first, step = correlation_table(found), found[0], int(found[0].steps[-1])
        title = (
            f"{self.name}: λ̂ of {first.quantity} and {first.number.rpartition('/')[2]} over {len(first.steps)} readings"
        )
        rank_zero_info(f"{title}\n{table}")
        draw = partial(correlation_figure, first, title=title)
        if self.tables:
            write_text(trainer.loggers, f"{self.name}/compressibility", table, step)
        if self.pictures:
            write_figure(trainer.loggers, f"{self.name}/compressibility", draw, step)
        if any(c.collinear for c in found):
            rank_zero_warn(
                f"{self.name}: the loss explains {first.explained:.0%} of the variance of λ̂ over these readings, so "
                "that its correlation with compressibility may be the loss's; a larger nbeta looks more closely"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain values: the monitor's, and what was heard."""
        heard = {step: dict(row) for step, row in self.heard.items()}
        return {**super().state_dict(), **({"heard": heard} if heard else {})}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        rest = dict(state_dict)
        self.heard = {step: dict(row) for step, row in rest.pop("heard", {}).items()}
        super().load_state_dict(rest)
