"""InfluenceMonitor: influence of training samples on queries, and of groups on groups, over a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_slt.analysis.stagewise import SIGNIFICANCE, Event
from lightning_slt.callbacks.checks import explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.callbacks.stagewise import InfluenceFollower
from lightning_slt.components import Component
from lightning_slt.estimators import BayesianInfluence
from lightning_slt.estimators.influence import Scale, Tokens
from lightning_slt.plan import OnFailure
from lightning_slt.records import Reading
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn, is_amount


class InfluenceMonitor(SLTMonitor):
    """Influence of training samples on queries over a run: ``Trainer(callbacks=[InfluenceMonitor(train=…, query=…)])``.

    Where both sides have groups, by labels or as given, the influence between these is followed over the run: flips of
    its sign and peaks are told as they show, and drawn at the end (arXiv:2510.12071).

    Args:
        train: Whose influence: a Probe, or anything that a Probe takes.
        query: On whose losses.
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
        scale: "covariance" or "response", see :class:`lightning_slt.estimators.BayesianInfluence`.
        tokens: What becomes of losses per token, see there.
        train_groups: Groups of the training samples or tokens, see there; None takes the labels of the probe.
        query_groups: The same of the queries.
        significance: Standard errors that a flip or a peak of the influence between groups stands out by.

    >>> InfluenceMonitor(train=[0, 1, 2], query=[3], every_n_train_steps=200).name
    'slt'
    """

    @explained
    def __init__(
        self,
        *,
        train: Any,
        query: Any,
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
        scale: Scale = "covariance",
        tokens: Tokens = "sum",
        train_groups: Tensor | Sequence[int] | None = None,
        query_groups: Tensor | Sequence[int] | None = None,
        significance: float = SIGNIFICANCE,
    ) -> None:
        """Ask for influences alone."""
        if not (is_amount(significance) and significance > 0):
            raise ValueError(f"significance must be a positive number of standard errors, got {significance!r}")
        estimator = BayesianInfluence(
            train=train,
            query=query,
            scale=scale,
            tokens=tokens,
            train_groups=train_groups,
            query_groups=query_groups,
        )
        super().__init__(
            [estimator],
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
        self.scale, self.tokens = scale, tokens
        self.train_groups, self.query_groups, self.significance = train_groups, query_groups, significance
        self._followers: dict[str, InfluenceFollower] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can be known to fail, and forget an earlier fit."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not trainer.global_step:
            self._followers = {}

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Follow the influence between groups in its own readings."""
        if reading.name == self.name:
            for component in reading.estimates:
                self._follower(component).hear(trainer, reading)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what waits, then draw the influence between groups."""
        super().on_train_end(trainer, pl_module)
        for follower in self._followers.values():
            follower.finish(trainer)

    @property
    def events(self) -> list[Event]:
        """Flips and peaks that were told so far."""
        return [event for follower in self._followers.values() for event in follower.told]

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only."""
        followed = {component: follower.state_dict() for component, follower in self._followers.items()}
        return {**super().state_dict(), "followed": followed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "followed"})
        self._followers = {}
        for component, state in state_dict.get("followed", {}).items():
            self._follower(component).load_state_dict(state)

    def _follower(self, component: str) -> InfluenceFollower:
        mine = InfluenceFollower(
            self.name, component, self.estimators[0].name,
            significance=self.significance, tables=self.tables, pictures=self.pictures,
        )  # fmt: skip
        return self._followers.setdefault(component, mine)
