"""What readings leave on disk, and what is made of files that are broken."""

from __future__ import annotations

import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Classifier, Trajectory, blobs, few_draws, loader_of, seed_all, trainer_for
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lightning_slt as slt
from lightning_slt.records import RecordWriter
from lightning_slt.types import Estimate, Health

DEAD = Estimate(
    mean=math.nan,
    stderr=math.nan,
    per_chain=torch.tensor([1.25, math.nan], dtype=torch.float64),
    health=Health(
        ok=False,
        failed=("finite",),
        warnings=("snr",),
        values={"rhat": math.nan, "snr": math.inf, "spikes": -math.inf, "drift": 0.1},
        dead_chains={1: 17},
    ),
    traces={"loss": torch.tensor([[1.0, 2.0], [3.0, math.nan]], dtype=torch.float64)},
)
READING = slt.Reading(
    name="slt",
    index=3,
    step=7,
    global_step=14,
    epoch=2,
    time=12.5,
    duration=0.1 + 0.2,
    overhead=math.inf,
    settings={"nbeta": 1 / 3, "resolution": math.inf, "chunk_size": None, "sampler": "SGLD"},
    estimates={"full": {"llc": DEAD}, "a.*": {"llc": DEAD}},
)


def equal(a: Any, b: Any) -> bool:
    """Field by field and bit by bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, slt.Reading | slt.Estimate | slt.Health):
        return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    return type(a) is type(b) and (a == b or (a != a and b != b))


@pytest.mark.parametrize("reading", [READING, replace(READING, estimates={}, failure="ValueError: Größe\nline")])
def test_round_trip(tmp_path: Path, reading: slt.Reading) -> None:
    RecordWriter(tmp_path, "slt").write(reading)
    (loaded,) = slt.load_records(tmp_path)
    assert equal(loaded, reading)
    row = json.loads((tmp_path / "slt_records" / "slt.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["format"] == 1


def test_round_trip_of_anchors(tmp_path: Path) -> None:
    weights = {"w": torch.randn(3, 2).t(), "half": torch.randn(2).bfloat16(), "scalar": torch.tensor(2.0)}
    writer = RecordWriter(tmp_path, "a/b")
    writer.write(READING, anchor=weights)
    writer.write(replace(READING, index=4))
    first, second = slt.load_records(tmp_path)
    loaded = slt.load_anchor(first)
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[name], weights[name]) for name in weights)
    with pytest.raises(
        FileNotFoundError, match="reading 4 of 'slt' has no anchor; monitors save it with snapshots=True"
    ):
        slt.load_anchor(second)


def write(folder: Path, count: int = 3) -> Path:
    writer = RecordWriter(folder, "slt")
    for index in range(count):
        writer.write(replace(READING, index=index, step=index))
    return writer.path


def test_a_line_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.warns(UserWarning, match=r"slt.jsonl:3 is no reading and is left out"):
        assert [r.step for r in slt.load_records(tmp_path)] == [0, 1]
    RecordWriter(tmp_path, "slt", resume="slt.jsonl").write(replace(READING, index=2, step=5))
    with pytest.warns(UserWarning, match=r"slt.jsonl:3 is no reading"):
        assert [r.step for r in slt.load_records(tmp_path)] == [0, 1, 5]


def changed(**changes: Any) -> Any:
    return lambda line: json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda line: "not json", "Expecting value"),
        (lambda line: "[1, 2]", "list indices"),
        (lambda line: "null", "NoneType"),
        (lambda line: line.replace("per_chain", "chains"), "per_chain"),
        (changed(format=2), "format 2, this version reads 1"),
        (changed(estimates=[1]), "list"),
        (changed(traces="../../secret.safetensors"), "outside the records"),
        (changed(anchor="/etc/passwd"), "outside the records"),
    ],
)
def test_broken_lines_are_left_out(tmp_path: Path, damage: Any, reason: str) -> None:
    path = write(tmp_path)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    lines = path.read_text().splitlines()
    lines[1] = damage(lines[1])
    path.write_text("\n".join([*lines, "", ""]))
    with pytest.warns(UserWarning, match=rf"slt.jsonl:2 is no reading and is left out \(.*{reason}"):
        assert [r.step for r in slt.load_records(tmp_path)] == [0, 2]


def test_traces_that_are_gone(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    (reading,) = slt.load_records(tmp_path)
    assert reading.estimates["full"]["llc"].traces == {}
    assert reading.estimates["full"]["llc"].per_chain[0] == 1.25


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="give the folder that the logger wrote to"):
        slt.load_records(tmp_path)


@pytest.mark.parametrize("place", [".", "slt_records", "slt_records/a", "slt_records/a/b.jsonl"])
def test_places_to_load_from(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of the logs, that of the records, and a single file; relative ones too."""
    RecordWriter(tmp_path, "a/b").write(replace(READING, name="a/b"))
    assert [r.name for r in slt.load_records(tmp_path / place)] == ["a/b"]
    monkeypatch.chdir(tmp_path / place if (tmp_path / place).is_dir() else tmp_path)
    assert [r.name for r in slt.load_records("." if (tmp_path / place).is_dir() else place)] == ["a/b"]


def test_a_place_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"version_7 does not exist; give the folder that the logger wrote to"):
        slt.load_records(tmp_path / "version_7")


