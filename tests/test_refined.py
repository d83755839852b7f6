"""Refined LLCs and susceptibilities live: sets of chains, tags, records; and grouping of curves."""

import math

import lightning as L
import pytest
import torch
from models import MemoryLogger
from test_susceptibility import Block, continuous
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.curves import Curves, group, llc_curves, lloyd, silhouette, ward
from lightning_slt.assignment import check_estimators, divide
from lightning_slt.reporting.curves import groups_figure, groups_table

DOUBLE = torch.float64
COUNTS = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=1, batch_size=8)
SETTINGS = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 10.0, "localization": 5.0, "sampling": COUNTS}


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def per_sample_loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1], reduction="none")

    def training_step(self, batch, batch_idx):
        return self.per_sample_loss(batch).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def samples(count=32, seed=1):
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, torch.arange(count) % 3)


def fit(tmp_path, monitor, steps=9, logger=False):
    trainer = L.Trainer(
        max_steps=steps, callbacks=[monitor], default_root_dir=tmp_path, logger=logger, accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Net(), DataLoader(samples(), batch_size=8))
    return trainer


def test_each_component_on_each_data_set(tmp_path):
    data = {"even": samples(20, 2), "odd": samples(24, 3)}
    monitor = slt.RefinedLLCMonitor(components="layers", data=data, every_n_train_steps=3, **SETTINGS)
    trainer = fit(tmp_path, monitor, steps=3)
    tags = {tag for tag in trainer.callback_metrics if tag.endswith("/mean")}
    assert tags == {f"slt/net.{c}/llc/{d}/mean" for c in (0, 2) for d in ("even", "odd")}
    reading = slt.load_records(tmp_path)[0]
    module = Net()
    for name, part in data.items():
        alone = slt.estimate(module, part, [slt.LLC()], components="layers", loss_fn=Net.per_sample_loss, **SETTINGS)
        for component in ("net.0", "net.2"):
            found = reading.estimates[component][f"llc/{name}"]
            assert found.per_chain.tolist() == pytest.approx(alone[component]["llc"].per_chain.tolist(), rel=1e-6)


def test_a_data_refined_llc_has_its_closed_form():
    """Weights that fit two data sets alike: λ̂ on each is ½ nβ tr(H S) of that data, whatever the other one is."""
    g = torch.Generator().manual_seed(0)
    best = torch.randn(5, generator=g, dtype=DOUBLE)
    inputs = {name: scale * torch.randn(30, 5, generator=g, dtype=DOUBLE) for name, scale in (("a", 1.0), ("b", 0.3))}
    net = nn.Linear(5, 1, bias=False).double()
    net.weight.data = best[None]
    data = {name: TensorDataset(x, (x @ best)[:, None]) for name, x in inputs.items()}
    results = slt.estimate(
        net, data["a"], [slt.LLC().on(data["a"], name="a"), slt.LLC().on(data["b"], name="b")],
        loss_fn=lambda module, batch: (module(batch[0]) - batch[1])[:, 0].square() / 2,
        sampler=slt.UnderdampedLangevin(step_size=0.1, friction=6.0), nbeta=20.0, localization=5.0,
        sampling=slt.SamplingConfig(num_chains=48, num_draws=100, num_burnin=50, thinning=3, batch_size=30),
    )  # fmt: skip
    assert set(results) == {"llc/a", "llc/b"}
    for name, x in inputs.items():
        found, expected = results[f"llc/{name}"], 20.0 * float(Block(x, range(5), continuous()).rise)
        assert abs(found.mean - expected) < 4 * found.stderr
        assert found.stderr < 0.03 * expected
    assert results["llc/b"].mean < 0.8 * results["llc/a"].mean


