"""One pass of chains serves every estimator: counted in evaluations of the loss."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.estimators.base import Estimator

CHAINS, DRAWS, BURNIN, SIZE = 3, 6, 4, 8
COUNTS = slt.SamplingConfig(num_chains=CHAINS, num_draws=DRAWS, num_burnin=BURNIN, batch_size=SIZE)


SEEN: list[int] = []
"""Samples in each evaluation; no attribute of the loss, which isolation would put back as it was."""


def counted(module, batch):
    """Under vmap all chains are one evaluation."""
    SEEN.append(len(batch[0]))
    return nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")


def data(count, seed):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, torch.arange(count) % 3)


def evaluations(estimators: list[Estimator], **more):
    """How often the loss of minibatches and of probes was evaluated after the first step."""
    torch.manual_seed(0)
    marks: list[int] = []
    slt.estimate(
        nn.Linear(4, 3), data(64, 0), estimators, sampler=slt.SGLD(step_size=1e-3), nbeta=10.0, localization=5.0,
        sampling=COUNTS, loss_fn=counted, on_step=lambda chains: marks.append(len(SEEN)), **more,
    )  # fmt: skip
    during = SEEN[marks[0] :]
    return {size: during.count(size) for size in (SIZE, 21, 13)}


PROBE, QUERIES = slt.Probe(data(21, 1), name="train"), slt.Probe(data(13, 2), name="queries")


def test_what_all_of_them_cost_together():
    llc = evaluations([slt.LLC()])
    kernel = evaluations([slt.LossKernel(PROBE)])
    influence = evaluations([slt.BayesianInfluence(train=PROBE, query=QUERIES)])
    together = evaluations([slt.LLC(), slt.LossKernel(PROBE), slt.BayesianInfluence(train=PROBE, query=QUERIES)])
    assert llc[SIZE] == kernel[SIZE] == influence[SIZE] == together[SIZE]
    assert together[21] == kernel[21] == influence[21] == DRAWS
    assert together[13] == influence[13] == DRAWS
    assert llc[21] == llc[13] == kernel[13] == 0


def test_a_control_is_one_more_run_for_all_that_ask():
    once, twice = evaluations([slt.LLC()]), evaluations([slt.LLC(control=True), slt.LLC(name="b", control=True)])
    assert once[SIZE] < twice[SIZE] <= 2 * once[SIZE] + 4


@pytest.mark.parametrize("components", ["layers"])
def test_each_component_runs_once(components):
    alone = evaluations([slt.LossKernel(PROBE)], components=components)
    together = evaluations([slt.LLC(), slt.LossKernel(PROBE)], components=components)
    assert alone[21] == together[21]
