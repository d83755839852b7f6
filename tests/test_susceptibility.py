"""Susceptibilities against closed forms, against what they are a derivative of, and against a naive twin."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.estimators.base import WHOLE, Accumulator, Estimator, Run
from lightning_slt.probes import ProbeAtAnchor
from lightning_slt.statistics import CrossMoments, ProbeTraces

DOUBLE = torch.float64
NBETA, GAMMA = 20.0, 5.0
BLOCKS = {"first": [0, 1], "last": [2, 3, 4]}


def regression(count=30, seed=3):
    """Inputs, targets with noise, and the weights of least squares: a true minimum with residuals."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=g, dtype=DOUBLE)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0], dtype=DOUBLE) + 0.3 * torch.randn(count, generator=g, dtype=DOUBLE)
    return x, y, torch.linalg.lstsq(x, y[:, None]).solution[:, 0]


class Block:
    """Closed forms of one block of a linear regression at its minimum, for weights of covariance ``S``."""

    def __init__(self, x, moving, covariance):
        self.x = x[:, moving]
        self.h = self.x.T @ self.x / len(x)
        self.s = covariance(self.h)

    @property
    def rise(self):
        return (self.h @ self.s).trace() / 2

    @property
    def delta(self):
        return torch.stack([((torch.outer(a, a) - self.h) @ self.s).trace() / 2 for a in self.x])

    @property
    def chi(self):
        each = [(self.h @ self.s @ (torch.outer(a, a) - self.h) @ self.s).trace() for a in self.x]
        return -torch.stack(each) / 2


def continuous(nbeta=NBETA):
    return lambda h: torch.linalg.inv(nbeta * h + GAMMA * torch.eye(len(h), dtype=DOUBLE))


def discrete(step_size, nbeta=NBETA):
    """Stationary covariance of SGLD on the whole data: ``(P − ε P²/4)⁻¹``."""

    def covariance(h):
        p = nbeta * h + GAMMA * torch.eye(len(h), dtype=DOUBLE)
        return torch.linalg.inv(p - step_size / 4 * p @ p)

    return covariance


