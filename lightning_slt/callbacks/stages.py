"""StageMonitor: finds developmental stages in the readings of other monitors, while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slt.analysis.announcing import Alarm, Alert, Announcement, Follower
from lightning_slt.analysis.stages import Boundary, Detector, Mark, Stage, stages
from lightning_slt.callbacks.checks import check_name, explained
from lightning_slt.callbacks.monitor import SLTMonitor
from lightning_slt.callbacks.pacing import Pace
from lightning_slt.callbacks.quantities import check_quantity, owner, row_of
from lightning_slt.callbacks.surroundings import keep_stages, record, record_dir, tabulate_events
from lightning_slt.records import Reading
from lightning_slt.reporting.stages import event_scalars, reservations, stages_figure, stages_table
from lightning_slt.reporting.tensorboard import write_figure, write_text


class StageBoundary(NamedTuple):
    """A boundary as it is announced.

    Attributes:
        quantity: In which it was found.
        number: Which one of that quantity, from 1.
        step: Middle or end of the plateau, in optimizer steps.
        earliest: Where the plateau begins.
        latest: Where it ends.
        announced: Step of the reading that settled it.
        delay: Readings after the boundary up to that one.
        prominence: By how many standard errors the plateau stands out from the slopes beside it.
    """

    quantity: str
    number: int
    step: float
    earliest: float
    latest: float
    announced: int
    delay: int
    prominence: float


class StageAlert(NamedTuple):
    """A quantity moves beyond its error while the loss does not.

    Attributes:
        quantity: Which.
        alert: Over which steps, and by how much.
    """

    quantity: str
    alert: Alert


class StageReport(NamedTuple):
    """Stages of one quantity as they are known now.

    Attributes:
        boundaries: In the order of steps.
        announced: Those of them that were announced while the run went on, in that order.
        stages: Between them.
        alerts: So far.
    """

    boundaries: list[Boundary]
    announced: list[Announcement]
    stages: list[Stage]
    alerts: list[Alert]


@runtime_checkable
class FollowsStages(Protocol):
    """A callback that hears of announced boundaries, such as :class:`StageCheckpoint`."""

    def stage_announced(self, trainer: pl.Trainer, boundary: StageBoundary) -> None:
        """On every process, right after the announcement."""
        ...


class StageMonitor(Callback):
    r"""Watches numbers that other monitors log, and tells where one stage of development ends and another begins.

    A boundary is a plateau of the curve against log t that stands out from the slopes on both sides
    (:class:`lightning_slt.analysis.stages.Detector`). It is announced once later readings support it, and never taken
    back; the report at the end adds what only all readings together show. Boundaries go to all loggers under
    ``<name>/<quantity>/…`` with a table and a picture, and to ``on_boundary``, :class:`StageCheckpoint` and
    :class:`StageStopping`.

    Args:
        quantity: Tag of an estimate with an error, ``<monitor>/<component>/<key>``, or of any scalar that a monitor of
            the same Trainer logs, ``<monitor>/<component>/<key>/<field>``; several in a list.
        bandwidth: Of the smoothing, in log t; plateaus much shorter are not seen.
        z: Standard errors by which a plateau must stand out on both sides.
        depth: Largest slope of a plateau, as a share of the lower slope beside it.
        mark: The step of a boundary: "middle" of the plateau, or its "end", where the next stage begins.
        confirm: Readings in a row at which a boundary must be found before it is announced.
        alert_level: Probability of one false alert or more in a whole run, shared by all quantities, where nothing
            moves; None for no alerts.
        alert_window: Readings over which a quantity must move while the loss does not.
        loss_tolerance: Change of the loss over that window, in nats, that counts as none.
        skip_unreliable: Leave readings out that failed a health check; otherwise they are counted and told.
        adaptive: Let the monitors leave out every second scheduled reading while nothing moves, and make as many extra
            ones, at most, between others while something moves.
        on_boundary: Called with (trainer, module, :class:`StageBoundary`).
        on_alert: Called with (trainer, module, :class:`StageAlert`).
        pictures: Log a picture at each announcement and at the end.
        tables: Log stages, boundaries and alerts as a table then.
        name: First part of the tags; two of them need two names.

    Raises:
        ValueError: For settings that cannot be.

    >>> StageMonitor("slt/full/llc").state_key
    'stages'
    """

    @explained
    def __init__(
        self,
        quantity: str | Sequence[str] = "slt/full/llc",
        *,
        bandwidth: float = 0.35,
        z: float = 3.0,
        depth: float = 0.5,
        mark: Mark = "middle",
        confirm: int = 2,
        alert_level: float | None = 0.05,
        alert_window: int = 6,
        loss_tolerance: float = 0.0,
        skip_unreliable: bool = False,
        adaptive: bool = False,
        on_boundary: Callable[[pl.Trainer, pl.LightningModule, StageBoundary], Any] | None = None,
        on_alert: Callable[[pl.Trainer, pl.LightningModule, StageAlert], Any] | None = None,
        pictures: bool = True,
        tables: bool = True,
        name: str = "stages",
    ) -> None:
        """Store and check the arguments."""
        super().__init__()
        self.quantity = quantity
        self.bandwidth, self.z, self.depth, self.mark, self.confirm = bandwidth, z, depth, mark, confirm
        self.alert_level, self.alert_window, self.loss_tolerance = alert_level, alert_window, loss_tolerance
        self.skip_unreliable, self.adaptive, self.pictures = skip_unreliable, adaptive, pictures
        self.on_boundary, self.on_alert, self.tables, self.name = on_boundary, on_alert, tables, name
        check_name(name)
        if isinstance(confirm, bool) or not isinstance(confirm, int) or confirm < 1:
            raise ValueError(
                f"confirm must be a whole number of readings from 1, got {confirm!r}; write e.g. confirm=2"
            )
        self.quantities = (quantity,) if isinstance(quantity, str) else tuple(quantity)
        if not self.quantities or len(set(self.quantities)) < len(self.quantities):
            raise ValueError(f"quantity must be one tag or several different ones, got {quantity!r}")
        self._followers = {tag: self._follower() for tag in self.quantities}
        self._owners: dict[str, str] = {}
        self._paces: dict[str, Pace] = {}

    @property
    def state_key(self) -> str:
        """The callback's name."""
        return self.name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a quantity that never comes; forget an earlier fit by another Trainer."""
        if stage != "fit":
            return
        monitors = [c for c in trainer.callbacks if isinstance(c, SLTMonitor)]  # type: ignore[attr-defined]
        names, tags = [m.name for m in monitors], [tag for m in monitors for tag in m._tags(pl_module)]
        self._owners = {quantity: check_quantity(quantity, names, tags) for quantity in self.quantities}
        if sum(isinstance(c, StageMonitor) and c.name == self.name for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(f"two StageMonitors are called {self.name!r}; give one another name=")
        if not trainer.global_step:
            self._followers = {tag: self._follower() for tag in self.quantities}
            self._paces = {}

    def hear(self, trainer: pl.Trainer, reading: Reading) -> None:
        """Take a reading in, and tell what it makes known."""
        owners = self._owners or {tag: owner(tag, [reading.name]) or "" for tag in self.quantities}
        mine = [tag for tag in self.quantities if owners[tag] == reading.name]
        for quantity in mine:
            self._take(trainer, quantity, reading)
        if self.adaptive and mine and reading.revises is None:  # a fit to all readings so far
            moving = any(self._followers[tag].moving(z=self.z) for tag in mine)
            self._paces.setdefault(reading.name, Pace()).heard(reading.global_step, moving=moving)

    def pace(self, trainer: pl.Trainer, name: str, *, step: int, due: bool) -> bool:
        """Where it is adaptive, whether a monitor that it follows reads now."""
        followed = self.adaptive and name in self._owners.values()
        return self._paces.setdefault(name, Pace()).decide(step, due=due) if followed else due

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report what all readings together show."""
        for quantity, follower in self._followers.items():
            if follower.rows:
                self._show(trainer, quantity, trainer.global_step, final=True)
        folder = record_dir(trainer)
        if self.tables and trainer.is_global_zero:
            tabulate_events(trainer, folder, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        """Plain values only."""
        return {
            "followers": {tag: follower.state_dict() for tag, follower in self._followers.items()},
            "paces": {name: pace.state_dict() for name, pace in self._paces.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was saved; quantities that are new start empty."""
        for tag, state in state_dict["followers"].items():
            if tag in self._followers:
                self._followers[tag].load_state_dict(state)
        self._paces = {name: Pace(**state) for name, state in state_dict["paces"].items()}

    def report(self, quantity: str | None = None, *, final: bool = True) -> StageReport:
        """Stages of one quantity as they are known now.

        Args:
            quantity: One of those that are watched; None for the first.
            final: Also boundaries that were not announced, but that all readings so far show.

        Raises:
            ValueError: For a quantity that is not watched.
        """
        tag = self.quantities[0] if quantity is None else quantity
        if tag not in self._followers:
            raise ValueError(f"{tag!r} is not watched; this callback watches {', '.join(self.quantities)}")
        follower = self._followers[tag]
        boundaries = follower.boundaries(final=final)
        steps, rests = [b.step for b in boundaries], [b.middle for b in boundaries]
        between = stages(follower.series, steps, rests=rests, bandwidth=self.bandwidth, z=self.z)
        return StageReport(boundaries, list(follower.announced), between, list(follower.alerts))

    def table(self, quantity: str | None = None, *, final: bool = True) -> str:
        """The same as Markdown."""
        tag = self.quantities[0] if quantity is None else quantity
        found = self.report(tag, final=final)
        follower = self._followers[tag]
        notes = reservations(follower.series, failed=sum(not row.reliable for row in follower.rows.values()))
        return stages_table(found.stages, found.boundaries, announced=found.announced, alerts=found.alerts, notes=notes)

    def stage_tables(self) -> dict[str, str]:
        """The same of every quantity that has readings; none where tables are not wanted."""
        return {tag: self.table(tag) for tag, follower in self._followers.items() if self.tables and follower.rows}

    def figure(self, quantity: str | None = None, *, final: bool = True, title: str = "") -> Any:
        """The same as a matplotlib figure."""
        tag = self.quantities[0] if quantity is None else quantity
        found = self.report(tag, final=final)
        return stages_figure(
            self._followers[tag].series, found.stages, alerts=found.alerts, bandwidth=self.bandwidth, quantity=tag,
            title=title,
        )  # fmt: skip

    def _follower(self) -> Follower:
        share = len(self.quantities)
        alarm = None
        if self.alert_level is not None:
            alarm = Alarm(window=self.alert_window, level=self.alert_level / share, loss_tolerance=self.loss_tolerance)
        detector = Detector(bandwidth=self.bandwidth, z=self.z, depth=self.depth, mark=self.mark)
        return Follower(detector=detector, alarm=alarm, skip_unreliable=self.skip_unreliable, confirm=self.confirm)

    def _take(self, trainer: pl.Trainer, quantity: str, reading: Reading) -> None:
        follower = self._followers[quantity]
        before = len(follower.announced)
        announced, alerts = follower.take(row_of(reading, quantity, trainer.callback_metrics))
        values = event_scalars(f"{self.name}/{quantity}", announced, alerts, len(follower.announced))
        self._log(trainer, values, reading.step)
        for number, news in enumerate(announced, before + 1):
            b = news.boundary
            event = StageBoundary(quantity, number, b.step, b.earliest, b.latest, news.step, news.delay, b.prominence)
            text = (
                f"{quantity} came to rest around step {b.step:.0f} ({b.earliest:.0f} to {b.latest:.0f}), "
                f"known at step {news.step}, {news.delay} readings later"
            )
            rank_zero_info(f"{self.name}: {text}")
            record(
                trainer, self.name, kind="boundary", step=b.step, known_at=news.step, quantity=quantity, text=text,
                table=self.tables,
            )  # fmt: skip
            self._spread(trainer, event)
        for alert in alerts:
            text = (
                f"between steps {alert.start} and {alert.step} {quantity} has changed by {alert.change:+.3g} "
                f"(t = {alert.score:.1f}) while the loss has not ({alert.loss_change:+.2g} nats)"
            )
            rank_zero_warn(f"{self.name}: {text}")
            record(
                trainer, self.name, kind="alert", step=alert.step, known_at=alert.step, quantity=quantity, text=text,
                table=self.tables,
            )  # fmt: skip
            if self.on_alert is not None:
                self.on_alert(trainer, trainer.lightning_module, StageAlert(quantity, alert))
        if announced or alerts:
            self._show(trainer, quantity, reading.step, final=False)

    def _spread(self, trainer: pl.Trainer, event: StageBoundary) -> None:
        if self.on_boundary is not None:
            self.on_boundary(trainer, trainer.lightning_module, event)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FollowsStages):
                callback.stage_announced(trainer, event)

    def _log(self, trainer: pl.Trainer, values: Mapping[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(dict(values), step)
        trainer.callback_metrics.update({tag: torch.tensor(value) for tag, value in values.items()})

    def _show(self, trainer: pl.Trainer, quantity: str, step: int, *, final: bool) -> None:
        tag = f"{self.name}/{quantity}"
        keep_stages(trainer, self.name, quantity, known_at=step, stages=self.report(quantity, final=final).stages)
        if self.tables:
            write_text(trainer.loggers, f"{tag}/table", self.table(quantity, final=final), step)
        if self.pictures:
            title = f"stages by step {step}"
            write_figure(
                trainer.loggers, f"{tag}/curve", partial(self.figure, quantity, final=final, title=title), step
            )
