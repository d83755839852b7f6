"""CompressibilityMonitor: logs, records, correlations, and training that it leaves alone."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from models import FEW, BlobData, Classifier, MemoryLogger, blobs, compare, footprint, loader_of, seed_all, trainer_for
from scipy import stats

import lightning_slt as slt
from lightning_slt.analysis.compression import correlate, table_of
from lightning_slt.records import Reading
from lightning_slt.reporting.compression import compression_figure, correlation_figure, correlation_table
from lightning_slt.types import Estimate, Health

pytestmark = pytest.mark.usefixtures("elsewhere")
BITS, LLC, LOSS = (f"slt/full/{tag}" for tag in ("compressibility/bits_0.02", "llc/mean", "compressibility/loss"))


def monitor(**options: Any) -> slt.CompressibilityMonitor:
    given = {"schemes": ("quantization", "noise"), "tolerances": (0.02, 0.1), "num_noise": 2, "sampling": FEW}
    return slt.CompressibilityMonitor(**{**given, "every_n_train_steps": 1, **options})


def fit(*callbacks: Any, resume: str | None = None, **options: Any) -> Any:
    seed_all(0)
    trainer = trainer_for(*callbacks, **{"max_epochs": 2, "logger": MemoryLogger(), **options})
    trainer.fit(Classifier(lr=0.05), loader_of(blobs(), shuffle=False), ckpt_path=resume)
    return trainer


def test_beside_the_llc() -> None:
    mine = monitor()
    trainer = fit(mine)
    readings = slt.load_records(".")
    assert [r.step for r in readings] == list(range(9))
    found = readings[-1].estimates["full"]["compressibility"]
    assert float(trainer.callback_metrics["slt/full/compressibility/sigma_0.1"]) == pytest.approx(
        found.scalars()["sigma_0.1"]
    )
    assert found.quantization.shape[1] == 2
    assert "slt/full/llc/mean" in trainer.callback_metrics
    assert mine.heard == {
        step: {tag: pytest.approx(v, nan_ok=True) for tag, v in row.items() if "/llc" in tag or "/compress" in tag}
        for step, row in table_of(readings).items()
    }
    live, read = mine.correlations(), correlate(readings, number="sigma_0.1")
    assert [c.plain for c in live if c.number.endswith("/sigma_0.1")] == [read.plain]
    assert len(compression_figure(found).axes) == 2
    assert correlation_figure(read).axes[0].get_xlabel() == "step"


def test_beside_another_monitor_whatever_the_order() -> None:
    """λ̂ from a monitor that reads last, at the end of the fit too: the table waits for it."""
    mine = monitor(quantity="other/full/llc", at_end=True, every_n_train_steps=2)
    other = slt.LLCMonitor(name="other", sampling=FEW, every_n_train_steps=2, at_end=True)
    fit(mine, other)
    assert all({"other/full/llc/mean", "slt/full/compressibility/loss"} <= row.keys() for row in mine.heard.values())
    assert [e.name for e in mine.estimators] == ["compressibility"]
    assert mine.correlations()[0].quantity == "other/full/llc"
    again = correlate(slt.load_records("."), number=mine.correlations()[0].number, quantity="other/full/llc")
    assert again.plain == mine.correlations()[0].plain


def test_of_every_component() -> None:
    mine = monitor(components={"first": slt.Component(("net.0.weight",)), "last": slt.Component(("net.2.weight",))})
    fit(mine)
    found = mine.correlations()
    assert {c.quantity for c in found} == {"slt/first/llc", "slt/last/llc"}
    assert "| sigma_0.1, λ̂ of first |" in correlation_table(found)


def test_another_monitor_at_other_steps_is_told() -> None:
    mine = monitor(quantity="other/full/llc", every_n_train_steps=1)
    other = slt.LLCMonitor(name="other", sampling=FEW, every_n_train_steps=5)
    with pytest.warns(UserWarning, match="of its 9 readings, 2 have a value of 'other/full/llc' at the same step"):
        fit(mine, other)


def test_readings_made_again_replace() -> None:
    mine = monitor()
    health = Health(ok=True)

    def reading(index: int, step: int, value: float, revises: int | None = None) -> Reading:
        estimate = Estimate(mean=value, stderr=0.1, per_chain=torch.tensor([value]), health=health)
        return Reading(
            name="slt", index=index, step=step, global_step=step, epoch=0, time=0.0, duration=1.0, overhead=0.1,
            settings={}, estimates={"full": {"llc": estimate}}, revises=revises,
        )  # fmt: skip

    for r in (reading(0, 5, 1.0), reading(1, 9, 2.0), reading(2, 5, 3.0, revises=0)):
        mine.hear(None, r)  # type: ignore[arg-type]
    assert {step: row[LLC] for step, row in mine.heard.items()} == {5: 3.0, 9: 2.0}


def test_training_is_bit_identical() -> None:
    def loader() -> Any:
        return loader_of(blobs())

    alone = footprint(Classifier, loader, [])
    for int8 in (False, True):
        watched = footprint(Classifier, loader, [monitor(every_n_train_steps=3, int8=int8, name=f"slt/{int8}")])
        assert alone.differences(watched) == []
        assert len(watched.monitor_rows) >= 3


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_resumed_in_the_middle_it_tells_the_same() -> None:
    def saving() -> ModelCheckpoint:
        return ModelCheckpoint("saved", save_top_k=-1, every_n_epochs=1)

    whole, first, second = monitor(), monitor(), monitor()
    fit(whole, logger=False)
    fit(first, saving(), max_epochs=1, logger=False)
    saved = str(next(Path("saved").glob("*.ckpt")))
    assert set(torch.load(saved, weights_only=True)["callbacks"]["slt"]["heard"]) == {0, 1, 2, 3, 4}
    fit(second, saving(), resume=saved, logger=False)
    different: list[str] = []
    compare(second.heard, whole.heard, "heard", different)
    assert different == []
    assert [c.plain for c in second.correlations()] == [c.plain for c in whole.correlations()]
    fit(second, max_epochs=1, logger=False)  # from its start again: nothing is known yet
    assert list(second.heard) == [0, 1, 2, 3, 4]


def test_the_end_tells_a_table_and_a_picture() -> None:
    logger = TensorBoardLogger(".", name="logs", version="0")
    fit(monitor(every_n_train_steps=2), logger=logger)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator("logs/0", size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    assert "slt/compressibility" in events.Tags()["images"]
    assert "slt/full/compressibility/curves" in events.Tags()["images"]
    assert any(tag.startswith("slt/compressibility") for tag in events.Tags()["tensors"])


def rows(count: int = 12) -> dict[int, dict[str, float]]:
    g = np.random.default_rng(0)
    loss = g.normal(size=count)
    llc = 0.5 * loss + g.normal(size=count)
    bits = llc - 0.3 * loss + 0.5 * g.normal(size=count)
    return {k: {LLC: x, BITS: y, LOSS: z} for k, (x, y, z) in enumerate(zip(llc, bits, loss, strict=True))}


def test_correlations_against_regression_and_scipy() -> None:
    table = rows()
    x, y, z = (np.array([row[tag] for row in table.values()]) for tag in (LLC, BITS, LOSS))
    found = correlate(table)
    theirs = stats.pearsonr(x, y)
    assert found.plain.value == pytest.approx(theirs.statistic, abs=1e-12)
    interval = theirs.confidence_interval(0.95)
    assert (found.plain.lower, found.plain.upper) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert found.loss_alone.value == pytest.approx(stats.pearsonr(-z, y).statistic, abs=1e-12)
    residuals = [v - np.polyval(np.polyfit(z, v, 1), z) for v in (x, y)]
    assert found.partial.value == pytest.approx(stats.pearsonr(*residuals).statistic, abs=1e-10)
    half = stats.norm.ppf(0.975) / math.sqrt(len(x) - 4)
    assert math.atanh(found.partial.upper) - math.atanh(found.partial.lower) == pytest.approx(2 * half, abs=1e-9)
    assert found.explained == pytest.approx(stats.pearsonr(x, z).statistic ** 2, abs=1e-12)
    assert not found.collinear
    assert "| bits_0.02 | 12 |" in correlation_table([found])


def test_missing_numbers_are_left_out() -> None:
    table = rows()
    table[3][BITS], table[4][LLC] = math.nan, math.nan
    table[5].pop(LOSS)
    found = correlate(table)
    assert found.steps.tolist() == [0, 1, 2, 6, 7, 8, 9, 10, 11]
    flat = correlate({k: {**row, BITS: 3.0} for k, row in rows().items()})
    assert math.isnan(flat.plain.value)
    assert math.isnan(flat.partial.value)


def test_collinear_is_said() -> None:
    table = {k: {**row, LLC: 3 - 2 * row[LOSS] + 1e-3 * k} for k, row in rows().items()}
    found = correlate(table)
    assert found.collinear
    assert "(collinear)" in correlation_table([found])
    mine = monitor()
    mine.heard = table
    with pytest.warns(UserWarning, match="the loss explains 100% of the variance of λ̂"):
        mine.on_fit_end(trainer_for(), Classifier())


def test_what_to_correlate_must_be_one() -> None:
    table = rows()
    with pytest.raises(ValueError, match=r"there are slt/full/compressibility/bits_0.02$"):
        correlate(table, number="bits_0.5")
    twice = {k: {**row, "b/full/compressibility/bits_0.02": 1.0, "b/full/compressibility/loss": 1.0}
             for k, row in table.items()}  # fmt: skip
    with pytest.raises(ValueError, match="give the whole tag"):
        correlate(twice)
    assert correlate(twice, number=BITS).plain == correlate(table).plain
    with pytest.raises(ValueError, match=r"there are slt/full/llc$"):
        correlate(table, quantity="slt/head/llc")
    two = {k: {BITS: 1.0 * k, LOSS: 0.0, "slt/a/llc/mean": 1.0, "slt/b/llc/mean": 1.0} for k in range(5)}
    with pytest.raises(ValueError, match="slt/a/llc, slt/b/llc"):
        correlate(two)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # between LightningCLI and jsonargparse
def test_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    given = ["schemes=[quantization,heads]", "tolerances=[0.1]", "components=net.*", "quantity=slt/full/llc"]
    args = ["--trainer.accelerator=cpu", "--trainer.callbacks=CompressibilityMonitor"]
    cli = LightningCLI(
        Classifier, BlobData, args=[*args, *(f"--trainer.callbacks.{g}" for g in given)], run=False,
        save_config_callback=None, seed_everything_default=False,
    )  # fmt: skip
    mine = next(c for c in cli.trainer.callbacks if isinstance(c, slt.CompressibilityMonitor))
    assert (list(mine.schemes), list(mine.tolerances), mine.components) == (["quantization", "heads"], [0.1], "net.*")
    assert mine.estimators[0].fields == ("loss", "bits_0.1", "heads_0.1")
    assert mine.quantity == "slt/full/llc"
