"""Readings as xarray: every number where its labels say, ragged readings laid out on all that any of them has."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray
from models import Classifier, blobs, loader_of, seed_all, trainer_for

import lightning_slt as slt
from lightning_slt.results import Result
from lightning_slt.types import Estimate, Health

FEW = slt.SamplingConfig(num_chains=3, num_draws=4, num_burnin=1, batch_size=8)


def reading(index: int, estimates: Any, **changes: Any) -> slt.Reading:
    values = {"name": "slt", "step": 10 * index, "global_step": 10 * index, "epoch": 0, "time": float(index)}
    values |= {"duration": 0.5, "overhead": math.nan, "settings": {"num_chains": 3, "nbeta": 30.0}}
    return slt.Reading(index=index, estimates=estimates, **{**values, **changes})


def llc(*per_chain: float, dead: dict[int, int] | None = None, **values: float) -> Estimate:
    live = [v for v in per_chain if math.isfinite(v)]
    health = Health(ok=not dead, failed=("finite",) if dead else (), values=values, dead_chains=dead or {})
    return Estimate(mean=sum(live) / len(live), stderr=0.1, per_chain=torch.tensor(per_chain), health=health)


@dataclass(frozen=True, kw_only=True, repr=False)
class Table(Result):
    """A result of samples, as an estimator of the user's might give it."""

    value: float = 1.0
    table: torch.Tensor
    indices: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    unnamed: torch.Tensor | None = None

    def axes(self) -> dict[str, tuple[str, ...]]:
        return {"table": ("chain", "sample") if self.table.ndim == 2 else ("sample",)}


def table(values: list[Any], indices: list[int], labels: list[int] | None = None, **more: Any) -> Table:
    known = None if labels is None else torch.tensor(labels)
    health = more.pop("health", Health(ok=True))
    return Table(table=torch.tensor(values), indices=torch.tensor(indices), labels=known, health=health, **more)


