"""What `estimate` returns: numbers beside what they were made with, readable where they are printed."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace
from typing import Any

import oracles
import pytest
import torch
from models import Classifier, blobs, few_draws, loader_of, trainer_for
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.estimators import Estimator
from lightning_slt.reading import Reader, Request
from lightning_slt.reporting.tables import describe_settings

FEW = slt.SamplingConfig(num_chains=3, num_draws=6, num_burnin=5, thinning=2, batch_size=8)
GIVEN: dict[str, Any] = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 20.0, "localization": 5.0, "sampling": FEW}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def estimate(**changes: Any) -> Any:
    return slt.estimate(net(), blobs(40), [slt.LLC()], loss_fn=slt.losses.classification, **{**GIVEN, **changes})


def test_settings_that_were_given_come_back() -> None:
    settings = estimate()["llc"].settings
    assert (settings.nbeta, settings.localization, settings.step_size) == (20.0, 5.0, 1e-3)
    assert settings.resolution == 5.0 / 20.0
    assert settings.sampler == GIVEN["sampler"]
    assert replace(settings.sampling, chain_method="auto") == FEW
    assert settings.calibrated == ()
    assert settings.stability == pytest.approx(1e-3 * (20.0 * settings.curvature + 5.0))  # measured all the same
    with pytest.raises(FrozenInstanceError):
        settings.nbeta = 1.0


def test_settings_that_were_found_define_the_number() -> None:
    """Given back in, they give the same bits."""
    open_ones = {"sampler": None, "nbeta": None, "localization": None, "sampling": replace(FEW, num_burnin=None)}
    found = estimate(**open_ones)["llc"]
    settings = found.settings
    assert settings.calibrated == ("sampler", "nbeta", "localization", "num_burnin")
    assert settings.stability == pytest.approx(settings.step_size * (30 * settings.curvature + settings.localization))
    again = estimate(
        sampler=settings.sampler, nbeta=settings.nbeta, localization=settings.localization, sampling=settings.sampling
    )["llc"]
    assert torch.equal(again.per_chain, found.per_chain)


def test_every_component_has_its_settings() -> None:
    results = estimate(components="layers")
    assert list(results) == ["0", "2"]
    assert all(by_key["llc"].settings.nbeta == 20.0 for by_key in results.values())


def test_settings_are_those_of_the_records() -> None:
    """One name for one thing: whatever the settings table of a run shows stands in the value too."""
    settings = estimate()["llc"].settings
    described = describe_settings(settings)
    for name in ("nbeta", "localization", "resolution", "curvature", "stability"):
        assert repr(described[name]) == repr(getattr(settings, name))
    assert described["sampler.step_size"] == settings.step_size


def test_printed_it_says_what_it_was_made_with() -> None:
    shown = str(estimate()["llc"])
    estimated, settings = shown.splitlines()
    assert "±" in estimated
    assert "of 3 chains" in estimated
    assert settings.strip() == (
        "nβ=20, γ=5, resolution γ/nβ=0.25; SGLD with ε=0.001; 6 draws a chain, thinning 2, burn-in 5, batches of 8"
    )


def test_printed_it_says_what_was_found() -> None:
    shown = str(estimate(nbeta=None, localization=None)["llc"])
    assert "nβ=30 (found)" in shown
    assert " (found), resolution" in shown
    assert "ε=0.001;" in shown


HEALTH = slt.Health(ok=False, failed=("rhat",), warnings=("snr",), values={"rhat": 1.5, "snr": 2.0})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "2.031 ± 0.052 of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"health": slt.Health(ok=True)}, "2.031 ± 0.052 of 2 chains; ok"),
        ({"per_chain": torch.tensor([2.0, math.nan])}, "2.031 ± 0.052 of 1 of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"mean": -12345.6, "stderr": 1000.0}, "-12346 ± 1000 of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"mean": 1.23e-7, "stderr": 4e-9}, "1.23e-07 ± 4e-09 of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"mean": -1.5e15, "stderr": 3.7e14}, "-1.5e+15 ± 3.7e+14 of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"mean": math.nan, "stderr": math.nan}, "nan ± nan of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
        ({"stderr": math.nan}, "2.031 ± nan of 2 chains; UNRELIABLE rhat=1.5 (snr=2)"),
    ],
)
def test_printed_it_says_what_failed(changes: dict[str, Any], line: str) -> None:
    """Without settings, as loaded from records, where those stand beside the estimates."""
    one = slt.Estimate(mean=2.0312, stderr=0.0517, per_chain=torch.tensor([2.0, 2.1]), health=HEALTH)
    assert str(replace(one, **changes)) == line


def test_notebooks_show_the_same() -> None:
    found = replace(estimate()["llc"], health=HEALTH)
    assert found._repr_html_().startswith("<pre>")
    assert "γ/nβ=0.25" in found._repr_html_()


def test_live_readings_carry_their_settings(elsewhere: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(slt.records.RecordWriter, "write", lambda self, reading, **_: written.append(reading))
    trainer_for(few_draws(nbeta=20.0), max_epochs=1).fit(Classifier(), loader_of(blobs()))
    assert written
    for reading in written:
        estimated = reading.estimates["full"]["llc"]
        assert estimated.settings.step_size == reading.settings["sampler.step_size"]
        assert estimated.settings.resolution == reading.settings["resolution"]


def quadratic_run(**changes: Any) -> tuple[Any, int]:
    """An LLC of a quadratic, and how many chain-steps it took."""
    module, steps = oracles.Quadratic([0.5, 2.0, 8.0], dtype=torch.float64), []
    llc = slt.estimate(
        module,
        TensorDataset(torch.zeros(4, 3, dtype=torch.float64)),
        [slt.LLC(**changes)],
        loss_fn=oracles.quadratic_loss,
        sampler=slt.SGLD(step_size=CONTROL["step_size"]),
        nbeta=CONTROL["nbeta"],
        localization=CONTROL["localization"],
        sampling=slt.SamplingConfig(num_chains=16, num_draws=300, num_burnin=100, thinning=2, batch_size=4),
        on_step=steps.append,
    )["llc"]
    return llc, sum(steps)


CONTROL = {"step_size": 0.004, "nbeta": 20.0, "localization": 40.0}


def test_the_control_run_has_the_law_of_the_localization_alone() -> None:
    """``½ nβ Σ h/γ``, times SGLD's factor of γ; the estimate itself keeps its bits, and the steps are counted."""
    plain, once = quadratic_run()
    llc, twice = quadratic_run(control=True)
    eps, nbeta, gamma = CONTROL.values()
    expected = nbeta * (0.5 + 2.0 + 8.0) / 2 * float(oracles.sgld_variance(torch.tensor(gamma), eps))
    values = llc.health.values
    assert abs(values["control"] - expected) < 4 * values["control_stderr"]
    assert (llc.mean, llc.stderr) == (plain.mean, plain.stderr)
    assert {**plain.health.values, **values} == values
    assert "control" not in plain.health.values
    assert twice == 2 * once


