"""Runs that stop and go on: from a checkpoint in the middle of an epoch, after an error, with the same object."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import (
    Classifier,
    MemoryLogger,
    Validated,
    blobs,
    dropout_and_batchnorm,
    few_draws,
    footprint,
    loader_of,
    seed_all,
    trainer_for,
)

import lightning_slt as slt

pytestmark = [
    pytest.mark.usefixtures("elsewhere"),
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create the checkpoint"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def loader() -> Any:
    return loader_of(blobs())


def net() -> Classifier:
    return Classifier(dropout_and_batchnorm())


def saved(at: int) -> str:
    return str(next(Path("saved").glob(f"*step={at}.ckpt")))


def saving(every: int = 3) -> ModelCheckpoint:
    return ModelCheckpoint("saved", every_n_train_steps=every, save_top_k=-1)


@pytest.fixture
def checkpoint() -> str:
    """Step 3 of a monitored run, in the middle of its first epoch of four."""
    footprint(net, loader, [few_draws(), saving()])
    return saved(3)


def test_resumed_training_is_bit_identical(checkpoint: str) -> None:
    without = footprint(net, loader, ckpt_path=checkpoint)
    watched = footprint(net, loader, [few_draws()], ckpt_path=checkpoint)
    assert without.differences(watched) == []
    assert len(watched.monitor_rows) == 4


def test_monitor_goes_on_with_the_same_posterior(checkpoint: str, elsewhere: Path) -> None:
    """One reading where the run resumes, then as scheduled; index, nβ, γ and step size are those of before."""
    before = {r.step: r for r in slt.load_records(elsewhere)}
    assert list(before) == [0, 2, 4, 6, 8]
    seed_all(5)
    logger = MemoryLogger()
    monitor = few_draws()
    trainer = trainer_for(monitor, max_epochs=2, logger=logger, default_root_dir=elsewhere / "resumed")
    trainer.fit(net(), loader(), ckpt_path=checkpoint, weights_only=True)
    after = slt.load_records(elsewhere / "resumed")
    assert [r.step for r in after] == [3, 4, 6, 8] == logger.steps()
    assert [r.index for r in after] == [2, 3, 4, 5]
    for key in ("nbeta", "localization", "num_chains", "num_draws"):
        assert {r.settings[key] for r in after} == {before[0].settings[key]}
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["slt"]
    kept = monitor.state_dict()["settings"]
    same = ("nbeta", "localization", "sampler", "sampler_settings", "num_burnin")
    assert {k: kept[k] for k in same} == {k: state["settings"][k] for k in same}


def test_what_the_user_gives_now_wins(checkpoint: str, elsewhere: Path) -> None:
    monitor = few_draws(localization=17.0)
    trainer = trainer_for(monitor, max_epochs=2, default_root_dir=elsewhere / "resumed")
    trainer.fit(net(), loader(), ckpt_path=checkpoint)
    assert {r.settings["localization"] for r in slt.load_records(elsewhere / "resumed")} == {17.0}


def resumed(checkpoint: str, folder: Path, **monitor: Any) -> list[slt.Reading]:
    trainer_for(few_draws(**monitor), max_epochs=2, default_root_dir=folder).fit(net(), loader(), ckpt_path=checkpoint)
    return slt.load_records(folder)


def test_another_nbeta_keeps_the_resolution_and_says_so(
    checkpoint: str, elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was found for nβ = 30 becomes what would have been found at the same weights for nβ = 60."""
    caplog.set_level(logging.INFO)
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["slt"]["settings"]
    monitor = few_draws(nbeta=60.0)
    trainer_for(monitor, max_epochs=2, default_root_dir=elsewhere / "resumed").fit(
        net(), loader(), ckpt_path=checkpoint
    )
    for reading in slt.load_records(elsewhere / "resumed"):
        assert reading.settings["nbeta"] == 60.0
        assert reading.settings["localization"] == 2 * state["localization"]
        assert reading.settings["resolution"] == state["localization"] / state["nbeta"]
    now = monitor.state_dict()["settings"]
    assert now["sampler_settings"]["step_size"] == state["sampler_settings"]["step_size"] / 2
    assert now["num_burnin"] == state["num_burnin"]
    (told,) = [m for r in caplog.records if "goes on with" in (m := r.getMessage())]
    assert "slt: goes on with nbeta 30 → 60, localization" in told
    assert "which keeps the resolution γ/nβ" in told


