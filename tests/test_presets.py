"""Published settings by name."""

import math
import re

import oracles
import pytest
import torch

import lightning_slt as slt
from lightning_slt.callbacks.checks import check_settings


@pytest.mark.parametrize("name", list(slt.presets))
def test_every_preset_fits_monitors_and_estimate(name: str) -> None:
    words = slt.presets[name].keywords(n=1000)
    check_settings(**words)
    assert slt.LLCMonitor(**words).sampler == slt.presets[name].sampler
    assert slt.presets[name].source.startswith("arXiv:")


def test_values_are_the_published_ones() -> None:
    found = {
        name: (type(p.sampler).__name__, p.sampler.step_size, p.nbeta, p.localization)
        for name, p in slt.presets.items()
    }
    pythia = {
        **{"14m": 1e-3, "31m": 3e-4, "70m": 3e-4, "160m": 1e-4, "410m": 1e-4},
        **{"1b": 3e-5, "1.4b": 3e-5, "2.8b": 1e-5, "6.9b": 3e-6},
    }
    assert found == {
        "attention-2-layer": ("SGLD", 1e-3, 30.0, 200.0),
        **{f"pythia-{size}": ("RMSPropSGLD", eps, 30.0, 300.0) for size, eps in pythia.items()},
        "resnet18-cifar10": ("SGLD", 2e-7, None, 1.0),
    }
    counts = slt.presets["attention-2-layer"].sampling
    assert (counts.num_chains, counts.num_draws, counts.num_burnin) == (4, 200, 0)
    assert slt.presets["pythia-1b"].sampler.adaptation_steps == 0


def test_nbeta_may_depend_on_the_data() -> None:
    assert slt.presets["resnet18-cifar10"].keywords(n=50_000)["nbeta"] == 50_000 / math.log(50_000)
    assert slt.presets["pythia-14m"].keywords()["nbeta"] == slt.presets["pythia-14m"].keywords(n=10)["nbeta"] == 30.0
    with pytest.raises(ValueError, match=re.escape("keywords(n=len(dataset))")):
        slt.presets["resnet18-cifar10"].keywords()
    with pytest.raises(ValueError, match="2 or more, got 1"):
        slt.presets["resnet18-cifar10"].keywords(n=1)


def test_unknown_names_list_the_nearest() -> None:
    with pytest.raises(KeyError, match="no preset 'pythia-70'; the nearest are: pythia-70m"):
        slt.presets["pythia-70"]
    with pytest.raises(KeyError, match=r"attention-2-layer.*resnet18-cifar10"):
        slt.presets["???"]
    assert "pythia-70" not in slt.presets
    assert slt.presets.get("pythia-70") is None
    assert repr(slt.presets).startswith("Presets(attention-2-layer, pythia-14m")


def test_a_preset_runs() -> None:
    module = oracles.Quadratic([1.0, 4.0])
    data = torch.utils.data.TensorDataset(torch.zeros(8, 2))
    words = slt.presets["attention-2-layer"].keywords()
    found = slt.estimate(module, data, [slt.LLC()], loss_fn=oracles.quadratic_loss, **words)["llc"]
    expected = slt.theory.sgld_quadratic_llc([1.0, 4.0], nbeta=30.0, localization=200.0, step_size=1e-3)
    low, high = found.interval(0.999)
    assert low < expected < high
