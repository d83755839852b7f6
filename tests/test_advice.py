"""Readings that cannot be relied on: told in words, once for each check, and counted at the end."""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from models import Classifier, MemoryLogger, blobs, few_draws, loader_of, seed_all, trainer_for

import lightning_slt as slt
from lightning_slt.health import Thresholds
from lightning_slt.reading import Reader
from lightning_slt.reporting.advice import ADVICE, Verdicts, worthless
from lightning_slt.types import Estimate, Health

pytestmark = pytest.mark.usefixtures("elsewhere")


def estimate(*failed: str, mean: float = 2.0, **values: float) -> Estimate:
    health = Health(ok=not failed, failed=failed, values=values)
    return Estimate(mean=mean, stderr=0.1, per_chain=torch.tensor([mean, mean]), health=health)


def reading(*failed: str, mean: float = 2.0, **values: float) -> dict[str, dict[str, Estimate]]:
    return {"full": {"llc": estimate(*failed, mean=mean, **values)}}


def test_every_check_has_its_advice() -> None:
    assert ADVICE.keys() == {check.name for check in fields(Thresholds)}


def test_only_what_is_new_is_told() -> None:
    verdicts = Verdicts([slt.LLC()], "slt")
    assert verdicts.take(0, reading()) is None
    told = verdicts.take(2, reading("rhat", rhat=1.52))
    assert told is not None
    assert told.startswith(
        "slt: the reading at step 2 cannot be relied on:\n  full/llc: rhat = 1.52, limit 1.3: the chains disagree:"
    )
    assert verdicts.take(4, reading("rhat", rhat=2.0)) is None
    told = verdicts.take(6, reading("rhat", "spikes", rhat=2.0, spikes=80.0))
    assert told is not None
    assert "spikes = 80, limit 40: single draws jump: lower the step_size" in told
    assert verdicts.take(8, reading("spikes", spikes=90.0)) is None
    assert verdicts.take(10, {}) is None
    assert verdicts.summary() == "slt: 6 readings, 4 of them unreliable (rhat 3, spikes 2), 1 of them failed"


def test_a_reading_made_again_counts_once_as_it_came_out_last() -> None:
    verdicts = Verdicts([slt.LLC()], "slt")
    verdicts.take(0, reading("rhat", rhat=1.52))
    verdicts.take(2, reading())
    assert verdicts.summary() == "slt: 2 readings, 1 of them unreliable (rhat 1)"
    verdicts.take(0, reading())
    assert verdicts.summary() == "slt: 2 readings"
    assert verdicts.take(4, reading("rhat", rhat=1.6)) is None  # it was said at step 0


def test_the_users_own_limits_and_several_places() -> None:
    verdicts = Verdicts([slt.LLC(name="own", thresholds=Thresholds(rhat=(1.01, 1.05)))], "m")
    told = verdicts.take(0, {c: {"own": estimate("rhat", rhat=1.2)} for c in ("a", "b", "c")})
    assert told is not None
    assert "a/own and 2 more: rhat = 1.2, limit 1.05" in told


@pytest.mark.parametrize(
    ("estimates", "exact", "why"),
    [
        (reading(), False, None),
        (reading("step_size", step_size=3.9), False, None),
        (reading("step_size", step_size=4.0), False, "the step diverges: its stability number is 4, the limit 4"),
        (reading("step_size", step_size=9.0), True, None),
        (reading(step_size=9.0), False, None),
        (reading(mean=math.inf), False, "the mean is not finite"),
        (reading(mean=math.nan), True, "the mean is not finite"),
    ],
)
def test_what_is_no_number(estimates: Any, exact: bool, why: str | None) -> None:
    assert worthless(estimates, exact=exact) == ({} if why is None else {"full/llc": why})


def fit(*callbacks: pl.Callback, module: Any = None, **options: Any) -> pl.Trainer:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    trainer.fit(module or Classifier(), loader_of(blobs()))
    return trainer


