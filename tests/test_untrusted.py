"""Files from elsewhere: checkpoints, records, states. Nothing in them is run, and no path in them leaves its folder."""

from __future__ import annotations

import ast
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from models import FEW, Classifier, blobs
from test_records import READING, write
from werkzeug.test import Client

import lightning_slt as slt
from lightning_slt.callbacks.resume import thaw
from lightning_slt.checkpoints import find_checkpoints
from lightning_slt.cli import main
from lightning_slt.records import RecordWriter
from lightning_slt.tab.plugin import Tab
from lightning_slt.weights import content_of

pytestmark = pytest.mark.usefixtures("elsewhere")

PACKAGE = Path(slt.__file__).parent

FORBIDDEN = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "np.load", "numpy.load", "yaml.load",
             "marshal.loads", "joblib.load", "shelve.open"}  # fmt: skip


def test_the_package_loads_nothing_that_runs_code() -> None:
    """Every ``torch.load`` says weights_only=True, and nothing else that could run a file is called at all."""
    loads = 0
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in FORBIDDEN, f"{file.name}:{node.lineno} calls {name}"
            if name == "torch.load":
                loads += 1
                options = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert options.get("weights_only") == "True", f"{file.name}:{node.lineno}"
    assert loads


class Evil:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path("evil").touch, ()


class Large:
    """Asks for a petabyte when it is unpickled."""

    def __reduce__(self) -> Any:
        return bytearray, (10**15,)


def evil_checkpoint(path: Path) -> None:
    """As Lightning's, with something else in it."""
    weights = Classifier().state_dict()
    torch.save({"state_dict": weights, "global_step": 4, "callbacks": {"slt": {"settings": Evil()}}}, path)


def evil_pickle(path: Path) -> None:
    """What torch wrote before it wrote archives."""
    path.write_bytes(pickle.dumps(Evil()))


def evil_legacy(path: Path) -> None:
    torch.save({"w": Evil()}, path, _use_new_zipfile_serialization=False)


def evil_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"w": Evil()}))
        archive.writestr("archive/version", "3\n")


def large_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {"w": Large()}}, path)


def compressed(path: Path) -> None:
    """An archive of a few bytes that holds a tensor of a hundred megabytes: torch maps archives, and never inflates."""
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(25_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    assert path.stat().st_size < 1_000_000


def claims_more(path: Path) -> None:
    """Safetensors with a header of four exabytes."""
    path.with_suffix(".safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")


def claims_more_data(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**60], "data_offsets": [0, 2**62]}}).encode()
    path.with_suffix(".safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def half(path: Path) -> None:
    torch.save(Classifier().state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def garbage(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 4)


def empty(path: Path) -> None:
    path.touch()


def nothing_but_numbers(path: Path) -> None:
    torch.save([1, 2], path)


HOSTILE = [evil_checkpoint, evil_pickle, evil_legacy, evil_archive, large_checkpoint, compressed, claims_more,
           claims_more_data, half, garbage, empty, nothing_but_numbers]  # fmt: skip


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("ending", ["ckpt", "pt"])
def test_checkpoints_that_are_none_are_refused_in_words(make: Any, ending: str) -> None:
    Path("saved").mkdir()
    make(Path(f"saved/step=4.{ending}"))
    (path,) = Path("saved").iterdir()
    with pytest.raises(ValueError, match=r"step=4\.\w+ (cannot be read as plain weights|holds list)"):
        find_checkpoints("saved")[0].weights()
    with pytest.raises(ValueError, match=r"cannot be read as plain weights|holds list"):
        content_of(path)
    assert not Path("evil").exists()


def test_an_analysis_runs_nothing_in_files(capsys: pytest.CaptureFixture[str]) -> None:
    """The command, too: it says what is wrong, and what to do."""
    Path("saved").mkdir()
    evil_checkpoint(Path("saved/step=4.ckpt"))
    monitor = slt.LLCMonitor(sampler=slt.SGLD(step_size=1e-3), nbeta=20.0, localization=30.0, sampling=FEW)
    with pytest.raises(ValueError, match="Files that hold other objects are not run; save their weights alone"):
        slt.analyze(Classifier(), "saved", [monitor], data=blobs(), progress=False)
    Path("config.yaml").write_text("model: !!python/object/apply:pathlib.Path.touch [evil]")
    assert main(["analyze", "saved", "--config", "config.yaml"]) != 0
    assert "config.yaml" in capsys.readouterr().err
    assert not Path("evil").exists()


@pytest.mark.parametrize("make", [evil_pickle, evil_legacy, evil_archive, half, garbage, large_checkpoint],
                         ids=lambda make: make.__name__)  # fmt: skip
def test_the_state_of_an_analysis_is_plain(make: Any) -> None:
    Path("saved").mkdir()
    torch.save({"state_dict": Classifier().state_dict(), "global_step": 4}, "saved/step=4.ckpt")
    state = Path("out/slt_records/analysis.pt")
    state.parent.mkdir(parents=True)
    make(state)
    monitor = slt.LLCMonitor(sampler=slt.SGLD(step_size=1e-3), nbeta=20.0, localization=30.0, sampling=FEW)
    with pytest.raises(ValueError, match=r"analysis\.pt cannot be read.*delete out to begin anew"):
        slt.analyze(Classifier(), "saved", [monitor], data=blobs(), run_dir="out", progress=False)
    assert not Path("evil").exists()


@pytest.mark.parametrize("name", ["base", "__loader__", "replace", "Sampler", "nothing", 3])
def test_a_state_makes_no_other_objects_than_samplers(name: Any) -> None:
    """A checkpoint names the class of its sampler: one of ours, and no other attribute of that module."""
    from types import SimpleNamespace

    state = {"sampler": name, "sampler_settings": {}, "nbeta": 1.0, "localization": 1.0, "num_burnin": 0,
             "curvature": 1.0, "stability": 0.1, "calibrated": []}  # fmt: skip
    request = SimpleNamespace(nbeta=None, localization=None, sampler=None)
    reader: Any = SimpleNamespace(request=request, sampling=FEW)
    with pytest.raises(ValueError, match=rf"the saved state names a sampler {name!r}.*expected one of .*SGLD"):
        thaw(state, reader)


# Records

OUTSIDE = ["../secret.safetensors", "../../secret.safetensors", "slt/../../secret.safetensors",
           "link/secret.safetensors", "slt/link.safetensors"]  # fmt: skip


@pytest.fixture
def secret() -> Path:
    """A file outside the records, and links to it and to its folder inside."""
    path = write(Path("run"))
    data = (path.parent / "slt" / "traces-000000.safetensors").read_bytes()
    for folder in (Path("run"), Path()):
        (folder / "secret.safetensors").write_bytes(data)
    (path.parent / "link").symlink_to(Path.cwd())
    (path.parent / "slt" / "link.safetensors").symlink_to(Path.cwd() / "secret.safetensors")
    return path


def rename_arrays(path: Path, to: str, *, entry: str = "traces") -> None:
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), entry: to}), *others, ""]))