def test_the_whole_network_on_named_data(tmp_path):
    monitor = slt.RefinedLLCMonitor(data={"some": samples(20, 2)}, every_n_train_steps=3, **SETTINGS)
    trainer = fit(tmp_path, monitor, steps=3)
    assert "slt/full/llc/some/mean" in trainer.callback_metrics
    assert "slt/full/llc/mean" not in trainer.callback_metrics


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({}, "nothing is refined: write RefinedLLCMonitor\\(components="),
        ({"data": {}}, "data is an empty mapping"),
        ({"data": {"a/b": [1]}}, "non-empty word without '/', got 'a/b'"),
        ({"components": "layers", "grouping": "magic"}, "grouping must be 'kmeans' or 'hierarchical', got 'magic'"),
        ({"components": "layers", "groups": -1}, "groups must be a whole number"),
    ],
)
def test_what_it_refuses(keywords, message):
    with pytest.raises(ValueError, match=message):
        slt.RefinedLLCMonitor(**keywords)


def test_two_data_sets_of_one_name():
    one, other = slt.LLC(name="a").on([1], name="x"), slt.LLC(name="b").on([2], name="x")
    with pytest.raises(ValueError, match="two different data sets are called 'x'"):
        check_estimators([one, other])


def test_sets_of_chains_are_shared():
    module, data = Net(), [1, 2]
    probe = slt.Probe([0], name="p")
    work = divide(
        module, "layers",
        [slt.LLC(), slt.LLC(name="again"), slt.LLC().on(data, name="x"), slt.LLC(name="b").on(data, name="x"),
         slt.Susceptibility(probe, "net.0.*", control=True)],
    )  # fmt: skip
    sets = {(s.component, s.source): (len(s.estimators), s.passes) for s in work.sets}
    assert sets == {
        ("net.0", None): (2, 1), ("net.0", "x"): (2, 1), ("net.2", None): (2, 1), ("net.2", "x"): (2, 1),
        ("net.0.*", None): (1, 2), ("full", None): (1, 2),
    }  # fmt: skip
    assert work.passes == 8
    assert work.columns["susceptibility"] == ("net.0.*",)


def test_susceptibilities_live(tmp_path):
    logger = MemoryLogger()
    probes = [slt.Probe(samples(11, 4), name="a"), slt.Probe(samples(5, 5), name="b")]
    monitor = slt.SusceptibilityMonitor(components="layers", probes=probes, every_n_train_steps=3, **SETTINGS)
    trainer = fit(tmp_path, monitor, steps=3, logger=logger)
    fields = {f"{probe}/{kind}" for probe in "ab" for kind in ("mean", "stderr")} | {"ok"}
    expected = {f"slt/net.{c}/susceptibility/{f}" for c in (0, 2) for f in fields}
    expected |= {f"slt/all/susceptibility/{f}" for f in ("signal", "uniform", "ok")}
    assert {tag for tag in trainer.callback_metrics if tag.startswith("slt/") and "overhead" not in tag} == expected
    stored = slt.load_records(trainer.log_dir or tmp_path)[-1].estimates["all"]["susceptibility"]
    assert stored.components == ("net.0", "net.2")
    assert stored.probes == ("a", "b")
    assert stored.matrix.shape == (16, 2)
    assert stored.matrix[:11].mean(0).tolist() == pytest.approx(
        [float(trainer.callback_metrics[f"slt/net.{c}/susceptibility/a/mean"]) for c in (0, 2)], rel=1e-5
    )


def test_curves_are_grouped_when_the_fit_ends(tmp_path, caplog):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name="", version="")
    parts = {f"{n}": slt.Component((n,)) for n in ("net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias")}
    monitor = slt.RefinedLLCMonitor(components=parts, groups=2, every_n_train_steps=3, **SETTINGS)
    fit(tmp_path, monitor, logger=logger)
    assert "by how they developed" in caplog.text
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert "slt/groups" in events.Tags()["images"]
    assert "slt/groups/text_summary" in events.Tags()["tensors"]
    curves = llc_curves(slt.load_records(tmp_path))
    assert curves.names == tuple(parts)
    assert curves.steps.tolist() == [0, 3, 6, 9]
    assert curves.values.shape == (4, 4)
    with pytest.raises(ValueError, match="no reading has an estimate called 'kernel'"):
        llc_curves(slt.load_records(tmp_path), key="kernel")


