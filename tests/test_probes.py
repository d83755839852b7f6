"""Probes: fixed samples whose losses every draw carries, from definition to record."""

from dataclasses import dataclass
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.estimators.base import Accumulator, Estimator
from lightning_slt.probes import Probe
from lightning_slt.results import Result, StoredResult
from lightning_slt.statistics import ProbeTraces

COUNTS = slt.SamplingConfig(num_chains=3, num_draws=5, num_burnin=2, batch_size=8)
SETTINGS = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 10.0, "localization": 5.0, "sampling": COUNTS}


@dataclass(frozen=True, kw_only=True)
class Spread(Result):
    mean: float
    traces: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class LossSpread(Estimator):
    """Keeps the traces of a probe."""

    probe: Probe
    name: str = "spread"
    fields: ClassVar[tuple[str, ...]] = ("mean",)

    @property
    def probes(self):
        return (self.probe,)

    def start(self, run):
        return Kept(self, run)


class Kept(Accumulator):
    def __init__(self, estimator, run):
        self.name = estimator.probe.name
        self.known = run.probes[self.name]
        self.traces = ProbeTraces(run.num_chains, run.num_draws, anchor=self.known.anchor)

    @property
    def states(self):
        return (self.traces,)

    def update(self, draw):
        self.traces.update(draw.chains, draw.index, draw.probes[self.name])

    def compute(self):
        traces = self.traces.compute()
        return Spread(health=slt.Health(ok=True), mean=float(traces.mean()), traces=traces)


@dataclass(frozen=True, kw_only=True)
class AcrossComponents(LossSpread):
    """The means of all components side by side."""

    name: str = "across"
    spanning: ClassVar[bool] = True

    def combine(self, parts: Any) -> Any:
        return Spread(health=slt.Health(ok=True), mean=sum(p.mean for p in parts.values()), traces=torch.zeros(1))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def samples(count=40):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return TensorDataset(x, torch.arange(count) % 3)


def mean_loss(module, batch):
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def spread(net, probe, loss_fn=slt.losses.classification, **more):
    return slt.estimate(net, samples(), [LossSpread(probe=probe)], loss_fn=loss_fn, **{**SETTINGS, **more})["spread"]


def positions(net):
    """Weights at each draw ``{name: [chain, draw, …]}``, from the generator underneath."""
    from lightning_slt.functional import ModuleLoss
    from lightning_slt.isolation import isolated

    with isolated(net, seed=0):
        loss = ModuleLoss(net, slt.losses.classification)
        posterior = slt.LocalPosterior(loss=loss, anchor=dict(loss.weights), nbeta=10.0, localization=5.0)
        draws = [d.position.clone() for d in slt.sample(posterior, SETTINGS["sampler"], samples(), COUNTS)]
    return posterior, torch.stack(draws, 1)


def test_losses_are_those_of_the_draws_in_eval_mode(net):
    traces = spread(net, Probe(samples(30))).traces
    posterior, rows = positions(net)
    net.eval()
    x, y = samples(30).tensors
    with torch.no_grad():
        anchor = slt.losses.classification(net, (x, y))
        for chain in range(3):
            for draw in range(5):
                row = rows[chain, draw]
                weights = {leaf.name: row[leaf.start : leaf.stop].view(leaf.shape) for leaf in posterior.leaves}
                losses = nn.functional.cross_entropy(
                    torch.func.functional_call(net, weights, (x,)), y, reduction="none"
                )
                assert torch.allclose(traces[chain, draw], losses - anchor, rtol=0, atol=1e-10)


def test_a_mean_loss_is_taken_apart(net):
    whole, apart = (spread(net, Probe(samples(30)), loss_fn=f).traces for f in (slt.losses.classification, mean_loss))
    assert torch.allclose(whole, apart, rtol=0, atol=1e-9)


def test_a_loss_of_its_own(net):
    def wrong_label(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), (batch[1] + 1) % 3, reduction="none")

    assert not torch.allclose(
        spread(net, Probe(samples(9), loss_fn=wrong_label)).traces, spread(net, Probe(samples(9))).traces
    )


@pytest.mark.parametrize("change", [{"chain_method": "sequential"}, {"chunk_size": 2}, {"chunk_size": 1}])
def test_routes_agree(net, change):
    counts = slt.SamplingConfig(**{**vars(COUNTS), **change})
    assert torch.allclose(spread(net, Probe(samples())).traces, spread(net, Probe(samples()), sampling=counts).traces)


def test_a_part_of_the_samples_is_chosen_once(net):
    probe = Probe(samples(), num_samples=7)
    first, second = spread(net, probe).traces, spread(net, probe).traces
    assert first.shape == (3, 5, 7)
    assert torch.equal(first, second)


def test_more_samples_than_there_are(net):
    """An error where the user names the data; of the chains' own data, whose size he may not know, at most so many."""
    with pytest.raises(ValueError, match="probe 'p' asks for num_samples=41, and its data have 40; leave num_samples"):
        spread(net, Probe(samples(), name="p", num_samples=41))
    assert spread(net, Probe(samples(), num_samples=40)).traces.shape[2] == 40
    assert spread(net, Probe(None, num_samples=41)).traces.shape[2] == 40
    assert spread(net, Probe(None, num_samples=7)).traces.shape[2] == 7


