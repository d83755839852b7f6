r"""Does an influence foretell retraining? The linear datamodelling score (Park et al. 2023, arXiv:2303.14186).

For random subsets :math:`S_1 \dots S_M` of the training samples, networks are trained anew on each, from several
initializations. The prediction for a query q is the sum of the influences of the samples of a subset; the score is its
rank correlation with the mean loss over initializations:

.. math:: \mathrm{LDS} = \frac{1}{Q} \sum_q \rho\Big( \big(\textstyle\sum_{i \in S_j} \mathrm{BIF}_{iq}\big)_j,\;
                        \big(\bar m_{jq}\big)_j \Big)

Positive is right: a helpful sample has a negative influence, and lowers the loss. No prediction can do better than the
noise between initializations lets it, the *ceiling*.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_slt.data import SamplingData, load_data
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.passes import VectorizedPasses
from lightning_slt.posterior import LocalPosterior
from lightning_slt.seeding import derive_seed, generator
from lightning_slt.types import LossFn

TOGETHER = 64
"""Networks that are trained at once."""

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]


class Retrained(NamedTuple):
    """Networks trained on subsets.

    Attributes:
        subsets: Which samples each was trained on ``[subset, sample]``, boolean.
        losses: Of every query after it ``[subset, seed, query]``, in nats.
    """

    subsets: Tensor
    losses: Tensor


@dataclass(frozen=True, kw_only=True)
class LDS:
    """A linear datamodelling score.

    Attributes:
        score: Mean over queries of Spearman's ρ.
        lower: End of its interval, with a standard error from the bootstrap over subsets and queries.
        upper: The other end.
        level: Coverage of the interval.
        ceiling: What a perfect prediction of the expected loss would reach, from the agreement between seeds; NaN with
            one seed, or where seeds do not agree at all.
        per_query: ρ of each query ``[query]``; 0 where all predictions or all losses are the same.
    """

    score: float
    lower: float
    upper: float
    level: float
    ceiling: float
    per_query: Tensor = field(repr=False)

    def __str__(self) -> str:
        """In one line."""
        return f"{self.score:.3f} [{self.lower:.3f}, {self.upper:.3f}], ceiling {self.ceiling:.3f}"


def random_subsets(num_samples: int, *, share: float = 0.5, num_subsets: int = 60, seed: int = 0) -> Tensor:
    """Random subsets of one size.

    Returns:
        ``[subset, sample]``, boolean.

    Raises:
        ValueError: If the share leaves nobody in, or nobody out.

    >>> random_subsets(10, share=0.3, num_subsets=4).sum(1)
    tensor([3, 3, 3, 3])
    """
    size = round(share * num_samples)
    if not 0 < size < num_samples:
        raise ValueError(
            f"share must leave some of {num_samples} samples in and some out, got {share}; write share=0.5"
        )
    dice = generator(seed, "subsets")
    subsets = torch.zeros(num_subsets, num_samples, dtype=torch.bool)
    for subset in subsets:
        subset[torch.randperm(num_samples, generator=dice)[:size]] = True
    return subsets


def retrain(
    make: Callable[[], nn.Module],
    train: Any,
    query: Any,
    subsets: Tensor,
    *,
    loss_fn: LossFn,
    optimizer: Optimizer,
    num_steps: int,
    num_seeds: int = 4,
    batch_size: int | None = None,
    seed: int = 0,
) -> Retrained:
    """Train small networks on all subsets at once, from several initializations.

    Networks are in eval mode: no dropout, and fixed statistics of batch normalization. What needs its own training
    loop goes through :func:`retrain_each`.

    Args:
        make: Gives a freshly initialized network; called once a seed, with torch's random numbers seeded.
        train: Training samples, as for :func:`lightning_slt.estimate`.
        query: Samples whose losses are wanted.
        subsets: ``[subset, sample]``, boolean, all of one size.
        loss_fn: ``loss_fn(module, batch)``: losses per sample, in nats.
        optimizer: Of the weights of all networks, ``[network, weight]``; it must treat every number alone, as SGD, Adam
            and AdamW do: ``lambda weights: torch.optim.Adam(weights, lr=1e-3)``.
        num_steps: Of each network.
        num_seeds: Initializations.
        batch_size: Samples a step; None is the whole subset.
        seed: Of initializations and minibatches.

    Returns:
        See :class:`Retrained`.

    Raises:
        ValueError: If subsets have different sizes, or do not fit the data.
    """
    samples, queries = load_data(train, seed=seed), load_data(query, seed=seed)
    size = _size_of(subsets, len(samples))
    members = subsets.nonzero()[:, 1].view(len(subsets), size)
    losses = []
    for number in range(num_seeds):
        with isolated(nn.Identity(), seed=derive_seed(seed, "initial weights", number)):
            module = make()
        with isolated(module, seed=seed):
            loss = ModuleLoss(module, loss_fn)
            order = generator(seed, "minibatches", number)
            losses.append(
                torch.cat(
                    [
                        _train(loss, samples, queries, part, optimizer, num_steps, batch_size or size, order)
                        for part in torch.split(members, TOGETHER)
                    ]
                )
            )
    return Retrained(subsets, torch.stack(losses, 1))


def _size_of(subsets: Tensor, num_samples: int) -> int:
    sizes = set(subsets.sum(1).tolist())
    if subsets.dtype != torch.bool or subsets.shape[1:] != (num_samples,) or len(sizes) != 1:
        raise ValueError(
            f"subsets must be boolean [subset, sample] for {num_samples} samples, all of one size, got {subsets.dtype} "
            f"of shape {tuple(subsets.shape)} with sizes {sorted(sizes)[:5]}; write random_subsets({num_samples})"
        )
    return int(sizes.pop())


def _train(
    loss: ModuleLoss,
    samples: SamplingData,
    queries: SamplingData,
    members: Tensor,
    optimizer: Optimizer,
    num_steps: int,
    batch_size: int,
    order: torch.Generator,
) -> Tensor:
    """Losses of the queries ``[network, query]`` after training on ``members`` ``[network, sample]``."""
    start = LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=1.0, localization=0.0)
    weights = start.anchor_row.repeat(len(members), 1)
    passes, descent = VectorizedPasses(start, weights, record=True), optimizer([weights])
    whole = samples.chain_batch(members)
    for step in range(num_steps):
        if batch_size < members.shape[1]:
            first = step % (members.shape[1] // batch_size) * batch_size
            if first == 0:
                shuffled = members.gather(1, torch.rand(members.shape, generator=order).argsort(1))
            whole = samples.chain_batch(shuffled[:, first : first + batch_size])
        weights.grad = passes.loss_and_gradient(whole)[1].rows
        with torch.no_grad():
            descent.step()
    return passes.losses(queries.chain_batch(torch.arange(len(queries))))


def retrain_each(function: Callable[[Tensor, int], Tensor], subsets: Tensor, *, num_seeds: int = 4) -> Retrained:
    """The same by a function of the user's, one network after another.

    Args:
        function: ``function(indices, seed)`` trains on these samples and returns the losses of the queries ``[query]``.
        subsets: ``[subset, sample]``, boolean.
        num_seeds: Initializations.

    >>> retrain_each(lambda indices, seed: torch.ones(3), random_subsets(10, num_subsets=5)).losses.shape
    torch.Size([5, 4, 3])
    """
    rows = [torch.stack([function(subset.nonzero()[:, 0], s) for s in range(num_seeds)]) for subset in subsets]
    return Retrained(subsets, torch.stack(rows))


def lds(influence: Tensor, retrained: Retrained, *, level: float = 0.9, num_resamples: int = 400, seed: int = 0) -> LDS:
    """How well influences foretell retraining.

    Args:
        influence: ``[train, query]``, negative where a sample helps.
        retrained: Networks trained on subsets of the same samples, and their losses of the same queries.
        level: Coverage of the interval.
        num_resamples: Bootstrap samples of subsets and queries.
        seed: Of the bootstrap.

    Returns:
        The score with its interval and its ceiling.

    Raises:
        ValueError: If shapes do not fit.
    """
    subsets, losses = retrained
    if influence.shape != (subsets.shape[1], losses.shape[2]):
        raise ValueError(
            f"influence must be [train, query] = {(subsets.shape[1], losses.shape[2])}, got {tuple(influence.shape)}"
        )
    predicted = (subsets.to(influence) @ influence).T.double()  # [query, subset]
    measured = losses.double().mean(1).T
    per_query = spearman(predicted, measured)
    dice, scores = generator(seed, "bootstrap"), []
    queries, count = predicted.shape
    for _ in range(num_resamples):
        again = torch.randint(count, (count,), generator=dice)
        who = torch.randint(queries, (queries,), generator=dice)
        scores.append(spearman(predicted[who][:, again], measured[who][:, again]).mean())
    # Resampled subsets repeat, which lowers rank correlations a little: their spread is used, not their place.
    half = math.sqrt(2) * float(torch.erfinv(torch.tensor(level)) * torch.stack(scores).std())
    score = float(per_query.mean())
    return LDS(
        score=score,
        lower=score - half,
        upper=score + half,
        level=level,
        ceiling=noise_ceiling(losses),
        per_query=per_query,
    )


def noise_ceiling(losses: Tensor) -> float:
    r"""The score of a perfect prediction of expected losses: ``√(R r / (1 + (R − 1) r))`` with R seeds.

    r is the mean rank correlation between two seeds, over pairs and queries; under the root is the reliability of the
    mean over seeds (Spearman, Brown), whose root is its correlation with what it estimates.

    Args:
        losses: ``[subset, seed, query]``.

    Returns:
        NaN with one seed, or where r is not positive.
    """
    seeds = losses.shape[1]
    pairs = [(a, b) for a in range(seeds) for b in range(a)]
    if not pairs:
        return math.nan
    by_seed = losses.double().permute(1, 2, 0)
    r = float(torch.stack([spearman(by_seed[a], by_seed[b]).mean() for a, b in pairs]).mean())
    return math.sqrt(seeds * r / (1 + (seeds - 1) * r)) if r > 0 else math.nan


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Rank correlation along the last axis, ties sharing their mean rank; 0 where one side is constant.

    >>> spearman(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), torch.tensor([[1.0, 4.0, 9.0], [1.0, 2.0, 3.0]]))
    tensor([1., 0.], dtype=torch.float64)
    """
    a, b = (_ranks(x) - (x.shape[-1] - 1) / 2 for x in (first, second))
    scale = (a.square().sum(-1) * b.square().sum(-1)).sqrt()
    return torch.where(scale > 0, (a * b).sum(-1) / scale, 0.0)


def _ranks(values: Tensor) -> Tensor:
    """From 0; equal values share the mean of theirs."""
    ordered, values = values.sort(-1).values.contiguous(), values.contiguous()
    return (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True) - 1).double() / 2
