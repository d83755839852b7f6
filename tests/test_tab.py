"""The tab's routes, also through TensorBoard's own WSGI application, and what becomes of broken and hostile files."""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.utils.tensorboard import SummaryWriter
from werkzeug.test import Client

import lightning_slt as slt
from lightning_slt.analysis.kernels import normalized
from lightning_slt.cli import main
from lightning_slt.events import RunEvent, RunStage, write_event
from lightning_slt.records import RecordWriter
from lightning_slt.results import StoredResult
from lightning_slt.tab.plugin import Tab
from lightning_slt.types import Estimate, Health

HOSTILE = "<img src=x onerror=alert(1)>"
OK, BAD = Health(ok=True, values={"anchor_loss": 0.25}), Health(ok=False, failed=("rhat",), values={"rhat": 1.5})
READING = slt.Reading(
    name="slt", index=0, step=0, global_step=0, epoch=0, time=1.0, duration=0.5, overhead=0.1,
    settings={"sampler": "SGLD", "nbeta": 30.0},
)  # fmt: skip


def llc(*chains: float, health: Health = OK, traces: dict[str, torch.Tensor] | None = None) -> Estimate:
    values = torch.tensor(chains, dtype=torch.float64)
    live = values[values.isfinite()]
    stderr = float(live.std()) / math.sqrt(len(live)) if len(live) > 1 else math.nan
    return Estimate(mean=float(live.mean()), stderr=stderr, per_chain=values, health=health, traces=traces or {})


def result(kind: str, tensors: dict[str, torch.Tensor], **changes: Any) -> StoredResult:
    return StoredResult(health=Health(ok=True), kind=kind, tensors=tensors, **changes)


def kernel(samples: int = 12) -> StoredResult:
    factor = torch.randn(4, samples, generator=torch.Generator().manual_seed(0)).half()
    tensors = {"factor": factor, "indices": torch.arange(samples).int() * 2, "labels": torch.arange(samples) % 3}
    return result("KernelEstimate", tensors, numbers={"n_eff": 17.5}, dims={"factor": ("feature", "sample")})


def write(run: Path, *readings: slt.Reading, name: str = "slt") -> RecordWriter:
    writer = RecordWriter(run, name)
    for reading in readings:
        writer.write(reading)
    return writer


def at(index: int, results: dict[str, Any], **changes: Any) -> slt.Reading:
    changes = {"step": 10 * index, "global_step": 10 * index, **changes}
    return replace(READING, index=index, estimates={"full": results}, **changes)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path) -> Client:
    """The tab alone, without TensorBoard's part."""
    return Client(Tab({str(runs): ""}))


def asked(client: Client, route: str, **params: Any) -> Any:
    response = client.get(f"/data/{route}", query_string=params)
    assert response.status_code == 200, response.text
    return json.loads(response.text, parse_constant=pytest.fail)


BOARD = """
import json, sys, time
from tensorboard import default, program
from tensorboard.backend import application
from werkzeug.test import Client

ours, torch = "/data/plugin/slt/", []
for fast in ("false", "true"):
    board = program.TensorBoard(plugins=default.get_plugins())
    torch.append("torch" in sys.modules)
    board.configure(argv=["", "--logdir", sys.argv[1], "--load_fast", fast, "--reload_interval", "0"])
    provider, multiplexer = board._make_data_provider()
    client = Client(application.TensorBoardWSGIApp(board.flags, board.plugin_loaders, provider, None, multiplexer))
    listed = client.get("/data/plugins_listing").json["slt"]
    for _ in range(100):  # event files are read in a thread or a process of their own
        timeline = client.get(ours + "data/timeline", query_string={"run": sys.argv[2]})
        if timeline.json["scalars"]:
            break
        time.sleep(0.1)
    print(json.dumps({
        "provider": type(provider).__name__, "active": listed["enabled"], "tab": listed["tab_name"], "torch": torch[0],
        "timeline": timeline.json, "runs": client.get(ours + "data/runs").json, "headers": dict(timeline.headers),
        "static": client.get(listed["loading_mechanism"]["module_path"]).content_type,
    }))
"""
"""TensorBoard as `tensorboard --logdir` starts it, but for the socket; in a process, which takes its reader with it."""


