"""Kernels as factors, their structure, and their agreement with labels and trees, against the matrices themselves."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from sklearn.cluster import KMeans
from sklearn.decomposition import KernelPCA
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from lightning_slt import gram
from lightning_slt.analysis import agreement as agreeing
from lightning_slt.analysis import kernels
from lightning_slt.analysis.agreement import adjusted_rand, agreement, auc, group_means, mantel, path_distances
from lightning_slt.analysis.kernels import clusters, k_means, order, pca, suspects
from lightning_slt.gram import compressed, effective_rank, matrix_factor, neighbours, normalized, purity, spectrum


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a, b):
    return torch.allclose(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=1e-10)


FACTORS = {"more samples": random(6, 15), "more features": random(15, 6)}


@pytest.fixture(params=FACTORS)
def factor(request):
    return FACTORS[request.param]


def correlations(factor):
    return torch.corrcoef(torch.cat([factor, -factor]).T)  # centred over features, so that corrcoef is R


def test_correlations_are_corrcoef(factor):
    unit = normalized(factor)
    assert close(unit.mT @ unit, correlations(factor))


def test_what_never_moves_is_uncorrelated_and_what_is_not_finite_stays_so():
    unit = normalized(torch.tensor([[1.0, 0.0, math.nan]]))
    assert unit[0, :2].tolist() == [1.0, 0.0]
    assert bool(unit[0, 2].isnan())


def test_spectrum_and_effective_rank(factor):
    values = torch.linalg.eigvalsh(factor.mT @ factor).flip(0)
    assert close(spectrum(factor), values[: min(factor.shape)])
    assert effective_rank(factor) == pytest.approx(float(values.sum() ** 2 / values.square().sum()))
    assert math.isnan(effective_rank(torch.zeros(3, 4)))


@pytest.mark.parametrize("rank", [1, 3, 6, 40])
def test_a_lower_rank_leaves_out_the_rest_of_the_spectrum(factor, rank):
    kernel = factor.mT @ factor
    few = compressed(factor, rank)
    values = spectrum(factor)
    left_out = values[rank:]
    assert few.shape == (min(rank, 6), factor.shape[1])
    error = torch.linalg.eigvalsh(kernel - few.mT @ few)
    assert float(error.abs().max()) == pytest.approx(float(left_out.max()) if len(left_out) else 0.0, abs=1e-9)
    assert float(error.sum()) == pytest.approx(float(left_out.sum()), abs=1e-9)
    assert bool((few.gather(1, few.abs().argmax(1, keepdim=True)) > 0).all())


def test_a_matrix_has_a_factor(factor):
    kernel = factor.mT @ factor
    found = matrix_factor(kernel)
    assert close(found.mT @ found, kernel)


def test_neighbours_in_blocks_are_those_of_the_whole(factor):
    whole = correlations(factor).fill_diagonal_(-math.inf)
    for block in (None, 1, 4):
        assert torch.equal(neighbours(factor, 3, block=block), whole.topk(3, dim=1).indices)


def test_rows_of_a_small_memory(factor, monkeypatch):
    monkeypatch.setattr(gram, "NUMBERS", 2 * factor.shape[1])
    parts = list(gram.row_blocks(factor))
    assert len(parts[0][1]) == 2
    assert close(torch.cat([rows for _, rows in parts]), factor.mT @ factor)


def test_purity():
    nearest, labels = torch.tensor([[1, 2], [0, 2], [0, 1]]), torch.tensor([0, 0, 1])
    assert purity(nearest, labels) == pytest.approx((1 + 1 + 0) / 6)


def test_pca_is_kernel_pca(factor):
    theirs = KernelPCA(3, kernel="precomputed").fit((factor.mT @ factor).numpy())
    points, shares = pca(factor, 3)
    expected = torch.from_numpy(theirs.transform((factor.mT @ factor).numpy()))
    signs = (points * expected).sum(0).sign()
    assert torch.allclose(points, expected * signs, rtol=0, atol=1e-8)
    centred = factor - factor.mean(1, keepdim=True)
    assert close(shares, torch.linalg.svdvals(centred)[:3].square() / centred.square().sum())


def test_distances_of_a_map_are_those_of_correlations(factor):
    points = pca(normalized(factor), 40).points
    assert torch.allclose(torch.cdist(points, points) ** 2, 2 * (1 - correlations(factor)), rtol=0, atol=1e-8)


def blocks(count=4, size=12, *, noise=0.3, seed=0):
    """Samples of which those of one group share a direction."""
    labels = torch.arange(count).repeat(size)
    shared = torch.eye(count, dtype=torch.float64)[:, labels]
    own = noise * random(30, count * size, seed=seed)
    return torch.cat([shared, own]), labels


def test_clusters_are_the_groups():
    factor, labels = blocks()
    found = clusters(factor, 4)
    assert adjusted_rand(found, labels) == 1.0
    assert torch.equal(found, clusters(factor, 4))


def test_further_samples_join_the_cluster_they_are_most_like(monkeypatch):
    factor, labels = blocks(size=13)
    monkeypatch.setattr(kernels, "LARGEST", 18)
    assert adjusted_rand(clusters(factor, 4), labels) == 1.0


def test_ten_thousand_samples_join(monkeypatch):
    factor, labels = blocks(count=5, size=2000)
    monkeypatch.setattr(kernels, "LARGEST", 200)
    assert adjusted_rand(clusters(factor, 5), labels) == 1.0


def test_clusters_of_samples_some_of_which_never_move():
    factor, labels = blocks()
    factor[:, 5] = 0
    moving = torch.arange(len(labels)) != 5
    found = clusters(factor, 5)
    assert adjusted_rand(found[moving], labels[moving]) == 1.0


def test_what_has_no_clusters():
    factor, _ = blocks()
    with pytest.raises(ValueError, match="between 1 and 48 clusters of 48 samples, got 49"):
        clusters(factor, 49)
    with pytest.raises(ValueError, match="not finite"):
        clusters(factor * math.nan, 2)


@pytest.mark.parametrize("count", [2, 8])
def test_k_means_is_as_good_as_scikit_learns(count):
    """Of noise without groups, whose best grouping no algorithm is sure to find: not worse by three standard errors."""
    worse = []
    for seed in range(20):
        rows = random(200, 5, seed=seed)
        theirs = KMeans(count, n_init=10, random_state=0).fit(rows.numpy()).labels_
        sums = []
        for found in (torch.as_tensor(theirs).long(), k_means(rows, count)):
            means = torch.stack([rows[found == k].mean(0) for k in range(count)])
            sums.append(float((rows - means[found]).square().sum()))
        assert torch.equal(torch.cdist(rows, means).argmin(1), found)  # no row is nearer to another group's mean
        worse.append(sums[1] - sums[0])
    difference = torch.tensor(worse)
    assert difference.mean() <= 3 * difference.std() / math.sqrt(len(worse))


def test_k_means_of_fewer_different_rows_than_groups():
    rows = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    first, second, third, fourth = k_means(rows, 3).tolist()
    assert (first == second, third == fourth, first == third) == (True, True, False)


def test_order_keeps_groups_together_and_the_typical_first():
    factor, labels = blocks()
    factor[4:, 0] *= 20  # sample 0 is mostly its own
    places = order(factor, labels)
    assert labels[places].tolist() == sorted(labels.tolist())
    assert places[11] == 0


def test_suspects():
    variances = random(50, seed=3).exp()
    variances[[7, 30]] = 1e4
    variances[4] = 0
    found = suspects(variances, 3)
    assert set(found.indices[:2].tolist()) == {7, 30}
    logs = variances.log()[variances > 0]
    mad = stats.median_abs_deviation(logs.numpy(), scale=1 / 1.4826)
    assert float(found.scores[7]) == pytest.approx((math.log(1e4) - float(logs.quantile(0.5))) / mad)
    assert float(found.scores[4]) == -math.inf


def test_suspects_among_their_own():
    variances = torch.tensor([1.0, 1.1, 0.9, 5.0, 100.0, 110.0, 90.0, 105.0])
    labels = torch.tensor([0] * 4 + [1] * 4)
    assert suspects(variances, 1).indices.tolist() == [5]
    assert suspects(variances, 1, labels=labels).indices.tolist() == [3]


def pairs_of(factor, labels):
    matrix = correlations(factor)
    i, j = torch.triu_indices(len(labels), len(labels), 1)
    return matrix[i, j], labels[i] == labels[j]


@pytest.mark.parametrize("numbers", [gram.NUMBERS, 60])
def test_group_means_against_all_pairs(monkeypatch, numbers):
    monkeypatch.setattr(gram, "NUMBERS", numbers)
    factor, labels = random(9, 20), torch.arange(20) % 3 + 5
    found = group_means(factor, labels, n_eff=50.0)
    matrix, other = correlations(factor), ~torch.eye(20, dtype=torch.bool)
    assert found.groups.tolist() == [5, 6, 7]
    for a, b in itertools.product(range(3), repeat=2):
        used = other & ((labels == a + 5)[:, None] & (labels == b + 5))
        assert close(found.correlation[a, b], matrix[used].mean())
        assert close(found.square[a, b], matrix[used].square().mean() - 1 / 50)
        assert int(found.pairs[a, b]) == int(used.sum())


def test_a_group_of_one_has_no_mean_with_itself():
    found = group_means(random(9, 3), torch.tensor([0, 0, 1]))
    assert bool(found.correlation[1, 1].isnan())
    assert math.isfinite(agreement(random(9, 3), torch.tensor([0, 0, 1]), nearest=1).within)


def test_agreement_against_all_pairs():
    factor, labels = blocks(noise=0.4)
    groups = torch.roll(labels, 1)
    groups[:5] = 0
    found = agreement(factor, labels, found=groups, nearest=5, n_eff=40.0)
    values, same = pairs_of(factor, labels)
    assert found.within == pytest.approx(float(values[same].mean()))
    assert found.between == pytest.approx(float(values[~same].mean()))
    assert found.within_square == pytest.approx(float(values[same].square().mean()) - 1 / 40)
    assert found.between_square == pytest.approx(float(values[~same].square().mean()) - 1 / 40)
    assert found.chance == pytest.approx(float(same.double().mean()))
    assert found.auc == pytest.approx(roc_auc_score(same.numpy(), values.numpy()))
    assert found.adjusted_rand == pytest.approx(adjusted_rand_score(labels.numpy(), groups.numpy()))
    assert found.purity == purity(neighbours(factor, 5), labels)


def test_agreement_of_many_ranks_some_pairs(monkeypatch):
    monkeypatch.setattr(agreeing, "PAIRED", 16)
    factor, labels = blocks(noise=0.4)
    some = gram.some_of(len(labels), 16)
    values, same = pairs_of(factor[:, some], labels[some])
    assert agreement(factor, labels).auc == pytest.approx(roc_auc_score(same.numpy(), values.numpy()))


def test_some_of_many():
    before = torch.get_rng_state()
    assert torch.equal(gram.some_of(7, 7), torch.arange(7))
    assert torch.equal(gram.some_of(3, 7), torch.arange(3))
    found = gram.some_of(10_000, 400)
    assert torch.equal(found, gram.some_of(10_000, 400))
    assert torch.equal(found, found.unique())
    assert (len(found), int(found.max()) < 10_000) == (400, True)
    assert torch.equal(before, torch.get_rng_state())
    # of each of 10 classes that come in turn 40, with the standard deviation of draws without replacement
    counts = torch.bincount(found % 10, minlength=10)
    assert float((counts - 40).abs().max()) < 4 * math.sqrt(400 * 0.1 * 0.9)


def test_classes_in_turn_are_all_asked(monkeypatch):
    """Every fourth sample would be of one class."""
    factor, labels = blocks(size=40)
    turns = labels.argsort(stable=True).reshape(4, -1).T.flatten()
    factor, labels = factor[:, turns], labels[turns]
    assert bool((labels[::4] == labels[0]).all())
    monkeypatch.setattr(agreeing, "PAIRED", len(labels) // 4)
    monkeypatch.setattr(kernels, "LARGEST", len(labels) // 4)
    assert math.isfinite(agreement(factor, labels).auc)
    assert adjusted_rand(clusters(factor, 4), labels) == 1.0


def test_labels_must_be_those_of_the_samples():
    with pytest.raises(ValueError, match="labels must be \\[sample\\] for 5 samples, got shape \\(4,\\)"):
        group_means(random(3, 5), torch.zeros(4))


def test_auc_with_ties_and_with_one_kind_alone():
    scores, positive = (random(200, seed=4) * 2).round(), random(200, seed=5) > 0
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive.numpy(), scores.numpy()))
    assert math.isnan(auc(scores, torch.ones(200, dtype=torch.bool)))


def test_adjusted_rand_of_partitions_of_one_part():
    assert adjusted_rand(torch.zeros(4), torch.zeros(4)) == 1.0
    assert adjusted_rand(torch.arange(4), torch.arange(4)) == 1.0


def distances(count, seed):
    values = random(count, count, seed=seed)
    return values + values.mT


def every_permutation(first, second):
    """Spearman's correlation under all permutations of the second, the identity first."""
    i, j = torch.triu_indices(len(first), len(first), 1)
    x = first[i, j].numpy()
    return [
        float(stats.spearmanr(x, second[list(p)][:, list(p)][i, j].numpy()).statistic)
        for p in itertools.permutations(range(len(first)))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_mantel_against_all_permutations(seed):
    first = distances(5, seed)
    second = (first + distances(5, seed + 10) if seed % 2 else distances(5, seed + 20)).round()
    observed, *others = every_permutation(first, second)
    exact = (1 + sum(value >= observed - 1e-12 for value in others)) / 120
    found = mantel(first, second, permutations=2000, seed=seed)
    assert found.correlation == pytest.approx(observed, abs=1e-12)
    assert abs(found.p - exact) < 4 * math.sqrt(exact * (1 - exact) / 2000) + 1 / 2000


def test_the_identity_counts_among_the_permutations():
    """So that no p is zero: distances without any symmetry reach their own correlation by the identity alone."""
    distances = random(9, 9).square()
    distances = distances + distances.mT
    found = mantel(distances, 2 * distances + 1, permutations=99)
    assert found.correlation == pytest.approx(1.0, abs=1e-12)
    assert found.p == 1 / 100


def test_mantel_of_equal_trees_and_of_what_is_none():
    tree = path_distances(TREE, LEAVES)
    assert mantel(tree, tree, permutations=500).correlation == pytest.approx(1.0)
    assert mantel(tree, -tree, permutations=500).p > 0.5
    for bad in (tree[:2, :2], tree[:3]):
        with pytest.raises(ValueError, match="two square matrices of the same three or more things"):
            mantel(bad, bad)


LEAVES = ["cat", "dog", "oak", "elm", "life"]
TREE = {"cat": "animal", "dog": "animal", "oak": "tree", "elm": "tree", "tree": "plant"}
TREE |= {"animal": "life", "plant": "life"}


def test_paths_between_leaves():
    found = path_distances(TREE, LEAVES)
    assert found[0].tolist() == [0, 2, 5, 5, 2]
    assert torch.equal(found, found.mT)
    with pytest.raises(ValueError, match="'cat' and 'rock' have no ancestor in common: 'life' and 'rock'"):
        path_distances(TREE, ["cat", "rock"])
    with pytest.raises(ValueError, match="goes in circles at 'b'"):
        path_distances({"a": "b", "b": "a"}, ["a", "b"])