def test_no_groups_of_too_few_curves(tmp_path, caplog):
    monitor = slt.RefinedLLCMonitor(components="net.0.*", every_n_train_steps=3, **SETTINGS)
    fit(tmp_path, monitor)
    assert "by how they developed" not in caplog.text
    assert len(slt.load_records(tmp_path)) == 4


def blobs():
    g = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 4.0], [0.0, 5.0, 0.0]], dtype=DOUBLE)
    truth = torch.tensor([0, 1, 2, 0, 0, 1, 2, 0, 1, 0, 0, 2])
    return centres[truth] + 0.3 * torch.randn(12, 3, generator=g, dtype=DOUBLE), truth


@pytest.mark.parametrize("method", ["kmeans", "hierarchical"])
def test_groups_are_found_and_counted(method):
    points, truth = blobs()
    found = group(points, method=method)
    assert torch.equal(found.labels, truth)  # the largest group is 0, then in the order of appearance
    assert found.silhouette > 0.8
    assert torch.equal(group(points, count=3, method=method).labels, truth)
    order = torch.tensor([11, 3, 0, 7, 5, 1, 2, 10, 4, 9, 8, 6])
    again = group(points[order], method=method).labels
    assert torch.equal(again[:, None] == again, truth[order][:, None] == truth[order])


def test_ward_and_silhouette_are_those_of_scikit_learn():
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    points = torch.randn(30, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)
    for count in (2, 3, 5, 8):
        mine = ward(points, count)
        theirs = torch.as_tensor(cluster.AgglomerativeClustering(count, linkage="ward").fit_predict(points.numpy()))
        assert torch.equal(mine[:, None] == mine, theirs[:, None] == theirs)
        assert silhouette(points, mine) == pytest.approx(metrics.silhouette_score(points.numpy(), mine.numpy()))
    alone = torch.tensor([0, *[1] * 29])
    assert silhouette(points, alone) == pytest.approx(metrics.silhouette_score(points.numpy(), alone.numpy()))


def test_lloyd_lowers_the_sum_of_squares_to_a_fixed_point():
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(2), dtype=DOUBLE)

    def squares(labels):
        return sum(float((p := points[labels == k]).sub(p.mean(0)).square().sum()) for k in range(4))

    start = ward(points, 4)
    found = lloyd(points, start)
    means = torch.stack([points[found == k].mean(0) for k in range(4)])
    assert squares(found) <= squares(start)
    assert torch.equal(torch.cdist(points, means).argmin(1), found)


def test_shapes_and_missing_readings():
    rising = torch.tensor([[0.0, 1.0, 2.0], [10.0, 11.0, 12.0], [2.0, 1.0, 0.0], [12.0, 11.0, 10.0]])
    assert group(rising, count=2).labels.tolist() == [0, 1, 0, 1]
    assert group(rising, count=2, shape=True).labels.tolist() == [0, 0, 1, 1]
    holes = torch.cat([rising, torch.tensor([[math.nan], [0.0], [0.0], [0.0]])], 1)
    assert group(holes, count=2).labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(ValueError, match="no reading at which all curves have a number"):
        group(torch.full((3, 2), math.nan))
    with pytest.raises(ValueError, match="between 1 and the number of curves, 4, got 5"):
        group(rising, count=5)


def test_table_and_picture_of_groups():
    pytest.importorskip("matplotlib")
    points, _ = blobs()
    names = tuple(f"h{k}" for k in range(12))
    curves = Curves(names, torch.tensor([0, 10, 1000]), points, torch.full_like(points, 0.1))
    found = group(points)
    table = groups_table(curves, found).splitlines()
    assert table[3].startswith("| 2 | h1, h5, h8 | ")
    figure = groups_figure(curves, found, title="refined")
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.axes[1].get_legend().get_texts()] == ["h1", "h5", "h8"]
