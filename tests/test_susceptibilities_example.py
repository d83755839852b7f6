"""The example of susceptibilities: closed forms, two modules, and the sequences for its transformer."""

import json
import runpy
import sys
from pathlib import Path

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