def test_through_tensorboard(runs: Path, tmp_path: Path) -> None:
    """Hostile names of runs, monitors and components pass through as text; the loss comes from the event files."""
    run = runs / HOSTILE.replace("/", "")
    write(run, at(0, {HOSTILE: llc(1.0, 2.0)}), name="<b>")
    with SummaryWriter(run) as writer:
        for step in range(3):
            writer.add_scalar(f"train/loss {HOSTILE}", 3.0 - step, step)
            writer.add_scalar("<b>/full/loss", 9.0, step)
            writer.add_scalar("stages/<b>/full/loss_kernel/n_eff/boundary", 9.0, step)
            writer.add_scalar("accuracy", 1.0, step)
    command = [sys.executable, "-c", BOARD, str(runs), run.name]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200)
    assert told.returncode == 0, told.stderr
    python, rust = map(json.loads, told.stdout.splitlines())
    assert (python["provider"], rust["provider"]) == ("MultiplexerDataProvider", "GrpcDataProvider")
    assert not python["torch"], "TensorBoard's start brings torch with it"
    for found in (python, rust):
        assert (found["active"], found["tab"]) == (True, "SLT")
        (listed,) = found["runs"]
        assert (listed["run"], listed["monitors"], listed["readings"], listed["message"]) == (
            run.name,
            ["<b>"],
            1,
            None,
        )
        assert found["timeline"]["scalars"] == [
            {"tag": f"train/loss {HOSTILE}", "steps": [0, 1, 2], "values": [3.0, 2.0, 1.0]}
        ]
        assert found["timeline"]["monitors"][0]["series"][0]["key"] == HOSTILE
        assert found["headers"]["Content-Type"] == "application/json"
        assert found["headers"]["X-Content-Type-Options"] == "nosniff"
        assert found["static"].startswith("text/javascript")


def monitor(client: Client, name: str = "slt") -> Any:
    return next(m for m in asked(client, "timeline", run=".")["monitors"] if m["name"] == name)


def test_timeline(runs: Path, client: Client) -> None:
    """Numbers are those that were logged: NaN for what is worthless, the interval of the estimate, all in columns."""
    diverged = Health(ok=False, failed=("step_size",), values={"step_size": 4.5})
    estimates = [llc(1.0, 2.0, 4.0), llc(1.0, 2.0, health=BAD), llc(5.0, 6.0, health=diverged), llc(math.nan, math.nan)]
    write(runs, *(at(index, {"llc": estimate, "loss_kernel": kernel()}) for index, estimate in enumerate(estimates)))
    failed = replace(READING, index=4, step=40, failure=f"ValueError: {HOSTILE}")
    write(runs, failed, name="other")
    found = monitor(client)
    series = next(s for s in found["series"] if s["key"] == "llc")
    lower, upper = estimates[0].interval(0.9)
    assert found["steps"] == [0, 10, 20, 30]
    assert series["value"] == [pytest.approx(7 / 3, rel=1e-5), 1.5, None, None]
    assert series["lower"][0] == pytest.approx(lower, rel=1e-5)
    assert series["upper"][0] == pytest.approx(upper, rel=1e-5)
    assert series["ok"] == [1, 0, 0, 0]
    assert series["reasons"] == {
        "1": "rhat = 1.5 (limit 1.3)",
        "2": "the step diverges, and the value is none: step_size = 4.5 (limit 1.5)",
        "3": "no chain finished",
    }
    assert series["chains"] == [[1.0, 1.0, None, None], [2.0, 2.0, None, None], [4.0, None, None, None]]
    assert found["loss"] == [0.25, None, None, 0.25]
    numbers = next(s for s in found["series"] if s["key"] == "loss_kernel")
    assert (numbers["field"], numbers["value"]) == ("n_eff", [17.5] * 4)
    assert monitor(client, "other")["failure"] == [f"ValueError: {HOSTILE}"]


