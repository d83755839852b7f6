"""The sweep against exact laws, and the choice among trials made by hand."""

import oracles
import pytest
import torch

import lightning_slt as slt
from lightning_slt.calibration.sweep import (
    ACCEPTED,
    CONDITIONS,
    NBETAS,
    STABILITIES,
    Trial,
    build_grid,
    choose,
    stable_step,
    sweep,
)
from lightning_slt.components import Component

H = torch.tensor([0.5, 2.0, 4.0], dtype=torch.float64)
EVERYTHING = Component(parameters=("w",))
COUNTS = slt.SamplingConfig(num_chains=64, num_draws=100, thinning=2, chain_method="vectorized")


def factory(component, *, nbeta, localization):
    return oracles.quadratic_posterior(H, nbeta=nbeta, localization=localization)


def exact(trial):
    """λ̂ of SGLD's own stationary law."""
    precision = trial.nbeta * H + trial.localization
    return float((0.5 * trial.nbeta * H * oracles.sgld_variance(precision, trial.sampler.step_size)).sum())


def test_every_setting_of_the_grid_has_the_stability_it_was_made_for():
    grid = build_grid(4.0, slt.SGLD(step_size=1.0))
    assert len(grid) == len(NBETAS) * len(CONDITIONS) * len(STABILITIES)
    for (sampler, nbeta, gamma), s in zip(grid, STABILITIES * 9, strict=True):
        assert sampler.stability(nbeta * 4.0 + gamma) == pytest.approx(s)
        assert any(nbeta * 4.0 / gamma == pytest.approx(k) for k in CONDITIONS)


@pytest.mark.parametrize("sampler", [slt.SGLD(step_size=1.0), slt.UnderdampedLangevin(step_size=1.0, friction=1.0)])
def test_a_step_of_given_stability(sampler):
    step = stable_step(sampler, 123.0, 0.2)
    assert type(sampler)(**{**vars(sampler), "step_size": step}).stability(123.0) == pytest.approx(0.2)


def test_samplers_without_a_stability_need_step_sizes():
    with pytest.raises(ValueError, match=r"RMSPropSGLD has no step size that follows .* write step_sizes="):
        build_grid(4.0, slt.RMSPropSGLD(step_size=1.0))
    grid = build_grid(4.0, slt.RMSPropSGLD(step_size=1.0), step_sizes=[1e-3], nbetas=[5.0], localizations=[1.0, 2.0])
    assert [(s.step_size, n, g) for s, n, g in grid] == [(1e-3, 5.0, 1.0), (1e-3, 5.0, 2.0)]


def test_values_of_a_sweep_follow_the_law_of_each_setting():
    grid = build_grid(4.0, slt.SGLD(step_size=1.0), nbetas=[10.0, 30.0], localizations=[40.0])
    trials = sweep(factory, EVERYTHING, oracles.noiseless(dimension=3), COUNTS, grid, curvature=4.0)
    settled = [t for t in trials if t.sampler.step_size * t.localization * 200 > 6]  # e^-6 of the way is left: 0.2 %
    assert len(settled) >= 6
    z = [(t.estimate.mean - exact(t)) / t.estimate.stderr for t in settled]
    assert max(map(abs, z)) < 4
    for trial in trials:
        assert trial.trace.shape == (64, 400)
        kept = trial.trace[:, 200::2].mean(1) * trial.nbeta
        assert torch.allclose(kept, trial.estimate.per_chain, rtol=0, atol=1e-10)


def test_chunks_give_the_same_trials(monkeypatch):
    grid = build_grid(4.0, slt.SGLD(step_size=1.0), nbetas=[10.0], localizations=[40.0])
    data = oracles.noiseless(dimension=3)
    counts = slt.SamplingConfig(num_chains=4, num_draws=20, chain_method="vectorized")
    together = sweep(factory, EVERYTHING, data, counts, grid, curvature=4.0)
    monkeypatch.setattr("lightning_slt.preflight.free_memory", lambda device: 8 * 8 * 3 * 4 * 4)
    apart = sweep(factory, EVERYTHING, data, counts, grid, curvature=4.0)
    assert [t.estimate.mean for t in apart] == [t.estimate.mean for t in together]