def test_the_same_nbeta_says_nothing(checkpoint: str, elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    resumed(checkpoint, elsewhere / "resumed", nbeta=30.0)
    assert not [r for r in caplog.records if "goes on with" in r.getMessage()]


def test_a_localization_of_the_users_stays_at_another_nbeta(elsewhere: Path, caplog: pytest.LogCaptureFixture) -> None:
    footprint(net, loader, [few_draws(localization=20.0), saving()])
    caplog.set_level(logging.INFO)
    after = resumed(saved(3), elsewhere / "resumed", nbeta=60.0)
    assert {r.settings["localization"] for r in after} == {20.0}
    (told,) = [m for r in caplog.records if "goes on with" in (m := r.getMessage())]
    assert told.startswith("slt: goes on with nbeta 30 → 60; readings from here on are not comparable")


def test_a_reading_is_not_repeated_on_resume(elsewhere: Path) -> None:
    footprint(net, loader, [few_draws(), saving(every=2)])
    logger = MemoryLogger()
    trainer = trainer_for(few_draws(), max_epochs=2, logger=logger, default_root_dir=elsewhere / "resumed")
    trainer.fit(net(), loader(), ckpt_path=saved(2))
    assert logger.steps() == [4, 6, 8]
    assert [step for step, _ in logger.series("train/loss")] == [2, 3, 4, 5, 6, 7]


def test_resuming_in_the_same_folder_supersedes(elsewhere: Path) -> None:
    """What the first part read after the checkpoint is read again; the records hold each reading once."""
    footprint(net, loader, [few_draws(snapshots=True), saving()])
    first = {r.step: slt.load_anchor(r) for r in slt.load_records(elsewhere)}
    trainer_for(few_draws(snapshots=True), max_epochs=2).fit(net(), loader(), ckpt_path=saved(3))
    records = slt.load_records(elsewhere)
    assert [(r.index, r.step) for r in records] == [(0, 0), (1, 2), (2, 3), (3, 4), (4, 6), (5, 8)]
    assert all(torch.equal(first[2][name], w) for name, w in slt.load_anchor(records[1]).items())
    assert len(list((elsewhere / "slt_records").glob("*.jsonl"))) == 1


def test_resume_after_validation(elsewhere: Path) -> None:
    """Saved by validation in the middle of an epoch."""
    options = {"val": lambda: loader_of(blobs(8), shuffle=False), "val_check_interval": 2}
    checkpoint = ModelCheckpoint("saved", monitor="val/loss", save_top_k=-1, auto_insert_metric_name=False)
    footprint(Validated, loader, [few_draws(), checkpoint], **options)
    for file in sorted(Path("saved").glob("*.ckpt")):
        if torch.load(file, weights_only=True)["global_step"] != 2:
            continue
        without = footprint(Validated, loader, ckpt_path=str(file), **options)
        watched = footprint(Validated, loader, [few_draws()], ckpt_path=str(file), **options)
        assert without.differences(watched) == []
        assert [step for step, _ in watched.monitor_rows] == [4, 6, 8]
        return
    raise AssertionError("nothing was saved at step 2")


def test_state_is_plain(checkpoint: str) -> None:
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["slt"]

    def check(value: Any) -> None:
        if isinstance(value, dict):
            for inner in value.values():
                check(inner)
        elif isinstance(value, list):
            for inner in value:
                check(inner)
        else:
            assert type(value) in (int, float, str, bool, type(None))

    check(state)
    assert state["index"] == 2
    assert state["last_step"] == 2


def test_fit_again_with_more_epochs(elsewhere: Path) -> None:
    """The same Trainer goes on: same posterior, no reading twice."""
    seed_all(0)
    logger = MemoryLogger()
    monitor = few_draws()
    trainer = trainer_for(monitor, max_epochs=1, logger=logger)
    module = net()
    trainer.fit(module, loader())
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, loader())
    assert logger.steps() == [0, 2, 4, 6, 8]
    records = slt.load_records(elsewhere)
    assert [r.index for r in records] == [0, 1, 2, 3, 4]
    assert len({r.settings["localization"] for r in records}) == 1


def test_another_trainer_starts_anew(elsewhere: Path) -> None:
    """One object in two runs: the second is calibrated for itself, and its records are its own."""
    monitor = few_draws(snapshots=True)
    for part, scale in (("a", 1.0), ("b", 10.0)):
        seed_all(0)
        module = net()
        with torch.no_grad():
            module.net[-1].weight.mul_(scale)
        trainer_for(monitor, max_epochs=1, logger=MemoryLogger(), default_root_dir=elsewhere / part).fit(
            module, loader()
        )
    a, b = (slt.load_records(elsewhere / part) for part in "ab")
    assert [(r.index, r.step) for r in a] == [(r.index, r.step) for r in b] == [(0, 0), (1, 2), (2, 4)]
    assert a[0].settings["localization"] != b[0].settings["localization"]


def test_two_runs_in_one_folder_are_kept_apart(elsewhere: Path) -> None:
    for seed in (0, 1):
        seed_all(seed)
        trainer_for(few_draws(snapshots=True), max_epochs=1).fit(net(), loader())
    records = slt.load_records(elsewhere)
    assert [r.index for r in records] == [0, 1, 2, 0, 1, 2]
    first, second = slt.load_anchor(records[0]), slt.load_anchor(records[3])
    assert not torch.equal(first["net.0.weight"], second["net.0.weight"])
    names = sorted(p.name for p in (elsewhere / "slt_records").glob("*.jsonl"))
    assert names == ["slt.1.jsonl", "slt.jsonl"]


class Broken(Classifier):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        raise ZeroDivisionError


def test_fit_after_an_error_in_training() -> None:
    monitor = few_draws()
    with pytest.raises(ZeroDivisionError):
        trainer_for(monitor, max_epochs=1).fit(Broken(), loader())
    assert len(pickle.dumps(monitor)) < 10_000
    logger = MemoryLogger()
    trainer_for(monitor, max_epochs=1, logger=logger).fit(net(), loader())
    assert logger.steps() == [0, 2, 4]


def test_state_outlives_the_fit() -> None:
    monitor = few_draws()
    trainer = trainer_for(monitor, max_epochs=1)
    trainer.fit(net(), loader())
    trainer.save_checkpoint("end.ckpt")
    assert torch.load("end.ckpt", weights_only=True)["callbacks"]["slt"]["index"] == 3


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_of_an_unused_monitor(clone: Any) -> None:
    logger = MemoryLogger()
    trainer_for(clone(few_draws(at_steps=slt.LogSteps(1, 4, 2))), max_epochs=1, logger=logger).fit(net(), loader())
    assert logger.steps() == [0, 1, 2, 4]
