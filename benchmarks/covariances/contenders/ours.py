"""This package: `lightning_slt.estimate` with a loss kernel or a Bayesian influence alone, pooled as the peers' are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.covariances.cases import Case, per_sample_loss, read_question
from benchmarks.turns import Work


def prepare(question: Mapping[str, Any]) -> Work:
    """The covariances `[train, query]`, or `[train, train]`."""
    problem = read_question(question)
    train = TensorDataset(*problem.train)
    query = TensorDataset(*problem.query) if problem.case.num_query else None

    def work(small: bool) -> dict[str, Tensor]:
        case = problem.case.small() if small else problem.case
        estimator = (
            slt.LossKernel(slt.Probe(train, name="train"), pooled=True)
            if query is None
            else slt.BayesianInfluence(train=train, query=query, pooled=True)
        )
        found = slt.estimate(
            problem.net,
            train,
            [estimator],
            sampler=slt.SGLD(step_size=case.step_size),
            nbeta=case.nbeta,
            localization=case.localization,
            sampling=sampling(case, problem.seed),
            loss_fn=per_sample_loss,
        )
        return {"covariance": found[estimator.name].covariance}

    return work


def sampling(case: Case, seed: int) -> slt.SamplingConfig:
    """The case's counts."""
    return slt.SamplingConfig(
        num_chains=case.num_chains,
        num_draws=case.num_draws,
        num_burnin=case.num_burnin,
        thinning=case.thinning,
        batch_size=case.batch_size,
        seed=seed,
    )