def test_what_is_refused():
    data = oracles.noiseless(dimension=3)
    steps = [0.5 / 84, 2.0 / 84, 4.5 / 84, 1e-6]
    grid = build_grid(4.0, slt.SGLD(step_size=1.0), nbetas=[20.0], localizations=[4.0], step_sizes=steps)
    good, long, divergent, slow = sweep(factory, EVERYTHING, data, COUNTS, grid, curvature=4.0)
    assert not good.refused
    assert long.refused
    assert long.acceptance < ACCEPTED
    assert any("step_size" in r for r in divergent.refused)
    assert any("rhat" in r or "drift" in r for r in slow.refused)


def trial(step_size, mean, *, nbeta=30.0, gamma=10.0, condition=10.0, stderr=0.01, refused=()):
    values = {"acceptance": 0.95, "rhat": 1.0}
    health = slt.Health(ok=not refused, failed=tuple(r.split()[0] for r in refused), values=values)
    estimate = slt.Estimate(mean=mean, stderr=stderr, per_chain=torch.full((4,), mean), health=health)
    return Trial(
        sampler=slt.SGLD(step_size=step_size),
        nbeta=nbeta,
        localization=gamma,
        condition=condition,
        estimate=estimate,
        trace=torch.zeros(4, 400),
        refused=refused,
    )


def test_the_longest_step_that_agrees_is_chosen():
    trials = [trial(e, m) for e, m in ((1e-4, 5.0), (2e-4, 5.1), (4e-4, 5.3), (8e-4, 6.5))]
    assert choose(trials).trial is trials[2]
    assert choose(list(reversed(trials))).trial is trials[2]


def test_bias_does_not_add_up_along_the_line():
    trials = [trial(e, m) for e, m in ((1e-4, 5.0), (2e-4, 5.3), (4e-4, 5.7), (8e-4, 6.1))]
    assert choose(trials).trial is trials[1]


def test_the_foot_of_a_slope_is_no_plateau():
    """The shortest step has no shorter one to disagree with; longer ones converge further."""
    slope = [trial(1e-4, 15.8, stderr=0.3), trial(2e-4, 22.2, stderr=0.3), trial(4e-4, 26.1, refused=("heating 0.2",))]
    coarse = [trial(e, 8.0, gamma=30.0, condition=3.0) for e in (1e-4, 2e-4)]
    assert choose([*slope, *coarse]).trial is coarse[1]
    alone = choose(slope)
    assert alone.trial is None
    only = trial(1e-4, 15.8)
    assert choose([only]).trial is only
    lonely = [trial(1e-4, 14.0, refused=("rhat 1.2",)), trial(2e-4, 15.0), trial(4e-4, 16.0, refused=("heating 0.2",))]
    assert "the only one of 3 step sizes that was not refused" in choose(lonely).reason


def test_a_difference_within_the_error_is_none():
    trials = [trial(1e-4, 5.0, stderr=0.5), trial(2e-4, 6.0, stderr=0.5)]
    assert choose(trials).trial is trials[1]


def test_the_finest_resolution_that_converges_is_chosen():
    coarse = [trial(e, 3.0, gamma=30.0, condition=3.0) for e in (1e-4, 2e-4)]
    fine = [trial(e, 5.0, gamma=10.0, condition=10.0) for e in (1e-4, 2e-4)]
    finer = [trial(e, 8.0, gamma=3.0, condition=30.0, refused=("rhat 1.4",)) for e in (1e-4, 2e-4)]
    choice = choose([*coarse, *fine, *finer])
    assert choice.trial is fine[1]
    assert "κ = 10" in choice.reason


def test_an_nbeta_on_the_plateau_is_chosen():
    def at(nbeta, mean):
        return trial(1e-4, mean, nbeta=nbeta, gamma=nbeta / 3)

    choice = choose([at(10.0, 9.0), at(30.0, 6.0), at(100.0, 4.0), at(300.0, 4.1)])
    assert choice.trial.nbeta == 100.0
    assert "on the plateau" in choice.reason
    assert choose([at(10.0, 9.0), at(30.0, 6.0), at(100.0, 4.0)]).trial.nbeta == 30.0
    assert "no plateau" in choose([at(10.0, 9.0), at(30.0, 6.0)]).reason


def test_nothing_is_suggested_where_all_are_refused():
    choice = choose([trial(1e-4, 5.0, refused=("rhat 1.4",)), trial(2e-4, 5.0, refused=("rhat 1.2", "drift 3"))])
    assert choice.trial is None
    assert "of 2 settings rhat in 2, drift in 1 were refused" in choice.reason
