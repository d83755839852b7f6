"""Monitors from YAML and from the command line of LightningCLI."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI
from models import BlobData, Classifier

import lightning_slt as slt

CONFIG = """
trainer:
  accelerator: cpu
  max_epochs: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
  callbacks:
    - class_path: lightning_slt.LLCMonitor
      init_args:
        sampler:
          class_path: lightning_slt.SGLD
          init_args: {step_size: 1.0e-4}
        nbeta: 20
        localization: 50.0
        sampling: {num_chains: 3, num_draws: 5, num_burnin: 0, batch_size: 8, chain_method: sequential}
        at_steps: [1, 3]
        train_time_interval: "1:00:00"
        name: yaml
        tables: false
    - class_path: lightning_slt.SLTMonitor
      init_args:
        estimators:
          - class_path: lightning_slt.LLC
            init_args: {traces: true}
        at_steps: {class_path: lightning_slt.LogSteps, init_args: {first: 1, last: 4, count: 3}}
        sampling: {num_chains: 2, num_draws: 4, num_burnin: 1}
        name: other
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_command_line(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    Path("config.yaml").write_text(CONFIG)
    seed = "--seed_everything=1"
    plus = [
        "--trainer.callbacks+=LLCMonitor",
        "--trainer.callbacks.every_n_epochs=1",
        "--trainer.callbacks.sampling.num_draws=4",
    ]
    cli = LightningCLI(
        Classifier, BlobData, args=["fit", seed, "--config=config.yaml", *plus], save_config_callback=None
    )
    assert "class_path: lightning_slt.SGLD" in cli.parser.dump(cli.config)
    given, other, added = (c for c in cli.trainer.callbacks if isinstance(c, slt.SLTMonitor))
    assert given.sampler == slt.SGLD(step_size=1e-4)
    assert given.sampling.num_chains == 3
    assert (given.tables, given.pictures, other.tables) == (False, True, True)
    assert given.train_time_interval == timedelta(hours=1)
    assert other.at_steps == slt.LogSteps(1, 4, 3)
    assert other.estimators[0].traces
    assert (added.name, added.every_n_epochs, added.sampling.num_draws) == ("slt", 1, 4)
    steps = {n: [r.step for r in slt.load_records(elsewhere, name=n)] for n in ("yaml", "other", "slt")}
    assert steps == {"yaml": [0, 1, 3], "other": [0, 1, 2, 4], "slt": [0, 4]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_budget_from_the_command_line(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only parsed: what a budget leaves of so short a run depends on the clock."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    args = ["--trainer.accelerator=cpu", "--trainer.callbacks=LLCMonitor", "--trainer.callbacks.max_overhead=0.25"]
    cli = LightningCLI(Classifier, BlobData, args=args, run=False, save_config_callback=None)
    assert [c.max_overhead for c in cli.trainer.callbacks if isinstance(c, slt.SLTMonitor)] == [0.25]
