"""Results that have pictures put them beside their numbers in TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from models import MemoryLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_slt.reporting import pictures
from lightning_slt.reporting.pictures import write_pictures
from lightning_slt.reporting.tensorboard import Embedding
from lightning_slt.results import Result
from lightning_slt.types import Health


@dataclass(frozen=True, kw_only=True)
class Drawn(Result):
    health: Health = field(default_factory=lambda: Health(ok=True))


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []

    def draw() -> Any:
        asked.append("drawn")
        return figure()

    points = Embedding(
        points=torch.eye(3), labels=[["0", "a"], ["1", "b"], ["2", "b"]], header=["sample", "label"],
        sprites=torch.zeros(3, 1, 4, 4),
    )  # fmt: skip
    monkeypatch.setitem(pictures.DRAWN, Drawn, lambda result: {"map": draw, "samples": points})
    return asked


def test_pictures_stand_under_the_result(drawn: list[str], tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    results = {"full": {"kernel": Drawn(), "bad": Drawn()}, "0": {"kernel": Drawn()}}
    write_pictures([MemoryLogger(), logger], "slt", results, 7, worthless=("full/bad",))
    logger.experiment.flush()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"slt/full/kernel/map", "slt/0/kernel/map"}
    assert events.Images("slt/full/kernel/map")[0].step == 7
    projector = (tmp_path / "projector_config.pbtxt").read_text()
    assert "slt/full/kernel/samples" in projector
    (folder,) = (tmp_path / "00007").glob("*full*")
    assert (folder / "metadata.tsv").read_text().splitlines() == ["sample\tlabel", "0\ta", "1\tb", "2\tb"]
    assert (folder / "sprite.png").exists()


def test_a_reading_made_again_is_silent(drawn: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    for _ in range(2):
        write_pictures([logger], "slt", {"full": {"kernel": Drawn()}}, 7)
    assert capsys.readouterr().out == ""


def test_nothing_is_drawn_where_nobody_looks(drawn: list[str]) -> None:
    write_pictures([MemoryLogger()], "slt", {"full": {"kernel": Drawn()}}, 7)
    assert drawn == []


def test_results_without_pictures_have_none() -> None:
    assert pictures.pictures(Drawn()) == {}