def exact_draws(moving, chains, draws, seed, nbeta=NBETA):
    """Independent draws of the weights of a block ``[chain, draw, weight]``."""
    x, _, best = regression()
    cholesky = torch.linalg.cholesky(Block(x, moving, continuous(nbeta)).s)
    noise = torch.randn(chains, draws, len(moving), generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    weights = best.repeat(chains, draws, 1)
    weights[:, :, moving] += noise @ cholesky.T
    return weights


def squared(weights):
    x, y, _ = regression()
    return (weights @ x.T - y).square() / 2


def run_of(chains, draws, **more):
    losses = squared(regression()[2])
    known = ProbeAtAnchor(anchor=losses, labels=None, indices=torch.arange(len(losses)))
    probes = {"samples": known, "reference": known}
    run = Run(num_chains=chains, num_draws=draws, nbeta=NBETA, localization=GAMMA, dimension=5, num_samples=30)
    return replace(run, **{"probes": probes, **more})


def feed(estimator, losses, accumulator=None, chains=None, **more):
    """Averages of one run of chains whose losses are given ``[chain, draw, sample]``."""
    count, draws = losses.shape[:2]
    accumulator = accumulator or estimator.start(run_of(count, draws, **more))
    chains = tuple(range(count)) if chains is None else chains
    for index in range(draws):
        at = losses[list(chains), index]
        probes = {"samples": at, "reference": at}
        zeros = torch.zeros(len(chains), dtype=DOUBLE)
        accumulator.update(
            slt.Draw(chains=chains, index=index, step=10 * (index + 1), loss=zeros, anchor_loss=zeros,
                     position=zeros[:, None], probes=probes)
        )  # fmt: skip
    return accumulator


def averages(estimator, seed=0, chains=64, draws=200, nbeta=NBETA):
    """Averages of all components' chains, and of those of all weights."""
    parts = {}
    for number, (name, moving) in enumerate([*BLOCKS.items(), (WHOLE, range(5))]):
        losses = squared(exact_draws(list(moving), chains, draws, 10 * seed + number, nbeta))
        parts[name] = feed(estimator, losses).compute()
    return parts if estimator.whole else {name: part for name, part in parts.items() if name != WHOLE}


def susceptibility(method, **more):
    return slt.Susceptibility(slt.Probe(None, name="samples"), method=method, **more)


def test_restricted_closed_form():
    found = susceptibility("restricted").combine(averages(susceptibility("restricted")))
    x = regression()[0]
    for column, moving in enumerate(BLOCKS.values()):
        block = Block(x, moving, continuous())
        z = (found.matrix[:, column] - block.chi) / found.stderr[:, column]
        assert z.abs().max() < 4
        assert 0.5 < z.square().mean() < 2  # errors of the right size: 30 correlated z-scores of 64 chains
        assert found.rise[column] == pytest.approx(float(block.rise), rel=0.02)
        assert torch.allclose(found.delta[:, column], block.delta, atol=0.05 * float(block.delta.abs().max()))
    assert found.whole_delta is None


def test_two_chain_closed_form():
    estimator = susceptibility("two_chain")
    found = estimator.combine(averages(estimator, seed=1))
    x = regression()[0]
    whole = Block(x, range(5), continuous())
    for column, moving in enumerate(BLOCKS.values()):
        block = Block(x, moving, continuous())
        expected = block.chi + block.rise * (whole.delta - block.delta)
        z = (found.matrix[:, column] - expected) / found.stderr[:, column]
        assert z.abs().max() < 4
        assert 0.5 < z.square().mean() < 2


def test_sign():
    """More weight on a sample along which the block moves more than on average pulls the block's loss down there."""
    x = regression()[0]
    block = Block(x, BLOCKS["first"], continuous())
    found = susceptibility("restricted").combine(averages(susceptibility("restricted"))).matrix[:, 0]
    longest, shortest = x[:, BLOCKS["first"]].norm(dim=1).argmax(), x[:, BLOCKS["first"]].norm(dim=1).argmin()
    assert found[longest] < 0 < found[shortest]
    assert block.chi[longest] < 0 < block.chi[shortest]


def test_restricted_responses_to_the_data_add_up_to_zero():
    found = susceptibility("restricted").combine(averages(susceptibility("restricted"), chains=3, draws=5))
    assert found.matrix.sum(0).abs().max() < 1e-10
    assert found.matrix.abs().max() > 1e-3


@pytest.mark.parametrize("offset", [0.0, 7.0])
def test_naive_twin_and_identity(offset):
    """χ two chain = −Cov_C[g, Δ] + E_C[g] (E_all[Δ] − E_C[Δ]), whatever is added to all losses of one sample."""
    estimator = susceptibility("two_chain")
    losses = {name: squared(exact_draws(list(m), 4, 6, 50 + k)) for k, (name, m) in
              enumerate([*BLOCKS.items(), (WHOLE, range(5))])}  # fmt: skip
    found = estimator.combine({name: feed(estimator, each).compute() for name, each in losses.items()})
    anchor = squared(regression()[2])
    flat = {name: each.flatten(0, 1) for name, each in losses.items()}
    delta = {name: each - each.mean(1, keepdim=True) for name, each in flat.items()}
    for column, name in enumerate(BLOCKS):
        g = flat[name].mean(1) - anchor.mean()
        d = delta[name] + offset
        covariance = torch.cov(torch.cat([g[None], d.T]), correction=0)[0, 1:]
        identity = -covariance + g.mean() * ((delta[WHOLE] + offset).mean(0) - d.mean(0))
        assert torch.allclose(found.matrix[:, column], identity, rtol=0, atol=1e-12)
    restricted = susceptibility("restricted")
    got = restricted.combine({n: feed(restricted, losses[n]).compute() for n in BLOCKS})
    for column, name in enumerate(BLOCKS):
        of_chain = [
            torch.cov(torch.cat([each.mean(1)[None], (each - each.mean(1, keepdim=True)).T]))[0, 1:]
            for each in losses[name]
        ]
        assert torch.allclose(got.matrix[:, column], -torch.stack(of_chain).mean(0), rtol=0, atol=1e-12)
        error = torch.stack(of_chain).std(0) / math.sqrt(4)
        assert torch.allclose(got.stderr[:, column], error, rtol=1e-8, atol=0)


def test_the_error_of_a_probe_is_that_of_the_mean_of_its_rows():
    estimator = susceptibility("restricted")
    found = estimator.combine(averages(estimator, chains=6, draws=9))
    assert torch.allclose(found.by_probe[0], found.matrix.mean(0))
    assert found.by_probe_stderr.abs().max() < 1e-10  # the rows add up to zero in every chain
    assert set(found.by_component()) == set(BLOCKS)
    assert found.by_component()["last"].keys() == {"samples/mean", "samples/stderr", "ok"}


def test_coverage_of_the_two_chain_error():
    """Standard deviation over 100 repetitions against the mean jackknife error of four chains."""
    estimator = susceptibility("two_chain")
    found = [estimator.combine(averages(estimator, seed=s, chains=4, draws=20)) for s in range(100)]
    spread = torch.stack([f.matrix for f in found]).std(0)
    error = torch.stack([f.stderr for f in found]).square().mean(0).sqrt()
    assert float((error / spread).mean()) == pytest.approx(1, abs=0.1)


def test_states_of_parts_add_up():
    estimator = susceptibility("restricted")
    losses = squared(exact_draws([0, 1], 4, 6, 0))
    whole = feed(estimator, losses)
    first, second = (feed(estimator, losses, chains=c) for c in ((0, 2), (1, 3)))
    for mine, theirs in zip(first.states, second.states, strict=True):
        for name in mine._defaults:
            setattr(mine, name, getattr(mine, name) + getattr(theirs, name))
    assert torch.allclose(first.compute().covariance, whole.compute().covariance, rtol=0, atol=1e-12)


def test_permuted_samples():
    estimator = susceptibility("restricted")
    losses = squared(exact_draws([0, 1], 4, 6, 0))
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    known = ProbeAtAnchor(anchor=squared(regression()[2])[order], labels=None, indices=order)
    probes = {"samples": known, "reference": known}
    one = feed(estimator, losses).compute()
    other = feed(estimator, losses[:, :, order], probes=probes).compute()
    assert torch.allclose(one.covariance[:, order], other.covariance, rtol=0, atol=1e-12)
    assert torch.equal(other.rows[:, 1], order)


def test_dead_chains_are_left_out_of_both_runs():
    estimator = susceptibility("two_chain")
    losses = {name: squared(exact_draws(list(m), 5, 8, k)) for k, (name, m) in
              enumerate([*BLOCKS.items(), (WHOLE, range(5))])}  # fmt: skip
    alive = {n: feed(estimator, each[[0, 1, 3]]).compute() for n, each in losses.items()}
    losses["first"][2, 4] = math.nan
    losses[WHOLE][4, 6:, 0] = math.inf  # one sample alone
    losses["last"][[2, 4]] = math.nan
    found = estimator.combine({n: feed(estimator, each).compute() for n, each in losses.items()})
    expected = estimator.combine(alive)
    assert torch.allclose(found.matrix, expected.matrix, rtol=0, atol=1e-12)
    assert torch.allclose(found.stderr, expected.stderr, rtol=0, atol=1e-12)
    assert found.health.dead_chains == {2: 10, 4: 10}
    assert not found.health.ok
    assert "finite" in found.health.failed
    none = torch.full_like(losses["first"], math.nan)
    nothing = estimator.combine(dict.fromkeys(losses, feed(estimator, none).compute()))
    assert nothing.matrix.isnan().all()
    assert nothing.stderr.isnan().all()


def test_no_error_from_one_chain_or_from_chains_that_share_minibatches():
    estimator = susceptibility("restricted")
    for chains, more in ((1, {}), (4, {"share_batches": True})):
        found = estimator.combine({"c": feed(estimator, squared(exact_draws([0], chains, 9, 0)), **more).compute()})
        assert found.matrix.isfinite().all()
        assert found.stderr.isnan().all()
        assert math.isnan(found.signal)


def test_cross_moments_are_those_of_torch():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 7, generator=g, dtype=DOUBLE), torch.randn(2, 7, 3, generator=g, dtype=DOUBLE)
    moments = CrossMoments(2, 3)
    for t in range(7):
        moments.update((1, 0), x[[1, 0], t], y[[1, 0], t])
    for chain in range(2):
        both = torch.cov(torch.cat([x[chain][None], y[chain].T]))
        assert torch.allclose(moments.covariance()[chain], both[0, 1:], rtol=0, atol=1e-14)
        assert torch.allclose(moments.variance()[chain], both[0, 0], rtol=0, atol=1e-14)


