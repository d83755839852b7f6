"""One monitor's work during one fit: which settings its readings have, what they cost, and what is said of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from lightning_slt.assignment import result_keys
from lightning_slt.boundary import warn_user
from lightning_slt.calibration import Settings
from lightning_slt.callbacks.budget import Budget, Cost
from lightning_slt.callbacks.complaints import Complaints
from lightning_slt.callbacks.history import History
from lightning_slt.callbacks.interruptions import Interruptions
from lightning_slt.callbacks.journal import Journal
from lightning_slt.callbacks.listening import tell
from lightning_slt.callbacks.peers import Peers
from lightning_slt.callbacks.replay import is_replay, recall_of
from lightning_slt.callbacks.resume import changes, freeze, thaw
from lightning_slt.callbacks.surroundings import evaluation_context, mover, steps_of_run
from lightning_slt.offload import has_memory_of_its_own, training_state
from lightning_slt.plan import FailedReadingError, OnFailure, report_failures
from lightning_slt.reading import Anchor, Reader, Request
from lightning_slt.reporting.advice import Verdicts, worthless
from lightning_slt.reporting.pictures import Shown
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.running import Results
from lightning_slt.standing import InterruptedReadingError

WORTH_TELLING = 2.0
"""Seconds of a reading from which its cost is told."""

MEANINGFUL = 0.05
"""Share of a fit after which reading time over training time says something."""


class _Look(NamedTuple):
    """Settings of a reading, and the seconds that it took to measure the curvature for them."""

    settings: Settings
    seconds: float


def reader_of(
    trainer: pl.Trainer, module: pl.LightningModule, name: str, request: Request, source: Any, *, offload: bool = False
) -> Reader:
    """What makes a monitor's readings as the Trainer evaluates; ``source`` None is the Trainer's own training set."""
    return Reader(
        request,
        module,
        trainer.train_dataloader if source is None else source,
        to_device=mover(trainer, module),
        context=evaluation_context(trainer),
        recall=recall_of(trainer, name),
        unneeded=(lambda: training_state(module, getattr(trainer, "optimizers", ()))) if offload else tuple,
    )


class LiveReadings:
    """Makes the readings of one fit.

    Args:
        trainer: The Trainer.
        module: Its LightningModule.
        name: The monitor's.
        request: What to estimate and how.
        source: Data; None for the Trainer's own training set.
        budget: What readings may cost.
        on_failure: Whether a failed reading raises.
        snapshots: Whether to save the anchors.
        offload: Whether what a reading does not need waits in the host's memory.
        shown: What TensorBoard gets beside scalars.
        log_dir: Where records go; None for nowhere.
    """

    def __init__(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        *,
        name: str,
        request: Request,
        source: Any,
        budget: Budget,
        on_failure: OnFailure,
        snapshots: bool,
        offload: bool,
        shown: Shown,
        log_dir: str | None,
    ) -> None:
        """Prepare the readings; raises where nothing can be read."""
        self.trainer, self.name, self.budget, self.on_failure = trainer, name, budget, on_failure
        self._began_at, self._length = trainer.global_step, steps_of_run(trainer)
        self.peers = Peers(trainer)
        if offload and not has_memory_of_its_own(next(module.parameters()).device):
            rank_zero_info(f"{name}: offload=True moves nothing here: the weights are in the host's memory already")
        self.reader = reader_of(trainer, module, name, request, source, offload=offload)
        self.keys = result_keys(self.reader.work)
        self.verdicts, self.complaints = Verdicts(request.estimators, name), Complaints()
        self.interruptions = Interruptions()
        self.history = History(on_host=offload)
        self.journal = Journal(
            trainer, name, keys=self.keys, data=self.reader.data, log_dir=log_dir, snapshots=snapshots, shown=shown
        )

    @property
    def index(self) -> int:
        """How many readings there were."""
        return self.journal.index

    def set_aside(self, step: int) -> Anchor:
        """Copy the present weights for a reading now or later."""
        with self.budget.charged():
            return self.reader.set_aside(
                step=step, global_step=self.trainer.global_step, epoch=self.trainer.current_epoch
            )

    def prepare(self, anchor: Anchor) -> None:
        """Calibrate and, where the budget needs it, predict what a reading will cost."""
        began = self.budget.clock()
        self.peers.share_buffers(anchor.module_loss)
        chains, steps = None, 1
        if self.reader.has_chains:
            self.reader.settings = settings = self.peers.agree_on(self.reader.calibrate(anchor))
            chains, steps = self.peers.share_of(settings.sampling.num_chains), settings.num_steps
        measuring = self.budget.clock() - began
        if self.budget.share is not None and self.budget.cost is None:
            setup, per_step = self.reader.predict_cost(anchor, chains)
            self.budget.cost = Cost(measuring=measuring, setup=setup, per_step=per_step, steps=steps)
        if self.budget.share is not None:
            self.journal.open()
        if (sets := len(self.reader.work.sets)) > 1:
            components = len(self.reader.work.components)
            rank_zero_info(
                f"{self.name}: {components} components, so a reading runs {sets} sets of "
                f"{self.reader.calibrated.sampling.num_chains} chains with {steps} steps each, "
                f"and costs {sets} times as much as one of the whole network"
            )

    def affords(self) -> bool:
        """Whether the budget affords a reading: rank 0's answer, on every rank."""
        return self.budget.share is None or self.peers.from_first(self.budget.affords())

    def read(self, anchor: Anchor, *, must_work: bool = False, on_credit: bool = False, may_wait: bool = False) -> bool:
        """Make one reading, and before it those that it shows to be needed.

        Args:
            anchor: What to read.
            must_work: Every error raises, as before the first training step.
            on_credit: Whatever it costs.
            may_wait: Where the run seems to have outgrown its settings, wait for the next reading to confirm it.

        Returns:
            Whether it was made, flagged or put off, rather than left out because the curvature makes it too dear, or
            the process is to end.
        """
        if self._ends() or not self._read_owed():
            return False
        look = self._look(anchor)
        outgrown = look is not None and not self.history.settled and self.reader.outgrown(look.settings)
        if outgrown and may_wait and self.history.held is None:
            self.history.held = anchor
            return True
        if look is not None and outgrown and self._pays_for(len(self.history.readings) + 2):
            if not self._renew(look.settings, anchor.step):
                return False
            look = look._replace(settings=self.peers.agree_on(self.reader.settings_at(anchor)))
        held = self.history.release()
        if held is not None and not self._read(held, on_credit=True):
            self.history.held = held
            return False
        return self._read(anchor, look, must_work=must_work, on_credit=on_credit)

    def _ends(self) -> bool:
        """Whether the process is to end, so that no reading begins."""
        return self.peers.from_first(bool(getattr(self.trainer, "received_sigterm", False)))

    def _look(self, anchor: Anchor) -> _Look | None:
        """Measure an anchor's curvature; None where user code fails there, which the reading meets and tells of."""
        if not self.reader.has_chains:
            return None
        began = self.budget.clock()
        try:
            with self.peers.together(), self.budget.charged():
                self.peers.share_buffers(anchor.module_loss)
                settings = self.peers.agree_on(self.reader.settings_at(anchor))
                return _Look(settings, self.budget.clock() - began)
        except Exception:
            return None

    def _pays_for(self, readings: int) -> bool:
        cost = self.budget.cost
        return cost is None or self.peers.from_first(self.budget.can_pay(readings * cost.whole))

    def _renew(self, outgrown: Settings, step: int) -> bool:
        """Go on with a larger γ, and read again what was read with the smaller one; whether that was done."""
        old = self.reader.calibrated.localization
        self.reader.renew(outgrown)
        lost = self.history.lost
        self.history.owe()
        rest = f"; the first {lost}, no longer in memory, are not comparable with the rest" if lost else ""
        rank_zero_info(
            f"{self.name}: by step {step} the curvature has outgrown the settings of this run (κ = "
            f"{outgrown.condition:.3g}). localization is now {self.reader.calibrated.localization:.4g} in place of "
            f"{old:.4g}, and the {len(self.history.owed)} earlier readings are made again with it{rest}. "
            "Write localization= to fix it from the start"
        )
        return self._read_owed()

    def adopt(self, found: Settings) -> None:
        """Go on with settings that were found elsewhere, for good, and read again what was read with others."""
        self.reader.adopt(found)
        self.history.owe()
        self.history.settled = True
        self._read_owed()

    def _read_owed(self) -> bool:
        """Read again what is owed; whether all was made: what a signal keeps from it comes before the next reading."""
        while self.history.owed:
            kept = self.history.owed[0]
            if not self._read(kept.back(), on_credit=True, revises=kept.number):
                return False
            del self.history.owed[0]
        return True

    def _read(
        self,
        anchor: Anchor,
        look: _Look | None = None,
        *,
        must_work: bool = False,
        on_credit: bool = False,
        revises: int | None = None,
    ) -> bool:
        """One reading, logged and recorded. Errors are flagged unless the user wants them raised."""
        began = self.budget.clock() - (0.0 if look is None else look.seconds)
        settings: Settings | None = None
        results: dict[str, Results] = {}
        failure: str | None = None
        with self.budget.charged():
            try:
                settings, results = self._try(anchor, look, on_credit)
            except InterruptedReadingError as error:
                rank_zero_info(f"{self.name}: the reading at step {anchor.step} is given up, as {error} came")
                return False
            except Exception as error:  # any error of user code: training must go on
                if must_work or self.on_failure == "raise":
                    raise
                failure = f"{type(error).__name__}: {error}"
                self.complaints.tell(f"{self.name}: the reading at step {anchor.step} failed: {failure}")
        if failure is None and not results:
            return False
        bad = worthless(results, exact=settings is not None and settings.sampler.full_batch)
        duration = self.budget.clock() - began
        with self.budget.charged():
            number = self.index
            overhead = self.peers.from_first(self._overhead())
            reading = self.journal.enter(
                anchor, settings, results, failure, duration=duration, overhead=overhead, bad=bad, revises=revises
            )
            tell(self.trainer, reading, complain=None if self.on_failure == "raise" else self.complaints.tell)
            if self.reader.renewable:
                self.history.keep(anchor, number)  # last: its weights may be out of reach from here on
        if failure is None:
            self.budget.learn(self.budget.clock() - began)
        if self.index == 1 and self.budget.share is None and not is_replay(self.trainer):
            self._tell_the_cost(duration)
        self._speak(anchor.step, results, bad)
        return True

    def _tell_the_cost(self, seconds: float) -> None:
        if seconds >= WORTH_TELLING:
            rank_zero_info(
                f"{self.name}: the first reading took {seconds:.3g} s. Later ones cost as much or more where the "
                "curvature grows; max_overhead=0.1 keeps them to a tenth of the training time, and "
                "sampling=SamplingConfig(num_chains=4, num_draws=100) makes each a quarter as long"
            )

    def _try(self, anchor: Anchor, look: _Look | None, on_credit: bool) -> tuple[Settings | None, dict[str, Results]]:
        """All processes come to the end of a reading together, or all give it up; no results where it is too dear."""
        with self.peers.together():
            if not self.reader.has_chains:
                self.peers.share_buffers(anchor.module_loss)
                return None, self.reader.read(anchor, None)
            if look is None:
                began = self.budget.clock()
                self.peers.share_buffers(anchor.module_loss)
                settings = self.peers.agree_on(self.reader.settings_at(anchor))
                look = _Look(settings, self.budget.clock() - began)
            settings = look.settings
            payable = self.budget.plan(measuring=look.seconds, steps=settings.num_steps)
            if self.budget.share is not None and not (self.peers.from_first(payable) or on_credit):
                return settings, {}
            chains = self.peers.share_of(settings.sampling.num_chains)
            total, counts = self.reader.chain_steps(settings, chains), settings.sampling
            amount = f"{counts.num_chains * self.reader.work.passes} chains × {counts.num_draws} draws"
            with reading_progress(self.trainer, f"{self.name} at step {anchor.step}: {amount}", total) as show:
                on_step = self.interruptions.checked(show)
                return settings, self.reader.read(
                    anchor, settings, chains=chains, reduce=self.peers.add_up, on_step=on_step
                )

    def _speak(self, step: int, results: Mapping[str, Results], bad: Mapping[str, str]) -> None:
        """Tell the user what is wrong with a reading, or raise where that was asked for."""
        if (news := self.verdicts.take(step, results)) is not None and self.trainer.is_global_zero:
            warn_user(news)
        try:
            report_failures(results, None if self.on_failure == "raise" else self.complaints.tell)
            if bad and self.on_failure == "raise":
                raise FailedReadingError("; ".join(f"{where}: {why}" for where, why in bad.items()))
        except FailedReadingError as error:
            raise FailedReadingError(f"{self.name} at step {step}: {error}") from None

    def finish(self) -> None:
        """Read what was held back, at the settings that it asks for, and tell how the readings went."""
        held = self.history.release()
        if held is not None:
            self.read(held, on_credit=True)
        elif self.history.owed and not self._ends():
            self._read_owed()
        self._summarize()

    def _summarize(self) -> None:
        """Say at the end of a fit how many readings there were, how many of use, and why there were none."""
        if not self.trainer.is_global_zero:
            return
        if self.verdicts.readings:
            rank_zero_info(self.verdicts.summary())
            if self.journal.unrecorded:
                rank_zero_info(f"{self.name}: {self.journal.unrecorded} of {self.index} readings were not recorded")
        elif self.index == 0 and self.budget.cost is not None and self.budget.share is not None:
            seconds, training = self.budget.cost.whole, self.budget.training
            warn_user(
                f"{self.name}: no reading was made. One takes about {seconds:.3g} s after {self.budget.spent:.3g} s of "
                f"preparation, which at max_overhead={self.budget.share:g} needs "
                f"{(self.budget.spent + seconds) / self.budget.share:.3g} s of training; there were {training:.3g} s. "
                "Write at_end=True for a reading of the last weights whatever it costs, a larger max_overhead, "
                f"or fewer draws: sampling=SamplingConfig(num_draws={max(1, self.reader.sampling.num_draws // 4)})"
            )

    def _overhead(self) -> float:
        """NaN before 5 % of the fit; where its length is unknown, before its first step; for saved checkpoints."""
        if is_replay(self.trainer):
            return math.nan
        step = self.trainer.global_step
        known = math.isfinite(self._length)
        meaningful = step >= MEANINGFUL * self._length if known else step > self._began_at
        return self.budget.overhead if meaningful and step else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Plain values that let a resumed run go on with the same posterior."""
        return {
            **self.journal.state_dict(),
            "budget": self.budget.state_dict(),
            "settings": freeze(self.reader.settings),
            "settled": self.history.settled,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.journal.load_state_dict(state)
        self.budget.load_state_dict(state["budget"])
        self.reader.settings = thaw(state["settings"], self.reader)
        if (told := changes(state["settings"], self.reader.settings)) is not None:
            rank_zero_info(f"{self.name}: {told}")
        self.history.settled, self.history.lost = state["settled"], self.index
