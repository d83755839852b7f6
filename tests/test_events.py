"""What callbacks told of a run, kept beside its readings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import MemoryLogger, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_stages_live import QUANTITY, fit
from test_stagewise import STEPS, curve, heard

import lightning_slt as slt
from lightning_slt.callbacks.stagewise import InfluenceFollower
from lightning_slt.callbacks.surroundings import record
from lightning_slt.events import load_stages, write_event
from lightning_slt.reporting.events import MOST, happenings

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


def test_stages_that_a_monitor_found_are_kept_as_it_reports_them() -> None:
    """With its own settings, of a scalar without an error: those of the end take the place of earlier ones."""
    stages = slt.StageMonitor(QUANTITY, mark="end", bandwidth=0.3, name="mine")
    fit(stages)
    report = stages.report().stages
    assert len(report) == 3
    kept = load_stages("slt_records")
    assert {(stage.source, stage.quantity, stage.known_at) for stage in kept} == {("mine", QUANTITY, 300)}
    assert [(k.name, k.kind, k.start, k.end, k.hidden) for k in kept] == [
        (s.name, s.kind, s.start, s.end, s.hidden) for s in report
    ]
    assert len(Path("slt_records/mine.stages").read_text().splitlines()) == 3  # two announcements and the end


@pytest.mark.parametrize("broken", ['[{"half', "[]", "null", "[3]", "{}", "[" * 100_000])
def test_stages_that_are_broken_are_left_out(broken: str) -> None:
    fit(slt.StageMonitor(QUANTITY))
    file, kept = Path("slt_records/stages.stages"), load_stages("slt_records")
    for line in (broken, file.read_text().splitlines()[-1].replace('"start": ', '"start": NaN, "x": ')):
        with file.open("a") as end:
            end.write(line + "\n")
    with pytest.warns(UserWarning, match=r"stages\.stages:\d tells no stages and is left out") as warned:
        assert load_stages("slt_records") == kept
    assert len(warned) == 2


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("slt_records").write_text("a file where the folder should be")
    trainer = trainer_for(logger=False)
    with pytest.warns(UserWarning, match="stages: an event was not recorded"):
        record(trainer, "stages", kind="alert", step=torch.tensor(3.0), known_at=3, quantity="q", text="t")  # type: ignore[arg-type]


def told(folder: Path) -> list[tuple[int, str]]:
    """The texts on what happened, with their steps."""
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()
    if "events/text_summary" not in events.Tags()["tensors"]:
        return []
    return [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors("events/text_summary")]


def test_one_table_of_stages_and_events(elsewhere: Path) -> None:
    stages, saves = slt.StageMonitor(QUANTITY), slt.StageCheckpoint("saved")
    logger = TensorBoardLogger(elsewhere, name="", version="")
    fit(stages, saves, slt.StageStopping(after=2), logger=logger)
    first, second = stages.report().announced
    texts = told(elsewhere)
    for step, text in texts:  # what is known by then, and no more
        assert (f"| {second.boundary.step:.0f} | **boundary**" in text) == (step >= second.step)
    text = texts[-1][1]
    rows = [row for row in text.splitlines() if "**" in row and row.startswith("| ")]
    kinds = [row.split("**")[1] for row in rows]
    assert kinds[:3] == ["boundary", "checkpoint", "boundary"]
    assert sorted(kinds[3:]) == ["checkpoint", "stop"]
    assert f"| {first.boundary.step:.0f} | **boundary** {QUANTITY} came to rest" in rows[0]
    assert f"| {first.step} | stages |" in rows[0]
    assert f"| {first.step} | **checkpoint** weights saved to {saves.saved[0].name}" in rows[1]
    assert f"**Stages of {QUANTITY}**" in text
    assert "| A2 |" in text
    assert len(texts) <= len(rows) + 1  # and once more in the end


def test_without_tables_there_is_none(elsewhere: Path) -> None:
    logger = TensorBoardLogger(elsewhere, name="", version="")
    fit(slt.StageMonitor(QUANTITY, tables=False), slt.StageCheckpoint("saved"), logger=logger)
    assert told(elsewhere) == []
    assert slt.load_events(elsewhere)


def test_a_run_with_very_many_events_has_a_short_table() -> None:
    text = happenings([event(float(step), text="a | b\nc") for step in range(3 * MOST)], {})
    assert text.count("| **boundary** a \\| b c |") == MOST
    assert f"| {3 * MOST - 1} |" in text
    assert f"{2 * MOST} earlier ones" in text
