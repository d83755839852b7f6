"""Geometry of trajectories on curves that are known, and joint principal components against a plain decomposition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lightning_slt.analysis import trajectories as module
from lightning_slt.analysis.forms import forms, lissajous, osculation, smoothed
from lightning_slt.analysis.trajectories import Rows, joint_trajectories, speeds
from lightning_slt.reporting.trajectories import HOW_TO_READ, forms_table, how_to_read, trajectory_figure


def rows_of(values: Tensor, steps: Sequence[int] | None = None, **references: Tensor) -> Rows:
    return Rows(steps=torch.tensor(steps or range(len(values))), values=values, references=references)


def random_rows(*counts: int, columns: int = 40) -> dict[str, Rows]:
    g = torch.Generator().manual_seed(0)
    return {str(i): rows_of(torch.randn(n, columns, generator=g).double() * 3 + i) for i, n in enumerate(counts)}


def rotation(size: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed)).double())[0]


def twin(runs: dict[str, Rows], axes: int) -> tuple[Tensor, Tensor]:
    """Scores and shares by a decomposition of the whole stacked matrix."""
    stacked = torch.cat([part.values for part in runs.values()])
    centred = stacked - stacked.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    return (u * s)[:, :axes] / math.sqrt(stacked.shape[1]), (s.square() / s.square().sum())[:axes]


@pytest.mark.parametrize("block", [2**22, 100])
@pytest.mark.parametrize("columns", [5, 40])
def test_joint_components_are_those_of_the_stacked_matrix(
    monkeypatch: pytest.MonkeyPatch, block: int, columns: int
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    runs = random_rows(7, 5, 4, columns=columns)
    joint = joint_trajectories(runs, axes=3)
    scores, shares = twin(runs, 3)
    found = torch.cat(list(joint.points.values()))
    assert [len(p) for p in joint.points.values()] == [7, 5, 4]
    signs = (found * scores).sum(0).sign()
    assert torch.allclose(found, scores * signs, atol=1e-10)
    assert torch.allclose(joint.shares, shares, atol=1e-10)
    assert torch.allclose(joint.axes @ joint.axes.T, torch.eye(3).double(), atol=1e-10)


def test_no_matrix_of_outputs_by_outputs() -> None:
    """A million columns: a square of them would be eight terabytes."""
    values = torch.zeros(3, 1_000_000)
    values[1, 5], values[2, 7] = 1000.0, 1000.0
    joint = joint_trajectories({"long": rows_of(values)})
    assert joint.shares.tolist() == pytest.approx([0.75, 0.25])  # of 0, e₁ and e₂: 1 along e₁ − e₂, ⅓ along e₁ + e₂
    distances = torch.cdist(joint.points["long"], joint.points["long"])
    assert distances[1, 2] == pytest.approx(math.sqrt(2))


def test_every_reading_counts_once_whatever_its_run() -> None:
    """Runs are stacked: splitting one run in two changes no axis."""
    whole = random_rows(9)["0"]
    parts = {"a": rows_of(whole.values[:4]), "b": rows_of(whole.values[4:])}
    one, two = joint_trajectories({"x": whole}), joint_trajectories(parts)
    again = torch.cat([two.points["a"], two.points["b"]])
    assert torch.allclose(again.abs(), one.points["x"].abs(), atol=1e-10)


def test_references_are_projected_and_take_no_part() -> None:
    runs = random_rows(6, 6)
    without = joint_trajectories(runs)
    far = torch.full((40,), 1e3, dtype=torch.float64)
    seen = without.mean + 2 * math.sqrt(40) * without.axes[1]
    joint = joint_trajectories(runs, references={"far": far, "seen": seen, "mean": without.mean})
    assert all(torch.equal(joint.points[name], without.points[name]) for name in runs)
    assert torch.allclose(joint.references["seen"], torch.tensor([0.0, 2.0, 0.0]).double(), atol=1e-10)
    assert torch.allclose(joint.references["far"], joint.project(far), atol=1e-10)
    assert torch.allclose(joint.project(runs["1"].values), joint.points["1"], atol=1e-10)
    assert joint.outside["seen"] == pytest.approx(0, abs=1e-10)
    assert joint.outside["mean"] == 0.0
    apart = far - joint.mean
    shown = (joint.axes @ apart).square().sum() / apart.square().sum()
    assert joint.outside["far"] == pytest.approx(1 - float(shown), abs=1e-10)


def test_references_of_records_are_shared_or_of_a_run() -> None:
    a, b = random_rows(4, 4).values()
    ridge, one, two = (torch.full((40,), x).double() for x in (0.0, 1.0, 2.0))
    runs = {
        "a": rows_of(a.values, ridge=ridge, mine=one),
        "b": rows_of(b.values, ridge=ridge, mine=two),
    }
    assert set(joint_trajectories(runs).references) == {"ridge", "mine of a", "mine of b"}


def test_turning_all_outputs_turns_nothing() -> None:
    runs = random_rows(6, 5)
    turn = rotation(40)
    turned = {name: rows_of(part.values @ turn + 7.0) for name, part in runs.items()}
    one, two = joint_trajectories(runs), joint_trajectories(turned)
    assert torch.allclose(one.shares, two.shares, atol=1e-10)
    assert all(torch.allclose(one.points[name], two.points[name], atol=1e-9) for name in runs)


def test_linear_flow_has_its_axes_along_the_eigenvectors() -> None:
    """``w(t) = Σ a_k e^(−λ_k t) v_k``: two modes span the plane, whose components a 2 × 2 problem gives."""
    t = torch.arange(30).double() / 5
    modes = torch.stack([3 * (-t).exp(), 2 * (-3 * t).exp()], 1)
    basis = rotation(40)[:2]
    joint = joint_trajectories({"flow": rows_of(modes @ basis)})
    values, vectors = torch.linalg.eigh(torch.cov(modes.T, correction=0))
    expected = (modes - modes.mean(0)) @ vectors.flip(1) / math.sqrt(40)
    assert len(joint.shares) == 2  # no third axis out of rounding
    assert torch.allclose(joint.shares, values.flip(0) / values.sum(), atol=1e-10)
    signs = (joint.points["flow"] * expected).sum(0).sign()
    assert torch.allclose(joint.points["flow"], expected * signs, atol=1e-10)


def test_axes_point_the_same_way_as_readings_are_added() -> None:
    t = torch.linspace(0, 1, 40).double()
    values = torch.stack([t, t**2, t**3, t.sqrt()], 1) @ rotation(6)[:4]
    ends = [joint_trajectories({"x": rows_of(values[:n])}).points["x"] for n in range(10, 41)]
    assert all(float(p[0, 0]) < float(p[-1, 0]) for p in ends)
    assert all(float(p[0, 1]) < float(p[len(p) // 2, 1]) for p in ends)


def test_what_cannot_be_stacked_is_refused() -> None:
    a, b = random_rows(3, 3).values()
    other = Rows(steps=b.steps, values=b.values, made_of=("outputs", "another probe"))
    with pytest.raises(ValueError, match=r"cannot be stacked.*x: unknown, 40 columns; y: outputs, another probe"):
        joint_trajectories({"x": a, "y": other})
    with pytest.raises(ValueError, match="needs a run"):
        joint_trajectories({})
    with pytest.raises(ValueError, match="two readings at least"):
        joint_trajectories({"x": rows_of(a.values[:1])})
    with pytest.raises(ValueError, match="rows of x are not finite"):
        joint_trajectories({"x": rows_of(a.values / 0)})
    with pytest.raises(ValueError, match="do not differ"):
        joint_trajectories({"x": rows_of(torch.ones(4, 3))})


def test_speed_is_distance_per_log_step() -> None:
    """Along ``log(1 + s)`` at constant rate the speed is that rate, wherever the readings are."""
    steps = [0, 1, 3, 10, 200]
    path = torch.tensor(steps).double().log1p()[:, None] * torch.tensor([3.0, -3.0, 3.0]).double()
    found = speeds(rows_of(path, steps))
    assert math.isnan(found[0])
    assert found[1:].tolist() == pytest.approx([3.0] * 4)


@pytest.mark.parametrize("dimensions", [2, 3, 7])
def test_curvature_of_a_circle(dimensions: int) -> None:
    """Equal steps of angle h on radius R: ``r' = R sin h``, ``r'' = −2R(1 − cos h)`` across it."""
    radius, h = 2.5, 0.2
    angle = torch.arange(12).double() * h
    circle = radius * torch.stack([angle.cos(), angle.sin()], 1)
    place = torch.arange(dimensions).double()
    turned = torch.cat([circle, torch.zeros(12, dimensions - 2).double()], 1) @ rotation(dimensions) + place
    found = osculation(turned)
    curvature = 2 * (1 - math.cos(h)) / math.sin(h) ** 2 / radius
    assert found.curvature[1:-1].tolist() == pytest.approx([curvature] * 10)
    assert bool(found.curvature[[0, -1]].isnan().all())
    # The circle of that radius through each point, with its centre on the point's own radius.
    gap = (found.centres[1:-1] - place).norm(dim=1)
    assert gap.tolist() == pytest.approx([abs(radius - 1 / curvature)] * 10)
    assert not forms(turned)


