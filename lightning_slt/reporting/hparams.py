"""TensorBoard's HPARAMS page: the settings of a run's monitors against the values that it ended with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.hparams.metadata import PLUGIN_NAME
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

FOLDER = "slt_hparams"
"""Below the run's own folder: TensorBoard keeps the first set of hyperparameters of a folder, which is the user's."""

FINAL = "final"
"""First part of the tags of final values, so that no curve of the run gets a point of another one."""

COUNTS = ("nbeta", "localization", "num_chains", "num_draws", "num_burnin", "thinning", "batch_size")


def write_hparams(
    loggers: Sequence[Logger], settings: Mapping[str, Mapping[str, Any]], values: Mapping[str, float], step: int
) -> None:
    """Add a row to the HPARAMS page: ``<monitor>/<setting>`` against ``final/<tag>``.

    What the run has logged as its own hyperparameters stands in the same row; where it logged them with metrics, as
    Lightning does by default, there is no row: TensorBoard shows the columns of the first run that names metrics, and
    ours would stand among them empty. A row that an earlier part of a resumed run has left is replaced.

    Args:
        loggers: The Trainer's.
        settings: ``{monitor: settings of its last reading}``.
        values: What the run ended with, by tag.
        step: Of these values.
    """
    for logger in loggers:
        if not isinstance(logger, TensorBoardLogger) or "://" in logger.log_dir:
            continue
        logger.experiment.flush()
        run = Path(logger.log_dir)
        if _names_metrics(run):
            continue
        for old in (run / FOLDER).glob("events.out.tfevents.*"):
            old.unlink()
        shown = {f"{name}/{key}": value for name, given in settings.items() for key, value in _chosen(given).items()}
        _, start, end = hparams({**_flat(dict(logger.hparams)), **shown}, {})  # type: ignore[no-untyped-call]
        with SummaryWriter(str(run / FOLDER)) as writer:
            for tag, value in values.items():
                writer.add_scalar(f"{FINAL}/{tag}", value, step)
            for summary in (start, end):
                writer.file_writer.add_summary(summary, step)


def _chosen(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sampler with its constants, and counts; not what was measured on the way."""
    sampler = {key: value for key, value in settings.items() if key.partition(".")[0] == "sampler"}
    return _flat({**sampler, **{key: settings[key] for key in COUNTS if key in settings}})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers and texts, as TensorBoard takes them; mappings within by ``outer/inner``, as Lightning writes them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}/")
        elif value is not None:
            plain = isinstance(value, bool | int | float | str)
            flat[f"{prefix}{key}"] = value if plain else float(value) if isinstance(value, Real) else str(value)
    return flat


def _names_metrics(run: Path) -> bool:
    """Whether a run has hyperparameters with metrics in its own folder, which are logged before the first step."""
    for file in run.glob("events.out.tfevents.*"):
        for event in EventFileLoader(str(file)).Load():
            if any(value.metadata.plugin_data.plugin_name == PLUGIN_NAME for value in event.summary.value):
                return True
            if event.step > 0:
                break
    return False