def readings_of(monkeypatch: pytest.MonkeyPatch, *results: Any) -> None:
    """The readings of a fit come out as told, one after another."""
    left = list(results)
    monkeypatch.setattr(Reader, "read", lambda *args, **options: left.pop(0))


@pytest.mark.filterwarnings("error:.*cannot be relied on")
def test_the_console_of_a_fit(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    bad = reading("rhat", rhat=1.5)
    readings_of(monkeypatch, reading(), bad, bad, reading("rhat", "drift", rhat=1.5, drift=5.0), reading())
    with (
        caplog.at_level(logging.INFO, logger="lightning.pytorch"),
        pytest.warns(UserWarning, match="cannot be relied on") as told,
    ):
        fit(few_draws())
    steps = [str(w.message).splitlines()[0] for w in told if "relied on" in str(w.message)]
    assert steps == [f"slt: the reading at step {step} cannot be relied on:" for step in (2, 6)]
    assert "slt: 5 readings, 3 of them unreliable (rhat 3, drift 1)" in caplog.text


@pytest.mark.parametrize("bad", [reading("step_size", step_size=7.0, mean=1e19), reading(mean=math.inf)])
def test_a_reading_that_diverged_is_a_missing_value(monkeypatch: pytest.MonkeyPatch, bad: Any, elsewhere: Path) -> None:
    """NaN and not ok for the loggers, the last finite value in callback_metrics, the numbers in the records."""
    readings_of(monkeypatch, reading(), bad)
    trainer = fit(few_draws(every_n_train_steps=8))
    means = trainer.logger.series("slt/full/llc/mean")
    assert means[0] == (0, 2.0)
    assert math.isnan(means[1][1])
    assert trainer.logger.series("slt/full/llc/ok") == [(0, 1.0), (8, 0.0)]
    assert float(trainer.callback_metrics["slt/full/llc/mean"]) == 2.0
    assert slt.load_records(elsewhere)[1].estimates["full"]["llc"].health.values == bad["full"]["llc"].health.values


@pytest.mark.parametrize("bad", [reading("step_size", step_size=7.0, mean=1e19), reading(mean=math.inf)])
def test_a_reading_that_diverged_raises_where_asked(monkeypatch: pytest.MonkeyPatch, bad: Any) -> None:
    readings_of(monkeypatch, reading(), bad)
    with pytest.raises(slt.FailedReadingError, match=r"slt at step 8: full/llc: the (step|mean is not)"):
        fit(few_draws(every_n_train_steps=8, on_failure="raise"))


def test_a_step_that_diverges_is_seen_in_a_real_reading() -> None:
    """ε = 4.5/(nβ λ_max + γ), with λ_max as measured."""
    seed_all(0)
    monitor = few_draws(every_n_train_steps=100)
    seen = []

    class Looks(pl.Callback):
        def on_train_start(self, *args: Any) -> None:
            seen.append(monitor._live.reader.settings)

    fit(monitor, Looks())
    (found,) = seen
    long = slt.SGLD(step_size=4.5 / (found.nbeta * found.curvature + found.localization))
    with pytest.raises(slt.FailedReadingError, match=r"the step diverges: its stability number is 4\.5"):
        fit(few_draws(every_n_train_steps=100, sampler=long, on_failure="raise"))


def test_checks_that_fail_do_not_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """``on_failure="raise"`` is for what is no number."""
    readings_of(monkeypatch, *[reading("rhat", "spikes", rhat=3.0, spikes=99.0)] * 2)
    fit(few_draws(every_n_train_steps=8, on_failure="raise"))


def test_chain_sets_are_announced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        fit(few_draws(components="layers"), few_draws(name="whole"))
    words = "slt: 2 components, so a reading runs 2 sets of 2 chains with 6 steps each, and costs 2 times as much"
    assert caplog.text.count(words) == 1
    assert "whole: 1 components" not in caplog.text


def test_limits_are_those_of_the_estimator() -> None:
    assert Verdicts([replace(slt.LLC(), name="x")], "m").limits["x"] == Thresholds()
