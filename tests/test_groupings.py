"""Covariances between groups against the matrix of all pairs."""

from __future__ import annotations

import pytest
import torch

from lightning_slt.groupings import group_covariances


def traces(count: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(3, 11, count, generator=g).double() + torch.randn(3, 1, 1, generator=g)


def by_pairs(first, second, one, two, left_out):  # type: ignore[no-untyped-def]
    """The definition, pair by pair."""
    chains = len(first)
    within = torch.full((chains, int(one.max()) + 1, int(two.max()) + 1), torch.nan).double()
    between = within[0].clone()
    for a in range(within.shape[1]):
        for b in range(within.shape[2]):
            pairs = [
                (i, j)
                for i in range(len(one))
                for j in range(len(two))
                if one[i] == a and two[j] == b and (i, j) not in left_out
            ]
            if pairs:
                for c in range(chains):
                    covs = [torch.cov(torch.stack([first[c, :, i], second[c, :, j]]))[0, 1] for i, j in pairs]
                    within[c, a, b] = torch.stack(covs).mean()
                means = [
                    torch.cov(torch.stack([first[:, :, i].mean(1), second[:, :, j].mean(1)]), correction=0)[0, 1]
                    for i, j in pairs
                ]
                between[a, b] = torch.stack(means).mean()
    return within, between


@pytest.mark.parametrize("same", [False, True])
def test_groups_equal_the_mean_over_pairs(same: bool) -> None:
    first = traces(6, 0)
    second = first if same else traces(5, 1)
    one = torch.tensor([0, 1, 1, 0, -1, 2])
    two = one if same else torch.tensor([1, 0, 0, -1, 1])
    left_out = {(i, i) for i in range(6)} if same else {(0, 1), (2, 2)}
    found = group_covariances(first, second, one, two, identical=torch.tensor(sorted(left_out)))
    within, between = by_pairs(first, second, one, two, left_out)
    assert torch.allclose(found.within, within, atol=1e-12, equal_nan=True)
    assert torch.allclose(found.between, between, atol=1e-12, equal_nan=True)


def test_within_and_between_add_up_to_the_pooled_covariance() -> None:
    first, second = traces(4, 2), traces(3, 3)
    one, two = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1])
    found = group_covariances(first, second, one, two)
    pooled, _ = by_pairs(first.reshape(1, 33, 4), second.reshape(1, 33, 3), one, two, set())
    assert torch.allclose(found.within.sum(0) * 10 + 33 * found.between, 32 * pooled[0], atol=1e-10)
