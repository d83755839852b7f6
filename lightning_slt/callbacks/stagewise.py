"""Follows the influence between groups over the readings of a monitor, and says when it turns or peaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_slt.analysis.stagewise import Event, InfluenceCurves
from lightning_slt.callbacks.stages import StageMonitor
from lightning_slt.callbacks.surroundings import record
from lightning_slt.records import Reading
from lightning_slt.reporting.stagewise import events_table, stagewise_figure
from lightning_slt.reporting.tensorboard import write_figure, write_text

MOST_TAGS = 64
"""Pairs of groups up to which each has scalars of its own."""

FEWEST = 3
"""Readings from which on there is a picture at the end."""


class InfluenceFollower:
    """Curves of all pairs of groups, and the events in them that were told.

    An event that was told stays told: what later readings show beside it is told in addition.

    Args:
        name: The monitor's.
        component: Whose.
        key: Of the estimates.
        significance: Standard errors that an event stands out by.
        tables: Whether events are tabulated in TensorBoard.
        pictures: Whether curves are drawn there.
    """

    def __init__(
        self, name: str, component: str, key: str, *, significance: float, tables: bool = True, pictures: bool = True
    ) -> None:
        """Nothing heard yet."""
        self.tables, self.pictures = tables, pictures
        self.name, self.component, self.key, self.significance = name, component, key, significance
        self.tag = f"{name}/{component}/{key}"
        self.names: tuple[str, ...] = ()
        self._rows: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self.told: list[Event] = []

    @property
    def curves(self) -> InfluenceCurves | None:
        """What was heard so far; None for nothing."""
        if not self._rows:
            return None
        steps = sorted(self._rows)
        values, stderr, between = (torch.stack([self._rows[step][part] for step in steps]) for part in range(3))
        return InfluenceCurves(
            steps=torch.tensor(steps), values=values, stderr=stderr, between=between, names=self.names
        )

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Take one reading of the monitor in, log its groups, and tell what is new."""
        result = reading.estimates.get(self.component, {}).get(self.key)
        if result is None or result.group_influence is None:
            return
        self.names = tuple(f"{a} → {b}" for a in result.train_groups for b in result.query_groups)
        parts = result.group_influence, result.group_stderr, result.group_between
        self._rows[reading.step] = tuple(part.double().flatten().clone() for part in parts)
        if len(self.names) <= MOST_TAGS:
            tags = [f"{self.tag}/{a}/{b}" for a in result.train_groups for b in result.query_groups]
            values = dict(zip(tags, result.group_influence.flatten().tolist(), strict=True))
            for logger in trainer.loggers:
                logger.log_metrics(values, reading.step)
        curves = self.curves
        assert curves is not None
        known = {(e.kind, e.name, e.first, e.last) for e in self.told}
        found = curves.events(significance=self.significance)
        news = [e for e in found if (e.kind, e.name, e.first, e.last) not in known]
        self.told += news
        for e in news:
            text, known_at = f"influence of {e}", reading.step
            record(
                trainer, self.name, kind=e.kind, step=e.step, known_at=known_at, quantity=e.name, text=text,
                table=self.tables and e is news[-1],
            )  # fmt: skip
        if news:
            rank_zero_info("\n".join(f"{self.name} at step {reading.step}: influence of {e}" for e in news))
            self._tabulate(trainer, self.told, reading.step)

    def finish(self, trainer: pl.Trainer) -> None:
        """Draw all curves with the events, and the stages where another callback has found some."""
        curves = self.curves
        if curves is None or len(curves.steps) < FEWEST:
            return
        found, step = curves.events(significance=self.significance), int(curves.steps[-1])
        title = f"{self.name}: influence between groups over training, {self.component}"
        draw = partial(stagewise_figure, curves, found, title=title, boundaries=_boundaries(trainer))
        self._tabulate(trainer, found, step)
        if self.pictures:
            write_figure(trainer.loggers, f"{self.tag}/over training", draw, step)

    def _tabulate(self, trainer: pl.Trainer, events: Sequence[Event], step: int) -> None:
        if self.tables:
            write_text(trainer.loggers, f"{self.tag}/events", events_table(events), step)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors."""
        rows = {step: list(parts) for step, parts in self._rows.items()}
        return {"names": list(self.names), "rows": rows, "told": [list(event) for event in self.told]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.names = tuple(state["names"])
        self._rows = {int(step): tuple(parts) for step, parts in state["rows"].items()}
        self.told = [Event(*event) for event in state["told"]]


def _boundaries(trainer: pl.Trainer) -> list[float]:
    """Steps of the boundaries that stage monitors of the same Trainer have found."""
    monitors = [c for c in trainer.callbacks if isinstance(c, StageMonitor)]  # type: ignore[attr-defined]
    return [b.step for monitor in monitors for tag in monitor.quantities for b in monitor.report(tag).boundaries]