# From here on through the whole engine.


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        best = regression()[2]
        self.first, self.last = (nn.Parameter(best[moving].clone()) for moving in BLOCKS.values())

    def forward(self, x):
        return x @ torch.cat([self.first, self.last])


def linear_loss(module, batch):
    return (module(batch[0]) - batch[1]).square() / 2


COMPONENTS = {name: slt.Component((name,)) for name in BLOCKS}
EPSILON = 0.02
COUNTS = slt.SamplingConfig(num_chains=48, num_draws=100, num_burnin=50, thinning=10, batch_size=30)


def engine(*estimators, **more):
    x, y, _ = regression()
    settings = {"sampler": slt.SGLD(step_size=EPSILON), "nbeta": NBETA, "localization": GAMMA, "sampling": COUNTS}
    return slt.estimate(Linear(), TensorDataset(x, y), estimators, loss_fn=linear_loss, **{**settings, **more})


@pytest.fixture(scope="module")
def sampled():
    x, y, _ = regression()
    probe = slt.Probe(TensorDataset(x, y), name="data")
    both = [
        slt.Susceptibility(probe, COMPONENTS, method="restricted", name="restricted"),
        slt.Susceptibility(probe, COMPONENTS, method="two_chain"),
        slt.LLC(),
    ]
    return engine(*both)


