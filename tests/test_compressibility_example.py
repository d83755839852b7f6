"""The example of compressibility runs to its end and says what came out; whether it does it says itself, in minutes."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt.analysis.compression import correlate, table_of

EXAMPLE = Path(__file__).parents[1] / "examples" / "compressibility.py"


@pytest.mark.filterwarnings("ignore:.*explains:UserWarning", "ignore:.*GPU available but not used")
def test_small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--steps", "90", "--readings", "3", "--draws", "4", "--burnin", "2", "--evaluated", "128"]
    monkeypatch.setattr(sys, "argv", ["compressibility.py", *short, "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    (row,) = json.loads((tmp_path / "compressibility.json").read_text())
    folder = next(tmp_path.glob("seed0-*"))
    assert (folder / "compressibility.png").stat().st_size > 10_000
    assert list((folder / "logs").glob("events*"))
    table = {step: values for step, values in table_of(slt.load_records(folder)).items() if step}
    assert list(table) == [60, 73, 90]
    plain = correlate(table, number="bits_0.02", quantity="slt/full/llc").plain.value
    said = {criterion["what"]: criterion for criterion in row["criteria"]}
    first = said["Pearson(λ̂, bits) at tolerance 0.02"]
    assert first["value"] == plain
    assert all(c["passed"] == (c["value"] >= c["limit"]) for c in said.values())
    out = capsys.readouterr().out
    assert out.count("came out") + out.count("MISSED") >= len(said) == 8
    missed = sum(not c["passed"] for c in said.values())
    assert f"{missed} criteria missed" in out if missed else "all criteria came out" in out


class LanguageModel(nn.Module):
    """As transformers give it: tokens in, logits in an attribute."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.embed, self.out = nn.Embedding(11, 8), nn.Linear(8, 11)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=g) * (1 + seed))

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.out(self.embed(input_ids)))


def test_checkpoints_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loader's own calls, with a stand-in for transformers, which the tests do not install."""
    loaded: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(place: Path, **options: Any) -> nn.Module:
        loaded.append((place.name, options))
        return LanguageModel(int(place.name.removeprefix("step")))

    stand_in = SimpleNamespace(AutoModelForCausalLM=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    for step in (2, 0, 1):
        (tmp_path / "models" / f"step{step}").mkdir(parents=True)
    (tmp_path / "models" / "README").mkdir()
    torch.save(torch.randint(0, 11, (6, 5)), tmp_path / "tokens.pt")
    places = ["--models", str(tmp_path / "models"), "--tokens", str(tmp_path / "tokens.pt"), "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["compressibility.py", "--scale", "paper", "--draws", "2", *places])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert loaded == [(f"step{step}", {"local_files_only": True}) for step in range(3)]
    record = json.loads((tmp_path / "compressibility_paper.json").read_text())
    assert list(record["table"]) == ["0", "1", "2"]
    assert "slt/full/compressibility/bits_0.02" in record["table"]["2"]
    assert record["correlations"]["sigma_0.02"]["readings"] == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [(["--scale", "paper"], "needs --models FOLDER and --tokens FILE"),
     (["--scale", "paper", "--models", ".", "--tokens", "t.pt"], "holds no folder whose name ends in step<number>")],
)  # fmt: skip
def test_what_is_missing_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoModelForCausalLM=None))
    monkeypatch.setattr(sys, "argv", ["compressibility.py", *given])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
