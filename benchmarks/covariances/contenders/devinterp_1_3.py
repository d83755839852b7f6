"""devinterp 1.3.2: its chains, with a callback of ours that keeps the losses of the measured sets at every draw.

It has covariances of weights, none of losses. A user would write what stands here: a callback that evaluates fixed
samples at each draw, and `torch.cov` of all draws in the end. Chains in the fastest way we found, as in `chain_speed`:
the lean `SGLD`, one process, a loader that fetches whole batches. The measured sets are evaluated in one pass each,
without gradients; parts of `batch_size` would cost more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from devinterp.optim.sgld import SGLD
from devinterp.slt.callback import SamplerCallback
from devinterp.slt.sampler import sample
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.chain_speed.contenders.devinterp_1_3 import BatchedDataset, as_is
from benchmarks.covariances.cases import per_sample_loss, read_question
from benchmarks.turns import Work


class SampleLosses(SamplerCallback):
    """Losses of fixed samples at every draw of every chain `[chain, draw, sample]`."""

    def __init__(self, num_chains: int, num_draws: int, batch: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.batch, self.traces = batch, torch.zeros(num_chains, num_draws, len(batch[1]))

    def __call__(self, chain: int, draw: int, model: nn.Module, **_: Any) -> None:
        """One draw."""
        self.traces[chain, draw] = per_sample_loss(model, self.batch)

    def get_results(self) -> dict[str, Tensor]:
        """What its sampler asks for."""
        return {"losses": self.traces}


def mean_loss(net: nn.Module, batch: Any) -> Tensor:
    """What is sampled."""
    return per_sample_loss(net, batch).mean()


def prepare(question: Mapping[str, Any]) -> Work:
    """The covariances `[train, query]`, or `[train, train]`."""
    problem = read_question(question)
    loader = DataLoader(BatchedDataset(*problem.train), problem.case.batch_size, shuffle=True, collate_fn=as_is)
    everything = problem.images, problem.labels

    def work(small: bool) -> dict[str, Tensor]:
        case = problem.case.small() if small else problem.case
        losses = SampleLosses(case.num_chains, case.num_draws, everything)
        sample(
            problem.net,
            loader,
            [losses],
            evaluate=mean_loss,
            sampling_method=SGLD,
            optimizer_kwargs={"lr": case.step_size, "nbeta": case.nbeta, "localization": case.localization},
            num_draws=case.num_draws,
            num_chains=case.num_chains,
            num_burnin_steps=case.num_burnin,
            num_steps_bw_draws=case.thinning,
            init_loss=problem.anchor_loss,
            seed=problem.seed,
            verbose=False,
        )
        covariance = torch.cov(losses.traces.flatten(0, 1).T)
        return {"covariance": covariance[: case.num_train, case.num_train :] if case.num_query else covariance}

    return work
