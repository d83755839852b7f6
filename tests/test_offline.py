"""Saved checkpoints of a run read as if the monitors had been there: the same numbers, files and pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from models import FEW, BlobData, Classifier, blobs, dropout_and_batchnorm, loader_of, seed_all, trainer_for
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import lightning_slt as slt
from lightning_slt.checkpoints import find_checkpoints
from lightning_slt.cli import main
from lightning_slt.losses import classification
from lightning_slt.weights import load_into

pytestmark = pytest.mark.usefixtures("elsewhere")

GIVEN = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 20.0, "localization": 30.0}


def monitor(kind: str) -> slt.SLTMonitor:
    held_out = slt.Probe(blobs(6, seed=3), name="held")
    if kind == "given":
        return slt.LLCMonitor(**GIVEN, sampling=FEW, every_n_train_steps=2, traces=True)
    if kind == "found":
        return slt.LLCMonitor(sampling=FEW, every_n_train_steps=2, traces=True)
    return slt.SLTMonitor(
        [slt.LLC(), slt.LossKernel(held_out)], sampling=FEW, every_n_train_steps=2, components="layers"
    )


def live(kind: str, *, net: Any = None) -> None:
    """Two epochs of four steps, read and saved every two steps."""
    seed_all(0)
    saving = ModelCheckpoint("saved", every_n_train_steps=2, save_top_k=-1)
    trainer = trainer_for(monitor(kind), saving, max_epochs=2, logger=TensorBoardLogger("live", name="", version=""))
    trainer.fit(Classifier(net), loader_of(blobs()))


def offline(kind: str, *, net: Any = None, **options: Any) -> list[slt.Reading]:
    return slt.analyze(
        Classifier(net), "saved", [monitor(kind)], data=loader_of(blobs()), run_dir="later", progress=False, **options
    )


def tagged(folder: str) -> dict[tuple[str, int], float]:
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    return {(t, e.step): e.value for t in events.Tags()["scalars"] for e in events.Scalars(t) if t.startswith("slt/")}


@pytest.mark.parametrize("kind", ["given", "found", "several"])
def test_readings_equal_those_of_the_live_run_to_the_bit(kind: str) -> None:
    live(kind, net=dropout_and_batchnorm())
    then = {r.step: r for r in slt.load_records("live", name="slt") if r.step}
    later = {r.step: r for r in offline(kind, net=dropout_and_batchnorm())}
    assert list(then) == list(later) == [2, 4, 6, 8]
    for step, mine in later.items():
        theirs = then[step]
        assert (mine.global_step, mine.epoch, mine.settings) == (theirs.global_step, theirs.epoch, theirs.settings)
        assert mine.estimates.keys() == theirs.estimates.keys()
        for component, estimates in mine.estimates.items():
            for key, value in estimates.items():
                assert str(value.health) == str(theirs.estimates[component][key].health)
                for name, array in (value.arrays() if key == "loss_kernel" else value.traces).items():
                    other = getattr(theirs.estimates[component][key], "traces", None)
                    other = theirs.estimates[component][key].arrays() if other is None else other
                    assert torch.equal(array, other[name]), (component, key, name)
    numbers = {where: v for where, v in tagged("live").items() if where[1] and "overhead" not in where[0]}
    logged = {where: v for where, v in tagged("later").items() if "overhead" not in where[0]}
    assert logged.keys() == numbers.keys()
    assert all(logged[w] == numbers[w] or (logged[w] != logged[w] and numbers[w] != numbers[w]) for w in numbers)


def test_an_analysis_goes_on_where_it_was_stopped() -> None:
    live("found")
    whole = offline("found")
    Path("later").rename("whole")
    files = [c.path for c in find_checkpoints("saved")]
    first = slt.analyze(Classifier(), files[:2], [monitor("found")], data=blobs(), run_dir="later", progress=False)
    assert [r.step for r in first] == [2, 4]
    both = offline("found")
    assert [r.step for r in both] == [2, 4, 6, 8]
    assert [r.index for r in both] == [0, 1, 2, 3]
    for mine, other in zip(both[2:], whole[2:], strict=True):
        assert torch.equal(mine.estimates["full"]["llc"].traces["loss"], other.estimates["full"]["llc"].traces["loss"])
    assert len(offline("found")) == 4


def test_the_module_is_as_it_was() -> None:
    live("given")
    module = Classifier(dropout_and_batchnorm())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    seed_all(0)
    state = torch.random.get_rng_state()
    with pytest.raises(ValueError, match="does not fit Classifier: missing"):
        slt.analyze(module, "saved", [monitor("given")], data=blobs(), progress=False)
    live_module = Classifier()
    kept = {name: value.clone() for name, value in live_module.state_dict().items()}
    seed_all(0)
    slt.analyze(live_module, "saved", [monitor("given")], data=blobs(), run_dir="x", progress=False)
    assert torch.equal(torch.random.get_rng_state(), state)
    for saved, now in ((before, module), (kept, live_module)):
        assert all(torch.equal(value, now.state_dict()[name]) for name, value in saved.items())


def test_any_module_and_plain_state_dicts() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    folder = Path("plain")
    folder.mkdir()
    for step in (100, 20):
        torch.manual_seed(step)
        weights = {name: torch.randn_like(value) for name, value in net.state_dict().items()}
        wrapped = {f"model.{name.replace('0.', '0._orig_mod.')}": value for name, value in weights.items()}
        torch.save(wrapped, folder / f"step={step}.pt")
        revision = folder / f"step{step + 1}"
        revision.mkdir()
        save_file(weights, revision / "model.safetensors")
    readings = slt.analyze(
        net, folder, [slt.LLCMonitor(**GIVEN, sampling=FEW, loss_fn=classification)], data=blobs(), progress=False
    )
    assert [r.step for r in readings] == [20, 21, 100, 101]
    first, second = (r.estimates["full"]["llc"].per_chain for r in readings[:2])
    assert torch.equal(first, second)  # the same weights, from two kinds of file


def test_callbacks_that_listen_hear_of_every_checkpoint() -> None:
    live("given")
    heard = []

    class Ears(slt.SamplerFinder):
        def hear(self, trainer: Any, reading: slt.Reading) -> None:
            heard.append((reading.step, trainer.global_step))

    slt.analyze(Classifier(), "saved", [monitor("given"), Ears(at_step=10**6)], data=blobs(), progress=False)
    assert heard == [(2, 2), (4, 4), (6, 6), (8, 8)]


def test_stages_are_reported_in_the_end() -> None:
    live("given")
    stages = slt.StageMonitor("slt/full/llc")
    slt.analyze(Classifier(), "saved", [monitor("given"), stages], data=blobs(), run_dir="later", progress=False)
    assert [int(step) for step in stages._followers["slt/full/llc"].series.steps] == [2, 4, 6, 8]
    events = EventAccumulator("later")
    events.Reload()
    assert "stages/slt/full/llc/table/text_summary" in events.Tags()["tensors"]


def test_what_cannot_be_analyzed_says_so() -> None:
    live("given")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints in nowhere; expected files that end in .ckpt"):
        slt.analyze(Classifier(), "nowhere", [monitor("given")], data=blobs())
    with pytest.raises(ValueError, match="EarlyStopping takes no readings and follows none"):
        slt.analyze(Classifier(), "saved", [EarlyStopping("x")], data=blobs())
    with pytest.raises(ValueError, match="no monitor among the callbacks"):
        slt.analyze(Classifier(), "saved", [], data=blobs())
    with pytest.raises(TypeError, match="no data to sample on; write data="):
        slt.analyze(Classifier(), "saved", [monitor("given")])
    with pytest.raises(ValueError, match=r"missing \['0.weight'"):
        load_into(nn.Sequential(nn.Linear(2, 2)), {"other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"'0.weight \(3, 3\) for \(2, 2\)'|of another shape \['0.weight \(3, 3\)"):
        load_into(nn.Sequential(nn.Linear(2, 2)), {"0.weight": torch.zeros(3, 3), "0.bias": torch.zeros(2)})


class Evil:
    def __reduce__(self) -> Any:
        return (Path("evil").touch, ())


def test_code_in_files_is_not_run() -> None:
    Path("bad").mkdir()
    torch.save({"state_dict": {"w": Evil()}}, "bad/step=1.pt")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        find_checkpoints("bad")
    assert not Path("evil").exists()
    Path("bad/step=1.pt").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(ValueError, match="cannot be read as plain weights"):
        find_checkpoints("bad")
    Path("bad/step=1.pt").unlink()
    torch.save({"w": torch.zeros(1)}, "bad/weights.pt")
    with pytest.raises(ValueError, match=r"the step of bad/weights\.pt is not known: name it"):
        find_checkpoints("bad")


CONFIG = """
model: {class_path: models.Classifier}
data: {class_path: models.BlobData}
trainer:
  max_epochs: 2
  callbacks:
    - class_path: lightning.pytorch.callbacks.ModelSummary
    - class_path: lightning_slt.LLCMonitor
      init_args:
        sampler: {class_path: lightning_slt.SGLD, init_args: {step_size: 1.0e-3}}
        nbeta: 20.0
        localization: 30.0
        sampling: {num_chains: 2, num_draws: 4, num_burnin: 2, batch_size: 8}
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_from_the_command_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seed_all(0)
    saving = ModelCheckpoint("saved", every_n_train_steps=4, save_top_k=-1)
    trainer_for(saving, max_epochs=1).fit(Classifier(), datamodule=BlobData())
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("config.yaml").write_text(CONFIG)
    assert main(["analyze", "saved", "--config", "config.yaml", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    readings = slt.load_records("out")
    assert f"{len(readings)} readings in out" in printed
    assert readings
    assert all(r.settings["nbeta"] == 20.0 for r in readings)
    assert main(["analyze", "nowhere", "--config", "config.yaml"]) == 2
    assert "no checkpoints in nowhere" in capsys.readouterr().err
    assert main(["analyze", "saved", "--config", "missing.yaml"]) == 2
    assert "missing.yaml does not exist; expected YAML such as" in capsys.readouterr().err
    Path("bad.yaml").write_text("model: {class_path: models.Nobody}")
    assert main(["analyze", "saved", "--config", "bad.yaml"]) == 2
    assert "bad.yaml" in capsys.readouterr().err
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize("progress", [True, False])
def test_progress_of_checkpoints_and_readings(progress: bool, capsys: pytest.CaptureFixture[str]) -> None:
    live("given")
    slt.analyze(Classifier(), "saved", [monitor("given")], data=blobs(), run_dir="later", progress=progress)
    shown = capsys.readouterr().err
    assert ("slt at step 4: 2 chains × 4 draws" in shown) == progress
    assert ("checkpoints: 100%" in shown) == progress


class Remembers(nn.Linear):
    """Saves an object beside its weights."""

    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None:
        assert state == {"calls": 3}


def test_modules_with_states_of_their_own() -> None:
    net = Remembers(4, 3)
    Path("saved").mkdir()
    torch.save(net.state_dict(), "saved/step=5.pt")
    monitor = slt.LLCMonitor(**GIVEN, sampling=FEW, loss_fn=classification)
    (reading,) = slt.analyze(net, "saved", [monitor], data=blobs(), progress=False)
    assert reading.step == 5
    assert reading.failure is None
