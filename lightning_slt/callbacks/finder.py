"""SamplerFinder: a sweep over the sampler's settings during a fit, whose suggestion the monitors take up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_slt.boundary import check_loss_fn
from lightning_slt.callbacks.checks import check_strategy
from lightning_slt.callbacks.interruptions import Interruptions
from lightning_slt.callbacks.peers import Peers
from lightning_slt.callbacks.surroundings import evaluation_context, mover
from lightning_slt.components import Component
from lightning_slt.finding import Amounts, Calibration, grid_values
from lightning_slt.functional import derive_loss
from lightning_slt.reading import Reader, Request
from lightning_slt.reporting.progress import reading_progress
from lightning_slt.reporting.tensorboard import write_figure, write_text
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.standing import InterruptedReadingError
from lightning_slt.types import LossFn


class SamplerFinder(Callback):
    r"""Finds settings for the monitors of the same Trainer, in the manner of Lightning's ``LearningRateFinder``.

    At ``at_step`` it sweeps ε × nβ × γ around the present weights, all settings as one batch of chains (see
    :func:`lightning_slt.finding.calibrate`), logs table and picture, and sets every monitor that leaves sampler, nβ and
    γ open; readings that those have made already are made again. Where nothing can be suggested it says why, and the
    monitors keep their own settings. Training stays bit-identical.

    Curvature grows while a network starts to learn: choose a step at which it has learnt something, such as the end of
    the first epoch, or 0 where training goes on from trained weights.

    Args:
        at_step: Optimizer steps after which to look.
        sampler: Of which the step size is varied; None is SGLD.
        step_size: ε to try, one or several; None for a grid derived from the curvature.
        nbeta: nβ to try; None is (10, 30, 100).
        localization: γ to try; None is nβ λ_max over (3, 10, 30).
        sampling: Counts of every setting; as many steps of burn-in as are kept.
        components: What moves.
        data: None for the Trainer's own training set.
        loss_fn: ``loss_fn(module, batch)``; None derives it.
        name: First part of the tags of table and picture; two finders need two names.
        pictures: Log the picture.
        tables: Log the table.

    Attributes:
        calibration: What was found, once it was.

    Raises:
        ValueError: For a step or values that cannot be.

    >>> SamplerFinder(at_step=500).calibration is None
    True
    """

    def __init__(
        self,
        *,
        at_step: int = 0,
        sampler: Sampler | None = None,
        step_size: Amounts = None,
        nbeta: Amounts = None,
        localization: Amounts = None,
        sampling: SamplingConfig | None = None,
        components: str | Mapping[str, Component] | None = None,
        data: Any = None,
        loss_fn: LossFn | None = None,
        name: str = "finder",
        pictures: bool = True,
        tables: bool = True,
    ) -> None:
        """Store and check the arguments."""
        super().__init__()
        if isinstance(at_step, bool) or not isinstance(at_step, int) or at_step < 0:
            raise ValueError(f"at_step must be a whole number, zero or more, got {at_step!r}; write e.g. at_step=500")
        if loss_fn is not None:
            check_loss_fn(loss_fn)
        self.at_step, self.sampler, self.name = at_step, sampler, name
        self.pictures, self.tables = pictures, tables
        self.grids = grid_values(step_size=step_size, nbeta=nbeta, localization=localization)
        self.sampling, self.components, self.data, self.loss_fn = sampling, components, data, loss_fn
        self.calibration: Calibration | None = None
        self._done = False

    @property
    def state_key(self) -> str:
        """The finder's name."""
        return self.name

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what can be known to fail."""
        if stage == "fit":
            check_strategy(trainer)
            derive_loss(pl_module, self.loss_fn)
            self._done = self._done and trainer.global_step > 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the weights that training starts from, where these are asked for."""
        self.look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look once the step has come."""
        self.look(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Whether it has looked; the monitors carry what was found."""
        return {"done": self._done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Not to look again where a run resumes."""
        self._done = bool(state_dict["done"])

    def look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Sweep now, if the step has come and it was not done yet, and set the monitors that have begun."""
        if self._done or trainer.global_step < self.at_step or getattr(trainer, "fast_dev_run", False):
            return
        self._done, interruptions = True, Interruptions()
        with interruptions.held():
            try:
                self.calibration = self._search(trainer, module, interruptions)
            except InterruptedReadingError as error:
                rank_zero_info(f"{self.name}: the search at step {trainer.global_step} is given up, as {error} came")
                self._done = False
                return
        self._tell(trainer, self.calibration)
        if self.calibration.settings is not None:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if hasattr(callback, "adopt"):
                    callback.adopt(self.calibration.settings)

    def _search(self, trainer: pl.Trainer, module: pl.LightningModule, interruptions: Interruptions) -> Calibration:
        """The same on every rank; rank 0's result counts, as curvatures may differ in the last bit."""
        peers = Peers(trainer)
        request = Request(
            estimators=(),
            sampler=None,
            nbeta=None,
            localization=None,
            sampling=self.sampling or SamplingConfig(),
            components=self.components,
            loss_fn=self.loss_fn,
        )
        source = trainer.train_dataloader if self.data is None else self.data
        context = evaluation_context(trainer)
        with peers.together():
            reader = Reader(request, module, source, to_device=mover(trainer, module), context=context)
            step = trainer.global_step
            anchor = reader.set_aside(step=step, global_step=step, epoch=trainer.current_epoch)
            peers.share_buffers(anchor.module_loss)
            with reading_progress(trainer, f"{self.name} at step {step}", reader.search_steps(self.grids)) as show:
                on_step = interruptions.checked(show)
                found = reader.search(anchor, self.sampler or SGLD(step_size=1.0), self.grids, on_step)
        return peers.from_first(found)

    def _tell(self, trainer: pl.Trainer, found: Calibration) -> None:
        say = rank_zero_info if found.accepted else rank_zero_warn
        say(f"{self.name} at step {trainer.global_step}: {found}")
        if self.tables:
            write_text(trainer.loggers, f"{self.name}/sweep", f"{found}\n\n{found.table()}", trainer.global_step)
        if self.pictures:
            write_figure(trainer.loggers, f"{self.name}/sweep", found.plot, trainer.global_step)