def converted(*readings: slt.Reading) -> xarray.Dataset:
    (dataset,) = slt.to_xarray(readings).values()
    return dataset


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recorded run with everything that has axes, and a second monitor."""
    folder = tmp_path_factory.mktemp("run")
    seed_all(0)
    data = slt.Probe(blobs(), name="data", num_samples=6)
    estimators = [
        slt.LLC(traces=True),
        slt.LLC().on(blobs(8), name="some"),
        slt.LossKernel(data, traces=True),
        slt.BayesianInfluence(train=data, query=blobs(4, seed=2)),
        slt.Susceptibility([slt.Probe(blobs(5), name="five")], method="restricted"),
        slt.Information(data),
    ]
    monitors = [
        slt.SLTMonitor(estimators, components="layers", sampling=FEW, every_n_train_steps=2, name="a/b"),
        slt.LLCMonitor(sampling=FEW, every_n_train_steps=4, name="whole"),
    ]
    trainer_for(*monitors, max_steps=4, default_root_dir=folder).fit(Classifier(), loader_of(blobs()))
    return folder


def test_every_number_of_a_recorded_run(run: Path) -> None:
    found = slt.to_xarray(slt.load_records(run))
    assert found.keys() == {"a/b", "whole"}
    dataset, readings = found["a/b"], slt.load_records(run, name="a/b")
    assert dataset.reading.values.tolist() == [0, 1, 2]
    assert dataset.step.values.tolist() == [0, 2, 4]
    for number, r in enumerate(readings):
        here = dataset.isel(reading=number)
        assert (float(here.time), float(here.duration)) == (r.time, r.duration)
        for component in ("net.0", "net.2"):
            own, values = r.estimates[component], here.sel(component=component)
            assert float(values.llc_mean) == own["llc"].mean
            assert float(values.llc_some_stderr) == own["llc/some"].stderr
            assert values.llc_per_chain.values.tolist() == own["llc"].per_chain.tolist()
            assert np.array_equal(values.llc_loss.transpose("chain", "draw"), own["llc"].traces["loss"])
            assert float(values.llc_health.sel(check="rhat")) == own["llc"].health.values["rhat"]
            assert bool(values.llc_ok) == own["llc"].health.ok
            assert str(values.llc_failed.values) == ", ".join(own["llc"].health.failed)
            assert float(values.information_waic) == own["information"].waic
            kernel, influence = own["loss_kernel"], own["influence"]
            assert np.array_equal(values.loss_kernel_covariance.transpose("sample", "other"), kernel.covariance)
            assert np.array_equal(values.loss_kernel_traces.transpose("chain", "draw", "sample"), kernel.traces)
            assert np.array_equal(values.influence_normalized.transpose("train", "query"), influence.normalized)
            assert dataset.train.values.tolist() == influence.train_indices.tolist() == kernel.indices.tolist()
            assert dataset.train_label.values.tolist() == influence.train_labels.tolist()
        response = r.estimates["all"]["susceptibility"]
        assert np.array_equal(here.susceptibility_matrix.transpose("row", "component"), response.matrix)
        assert here.susceptibility_by_probe.sel(probe="five", component="net.2") == response.by_probe[0, 1]
    assert dataset.row.values.tolist() == [f"five/{i}" for i in range(5)]
    assert dataset.row_sample.values.tolist() == list(range(5))
    assert set(dataset.row_probe.values) == {"five"}
    assert dataset.attrs["nbeta"] == 30.0
    assert dataset.attrs["sampler"] == "SGLD"
    assert dataset.setting_curvature.values.tolist() == [r.settings["curvature"] for r in readings]
    assert dataset.swap_dims(reading="step").llc_mean.sel(step=4, component="net.0") == dataset.llc_mean[2, 0]
    assert found["whole"].llc_mean.dims == ("reading", "component")
    assert found["whole"].component.values.tolist() == ["full"]


def written_and_read(dataset: xarray.Dataset, folder: Path) -> list[xarray.Dataset]:
    """Through zarr, and through the netCDF of scipy, version 3."""
    dataset.to_zarr(folder / "run.zarr", zarr_format=2)
    dataset.to_netcdf(folder / "run.nc", engine="scipy")
    netcdf = {"engine": "scipy", "backend_kwargs": {"mmap": False}}
    return [xarray.load_dataset(folder / "run.zarr"), xarray.load_dataset(folder / "run.nc", **netcdf)]


def test_written_and_read_again(run: Path, tmp_path: Path) -> None:
    """Both formats hold it as it is."""
    dataset = slt.to_xarray(slt.load_records(run))["a/b"]
    for again in written_and_read(dataset, tmp_path):
        xarray.testing.assert_equal(again, dataset)
        assert again.attrs["localization"] == dataset.attrs["localization"]


def test_what_a_reading_lacks() -> None:
    """One failed, one has a component more, and other checks."""
    whole, part = {"full": {"llc": llc(1.0, 2.0, 3.0, rhat=1.0)}}, {"a": {"llc": llc(4.0, 5.0, 6.0, snr=2.0)}}
    failed = reading(1, {}, failure="ValueError: no", settings={})
    dataset = converted(reading(0, whole), failed, reading(2, {**whole, **part}))
    assert dataset.component.values.tolist() == ["full", "a"]
    assert dataset.failure.values.tolist() == ["", "ValueError: no", ""]
    expected = np.array([[2.0, math.nan], [math.nan, math.nan], [2.0, 5.0]])
    assert np.array_equal(dataset.llc_mean, expected, equal_nan=True)
    assert dataset.llc_ok.values.tolist() == [[True, False], [False, False], [True, True]]
    assert dataset.llc_per_chain.sel(component="a").values[2].tolist() == [4.0, 5.0, 6.0]
    assert dataset.check.values.tolist() == ["rhat", "snr"]
    assert np.isnan(dataset.llc_health.sel(check="snr", component="full")).all()
    assert dataset.attrs["nbeta"] == 30.0


def test_settings_that_change() -> None:
    whole = {"full": {"llc": llc(1.0, 2.0, 3.0)}}
    settings = [{"num_chains": 3, "sampler.step_size": step, "sampler": "SGLD", "odd": [1, 2]} for step in (0.1, 0.2)]
    dataset = converted(*(reading(i, whole, settings=s) for i, s in enumerate([*settings, {}])))
    assert np.array_equal(dataset.setting_sampler_step_size, [0.1, 0.2, math.nan], equal_nan=True)
    assert dataset.attrs["sampler"] == "SGLD"
    assert dataset.attrs["odd"] == "[1, 2]"


def test_chains_that_died_are_missing_in_their_place() -> None:
    """Results that leave dead chains out of their arrays."""
    dead = Health(ok=False, failed=("finite",), dead_chains={1: 7})
    dataset = converted(
        reading(0, {"full": {"t": table([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], [3, 9])}}),
        reading(1, {"full": {"t": table([[10.0, 11.0], [12.0, 13.0]], [3, 9], health=dead)}}),
    )
    assert dataset.chain.values.tolist() == [0, 1, 2]
    last = dataset.t_table.isel(reading=1, component=0).transpose("chain", "sample").values
    assert np.array_equal(last, [[10.0, 11.0], [math.nan, math.nan], [12.0, 13.0]], equal_nan=True)


def test_samples_are_joined_by_their_index() -> None:
    dataset = converted(
        reading(0, {"full": {"t": table([1, 2], [5, 7], [0, 1])}}),
        reading(1, {"full": {"t": table([3, 4], [7, 6], [1, 0])}}),
    )
    assert dataset.sample.values.tolist() == [5, 7, 6]
    assert dataset.sample_label.values.tolist() == [0, 1, 0]
    expected = [[1.0, 2.0, math.nan], [math.nan, 3.0, 4.0]]
    assert np.array_equal(dataset.t_table.isel(component=0), expected, equal_nan=True)


def test_numbers_stay_whole_where_none_is_missing() -> None:
    dataset = converted(reading(0, {"full": {"t": table([1, 2], [5, 7])}}))
    assert dataset.t_table.dtype == np.int64


@pytest.mark.parametrize(("indices", "labels"), [([5, 8], [0, 1]), ([5, 7], [1, 1]), ([5], [0])])
def test_other_samples_have_axes_of_their_own(indices: list[int], labels: list[int]) -> None:
    """Other indices, or the same ones of other data, as their labels tell."""
    mine, other = table([1, 2], [5, 7], [0, 1]), table(list(range(len(indices))), indices, labels)
    dataset = converted(reading(0, {"full": {"one": mine, "two/x": other}}))
    assert dataset.one_table.dims == ("reading", "component", "sample_one")
    assert dataset.two_x_table.dims == ("reading", "component", "sample_two_x")
    assert dataset.sample_two_x.values.tolist() == indices
    assert dataset.sample_two_x_label.values.tolist() == labels
    same = converted(reading(0, {"full": {"one": mine, "two": replace(mine, table=mine.table + 1)}}))
    assert same.one_table.dims == same.two_table.dims == ("reading", "component", "sample")


def test_arrays_without_names_of_axes() -> None:
    dataset = converted(reading(0, {"full": {"t": table([1], [5], unnamed=torch.ones(2, 3, dtype=torch.bfloat16))}}))
    assert dataset.t_unnamed.dims == ("reading", "component", "t_unnamed_axis_0", "t_unnamed_axis_1")
    assert dataset.t_unnamed.dtype == np.float32


def test_what_cannot_be_laid_out() -> None:
    twice = {"full": {"t/table": table([1], [5]), "t_table": table([1], [5])}}
    with pytest.raises(ValueError, match="'t/table' and 't_table' both have a variable 't_table_value'"):
        converted(reading(0, twice))
    with pytest.raises(ValueError, match=r"t_table has other axes in other readings: \('chain', 'sample'.* and \('sa"):
        converted(
            reading(0, {"full": {"t": table([1, 2], [5, 7])}}), reading(1, {"full": {"t": table([[1, 2]] * 3, [5, 7])}})
        )


def test_tokens_are_axes_too() -> None:
    from test_influence import estimated, tokens

    found = estimated(*tokens(), tokens="both")
    dataset = converted(reading(0, {"full": {"influence": found}}))
    assert dataset.influence_influence.dims == (
        "reading", "component", "train", "train_token", "query", "query_token",
    )  # fmt: skip
    assert np.array_equal(dataset.influence_influence[0, 0], found.influence)


def test_nothing_to_convert() -> None:
    assert slt.to_xarray([]) == {}


def test_without_xarray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"to_xarray needs xarray; pip install lightning_slt\[store\]"):
        slt.to_xarray([])
