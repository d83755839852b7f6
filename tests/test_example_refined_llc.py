"""Heads of the example of refined LLCs: sequences, induction scores, verdicts, and a tiny network from end to end."""

from __future__ import annotations

import importlib
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def learning(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("induction")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("refined_llc_heads")


def tiny(learning: ModuleType):
    return learning.Scale(
        vocabulary=8, length=8, width=8, num_heads=2, steps=4, every=2, batch=4, sequences=16, sampled=8, chains=2,
        draws=2, burnin=1, minibatch=4,
    )  # fmt: skip


def test_bigrams_follow_one_chain(learning):
    scale = learning.Scale()
    follow = torch.randint(64, (64, 16), generator=torch.Generator().manual_seed(12345))
    law = torch.zeros(64, 64).scatter_add_(1, follow, learning.SUCCESSORS.expand(64, -1))
    tokens = torch.cat([learning.bigrams(2000, scale, seed=seed) for seed in (0, 1)])
    pairs = (tokens[:, :-1].flatten(), tokens[:, 1:].flatten())
    counts = torch.zeros(64, 64).index_put_(pairs, torch.ones(len(pairs[0])), accumulate=True)
    assert bool((counts[law == 0] == 0).all())
    seen = counts.sum(1, keepdim=True)
    z = (counts - seen * law) / (seen * law * (1 - law)).sqrt()
    assert float(z[law > 0].abs().max()) < 5


def test_repeated_sequences_come_back_after_their_period_and_not_before(learning):
    scale = learning.Scale()
    tokens, period = learning.repeated(300, scale, seed=0)
    assert tokens.shape == (300, 32)
    assert set(period.flatten().tolist()) == set(range(6, 17))
    for row, p in zip(tokens, period.flatten().tolist(), strict=True):
        assert torch.equal(row[p:], row[:-p])
        assert len(row[:p].unique()) == p
    assert len(tokens.unique()) == 64
    assert not torch.equal(tokens, learning.repeated(300, scale, seed=1)[0])


def test_repeated_sequences_of_few_words(learning):
    tokens, period = learning.repeated(300, learning.SCALES["few-words"], seed=0)
    assert set(period.flatten().tolist()) == set(range(4, 13))
    assert set(tokens.flatten().tolist()) == set(range(24))
    for row, p in zip(tokens, period.flatten().tolist(), strict=True):
        assert torch.equal(row[p:], row[:-p])


def test_a_head_that_looks_everywhere_scores_by_how_often_a_token_was_shown(learning):
    """Uniform attention: of t + 1 places, those behind an earlier showing of token t, one for each past period."""
    scale = tiny(learning)
    net = learning.Language(scale).net
    for block in net.blocks:
        torch.nn.init.zeros_(block.attn.q_proj.weight)
    tokens, period = learning.repeated(5, scale, seed=0)
    expected = [(t // p) / (t + 1) for p in period.flatten().tolist() for t in range(p, scale.length)]
    found = learning.attention_scores(net, tokens, period)
    assert found["induction"].tolist() == pytest.approx([sum(expected) / len(expected)] * 4, rel=1e-5)
    previous = sum(1 / (t + 1) for t in range(1, scale.length)) / (scale.length - 1)
    assert found["previous"].tolist() == pytest.approx([previous] * 4, rel=1e-5)


def test_the_network_of_the_paper_has_three_million_weights(learning):
    with torch.device("meta"):
        network = learning.Language(learning.SCALES["paper"])
    assert 3.0e6 < sum(p.numel() for p in network.parameters()) < 3.5e6


def run(script):
    """Four heads at three readings, of which the last one learns induction: everything as the paper has it."""
    own = [[4.0, 4.0, 4.0], [3.0, 3.1, 3.2], [2.0, 2.1, 2.0], [1.0, 1.1, 3.0]]
    return script.Run(
        steps=[0, 2, 4], heads=["0.h0", "0.h1", "1.h0", "1.h1"],
        loss={"induction": [2.0, 1.9, 0.1], "bigrams": [2.0, 1.5, 1.4]},
        scores={"induction": [[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.1, 0.1, 0.2], [0.1, 0.1, 0.9]],
                "previous": [[0.1, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.1, 0.1], [0.1, 0.1, 0.1]]},
        llc={"all": own, "repeated": [*own[:3], [1.0, 1.0, 5.0]]}, stderr={"all": own, "repeated": own},
        again_steps=[0, 2, 4], again={"all": own, "repeated": own}, flagged=0.0, seconds={"fit": 1.0, "readings": 0.5},
    )  # fmt: skip


def verdicts(script, learning, outcome):
    return [passed for _, _, passed in script.judge(outcome, tiny(learning))]


def test_verdicts_of_a_run_as_it_should_be(script, learning):
    assert script.drop(run(script), tiny(learning)) == (1, 2)
    assert verdicts(script, learning, run(script)) == [True, True, True, True]
    told = [found for _, found, _ in script.judge(run(script), tiny(learning))]
    assert told[0] == f"1.h1 changes by {3.0 / 1.1 - 1:.0%}, place 1 of 4"
    assert told[3] == "1.h1 from place 3 to place 1"


@pytest.mark.parametrize("losses", [[2.0, 1.9, 1.8], [0.1, 0.1, 0.1], [2.0, 0.1, 1.9]])
def test_without_a_drop_the_first_verdict_is_no(script, learning, losses):
    flat = replace(run(script), loss={"induction": losses, "bigrams": losses})
    assert script.drop(flat, tiny(learning)) is None
    assert verdicts(script, learning, flat)[0] is False


def test_every_verdict_can_be_no(script, learning):
    good = run(script)
    induction = [[0.1, 0.1, 0.95], *good.scores["induction"][1:]]
    other = replace(good, scores={**good.scores, "induction": induction})  # the head that does not change at all
    assert verdicts(script, learning, other)[0] is False
    turned = replace(good, again={**good.again, "all": good.again["all"][::-1]})
    assert verdicts(script, learning, turned) == [True, False, False, True]
    lower = replace(good, llc={**good.llc, "repeated": [*good.llc["repeated"][:3], [1.0, 1.0, 0.5]]})
    assert verdicts(script, learning, lower) == [True, True, True, False]


def test_a_reading_that_failed_passes_nothing(script, learning):
    good = run(script)
    holes = replace(good, again={**good.again, "all": [*good.again["all"][:3], [1.0, math.nan, 3.0]]})
    assert verdicts(script, learning, holes) == [False] * 4


def test_what_stands_out_is_told_whatever_was_expected(script, learning):
    assert script.observe(run(script), tiny(learning)) == (
        "largest on repeated sequences: 1.h1, changes most: 1.h1, looks most at what followed before: 1.h1, "
        "looks most at the token before: 0.h1"
    )


@pytest.mark.slow
def test_a_tiny_network_from_end_to_end(script, learning, tmp_path, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    scale = tiny(learning)
    assert script.heads([3], scale, tmp_path) is False  # four steps teach nobody induction
    record = json.loads((tmp_path / "refined_llc_heads.json").read_text())
    outcome = record["seeds"]["3"]
    assert record["scale"]["draws"] == 2
    assert outcome["steps"] == [0, 2, 4]
    assert outcome["heads"] == ["0.h0", "0.h1", "1.h0", "1.h1"]
    for rows in (
        outcome["llc"]["all"],
        outcome["stderr"]["repeated"],
        outcome["scores"]["previous"],
        outcome["again"]["all"],
    ):
        assert [len(row) for row in rows] == [3] * 4
        assert all(math.isfinite(value) for row in rows for value in row)
    assert len(outcome["loss"]["induction"]) == 3
    assert outcome["llc"]["all"] != outcome["again"]["all"]  # another sampler seed
    assert [check["passed"] for check in outcome["checks"]].count(False) >= 1
    assert (tmp_path / "refined_llc_heads-3.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "NO   head with the largest induction score" in said
    assert "0 of 1 seeds: head with the largest induction score" in said
    events = EventAccumulator(str(tmp_path / "seed3"), size_guidance={"images": 0}).Reload()
    assert "refined/heads" in events.Tags()["images"]
    assert {"loss/induction", "heads/net.blocks.1.h1/llc/repeated/mean"} <= set(events.Tags()["scalars"])
