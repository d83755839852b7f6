"""Bayesian influence: closed forms and limits, additivity over tokens, errors that cover, chains that died."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.covariances import between_share, correlations, covariances, effective_draws, split_half
from lightning_slt.estimators.base import Run
from lightning_slt.probes import Probe, ProbeAtAnchor
from lightning_slt.types import Draw, student_t_quantile

FAR = 5.0
"""z-scores beyond which an entry is wrong: 100 entries reach it once in 10⁴ runs with 64 chains."""


def dice(seed=0):
    return torch.Generator().manual_seed(seed)


def normals(*shape, seed=0):
    return torch.randn(*shape, generator=dice(seed), dtype=torch.float64)


def accumulated(train, query, *, nbeta=10.0, num_samples=5, share_batches=False, order=None, **settings):
    """An accumulator that was fed traces ``[chain, draw, sample]`` or ``[…, token]``, of the chains in ``order``."""
    probes = {
        name: ProbeAtAnchor(anchor=torch.zeros_like(t[0, 0]), labels=None, indices=torch.arange(t.shape[2]))
        for name, t in (("train", train), ("query", query))
    }
    run = Run(num_chains=len(train), num_draws=train.shape[1], nbeta=nbeta, localization=1.0, dimension=3,
              num_samples=num_samples, share_batches=share_batches, probes=probes)  # fmt: skip
    accumulator = slt.BayesianInfluence(train=[0], query=[1], **settings).start(run)
    for chains in [tuple(range(len(train)))] if order is None else [(chain,) for chain in order]:
        for draw in range(train.shape[1]):
            here = {"train": train[list(chains), draw], "query": query[list(chains), draw]}
            nothing = torch.zeros(len(chains))
            accumulator.update(
                Draw(chains=chains, index=draw, step=10 * (draw + 1), loss=nothing, anchor_loss=nothing,
                     position=nothing[:, None], probes=here)
            )  # fmt: skip
    return accumulator


def estimated(train, query, **settings):
    """The estimator's result for traces that are already there."""
    return accumulated(train, query, **settings).compute()


class Regression:
    """ℓ_i = ½ (y_i − x_i·w)², whose posterior is Gaussian."""

    def __init__(self, *, nbeta, localization, step_size=0.0, n=12, d=3):
        self.x, self.y = normals(n, d, seed=1), normals(n, seed=2)
        self.nbeta, self.localization = nbeta, localization
        self.anchor = torch.linalg.lstsq(self.x, self.y[:, None]).solution[:, 0] + 0.1
        self.step_size = step_size

    def law(self, weights=None):
        """Mean and covariance, with the sampler's step: SGLD's stationary covariance is (P − ε P²/4)⁻¹."""
        weights = torch.full_like(self.y, 1 / len(self.y)) if weights is None else weights
        eye = torch.eye(self.x.shape[1], dtype=torch.float64)
        precision = self.nbeta * self.x.T @ (weights[:, None] * self.x) + self.localization * eye
        mean = torch.linalg.solve(
            precision, self.nbeta * self.x.T @ (weights * self.y) + self.localization * self.anchor
        )
        return mean, torch.linalg.inv(precision - self.step_size / 4 * precision @ precision)

    def covariance(self):
        """METHODS 5: ``r_i r_j x_iᵀS x_j + ½ (x_iᵀS x_j)²``."""
        mean, spread = self.law()
        r, between = self.y - self.x @ mean, self.x @ spread @ self.x.T
        return r[:, None] * r * between + between.square() / 2

    def expected_losses(self, weights):
        mean, spread = self.law(weights)
        return ((self.y - self.x @ mean).square() + (self.x @ spread * self.x).sum(1)) / 2

    def losses(self, w):
        return (self.y - w @ self.x.T).square() / 2

    def module(self):
        net = nn.Linear(self.x.shape[1], 1, bias=False, dtype=torch.float64)
        with torch.no_grad():
            net.weight.copy_(self.anchor)
        return net

    @property
    def data(self):
        return TensorDataset(self.x, self.y[:, None])


def half_square(module, batch):
    return (module(batch[0]) - batch[1]).square()[:, 0] / 2


def z_scores(estimate, stderr, truth):
    return ((estimate - truth) / stderr).abs().max()