def test_timeline_equals_what_the_records_load(runs: Path, client: Client) -> None:
    """Of a run that was resumed from an earlier step, and of readings made again, the same ones stand."""
    writer = write(runs, *(at(index, {"llc": llc(index, index + 1.0)}) for index in range(5)))
    again = [at(3, {"llc": llc(7.0, 8.0)}), at(4, {"llc": llc(9.0, 9.5)}, revises=1, step=10, global_step=10)]
    for reading in again:
        writer.write(reading)
    write(runs, at(0, {"llc": llc(0.0, 1.0)}))
    loaded = slt.load_records(runs / "slt_records" / "slt.jsonl")
    found = monitor(client)
    by_step = sorted((r.step, r.index, r.estimates["full"]["llc"].mean) for r in loaded)
    assert list(zip(found["steps"], found["index"], found["series"][0]["value"], strict=True)) == by_step
    assert monitor(client, "slt.1")["steps"] == [0]


def test_only_what_is_new_is_read(runs: Path, client: Client) -> None:
    writer = write(runs, at(0, {"llc": llc(1.0, 2.0)}))
    (before,) = asked(client, "runs")
    assert monitor(client)["steps"] == [0]
    assert asked(client, "runs") == [before]
    writer.write(at(1, {"llc": llc(2.0, 3.0)}))
    (after,) = asked(client, "runs")
    assert (after["readings"], monitor(client)["steps"]) == (2, [0, 10])
    write_event(runs, RunEvent(source="s", kind="alert", step=3.0, known_at=9, quantity="q", text=HOSTILE))
    (last,) = asked(client, "runs")
    assert len({run["stamp"] for run in (before, after, last)}) == 3
    assert asked(client, "timeline", run=".")["events"] == [
        {"source": "s", "kind": "alert", "step": 3.0, "known_at": 9, "quantity": "q", "text": HOSTILE}
    ]