def test_no_reading_of_that_name(tmp_path: Path) -> None:
    RecordWriter(tmp_path, "a").write(replace(READING, name="a"))
    with pytest.warns(UserWarning, match=r"no reading of a monitor called 'b'; there are readings of 'a'"):
        assert slt.load_records(tmp_path, name="b") == []


def test_order_and_names(tmp_path: Path) -> None:
    """Several monitors and versions, in the order of time."""
    for time, (folder, name) in enumerate([("version_2", "a"), ("version_10", "b"), ("version_2", "b/c")]):
        RecordWriter(tmp_path / folder, name).write(replace(READING, name=name, time=float(time)))
    assert [r.name for r in slt.load_records(tmp_path)] == ["a", "b", "b/c"]
    assert [r.time for r in slt.load_records(tmp_path, name="b")] == [1.0]


def test_what_a_monitor_writes(elsewhere: Path) -> None:
    """Traces give back the estimate; anchors are the weights at that step; nothing is left half written."""
    seed_all(0)
    trajectory = Trajectory()
    trainer_for(few_draws(traces=True, snapshots=True), trajectory, max_epochs=2).fit(Classifier(), loader_of(blobs()))
    readings = slt.load_records(elsewhere)
    assert [r.index for r in readings] == [0, 1, 2, 3, 4]
    for reading in readings:
        estimate = reading.estimates["full"]["llc"]
        assert estimate.traces["loss"].shape == (2, 4)
        assert torch.equal(reading.settings["nbeta"] * estimate.traces["loss"].mean(1), estimate.per_chain)
        anchor = slt.load_anchor(reading)
        assert all(torch.equal(anchor[n], w) for n, w in trajectory.weights[reading.global_step].items())
        assert reading.settings["samples"] == "32 of 32"
        assert reading.duration > 0
    assert not list(elsewhere.rglob("*.partial"))


def test_a_file_of_arrays_says_what_it_holds(elsewhere: Path) -> None:
    """From its header alone, read by safetensors without this package: monitor, step, kinds, axes and names."""
    seed_all(0)
    few = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=1, batch_size=8)
    data = slt.Probe(blobs(), name="data", num_samples=6)
    estimators = [
        slt.LLC(traces=True),
        slt.LossKernel(data),
        slt.BayesianInfluence(train=data, query=blobs(3, seed=2)),
        slt.Susceptibility([slt.Probe(blobs(5), name="five")], method="restricted"),
    ]
    monitor = slt.SLTMonitor(
        estimators, components="layers", sampling=few, every_n_train_steps=2, snapshots=True, name="a/b"
    )
    trainer_for(monitor, max_steps=2).fit(Classifier(), loader_of(blobs()))
    reading = slt.load_records(elsewhere)[-1]
    folder = elsewhere / "slt_records" / "a" / "b"
    with safe_open(folder / "traces-000001.safetensors", "np") as file:
        header, shapes = file.metadata(), {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    said = {key: header[key] for key in ("monitor", "reading", "step", "global_step", "epoch", "holds")}
    assert said == {
        "monitor": "a/b", "reading": "1", "step": "2", "global_step": "2", "epoch": "0", "holds": "traces",
    }  # fmt: skip
    kinds, axes, names = (json.loads(header[key]) for key in ("kind", "axes", "names"))
    assert kinds == {
        **{f"{layer}/llc": "Estimate" for layer in ("net.0", "net.2")},
        **{f"{layer}/loss_kernel": "KernelEstimate" for layer in ("net.0", "net.2")},
        **{f"{layer}/influence": "Influence" for layer in ("net.0", "net.2")},
        "all/susceptibility": "Responses",
    }
    assert axes.keys() == shapes.keys()
    assert all(len(axes[name]) == len(shape) for name, shape in shapes.items())
    assert axes["net.0/llc/loss"] == ["chain", "draw"]
    assert axes["net.2/loss_kernel/correlation"] == ["sample", "other"]
    assert axes["net.2/influence/normalized"] == ["train", "query"]
    assert axes["all/susceptibility/matrix"] == ["row", "component"]
    assert names["all/susceptibility"] == {"components": ["net.0", "net.2"], "probes": ["five"]}
    assert reading.estimates["net.0"]["influence"].axes()["influence"] == ("train", "query")
    with safe_open(folder / "anchor-000001.safetensors", "np") as file:
        assert {**file.metadata(), "holds": "traces"} == said
        assert set(file.keys()) == {name for name, _ in Classifier().named_parameters()}


def test_files_of_arrays_without_a_header(tmp_path: Path) -> None:
    """As earlier versions wrote them."""
    write(tmp_path, 1)
    (path,) = tmp_path.rglob("*.safetensors")
    save_file(load_file(path), path)
    (reading,) = slt.load_records(tmp_path)
    assert torch.equal(reading.estimates["full"]["llc"].traces["loss"][0], DEAD.traces["loss"][0])


def test_a_folder_that_cannot_be_written(elsewhere: Path) -> None:
    """Training goes on."""
    (elsewhere / "slt_records").write_text("in the way")
    with pytest.warns(UserWarning, match="slt: the reading at step 0 was not recorded"):
        trainer_for(few_draws(every_n_train_steps=50), max_epochs=1).fit(Classifier(), loader_of(blobs()))
