"""The loss kernel: of given traces against torch.cov, of exact draws and of chains against closed forms, and live."""

from __future__ import annotations

import math
import random as pyrandom

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import Classifier, blobs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.kernels import clusters
from lightning_slt.covariances import covariances
from lightning_slt.estimators import KernelEstimate, LossKernel, Run
from lightning_slt.estimators import loss_kernel as own_module
from lightning_slt.estimators.loss_kernel import NUMBERS
from lightning_slt.gram import compressed, normalized, spectrum
from lightning_slt.probes import ProbeAtAnchor
from lightning_slt.reporting import kernels as drawing
from lightning_slt.reporting.kernels import kernel_embedding, kernel_figure, kernel_pictures
from lightning_slt.reporting.pictures import write_pictures
from lightning_slt.results import StoredResult
from lightning_slt.statistics import map_states
from lightning_slt.types import Draw, student_t_quantile

DATA = [0, 1, 2]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run_of(traces, anchor, labels, indices=None):
    indices = torch.arange(len(anchor)) if indices is None else indices
    known = ProbeAtAnchor(anchor=anchor, labels=labels, indices=indices)
    return Run(
        num_chains=len(traces), num_draws=traces.shape[1], nbeta=10.0, localization=5.0, dimension=3,
        probes={"probe": known},
    )  # fmt: skip


def feed(accumulator, traces, chains, draws=None):
    for index in range(traces.shape[1]) if draws is None else draws:
        loss = torch.zeros(len(chains), dtype=torch.float64)
        accumulator.update(
            Draw(
                chains=tuple(chains),
                index=index,
                step=10 * (index + 1),
                loss=loss,
                anchor_loss=loss,
                position=loss,
                probes={"probe": traces[list(chains), index]},
            )
        )  # fmt: skip


def kernel_of(traces, *, anchor=None, labels=None, keep=False, **keywords) -> KernelEstimate:
    anchor = torch.zeros(traces.shape[2:], dtype=traces.dtype) if anchor is None else anchor
    accumulator = LossKernel(DATA, traces=keep, **keywords).start(run_of(traces, anchor, labels))
    feed(accumulator, traces, range(len(traces)))
    return accumulator.compute()


def close(a, b, atol=1e-10):
    return torch.allclose(a, b, rtol=0, atol=atol)


TRACES = random(3, 20, 7) + random(3, 1, 7, seed=1)


def test_pooled_kernels_are_torch_cov():
    kernel = kernel_of(TRACES, pooled=True)
    rows = TRACES.flatten(0, 1).T
    assert close(kernel.covariance, torch.cov(rows))
    assert close(kernel.correlation, torch.corrcoef(rows))


def test_kernels_within_chains_are_the_mean_of_theirs():
    kernel = kernel_of(TRACES)
    expected = torch.stack([torch.cov(chain.T) for chain in TRACES]).mean(0)
    scale = expected.diagonal().sqrt()
    assert close(kernel.covariance, expected)
    assert close(kernel.correlation, expected / scale[:, None] / scale)
    assert close(kernel.stderr, torch.stack([torch.cov(chain.T) for chain in TRACES]).std(0) / math.sqrt(3))


def test_the_anchor_does_not_matter():
    anchor = random(7, seed=2)
    assert close(kernel_of(TRACES).covariance, kernel_of(TRACES, anchor=anchor).covariance)


def test_heights_of_chains_vanish_within_and_count_when_pooled():
    raised = TRACES + 5 * random(3, 1, 7, seed=3)
    assert close(kernel_of(raised).covariance, kernel_of(TRACES).covariance)
    more, less = (kernel_of(t, pooled=True).total_variance for t in (raised, TRACES))
    assert more > 2 * less


def test_samples_may_be_permuted_and_draws_come_in_any_order():
    order, draws = torch.randperm(7), torch.randperm(20)
    kernel = kernel_of(TRACES)
    assert close(kernel_of(TRACES[:, :, order]).covariance, kernel.covariance[order][:, order])
    shuffled = kernel_of(TRACES[:, draws])
    assert close(shuffled.covariance, kernel.covariance)
    assert close(shuffled.variances, kernel.covariance.diagonal())


