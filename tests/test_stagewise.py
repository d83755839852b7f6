"""Influence over training: events of known curves, false alarms, and the monitor that follows them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import Classifier, MemoryLogger, blobs, footprint, loader_of, seed_all, trainer_for
from torch.utils.data import Subset

import lightning_slt as slt
from lightning_slt.analysis.stagewise import events, group_curves, pair_curves
from lightning_slt.callbacks.stagewise import InfluenceFollower
from lightning_slt.reporting.stagewise import events_table, stagewise_figure
from lightning_slt.results import StoredResult
from lightning_slt.types import Health

pytestmark = pytest.mark.usefixtures("elsewhere")

STEPS = torch.tensor([round(10 * 1.4**k) for k in range(18)])
SETTINGS: dict[str, Any] = {
    "sampler": slt.SGLD(step_size=1e-3),
    "nbeta": 20.0,
    "localization": 30.0,
    "sampling": slt.SamplingConfig(num_chains=4, num_draws=30, num_burnin=10, batch_size=16),
}


def curve(seed: int | None = None, error: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Helpful until it turns at the tenth reading, harmful with a peak at the thirteenth, and gone in the end."""
    place = torch.arange(18.0)
    value = -torch.exp(-((place - 6) ** 2) / 4) + 1.5 * torch.exp(-((place - 12) ** 2) / 4)
    if seed is not None:
        value = value + error * torch.randn(18, generator=torch.Generator().manual_seed(seed))
    return value, torch.full((18,), error)


def test_flips_and_peaks_of_a_known_curve() -> None:
    found = events(STEPS, *curve(), name="a → b")
    assert [(e.kind, e.sign) for e in found] == [("peak", -1), ("flip", 1), ("peak", 1)]
    assert found[0].first == int(STEPS[6])
    assert int(STEPS[8]) < found[1].step < int(STEPS[10])
    assert found[2].first == int(STEPS[12])
    assert all(e.z > 3 for e in found)


def test_events_under_noise() -> None:
    """In 200 noisy copies: kinds and signs as they are, places within one reading."""
    right = 0
    for seed in range(200):
        found = events(STEPS, *curve(seed))
        kinds = [(e.kind, e.sign) for e in found] == [("peak", -1), ("flip", 1), ("peak", 1)]
        right += kinds and abs(int((found[2].first == STEPS).nonzero()) - 12) <= 1
    assert right >= 180  # nine in ten, less than three binomial errors below what was found


def test_false_alarms_on_flat_curves() -> None:
    """Pure noise of known error: events are as rare as three standard errors on 18 readings make them."""
    g = torch.Generator().manual_seed(0)
    told = [events(STEPS, torch.randn(18, generator=g), torch.ones(18)) for _ in range(1000)]
    flips = sum(any(e.kind == "flip" for e in found) for found in told)
    # both signs beyond 3 among 18 readings: below half of (18 · 0.0027)² of curves
    assert flips <= 5
    # a constant influence, twenty errors from zero, neither turns nor peaks
    peaks = sum(len(events(STEPS, 20 + torch.randn(18, generator=g), torch.ones(18))) > 0 for _ in range(1000))
    assert peaks <= 5


def test_missing_readings_are_left_out() -> None:
    value, error = curve()
    value[8] = math.nan
    error[3] = math.nan
    assert [e.kind for e in events(STEPS, value, error)] == ["peak", "flip", "peak"]
    assert events(STEPS[:0], value[:0], error[:0]) == []


def test_groups_are_the_mean_over_pairs_of_different_samples() -> None:
    seed_all(0)
    probe = slt.Probe(blobs(12, seed=4), name="both")
    found = slt.estimate(Classifier(), blobs(), [slt.BayesianInfluence(train=probe, query=probe)], **SETTINGS)[
        "influence"
    ]
    labels = found.train_labels
    assert found.train_groups == found.query_groups == ("0", "1", "2")
    for a in range(3):
        for b in range(3):
            pairs = torch.outer(labels == a, labels == b) & ~torch.eye(12, dtype=torch.bool)
            assert float(found.group_influence[a, b]) == pytest.approx(float(found.influence[pairs].mean()), rel=1e-9)
    assert bool((found.group_stderr > 0).all())


def test_given_groups_and_what_does_not_fit() -> None:
    seed_all(0)
    options = {"train": blobs(6, seed=4), "query": blobs(5, seed=5)}
    estimator = slt.BayesianInfluence(**options, train_groups=[0, 0, 5, 5, -1, 5], query_groups=[1, 1, 2, 2, 2])
    found = slt.estimate(Classifier(), blobs(), [estimator], **SETTINGS)["influence"]
    assert (found.train_groups, found.query_groups) == (("0", "5"), ("1", "2"))
    assert float(found.group_influence[1, 0]) == pytest.approx(
        float(found.influence[[2, 3, 5]][:, :2].mean()), rel=1e-9
    )
    wrong = slt.BayesianInfluence(**options, train_groups=[0, 1])
    with pytest.raises(ValueError, match="train_groups must hold one whole number for each of the data's samples"):
        slt.estimate(Classifier(), blobs(), [wrong], **SETTINGS)


