"""kronfluence 1.0.1: EK-FAC factors of all weights, and pairwise scores, run in an interpreter that has it installed.

As its documentation shows it: summed training loss, targets drawn from the network for the true Fisher, the query's
loss as measurement. The damping "default" is `ScoreArguments()` as it comes (1e-8), "heuristic" is
`damping_factor=None`, a tenth of the mean eigenvalue of each layer. A score is positive where a sample helps; ours are
negative there, so the sign is turned. Factors and scores go through files, which is part of its route; the folder is
temporary. All samples are one batch: the fastest, and none of its results depends on it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from kronfluence.analyzer import Analyzer, prepare_model
from kronfluence.arguments import ScoreArguments
from kronfluence.task import Task
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from benchmarks.covariances.cases import perceptron
from benchmarks.turns import Work


class Classification(Task):
    """Cross-entropy, summed over the batch."""

    def compute_train_loss(self, batch: Any, model: nn.Module, sample: bool = False) -> Tensor:
        """Of the given targets, or of ones that the network draws."""
        images, labels = batch
        logits = model(images)
        if sample:
            with torch.no_grad():
                labels = torch.multinomial(logits.softmax(1), 1).flatten()
        return functional.cross_entropy(logits, labels, reduction="sum")

    def compute_measurement(self, batch: Any, model: nn.Module) -> Tensor:
        """The loss of queries."""
        return self.compute_train_loss(batch, model)


def prepare(question: Mapping[str, Any], *, dampings: Sequence[str]) -> Work:
    """Scores `[train, query]` by damping, negative where a sample helps."""
    net = perceptron(question["hidden"])
    net.load_state_dict(question["state"])
    task = Classification()
    model = prepare_model(net, task)

    def work(small: bool) -> dict[str, Tensor]:
        count = 20 if small else len(question["train"][1])
        train = TensorDataset(*(tensor[:count] for tensor in question["train"]))
        query = TensorDataset(*(tensor[:count] for tensor in question["query"]))
        torch.manual_seed(question["seed"])
        with tempfile.TemporaryDirectory() as folder:
            analyzer = Analyzer("digits", model, task, cpu=True, disable_tqdm=True, output_dir=folder)
            analyzer.fit_all_factors("ekfac", train, per_device_batch_size=len(train))
            return {damping: -scores(analyzer, train, query, damping).T.contiguous() for damping in dampings}

    return work


def scores(analyzer: Analyzer, train: TensorDataset, query: TensorDataset, damping: str) -> Tensor:
    """Its pairwise scores `[query, train]`."""
    analyzer.compute_pairwise_scores(
        damping,
        "ekfac",
        query,
        train,
        per_device_query_batch_size=len(query),
        per_device_train_batch_size=len(train),
        score_args=score_arguments(damping),
    )
    return analyzer.load_pairwise_scores(damping)["all_modules"]


def score_arguments(damping: str) -> ScoreArguments:
    """Its defaults, its heuristic, or a number."""
    if damping == "default":
        return ScoreArguments()
    return ScoreArguments(damping_factor=None if damping == "heuristic" else float(damping))
