"""Response matrices: standardization and modes against torch's own, planted modules, tables and pictures."""

import math
from dataclasses import replace

import pytest
import torch

import lightning_slt as slt
from lightning_slt.analysis.responses import extremes, modes, modes_table, noise_share, standardized
from lightning_slt.estimators import Responses
from lightning_slt.reporting.pictures import pictures
from lightning_slt.reporting.responses import response_figure, response_table

DOUBLE = torch.float64


def planted(rows=200, noise=0.1, uniform=5.0):
    """A large mean response and two modules of two components with rows of two kinds, each column on its own scale."""
    g = torch.Generator().manual_seed(0)
    kinds = torch.where(torch.arange(rows) % 2 == 0, 1.0, -1.0).double()
    modules = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=DOUBLE)
    mean = uniform * torch.randn(rows, 1, generator=g, dtype=DOUBLE)
    matrix = mean + torch.outer(kinds, modules) + noise * torch.randn(rows, 4, generator=g, dtype=DOUBLE)
    return matrix * torch.tensor([1.0, 10.0, 0.1, 3.0], dtype=DOUBLE), kinds, modules


def result(matrix, **more):
    rows = torch.stack([torch.zeros(len(matrix)), torch.arange(len(matrix)) // 2, torch.arange(len(matrix)) % 2], 1)
    values = {
        "matrix": matrix, "stderr": torch.full_like(matrix, 0.1), "rows": rows.long(), "components": tuple("abcd"),
        "probes": ("text",), "by_probe": matrix.mean(0)[None], "by_probe_stderr": matrix.mean(0)[None],
        "rise": matrix[0], "delta": matrix, "method": "restricted", "signal": 3.0, "uniform": 0.9, "parts": {},
        "health": slt.Health(ok=True),
    }  # fmt: skip
    return Responses(**{**values, **more})


def test_standardized_is_a_z_score_then_centred():
    matrix = planted()[0]
    z = (matrix - matrix.mean(0)) / torch.stack([column.std() for column in matrix.T])
    assert torch.allclose(standardized(matrix, centred=False), z, rtol=0, atol=1e-12)
    expected = z - z.mean(1, keepdim=True)
    assert torch.allclose(standardized(matrix), expected, rtol=0, atol=1e-12)
    assert torch.allclose(standardized(matrix * 7 + 3), expected, rtol=0, atol=1e-10)
    matrix[:, 2] = 5.0
    assert (standardized(matrix, centred=False)[:, 2] == 0).all()


def test_modes_are_those_of_the_covariance():
    matrix = standardized(planted()[0])
    found = modes(matrix, count=10)
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    assert torch.allclose(found.share, values.flip(0) / values.sum(), rtol=0, atol=1e-12)
    assert torch.allclose(found.scores @ found.loadings.T, matrix, rtol=0, atol=1e-12)
    assert torch.allclose((found.loadings[:, 0] @ vectors[:, -1]).abs(), torch.ones((), dtype=DOUBLE))
    largest = found.loadings.gather(0, found.loadings.abs().argmax(0)[None])
    assert (largest > 0).all()
    assert modes(-matrix).loadings[:, 0].abs().max() == modes(-matrix).loadings[:, 0].max()


def test_the_uniform_mode_hides_modules_until_it_is_taken_away():
    matrix, kinds, modules = planted()
    raw, found = modes(matrix), modes(standardized(matrix))
    assert torch.corrcoef(torch.stack([raw.scores[:, 0], kinds]))[0, 1].abs() < 0.3
    assert torch.corrcoef(torch.stack([found.scores[:, 0], kinds]))[0, 1].abs() > 0.98
    assert (found.loadings[:, 0].sign() == modules).all() or (found.loadings[:, 0].sign() == -modules).all()
    assert found.share[0] > 0.9


def test_what_noise_explains():
    matrix, noise = torch.randn(4000, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)), 0.5
    assert noise_share(matrix + 0, torch.full_like(matrix, noise)) == pytest.approx(noise**2, rel=0.05)
    assert math.isnan(noise_share(torch.ones(3, 2), torch.ones(3, 2)))


def test_ends_of_a_mode_and_table():
    matrix = torch.outer(torch.tensor([3.0, -2.0, 0.0, 1.0]), torch.tensor([2.0, -1.0]))
    found = modes(matrix)
    ends = extremes(found, 0, count=3)
    assert ends.rows == ([1], [0, 3])
    assert ends.components == ([1], [0])
    rows = torch.tensor([[0, 4, -1], [0, 7, 2], [1, 0, 0], [1, 0, 1]])
    table = modes_table(modes(matrix, count=1), rows, components=("h0", "h1"), probes=("a", "b"))
    assert table.splitlines()[2:] == ["| 1 | 100% | a 7:2 | a 4 · b 0:1 | h1 -0.45 | h0 +0.89 |"]
    words = modes_table(modes(matrix, count=1), rows, components=("h0", "h1"), probes=("a", "b"),
                        text=lambda probe, sample, token: f"<{probe}|{sample}|{token}>")  # fmt: skip
    assert r"<0\|7\|2>" in words


def test_nothing_can_be_said_of_what_is_not_finite():
    matrix = planted()[0]
    matrix[3, 1] = math.nan
    with pytest.raises(ValueError, match="entries that are not finite"):
        modes(matrix)
    assert pictures(result(matrix)) == {}
    assert pictures(result(planted()[0][:, :1], components=("a",))) == {}


def test_pictures_of_a_result():
    pytest.importorskip("matplotlib")
    drawn = pictures(result(planted()[0]))
    assert set(drawn) == {"modes", "matrix"}
    assert "90% of the raw matrix is alike in all components" in drawn["modes"]
    heat, shares, loadings, *_ = drawn["matrix"]().axes
    shown = heat.images[0].get_array()
    assert shown.shape == (200, 4)
    assert [label.get_text() for label in heat.get_xticklabels()] == list("abcd")
    assert len(shares.patches) == 4 + 3  # what all components share is no mode of the standardized matrix
    assert loadings.images[0].get_array().shape == (3, 4)


def test_records_give_the_same_table():
    from lightning_slt.results import StoredResult

    mine = result(planted()[0])
    stored = StoredResult(
        health=mine.health, kind="Responses", numbers=mine.scalars(), tensors=mine.arrays(), words=mine.names()
    )
    assert stored.components == tuple("abcd")
    assert response_table(stored) == response_table(mine)
    assert len(response_figure(stored).axes) == len(response_figure(mine).axes)
    assert replace(mine, signal=1.0).scalars() == {"signal": 1.0, "uniform": 0.9}
