"""devinterp 1.3: `estimate_learning_coeff_with_summary`, run in an interpreter that has it installed.

Its chains run one after the other, each an ordinary module with an optimizer that adds the noise, one `torch.normal`
per parameter tensor; it has no vectorized route. What it offers for speed, and how it is used here:

- `cores=1` runs the chains in this process; `cores=k` starts a pool of k fresh processes for each call. Data loader
  workers only cost at these sizes, so there are none.
- `sampling_method`: `SGMCMC.sgld`, which its documentation recommends, or the leaner `SGLD`, which it deprecates.
- The loader: with a plain `TensorDataset` every sample is fetched and collated alone. A data set with `__getitems__`
  and an identity `collate_fn` lets the same DataLoader fetch a batch with one indexing operation ("batched").
- `init_loss` is the mean loss over all data at the anchor, known beforehand, so that no time is spent on it and its
  estimate carries no baseline noise. Progress bars are off.

The update is the one of this package: w ← w − (lr/2)[nbeta·∇L + localization·(w − w*)] + √lr·ξ. Its trace includes
w* itself as the first draw when there is no burn-in, and its LLC is not paired: nbeta·(mean of L_B(w) − init_loss).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from devinterp.optim.sgld import SGLD
from devinterp.optim.sgmcmc import SGMCMC
from devinterp.slt.sampler import estimate_learning_coeff_with_summary
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.chain_speed.cases import Batch, mean_loss
from benchmarks.chain_speed.worker import Problem

METHODS: dict[str, Callable[..., torch.optim.Optimizer]] = {"SGLD": SGLD, "SGMCMC.sgld": SGMCMC.sgld}


class BatchedDataset(TensorDataset):
    """A TensorDataset that fetches the samples of a batch together."""

    def __getitems__(self, indices: list[int]) -> Batch:
        rows = torch.as_tensor(indices)
        return tuple(tensor[rows] for tensor in self.tensors)


def as_is(batch: Any) -> Any:
    """The collate function of a data set that already returns batches."""
    return batch


@dataclass(frozen=True)
class Devinterp:
    """Chains of devinterp with one choice of its options."""

    problem: Problem
    loader: DataLoader[Any]
    sampling_method: str
    cores: int

    def run(self, *, num_steps: int, num_burnin: int, seed: int) -> dict[str, Any]:
        """One call of its estimator, `num_steps` draws of every chain."""
        case = self.problem.case
        summary = estimate_learning_coeff_with_summary(
            self.problem.module,
            loader=self.loader,
            evaluate=mean_loss,
            sampling_method=METHODS[self.sampling_method],
            optimizer_kwargs={"lr": case.step_size, "nbeta": case.nbeta, "localization": case.localization},
            num_chains=case.num_chains,
            num_draws=num_steps,
            num_burnin_steps=num_burnin,
            num_steps_bw_draws=1,
            init_loss=self.problem.anchor_loss,
            cores=self.cores,
            seed=seed,
            device=self.problem.device,
            verbose=False,
        )
        return {"per_chain": [float(summary[f"llc-chain/{chain}"]) for chain in range(case.num_chains)]}


def build(problem: Problem, *, sampling_method: str, loader: str, cores: int = 1) -> Devinterp:
    """Makes the contender; `loader` is "batched" or "plain"."""
    batched = loader == "batched"
    data = (BatchedDataset if batched else TensorDataset)(*problem.data)
    batches = DataLoader(data, problem.case.batch_size, shuffle=True, collate_fn=as_is if batched else None)
    return Devinterp(problem, batches, sampling_method, cores)
