"""Chains of several settings together move exactly as each setting's chains do alone."""

from dataclasses import replace

import pytest
import torch
import zoo

import lightning_slt as slt
from lightning_slt.chains import Ensemble, Setting

STEPS = 7
CONFIG = slt.SamplingConfig(num_chains=3, num_draws=STEPS, num_burnin=0, batch_size=6, seed=3)


def settings(target, make):
    posterior = target.posterior
    other = replace(posterior, nbeta=2 * posterior.nbeta, localization=0.5 * posterior.localization)
    return [
        Setting(posterior=posterior, sampler=make(step_size=1e-3)),
        Setting(posterior=other, sampler=make(step_size=3e-4)),
    ]


def same(a, b):
    """To the bit; in float32 up to rounding, because there recorded passes hand large gradients on as factors."""
    return torch.equal(a, b) if a.dtype == torch.float64 else torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def move(ensemble, look=False):
    """Loss above the anchor before the step ``[setting, chain]``."""
    draws = ensemble.draws(0)
    ensemble.move(look=look)
    return torch.stack([draw.loss - draw.anchor_loss for draw in draws])


def alone(setting, target, config):
    """Loss above the anchor before each step ``[chain, step]``, and the last position."""
    rise = []
    for draw in slt.sample(setting.posterior, setting.sampler, target.data, config):
        rise.append(draw.loss - draw.anchor_loss)
        last = draw.position.clone()
    return torch.stack(rise, 1), last


@pytest.mark.parametrize("name", zoo.TARGETS)
@pytest.mark.parametrize("make", zoo.SAMPLERS.values(), ids=zoo.SAMPLERS)
def test_together_as_alone(name, make):
    target = zoo.TARGETS[name]()
    pair = settings(target, make)
    adapted = pair[0].sampler.adaptation_steps
    ensemble = Ensemble(pair, target.data, CONFIG)
    rise = torch.stack([move(ensemble) for _ in range(adapted + STEPS)], 2)
    for i, setting in enumerate(pair):
        expected, last = alone(setting, target, CONFIG)
        assert same(ensemble.position[i], last)
        assert same(rise[i][:, adapted + 1 :], expected[:, :-1])  # a draw is measured before its step
        assert torch.equal(rise[i][:, 0], torch.zeros(3, dtype=rise.dtype))  # on the anchor


@pytest.mark.parametrize("change", [{"share_batches": True}, {"batch_size": 100}, {"chain_method": "sequential"}])
def test_other_ways_to_run(change):
    target = zoo.perceptron()
    pair = settings(target, slt.SGLD)
    config = replace(CONFIG, **change)
    ensemble = Ensemble(pair, target.data, config)
    for _ in range(STEPS):
        move(ensemble)
    for i, setting in enumerate(pair):
        assert torch.equal(ensemble.position[i], alone(setting, target, config)[1])


def test_the_acceptance_of_each_setting():
    target = zoo.perceptron()
    pair = [*settings(target, slt.SGLD), *settings(target, slt.SGHMC)]
    ensemble = Ensemble(pair, target.data, CONFIG)
    for _ in range(2):
        move(ensemble)
    move(ensemble, look=True)
    draws = ensemble.draws(2, look=True)
    assert [draw.step for draw in draws] == [3] * 4
    for i in (0, 1):
        every = replace(CONFIG, num_draws=4)  # its motion is measured at each draw
        motions = [d.motion for d in slt.sample(pair[i].posterior, pair[i].sampler, target.data, every)]
        for name in ("acceptance", "distance", "drift_to_noise"):
            assert torch.equal(getattr(draws[i].motion, name), getattr(motions[2], name))
    assert draws[2].motion.acceptance is draws[3].motion.acceptance is None


def test_going_on_with_other_settings():
    target = zoo.perceptron()
    pair = settings(target, slt.SGLD)
    ensemble = Ensemble(pair, target.data, CONFIG)
    move(ensemble)
    before = ensemble.position.clone()
    ensemble.use([replace(s, sampler=slt.UnderdampedLangevin(step_size=1e-2, friction=1.0)) for s in pair])
    assert torch.equal(ensemble.position, before)
    move(ensemble)
    assert not torch.equal(ensemble.position, before)


def test_known_losses_at_the_anchor():
    target = zoo.perceptron()
    pair = settings(target, slt.SGLD)
    weights = target.posterior.anchor
    known = target.posterior.loss(weights, target.data.batch(torch.arange(len(target.data))))
    fresh, stored = (Ensemble(pair, target.data, CONFIG, anchor_losses=losses) for losses in (None, known))
    for _ in range(3):
        assert torch.allclose(move(fresh), move(stored), rtol=0, atol=1e-10)
