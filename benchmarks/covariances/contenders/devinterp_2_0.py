"""devinterp 2.0.1: `sample` and `compute_bif`, which it has for language models.

It takes sequences of tokens and a loss per token. Here a sequence is the number of a sample, twice, and the loss looks
the image up, so that there is one token to predict. `correlation_method="sequence"` and `compute_covariance=True` give
pooled covariances of all draws; a kernel is `compute_bif` of a set with itself. Its `influences` are + covariances,
where ours have a minus. What it offers for speed is used: no metrics, no noise at the start, one batch for its initial
loss. It writes all traces to disk (zarr), runs the network in train mode (no difference here: no dropout), evaluates
measured sets in parts of the minibatch's size, and repeats the minibatches of its first epoch.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from devinterp.slt.bif import compute_bif
from devinterp.slt.sampling import sample
from torch import Tensor, nn

from benchmarks.covariances.cases import per_sample_loss, read_question
from benchmarks.turns import Work


def prepare(question: Mapping[str, Any]) -> Work:
    """The covariances `[train, query]`, or `[train, train]`."""
    problem = read_question(question)
    case = problem.case

    def loss(net: nn.Module, numbers: Tensor) -> Tensor:
        which = numbers[:, 0]
        return per_sample_loss(net, (problem.images[which], problem.labels[which]))[:, None]

    train, query = numbered(range(case.num_train)), numbered(range(case.num_train, len(problem.labels)))
    measured = {"train": (train, case.num_train // case.batch_size)}
    measured |= {"query": (query, case.num_query // case.batch_size)} if case.num_query else {}

    def work(small: bool) -> dict[str, Tensor]:
        asked = case.small() if small else case
        with tempfile.TemporaryDirectory() as folder:
            samples = sample(
                problem.net,
                train,
                measured,
                lr=asked.step_size,
                n_beta=asked.nbeta,
                localization=asked.localization,
                num_chains=asked.num_chains,
                num_draws=asked.num_draws,
                num_burnin_steps=asked.num_burnin,
                num_steps_bw_draws=asked.thinning,
                batch_size=asked.batch_size,
                num_init_loss_batches=1,
                match_sampling_input_ids_across_chains=False,
                init_seed=1000 * (problem.seed + 1),  # chain c has seed init_seed + c: neighbours would share chains
                loss_fn=loss,
                output_path=Path(folder) / "samples.zarr",
            )
            # sets in the order of their names, query before train
            places = range(asked.num_query), range(asked.num_query, len(problem.labels))
            found = compute_bif(
                samples,
                correlation_method="sequence",
                compute_covariance=True,
                batch_index_range_1=places[1],
                batch_index_range_2=places[0] if asked.num_query else places[1],
            )
        matrix = torch.from_numpy(found["influences"].values)
        order = torch.from_numpy(found["input_ids"].values)[:, 0]
        rows = order[asked.num_query :].argsort()
        columns = order[: asked.num_query].argsort() if asked.num_query else rows
        return {"covariance": matrix[rows][:, columns]}

    return work


def numbered(numbers: range) -> Dataset:
    """Sequences that are the number of a sample, twice."""
    return Dataset.from_dict({"input_ids": [[i, i] for i in numbers]}).with_format("torch")