def monitor(**more: Any) -> slt.InfluenceMonitor:
    probe = slt.Probe(blobs(12, seed=4), name="both")
    return slt.InfluenceMonitor(train=probe, query=probe, every_n_train_steps=2, significance=1.0, **SETTINGS, **more)


def train(*callbacks: Any, epochs: int = 3, ckpt_path: str | None = None) -> MemoryLogger:
    seed_all(0)
    logger = MemoryLogger()
    trainer_for(*callbacks, max_epochs=epochs, logger=logger).fit(
        Classifier(lr=0.05), loader_of(blobs()), ckpt_path=ckpt_path
    )
    return logger


def test_a_monitor_follows_its_groups() -> None:
    followed = monitor()
    logger = train(followed)
    readings = slt.load_records(".")
    curves = group_curves(readings)
    assert curves.steps.tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert curves.names[:4] == ("0 → 0", "0 → 1", "0 → 2", "1 → 0")
    logged = {step: row for step, row in logger.rows if "slt/full/influence/0/1" in row}
    assert logged[4]["slt/full/influence/0/1"] == pytest.approx(float(curves.values[2, 1]))
    one = pair_curves(readings, [(0, 1), (2, 2)])
    assert float(one.values[3, 0]) == pytest.approx(float(readings[3].estimates["full"]["influence"].influence[0, 1]))


def heard(step: int, value: float, error: float) -> slt.Reading:
    """A reading of one pair of groups, as a monitor makes it."""
    row = torch.tensor([[value]])
    result = StoredResult(
        kind="Influence",
        health=Health(ok=True),
        tensors={"group_influence": row, "group_stderr": 0 * row + error, "group_between": 0 * row},
        words={"train_groups": ("cats",), "query_groups": ("dogs",)},
    )
    return slt.Reading(
        name="slt",
        index=0,
        step=step,
        global_step=step,
        epoch=0,
        time=0.0,
        duration=1.0,
        overhead=0.0,
        settings={},
        estimates={"full": {"influence": result}},
    )


def test_events_are_told_as_they_show_and_stay_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    trainer = trainer_for(logger=MemoryLogger())
    value, error = curve(0)
    readings = [heard(int(s), float(v), float(e)) for s, v, e in zip(STEPS, value, error, strict=True)]
    follower, told = InfluenceFollower("slt", "full", "influence", significance=3.0), []
    for number, reading in enumerate(readings):
        follower.hear(trainer, reading)
        assert follower.told[: len(told)] == told
        told = list(follower.told)
        if number == 9:  # as a run that stops and goes on
            state = follower.state_dict()
            follower = InfluenceFollower("slt", "full", "influence", significance=3.0)
            follower.load_state_dict(state)
    assert {(e.kind, e.sign) for e in told} == {("peak", -1), ("flip", 1), ("peak", 1)}
    assert "influence of cats → dogs turns positive (harmful) at step" in caplog.text
    follower.finish(trainer)
    assert follower.curves is not None
    assert "| cats → dogs | turns positive (harmful) |" in events_table(told)
    stagewise_figure(follower.curves, told, boundaries=[500.0], title="t").savefig("curves.png")
    assert Path("curves.png").stat().st_size > 10_000


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:Be aware that when using .ckpt_path., callbacks used to create the checkpoint")
def test_a_resumed_monitor_goes_on_with_its_curves() -> None:
    whole = monitor(name="whole")
    train(whole, ModelCheckpoint("saved", every_n_train_steps=6, save_top_k=-1))
    saved = str(next(Path("saved").glob("*step=6.ckpt")))
    resumed = monitor(name="whole")
    train(resumed, ckpt_path=saved)
    mine, theirs = (m._followers["full"].curves for m in (resumed, whole))
    assert torch.equal(mine.steps, theirs.steps)
    assert torch.equal(mine.values[:4], theirs.values[:4])  # of the part before; the order of data differs after it


def test_training_stays_bit_identical() -> None:
    def loader() -> Any:
        return loader_of(blobs())

    assert footprint(Classifier, loader).differences(footprint(Classifier, loader, [monitor()])) == []


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="significance must be a positive number of standard errors"):
        slt.InfluenceMonitor(train=Subset(blobs(), [0]), query=Subset(blobs(), [1]), significance=0.0)
    with pytest.raises(ValueError, match="no reading holds influences between groups"):
        group_curves([])
