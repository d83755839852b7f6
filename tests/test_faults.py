"""What may go wrong around a run: nothing that was trained or recorded is lost, and the user is told once."""

from __future__ import annotations

import errno
import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_records import READING, equal, write

import lightning_slt as slt
from lightning_slt.events import write_event
from lightning_slt.files import append_line
from lightning_slt.records import RecordWriter

pytestmark = pytest.mark.usefixtures("elsewhere")

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# A full disk


class Disk:
    """Has room for some more bytes of lines, and then for none."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, room: int) -> None:
        self.room, self.refused, disk, opened = room, 0, self, Path.open

        def open_on_disk(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            file = opened(path, mode, *args, **options)
            if not mode.startswith("a"):
                return file
            return Limited(file, disk)

        monkeypatch.setattr(Path, "open", open_on_disk)


class Limited:
    """A file on it: what does not fit is written as far as it does, as file systems do."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self.file, self.disk = file, disk

    def __enter__(self) -> Limited:
        return self

    def __exit__(self, *args: Any) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        if not self.disk.room:
            self.disk.refused += 1
            raise FULL
        count = self.file.write(data[: self.disk.room])
        self.disk.room -= count
        return int(count)


@pytest.mark.parametrize("cut", [True, False])
def test_a_line_that_does_not_fit_spoils_no_other(monkeypatch: pytest.MonkeyPatch, cut: bool) -> None:
    """It is taken back, or, where even that fails, ended by the next one."""
    path = Path("lines")
    append_line(path, "first")
    disk = Disk(monkeypatch, room=4)
    if not cut:
        monkeypatch.setattr(Limited, "truncate", lambda *args: (_ for _ in ()).throw(FULL), raising=False)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "second")
    assert path.read_bytes() == (b"first\n" if cut else b"first\nseco")
    disk.room = 100
    append_line(path, "third")
    assert path.read_bytes() == (b"first\nthird\n" if cut else b"first\nseco\nthird\n")


def test_events_that_do_not_fit_spoil_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    event = slt.RunEvent(source="stages", kind="alert", step=1.0, known_at=1, quantity="q", text="t")
    write_event(".", event)
    disk = Disk(monkeypatch, room=10)
    with pytest.raises(OSError, match="No space left"):
        write_event(".", replace(event, step=2.0))
    disk.room = 1000
    write_event(".", replace(event, step=3.0))
    assert [e.step for e in slt.load_events(".")] == [1.0, 3.0]


