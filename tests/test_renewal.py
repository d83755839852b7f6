"""A run that outgrows its settings: when it is noticed, what is read again, and what is said."""

import logging
import math
import signal

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt
from lightning_slt.calibration import OUTGROWN
from lightning_slt.calibration.relative import RENEWED_CONDITION
from lightning_slt.callbacks.history import History
from lightning_slt.running import make_reading

COUNTS = slt.SamplingConfig(num_chains=4, num_draws=40, batch_size=8)


class Stiffening(L.LightningModule):
    """A quadratic whose curvature is what the list says at each step."""

    def __init__(self, curvatures):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.curvatures = curvatures
        self.register_buffer("curvature", torch.tensor(float(curvatures[0])))

    def training_step(self, batch, batch_idx):
        return 0.5 * self.curvature * self.w.square().sum() + 0 * batch[0].sum()

    def on_before_zero_grad(self, optimizer):
        """Inside the optimizer's step, whose number is not counted yet."""
        self.curvature.fill_(self.curvatures[self.trainer.global_step + 1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


def fit(tmp_path, curvatures, *others, **monitor):
    settings = {"every_n_train_steps": 1, "sampling": COUNTS, **monitor}
    trainer = L.Trainer(
        max_steps=len(curvatures) - 1, callbacks=[slt.LLCMonitor(**settings), *others], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, logger=False, enable_checkpointing=False,
        accelerator="cpu",
    )  # fmt: skip
    trainer.fit(Stiffening(curvatures), DataLoader(TensorDataset(torch.zeros(64, 1)), batch_size=8))
    return trainer


def localizations(readings):
    return {r.settings["localization"] for r in readings}


def steps(readings):
    return [r.step for r in readings]


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [r.getMessage() for r in caplog.records if "outgrown" in r.getMessage()]


def test_everything_is_read_again_with_one_localization(tmp_path, messages, caplog):
    grown = [1.0, 1.5, 2.0, 100.0, 200.0, 250.0, 220.0]
    fit(tmp_path, grown)
    readings = slt.load_records(tmp_path)
    assert steps(readings) == list(range(7))
    (gamma,) = localizations(readings)
    assert gamma == pytest.approx(30 * 200.0 / RENEWED_CONDITION, rel=0.05)
    for reading, curvature in zip(readings, grown, strict=True):
        estimate = reading.estimates["full"]["llc"]
        exact = 3 * 0.5 * 30 * curvature / (30 * curvature + gamma)
        assert abs(estimate.mean - exact) < 4 * estimate.stderr + 0.12 * exact  # SGLD's own law is that much wider
        assert reading.settings["stability"] <= 0.4 + 1e-6
    assert len(messages()) == 1
    assert "the 3 earlier readings are made again" in messages()[0]
    assert [m for r in caplog.records if (m := r.getMessage()).startswith("slt: 7 readings")]
    everything = slt.load_records(tmp_path, revised=True)
    assert [r.index for r in everything] == list(range(10))
    assert [r.revises for r in everything] == [None, None, None, 0, 1, 2, None, None, None, None]
    assert len(localizations(everything)) == 2


def test_what_a_signal_breaks_off_is_read_again_before_the_next(tmp_path, messages, monkeypatch):
    """Three were read, the fourth was put off, and the signal comes while the second of them is read again."""
    calls = iter(range(100))

    def signalled(*given, **options):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGUSR1)
        return make_reading(*given, **options)

    monkeypatch.setattr("lightning_slt.reading.make_reading", signalled)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        fit(tmp_path, [1.0, 1.5, 2.0, 100.0, 200.0, 250.0, 220.0])
    finally:
        signal.signal(signal.SIGUSR1, before)
    readings = slt.load_records(tmp_path)
    assert steps(readings) == [0, 1, 2, 3, 5, 6]  # the fifth is given up
    assert len(localizations(readings)) == 1


def test_a_spike_changes_nothing(tmp_path, messages):
    fit(tmp_path, [1.0, 1.0, 500.0, 1.0, 1.0])
    readings = slt.load_records(tmp_path)
    assert steps(readings) == [0, 1, 2, 3, 4]
    assert len(localizations(readings)) == 1
    assert not messages()
    assert "steps" in readings[2].estimates["full"]["llc"].health.failed
    assert len(slt.load_records(tmp_path, revised=True)) == 5


def test_one_that_is_held_back_at_the_end_is_read(tmp_path, messages):
    fit(tmp_path, [1.0, 1.0, 500.0])
    readings = slt.load_records(tmp_path)
    assert steps(readings) == [0, 1, 2]
    (gamma,) = localizations(readings)
    assert 30 * 500 / gamma < OUTGROWN
    assert len(messages()) == 1


def test_a_callback_that_waits_for_a_number_is_not_made_to_wait(tmp_path, messages):
    seen = []

    class Look(EarlyStopping):
        def on_train_batch_end(self, trainer, *args):
            seen.append((trainer.global_step, len(slt.load_records(tmp_path))))

    fit(tmp_path, [1.0, 1.0, 500.0, 400.0], Look("slt/full/llc/mean", patience=100, check_finite=False))
    assert [count for _, count in seen] == [2, 3, 4]
    assert len(localizations(slt.load_records(tmp_path))) == 1


def test_what_the_user_gave_stays(tmp_path, messages):
    fit(tmp_path, [1.0, 1.0, 500.0, 500.0], localization=20.0)
    readings = slt.load_records(tmp_path)
    assert localizations(readings) == {20.0}
    assert [("steps" in r.estimates["full"]["llc"].health.failed) for r in readings] == [False, False, True, True]
    assert not messages()


def test_a_run_that_has_settled_keeps_its_settings(tmp_path, messages, monkeypatch):
    monkeypatch.setattr("lightning_slt.callbacks.history.MOST_KEPT", 3)
    fit(tmp_path, [1.0, 1.0, 1.0, 1.0, 500.0, 500.0])
    assert len(localizations(slt.load_records(tmp_path))) == 1
    assert not messages()


def test_readings_that_are_no_longer_in_memory_are_told(tmp_path, messages, monkeypatch):
    monkeypatch.setattr("lightning_slt.callbacks.history.free_memory", lambda device: 3 * 32 / 0.05)
    fit(tmp_path, [1.0, 1.0, 1.0, 1.0, 500.0, 500.0])
    readings = slt.load_records(tmp_path)
    assert "the first 1, no longer in memory, are not comparable" in messages()[0]
    assert len(localizations(readings)) == 2
    assert len(localizations(readings[1:])) == 1


def test_a_budget_that_cannot_pay_leaves_the_settings(tmp_path, messages, monkeypatch):
    monkeypatch.setattr("lightning_slt.callbacks.budget.Budget.can_pay", lambda self, seconds: False)
    monkeypatch.setattr("lightning_slt.callbacks.budget.Budget.affords", lambda self: True)
    fit(tmp_path, [1.0, 1.0, 500.0, 500.0], max_overhead=0.5, at_end=True)
    assert len(localizations(slt.load_records(tmp_path, revised=True))) == 1
    assert not messages()


def test_a_growth_in_stages(tmp_path):
    fit(tmp_path, [1.0, 1.0, 50.0, 60.0, 2000.0, 2500.0, 2500.0])
    readings = slt.load_records(tmp_path)
    assert steps(readings) == list(range(7))
    assert len(localizations(readings)) == 1
    assert all(math.isfinite(r.estimates["full"]["llc"].mean) for r in readings)
    assert len(localizations(slt.load_records(tmp_path, revised=True))) == 3


def test_what_is_owed_stays_owed_where_settings_change_again():
    history, first, second = History(), object(), object()
    history.owed, history.readings = [first], [second]
    history.owe()
    assert history.owed == [first, second]
    assert history.readings == []