def test_sgld_has_the_values_of_its_stationary_law(sampled):
    """Squares ten steps apart correlate by less than 0.1, which takes less than 0.2 % off a covariance of 100 draws."""
    x = regression()[0]
    whole = Block(x, range(5), discrete(EPSILON))
    for column, moving in enumerate(BLOCKS.values()):
        block = Block(x, moving, discrete(EPSILON))
        restricted, both = sampled["restricted"], sampled["susceptibility"]
        z = (restricted.matrix[:, column] - block.chi) / restricted.stderr[:, column]
        assert z.abs().max() < 4.5
        expected = block.chi + block.rise * (whole.delta - block.delta)
        assert ((both.matrix[:, column] - expected) / both.stderr[:, column]).abs().max() < 4.5
    assert sampled["restricted"].matrix.sum(0).abs().max() < 1e-10


def test_the_control_is_the_response_at_nbeta_zero():
    few = slt.SamplingConfig(num_chains=3, num_draws=4, num_burnin=1, batch_size=8)
    probe = slt.Probe(TensorDataset(*regression()[:2]), name="data")
    for method in ("restricted", "two_chain"):
        asked = slt.Susceptibility(probe, COMPONENTS, method=method, control=True)
        found = engine(asked, sampling=few)["susceptibility"]
        alone = engine(slt.Susceptibility(probe, COMPONENTS, method=method), sampling=few, nbeta=0.0)["susceptibility"]
        assert torch.allclose(found.control, alone.matrix, rtol=0, atol=1e-12)
        assert not torch.allclose(found.matrix, found.control)
        assert alone.control is None


def test_all_weights_are_run_once_for_all_who_ask(sampled):
    assert set(sampled) == {"restricted", "susceptibility", "llc"}
    assert sampled["susceptibility"].components == tuple(BLOCKS)
    steps = []
    few = slt.SamplingConfig(num_chains=2, num_draws=3, num_burnin=1, batch_size=8)
    probe = slt.Probe(TensorDataset(*regression()[:2]), name="data")
    work = [slt.LLC(), slt.Susceptibility(probe, COMPONENTS), slt.Susceptibility(probe, "f*", name="other")]
    engine(*work, sampling=few, on_step=steps.append)
    assert sum(steps) == 2 * 4 * 4  # all weights, "first" and "last", "f*"


