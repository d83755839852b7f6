"""What callbacks told of a run, kept beside its readings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from models import MemoryLogger, trainer_for
from test_stagewise import STEPS, curve, heard

import lightning_slt as slt
from lightning_slt.callbacks.stagewise import InfluenceFollower
from lightning_slt.callbacks.surroundings import record
from lightning_slt.events import write_event

pytestmark = pytest.mark.usefixtures("elsewhere")


def event(step: float, *, known_at: int = 200, text: str = "t", kind: str = "boundary") -> slt.RunEvent:
    return slt.RunEvent(source="stages", kind=kind, step=step, known_at=known_at, quantity="slt/full/llc", text=text)


def test_events_come_back_in_order_and_once() -> None:
    for told in (event(120.4), event(50.0), event(120.2, known_at=300, text="again"), event(120.0, kind="alert")):
        write_event("run", told)
    found = slt.load_events(".")
    assert [(e.kind, e.step, e.text) for e in found] == [
        ("boundary", 50.0, "t"),
        ("alert", 120.0, "t"),
        ("boundary", 120.2, "again"),
    ]
    assert slt.load_events("nowhere") == []


def test_broken_lines_are_left_out() -> None:
    write_event("run", event(1.0))
    file = next(Path("run").rglob("*.events"))
    line = file.read_text()
    file.write_text(line + '{"half\n{"source": 3}\nnull\n' + line.replace("1.0", "NaN") + line)
    with pytest.warns(UserWarning, match=r"stages\.events:\d is no event and is left out") as warned:
        assert len(slt.load_events("run")) == 1
    assert len(warned) == 4


def test_influence_that_turns_is_kept() -> None:
    trainer, follower = (
        trainer_for(logger=MemoryLogger()),
        InfluenceFollower("inf", "full", "influence", significance=3.0),
    )
    for step, value, error in zip(STEPS, *curve(), strict=True):
        follower.hear(trainer, heard(int(step), float(value), float(error)))
    found = slt.load_events(".")
    assert {(e.kind, round(e.step)) for e in found} == {(e.kind, round(e.step)) for e in follower.told}
    assert all(e.source == "inf" and e.quantity == "cats → dogs" and e.known_at >= e.step for e in found)


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("slt_records").write_text("a file where the folder should be")
    trainer = trainer_for(logger=False)
    with pytest.warns(UserWarning, match="stages: an event was not recorded"):
        record(trainer, "stages", kind="alert", step=torch.tensor(3.0), known_at=3, quantity="q", text="t")  # type: ignore[arg-type]