@pytest.mark.parametrize("parts", [[(0, 1), (2,)], [(2,), (0,), (1,)]])
def test_chains_in_chunks_and_on_several_processes_are_the_whole(parts):
    whole = kernel_of(TRACES)
    run = run_of(TRACES, torch.zeros(7, dtype=torch.float64), None)
    chunked = LossKernel(DATA).start(run)
    processes = [LossKernel(DATA).start(run) for _ in parts]
    for part, process in zip(parts, processes, strict=True):
        feed(chunked, TRACES, part, draws=reversed(range(20)))
        feed(process, TRACES, part)
    totals = [sum(states) for states in zip(*(_values(p) for p in processes), strict=True)]
    remaining = iter(totals)
    map_states(processes[0].states, lambda state: next(remaining))
    for found in (chunked.compute(), processes[0].compute()):
        assert torch.equal(found.covariance, whole.covariance)
        assert found.scalars() == pytest.approx(whole.scalars(), nan_ok=True)


def _values(accumulator):
    found = []
    map_states(accumulator.states, lambda state: (found.append(state), state)[1])
    return found


def test_a_constant_loss_is_uncorrelated_and_counted():
    traces = TRACES.clone()
    traces[:, :, 2] = 0.1
    traces[:, :, 5] = torch.tensor([0.3, 0.7, 1e8])[:, None]  # constant within each chain
    kernel = kernel_of(traces)
    assert kernel.silent == 2
    for silent in (2, 5):
        assert bool((kernel.covariance[silent] == 0).all())
        assert bool((kernel.correlation[silent] == 0).all())
    assert all(math.isfinite(value) for name, value in kernel.scalars().items() if name != "purity")


def test_nothing_moves_at_all():
    kernel = kernel_of(torch.ones(3, 20, 4))
    assert bool((kernel.correlation == 0).all())
    assert kernel.silent == 4
    assert math.isnan(kernel.n_eff)
    assert {"n_eff", "between_chains"} <= set(kernel.health.warnings)


def test_losses_of_tokens_are_added_up():
    tokens = random(3, 20, 4, 5)
    assert close(kernel_of(tokens).covariance, kernel_of(tokens.sum(3)).covariance)


def test_numbers_that_are_logged():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 2])
    kernel = kernel_of(TRACES, labels=labels)
    off = kernel.correlation[~torch.eye(7, dtype=torch.bool)]
    eigenvalues = torch.linalg.eigvalsh(kernel.correlation)
    nearest = (kernel.correlation - 2 * torch.eye(7)).topk(5, dim=1).indices
    assert set(kernel.scalars()) == set(NUMBERS)
    assert kernel.total_variance == pytest.approx(float(kernel.covariance.trace()))
    assert kernel.mean_correlation == pytest.approx(float(off.mean()))
    assert kernel.effective_rank == pytest.approx(float(eigenvalues.sum() ** 2 / eigenvalues.square().sum()))
    assert kernel.purity == pytest.approx(float((labels[nearest] == labels[:, None]).double().mean()))
    assert kernel.noise == pytest.approx(1 / math.sqrt(kernel.n_eff))
    assert math.isnan(kernel_of(TRACES).purity)
    assert "loss kernel of 7 samples" in str(kernel)


def autoregressive(chains, draws, dimensions, *, phi, seed):
    """Stationary AR(1) of variance 1 ``[chain, draw, dimension]``."""
    steps = random(draws, chains, dimensions, seed=seed)
    rows = [steps[0]]
    for step in steps[1:]:
        rows.append(phi * rows[-1] + math.sqrt(1 - phi**2) * step)
    return torch.stack(rows, 1)