def test_one_control_run_serves_all_that_ask() -> None:
    """Estimators that do not ask are left alone."""
    calls: list[int] = []
    results = slt.estimate(
        oracles.Quadratic([1.0, 2.0]),
        TensorDataset(torch.zeros(4, 2)),
        [slt.LLC(control=True), slt.LLC(name="other", control=True), slt.LLC(name="plain")],
        loss_fn=oracles.quadratic_loss,
        sampler=slt.SGLD(step_size=0.01),
        nbeta=10.0,
        localization=5.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=5, num_burnin=5, batch_size=4),
        on_step=calls.append,
    )
    assert len(calls) == 2 * 10
    assert results["llc"].health.values["control"] == results["other"].health.values["control"]
    assert "control" not in results["plain"].health.values
    assert all(r.settings is not None for r in results.values())


def test_an_estimator_that_asks_for_a_control_says_what_to_do_with_it() -> None:
    class Thoughtless(Estimator):
        name, control = "thoughtless", True

        def start(self, run: Any) -> Any:
            return slt.LLC().start(run)

    with pytest.raises(NotImplementedError, match="Thoughtless asks for a control run and has no controlled"):
        slt.estimate(net(), blobs(40), [Thoughtless()], loss_fn=slt.losses.classification, **GIVEN)


def test_health_tells_all_that_it_measured() -> None:
    values = quadratic_run()[0].health.values
    eps, nbeta, gamma = CONTROL.values()
    assert values["curvature"] == pytest.approx(8.0, rel=0.05)
    assert values["step_size"] == pytest.approx(eps * (nbeta * values["curvature"] + gamma))
    assert values["resolution"] == gamma / nbeta
    assert values["noise_norm"] == pytest.approx(2 * math.sqrt(3 / eps))
    assert values["localization_norm"] == pytest.approx(gamma * values["distance"])
    assert values["autocorrelation_time"] > 1
    assert 0 < values["heating"] < 0.2


@pytest.mark.parametrize("control", [False, True])
def test_a_readings_steps_are_known_beforehand(control: bool) -> None:
    request = Request(
        estimators=(slt.LLC(control=control),), components="layers", loss_fn=slt.losses.classification, **GIVEN
    )
    reader, steps = Reader(request, net(), blobs(40)), []
    anchor = reader.set_aside(step=0, global_step=0, epoch=0)
    settings = reader.settings_at(anchor)
    reader.read(anchor, settings, on_step=steps.append)
    assert sum(steps) == reader.chain_steps(settings, None) == 2 * 3 * 17 * (1 + control)
