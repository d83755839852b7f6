"""Analyses of saved checkpoints that do not go as planned: broken files, kills, changed minds; and Pythia's layouts."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import languages
import pytest
import torch
from models import FEW, blobs
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_checkpoints import drawn, hub, sharded
from torch import nn

import lightning_slt as slt
from lightning_slt.callbacks.history import History
from lightning_slt.cli import main, read_config
from lightning_slt.losses import classification, next_token
from lightning_slt.running import make_reading

pytestmark = pytest.mark.usefixtures("elsewhere")

GIVEN = {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 20.0, "localization": 30.0, "sampling": FEW}
TAG = "slt/full/llc/mean"


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def save(*steps: int, folder: str = "saved") -> None:
    Path(folder).mkdir(exist_ok=True)
    for step in steps:
        torch.save(drawn(net(), step), f"{folder}/step={step}.pt")


def monitor(**changes: Any) -> slt.LLCMonitor:
    return slt.LLCMonitor(**{**GIVEN, "loss_fn": classification, **changes})


def analyzed(*callbacks: Any, data: Any = None, **options: Any) -> list[slt.Reading]:
    options = {"run_dir": "out", "progress": False, **options}
    return slt.analyze(net(), "saved", callbacks or [monitor()], data=blobs() if data is None else data, **options)


def means(readings: list[slt.Reading]) -> dict[int, float]:
    return {r.step: r.estimates["full"]["llc"].mean for r in readings}


def logged(folder: str = "out") -> list[tuple[int, float]]:
    events = EventAccumulator(folder, size_guidance={"scalars": 0})
    events.Reload()
    return [(e.step, e.value) for e in events.Scalars(TAG)]


def test_broken_files_are_left_out_and_added_once_they_are_mended(caplog: pytest.LogCaptureFixture) -> None:
    save(0, 10, 20, 30)
    whole = Path("saved/step=10.pt").read_bytes()
    Path("saved/step=10.pt").write_bytes(whole[: len(whole) // 2])
    torch.save(drawn(nn.Linear(2, 2), 0), "saved/step=20.pt")
    with pytest.warns(UserWarning, match="left out") as told:
        readings = analyzed()
    assert [r.step for r in readings] == [0, 30]
    texts = [str(w.message) for w in told if "left out" in str(w.message)]
    assert len(texts) == 2
    assert "saved/step=10.pt cannot be read as plain weights" in texts[0]
    assert "saved/step=20.pt does not fit Sequential" in texts[1]
    assert "2 files could not be read; another run adds them once they are mended:\n  saved/step=10.pt" in caplog.text
    save(10, 20)
    both = analyzed()
    assert [r.step for r in both] == [0, 10, 20, 30]
    assert [r.index for r in both] == [0, 2, 3, 1]
    fresh = analyzed(run_dir="fresh")
    assert means(both) == means(fresh)


def test_a_folder_of_nothing_but_broken_files_is_an_error() -> None:
    Path("saved").mkdir()
    for step in (0, 10):
        Path(f"saved/step={step}.safetensors").write_bytes(b"no header")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="no checkpoint could be read"):
        analyzed()
    for step in (0, 10):
        Path(f"saved/step={step}.safetensors").rename(f"saved/step={step}.pt")
    with pytest.raises(ValueError, match=r"none of 2 files can be read; the first is saved/step=0\.pt"):
        analyzed()


def test_checkpoints_that_come_later_are_read_in_the_order_of_steps() -> None:
    save(0, 20, 40)
    assert list(means(analyzed())) == [0, 20, 40]
    save(30, 10, 50)
    later = analyzed()
    assert [(r.step, r.index) for r in later] == [(0, 0), (10, 3), (20, 1), (30, 4), (40, 2), (50, 5)]
    assert sorted(step for step, _ in logged()) == [0, 10, 20, 30, 40, 50]  # nothing of the first part is dropped
    assert means(later) == means(analyzed(run_dir="whole"))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"nbeta": 10.0}, r"out was begun with slt: nbeta=20.0, and is to go on with 10.0"),
        ({"sampling": slt.SamplingConfig(num_chains=3)}, r"slt: sampling=SamplingConfig\(num_chains=2.*num_chains=3"),
        ({"loss_fn": next_token}, "loss_fn=lightning_slt.losses.classification, and is to go on with .*next_token"),
        ({"data": blobs(40)}, "data=TensorDataset of 32, and is to go on with TensorDataset of 40"),
        ({"name": "other"}, "out was begun without 'other', which would miss the 1 checkpoints that were read"),
    ],
)
def test_an_analysis_does_not_go_on_with_other_settings(changed: dict[str, Any], words: str) -> None:
    save(0)
    analyzed()
    save(10)
    data = {"data": changed.pop("data")} if "data" in changed else {}
    with pytest.raises(ValueError, match=words):
        analyzed(monitor(**changed), **data)
    assert list(means(slt.load_records("out"))) == [0]
    assert list(means(analyzed(monitor(every_n_train_steps=7, on_failure="raise")))) == [0, 10]  # changes no number


class KilledError(BaseException):
    """What kill −9 leaves behind: nothing is tidied up."""


def test_killed_between_two_monitors_it_reads_that_checkpoint_again() -> None:
    save(0, 10, 20)
    both = monitor(), monitor(name="two")

    class Kills(slt.SamplerFinder):
        deadly = True

        def hear(self, trainer: Any, reading: slt.Reading) -> None:
            if self.deadly and (reading.name, reading.step) == ("slt", 10):
                raise KilledError

    kills = Kills(at_step=10**6, loss_fn=classification)
    with pytest.raises(KilledError):
        analyzed(*both, kills)
    kills.deadly = False
    assert [(r.name, r.step) for r in slt.load_records("out")] == [("slt", 0), ("two", 0), ("slt", 10)]
    resumed = analyzed(monitor(), monitor(name="two"), kills)
    assert sorted((r.name, r.step, r.index) for r in resumed) == sorted(
        (name, step, index) for name in ("slt", "two") for index, step in enumerate((0, 10, 20))
    )
    assert [step for step, _ in logged()] == [0, 10, 20]  # the point of the killed run is dropped, not shown twice


def test_a_reading_that_was_put_off_when_the_run_was_killed_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    save(0, 10, 20, 30)
    release, found = History.release, {"sampler": None, "localization": None}
    known = {r.step: r.settings["curvature"] for r in analyzed(monitor(**found), run_dir="known")}

    def outgrown(self: Any, settings: Any) -> bool:
        return bool(settings.curvature == known[10])  # so that it waits for the next reading to confirm it

    def killed(self: History) -> Any:
        if self.held is not None:
            raise KilledError
        return release(self)

    with monkeypatch.context() as patched:
        patched.setattr("lightning_slt.reading.Reader.outgrown", outgrown)
        patched.setattr(History, "release", killed)
        with pytest.raises(KilledError):
            analyzed(monitor(**found))
    assert list(means(slt.load_records("out"))) == [0]
    assert means(analyzed(monitor(**found))) == means(slt.load_records("known"))


def test_an_unreadable_state_says_what_to_do() -> None:
    save(0)
    analyzed()
    Path("out/slt_records/analysis.pt").write_bytes(b"PK half")
    with pytest.raises(ValueError, match=r"cannot be read, so that it is not known which .* delete out to begin anew"):
        analyzed()


CONFIG = """
model: {class_path: languages.make_model}
data: {class_path: languages.tokens}
callbacks:
  - class_path: lightning_slt.LLCMonitor
    init_args:
      loss_fn: lightning_slt.losses.next_token
      sampler: {class_path: lightning_slt.SGLD, init_args: {step_size: 1.0e-3}}
      nbeta: 20.0
      localization: 30.0
      sampling: {num_chains: 2, num_draws: 4, num_burnin: 2, batch_size: 8}