def sampled(net, data, loss_fn, *, nbeta, localization, sampler, draws=200, thinning=4, chains=64, **settings):
    return slt.estimate(
        net, data, [slt.BayesianInfluence(train=data, query=Probe(data, name="query"), **settings)], loss_fn=loss_fn,
        sampler=sampler, nbeta=nbeta, localization=localization,
        sampling=slt.SamplingConfig(num_chains=chains, num_draws=draws, num_burnin=60, thinning=thinning,
                                    batch_size=len(data)),
    )["influence"]  # fmt: skip


def test_exact_draws_of_a_regression():
    task = Regression(nbeta=20.0, localization=1.0)
    mean, spread = task.law()
    w = mean + normals(64, 500, 3) @ torch.linalg.cholesky(spread).T
    losses = task.losses(w)
    found = estimated(losses, losses)
    assert z_scores(found.influence, found.stderr, -task.covariance()) < FAR
    assert z_scores(found.influence, found.stderr, task.covariance()) > FAR  # the sign is seen
    size = task.covariance().diagonal().sqrt()
    truth = -task.covariance() / (size[:, None] * size)
    off = ~torch.eye(len(truth), dtype=torch.bool)
    assert z_scores(found.normalized[off], found.normalized_stderr[off], truth[off]) < FAR
    assert torch.allclose(found.normalized.diagonal(), torch.tensor(-1.0, dtype=torch.float64))


def test_a_sampled_regression_follows_the_law_of_its_step():
    task = Regression(nbeta=20.0, localization=5.0, step_size=0.03)
    found = sampled(task.module(), task.data, half_square, nbeta=20.0, localization=5.0,
                    sampler=slt.SGLD(step_size=0.03))  # fmt: skip
    assert z_scores(found.influence, found.stderr, -task.covariance()) < FAR
    task.step_size = 0.0
    assert z_scores(found.influence, found.stderr, -task.covariance()) > FAR  # the continuous law is told apart
    assert bool((found.influence.diagonal() < 0).all())  # more weight on a sample lowers its own loss


def test_response_is_the_change_of_the_expected_loss_with_a_samples_weight():
    task = Regression(nbeta=20.0, localization=1.0)
    n, step = len(task.y), 1e-6
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    moved = torch.stack([task.expected_losses(weights + s * step / n * e) for e in torch.eye(n, dtype=torch.float64)
                         for s in (1, -1)])  # fmt: skip
    response = (moved[::2] - moved[1::2]) / (2 * step)
    assert torch.allclose(response, -task.nbeta / n * task.covariance(), rtol=1e-6, atol=1e-9)
    losses = task.losses(task.law()[0] + normals(4, 10, 3))
    plain = estimated(losses, losses, nbeta=20.0, num_samples=n)
    scaled = estimated(losses, losses, nbeta=20.0, num_samples=n, scale="response")
    assert torch.allclose(scaled.influence, 20 / n * plain.influence, rtol=1e-12)
    assert torch.allclose(scaled.stderr, 20 / n * plain.stderr, rtol=1e-12)
    assert torch.equal(scaled.normalized, plain.normalized)
    assert torch.allclose(scaled.covariance, plain.covariance, rtol=1e-12)


def test_the_number_of_samples_comes_from_the_data():
    task = Regression(nbeta=20.0, localization=1.0)
    settings = {"nbeta": 20.0, "localization": 1.0, "sampler": slt.SGLD(step_size=1e-3), "draws": 5, "chains": 2}
    assert sampled(task.module(), task.data, half_square, scale="response", **settings).factor == 20 / 12


def damped(gradients, hessian, nbeta, localization):
    """−g_jᵀ (nβ H + γ)⁻¹ g_i."""
    inverse = torch.linalg.inv(nbeta * hessian + localization * torch.eye(len(hessian), dtype=torch.float64))
    return -gradients @ inverse @ gradients.T


def test_a_cold_posterior_gives_the_damped_influence_function():
    nbeta, gamma = 1e6, 2e5
    task = Regression(nbeta=nbeta, localization=gamma)
    task.anchor = torch.linalg.lstsq(task.x, task.y[:, None]).solution[:, 0]
    hessian, gradients = task.x.T @ task.x / 12, -(task.y - task.x @ task.anchor)[:, None] * task.x
    found = sampled(task.module(), task.data, half_square, nbeta=nbeta, localization=gamma,
                    sampler=slt.UnderdampedLangevin(step_size=5e-4, friction=2 * gamma**0.5))  # fmt: skip
    assert z_scores(found.influence, found.stderr, damped(gradients, hessian, nbeta, gamma)) < FAR
    assert z_scores(found.influence, found.stderr, -gradients @ gradients.T / gamma) > FAR


