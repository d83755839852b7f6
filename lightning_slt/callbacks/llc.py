"""LLCMonitor: the local learning coefficient, with the keywords of SLTMonitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from lightning_slt.callbacks.checks import explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.components import Component
from lightning_slt.estimators import LLC
from lightning_slt.plan import OnFailure
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn


class LLCMonitor(SLTMonitor):
    """The local learning coefficient over a training run: ``Trainer(callbacks=[LLCMonitor()])``.

    Args:
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
        traces: Keep whole loss traces in the records.
        diagnostics: Log all that health measures, see :class:`lightning_slt.estimators.LLC`.
        control: Run the chains once more at nβ = 0, at twice the cost, see :class:`lightning_slt.estimators.LLC`.

    >>> LLCMonitor(every_n_train_steps=200).name
    'slt'
    """

    @explained
    def __init__(
        self,
        *,
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
        diagnostics: bool = False,
        control: bool = False,
    ) -> None:
        """Ask for the LLC alone."""
        super().__init__(
            [LLC(traces=traces, diagnostics=diagnostics, control=control)],
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
        self.traces, self.diagnostics, self.control = traces, diagnostics, control