def test_a_timeline_of_many_readings_comes_in_parts(
    runs: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last reading at once, then others evenly spread; it says how many wait, and in the end nothing differs."""
    writer = write(runs, *(at(index, {"llc": llc(index, index + 1.0)}) for index in range(8)))
    write(runs, at(0, {"llc": llc(1.0, 2.0)}), name="other")
    monkeypatch.setattr("lightning_slt.tab.plugin.PATIENCE", 0.0)  # one line of each file
    shown = []
    for _ in range(8):
        found = asked(client, "timeline", run=".")
        shown.append((found["waiting"], next(m for m in found["monitors"] if m["name"] == "slt")["index"]))
    assert [waiting for waiting, _ in shown] == [7, 6, 5, 4, 3, 2, 1, 0]
    assert [index for _, index in shown[:4]] == [[7], [3, 7], [3, 5, 7], [1, 3, 5, 7]]
    writer.write(at(8, {"llc": llc(1.0, 2.0)}))
    assert asked(client, "timeline", run=".")["waiting"] == 0
    whole = Client(Tab({str(runs): ""}))
    monkeypatch.setattr("lightning_slt.tab.plugin.PATIENCE", math.inf)
    assert asked(whole, "timeline", run=".") == asked(client, "timeline", run=".")


def test_progress_alone_is_told_until_twice_as_much_is_known(
    runs: Path, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that all parts together are at most twice as long as the whole."""
    write(runs, *(at(index, {"llc": llc(index, index + 1.0)}) for index in range(8)))
    monkeypatch.setattr("lightning_slt.tab.plugin.PATIENCE", 0.0)
    known, parts = 0, []
    for _ in range(8):
        found = asked(client, "timeline", run=".", known=known)
        if "monitors" in found:
            known = len(found["monitors"][0]["steps"])
            parts.append(known)
        else:
            assert found.keys() == {"run", "stamp", "waiting", "read"}
            assert found["waiting"] + found["read"] == 8
    assert parts == [1, 2, 4, 8]


def test_a_reading_that_waits_is_found(runs: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a later line makes it again: what is asked for is what stands."""
    writer = write(runs, *(at(index, {"llc": llc(index, index + 1.0)}) for index in range(8)))
    monkeypatch.setattr("lightning_slt.tab.plugin.PATIENCE", 0.0)
    asked(client, "timeline", run=".")
    found = asked(client, "reading", run=".", monitor="slt", index=2)
    assert found["estimates"][0]["mean"] == 2.5
    assert asked(client, "timeline", run=".")["waiting"] == 0
    again = Client(Tab({str(runs): ""}))
    writer.write(at(4, {"llc": llc(7.0, 8.0)}))
    for _ in range(9):
        asked(again, "timeline", run=".")
    assert asked(again, "timeline", run=".")["monitors"][0]["index"] == [0, 1, 2, 3, 4]
    assert asked(again, "reading", run=".", monitor="slt", index=4)["estimates"][0]["mean"] == 7.5


def test_stages_are_those_of_the_detector(runs: Path, client: Client) -> None:
    """A curve that rises, rests, and rises again has a boundary in the rest."""
    steps = [round(10 ** (0.1 * k)) for k in range(6, 46)]
    values = [min(math.log(step), 4.0) + max(0.0, math.log(step) - 7.0) for step in steps]
    write(
        runs,
        *(
            at(k, {"llc": llc(v - 0.01, v + 0.01)}, step=s, global_step=s)
            for k, (s, v) in enumerate(zip(steps, values, strict=True))
        ),
    )
    first, second = asked(client, "timeline", run=".")["stages"]
    assert (first["quantity"], first["name"], first["type"]) == ("slt/full/llc", "A1", "A")
    assert (first["start"], first["end"], second["name"]) == (float(steps[0]), second["start"], "A2")
    assert math.exp(4.0) < first["end"] < math.exp(7.0)


def test_stages_that_a_monitor_found_stand_first(runs: Path, client: Client) -> None:
    """As it found them, of any number; the last one reaches the last reading. Of other numbers they are looked for."""
    write(runs, *(at(k, {"llc": llc(k - 0.1, k + 0.1), "other": llc(k - 0.1, k + 0.1)}) for k in range(9)))
    common = {"source": HOSTILE, "quantity": "slt/full/llc", "known_at": 40}
    found = [
        RunStage(**common, name="A1", kind="A", start=10.0, end=22.5, hidden=False),
        RunStage(**common, name="B1", kind="B", start=22.5, end=40.0, hidden=True),
    ]
    (runs / "slt_records" / "mine.stages").write_text(json.dumps([asdict(stage) for stage in found]) + "\n[3]\n")
    timeline = asked(client, "timeline", run=".")
    mine = {"source": HOSTILE, "quantity": "slt/full/llc"}
    assert timeline["stages"][:2] == [
        {**mine, "name": "A1", "start": 10.0, "end": 22.5, "type": "A", "hidden": False},
        {**mine, "name": "B1", "start": 22.5, "end": 80.0, "type": "B", "hidden": True},
    ]
    assert [(stage["source"], stage["quantity"]) for stage in timeline["stages"][2:]] == [(None, "slt/full/other")]
    (message,) = timeline["messages"]
    assert "mine.stages:2 tells no stages" in message


PLAIN = (
    b'{"format": 1, "index": %s, "step": 0, "time": 0, "overhead": 0, "failure": null, "settings": {}, "estimates": %s}'
)
NO_NUMBER = (
    b'{"mean": "<b>", "stderr": 1, "per_chain": [], '
    b'"health": {"ok": true, "failed": [], "warnings": [], "values": {}, "dead_chains": {}}}'
)


@pytest.mark.parametrize(
    "line",
    [
        b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": 9}',
        PLAIN % (b'"0"', b"{}"), PLAIN % (b"0", b"[]"), PLAIN % (b"0", b'{"full": {"llc": %s}}' % NO_NUMBER),
    ],
    ids=["cut", "a list", "nothing", "no text", "deep", "format", "index", "estimates", "a word for a number"],
)  # fmt: skip
def test_broken_lines(runs: Path, client: Client, line: bytes) -> None:
    writer = write(runs, at(0, {"llc": llc(1.0, 2.0)}))
    writer.path.write_bytes(writer.path.read_bytes() + line + b"\n")
    writer.write(at(1, {"llc": llc(1.0, 2.0)}))
    found = asked(client, "timeline", run=".")
    assert found["monitors"][0]["steps"] == [0, 10]
    (message,) = found["messages"]
    assert message.startswith("slt.jsonl, line 2, is no reading and is left out")


def test_unfinished_line_and_replaced_file(runs: Path, client: Client) -> None:
    writer = write(runs, *(at(index, {"llc": llc(1.0, 2.0)}) for index in range(3)))
    whole = writer.path.read_bytes()
    writer.path.write_bytes(whole[:-5])
    found = asked(client, "timeline", run=".")
    assert found["monitors"][0]["steps"] == [0, 10]
    assert found["messages"] == ["slt.jsonl: the last line is unfinished"]
    with writer.path.open("ab") as file:
        file.write(whole[-5:])
    assert monitor(client)["steps"] == [0, 10, 20]
    writer.path.unlink()
    write(runs, at(0, {"llc": llc(1.0, 2.0)}, step=77))
    assert monitor(client)["steps"] == [77]
    writer.path.unlink()
    assert asked(client, "timeline", run=".")["monitors"] == []
    assert client.get("/data/reading", query_string={"run": ".", "monitor": "slt", "index": 0}).status_code == 404


@pytest.mark.parametrize("step", ['"inf"', "NaN", "Infinity", "null", "1e999", "{}"])
def test_broken_events(runs: Path, client: Client, step: str) -> None:
    write(runs, at(0, {"llc": llc(1.0, 2.0)}))
    row = f'{{"source": "s", "kind": "k", "step": {step}, "known_at": 1, "quantity": "q", "text": "t"}}\n'
    (runs / "slt_records" / "s.events").write_text(row)
    found = asked(client, "timeline", run=".")
    assert found["monitors"][0]["steps"] == [0]
    assert found["events"] == []
    assert len(found["messages"]) == 1


def test_reading_and_arrays(runs: Path, client: Client) -> None:
    traces = torch.randn(2, 5, dtype=torch.float64)
    write(runs, at(0, {"llc": llc(1.0, math.nan, traces={"loss": traces}), "loss_kernel": kernel()}))
    where = {"run": ".", "monitor": "slt", "index": 0}
    found = asked(client, "reading", **where)
    first, second = found["estimates"]
    assert (found["step"], found["settings"]["nbeta"], first["mean"], first["stderr"]) == (0, 30.0, 1.0, None)
    assert first["per_chain"] == [1.0, None]
    assert first["arrays"] == {"loss": {"shape": [2, 5], "axes": ["chain", "draw"]}}
    assert second["arrays"]["factor"] == {"shape": [4, 12], "axes": ["feature", "sample"]}
    response = client.get("/data/array", query_string={**where, "component": "full", "key": "llc", "name": "loss"})
    values = np.frombuffer(response.data, dtype="<f4").reshape(json.loads(response.headers["X-Shape"]))
    assert response.content_type == "application/octet-stream"
    assert np.array_equal(values, traces.float().numpy())


def test_kernel(runs: Path, client: Client) -> None:
    """The factor has the correlations; the embedding their distances; the order puts labels together."""
    stored = kernel()
    write(runs, at(0, {"loss_kernel": stored}))
    found = asked(client, "kernel", run=".", monitor="slt", index=0, component="full", key="loss_kernel")
    shape, text = found["factor"]["shape"], found["factor"]["base64"]
    unit = np.frombuffer(base64.b64decode(text), dtype="<f2").reshape(shape)
    assert np.array_equal(unit, normalized(stored.factor.double()).half().numpy())
    assert sorted(found["order"]) == list(range(12))
    assert [found["labels"][i] for i in found["order"]] == sorted(found["labels"])
    assert (found["shown"], found["of"], found["indices"][3], len(found["clusters"])) == (12, 12, 6, 12)
    centred = unit.astype(float) - unit.astype(float).mean(1, keepdims=True)
    values = np.linalg.svd(centred)[1]
    lengths = np.linalg.norm(np.array(found["embedding"]), axis=0)
    assert lengths == pytest.approx(values[:2], rel=1e-2)  # half precision


def test_responses_and_influence(runs: Path, client: Client) -> None:
    rows = torch.tensor([[0, 4, -1], [0, 5, -1], [0, 6, 2]])
    matrix = torch.tensor([[1.0, 2.0], [2.0, 0.0], [4.0, 1.0]], dtype=torch.float64)
    words = {"components": ("a", HOSTILE), "probes": ("text",)}
    chi = result("Responses", {"matrix": matrix, "stderr": 0.1 * matrix.abs(), "rows": rows}, words=words)
    influence = {
        "influence": torch.tensor([[-1.0, 5.0], [2.0, 0.0], [-3.0, -1.0]]), "stderr": torch.full((3, 2), 0.5),
        "train_indices": torch.tensor([7, 8, 9]), "query_indices": torch.tensor([1, 2]),
        "train_labels": torch.tensor([0, 1, 0]),
    }  # fmt: skip
    write(runs, at(0, {"susceptibility": chi, "influence": result("Influence", influence)}))
    where = {"run": ".", "monitor": "slt", "index": 0, "component": "full"}
    found = asked(client, "responses", **where, key="susceptibility")
    assert found["components"] == ["a", HOSTILE]
    assert sorted(found["rows"]) == ["text 4", "text 5", "text 6, token 2"]
    assert [row[0] for row in found["scores"]] == sorted(row[0] for row in found["scores"])
    back = np.array(found["scores"]) @ np.array(found["loadings"]).T
    assert back == pytest.approx(np.array(found["matrix"]), abs=2e-3)  # one mode of two centred columns; four digits
    assert found["shares"] == [1.0]
    found = asked(client, "influence", **where, key="influence", query=0)
    assert found["helpful"] == [[9, -3.0, 0.5, 0], [7, -1.0, 0.5, 0]]
    assert (found["harmful"], found["queries"]) == ([[8, 2.0, 0.5, 1]], [[1, None], [2, None]])
    assert asked(client, "influence", **where, key="influence", query=1)["harmful"] == [[7, 5.0, 0.5, 0]]


def position(*row: float, made: str = "outputs") -> StoredResult:
    tensors = {"row": torch.tensor(row), "references": torch.tensor([[1.0, 1.0]])}
    words = {"made_of": (made,), "reference_names": ("target",)}
    return result("Position", tensors, words=words, numbers={"norm": 1.0})


def test_trajectory(runs: Path, client: Client) -> None:
    """Coordinates are root mean squares over the columns, in principal axes; rows of another probe are left out."""
    rows = [(0.0, 0.0), (3.0, 4.0), (6.0, 8.0)]
    write(
        runs,
        at(0, {"trajectory": position(9.0, 9.0, made="losses")}),
        *(at(index + 1, {"trajectory": position(*row)}) for index, row in enumerate(rows)),
    )
    found = asked(client, "trajectory", run=".")
    assert (found["steps"], found["skipped"], found["shares"]) == ([10, 20, 30], 1, [1.0])
    assert found["points"] == [[-3.536], [0.0], [3.536]]
    assert list(found["references"]) == ["target"]


def test_arrays_that_are_truncated_missing_or_elsewhere(runs: Path, client: Client, tmp_path: Path) -> None:
    writer = write(runs, at(0, {"loss_kernel": kernel()}), at(1, {"loss_kernel": kernel()}))
    folder = writer.path.parent
    first = folder / "slt" / "traces-000000.safetensors"
    where = {"run": ".", "monitor": "slt", "component": "full", "key": "loss_kernel"}
    assert asked(client, "kernel", **where, index=0)["shown"] == 12
    first.write_bytes(first.read_bytes()[:50])
    (folder / "slt" / "traces-000001.safetensors").unlink()
    save_file({"full/loss_kernel/factor": torch.ones(1, 9)}, tmp_path / "secret.safetensors")
    line = json.loads(writer.path.read_text().splitlines()[0])
    outside = {**line, "index": 2, "traces": "../../secret.safetensors"}
    with writer.path.open("a") as file:
        file.write(json.dumps(outside) + "\n")
    for index, words in enumerate(["cannot be read", "cannot be read", "outside the records"]):
        response = client.get("/data/kernel", query_string={**where, "index": index})
        assert response.status_code == 404
        assert words in response.json["error"]
        found = asked(client, "reading", run=".", monitor="slt", index=index)
        assert words in found["messages"][0]
        assert found["estimates"][0]["arrays"] == {}


@pytest.mark.parametrize("route", ["kernel", "responses", "influence", "trajectory", "reading"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (0, 4), (4, 0)], ids=str)
def test_arrays_of_other_shapes(runs: Path, client: Client, route: str, shape: tuple[int, ...]) -> None:
    """Records may come from anywhere: what does not fit together is refused in words."""
    names = ("factor", "matrix", "rows", "influence", "train_indices", "query_indices", "row", "references", "labels")
    stored = result("Position", {name: torch.ones(shape) for name in names}, words={"reference_names": ("a", "b")})
    write(runs, *(at(index, {"x": stored}) for index in range(3)))
    where = {"run": ".", "monitor": "slt", "index": 1, "component": "full", "key": "x", "query": 0}
    response = client.get(f"/data/{route}", query_string=where)
    assert response.status_code == (200 if route == "reading" else 404)
    assert response.json.keys() == {"error"} or route == "reading"


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("data/timeline", 400), ("data/timeline?run=nix", 404), ("data/timeline?run=../..", 404),
        ("data/nix?run=.", 404),
        ("data/reading?run=.&monitor=slt&index=-1", 400), ("data/reading?run=.&monitor=slt&index=1e3", 400),
        ("data/reading?run=.&monitor=slt&index=5", 404), ("data/reading?run=.&monitor=../../slt&index=0", 404),
        ("data/kernel?run=.&monitor=slt&index=0&component=full&key=llc", 404), ("data/trajectory?run=.", 404),
        ("data/responses?run=.&monitor=slt&index=0&component=full&key=llc", 404),
        ("data/influence?run=.&monitor=slt&index=0&component=%3Cb%3E&key=llc", 404),
        ("data/array?run=.&monitor=slt&index=0&component=full&key=llc", 400),
        ("static/../plugin.py", 404), ("static/%2e%2e/plugin.py", 404), ("static//etc/passwd", 404), ("static/", 404),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_answered(runs: Path, client: Client, address: str, status: int) -> None:
    write(runs, at(0, {"llc": llc(1.0, 2.0)}))
    response = client.get(f"/{address}")
    assert (response.status_code, response.content_type) == (status, "application/json")
    assert list(response.json) == ["error"]


def test_folders_that_are_not_here_or_empty(tmp_path: Path) -> None:
    for folder in ("gs://bucket/runs", str(tmp_path / "nix")):
        response = Client(Tab({folder: ""})).get("/data/runs")
        assert response.status_code == 404
        assert folder in response.json["error"]
        assert "no folder of this machine" in response.json["error"]
    assert asked(Client(Tab({str(tmp_path): ""})), "runs") == []


def test_runs_of_several_folders(tmp_path: Path) -> None:
    write(tmp_path / "a", at(0, {"llc": llc(1.0, 2.0)}))
    write(tmp_path / "b" / "deep", at(0, {"llc": llc(1.0, 2.0)}))
    client = Client(Tab({str(tmp_path / "a"): "first", str(tmp_path / "b"): ""}))
    assert [run["run"] for run in asked(client, "runs")] == ["deep", "first"]


def test_report_is_one_file_that_answers_as_the_routes_do(runs: Path, client: Client, tmp_path: Path) -> None:
    """No network, no element that data could end, and the same answers as those of the plugin."""
    traces = torch.randn(2, 5, dtype=torch.float64)
    name = "</script><script>alert(1)</script>"
    write(runs, *(at(k, {name: kernel(), "llc": llc(1.0, 2.0, traces={"loss": traces})}) for k in range(5)))
    with SummaryWriter(runs) as writer:
        writer.add_scalar("train/loss", 3.0, 1)
    out = tmp_path / "new" / "report.html"
    assert main(["report", str(runs), "--out", str(out), "--details", "2"]) == 0
    page = out.read_text()
    assert page.count("</script>") == 3
    assert not re.search(r"https?://|src=|<link", re.sub(r"base64,[^\"]*", "", page))
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    entries = json.loads(embedded[1], parse_constant=pytest.fail)
    kept = {(route, *sorted((k, str(v)) for k, v in asked.items())): value for route, asked, value in entries}
    assert len(kept) == len(entries)
    own = {"run": "runs"}
    (listed,) = kept["data/runs",]
    assert (listed["run"], listed["readings"]) == ("runs", 5)
    timeline = kept["data/timeline", ("run", "runs")]
    assert timeline["scalars"] == [{"tag": "train/loss", "steps": [1], "values": [3.0]}]
    assert {**timeline, "scalars": []} == {**asked(client, "timeline", run="."), **own}
    details = [(route, a, value) for route, a, value in entries if "index" in a]
    assert {a["index"] for _, a, _ in details} == {2, 4}
    for route, a, value in details:
        if route == "data/array":
            shape, values = value["shape"], np.frombuffer(base64.b64decode(value["base64"]), dtype="<f4")
            assert np.array_equal(values.reshape(shape), traces.float().numpy())
        else:
            assert value == asked(client, route.removeprefix("data/"), **{**a, "run": "."})
    assert {route for route, _, _ in details} == {"data/reading", "data/kernel", "data/array"}
    assert kept["data/trajectory", ("run", "runs")]["error"].startswith("this run logged no trajectory")


def test_the_size_of_a_report_is_bounded_and_told(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last readings of each monitor go in first, a small one beside large ones, and every number stands."""
    traces = {"loss": torch.randn(2, 20_000, dtype=torch.float64)}  # 0.2 MB each
    for name in ("large", "small"):
        kept = traces if name == "large" else {}
        write(runs, *(at(k, {"llc": llc(1.0, 2.0, traces=kept)}) for k in range(9)), name=name)
    out = tmp_path / "report.html"
    assert main(["report", str(runs), "--out", str(out), "--megabytes", "1"]) == 0
    told = capsys.readouterr().out
    assert out.stat().st_size < 1e6
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', out.read_text(), re.DOTALL)
    assert embedded is not None
    entries = json.loads(embedded[1])
    (timeline,) = (value for route, _, value in entries if route == "data/timeline")
    assert [len(monitor["steps"]) for monitor in timeline["monitors"]] == [9, 9]
    held = {
        name: [a["index"] for r, a, _ in entries if r == "data/reading" and a["monitor"] == name]
        for name in ("large", "small")
    }
    assert sorted(held["small"]) == list(range(9))
    assert held["large"] == [8, 0, 4, 6][: len(held["large"])]
    assert len(held["large"]) > 1
    many = 9 + len(held["large"])
    assert f"18 readings, details of {many}; those of {18 - many} more do not fit into 1 MB (--megabytes)" in told


def test_report_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.html")]) == 2
    assert "there are no slt_records below" in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()