def test_the_noise_of_an_entry_is_one_over_the_root_of_independent_draws():
    """Losses ±w_d + w_d²/4 around a minimum, w_d independent: R between two d has the true value 0."""
    chains, draws, dimensions, phi = 8, 400, 12, 0.6
    truth = chains * draws * (1 - phi**2) / (1 + phi**2)
    apart = (torch.arange(2 * dimensions) % dimensions)[:, None] != torch.arange(2 * dimensions) % dimensions
    squares, signed, found = [], [], []
    for seed in range(30):
        w = autoregressive(chains, draws, dimensions, phi=phi, seed=seed)
        kernel = kernel_of(torch.cat([w + 0.05 * w**2, -w + 0.05 * w**2], 2))
        entries = kernel.correlation[apart].square()
        squares.append(float(entries.mean()) * truth)
        signed.append(float(entries.mean()) - 1 / kernel.n_eff)
        found.append(kernel.n_eff / truth)
    for values, expected in ((squares, 1.0), (signed, 0.0), (found, 1.0)):
        z = _z(torch.tensor(values), expected)
        assert abs(z) < 4, (expected, z, sum(values) / 30)


def _z(values, expected):
    return float((values.mean() - expected) / (values.std() / math.sqrt(len(values))))


def regression():
    """Linear regression at its minimum: anchor, data, curvature, residuals."""
    x = random(6, 2, seed=5)
    y = random(6, seed=6)
    anchor = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    return x, y, anchor, x.T @ x / 6, y - x @ anchor


def closed_form(x, residuals, spread):
    r"""``Cov(ℓ_i, ℓ_j) = r_i r_j x_iᵀSx_j + ½ (x_iᵀSx_j)²`` of ``ℓ_i = ½(y_i − x_i·w)²``, w normal (BIF, METHODS)."""
    inner = x @ spread @ x.T
    return residuals[:, None] * residuals * inner + inner.square() / 2


def worst(found, expected, error, chains):
    """Largest z of the distinct entries, and what it may reach in one run of ten thousand."""
    above = torch.triu_indices(len(found), len(found))
    z = ((found - expected) / error)[above[0], above[1]].abs()
    return float(z.max()), student_t_quantile(1 - 1e-4 / 2 / len(z), degrees=chains - 1)


def test_exact_draws_give_the_closed_form():
    x, y, anchor, curvature, residuals = regression()
    spread = torch.linalg.inv(20 * curvature + 3 * torch.eye(2, dtype=torch.float64))
    w = anchor + random(64, 500, 2) @ torch.linalg.cholesky(spread).T
    kernel = kernel_of((y - w @ x.T).square() / 2)
    z, limit = worst(kernel.covariance, closed_form(x, residuals, spread), kernel.stderr, 64)
    assert z < limit


def test_chains_give_the_closed_form_of_their_own_law():
    """The discretized law, variance ``1/(P − εP²/4)`` for each direction; the continuous one is ten percent off."""
    x, y, anchor, curvature, residuals = regression()
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data[0] = anchor
    data = TensorDataset(x, y)
    step = 0.04

    def loss(module, batch):
        return (batch[1] - module(batch[0])[:, 0]).square() / 2

    kernel = slt.estimate(
        net, data, [LossKernel(data)], loss_fn=loss, sampler=slt.SGLD(step_size=step), nbeta=20.0, localization=3.0,
        sampling=slt.SamplingConfig(num_chains=64, num_draws=200, num_burnin=50, thinning=2, batch_size=6),
    )["loss_kernel"]  # fmt: skip
    precision = 20 * curvature + 3 * torch.eye(2, dtype=torch.float64)
    spread, continuous = (
        torch.linalg.inv(precision - h * precision @ precision / 4) for h in (step, 0.0)
    )  # fmt: skip
    z, limit = worst(kernel.covariance, closed_form(x, residuals, spread), kernel.stderr, 64)
    assert z < limit
    z, limit = worst(kernel.covariance, closed_form(x, residuals, continuous), kernel.stderr, 64)
    assert z > limit  # the test could tell


class TwoNets(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(2))

    def forward(self, x, task):
        return torch.where(task == 0, self.a(x)[:, 0], self.b(x)[:, 0])