"""


def pythia(step: int) -> dict[str, torch.Tensor]:
    return {name: value.half() for name, value in drawn(languages.NeoX(), step).items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_pythia_from_folders_and_from_the_cache(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision, whole and in shards, by a function without annotations: the same numbers from either layout."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("config.yaml").write_text(CONFIG)
    for step in (0, 1, 1000, 2000):
        if step == 1000:
            sharded(pythia(step), Path(f"pythia/step{step}"))
        else:
            Path(f"pythia/step{step}").mkdir(parents=True)
            save_file(pythia(step), f"pythia/step{step}/model.safetensors")
    cache = Path("models--EleutherAI--pythia-14m")
    digests = {step: f"{step:040x}" for step in (0, 1000, 2000)}
    hub(cache, {f"step{step}": digest for step, digest in digests.items()})
    for step, digest in digests.items():
        save_file(pythia(step), cache / "blobs" / f"{digest}00")
    asked = ["--config", "config.yaml", "--steps", "0:143000:1000"]
    assert main(["analyze", "pythia", *asked, "--out", "a", "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert not Path("a").exists()
    assert "3 of 3 checkpoints, " in listed
    assert "how long that takes is known after the first" in listed
    assert [line.split()[0] for line in listed.splitlines()[1:-1]] == ["0", "1000", "2000"]
    assert main(["analyze", "pythia", *asked, "--out", "a", "--last", "1"]) == 0
    capsys.readouterr()
    assert main(["analyze", "pythia", *asked, "--out", "a", "--dry-run", "--devices", "2"]) == 0
    listed = capsys.readouterr().out
    assert "2 of 3 checkpoints" in listed
    assert "each so far" in listed
    assert "on 2 devices" in listed
    assert ["  read  " in line for line in listed.splitlines()[1:-1]] == [False, False, True]
    assert main(["analyze", "pythia", *asked, "--out", "a"]) == 0
    assert main(["analyze", str(cache), *asked, "--out", "b"]) == 0
    assert means(slt.load_records("a")) == means(slt.load_records("b"))
    assert sorted(means(slt.load_records("a"))) == [0, 1000, 2000]
    save_file(pythia(0), "pythia/step1/model.safetensors")
    Path("pythia/step1/model.safetensors").write_bytes(b"half a file")
    capsys.readouterr()
    with pytest.warns(UserWarning, match="left out"):
        assert main(["analyze", "pythia", "--config", "config.yaml", "--out", "a"]) == 1
    assert "not read: pythia/step1/model.safetensors: " in capsys.readouterr().err
    assert main(["analyze", "pythia", "--config", "config.yaml", "--out", "a", "--dry-run"]) == 0
    assert "failed" in capsys.readouterr().out
    assert str(Path.cwd()) not in sys.path


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_on_pythia_can_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "checkpoints.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("config.yaml").write_text(text)
    monkeypatch.setitem(sys.modules, "pythia", languages)
    module, data, callbacks = read_config(Path("config.yaml"))
    assert isinstance(module, languages.NeoX)
    assert len(data) == 24
    assert [type(c) for c in callbacks] == [slt.LLCMonitor, slt.StageMonitor]
    assert callbacks[0].loss_fn is next_token


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_function_that_returns_no_module_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("config.yaml").write_text(CONFIG.replace("languages.make_model", "languages.tokens"))
    save(0)
    assert main(["analyze", "saved", "--config", "config.yaml"]) == 2
    assert "config.yaml: the model is a TensorDataset, expected a module" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_lightning_refuses_is_told_in_its_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("config.yaml").write_text(CONFIG + "  - class_path: lightning_slt.StageMonitor\n" * 2)
    Path("saved").mkdir()
    torch.save(drawn(languages.NeoX(), 0), "saved/step=0.pt")
    assert main(["analyze", "saved", "--config", "config.yaml"]) == 2
    assert "two StageMonitors are called 'stages'" in capsys.readouterr().err


def test_settings_of_the_run_come_from_its_last_checkpoint_whichever_are_chosen() -> None:
    save(0, 10)
    settings = {
        "sampler": "SGLD", "sampler_settings": {"step_size": 1e-3}, "nbeta": 20.0, "localization": 44.0,
        "num_burnin": 2, "curvature": 1.0, "stability": 0.1, "calibrated": ["localization"],
    }  # fmt: skip
    last = {"state_dict": drawn(net(), 20), "global_step": 20, "callbacks": {"slt": {"settings": settings}}}
    torch.save(last, "saved/last.ckpt")
    readings = analyzed(monitor(sampler=None, nbeta=None, localization=None), steps="0:10")
    assert [r.settings["localization"] for r in readings] == [44.0, 44.0]


def test_the_time_that_is_left_is_told_after_the_first_checkpoint(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(0, 10, 20)
    monkeypatch.setattr("lightning_slt.callbacks.live.WORTH_TELLING", 0.0)
    monkeypatch.setattr("lightning_slt.callbacks.analysis.WORTH_TELLING", 0.0)
    analyzed()
    assert re.search(r"a checkpoint took [\d.e-]+ s; the other 2 will take about [\d.e-]+ s", caplog.text)
    assert "max_overhead" not in caplog.text  # there is no training time to hold readings against


@pytest.mark.parametrize("at", [0, 1])
def test_a_reading_that_a_handled_signal_breaks_off_is_left_for_the_next_run(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(0, 10, 20)
    came: list[int] = []
    calls = iter(range(10))

    def signalled(*given: Any, **options: Any) -> Any:
        if next(calls) == at:
            os.kill(os.getpid(), signal.SIGUSR1)
        return make_reading(*given, **options)

    monkeypatch.setattr("lightning_slt.reading.make_reading", signalled)
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        assert [r.step for r in analyzed()] == [step for step in (0, 10, 20) if step != 10 * at]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(came) == 1
    assert [r.step for r in analyzed()] == [0, 10, 20]


def test_a_second_run_into_the_same_folder_waits_for_nobody() -> None:
    save(0)

    class Again(slt.SamplerFinder):
        def hear(self, trainer: Any, reading: slt.Reading) -> None:
            with pytest.raises(ValueError, match="another analysis is at work in out; let it end, or give another"):
                analyzed()

    heard = Again(at_step=10**6, loss_fn=classification)
    analyzed(monitor(on_failure="raise"), heard)
    analyzed(monitor(), heard)  # what it held is free again
