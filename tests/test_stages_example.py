"""The example of developmental stages runs to its end at tiny size, and can fail; its numbers it judges itself."""

import json
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[1] / "examples" / "developmental_stages.py"
TINY = ["--steps", "12", "--readings", "6", "--num-draws", "2"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory|.*TensorBoard")
def test_it_trains_judges_and_replays(monkeypatch, tmp_path, capsys):
    def run(*arguments: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["developmental_stages.py", *arguments, "--out", str(tmp_path)])
        monkeypatch.syspath_prepend(str(EXAMPLE.parent))
        runpy.run_path(str(EXAMPLE), run_name="__main__")
        return json.loads((tmp_path / "developmental_stages.json").read_text())

    (record,) = run(*TINY)["runs"]
    assert not any(record["criteria"].values())
    passed = run("--replay")["passed"]
    assert list(passed) == ["that"]  # seed 0 is one of those that the setting was chosen on
    assert passed["that"]["seeds"] == 1
    assert set(passed["that"]["criteria"].values()) == {0}
    assert "seed 0: NO   a boundary between the two mechanisms" in capsys.readouterr().out
    assert (tmp_path / "stages-0.png").exists()
    assert list((tmp_path / "seed-0").glob("events.*"))
    assert repr(run("--replay")["runs"]) == repr([record])  # NaN differs from itself