def test_disjoint_parts_are_uncorrelated():
    torch.manual_seed(0)
    net, task = TwoNets().double(), torch.arange(8) // 4
    data = TensorDataset(random(8, 3), task, random(8, seed=1))

    def loss(module, batch):
        return (module(batch[0], batch[1]) - batch[2]).square() / 2

    common = {"loss_fn": loss, "sampler": slt.SGLD(step_size=1e-2), "nbeta": 10.0, "localization": 20.0}
    counts = slt.SamplingConfig(num_chains=32, num_draws=60, num_burnin=20, batch_size=8, thinning=2)
    kernel = slt.estimate(net, data, [LossKernel(data)], sampling=counts, **common)["loss_kernel"]
    z = (kernel.covariance / kernel.stderr)[:4, 4:].abs()
    assert float(z.max()) < student_t_quantile(1 - 1e-4 / 2 / 16, degrees=31)
    assert float((kernel.covariance / kernel.stderr)[:4, :4].diagonal().min()) > 5
    parts = slt.estimate(net, data, [LossKernel(data)], sampling=counts, components="a.*", **common)
    alone = next(iter(parts.values()))["loss_kernel"]
    assert alone.silent == 4
    assert bool((alone.covariance[4:] == 0).all())
    assert bool((alone.covariance[:4, :4].diagonal() > 0).all())


def test_dead_chains_are_left_out_and_listed():
    traces = torch.cat([TRACES, TRACES[:1]])
    traces[1, 7, 3] = math.inf
    kernel = kernel_of(traces)
    assert kernel.health.dead_chains == {1: 80}
    assert "finite" in kernel.health.failed
    assert close(kernel.covariance, kernel_of(traces[[0, 2, 3]]).covariance)


@pytest.mark.parametrize(("traces", "labels"), [(TRACES * math.nan, torch.arange(7)), (TRACES[:, :1], None)])
def test_no_covariance_is_no_number(traces, labels):
    kernel = kernel_of(traces, labels=labels)
    for matrix in (kernel.covariance, kernel.correlation, kernel.stderr, kernel.correlation_stderr):
        assert matrix.shape == (7, 7)
        assert bool(matrix.isnan().all())
    assert all(math.isnan(v) for name, v in kernel.scalars().items() if name not in ("silent", "between_chains"))
    assert kernel_pictures(kernel) == {}
    assert bool(kernel.arrays()["factor"].isnan().all())


def test_health():
    many = kernel_of(random(8, 400, 5) + random(8, 400, 1, seed=1))
    assert many.health.ok
    assert not {"n_eff", "between_chains", "reliability"} & set(many.health.warnings)
    assert many.n_eff > 200
    assert many.reliability > 0.5
    apart = kernel_of(random(8, 400, 5) + random(8, 1, 5, seed=1))
    assert "between_chains" in apart.health.warnings
    assert apart.between_chains > 0.1
    few = kernel_of(random(4, 20, 30))
    assert {"n_eff", "reliability"} <= set(few.health.warnings)
    assert math.isnan(kernel_of(TRACES[:1]).reliability)
    own = kernel_of(random(8, 400, 5), thresholds=slt.Thresholds(n_eff=(None, 1e6)))
    assert "n_eff" in own.health.failed


@pytest.mark.parametrize("count", [100, 400])
def test_records_hold_a_factor_of_what_matters(count):
    shared = random(5, count, seed=4)
    kernel = kernel_of(random(4, 50, 5) @ shared + 0.01 * random(4, 50, count, seed=8), rank=6)
    arrays = kernel.arrays()
    scale = arrays["variances"].double().sqrt()
    found = arrays["factor"].double().T @ arrays["factor"].double()
    exact = compressed(normalized(kernel.factor), 6)
    assert close(found, exact.T @ exact, atol=1.01 * 2**-10)  # columns of length 1, rounded by 2⁻¹¹ on both sides
    left_out = float(spectrum(normalized(kernel.factor))[6])
    error = (found - kernel.correlation).abs()
    assert float(error.max()) < left_out + 1.01 * 2**-10
    assert torch.allclose(scale**2, kernel.covariance.diagonal(), rtol=1e-6)
    assert ("covariance" in arrays) == (count <= 256)
    assert "traces" not in arrays


