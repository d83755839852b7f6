"""The command line: ``lightning-slt analyze CHECKPOINTS --config FILE``, ``compare RUN_A RUN_B``, ``report RUN``."""

from __future__ import annotations

import argparse
import inspect
import pydoc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_slt.boundary import describe
from lightning_slt.callbacks.analysis import Analysis, follows_readings
from lightning_slt.callbacks.offline import ProcessDiedError, run
from lightning_slt.callbacks.outlook import outlook
from lightning_slt.comparing import compare
from lightning_slt.tab.report import DETAILED, SIZE, write_report

CONFIG = """model:
  class_path: my_package.MyModule      # a class, or a function that returns a module
  init_args: {width: 128}
data:                                  # a LightningDataModule, or what makes a Dataset or DataLoader
  class_path: my_package.MyData
callbacks:
  - class_path: lightning_slt.LLCMonitor
    init_args:
      loss_fn: lightning_slt.losses.next_token       # where the module has no training_step
"""


ERRORS = (ValueError, TypeError, FileNotFoundError, ImportError, MisconfigurationException, ProcessDiedError)
"""What says in words what is wrong with what was given."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments; None for those of the process.

    Returns:
        The exit status: 0, 1 where checkpoints could not be read, 2 where something is wrong with what was given.
    """
    parser = argparse.ArgumentParser(prog="lightning-slt", description="Singular learning theory on saved runs.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_analyze(commands)
    _add_compare(commands)
    _add_report(commands)
    options = parser.parse_args(argv)
    try:
        status: int = options.run(options) or 0
    except ERRORS as error:
        print(f"lightning-slt {options.command}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return status


def _add_analyze(commands: Any) -> None:
    command = commands.add_parser(
        "analyze",
        help="read saved checkpoints with the same monitors as live",
        description="Reads every checkpoint of a run with the monitors of a configuration, and writes the same records "
        "and TensorBoard logs as live. Stopped, it goes on where it was. The status is 1 where checkpoints could not "
        "be read.",
        epilog="A configuration, or the config.yaml that LightningCLI saved with the run:\n\n" + CONFIG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("checkpoints", nargs="+", type=Path, help="folder of checkpoints or revisions, or files")
    command.add_argument("--config", type=Path, required=True, help="YAML with model, data and callbacks")
    command.add_argument("--out", type=Path, default=Path("slt_analysis"), help="folder of records and logs")
    command.add_argument("--steps", help="only these: 0:143000:1000 is first:last:stride, several with commas")
    command.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th of them")
    command.add_argument("--last", type=int, metavar="N", help="only the last N of these")
    command.add_argument("--dry-run", action="store_true", help="list what would be read, and how long that takes")
    command.add_argument("--device", default="cpu", help="where to run, such as cuda")
    command.add_argument("--devices", type=int, default=1, metavar="N", help="processes that share the checkpoints")
    command.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    command.set_defaults(run=_analyze)


def _analyze(options: argparse.Namespace) -> int:
    chosen = {"run_dir": options.out, "steps": options.steps, "every": options.every, "last": options.last}
    if options.dry_run:
        print(outlook(options.checkpoints, devices=options.devices, **chosen))  # noqa: T201
        return 0
    with _importable():
        module, data, callbacks = read_config(options.config)
        analysis = Analysis(
            module.to(options.device),
            options.checkpoints,
            callbacks,
            data=_training_data(data),
            precision=options.precision,
            **chosen,
        )
        run(analysis, devices=options.devices)
    broken = analysis.ledger.broken
    for path, reason in broken.items():
        print(f"not read: {path}: {reason}", file=sys.stderr)  # noqa: T201
    print(f"{len(analysis.readings)} readings in {options.out}; tensorboard --logdir {options.out}")  # noqa: T201
    return 1 if broken else 0


def _add_compare(commands: Any) -> None:
    command = commands.add_parser(
        "compare",
        help="two runs side by side: LLCs, kernels, response matrices, trajectories",
        description="Compares what was recorded of two runs, with errors, nulls, and what seeds alone would make.",
    )
    command.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="folder of a run's logs")
    command.add_argument(
        "--baseline", nargs="+", type=Path, default=[], metavar="RUN", help="others of the first's kind"
    )
    command.add_argument("--step", type=int, help="the readings at this step, or the last before; else the last")
    command.add_argument("--samples", type=int, help="n of the free energy; else what was sampled on")
    command.add_argument("--out", type=Path, help="write the report there, and its picture beside it")
    command.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    first, second = options.runs
    names = (first.name, second.name) if first.name != second.name else (str(first), str(second))
    found = compare(
        first, second, baseline=options.baseline, names=names, step=options.step, num_samples=options.samples
    )
    print(found)  # noqa: T201
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(str(found))
        if find_spec("matplotlib") is not None:
            found.plot().savefig(options.out.with_suffix(".png"))


def _add_report(commands: Any) -> None:
    command = commands.add_parser(
        "report",
        help="the views of the TensorBoard tab as one HTML file",
        description="Writes one self-contained HTML file with the views of the TensorBoard tab, to be kept or sent.",
    )
    command.add_argument("run_dir", type=Path, help="folder of a run's logs, or any folder above several")
    command.add_argument("--out", type=Path, default=Path("report.html"), help="the file")
    command.add_argument(
        "--details", type=int, default=DETAILED, help="readings of each monitor with kernels, health and the like"
    )
    command.add_argument(
        "--megabytes", type=float, default=SIZE, help="size of the file up to which such details are added"
    )
    command.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    found = write_report(options.run_dir, options.out, details=options.details, megabytes=options.megabytes)
    runs, size = f"{len(found.runs)} {'run' if len(found.runs) == 1 else 'runs'}", options.out.stat().st_size / 1e6
    told = f"{options.out}: {runs}, {size:.1f} MB, {found.readings} readings, details of {found.detailed}"
    full = f"; those of {found.left_out} more do not fit into {options.megabytes:g} MB (--megabytes)"
    print(told + full * bool(found.left_out))  # noqa: T201


def read_config(path: Path) -> tuple[nn.Module, Any, list[Callback]]:
    """Model, data and callbacks of a YAML file, in its own form or in the one that LightningCLI saves.

    Args:
        path: The file.

    Returns:
        The module, the data as configured or None, and those callbacks that have to do with readings.

    Raises:
        ImportError: Without jsonargparse.
        FileNotFoundError: If there is no such file.
        ValueError: If a part is missing or cannot be built.
    """
    try:
        from jsonargparse import ArgumentError, ArgumentParser
    except ImportError as error:
        raise ImportError("configurations need jsonargparse; pip install lightning_slt[cli]") from error
    import yaml  # type: ignore[import-untyped]

    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected YAML such as\n{CONFIG}")
    try:
        given = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no plain YAML: {error}") from error
    if not isinstance(given, dict) or "model" not in given:
        raise ValueError(f"{path} has no model; expected YAML such as\n{CONFIG}")
    trainer = given.get("trainer") or {}
    parts = {
        "model": given["model"],
        "data": given.get("data"),
        "callbacks": given.get("callbacks") or trainer.get("callbacks") or [],
    }
    parser = ArgumentParser(exit_on_error=False)
    with _importable():
        parser.add_argument("--model", type=Any if _is_function(given["model"]) else nn.Module)
        parser.add_argument("--data", type=Any)
        parser.add_argument("--callbacks", type=list[Callback])
        try:
            config = parser.parse_object({k: v for k, v in parts.items() if v is not None})
            built = getattr(parser, "instantiate", parser.instantiate_classes)(config)  # the older name before 4.49
        except ArgumentError as error:
            raise ValueError(f"{path}: {error}") from error
    if not isinstance(built.model, nn.Module):
        raise ValueError(f"{path}: the model is {describe(built.model)}, expected a module, or what returns one")
    callbacks: list[Callback] = built.callbacks or []
    return built.model, built.data, [c for c in callbacks if follows_readings(c)]


def _is_function(model: Any) -> bool:
    """Whether a model is made by a function; one without annotations is taken, too."""
    with suppress(pydoc.ErrorDuringImport):  # the parser tells of it
        return isinstance(model, dict) and inspect.isroutine(pydoc.locate(str(model.get("class_path"))))
    return False


@contextmanager
def _importable() -> Iterator[None]:
    """Find classes beside the data, as ``python -m`` does; other processes look in the same places."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _training_data(data: Any) -> Any:
    """The training set of a LightningDataModule; anything else as it is."""
    if not isinstance(data, pl.LightningDataModule):
        return data
    data.prepare_data()
    data.setup("fit")
    return data.train_dataloader()
