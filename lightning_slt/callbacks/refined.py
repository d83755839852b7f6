"""Monitors of the parts of a network: refined LLCs and susceptibilities, with the keywords of SLTMonitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_slt.analysis.curves import Curves, Method, group, llc_curves
from lightning_slt.callbacks.checks import explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.components import Component
from lightning_slt.estimators import LLC, Susceptibility
from lightning_slt.estimators.susceptibility import Method as Estimation
from lightning_slt.plan import OnFailure
from lightning_slt.records import load_records
from lightning_slt.reporting.curves import groups_figure, groups_table
from lightning_slt.reporting.tensorboard import write_figure, write_text
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn

FEWEST = 3
"""Curves, and readings of each, from which on grouping them says something."""


class RefinedLLCMonitor(SLTMonitor):
    """LLCs of parts of a network, on parts of the data, or both: ``RefinedLLCMonitor(components="heads")``.

    Each component, on each data set, is a set of chains of its own, which moves that component and draws its
    minibatches from that data (arXiv:2410.02984). At the end of the fit the curves are grouped by how they developed.

    Args:
        components: What moves: "heads", "layers", a pattern or ``{name: Component}``; None for all weights.
        data: ``{name: dataset}``: one set of chains on each, tags ``<name>/<component>/llc/<data>/mean``; settings are
            found on the Trainer's training set. Anything else is the one data set of all chains, as in SLTMonitor.
        groups: Groups of curves at the end of the fit; None finds the number, 0 makes none.
        grouping: "kmeans" or "hierarchical", see :func:`lightning_slt.analysis.curves.group`.
        sampler: See :class:`SLTMonitor`, here and below.
        nbeta: Effective inverse temperature nβ.
        localization: Strength γ of the pull towards the anchor.
        sampling: Counts of chains and draws.
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

    Raises:
        ValueError: Without components and without named data, which would be an LLCMonitor; for names that cannot be.

    >>> [e.name for e in RefinedLLCMonitor(data={"bigrams": [0, 1], "induction": [2, 3]}).estimators]
    ['llc/bigrams', 'llc/induction']
    """

    @explained
    def __init__(
        self,
        *,
        components: str | Mapping[str, Component] | None = None,
        data: Any = None,
        groups: int | None = None,
        grouping: Method = "kmeans",
        sampler: Sampler | None = None,
        nbeta: float | None = None,
        localization: float | None = None,
        sampling: SamplingConfig | None = None,
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
        """Ask for an LLC on each data set."""
        named = isinstance(data, Mapping)
        if components is None and not named:
            raise ValueError(
                'nothing is refined: write RefinedLLCMonitor(components="heads"), "layers" or {name: Component}, or '
                "data={name: dataset}; the LLC of all weights on all data is slt.LLCMonitor()"
            )
        if named and not data:
            raise ValueError("data is an empty mapping; write data={'name': dataset}, or None for the training set")
        if grouping not in ("kmeans", "hierarchical"):
            raise ValueError(f"grouping must be 'kmeans' or 'hierarchical', got {grouping!r}")
        if groups is not None and (isinstance(groups, bool) or not isinstance(groups, int) or groups < 0):
            raise ValueError(f"groups must be a whole number, 0 for none, or None to be found, got {groups!r}")
        llc = LLC(traces=traces, diagnostics=diagnostics, control=control)
        super().__init__(
            [llc.on(part, name=key) for key, part in data.items()] if named else [llc],
            sampler=sampler,
            nbeta=nbeta,
            localization=localization,
            sampling=sampling,
            components=components,
            data=None if named else data,
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
        self.groups, self.grouping = groups, grouping
        self.traces, self.diagnostics, self.control = traces, diagnostics, control

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what waits, then group the curves."""
        live = self._live
        super().on_train_end(trainer, pl_module)
        if live is not None and live.index and live.journal.file is not None and self.groups != 0:
            readings = load_records(live.journal.file)
            if any(reading.estimates for reading in readings):
                self._tell_groups(trainer, llc_curves(readings))

    def _tell_groups(self, trainer: pl.Trainer, curves: Curves) -> None:
        readings = int(curves.values.isfinite().all(0).sum())
        if len(curves.names) < max(FEWEST, self.groups or 0) or readings < FEWEST:
            return
        found = group(curves.values, count=self.groups, method=self.grouping)
        table, step = groups_table(curves, found), int(curves.steps[-1])
        title = f"{self.name}: refined LLCs by how they developed, silhouette {found.silhouette:.2f}"
        rank_zero_info(f"{title}\n{table}")
        draw = partial(groups_figure, curves, found, title=title)
        if self.tables:
            write_text(trainer.loggers, f"{self.name}/groups", table, step)
        if self.pictures:
            write_figure(trainer.loggers, f"{self.name}/groups", draw, step)


class SusceptibilityMonitor(SLTMonitor):
    """Responses of components to samples and tokens over a run.

    ``SusceptibilityMonitor(components="heads", probes=[Probe(text, name="text")])`` logs the χ of each probe as
    ``<name>/<component>/susceptibility/<probe>/mean``, and the modes of the response matrix as table and picture.

    Args:
        components: What moves: "heads", "layers", a pattern or ``{name: Component}``.
        probes: One Probe or several, or anything that a Probe takes.
        method: "two_chain" or "restricted", see :class:`lightning_slt.estimators.Susceptibility`.
        control: Run all chains once more at nβ = 0, at twice the cost.
        sampler: See :class:`SLTMonitor`, here and below.
        nbeta: Effective inverse temperature nβ.
        localization: Strength γ of the pull towards the anchor.
        sampling: Counts of chains and draws.
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

    >>> SusceptibilityMonitor(components="layers", probes=[0, 1, 2], every_n_train_steps=200).name
    'slt'
    """

    @explained
    def __init__(
        self,
        *,
        components: str | Mapping[str, Component],
        probes: Any,
        method: Estimation = "two_chain",
        control: bool = False,
        sampler: Sampler | None = None,
        nbeta: float | None = None,
        localization: float | None = None,
        sampling: SamplingConfig | None = None,
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
    ) -> None:
        """Ask for the susceptibilities alone."""
        super().__init__(
            [Susceptibility(probes, method=method, control=control)],
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
        self.probes, self.method, self.control = probes, method, control
