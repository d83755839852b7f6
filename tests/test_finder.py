"""SamplerFinder in a Trainer: what it finds, whom it sets, and that training does not notice."""

import copy

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt

COUNTS = slt.SamplingConfig(num_chains=4, num_draws=50, batch_size=16)
GRID = {"nbeta": [10.0, 30.0], "sampling": COUNTS}


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Dropout(0.1), nn.Linear(12, 3))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader():
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    labels = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return DataLoader(TensorDataset(x, labels), batch_size=16, shuffle=True)


def fit(tmp_path, *callbacks, steps=60, **options):
    L.seed_everything(1)
    trainer = L.Trainer(
        max_steps=steps, callbacks=list(callbacks), default_root_dir=tmp_path, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", log_every_n_steps=1,
        **{"logger": False, "enable_checkpointing": False, **options},
    )  # fmt: skip
    model = Classifier()
    trainer.fit(model, loader())
    return trainer, model


def found_in(readings):
    return {(r.settings["nbeta"], r.settings["localization"]) for r in readings}


@pytest.mark.parametrize("first", [pytest.param("finder", marks=pytest.mark.slow), "monitor"])
def test_monitors_take_up_what_is_found(tmp_path, first):
    finder = slt.SamplerFinder(at_step=45, **GRID)
    open_, given = slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS), slt.LLCMonitor(
        every_n_train_steps=20, sampling=COUNTS, localization=77.0, name="given"
    )  # fmt: skip
    fit(tmp_path, *([finder, open_, given] if first == "finder" else [open_, given, finder]))
    found = finder.calibration
    assert found.accepted, found.reason
    readings = slt.load_records(tmp_path, name="slt")
    assert [r.step for r in readings] == [0, 20, 40, 60]
    assert found_in(readings) == {(found.settings.nbeta, found.settings.localization)}
    assert [r.revises for r in slt.load_records(tmp_path, name="slt", revised=True)] == [
        None,
        None,
        None,
        0,
        1,
        2,
        None,
    ]
    assert {r.settings["localization"] for r in slt.load_records(tmp_path, name="given")} == {77.0}


def test_at_the_start_it_comes_before_the_first_reading(tmp_path):
    _, trained = fit(tmp_path / "before", steps=100)
    finder, monitor = slt.SamplerFinder(**GRID), slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS)
    trainer = L.Trainer(max_steps=20, callbacks=[monitor, finder], default_root_dir=tmp_path, logger=False,
                        enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")  # fmt: skip
    trainer.fit(trained, loader())
    assert finder.calibration.accepted
    readings = slt.load_records(tmp_path, revised=True)
    assert [r.revises for r in readings] == [None, None]
    assert found_in(readings) == {(finder.calibration.settings.nbeta, finder.calibration.settings.localization)}


def test_training_stays_the_same_to_the_last_bit(tmp_path):
    _, plain = fit(tmp_path / "plain")
    finder = slt.SamplerFinder(at_step=30, **GRID)
    _, watched = fit(tmp_path / "watched", finder, slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS))
    assert finder.calibration is not None
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])


def test_where_nothing_can_be_suggested_monitors_keep_their_own(tmp_path):
    finder = slt.SamplerFinder(at_step=20, step_size=1e-9, nbeta=30.0, localization=[1.0], sampling=COUNTS)
    with pytest.warns(UserWarning, match="finder at step 20: no suggestion .* no setting of the sweep will do"):
        fit(tmp_path, finder, slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS))
    assert not finder.calibration.accepted
    readings = slt.load_records(tmp_path, revised=True)
    assert [r.revises for r in readings] == [None] * 4


def test_a_resumed_run_does_not_look_again(tmp_path):
    finder, monitor = slt.SamplerFinder(at_step=20, **GRID), slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS)
    trainer, _ = fit(tmp_path, finder, monitor, steps=32)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    before = found_in(slt.load_records(tmp_path))
    again = slt.SamplerFinder(at_step=20, **GRID)
    later = L.Trainer(
        max_steps=60, callbacks=[again, slt.LLCMonitor(every_n_train_steps=20, sampling=COUNTS)], logger=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu",
    )  # fmt: skip
    later.fit(Classifier(), loader(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.calibration is None
    readings = slt.load_records(tmp_path)
    assert [r.step for r in readings] == [0, 20, 32, 40, 60]
    assert found_in(readings) == before


def test_table_and_picture_go_to_tensorboard(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    finder = slt.SamplerFinder(at_step=20, **GRID)
    fit(tmp_path, finder, steps=21, logger=logger)
    events = EventAccumulator(logger.log_dir).Reload()
    assert "finder/sweep" in events.Tags()["images"]
    assert "finder/sweep/text_summary" in events.Tags()["tensors"]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"at_step": -1}, "at_step must be a whole number, zero or more, got -1"),
        ({"nbeta": 0.0}, "nbeta must be a positive number or several"),
        ({"step_size": [1e-3, "x"]}, "step_size must be a positive number or several"),
    ],
)
def test_what_cannot_be(keywords, message):
    with pytest.raises(ValueError, match=message):
        slt.SamplerFinder(**keywords)


def test_a_fast_run_does_not_search(tmp_path):
    finder = slt.SamplerFinder()
    fit(tmp_path, finder, slt.LLCMonitor(), fast_dev_run=True)
    assert finder.calibration is None
    assert copy.deepcopy(finder).at_step == 0
