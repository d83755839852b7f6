"""Two networks told apart: differences, alignments, free energies, and where each of them has no say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from models import Classifier, blobs, loader_of, seed_all, trainer_for
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.analysis.comparison import align, cka, difference, preference, switch
from lightning_slt.cli import main
from lightning_slt.types import Health

pytestmark = pytest.mark.usefixtures("elsewhere")

NBETA, GAMMA = 50.0, 2.0


def estimate_of(values: Tensor, *, ok: bool = True) -> slt.Estimate:
    error = float(values.std()) / math.sqrt(len(values))
    return slt.Estimate(mean=float(values.mean()), stderr=error, per_chain=values, health=Health(ok=ok))


def test_a_difference_is_paired_chain_by_chain() -> None:
    g = torch.Generator().manual_seed(0)
    common, own = torch.randn(8, generator=g).double(), 0.1 * torch.randn(8, generator=g).double()
    found = difference(estimate_of(common), estimate_of(common + own + 1.0))
    assert found.difference == pytest.approx(1 + float(own.mean()))
    assert found.stderr == pytest.approx(float(own.std()) / math.sqrt(8))
    assert found.stderr < 0.3 * math.hypot(*(estimate_of(c).stderr for c in (common, common + own)))


def test_the_p_value_of_equal_networks_is_uniform() -> None:
    g = torch.Generator().manual_seed(1)
    draws = torch.randn(2000, 2, 4, generator=g).double()
    values = [difference(estimate_of(a), estimate_of(b)).p for a, b in draws]
    below = sum(p < 0.1 for p in values) / 2000
    assert abs(below - 0.1) < 4 * math.sqrt(0.09 / 2000)


def test_chains_that_died_or_are_fewer() -> None:
    dead = estimate_of(torch.tensor([1.0, 2.0, 3.0]).double())
    other = slt.Estimate(
        mean=2.5, stderr=0.5, per_chain=torch.tensor([2.0, math.nan, 3.0]).double(), health=Health(ok=False)
    )
    found = difference(dead, other)
    assert found.difference == pytest.approx(0.5)
    assert not found.ok
    unpaired = difference(dead, estimate_of(torch.tensor([1.0, 2.0, 2.0, 5.0]).double()))
    assert unpaired.stderr == pytest.approx(math.hypot(dead.stderr, 1.7320508 / 2), rel=1e-6)


def naive_cka(first: Tensor, second: Tensor) -> float:
    count = first.shape[1]
    h = torch.eye(count, dtype=first.dtype) - 1 / count
    one, two = (h @ f.T @ f @ h for f in (first, second))
    return float((one * two).sum() / (one.norm() * two.norm()))


def test_alignment_equals_its_definition() -> None:
    g = torch.Generator().manual_seed(2)
    a, b = torch.randn(7, 20, generator=g).double(), torch.randn(5, 20, generator=g).double()
    assert cka(a, b) == pytest.approx(naive_cka(a, b), rel=1e-10)
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=g).double())[0]
    assert cka(a, 3 * rotation @ a) == pytest.approx(1.0, abs=1e-12)


def test_unrelated_kernels_align_by_chance_and_related_ones_do_not() -> None:
    g = torch.Generator().manual_seed(3)
    below = 0
    for _ in range(60):
        a, b = torch.randn(3, 30, generator=g), torch.randn(3, 30, generator=g)
        below += align(a, b, permutations=99, seed=1).p <= 0.2
    assert abs(below / 60 - 0.2) < 4 * math.sqrt(0.16 / 60)
    groups = torch.nn.functional.one_hot(torch.arange(30) % 3).T.double()
    noisy = [groups + 0.3 * torch.randn(3, 30, generator=g) for _ in range(5)]
    found = align(noisy[0], noisy[1], others=noisy[2:], permutations=99)
    assert found.p == pytest.approx(0.01)
    assert found.cka > 3 * found.by_chance
    stranger = align(noisy[0], torch.randn(3, 30, generator=g), others=noisy[2:], permutations=99)
    assert stranger.differs
    assert stranger.baseline_z > 3
    with pytest.raises(ValueError, match=r"kernels of \[30, 29\] samples cannot be aligned"):
        align(groups, groups[:, :29])


def test_the_free_energy_switches_where_it_is_zero() -> None:
    found = preference(0.002, -8.0, 0.5, num_samples=500)
    n = found.switch
    assert n * 0.002 == pytest.approx(8 * math.log(n), rel=1e-9)
    assert found.free_energy == pytest.approx(500 * 0.002 - 8 * math.log(500))
    assert found.switch_range[0] < n < found.switch_range[1]
    assert preference(0.002, -8.0, 0.5, num_samples=round(2 * n)).free_energy > 0
    for loss, llc in ((0.1, 3.0), (-0.1, -3.0), (10.0, -1.0), (0.0, 1.0)):
        assert math.isnan(switch(loss, llc))


class Valley(nn.Module):
    """A loss ½ Σ h w² at its minimum, with a known LLC."""

    def __init__(self, curvatures: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(len(curvatures)))
        self.register_buffer("h", torch.tensor(curvatures))


def valley_loss(module: Any, batch: Any) -> Tensor:
    return 0.5 * (module.h * module.w.square()).sum() + 0 * batch[0].sum()


def valley_llc(curvatures: list[float]) -> float:
    return sum(0.5 * NBETA * h / (NBETA * h + GAMMA) for h in curvatures)


def test_networks_of_equal_loss_and_different_geometry() -> None:
    wide, narrow = [1.0, 1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]
    settings: dict[str, Any] = {
        "data": torch.utils.data.TensorDataset(torch.zeros(100, 1)),
        "loss_fn": valley_loss,
        "sampler": slt.SGLD(step_size=2e-3),
        "nbeta": NBETA,
        "localization": GAMMA,
        "sampling": slt.SamplingConfig(num_chains=8, num_draws=400, num_burnin=1500, thinning=5, batch_size=100),
    }
    found = slt.compare(Valley(wide), Valley(narrow), names=("wide", "narrow"), **settings)
    d = found.differences["full/llc"]
    assert abs(d.difference - (valley_llc(narrow) - valley_llc(wide))) < 4 * d.stderr + 0.03 * valley_llc(narrow)
    assert d.z > 3
    assert found.preference is not None
    assert found.preference.loss == 0
    assert found.preference.free_energy == pytest.approx(d.difference * math.log(100))
    text = str(found)
    assert "# wide and narrow" in text
    assert "favours wide" in text
    assert "It does not switch" in text
    same = slt.compare(Valley(wide), Valley(wide), **settings)
    assert same.differences["full/llc"].difference == 0  # chains share their noise and their minibatches


def test_settings_found_for_one_serve_both() -> None:
    flat, steep = Valley([0.1, 0.1]), Valley([5.0, 0.1])
    data = torch.utils.data.TensorDataset(torch.zeros(100, 1))
    few = slt.SamplingConfig(num_chains=2, num_draws=20, batch_size=100)
    found = slt.compare(flat, steep, data=data, loss_fn=valley_loss, sampling=few)
    assert not [note for note in found.notes if "different posteriors" in note]
    unequal = slt.compare(
        *(slt.estimate(m, data, [slt.LLC()], loss_fn=valley_loss, sampling=few) for m in (flat, steep))
    )
    assert any(note.startswith("localization differs") for note in unequal.notes)


def run(folder: str, *, seed: int, lr: float = 1e-2) -> None:
    seed_all(seed)
    held_out = slt.Probe(blobs(12, seed=9), name="held")
    monitor = slt.SLTMonitor(
        [slt.LLC(), slt.LossKernel(held_out)],
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=20.0,
        localization=30.0,
        sampling=slt.SamplingConfig(num_chains=4, num_draws=20, num_burnin=20, batch_size=16),
        every_n_train_steps=4,
    )
    trainer = trainer_for(monitor, max_epochs=3, logger=CSVLogger(folder, name="", version=""))
    trainer.fit(Classifier(lr=lr), loader_of(blobs()))


def test_runs_and_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed, lr in (("one", 0, 0.03), ("two", 1, 0.03), ("three", 2, 0.03), ("idle", 0, 1e-9)):
        run(name, seed=seed, lr=lr)
    found = slt.compare("one", "idle", baseline=["two", "three"], names=("one", "idle"))
    assert sorted(found.curves["full/llc"]) == [0, 4, 8, 12]
    assert found.curves["full/llc"][0].difference == 0  # the same seed, the same weights
    assert len(found.alignments["full/loss_kernel"].baseline) == 2
    assert found.preference is not None
    assert found.preference.num_samples == 32
    assert main(["compare", "one", "idle", "--baseline", "two", "three", "--out", "report/one.md", "--step", "9"]) == 0
    printed = capsys.readouterr().out
    assert "# one and idle" in printed
    assert "| full/llc" in printed
    assert "nan" not in printed
    assert "Not told: an LLC of all weights failed its health checks" in printed
    assert Path("report/one.md").read_text() == printed[:-1]
    assert Path("report/one.png").stat().st_size > 10_000
    assert main(["compare", "one", "nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err


def test_what_cannot_be_compared() -> None:
    with pytest.raises(TypeError, match="a network is compared with a network, got Valley and str"):
        slt.compare(Valley([1.0]), "run")
    with pytest.raises(TypeError, match="give data= what both are sampled on"):
        slt.compare(Valley([1.0]), Valley([1.0]))
    value = estimate_of(torch.tensor([1.0, 2.0]).double())
    with pytest.raises(ValueError, match="nothing in common: a has full/llc, b has full/other"):
        slt.compare({"llc": value}, {"other": value})
    with pytest.raises(ValueError, match="there is no reading"):
        slt.compare([], [])
    two = [reading_of(name, value) for name in ("slt", "other")]
    with pytest.raises(ValueError, match=r"the monitors 'slt' and 'other' both have full/llc; .*name='slt'"):
        slt.compare(two, two)
    assert slt.compare(two[:1], two[:1]).differences["full/llc"].z == 0


def reading_of(name: str, value: slt.Estimate) -> slt.Reading:
    return slt.Reading(
        name=name,
        index=0,
        step=1,
        global_step=1,
        epoch=0,
        time=0.0,
        duration=1.0,
        overhead=0.0,
        settings={},
        estimates={"full": {"llc": value}},
    )