@pytest.mark.parametrize("entry", ["traces", "anchor"])
@pytest.mark.parametrize("to", [*OUTSIDE, "absolute"])
def test_names_of_arrays_cannot_leave_their_folder(secret: Path, to: str, entry: str) -> None:
    to = str(Path("secret.safetensors").absolute()) if to == "absolute" else to
    rename_arrays(secret, to, entry=entry)
    with pytest.warns(UserWarning, match=r"slt\.jsonl:1 is no reading .*outside the records"):
        assert [r.step for r in slt.load_records("run")] == [1, 2]
    client = Client(Tab({"run": ""}))
    response = client.get("/data/array", query_string={
        "run": ".", "monitor": "slt", "index": 0, "component": "full", "key": "llc", "name": "loss"
    })  # fmt: skip
    assert (response.status_code == 404) is (entry == "traces")


@pytest.mark.parametrize("to", ["C:\\secret.safetensors", "\\\\server\\share\\x", "C:secret", "slt"])
def test_names_that_are_no_files_here_are_arrays_that_are_gone(secret: Path, to: str) -> None:
    """A drive of Windows is a name like any other elsewhere, and there it is a place outside, which is refused."""
    rename_arrays(secret, to)
    first = slt.load_records("run")[0]
    assert first.estimates["full"]["llc"].traces == {}


@pytest.mark.parametrize("to", ["slt/\0", "self.safetensors", "x" * 5000])
def test_names_that_lead_nowhere(secret: Path, to: str) -> None:
    (secret.parent / "self.safetensors").symlink_to("self.safetensors")
    rename_arrays(secret, to)
    with pytest.warns(UserWarning, match=r"slt\.jsonl:1 is no reading"):
        assert [r.step for r in slt.load_records("run")] == [1, 2]
    client = Client(Tab({"run": ""}))
    response = client.get("/data/reading", query_string={"run": ".", "monitor": "slt", "index": 0})
    assert response.json["messages"] if response.status_code == 200 else response.json["error"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/x", "a//b", "C:x", "a\0b", "..\\x", "."])
def test_names_of_monitors_cannot_leave_it_either(name: str) -> None:
    with pytest.raises(ValueError, match="name must be a non-empty string that can begin a log tag"):
        slt.LLCMonitor(name=name)


ESCAPES = ["..", "../..", "../outside", "/etc", "run/../..", "%2e%2e", "..\\..", "\0", ""]


@pytest.mark.parametrize("run", ESCAPES)
@pytest.mark.parametrize("route", ["timeline", "reading", "array", "kernel", "trajectory", "responses", "influence"])
def test_routes_answer_for_runs_below_the_log_folder_alone(run: str, route: str) -> None:
    """A run beside it, whose records are whole, is none."""
    RecordWriter("logs/run", "slt").write(READING)
    RecordWriter("outside", "slt").write(READING)
    client = Client(Tab({"logs": ""}))
    where = {"monitor": "slt", "index": 3, "component": "full", "key": "llc", "name": "loss", "query": 0}
    response = client.get(f"/data/{route}", query_string={"run": run, **where})
    assert response.status_code in (400, 404)
    assert response.json.keys() == {"error"}
    monitor = client.get("/data/reading", query_string={**where, "run": "run", "monitor": "../../../outside/slt"})
    assert monitor.status_code == 404
    for file in ("../plugin.py", "..%2fplugin.py", "/etc/passwd", "%2e%2e/plugin.py"):
        assert client.get(f"/static/{file}").status_code == 404


def test_a_comparison_and_a_report_read_nothing_else(secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They load records alone: what lies beside them, however it is called, is not opened."""
    evil_checkpoint(secret.parent / "slt.ckpt")
    evil_pickle(secret.parent / "slt" / "traces-000001.safetensors")
    with pytest.warns(UserWarning, match="is without its arrays"):
        slt.compare("run", "run", step=2)
    assert main(["report", "run", "--out", "report.html"]) == 0
    assert not Path("evil").exists()


def test_markup_in_records_is_text_in_a_report() -> None:
    hostile = "</script><script>alert(1)</script>"
    RecordWriter("run", "slt").write(slt.Reading(
        name=hostile, index=0, step=0, global_step=0, epoch=0, time=0.0, duration=0.0, overhead=0.0, settings={},
        failure=hostile,
    ))  # fmt: skip
    assert main(["report", "run", "--out", "report.html"]) == 0
    assert hostile not in Path("report.html").read_text()
