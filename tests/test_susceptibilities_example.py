"""The example of susceptibilities: closed forms, two modules, and the heads of a transformer with its sequences."""

import json
import runpy
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def test_its_gates_pass(examples, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sys, "argv", ["susceptibilities.py", "--out", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "susceptibilities.py"), run_name="__main__")
    record = json.loads((tmp_path / "susceptibilities.json").read_text())
    assert len(record) == 7
    assert all(outcome["passed"] for outcomes in record.values() for outcome in outcomes)
    assert (tmp_path / "modules-0.png").stat().st_size > 10_000


def test_sequences_of_two_mechanisms(examples):
    from attention_only import HALF, INDUCTION, LENGTH, SKIP, two_mechanisms

    tokens, kinds = two_mechanisms(300, seed=0)
    assert tokens.shape == (300, LENGTH)
    before = torch.arange(LENGTH - 1) + 1
    for row, kind in zip(tokens[:20], kinds[:20], strict=True):
        for t in before[kind == INDUCTION]:
            assert row[t] == row[t - HALF]
            assert row[t - 1] == row[t - 1 - HALF]
    assert (kinds == INDUCTION).sum(1).eq(HALF - 1).all()
    assert 0.88 < float((kinds == SKIP).sum(1).double().mean() / 10) < 0.94


def test_a_head_that_says_nothing(examples):
    """Ablations are those of the head's own slice, and leave the network as it was."""
    from attention_only import Transformer, ablations, next_token, two_mechanisms

    torch.manual_seed(0)
    net = Transformer(vocabulary=19, length=27, width=8, num_heads=2)
    tokens = two_mechanisms(3, seed=0)[0]
    before = next_token(net, (tokens,))
    rises = ablations(net, tokens)
    assert torch.equal(next_token(net, (tokens,)), before)
    assert rises.shape == (3, 26, 4)
    with torch.no_grad():
        net.blocks[1].attn.o_proj.weight[:, 4:] = 0
    assert torch.allclose(next_token(net, (tokens,)) - before, rises[:, :, 3])


def test_a_file_of_tokens(examples, tmp_path):
    """Either format gives the sequences asked for, and no others."""
    from attention_only import token_rows

    ids = np.arange(70, dtype=np.uint16)
    np.save(tmp_path / "ids.npy", ids)
    ids.tofile(tmp_path / "ids.bin")
    for name in ("ids.npy", "ids.bin"):
        rows = token_rows(tmp_path / name, vocabulary=70, length=10, count=3, skip=2)
        assert torch.equal(rows, torch.arange(20, 50).view(3, 10))
    np.save(tmp_path / "floats.npy", ids.astype(np.float32))
    for name, vocabulary, count, said in (
        ("ids.bin", 70, 8, "holds 7 sequences of 10 tokens, expected 8"),
        ("ids.npy", 20, 3, "has tokens 0 to 29, expected 0 to 19"),
        ("floats.npy", 70, 3, "must hold integers, got float32"),
    ):
        with pytest.raises(ValueError, match=said):
            token_rows(tmp_path / name, vocabulary=vocabulary, length=10, count=count)


def test_pairs_that_were_seen(examples):
    from attention_only import INDUCTION, PLAIN, seen_pairs

    tokens = torch.tensor([[1, 2, 3, 1, 2, 3, 3, 1, 2, 1]])
    again = torch.tensor([[False, False, False, True, True, False, True, True, False]])
    assert torch.equal(seen_pairs(tokens), torch.where(again, INDUCTION, PLAIN))


def test_what_a_mode_is_judged_by(examples):
    """A mode made of the kinds and of the contrast meets both of its criteria; chance meets neither."""
    from attention_only import INDUCTION, PLAIN, SKIP
    from susceptible_heads import told

    g = torch.Generator().manual_seed(0)
    kinds = torch.tensor([INDUCTION, SKIP, PLAIN]).repeat(200)
    sign = torch.where(kinds == PLAIN, 0.0, torch.where(kinds == INDUCTION, 1.0, -1.0)).double()
    contrast = torch.randn(8, generator=g).double()
    noise = torch.randn(600, 8, generator=g).double()
    both = told(10 + sign[:, None] * (contrast - contrast.mean()) + 0.01 * noise, kinds, contrast, against=SKIP)
    assert both["raw PC2"] == {"AUC": 1.0, "correlation": pytest.approx(1, abs=1e-3)}
    assert both["standardized PC1"]["AUC"] == 1
    chance = told(noise, kinds, contrast, against=SKIP)
    spread = (401 / (12 * 200 * 200)) ** 0.5  # of an AUC of unrelated scores
    assert all(of["AUC"] < 0.5 + 4 * spread for of in chance.values())


@pytest.mark.parametrize("source", ["two mechanisms", "a file"])
def test_heads_at_a_tiny_size(examples, tmp_path, source):
    """The whole of part (c), as small as it goes: every criterion has its value, and the picture is drawn."""
    pytest.importorskip("matplotlib")
    from attention_only import PLAIN
    from susceptible_heads import MODES, SCALES, heads

    tiny = replace(
        SCALES["small"], width=8, num_heads=2, steps=5, batch=4, chains=2, draws=3, burnin=2, thinning=1, minibatch=4,
        sampled=16, reference=4, probe=4,
    )  # fmt: skip
    file = None
    if source == "a file":
        file = tmp_path / "ids.npy"
        tiny = replace(tiny, vocabulary=11, length=12, against=PLAIN)
        np.save(file, np.random.default_rng(0).integers(11, size=12 * (4 + 16 + 256), dtype=np.uint16))
    record, figure = heads(0, tiny, tokens=file)
    assert set(record["modes"]) == set(record["control"]) == set(MODES)
    met = [all(record["criteria"][mode].values()) for mode in MODES]
    assert record["passed"] == (record["criteria"]["raw PC1 ≥ 0.8"] and any(met))
    figure.savefig(tmp_path / "heads.png")
    assert (tmp_path / "heads.png").stat().st_size > 10_000


def test_its_results(examples):
    """The committed results are of the settings that stand in the example, and their summary is theirs."""
    from susceptibilities import summary
    from susceptible_heads import MODES, SCALES

    record = json.loads((EXAMPLES / "results" / "susceptibilities.json").read_text())
    assert record["heads settings"] == asdict(SCALES["small"])
    assert record["heads summary"] == summary(record["heads"])
    for of in record["heads"]:
        mine, control = of["modes"], of["control"]
        met = [
            mine[mode]["AUC"] >= 0.9 and mine[mode]["AUC"] > control[mode]["AUC"] and mine[mode]["correlation"] >= 0.7
            for mode in MODES
        ]
        assert of["passed"] == (of["raw PC1"] >= 0.8 and any(met))