def test_more_samples_than_a_batch(net):
    whole = spread(net, Probe(samples(30))).traces
    assert torch.allclose(whole, spread(net, Probe(samples(30), batch_size=7)).traces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_has_samples(size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of at least 1"):
        Probe(samples(), batch_size=size)


def test_tokens_of_different_lengths():
    torch.manual_seed(0)
    net = nn.Embedding(5, 5)
    sentences = [torch.arange(n) % 5 for n in (3, 4, 6, 2)]

    def collate(rows):
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def loss(module, batch):
        logits = module(batch[:, :-1].clamp(min=0))
        return nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none", ignore_index=-100)

    data = DataLoader(sentences, collate_fn=collate)
    traces = slt.estimate(net, data, [LossSpread(probe=Probe(data))], loss_fn=loss, **SETTINGS)["spread"].traces
    assert traces.shape == (3, 5, 4, 5)
    padded = torch.tensor([[n - 1 <= t for t in range(5)] for n in (3, 4, 6, 2)])
    assert bool((traces[:, :, padded] == 0).all())
    assert bool((traces[:, :, ~padded] != 0).all())


def test_labels():
    from lightning_slt.probing import fetch

    def labels(probe):
        return fetch(probe, to_device=lambda b: b, seed=0).labels

    assert labels(Probe(samples(6))).tolist() == [0, 1, 2, 0, 1, 2]
    some = fetch(Probe(samples(6), num_samples=4, labels=[5, 4, 3, 2, 1, 0]), to_device=lambda b: b, seed=0)
    assert some.labels.tolist() == [5 - i for i in some.indices.tolist()]
    assert labels(Probe(list(torch.zeros(3, 2)))) is None
    with pytest.raises(TypeError, match="labels of probe 'probe' have shape \\(2,\\) for 6 samples"):
        labels(Probe(samples(6), labels=[0, 1]))


def test_one_probe_serves_several_estimators_and_names_are_told_apart(net):
    probe, data = Probe(samples(), name="p"), samples()
    pair = [LossSpread(probe=probe), LossSpread(probe=probe, name="again")]
    results = slt.estimate(net, samples(), pair, loss_fn=slt.losses.classification, **SETTINGS)
    assert torch.equal(results["spread"].traces, results["again"].traces)
    same = [LossSpread(probe=Probe(data)), LossSpread(probe=Probe(data), name="again")]
    slt.estimate(net, samples(), same, loss_fn=slt.losses.classification, **SETTINGS)
    other = [LossSpread(probe=Probe(data)), LossSpread(probe=Probe(data, num_samples=3), name="again")]
    with pytest.raises(ValueError, match="two probes are called 'probe' and differ"):
        slt.estimate(net, samples(), other, loss_fn=slt.losses.classification, **SETTINGS)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"name": ""}, ValueError, "non-empty word without '/', got ''"),
        ({"name": "a/b"}, ValueError, "non-empty word without '/'"),
        ({"num_samples": 0}, ValueError, "num_samples must be a whole number of at least 1"),
        ({"loss_fn": lambda x: x}, TypeError, "loss_fn"),
    ],
)
def test_what_no_probe_can_be(keywords, error, message):
    with pytest.raises(error, match=message):
        Probe(samples(), **keywords)


def test_a_sample_without_a_finite_loss(net):
    x, y = samples(6).tensors
    x[2] = torch.inf
    with pytest.raises(
        ValueError, match="1 samples of probe 'probe' have a loss at the anchor that is not finite: \\[2\\]"
    ):
        spread(net, Probe(TensorDataset(x, y)))


def test_results_that_span_components_stand_at_the_top(net):
    probe = Probe(samples())
    both = [LossSpread(probe=probe), AcrossComponents(probe=probe)]
    results = slt.estimate(
        net, samples(), both, loss_fn=slt.losses.classification, components="layers", **SETTINGS
    )  # fmt: skip
    assert set(results) == {"0", "1", "4", "across"}
    assert results["across"].mean == pytest.approx(sum(results[c]["spread"].mean for c in ("0", "1", "4")))
    assert results["across"].settings.nbeta == 10.0


def test_live_with_records(tmp_path):
    class Net(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(4, 3)

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0].float()), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    probe = Probe(samples(11))
    monitor = slt.SLTMonitor(
        [slt.LLC(), LossSpread(probe=probe), AcrossComponents(probe=probe)], every_n_train_steps=3, **SETTINGS
    )
    trainer = L.Trainer(max_steps=3, callbacks=[monitor], default_root_dir=tmp_path, logger=False, accelerator="cpu",
                        enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
    trainer.fit(Net(), DataLoader(samples(), batch_size=8))
    metrics = trainer.callback_metrics
    assert {"slt/full/llc/mean", "slt/full/spread/mean", "slt/full/spread/ok", "slt/all/across/mean"} <= set(metrics)
    readings = slt.load_records(tmp_path)
    stored = readings[-1].estimates["full"]["spread"]
    assert isinstance(stored, StoredResult)
    assert stored.kind == "Spread"
    assert stored.traces.shape == (3, 5, 11)
    assert stored.mean == pytest.approx(float(metrics["slt/full/spread/mean"]))
    assert stored.health.ok
    assert repr(stored).startswith("StoredResult of Spread(traces [3, 5, 11] of mean ")
    with pytest.raises(AttributeError, match="a stored Spread has no 'nothing'"):
        _ = stored.nothing
