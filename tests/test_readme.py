"""What the README shows works as written."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_slt as slt

ROOT = Path(__file__).parents[1]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore")
def test_the_example_logs_an_llc(in_tmp):
    code = re.search(r"```python\n(import lightning.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 15
    exec(compile(code, "README.md", "exec"), {"__name__": "__readme__"})
    events = EventAccumulator(str(in_tmp / "lightning_logs" / "version_0")).Reload()
    points = [(e.step, e.value) for e in events.Scalars("slt/full/llc/mean")]
    assert [step for step, _ in points] == [0, 40, 80, 120, 160]
    records = slt.load_records(in_tmp)
    assert [value for _, value in points] == pytest.approx([r.estimates["full"]["llc"].mean for r in records])


@pytest.mark.filterwarnings("ignore")
def test_the_demo_draws_and_tabulates(in_tmp, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["digits.py", "--max-steps", "12", "--readings", "2"])
    runpy.run_path(str(ROOT / "examples" / "digits.py"), run_name="__main__")
    printed = capsys.readouterr().out
    picture = Path(re.search(r"picture:\s+(\S+)", printed).group(1))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [line.split()[0] for line in printed.splitlines() if "±" in line] == ["0", "2", "12"]
    assert "tensorboard --logdir" in printed


def test_every_linked_file_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
