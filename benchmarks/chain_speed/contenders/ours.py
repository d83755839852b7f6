"""This package: `lightning_slt.estimate` with the local learning coefficient alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.cases import per_sample_loss
from benchmarks.chain_speed.worker import Problem
from lightning_slt.precision import Precision

ChainMethod = Literal["auto", "vectorized", "sequential"]


@dataclass(frozen=True)
class Ours:
    """Chains of this package on one route."""

    problem: Problem
    data: TensorDataset
    chain_method: ChainMethod
    precision: Precision | None = None

    def run(self, *, num_steps: int, num_burnin: int, seed: int) -> dict[str, Any]:
        """One call of the estimator, `num_steps` draws of every chain."""
        case = self.problem.case
        results = slt.estimate(
            self.problem.module,
            self.data,
            [slt.LLC()],
            sampler=slt.SGLD(step_size=case.step_size),
            nbeta=case.nbeta,
            localization=case.localization,
            sampling=slt.SamplingConfig(
                num_chains=case.num_chains,
                num_draws=num_steps,
                num_burnin=num_burnin,
                thinning=1,
                batch_size=case.batch_size,
                seed=seed,
                chain_method=self.chain_method,
                precision=self.precision,
            ),
            loss_fn=per_sample_loss,
        )
        estimate = results["llc"]
        return {"per_chain": [float(value) for value in estimate.per_chain], "failed": list(estimate.health.failed)}


def build(problem: Problem, *, chain_method: ChainMethod, precision: Precision | None = None) -> Ours:
    """Makes the contender; `chain_method` and `precision` as in `SamplingConfig`."""
    return Ours(problem, TensorDataset(*problem.data), chain_method, precision)