def test_records_hold_all_losses_on_request():
    assert close(kernel_of(TRACES, keep=True).arrays()["traces"], TRACES.float())


def test_a_thousand_samples_take_64_kb():
    kernel = kernel_of(random(4, 30, 1000).float())
    arrays = kernel.arrays()
    assert arrays["factor"].numel() * arrays["factor"].element_size() == 64_000
    assert sum(a.numel() * a.element_size() for a in arrays.values()) < 80_000


def test_ten_thousand_samples_without_their_matrix(monkeypatch):
    def refuse(self):
        raise AssertionError("the matrix is formed")

    for name in ("covariance", "correlation", "_errors"):
        monkeypatch.setattr(KernelEstimate, name, property(refuse))
    kernel = kernel_of(random(2, 20, 10_000).float(), labels=torch.arange(10_000) % 10)
    assert kernel.arrays()["factor"].shape == (32, 10_000)
    assert all(math.isfinite(value) for value in kernel.scalars().values())
    axis = kernel_figure(kernel).axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == [str(digit) for digit in range(10)]
    assert axis.get_images()[0].get_array().shape == (400, 400)
    assert "400 of 10000 samples" in axis.get_xlabel()


def test_colours_are_those_of_pairs():
    """Of few samples the diagonal is an eighth of the entries, and would leave the rest pale."""
    kernel = kernel_of(random(4, 400, 8), labels=torch.arange(8))
    assert kernel_figure(kernel).axes[0].get_images()[0].get_clim()[1] == 3 * kernel.noise < 0.1


def test_heat_maps_of_some_samples_cluster_those_alone(monkeypatch):
    asked = []

    def spy(factor, count):
        asked.append(factor.shape[1])
        return clusters(factor, count)

    monkeypatch.setattr(drawing, "PIXELS", 30)
    monkeypatch.setattr(drawing, "clusters", spy)
    axis = kernel_figure(kernel_of(random(2, 20, 100))).axes[0]
    assert asked == [30]
    assert axis.get_xlabel() == "30 of 100 samples, by chance, by cluster"
    groups = torch.arange(100) % 3
    axis = kernel_figure(kernel_of(random(2, 20, 100)), groups=groups).axes[0]
    assert [tick.get_text() for tick in axis.get_yticklabels()] == ["0", "1", "2"]


@pytest.mark.parametrize("pooled", [False, True])
def test_errors_come_in_rows(monkeypatch, pooled):
    """Of 10 000 samples one matrix is asked for, and one held."""
    rows = []

    def spy(first, second, *, pooled):
        rows.append(first.shape[2])
        return covariances(first, second, pooled=pooled)

    monkeypatch.setattr(own_module, "covariances", spy)
    monkeypatch.setattr(own_module, "ROWS", 3)
    kernel, whole = kernel_of(TRACES, pooled=pooled), covariances(TRACES, TRACES, pooled=pooled)
    assert close(kernel.stderr, whole.stderr)
    assert close(kernel.correlation_stderr, whole.correlation_stderr)
    assert rows == [3, 3, 1] * 2


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"rank": 0}, "LossKernel.rank must be a whole number of at least 1, got 0"),
        ({"rank": True}, "LossKernel.rank must be a whole number"),
        (
            {"sprites": torch.zeros(3, 8, 8)},
            "must be pictures \\[sample, 1 or 3, height, width\\].*\\(3, 8, 8\\)",
        ),
        (
            {"sprites": torch.full((3, 1, 8, 8), 255, dtype=torch.uint8)},
            "must lie between 0 and 1, got values between 255 and 255; write sprites=pictures / 255",
        ),
        ({"sprites": torch.full((3, 1, 8, 8), math.nan)}, "must lie between 0 and 1, got values between nan and nan"),
    ],
)
def test_what_no_kernel_can_be(keywords, message):
    with pytest.raises(ValueError, match=message):
        LossKernel(DATA, **keywords)