class Traces(Estimator):
    """Keeps the losses of a probe."""

    name = "traces"

    def __init__(self, probe):
        self.probe = probe

    @property
    def probes(self):
        return (self.probe,)

    def start(self, run):
        kept = ProbeTraces(run.num_chains, run.num_draws, anchor=run.probes[self.probe.name].anchor)

        class Kept(Accumulator):
            states = (kept,)

            def update(self, draw):
                kept.update(draw.chains, draw.index, draw.probes["q"])

            def compute(self):
                return slt.Estimate(mean=0.0, stderr=0.0, per_chain=torch.zeros(1), health=slt.Health(ok=True),
                                    traces={"q": kept.compute()})  # fmt: skip

        return Kept()


def test_it_is_the_derivative_in_the_share_of_other_data():
    """χ = (1/nβ) d E_h[g]/dh, from chains on mixtures with h = ±0.1 whose noise is the same."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    first = torch.arange(48) < 24
    x = torch.randn(48, 2, dtype=DOUBLE) * torch.where(first, 1, 2)[:, None]
    y = (0.7 * x[:, 0]).sin() + 0.3 * x[:, 1]
    sizes = torch.ones(48, dtype=DOUBLE)

    def mixture(h):
        """Weight 1 − h in total on the first half of the samples, h on the second."""
        return TensorDataset(x, y, torch.where(first, 2 * (1 - h), 2 * h).double())

    def loss(module, batch):
        return batch[2] * (module(batch[0])[:, 0] - batch[1]).square() / 2

    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        loss(net, (x[first], y[first], sizes[first])).mean().backward()
        optimizer.step()
    q = slt.Probe(TensorDataset(x[first], y[first], sizes[first]), name="q")
    other = slt.Probe(TensorDataset(x[~first], y[~first], sizes[~first]), name="other")
    components, nbeta = {"in": slt.Component(("0.weight",)), "out": slt.Component(("2.weight",))}, 60.0
    common = {
        "loss_fn": loss, "components": components, "nbeta": nbeta, "localization": 20.0,
        "sampler": slt.UnderdampedLangevin(step_size=0.1, friction=8.0),
        "sampling": slt.SamplingConfig(num_chains=24, num_draws=120, num_burnin=30, thinning=3, batch_size=48),
    }  # fmt: skip
    estimator = slt.Susceptibility(other, method="restricted", reference=q)
    found = slt.estimate(net, mixture(0.0), [estimator], **common)["susceptibility"]
    moved = {h: slt.estimate(net, mixture(h), [Traces(q)], **common) for h in (-0.1, 0.1)}
    for column, name in enumerate(components):
        more, less = (moved[h][name]["traces"].traces["q"].mean((1, 2)) for h in (0.1, -0.1))
        slope = (more - less) / 0.2 / nbeta
        stderr = math.hypot(float(slope.std()) / math.sqrt(24), float(found.by_probe_stderr[0, column]))
        assert abs(float(slope.mean() - found.by_probe[0, column])) < 3 * stderr
        assert float(found.by_probe[0, column]) < -4 * stderr


def test_tokens_without_padding():
    torch.manual_seed(0)
    net = nn.Embedding(5, 5).double()
    tokens = torch.tensor([[0, 1, 2, 3], [1, 3, -100, -100], [4, 4, 1, -100]])

    def loss(module, batch):
        logits = module(batch[0][:, :-1].clamp(min=0)).transpose(1, 2)
        return nn.functional.cross_entropy(logits, batch[0][:, 1:], reduction="none", ignore_index=-100)

    data = TensorDataset(tokens)
    estimator = slt.Susceptibility([slt.Probe(data, name="a"), slt.Probe(TensorDataset(tokens[:1]), name="b")])
    counts = slt.SamplingConfig(num_chains=3, num_draws=4, num_burnin=1)
    settings = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 10.0, "localization": 5.0, "sampling": counts}
    found = slt.estimate(net, data, [estimator], loss_fn=loss, **settings)["susceptibility"]
    a = [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 2, 0], [0, 2, 1]]
    assert found.rows.tolist() == [*a, [1, 0, 0], [1, 0, 1], [1, 0, 2]]
    assert found.matrix.shape == (9, 1)
    assert found.components == ("full",)
    assert torch.allclose(found.matrix[:3], found.matrix[6:])
    assert torch.allclose(found.by_probe[1], found.matrix[6:].mean(0))


def test_padding_is_exactly_zero_in_all_components():
    """Neither a token whose loss stays where it is, nor one that a single component moves away from zero."""
    anchor = torch.tensor([[1.0, 0.0], [2.0, 0.0]], dtype=DOUBLE)
    noise = torch.randn(4, 20, 2, 2, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    moving = {"one": [[1.0, 0.0], [0.0, 0.0]], "both": [[1.0, 0.0], [0.0, 1.0]]}
    known = ProbeAtAnchor(anchor=anchor, labels=None, indices=torch.arange(2))
    estimator = susceptibility("restricted")
    parts = {
        name: feed(
            estimator, anchor + noise * torch.tensor(where, dtype=DOUBLE), probes={"samples": known, "reference": known}
        ).compute()
        for name, where in moving.items()
    }
    found = estimator.combine(parts)
    assert found.rows.tolist() == [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    g = (noise[..., 0, 0] + noise[..., 1, 1]) / 4  # the mean of L over both samples and tokens
    stays = g.var(1).mean()  # of a loss that stays Δ = −g, and χ = Var g
    assert torch.allclose(found.matrix[1, 1], stays, rtol=0, atol=1e-10)
    moves = -torch.stack([torch.stack([x, y]).cov()[0, 1] for x, y in zip(g, noise[..., 1, 1] - g, strict=True)]).mean()
    assert torch.allclose(found.matrix[2, 1], moves, rtol=0, atol=1e-10)


def test_what_is_said_of_the_whole_matrix():
    """The share that all components have alike, by hand; and the worst of their checks."""
    estimator = susceptibility("restricted")
    parts = averages(estimator, chains=4, draws=20)
    found = estimator.combine(parts)
    alike = found.matrix.mean(1, keepdim=True).expand_as(found.matrix)
    assert found.uniform == pytest.approx(float(alike.square().sum() / found.matrix.square().sum()), rel=1e-12)
    assert 0 < found.uniform < 1
    assert found.matrix.shape[1] == 2
    rhats = [part.health.values["rhat"] for part in parts.values()]
    assert rhats[0] != rhats[1]
    assert found.health.values["rhat"] == max(rhats)


def test_a_part_of_the_data_as_reference():
    x, y, _ = regression()
    probe = slt.Probe(TensorDataset(x, y), name="data")
    few = slt.SamplingConfig(num_chains=2, num_draws=3, num_burnin=1, batch_size=8)
    part = slt.Probe(None, name="reference", num_samples=10)
    one = engine(slt.Susceptibility(probe, COMPONENTS, reference=part), sampling=few)["susceptibility"]
    same = engine(slt.Susceptibility(probe, COMPONENTS, reference=part), sampling=few)["susceptibility"]
    all_of_it = engine(slt.Susceptibility(probe, COMPONENTS), sampling=few)["susceptibility"]
    assert torch.allclose(one.matrix, same.matrix, rtol=0, atol=1e-12)
    assert not torch.allclose(one.matrix, all_of_it.matrix)


@pytest.mark.parametrize(
    ("arguments", "keywords", "message"),
    [
        ([[1, 2]], {"method": "three_chain"}, "must be 'two_chain' or 'restricted', got 'three_chain'"),
        ([None], {}, "needs probes of different names, got None"),
        ([[slt.Probe([1]), slt.Probe([2])]], {}, "needs probes of different names"),
    ],
)
def test_what_it_refuses(arguments, keywords, message):
    with pytest.raises(ValueError, match=message):
        slt.Susceptibility(*arguments, **keywords)


def test_two_components_of_one_name():
    probe = slt.Probe(TensorDataset(*regression()[:2]), name="data")
    mine = {"first": slt.Component(("last",))}
    with pytest.raises(ValueError, match="two different components are called 'first'; give one of them another name"):
        engine(slt.Susceptibility(probe, COMPONENTS), slt.Susceptibility(probe, mine, name="other"))
    with pytest.raises(ValueError, match="called 'full', which stands for all weights"):
        engine(slt.Susceptibility(probe, {"full": slt.Component(("first",))}))