def test_arrays_that_do_not_fit_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What safetensors raises then is no OSError of its own."""
    resource = pytest.importorskip("resource")
    writer = RecordWriter(".", "slt")
    writer.write(replace(READING, index=0))
    kept = sorted(Path().rglob("*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (writer.path.stat().st_size // 16, hard))  # python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match="large"):
            writer.write(replace(READING, index=1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(Path().rglob("*")) == kept
    (reading,) = slt.load_records(".")
    assert equal(reading, replace(READING, index=0))


# Broken files


def test_broken_events_cost_themselves_alone() -> None:
    event = slt.RunEvent(source="stages", kind="alert", step=1.0, known_at=1, quantity="q", text="t")
    write_event(".", event)
    path = next(Path().rglob("*.events"))
    for broken in ("[" * 100_000, '"text"', path.read_text().strip().replace("1.0", "1" + "0" * 400)):
        append_line(path, broken)
    write_event(".", replace(event, step=2.0))
    with pytest.warns(UserWarning, match=r"stages\.events:\d is no event and is left out"):
        assert [e.step for e in slt.load_events(".")] == [1.0, 2.0]


def test_two_runs_that_begin_at_once_have_files_of_their_own() -> None:
    """Both processes look before either has made its file."""
    writers: list[RecordWriter] = []
    barrier = threading.Barrier(8)

    def begin() -> None:
        barrier.wait()
        writers.append(RecordWriter(".", "slt"))

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({writer.path for writer in writers}) == 8


def changed(**changes: Any) -> Any:
    return lambda line: json.dumps({**json.loads(line), **changes})


BROKEN = {
    "bytes": lambda line: "\x00\x1b" + line[5:],
    "too deep": lambda line: "[" * 100_000,
    "too large": lambda line: line.replace('"mean": null', f'"mean": 1{"0" * 400}'),
    "a time that is none": changed(time=None),
    "a time that is text": changed(time="noon"),
    "a time that is no number": lambda line: line.replace('"time": 12.5', '"time": NaN'),
    "an index that is text": changed(index="1"),
    "an index between two": changed(index=1.5),
    "a name that is a number": changed(name=4),
    "settings that are a number": changed(settings=3),
    "an estimate that is a number": changed(estimates={"full": {"llc": 3}}),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_costs_itself_alone(how: str) -> None:
    path = write(Path())
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], BROKEN[how](lines[1]), lines[2], ""]))
    with pytest.warns(UserWarning, match=r"slt.jsonl:2 is no reading and is left out") as told:
        assert [r.step for r in slt.load_records(".")] == [0, 2]
    assert len(told) == 1


def test_many_broken_lines_are_told_once() -> None:
    path = write(Path())
    path.write_text("garbage\n" * 100 + path.read_text())
    with pytest.warns(UserWarning, match=r"slt.jsonl:1 is no reading .*; so are 99 lines more") as told:
        assert [r.step for r in slt.load_records(".")] == [0, 1, 2]
    assert len(told) == 1


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def claims_more(file: Path) -> None:
    """A header of four exabytes."""
    file.write_bytes((2**62).to_bytes(8, "little") + file.read_bytes()[8:])


def claims_more_data(file: Path) -> None:
    """An array of four exabytes in a file of a few bytes."""
    header = json.dumps({"full/llc/loss": {"dtype": "F64", "shape": [2**59], "data_offsets": [0, 2**62]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))


def with_words_of_others(file: Path) -> None:
    header = json.dumps({"__metadata__": {"axes": "{"}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header)


DAMAGE = [half, claims_more, claims_more_data, with_words_of_others, lambda file: file.write_bytes(os.urandom(99))]


@pytest.mark.parametrize("damage", DAMAGE)
def test_broken_arrays_cost_no_numbers(damage: Any) -> None:
    path = write(Path())
    damage(path.parent / "slt" / "traces-000001.safetensors")
    with pytest.warns(UserWarning, match=r"slt.jsonl:2 is without its arrays \(") as told:
        readings = slt.load_records(".")
    assert len(told) == 1
    assert [r.step for r in readings] == [0, 1, 2]
    estimates = [r.estimates["full"]["llc"] for r in readings]
    assert [len(e.traces) for e in estimates] == [1, 0, 1]
    assert equal(estimates[1].per_chain, estimates[0].per_chain)


def test_a_broken_anchor_says_so() -> None:
    RecordWriter(".", "slt").write(READING, anchor={"w": READING.estimates["full"]["llc"].per_chain})
    half(next(Path().rglob("anchor-*.safetensors")))
    (reading,) = slt.load_records(".")
    with pytest.raises(ValueError, match=r"the weights of this reading, .*anchor-000003.* cannot be read"):
        slt.load_anchor(reading)


# A clock that jumps


def test_readings_keep_their_order_where_the_clock_is_set_back() -> None:
    for name, times in (("a", (100.0, 50.0, 60.0, 300.0)), ("b", (90.0, 200.0))):
        writer = RecordWriter(".", name)
        for index, time in enumerate(times):
            writer.write(replace(READING, name=name, index=index, step=index, time=time))
    assert [(r.name, r.step) for r in slt.load_records(".")] == [
        ("b", 0), ("a", 0), ("a", 1), ("a", 2), ("b", 1), ("a", 3),
    ]  # fmt: skip