def test_strong_localization_gives_the_dot_product_of_gradients():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = TensorDataset(normals(10, 3), torch.arange(10) % 2)
    rows = []
    for x, y in data:
        gradient = torch.autograd.grad(nn.functional.cross_entropy(net(x), y), list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradient]))
    gradients, gamma = torch.stack(rows), 1e8
    found = sampled(net, data, slt.losses.classification, nbeta=10.0, localization=gamma,
                    sampler=slt.UnderdampedLangevin(step_size=gamma**-0.5, friction=2 * gamma**0.5),
                    draws=60, thinning=3)  # fmt: skip
    truth = -gradients @ gradients.T / gamma
    assert z_scores(found.influence, found.stderr, truth) < FAR
    assert z_scores(found.influence, found.stderr, 1.5 * truth) > FAR


def tokens(padded=False):
    traces = normals(4, 30, 5, 3, seed=3), normals(4, 30, 2, 4, seed=4)
    shared = normals(4, 30, seed=5)[:, :, None, None]
    train, query = (t + shared for t in traces)
    if padded:
        train[:, :, 1, 2:] = 0.0
    return train, query


def test_influences_add_over_tokens_and_correlations_do_not():
    train, query = tokens()
    whole = estimated(train, query)
    both, left, right = (estimated(train, query, tokens=t) for t in ("both", "train", "query"))
    assert both.influence.shape == (5, 3, 2, 4)
    assert torch.allclose(both.influence.sum((1, 3)), whole.influence, rtol=0, atol=1e-10)
    assert torch.allclose(left.influence.sum(1), whole.influence, rtol=0, atol=1e-10)
    assert torch.allclose(right.influence.sum(2), whole.influence, rtol=0, atol=1e-10)
    assert not torch.allclose(both.normalized.sum((1, 3)), whole.normalized, rtol=0, atol=0.1)


def test_padded_tokens_count_for_nothing():
    train, query = tokens(padded=True)
    found = estimated(train, query, tokens="train")
    assert found.silent == 1
    for values in (found.influence, found.normalized, found.stderr, found.normalized_stderr):
        assert bool((values[1, 2] == 0).all())
        assert bool(values.isfinite().all())
    short = estimated(train[:, :, 1:2, :2], query)
    assert torch.allclose(short.influence[0], estimated(train, query).influence[1], rtol=0, atol=1e-12)


def test_a_constant_loss_is_zero_wherever_it_stands():
    train, query = normals(3, 7, 4), normals(3, 7, 2, seed=1)
    train[:, :, 2] = torch.tensor([0.1, 0.7, 1e9], dtype=torch.float64)[:, None]  # the mean of seven 0.7 is not 0.7
    found = estimated(train, query)
    assert bool((found.influence[2] == 0).all())
    assert bool((found.normalized[2] == 0).all())
    assert found.silent == 1


def test_offsets_of_chains_are_no_influence():
    offsets = 10 * normals(64, 1, 1, seed=7)
    train, query = normals(64, 50, 4) + offsets, normals(64, 50, 3, seed=1) + offsets
    within, pooled = (estimated(train, query, pooled=p) for p in (False, True))
    assert z_scores(within.influence, within.stderr, torch.zeros(4, 3)) < FAR
    assert float(pooled.influence.abs().min()) > 50
    assert "between_chains" in within.health.warnings
    assert "between_chains" not in estimated(train - offsets, query - offsets).health.warnings


def test_pooled_covariances_are_those_of_all_draws_in_a_row():
    train, query = normals(3, 20, 4), normals(3, 20, 2, seed=1)
    found = covariances(train, query, pooled=True)
    together = torch.cat([train, query], 2).flatten(0, 1).T
    assert torch.allclose(found.covariance, together.cov()[:4, 4:], rtol=0, atol=1e-12)
    assert torch.allclose(found.correlation, together.corrcoef()[:4, 4:], rtol=0, atol=1e-12)


