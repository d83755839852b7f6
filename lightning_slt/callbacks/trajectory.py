"""A monitor that draws where the network goes, while it goes there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slt.analysis.forms import Form, forms, smoothed
from lightning_slt.analysis.trajectories import JointTrajectories, Rows, joint_trajectories, recorded_rows, speeds
from lightning_slt.callbacks.checks import explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.schedule import LogSteps
from lightning_slt.estimators.trajectory import OutputFn, Reference, Space, Trajectory
from lightning_slt.plan import OnFailure
from lightning_slt.records import Reading
from lightning_slt.reporting.tensorboard import write_figure, write_text
from lightning_slt.reporting.trajectories import forms_table, trajectory_figure
from lightning_slt.sampling import SamplingConfig
from lightning_slt.types import LossFn, is_amount

KEY = "trajectory"

EACH_UP_TO = 20
"""Readings of which every one is drawn; of more, every so many that there is about a tenth more to see."""


class TrajectoryMonitor(SLTMonitor):
    r"""Where the network goes in function space over a run: ``Trainer(callbacks=[TrajectoryMonitor(probe=held_out)])``.

    Every reading keeps the outputs on a fixed probe; no chains are run, so that a reading costs two forward passes over
    the probe, and sampler, nβ, γ and components have no place here. The first principal components of all readings so
    far are drawn as they come (arXiv:2501.17745), reference predictors as stars that take no part in finding them; at
    the end of the fit turns are listed that mark candidate forms. ``<name>/full/trajectory/speed`` is the root mean
    square distance moved since the reading before, per unit of log step.

    Args:
        probe: A Probe, or anything that a Probe takes; not needed for weights.
        space: "outputs", "losses" or "weights", see :class:`lightning_slt.Trajectory`, here and below.
        output_fn: ``output_fn(module, batch)`` → ``[sample, …]``.
        references: ``{name: function of a batch}``, predictors to compare with.
        size: Longest row that is kept as it is; longer ones are sketched.
        dtype: "float32" or "float16".
        axes: Principal components, at most.
        smoothing: Of the curve before its turns are looked for: standard deviation of a Gaussian, in readings.
        sampling: Its ``seed`` chooses the samples of a probe with ``num_samples``.
        data: See :class:`SLTMonitor`, here and below.
        loss_fn: Loss of a batch.
        every_n_train_steps: Optimizer steps between readings.
        every_n_epochs: Epochs between readings.
        train_time_interval: Time between readings.
        at_steps: Explicit steps; ``LogSteps(1, last, 40)`` suits trajectories.
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

    Raises:
        ValueError: For settings that cannot be.

    >>> TrajectoryMonitor(probe=[0, 1, 2], every_n_train_steps=200).name
    'trajectory'
    """

    @explained
    def __init__(
        self,
        *,
        probe: Any = None,
        space: Space = "outputs",
        output_fn: OutputFn | None = None,
        references: Mapping[str, Reference] | None = None,
        size: int = 16384,
        dtype: Literal["float32", "float16"] = "float32",
        axes: int = 3,
        smoothing: float = 1.0,
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
        name: str = "trajectory",
        on_failure: OnFailure = "warn",
        snapshots: bool = False,
        pictures: bool = True,
        tables: bool = True,
        embeddings: bool = True,
        hparams: bool = True,
        layout: bool = True,
    ) -> None:
        """Ask for the trajectory alone."""
        if isinstance(axes, bool) or not isinstance(axes, int) or axes < 1:
            raise ValueError(f"axes must be a whole number of at least 1, got {axes!r}")
        if not is_amount(smoothing):
            raise ValueError(f"smoothing must be a number of readings, zero or more, got {smoothing!r}")
        estimator = Trajectory(
            probe, space=space, output_fn=output_fn, references=references, size=size, dtype=dtype, name=KEY
        )
        super().__init__(
            [estimator],
            sampling=sampling,
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
        self.probe, self.space, self.output_fn, self.references = probe, space, output_fn, references
        self.size, self.dtype, self.axes, self.smoothing = size, dtype, axes, smoothing
        self._rows: Rows | None = None

    @property
    def rows(self) -> Rows | None:
        """What the readings of this run kept so far; None before the first."""
        return self._rows

    @property
    def joint(self) -> JointTrajectories | None:
        """The run in its own axes; None while there are fewer than three readings, or nothing has moved."""
        rows = self._rows
        if rows is None or len(rows.steps) < 3 or not bool(rows.values.diff(dim=0).any()):
            return None
        return joint_trajectories({self.name: rows}, axes=self.axes)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget an earlier fit by another Trainer."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not self._restored:
            self._rows = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let the speed stand in ``callback_metrics`` from the start, then read."""
        self._show_speed(trainer)
        super().on_train_start(trainer, pl_module)

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Take a reading of one's own in: its speed, and the picture."""
        if reading.name == self.name and KEY in reading.estimates.get("full", {}):
            new = recorded_rows([reading], key=KEY)
            if self._rows is not None and self._rows.made_of != new.made_of:
                before, now = (", ".join(rows.made_of) for rows in (self._rows, new))
                rank_zero_warn(f"{self.name}: the trajectory begins anew: its rows were {before}, and now are {now}")
            self._rows = _with(self._rows, new)
            self._show_speed(trainer, step=reading.step)
            if _worth_drawing(len(self._rows.steps)):
                self._draw(trainer, reading.step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read what waits, then list the turns."""
        super().on_train_end(trainer, pl_module)
        joint = self.joint
        if joint is None or not trainer.is_global_zero:
            return
        step, table = int(joint.steps[self.name][-1]), forms_table(joint, {self.name: self._forms(joint)})
        rank_zero_info(f"{self.name}: turns of the trajectory\n{table}")
        if self.tables:
            write_text(trainer.loggers, f"{self.name}/full/{KEY}/forms", table, step)
        self._draw(trainer, step)

    def state_dict(self) -> dict[str, Any]:
        """What the monitor needs to go on, and all rows so far."""
        state = super().state_dict()
        if self._rows is not None:
            rows = self._rows
            state["rows"] = {
                "steps": rows.steps,
                "values": rows.values,
                "references": dict(rows.references),
                "made_of": list(rows.made_of),
            }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the rows of the run's earlier part."""
        super().load_state_dict(state_dict)
        rows = state_dict.get("rows")
        self._rows = None if rows is None else Rows(**{**rows, "made_of": tuple(rows["made_of"])})

    def _tags(self, module: pl.LightningModule) -> list[str]:
        return [*super()._tags(module), f"{self.name}/full/{KEY}/speed"]

    def _show_speed(self, trainer: pl.Trainer, *, step: int | None = None) -> None:
        """The last speed that there is to callbacks, and that of a step to loggers."""
        tag = f"{self.name}/full/{KEY}/speed"
        found = (
            {} if self._rows is None else dict(zip(self._rows.steps.tolist(), speeds(self._rows).tolist(), strict=True))
        )
        known = [value for value in found.values() if math.isfinite(value)]
        trainer.callback_metrics[tag] = torch.tensor(known[-1] if known else math.nan)
        if step is not None and math.isfinite(found[step]):
            for logger in trainer.loggers:
                logger.log_metrics({tag: found[step]}, step)

    def _forms(self, joint: JointTrajectories) -> list[Form]:
        return forms(smoothed(joint.points[self.name], self.smoothing))

    def _draw(self, trainer: pl.Trainer, step: int) -> None:
        joint = self.joint if self.pictures else None
        if joint is None or not trainer.is_global_zero:
            return
        title = f"{self.name}: {len(joint.steps[self.name])} readings up to step {step}"
        draw = partial(trajectory_figure, joint, found={self.name: self._forms(joint)}, title=title)
        write_figure(trainer.loggers, f"{self.name}/full/{KEY}/axes", draw, step)


def _with(rows: Rows | None, new: Rows) -> Rows:
    """Rows with one more, in order of step; it replaces one of the same step, and all that were made otherwise."""
    if rows is None or rows.made_of != new.made_of:
        return new
    others = rows.steps != new.steps
    steps = torch.cat([rows.steps[others], new.steps])
    values = torch.cat([rows.values[others], new.values])
    order = steps.argsort()
    return Rows(steps=steps[order], values=values[order], references=new.references, made_of=new.made_of)


def _worth_drawing(count: int) -> bool:
    return count <= EACH_UP_TO or count % (count // 10) == 0
