"""WAIC, WBIC and what they are made of, against closed forms of normal draws."""

from __future__ import annotations

import math

import pytest
import torch

import lightning_slt as slt
from lightning_slt.estimators import Information, Run
from lightning_slt.probes import ProbeAtAnchor
from lightning_slt.types import Draw

N, CHAINS, DRAWS = 6, 200, 400


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def information(losses, *, nbeta, anchor=None, n=N):
    anchor = torch.zeros(losses.shape[2:], dtype=torch.float64) if anchor is None else anchor
    known = {"train": ProbeAtAnchor(anchor=anchor, labels=None, indices=torch.arange(len(anchor)))}
    run = Run(
        num_chains=len(losses), num_draws=losses.shape[1], nbeta=nbeta, localization=1.0, dimension=2, probes=known,
        num_samples=n,
    )  # fmt: skip
    accumulator = Information([0, 1]).start(run)
    zeros = torch.zeros(len(losses), dtype=torch.float64)
    for index in range(losses.shape[1]):
        accumulator.update(
            Draw(
                chains=tuple(range(len(losses))), index=index, step=index + 1, loss=zeros, anchor_loss=zeros,
                position=zeros, probes={"train": losses[:, index]},
            )
        )  # fmt: skip
    return accumulator.compute()


def closed_form(mean, spread, beta):
    r"""Of ``ℓ = ½r²``, r normal: ``Var ℓ = μ²s² + s⁴/2``, ``E e^{−ℓ} = (1 + s²)^{−½} e^{−μ²/2(1 + s²)}``."""
    variance = mean**2 * spread**2 + spread**4 / 2
    training = (torch.log1p(spread**2) + mean**2 / (1 + spread**2)).mean() / 2
    return float(variance.sum()), float(training), float(training + beta * variance.mean())


@pytest.fixture(scope="module")
def residuals():
    return random(N, seed=1), torch.linspace(0.2, 0.8, N, dtype=torch.float64)


def test_normal_draws_give_the_closed_form(residuals):
    mean, spread = residuals
    losses = (mean + spread * random(CHAINS, DRAWS, N)).square() / 2
    found = information(losses, nbeta=3.0)
    variance, training, waic = closed_form(mean, spread, 0.5)
    exact = torch.tensor([float((c.var(0)).sum()) for c in losses])
    assert found.functional_variance == pytest.approx(float(exact.mean()))
    assert abs(found.functional_variance - variance) < 4 * float(exact.std()) / math.sqrt(CHAINS)
    assert abs(found.training_loss - training) < 4 * found.waic_stderr
    assert abs(found.waic - waic) < 4 * found.waic_stderr
    assert abs(found.training_loss - waic) > 40 * found.waic_stderr  # the two can be told apart
    assert found.singular_fluctuation == pytest.approx(0.5 * found.functional_variance / 2)


def test_the_anchor_is_added_back_and_a_part_stands_for_the_whole(residuals):
    mean, spread = residuals
    losses = (mean + spread * random(4, 50, N)).square() / 2
    plain, shifted = information(losses, nbeta=3.0), information(losses, nbeta=3.0, anchor=mean.square() / 2)
    assert plain.scalars() == pytest.approx(shifted.scalars(), nan_ok=True)
    part = information(losses, nbeta=6.0, n=2 * N)
    assert part.waic == pytest.approx(plain.waic)
    assert part.functional_variance == pytest.approx(2 * plain.functional_variance)


def test_wbic_at_its_temperature_alone(residuals):
    losses = residuals[0].square() / 2 + random(4, 50, N).square()
    tempered = information(losses, nbeta=N / math.log(N))
    assert tempered.wbic == pytest.approx(N * float(losses.mean()))
    assert math.isnan(information(losses, nbeta=3.0).wbic)


def test_dead_chains_and_tokens():
    losses = random(3, 20, N).square()
    losses[1, 4, 2] = math.inf
    found = information(losses, nbeta=3.0)
    assert found.health.dead_chains == {1: 5}
    assert found.waic == pytest.approx(information(losses[[0, 2]], nbeta=3.0).waic)
    assert math.isnan(information(losses * math.nan, nbeta=3.0).waic)
    with pytest.raises(ValueError, match="one loss a sample"):
        information(random(2, 5, 3, 4), nbeta=1.0)


def test_of_a_network():
    torch.manual_seed(0)
    net, x = torch.nn.Linear(3, 2), random(20, 3).float()
    data = torch.utils.data.TensorDataset(x, torch.arange(20) % 2)
    found = slt.estimate(
        net, data, [Information(data), slt.LossKernel(slt.Probe(data, name="k"))], loss_fn=slt.losses.classification,
        sampler=slt.SGLD(step_size=1e-2), nbeta=5.0, localization=10.0,
        sampling=slt.SamplingConfig(num_chains=3, num_draws=20, num_burnin=5, batch_size=20),
    )  # fmt: skip
    assert found["information"].functional_variance == pytest.approx(found["loss_kernel"].total_variance, rel=1e-5)
    assert set(found["information"].scalars()) == set(Information.fields)