def test_covariances_and_errors_by_hand():
    train, query = normals(3, 20, 4), normals(3, 20, 2, seed=1)
    found = covariances(train, query)
    by_chain = [torch.cat([a, b], 1).T.cov()[:4, 4:] for a, b in zip(train, query, strict=True)]
    stacked = torch.stack(by_chain)
    assert torch.allclose(found.covariance, stacked.mean(0), rtol=0, atol=1e-12)
    assert torch.allclose(found.stderr, stacked.std(0) / math.sqrt(3), rtol=0, atol=1e-12)
    left_out = torch.stack([covariances(train[r], query[r]).correlation for r in ([1, 2], [0, 2], [0, 1])])
    jackknife = (2 / 3 * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    assert torch.allclose(found.correlation_stderr, jackknife, rtol=0, atol=1e-12)


def test_blocks_change_nothing():
    train, query = normals(3, 20, 7), normals(3, 20, 2, seed=1)
    whole = covariances(train, query)
    for block in (1, 2, 7, 100):
        for a, b in zip(whole, covariances(train, query, block=block), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooled", [False, True])
def test_correlations_alone_have_the_same_bits(pooled):
    train, query = normals(3, 20, 7), normals(3, 20, 2, seed=1)
    train[:, :, 3] = 1.0  # no variance
    for first, second in ((train, query), (train, train)):
        for block in (None, 2):
            whole = covariances(first, second, pooled=pooled, block=block).correlation
            assert torch.equal(correlations(first, second, pooled=pooled, block=block), whole)


def test_permutations_of_samples_chains_and_draws():
    train, query = normals(4, 20, 5), normals(4, 20, 3, seed=1)
    found = estimated(train, query)
    rows, columns = torch.randperm(5, generator=dice(1)), torch.randperm(3, generator=dice(2))
    moved = estimated(train[:, :, rows], query[:, :, columns])
    assert torch.allclose(moved.influence, found.influence[rows][:, columns], rtol=0, atol=1e-12)
    assert torch.allclose(moved.stderr, found.stderr[rows][:, columns], rtol=0, atol=1e-12)
    assert torch.equal(estimated(train, query, order=[2, 0, 3, 1]).influence, found.influence)
    chains, draws = torch.tensor([2, 0, 3, 1]), torch.randperm(20, generator=dice(3))
    other = estimated(train[chains][:, draws], query[chains][:, draws])
    assert torch.allclose(other.influence, found.influence, rtol=0, atol=1e-12)
    assert torch.allclose(other.stderr, found.stderr, rtol=0, atol=1e-12)
    assert torch.allclose(estimated(query, train).influence, found.influence.T, rtol=0, atol=1e-12)


def test_processes_add_their_chains_up():
    train, query = normals(4, 20, 5, 2), normals(4, 20, 3, seed=1)
    first, second = (accumulated(train, query, order=order) for order in ((0, 2), (1, 3)))
    for mine, other in zip(first.states, second.states, strict=True):
        mine.values += other.values
    found, whole = first.compute(), estimated(train, query)
    assert torch.equal(found.influence, whole.influence)
    assert torch.equal(found.stderr, whole.stderr)


def test_standard_errors_cover():
    count, chains = 400, 8
    a = normals(chains, 100, count)
    b = 0.6 * a + 0.8 * normals(chains, 100, count, seed=1)
    found = covariances(a, b)  # its diagonal holds independent experiments
    half = student_t_quantile(0.95, degrees=chains - 1)
    for value, error in ((found.covariance, found.stderr), (found.correlation, found.correlation_stderr)):
        covered = ((value.diagonal() - 0.6).abs() <= half * error.diagonal()).double().mean()
        assert abs(float(covered) - 0.9) < 4 * math.sqrt(0.9 * 0.1 / count)


def test_effective_draws_of_an_autocorrelated_trace():
    phi, x = 0.8, [normals(16, 1, seed=9)]
    noise = normals(3000, 16, 1, seed=10)
    for e in noise:
        x.append(phi * x[-1] + math.sqrt(1 - phi**2) * e)
    traces = torch.stack(x[1:], 1)
    assert effective_draws(traces) == pytest.approx(16 * 3000 * (1 - phi) / (1 + phi), rel=0.1)
    assert between_share(traces) < 0.01
    assert math.isnan(effective_draws(torch.zeros(2, 10, 1)))


def test_reliability_says_how_alike_another_run_is():
    spread = torch.linalg.cholesky(torch.eye(30, dtype=torch.float64) + 0.3)
    loads = normals(30, 3, seed=2)

    def run(seed):
        return normals(8, 40, 3, seed=seed) @ loads.T + normals(8, 40, 30, seed=100 + seed) @ spread.T

    first, second = (covariances(t[:, :, :20], t[:, :, 20:]).correlation.flatten() for t in map(run, (1, 2)))
    alike = float(torch.corrcoef(torch.stack([first, second]))[0, 1])
    traces = run(1)
    assert split_half(traces[:, :, :20], traces[:, :, 20:]) == pytest.approx(alike, abs=0.05)
    noise = normals(8, 40, 40)
    assert abs(split_half(noise[:, :, :20], noise[:, :, 20:])) < 4 * 2 / math.sqrt(400)
    assert abs(split_half(noise, noise)) < 4 * 2 / math.sqrt(40 * 39 / 2)


def test_dead_chains_are_left_out_and_listed():
    train, query = normals(4, 20, 5), normals(4, 20, 3, seed=1)
    query[1, 6, 2] = math.nan
    found = estimated(train, query)
    live = [0, 2, 3]
    assert found.health.dead_chains == {1: 70}
    assert "finite" in found.health.failed
    assert torch.allclose(found.influence, -covariances(train[live], query[live]).covariance, rtol=0, atol=1e-12)
    nothing = estimated(train * math.nan, query)
    assert bool(nothing.influence.isnan().all())
    assert not nothing.health.ok


def test_errors_that_cannot_be_known_are_missing():
    train, query = normals(4, 20, 5), normals(4, 20, 3, seed=1)
    shared, single = estimated(train, query, share_batches=True), estimated(train[:1], query[:1])
    for found in (shared, single):
        assert bool(found.stderr.isnan().all() and found.normalized_stderr.isnan().all())
        assert bool(found.influence.isfinite().all())


def test_few_draws_are_warned_of():
    assert "n_eff" in estimated(normals(4, 20, 5), normals(4, 20, 3)).health.warnings
    assert "n_eff" not in estimated(normals(4, 200, 5), normals(4, 200, 3)).health.warnings


def test_what_cannot_be():
    data = [torch.zeros(2)]
    with pytest.raises(ValueError, match=r"scale must be one of \('covariance', 'response'\), got 'cov'"):
        slt.BayesianInfluence(train=data, query=data, scale="cov")
    with pytest.raises(ValueError, match="tokens must be one of"):
        slt.BayesianInfluence(train=data, query=data, tokens=True)
    with pytest.raises(ValueError, match="train and query are different probes of one name, 'probe'"):
        slt.BayesianInfluence(train=Probe(data), query=Probe([torch.ones(2)]))
    with pytest.raises(ValueError, match="same chains and draws, got shapes"):
        covariances(torch.zeros(2, 3, 1), torch.zeros(2, 4, 1))
    with pytest.raises(ValueError, match="one live chain and two draws at least, got 2 chains of 1 draws"):
        covariances(torch.zeros(2, 1, 1), torch.zeros(2, 1, 1))


def test_one_set_of_samples_is_evaluated_once():
    data = TensorDataset(normals(5, 2), torch.zeros(5).long())
    assert len(slt.BayesianInfluence(train=data, query=data).probes) == 1
    probe = Probe(data, name="both")
    assert slt.BayesianInfluence(train=probe, query=probe).probes == (probe,)


def test_the_table_names_helpful_and_harmful_samples():
    from lightning_slt.reporting.influence import influence_table

    shared = normals(64, 50, 1)
    train = torch.tensor([3.0, -2.0, 0.0, 1.0]) * shared + 0.1 * normals(64, 50, 4, seed=1)
    result = estimated(train, shared + 0.1 * normals(64, 50, 1, seed=2))
    assert result.helpful(0, count=2).tolist() == [0, 3]
    assert result.harmful(0, count=1).tolist() == [1]
    lines = influence_table(result, count=2).splitlines()
    assert lines[0] == "| query | most helpful | most harmful |"
    _, query, helpful, harmful, _ = (cell.strip() for cell in lines[2].split("|"))
    assert query == "**0**"
    shown = [f"**{i}** {result.influence[i, 0]:+.2g} ± {result.stderr[i, 0]:.1g}" for i in range(4)]
    assert (helpful, harmful.split(" · ")[0]) == (f"{shown[0]} · {shown[3]}", shown[1])
    assert f"({shown[2]})" in influence_table(result, count=4)
    apart = estimated(*tokens(), tokens="both")
    with pytest.raises(ValueError, match="write tokens='sum' for a table"):
        influence_table(apart)


def test_samples_are_named_as_in_the_users_data():
    """``helpful``, ``harmful`` and the table speak of the same samples, those of the data set and not of the matrix."""
    from lightning_slt.reporting.influence import influence_table

    torch.manual_seed(0)
    x, y = normals(30, 3), torch.arange(30) % 2
    probe = Probe(TensorDataset(x, y), name="train", num_samples=8)
    estimator = slt.BayesianInfluence(train=probe, query=Probe(TensorDataset(x[:4], y[:4]), name="query"))
    found = slt.estimate(
        nn.Linear(3, 2).double(), TensorDataset(x, y), [estimator], loss_fn=slt.losses.classification, nbeta=20.0,
        localization=1.0, sampler=slt.SGLD(step_size=1e-2),
        sampling=slt.SamplingConfig(num_chains=3, num_draws=20, num_burnin=5, batch_size=30),
    )["influence"]  # fmt: skip
    chosen = found.train_indices.tolist()
    assert chosen != list(range(8))
    helpful, harmful = found.helpful(1, count=3), found.harmful(1, count=2)
    column = found.influence[:, 1]
    assert helpful.tolist() == [chosen[row] for row in column.argsort()[:3]]
    assert harmful.tolist() == [chosen[row] for row in column.argsort(descending=True)[:2]]
    assert found.rows(helpful).tolist() == column.argsort()[:3].tolist()
    line = influence_table(found, queries=[1], count=3).splitlines()[2]
    places = [line.index(f"**{sample}**") for sample in [*helpful.tolist(), *harmful.tolist()]]
    assert places == sorted(places)
    stranger = next(i for i in range(30) if i not in chosen)
    with pytest.raises(ValueError, match=rf"samples \[{stranger}\] are none of the 8 training samples"):
        found.rows([chosen[0], stranger])
    apart = estimated(*tokens(), tokens="both")
    with pytest.raises(ValueError, match=r"tokens were kept apart, shape .*; write tokens='sum'"):
        apart.helpful(0)


def test_names_of_axes():
    train, query = tokens()
    flat = train.sum(3), query.sum(3)
    for traces, word, sides in (
        ((train, query), "both", ("train", "train_token", "query", "query_token")),
        ((train, query), "train", ("train", "train_token", "query")),
        ((train, query), "query", ("train", "query", "query_token")),
        ((train, query), "sum", ("train", "query")),
        ((train, flat[1]), "both", ("train", "train_token", "query")),
        (flat, "both", ("train", "query")),
    ):
        found = estimated(*traces, tokens=word)
        assert found.axes()["influence"] == sides
        assert found.influence.ndim == len(sides)


def test_one_line_says_what_it_is():
    found = estimated(normals(4, 20, 5), normals(4, 20, 3, seed=1))
    mean = float(found.influence.mean())
    assert repr(found).startswith(f"Influence(influence [5, 3] of mean {mean:.3g}; factor 1, n_eff ")
    assert repr(found).endswith(f"; {found.health})")
    assert "tensor" not in repr({"influence": found})


def test_live_with_records_and_a_table(tmp_path):
    torch.manual_seed(0)
    x, y = normals(40, 4).float(), torch.arange(40) % 3
    data = TensorDataset(x, y)

    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = slt.InfluenceMonitor(
        train=Probe(data, name="train", num_samples=12), query=TensorDataset(x[:5], y[:5]), scale="response",
        sampler=slt.SGLD(step_size=1e-3), nbeta=10.0, localization=5.0, every_n_train_steps=3,
        sampling=slt.SamplingConfig(num_chains=3, num_draws=5, num_burnin=2, batch_size=8),
    )  # fmt: skip
    trainer = L.Trainer(max_steps=3, callbacks=[monitor], logger=TensorBoardLogger(tmp_path), accelerator="cpu",
                        log_every_n_steps=1, enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(Net(), DataLoader(data, batch_size=8))
    fields = {f"slt/full/influence/{f}" for f in (*slt.BayesianInfluence.fields, "ok")}
    assert fields <= set(trainer.callback_metrics)
    assert float(trainer.callback_metrics["slt/full/influence/factor"]) == pytest.approx(10 / 40)
    stored = slt.load_records(tmp_path)[-1].estimates["full"]["influence"]
    assert stored.influence.shape == stored.stderr.shape == (12, 5)
    assert stored.query_labels.tolist() == [0, 1, 2, 0, 1]
    assert len(stored.train_indices) == len(stored.train_labels) == 12
    events = EventAccumulator(trainer.logger.log_dir).Reload()
    (text,) = [events.Tensors(tag)[-1] for tag in events.Tags()["tensors"] if "influence/samples" in tag]
    assert b"| query | most helpful | most harmful |" in text.tensor_proto.string_val[0]
