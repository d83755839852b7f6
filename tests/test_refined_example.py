"""The part of layers runs to its end; whether its numbers are right it says itself, in a minute."""

import json
import runpy
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples" / "refined_llc.py"


def test_it_holds_every_refinement_against_its_closed_form(monkeypatch, tmp_path, capsys):
    short = ["--parts", "layers", "--threads", "1", "--num-draws", "8", "--num-burnin", "2", "--out", str(tmp_path)]
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.setattr(sys, "argv", ["refined_llc.py", *short])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    rows = json.loads((tmp_path / "refined_llc.json").read_text())["0"]
    assert [(row["moves"], row["data"]) for row in rows] == [
        (part, data) for data in ("all", "subspace") for part in ("full", "0", "1")
    ]
    assert [round(row["truth"], 1) for row in rows] == [10.5, 5.0, 5.0, 7.0, 3.0, 5.0]
    assert "closed form 10.500" in capsys.readouterr().out
