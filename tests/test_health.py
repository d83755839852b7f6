"""Each check can fail and is named; thresholds are the user's; values are kept as they are."""

import math

import pytest
import torch

import lightning_slt as slt
from lightning_slt.health import judge, trace_values
from lightning_slt.theory import quadratic_llc

CHAINS, DRAWS = 8, 200


def healthy(seed=0, level=10.0):
    """Independent draws of a χ² loss, as of a quadratic with 2 · level directions."""
    torch.manual_seed(seed)
    return torch.distributions.Gamma(level, 30.0).sample((CHAINS, DRAWS)).double()


def spoilt(name):
    rise = healthy()
    draws = torch.arange(DRAWS, dtype=torch.float64)
    if name == "above_anchor":
        return rise - rise.mean()
    if name == "drift":
        return rise + 0.02 * draws
    if name == "rhat":
        return rise + torch.arange(CHAINS, dtype=torch.float64)[:, None]
    if name == "spikes":
        rise[3, 50] += 100.0
        return rise
    assert name == "below_anchor"
    return rise - 2 * rise.mean()


def test_independent_draws_pass_every_check():
    health = judge(trace_values(healthy()), {}, slt.Thresholds())
    assert health.ok
    assert not health.failed
    assert not health.warnings
    assert str(health) == "ok"


@pytest.mark.parametrize("name", ["above_anchor", "drift", "rhat", "spikes", "below_anchor"])
def test_each_fault_of_a_trace_is_named(name):
    health = judge(trace_values(spoilt(name)), {}, slt.Thresholds())
    assert name in health.failed
    assert not health.ok
    assert name in str(health)


@pytest.mark.parametrize(
    ("values", "failed", "warned"),
    [
        ({"finite": 1.0}, ("finite",), ()),
        ({"snr": 1.0}, (), ("snr",)),
        ({"drift_to_noise": 2.0}, (), ("drift_to_noise",)),
        ({"prior_bound": 3.0}, (), ("prior_bound",)),
        ({"step_size": 2.0}, ("step_size",), ()),
        ({"step_size": 1.0}, (), ("step_size",)),
        ({"steps": 0.5}, (), ("steps",)),
        ({"rhat": 1.2}, (), ("rhat",)),
        ({"heating": 0.2}, ("heating",), ()),
        ({"heating": 0.12}, (), ("heating",)),
        ({"heating": -0.2}, (), ()),
        ({"acceptance": 0.5}, (), ("acceptance",)),
        ({"acceptance": 0.9}, (), ()),
        ({"n_eff": 150.0}, (), ("n_eff",)),
        ({"n_eff": 250.0, "between_chains": 0.05, "reliability": 0.9}, (), ()),
        ({"between_chains": 0.2}, (), ("between_chains",)),
        ({"reliability": 0.3}, (), ("reliability",)),
        ({"rhat": math.nan}, (), ("rhat",)),
    ],
)
def test_values_beyond_a_threshold(values, failed, warned):
    health = judge(values, {}, slt.Thresholds())
    assert (health.failed, health.warnings) == (failed, warned)


def test_chains_that_mostly_stand_still_have_no_spikes():
    """As Metropolis chains do: more than half of the jumps are zero, and the rest are as usual."""
    rise = healthy()
    torch.manual_seed(1)
    still = torch.rand(CHAINS, DRAWS) < 0.8
    for draw in range(1, DRAWS):
        rise[:, draw] = torch.where(still[:, draw], rise[:, draw - 1], rise[:, draw])
    assert "spikes" not in judge(trace_values(rise), {}, slt.Thresholds()).warnings
    assert trace_values(rise)["spikes"] < math.inf


def test_exact_draws_at_a_crossing_have_no_spikes():
    """``nβ (uv)⁴`` of independent draws, by rejection from the Gaussian that localization alone gives."""
    torch.manual_seed(2)
    position = torch.randn(200_000, 2, dtype=torch.float64)
    value = 144.8 * position.prod(1) ** 4
    kept = value[torch.rand(len(value)) < (-value).exp()][: CHAINS * DRAWS].view(CHAINS, DRAWS)
    assert "spikes" not in judge(trace_values(kept), {}, slt.Thresholds()).failed


def test_thresholds_are_the_users():
    values = trace_values(spoilt("rhat"))
    assert "rhat" not in judge(values, {}, slt.Thresholds(rhat=(None, 1e9))).failed
    assert "snr" in judge(values, {}, slt.Thresholds(snr=(None, 1e9))).failed


def test_a_constant_trace_is_zero_and_no_crash():
    values = trace_values(torch.zeros(4, 20, dtype=torch.float64))
    assert values["below_anchor"] == 0.0
    assert math.isnan(values["rhat"])


def test_the_reach_of_a_quadratic_is_fixed_by_its_llc():
    """‖w − w*‖² / (d/γ) = 1 − 2λ̂/d, the reason why prior_bound does not warn near 1."""
    curvatures, nbeta, gamma = [0.1, 1.0, 3.0], 20.0, 5.0
    distance = sum(1 / (nbeta * h + gamma) for h in curvatures)
    llc = quadratic_llc(curvatures, nbeta=nbeta, localization=gamma)
    assert distance * gamma / 3 == pytest.approx(1 - 2 * llc / 3, abs=1e-12)


@pytest.mark.parametrize(("stderr", "fails"), [(0.5, True), (2.0, False)])
def test_heating_within_the_error_bar_only_warns(stderr, fails):
    """A value of 10 that is 2 too high: told by an error of ½, lost in one of 2."""
    from lightning_slt.estimators.llc import _within_error

    judged = judge({"heating": 0.2, "rhat": 1.0}, {}, slt.Thresholds())
    assert judged.failed == ("heating",)
    health = _within_error(judged, 10.0, stderr)
    assert health.ok is not fails
    assert ("heating" in health.failed, "heating" in health.warnings) == (fails, not fails)