def test_probes_that_have_no_kernel():
    with pytest.raises(ValueError, match="needs two samples at least; probe 'probe' has one"):
        kernel_of(TRACES[:, :, :1])
    with pytest.raises(ValueError, match="3 sprites, and sample 6 of probe 'probe' needs one"):
        kernel_of(TRACES, sprites=torch.zeros(3, 1, 2, 2))


def test_sprites_are_those_of_the_samples():
    pictures = (torch.arange(9.0) / 8)[:, None, None, None].expand(9, 3, 2, 2)
    indices = torch.tensor([1, 4, 8])
    run = run_of(TRACES[:, :, :3], torch.zeros(3), None, indices)
    accumulator = LossKernel(DATA, sprites=pictures).start(run)
    feed(accumulator, TRACES[:, :, :3], range(3))
    kernel = accumulator.compute()
    assert kernel.sprites[:, 0, 0, 0].tolist() == [1 / 8, 4 / 8, 1]
    assert [row[1] for row in kernel_embedding(kernel).labels] == ["1", "4", "8"]


@pytest.mark.parametrize("labels", [None, torch.arange(20) % 3])
def test_pictures_say_what_they_show(labels):
    kernel = kernel_of(random(4, 30, 20), labels=labels, sprites=torch.zeros(20, 1, 2, 2))
    axis = kernel_figure(kernel).axes[0]
    assert axis.get_xlabel() == ("samples by cluster" if labels is None else "samples by label")
    assert f"± {kernel.noise:.2g} an entry" in axis.get_title(loc="left")
    matrix = torch.from_numpy(axis.get_images()[0].get_array().data)
    assert close(matrix.diagonal(), torch.ones(20, dtype=torch.float64))
    embedding = kernel_embedding(kernel)
    assert embedding.points.shape == (20, 20)
    assert [row[0] for row in embedding.labels] == ["" if labels is None else str(i % 3) for i in range(20)]
    assert embedding.sprites is not None


def test_drawing_changes_no_random_state(tmp_path):
    kernel = kernel_of(random(4, 30, 20))
    before = pyrandom.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    write_pictures([TensorBoardLogger(tmp_path)], "slt", {"full": {"loss_kernel": kernel}}, 0)
    assert before == (pyrandom.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_live(tmp_path):
    probe = slt.Probe(blobs(20), num_samples=12)
    counts = slt.SamplingConfig(num_chains=2, num_draws=6, num_burnin=2, batch_size=8)
    monitor = slt.LossKernelMonitor(
        probe=probe, every_n_train_steps=2, sampler=slt.SGLD(step_size=1e-3), nbeta=10.0, localization=5.0,
        sampling=counts, traces=True, sprites=torch.zeros(20, 1, 4, 4),
    )  # fmt: skip
    trainer = L.Trainer(
        max_steps=2, callbacks=[monitor], logger=TensorBoardLogger(tmp_path, name="", version=""), accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Classifier(), DataLoader(blobs(), batch_size=8))
    assert {f"slt/full/loss_kernel/{name}" for name in (*NUMBERS, "ok")} <= set(trainer.callback_metrics)
    stored = slt.load_records(tmp_path)[-1].estimates["full"]["loss_kernel"]
    assert isinstance(stored, StoredResult)
    assert stored.traces.shape == (2, 6, 12)
    assert stored.factor.shape == (12, 12)  # of 2 · 6 draws
    assert stored.n_eff == pytest.approx(float(trainer.callback_metrics["slt/full/loss_kernel/n_eff"]))
    labels = torch.stack([blobs(20)[int(i)][1] for i in stored.indices])
    assert torch.equal(stored.labels, labels)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert "slt/full/loss_kernel/heatmap" in events.Tags()["images"]
    assert "slt/full/loss_kernel/samples" in (tmp_path / "projector_config.pbtxt").read_text()
