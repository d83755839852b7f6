"""Chains of devinterp 1.3.2 on the same noise and minibatches, computed once by ``python -m benchmarks.parity``."""

from pathlib import Path

import numpy as np
import oracles
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated

STORED = Path(__file__).parent / "data" / "devinterp_parity.npz"


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    with np.load(STORED) as file:
        return {name: torch.from_numpy(array) for name, array in file.items()}


def walk(stored: dict[str, Tensor], sampler: slt.Sampler) -> Tensor:
    """Positions ``[chain, draw, coordinate]`` of our chains."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    nn.utils.vector_to_parameters(stored["anchor"].clone(), net.parameters())
    with isolated(net, seed=0):
        loss = ModuleLoss(net, slt.losses.classification)
        posterior = slt.LocalPosterior(
            loss=loss,
            anchor=dict(loss.weights),
            nbeta=float(stored["nbeta"]),
            localization=float(stored["localization"]),
        )
        chains, steps, size = stored["batches"].shape
        every = int(stored["every"])
        config = slt.SamplingConfig(
            num_chains=chains,
            num_draws=steps // every,
            num_burnin=0,
            thinning=every,
            batch_size=size,
            seed=int(stored["seed"]),
        )
        data = oracles.in_memory(TensorDataset(stored["x"], stored["y"]))
        return oracles.positions(slt.sample(posterior, sampler, data, config))


def test_noise_and_minibatches_are_those_of_the_stored_chains(stored: dict[str, Tensor]) -> None:
    chains, steps, size = stored["batches"].shape
    seed, dimension = int(stored["seed"]), len(stored["anchor"])
    for chain in range(chains):
        assert torch.equal(oracles.chain_noise(seed, chain, steps, dimension), stored["noise"][chain])
        order = oracles.batch_order(len(stored["x"]), size, seed, chain, steps)
        assert torch.equal(torch.stack(order), stored["batches"][chain])


@pytest.mark.parametrize("peer", ["SGLD", "SGMCMC.sgld"])
def test_sgld(stored: dict[str, Tensor], peer: str) -> None:
    found = walk(stored, slt.SGLD(step_size=float(stored["sgld_step_size"])))
    torch.testing.assert_close(found, stored[peer], rtol=1e-10, atol=1e-10)


def test_rmsprop_from_zero(stored: dict[str, Tensor]) -> None:
    sampler = slt.RMSPropSGLD(step_size=float(stored["rmsprop_step_size"]), adaptation="always", second_moment="zero")
    torch.testing.assert_close(walk(stored, sampler), stored["SGMCMC.rmsprop_sgld"], rtol=1e-10, atol=1e-10)


def test_the_stored_chains_tell_samplers_apart(stored: dict[str, Tensor]) -> None:
    paths = [stored[name][:, -1] for name in ("SGLD", "SGMCMC.rmsprop_sgld")]
    assert float((paths[0] - paths[1]).abs().max()) > 0.01
    other = walk(stored, slt.RMSPropSGLD(step_size=float(stored["rmsprop_step_size"]), adaptation="always"))
    assert float((other - stored["SGMCMC.rmsprop_sgld"]).abs().max()) > 0.01
