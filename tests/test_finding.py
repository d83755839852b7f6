"""``slt.calibrate`` as a user meets it."""

import math

import matplotlib
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt

matplotlib.use("Agg")
COUNTS = slt.SamplingConfig(num_chains=4, num_draws=60, batch_size=32)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.randn(512, 6)
    data = TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())
    net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), data.tensors[1]).backward()
        optimizer.step()
    return net, data


@pytest.fixture(scope="module")
def found(trained):
    net, data = trained
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state, steps = torch.get_rng_state(), []
    result = slt.calibrate(net, data, sampling=COUNTS, loss_fn=slt.losses.classification, on_step=steps.append)
    assert torch.equal(state, torch.get_rng_state())
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert sum(steps) == 45 * 4 * 120
    return result


def test_the_suggestion_gives_the_same_number(trained, found):
    net, data = trained
    assert found.accepted
    assert found.chosen in found.trials
    assert not found.chosen.refused
    estimate = slt.estimate(net, data, [slt.LLC()], loss_fn=slt.losses.classification, **found.keywords())["llc"]
    assert estimate.mean == pytest.approx(found.chosen.estimate.mean, rel=0.02)  # recorded passes round apart
    assert estimate.health.ok


def test_it_can_be_read(found):
    assert "LLC" in str(found)
    assert found.reason in str(found)
    assert found.table().count("\n") == 46
    assert "suggested" in found.table()
    figure = found.plot()
    assert len(figure.axes) == 4
    assert found.reason[:20] in figure._suptitle.get_text()


def test_a_sweep_in_which_nothing_converges(trained):
    net, data = trained
    counts = slt.SamplingConfig(num_chains=4, num_draws=20)
    found = slt.calibrate(net, data, sampling=counts, step_size=1e-7, nbeta=30.0, localization=[1.0, 2.0],
                          loss_fn=slt.losses.classification)  # fmt: skip
    assert not found.accepted
    assert len(found.trials) == 2
    assert "no setting of the sweep will do" in str(found)
    with pytest.raises(ValueError, match="the calibration suggests nothing: no setting"):
        found.keywords()
    assert len(found.plot().axes) == 4


def test_other_samplers_and_components(trained):
    net, data = trained
    found = slt.calibrate(
        net, data, sampler=slt.UnderdampedLangevin(step_size=1.0, friction=5.0), nbeta=30.0, localization=20.0,
        components="4.*", sampling=COUNTS, loss_fn=slt.losses.classification,
    )  # fmt: skip
    assert len(found.trials) == 5
    assert all(isinstance(t.sampler, slt.UnderdampedLangevin) and t.sampler.friction == 5.0 for t in found.trials)
    assert all(math.isnan(t.acceptance) for t in found.trials)
    assert "no density" in found.plot().axes[2].texts[0].get_text()


def test_the_absolute_target_gives_the_same_number():
    net = nn.Linear(3, 1)
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, net(x).detach())
    counts = slt.SamplingConfig(num_chains=16, batch_size=50)
    found = slt.calibrate(net, data, target="absolute", sampling=counts, loss_fn=slt.losses.regression)
    assert found.accepted, found.reason
    assert found.settings.nbeta == pytest.approx(200 / math.log(200))
    assert found.settings.localization == 1.0
    again = slt.estimate(net, data, [slt.LLC()], loss_fn=slt.losses.regression, **found.keywords())["llc"]
    apart = again.mean - found.chosen.estimate.mean
    assert abs(apart) < 4 * math.hypot(again.stderr, found.chosen.estimate.stderr)
    assert "at twice the step" in found.reason
    assert len(found.plot().axes) == 4


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"target": "best"}, "target must be 'relative' or 'absolute', got 'best'"),
        ({"target": "absolute", "step_size": 1e-3}, "finds its own sampler and step size"),
        ({"target": "absolute", "nbeta": [10.0, 30.0]}, r"defined by one nbeta, got \[10.0, 30.0\]"),
        ({"step_size": 0.0}, "step_size must be a positive number or several"),
        ({"nbeta": "30"}, "nbeta must be a positive number or several, such as .* got '30'"),
        ({"localization": []}, "localization must be a positive number or several"),
    ],
)
def test_what_cannot_be(trained, keywords, message):
    net, data = trained
    with pytest.raises(ValueError, match=message):
        slt.calibrate(net, data, loss_fn=slt.losses.classification, **keywords)


def test_a_loss_without_curvature(trained):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3))

    with pytest.raises(ValueError, match="no grid can be derived"):
        slt.calibrate(Slope(), TensorDataset(torch.zeros(8, 1)), loss_fn=lambda m, b: m.w.sum().expand(len(b[0])))