def test_curvature_of_a_helix() -> None:
    """``κ = a / (a² + b²)``, and the error falls with the square of the step."""
    a, b = 2.0, 0.7
    errors = []
    for h in (0.1, 0.05):
        t = torch.arange(9).double() * h
        helix = torch.stack([a * t.cos(), a * t.sin(), b * t], 1) @ rotation(3)
        errors.append(float((osculation(helix).curvature[4] - a / (a**2 + b**2)).abs()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.02)
    assert errors[1] < 0.05**2


def test_curvature_scales_as_one_over_length_and_knows_no_units_of_time() -> None:
    def curve(t: Tensor) -> Tensor:
        return torch.stack([t, t**3, t.sin()], 1)

    around = torch.tensor([-1.0, 0.0, 1.0]).double() * 1e-3
    here = float(osculation(curve(1.5 + around)).curvature[1])
    assert float(osculation(8 * curve(1.5 + around)).curvature[1]) == here / 8
    later = (1.5 ** (2 / 3) + around) ** 1.5  # the same place, passed at another speed
    assert float(osculation(curve(later)).curvature[1]) == pytest.approx(here, rel=1e-5)  # error 1e-6


def test_a_straight_line_has_no_turn() -> None:
    line = torch.arange(8).double()[:, None] * torch.tensor([1.0, 2.0]).double()
    assert osculation(line).curvature[1:-1].tolist() == [0.0] * 6
    assert not forms(line)
    assert len(osculation(line[:2]).curvature) == 2


def test_vertices_of_an_ellipse_are_its_ends() -> None:
    """Curvature ``ab / (a² sin² + b² cos²)^{3/2}``: largest, a/b², at the ends of the long axis."""
    angle = torch.arange(-30, 231).double() * math.pi / 180
    ellipse = torch.stack([2 * angle.cos(), angle.sin()], 1)
    found = forms(ellipse)
    assert [(form.kind, form.index) for form in found] == [("vertex", 30), ("vertex", 210)]
    assert found[0].curvature == pytest.approx(2.0, rel=1e-3)  # error of the differences, (π/180)²
    assert found[0].turning == pytest.approx(2.0, rel=1e-2)  # arc π/180 · b at curvature a/b²


def test_a_turn_back_is_a_cusp() -> None:
    """The semicubical parabola ``(t², t³)`` at its cusp."""
    t = torch.arange(-10, 11).double() / 10 + 0.03
    found = [form for form in forms(torch.stack([t**2, t**3], 1)) if form.kind == "cusp"]
    assert [form.index for form in found] == [10]
    assert found[0].turning > 90


def test_smoothing_is_a_gaussian_mean() -> None:
    line = torch.arange(41).double()[:, None] * torch.tensor([1.0, 2.0]).double()
    assert torch.equal(smoothed(line, 0), line)
    assert torch.allclose(smoothed(line, 1.5)[15:-15], line[15:-15], atol=1e-9)
    weights = smoothed(torch.eye(9), 2.0)
    assert torch.allclose(weights.sum(1), torch.ones(9).double())
    assert [float(weights[0, k] / weights[0, 0]) for k in range(4)] == pytest.approx(
        [math.exp(-(k**2) / 8) for k in range(4)]
    )


def walk() -> Rows:
    return rows_of(torch.randn(60, 5000, generator=torch.Generator().manual_seed(0)).cumsum(0))


def one_way() -> Rows:
    """Every output rises from 0 to 1 for good, each at a rate of its own: nothing turns."""
    t, rates = torch.linspace(0, 6, 60).double(), torch.logspace(-1, 0.5, 200).double()
    values = 1 - (-rates * t[:, None]).exp()
    assert bool((values.diff(dim=0) > 0).all())
    return rows_of(values)


def test_components_of_a_random_walk_are_a_lissajous_figure() -> None:
    """The artefact: a walk without any structure has half-wave cosines, with the shares of theory, and turns."""
    joint = joint_trajectories({"walk": walk()}, axes=3)
    points = joint.points["walk"]
    eigenvalues = [1 / (2 * math.sin(math.pi * k / 120)) ** 2 for k in range(1, 60)]
    theory = torch.tensor(eigenvalues[:3]).double() / sum(eigenvalues)
    assert theory.tolist() == pytest.approx([6 / (math.pi * k) ** 2 for k in (1, 2, 3)], rel=(3 * math.pi / 120) ** 2)
    # Means over 5000 independent coordinates: a relative standard deviation of √(2/5000).
    assert torch.allclose(joint.shares, theory, rtol=4 * math.sqrt(2 / 5000))
    assert bool((lissajous(points) > 0.95).all())
    assert forms(smoothed(points, 1.0))  # turns of what has none
    assert "with those of a random walk: 1.00, 1.00" in how_to_read(joint)


def test_a_curve_that_never_turns_seems_to_oscillate() -> None:
    """Smooth and one way in every output, and yet axis 2 comes and goes, axis 3 twice."""
    points = joint_trajectories({"x": one_way()}).points["x"]
    turns = [int((points[:, axis].diff().sign().diff() != 0).sum()) for axis in range(3)]
    assert turns == [0, 1, 2]


def test_a_cosine_of_another_frequency_is_no_lissajous() -> None:
    t = (torch.arange(50).double() + 0.5) / 50
    assert float(lissajous((math.pi * t).cos()[:, None])) == pytest.approx(1, abs=1e-12)
    assert float(lissajous((2 * math.pi * t).cos()[:, None])) == pytest.approx(0, abs=1e-12)


def test_the_warning_stands_beside_picture_and_table() -> None:
    joint = joint_trajectories({"walk": walk()}, references={"start": walk().values[0], "zero": torch.zeros(5000)})
    found = {"walk": forms(smoothed(joint.points["walk"], 1.0))}
    table = forms_table(joint, found)
    assert HOW_TO_READ in table
    assert "of the squared distances of references" in table.lower()
    assert all(f"| walk | {form.index} | {form.kind} |" in table for form in found["walk"])
    figure = trajectory_figure(joint, found=found, title="a walk")
    assert "Lissajous" in figure._supxlabel.get_text().replace("\n", " ")
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert texts.count("start") == 2
    assert texts.count("zero") == 2


def test_pictures_of_several_runs_and_of_a_line() -> None:
    several = joint_trajectories(random_rows(5, 6))
    figure = trajectory_figure(several)
    assert [t.get_text() for t in figure.axes[1].get_legend().get_texts()] == ["0", "1"]
    line = joint_trajectories({"x": rows_of(torch.arange(4.0)[:, None] * torch.ones(3))})
    assert len(trajectory_figure(line).axes) == 2  # one panel and its colour bar
    assert "No cusp and no vertex" in forms_table(line, {"x": []})
