"""Boundaries and stages of curves: exact smoothing, known plateaus, errors from chains, and what has none."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from benchmarks.stages import HALF_SLOPE, WIDTH, WITHIN, WITHOUT, false_alerts, follow, readings, steps_curve
from lightning_slt.analysis.announcing import Alarm, Alert, Follower, Row
from lightning_slt.analysis.smoothing import MEDIAN_CHI2, Errors, errors_of, local_fit, scatter
from lightning_slt.analysis.stages import Boundary, Detector, Series, stages

NONE = torch.empty(0, 0, dtype=torch.float64)


def exact(count: int) -> Errors:
    return Errors(torch.zeros(count, dtype=torch.float64), torch.zeros(count, 0, dtype=torch.float64))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_smoothing_is_weighted_least_squares() -> None:
    x, y, stderr = normal(12).sort().values, normal(12, seed=1), normal(12, seed=2).abs() + 0.1
    fit = local_fit(x, y, stderr, exact(12), at=x[3:4] + 0.01, bandwidth=0.5)
    w = (-((x - x[3] - 0.01) ** 2) / 0.5).exp() / stderr**2
    design = torch.stack([torch.ones(12, dtype=torch.float64), x - x[3] - 0.01], 1)
    a, b = torch.linalg.solve(design.T @ (w[:, None] * design), design.T @ (w * y))
    assert float(fit.level) == pytest.approx(float(a), abs=1e-10)
    assert float(fit.slope) == pytest.approx(float(b), abs=1e-10)


def test_errors_of_slopes_and_differences_are_their_spread() -> None:
    """Over many series with chains that share an offset; the spread of a variance from n is √(2/n) of it."""
    x, repeats, chains = torch.linspace(0, 3, 16, dtype=torch.float64), 400, 4
    slopes, gaps, told = [], [], []
    for seed in range(repeats):
        per_chain = normal(16, chains, seed=seed) + 5 * normal(1, chains, seed=9999 + seed)
        y, stderr = per_chain.mean(1), per_chain.std(1) / math.sqrt(chains)
        errors = errors_of(x, y, stderr, per_chain)
        fit = local_fit(x, y, torch.ones_like(x), errors, at=x[[4, 11]], bandwidth=0.4)
        gap, gap_error = fit.difference(0, 1)
        slopes.append(float(fit.slope[0])), gaps.append(gap)
        told.append((float(fit.slope_stderr[0]) ** 2, gap_error**2))
    for values, mean in zip((slopes, gaps), torch.tensor(told).mean(0).tolist(), strict=True):
        spread = float(torch.tensor(values).var())
        # Never smaller than the spread; the larger of two estimates of it is at most their sum.
        assert 1 - 4 * math.sqrt(2 / repeats) < mean / spread < 2 + 4 * math.sqrt(2 / repeats)


def test_scatter_is_that_of_a_straight_line_with_noise() -> None:
    x = torch.linspace(0, 1, 4001, dtype=torch.float64)
    found = scatter(x, 3 * x + 0.5 * normal(4001), exact(4001))
    # A median of n of χ²₁ errs by 1/(2 f √n); neighbouring residuals share points, which at most doubles its variance.
    density = math.exp(-MEDIAN_CHI2 / 2) / math.sqrt(2 * math.pi * MEDIAN_CHI2)
    error = math.sqrt(3) / (2 * density * math.sqrt(3999)) / MEDIAN_CHI2
    assert abs(found / 0.25 - 1) < 4 * error
    assert scatter(x, 3 * x, exact(4001)) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("seed", range(4))
def test_exact_curves_have_exactly_their_boundaries(seed: int) -> None:
    curve = steps_curve(seed)
    x = torch.linspace(math.log(5), math.log(2000), 40, dtype=torch.float64)
    found = Detector().find(Series.of(x.exp(), curve.value(x)))
    assert [abs(math.log(b.step) - truth) <= WITHIN for b, truth in zip(found, curve.boundaries, strict=True)]
    for boundary in found:
        assert boundary.before < boundary.earliest <= boundary.step <= boundary.latest < boundary.after


def half_slope(bandwidth: float) -> float:
    """From the centre of a step to where it is half as steep, convolved with the kernel: what dense readings show."""
    u, v = torch.linspace(0, 2, 4001, dtype=torch.float64), torch.linspace(-6, 6, 2001, dtype=torch.float64)
    slope = ((u[:, None] - bandwidth * v) / (2 * WIDTH)).cosh() ** -2 @ (-v.square() / 2).exp()
    return float(u[slope >= slope[0] / 2].max())


@pytest.mark.parametrize("seed", range(4))
def test_plateaus_last_between_half_slopes_of_half_the_bandwidth(seed: int) -> None:
    curve, detector = steps_curve(seed), Detector(resolution=32)
    x = torch.linspace(math.log(5), math.log(2000), 1001, dtype=torch.float64)
    smeared = half_slope(detector.bandwidth / 2) - HALF_SLOPE
    assert smeared < (half_slope(detector.bandwidth) - HALF_SLOPE) / 2
    cell = detector.bandwidth / detector.resolution
    series = Series.of(x.exp(), curve.value(x))
    for found, (begins, ends) in zip(detector.find(series), curve.rests, strict=True):
        assert math.log(found.earliest) == pytest.approx(begins + smeared, abs=cell)
        assert math.log(found.latest) == pytest.approx(ends - smeared, abs=cell)
        assert found.step == pytest.approx(math.sqrt(found.earliest * found.latest), rel=1e-10)


def test_stages_from_ends_of_plateaus_have_the_changes_between_their_middles() -> None:
    """At the end of a plateau a smoothed curve has begun to rise; in its middle it has not."""
    curve = steps_curve(0)
    x = torch.linspace(math.log(5), math.log(2000), 201, dtype=torch.float64)
    series = Series.of(x.exp(), curve.value(x))
    middles, ends = Detector().find(series), Detector(mark="end").find(series)
    assert [b.step for b in ends] == [b.latest for b in middles]
    assert [b.middle for b in ends] == [b.step for b in middles]
    expected = stages(series, [b.step for b in middles])
    found = stages(series, [b.step for b in ends], rests=[b.middle for b in ends])
    assert [stage.change for stage in found] == [stage.change for stage in expected]
    assert [(a.end, b.start) for a, b in pairwise(found)] == [(b.latest, b.latest) for b in ends]
    with pytest.raises(ValueError, match="one rest for each of 2 boundaries, got 1"):
        stages(series, [b.step for b in ends], rests=[ends[0].middle])


@pytest.mark.parametrize("name", WITHOUT)
def test_exact_curves_without_boundary_have_none(name: str) -> None:
    x = torch.linspace(math.log(5), math.log(2000), 40, dtype=torch.float64)
    assert Detector().find(Series.of(x.exp(), WITHOUT[name](x))) == []
    assert Detector().find(Series.of(x.exp(), 1 / 3 + WITHOUT[name](x) / 7)) == []


def test_kinds_names_and_changes_of_stages() -> None:
    """Up, down, up by one, with a loss that falls in the first two stages only: the third is hidden."""
    x = torch.linspace(0, 9, 60, dtype=torch.float64)
    rise = [torch.sigmoid((x - centre) / 0.15) for centre in (1.5, 4.5, 7.5)]
    loss = 3 - rise[0] - rise[1] + 5e-3 * normal(60, seed=5)
    series = Series.of(x.exp(), rise[0] - rise[1] + rise[2] + 0.005 * normal(60), loss=loss)
    boundaries = Detector().find(series)
    assert [math.log(b.step) for b in boundaries] == pytest.approx([3.0, 6.0], abs=0.35)
    found = stages(series, [b.step for b in boundaries])
    assert [stage.name for stage in found] == ["A1", "B1", "A2"]
    for stage, truth in zip(found, (1, -1, 1), strict=True):
        assert abs(stage.change - truth) < 4 * stage.change_stderr
    assert [stage.hidden for stage in found] == [False, False, True]
    assert abs(found[0].loss_change + 1) < 4 * found[0].loss_change_stderr


def test_missing_readings_and_step_zero_are_left_out() -> None:
    curve = steps_curve(0)
    x = torch.linspace(math.log(5), math.log(2000), 41, dtype=torch.float64)
    values = curve.value(x)
    whole = Series.of(x.exp(), values)
    holes = values.clone()
    holes[::7] = math.nan
    with_zero = Series.of([0.0, *x.exp().tolist()], [99.0, *holes.tolist()])
    expected, found = Detector().find(whole), Detector().find(with_zero)
    assert [b.step for b in found] == pytest.approx([b.step for b in expected], rel=0.2)
    assert Detector().find(Series.of([1, 2, 3, 4], [1.0, 2.0, 1.0, 2.0])) == []
    assert stages(Series.of([0, 1], [1.0, 2.0]), []) == []


def test_series_are_checked() -> None:
    with pytest.raises(ValueError, match="steps must increase"):
        Series.of([1, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="2 steps need as many values"):
        Series.of([1, 2], [0.0])
    with pytest.raises(ValueError, match="bandwidth > 0"):
        Detector(bandwidth=0.0)
    with pytest.raises(ValueError, match="'middle' or 'end', got 'start'"):
        Detector(mark="start")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="window >= 4"):
        Alarm(window=3)


def test_online_finds_boundaries_soon_and_never_takes_them_back() -> None:
    """At 3 % noise and 30 readings; ten series have twenty boundaries."""
    found = truths = 0
    for seed in range(10):
        curve, follower, frozen = steps_curve(seed), Follower(), []
        for row in readings(curve.value, 30, 0.03, seed):
            news, _ = follower.take(row)
            frozen += news
            assert follower.announced == frozen
            assert all(a.boundary.step < a.step == row.step and 0 < a.delay < 10 for a in news)
        spots = [math.log(a.boundary.step / 1000) for a in frozen]
        truths += len(curve.boundaries)
        found += sum(any(abs(spot - t) <= WITHIN for spot in spots) for t in curve.boundaries)
        assert {a.boundary for a in frozen} <= set(follower.boundaries(final=True))
    # The page says 0.9 or more: 20 trials at 0.9 give fewer than 14 with probability below 0.003.
    assert truths == 20
    assert found >= 14


def test_few_false_boundaries() -> None:
    """Of 50 noisy series without a boundary; at 3 % each, more than 6 have probability below 0.001."""
    alarms = [
        follow(readings(curve, 30, noise, 1000 * which + 100 * k + seed), (), Detector()).found > 0
        for which, curve in enumerate(WITHOUT.values())
        for k, noise in enumerate((0.03, 0.1))
        for seed in range(500, 505)
    ]
    assert sum(alarms) <= 6


def test_false_alerts_are_bounded() -> None:
    """At level 5 % a run; of 60 runs more than 9 have probability below 0.001."""
    assert false_alerts(24, 0.03, 60, Alarm()) <= 9 / 60


def moving(count: int = 20, *, loss_falls: bool = False) -> list[Row]:
    """Flat, then λ̂ rises from the tenth reading on."""
    jitter = normal(2, count, seed=3)
    return [
        Row(
            index=k, step=10 * (k + 1), value=max(0, k - 10) + 0.05 * float(jitter[0, k]),
            loss=1 + 0.001 * float(jitter[1, k]) - (0.1 * max(0, k - 10) if loss_falls else 0),
        )
        for k in range(count)
    ]  # fmt: skip


def test_alerts_where_the_quantity_moves_and_the_loss_does_not() -> None:
    def alerts(rows: list[Row], **options: float) -> list[Alert]:
        follower = Follower(alarm=Alarm(**options))  # type: ignore[arg-type]
        return [alert for row in rows for alert in follower.take(row)[1]]

    first, *rest = alerts(moving())
    assert 110 < first.step <= 190
    assert first.change > 0 < first.score
    assert all(later.start >= first.step for later in rest)
    assert alerts(moving(loss_falls=True)) == []
    assert len(alerts(moving(loss_falls=True), loss_tolerance=10.0)) >= 1


def test_replaced_readings_and_states() -> None:
    """Readings made again stand in the place of the first ones, without a look in between; a state goes on alike."""
    rows = readings(steps_curve(1).value, 30, 0.03, 1)
    plain, again = Follower(alarm=Alarm()), Follower(alarm=Alarm())
    news = [plain.take(row) for row in rows]
    wrong = [Row(index=k, step=rows[k].step, value=float(k % 3)) for k in range(6)]
    for row in wrong:
        again.take(row)
    looks = again.looks
    for k in range(6):
        replaced = Row(**{**vars(rows[k]), "index": 100 + k, "revises": k})
        assert again.take(replaced) == ([], [])
    assert again.looks == looks
    heard = [again.take(Row(**{**vars(row), "index": 100 + row.index})) for row in rows[6:12]]
    assert torch.equal(again.series.values, Follower(rows={r.index: r for r in rows[:12]}).series.values)
    resumed = Follower(alarm=Alarm())
    resumed.load_state_dict(again.state_dict())
    for row in rows[12:]:
        later = Row(**{**vars(row), "index": 100 + row.index})
        heard.append(again.take(later))
        assert resumed.take(later) == heard[-1]
    assert [a.boundary for a in again.announced] == [a.boundary for a, _ in [(a, 0) for n, _ in news for a in n]]


def test_scatter_is_that_of_rows_of_all_points() -> None:
    """A twin that writes each pseudo-residual as a row of weights of all points."""
    x, y, per_chain = normal(40).sort().values, normal(40, seed=1), normal(40, 3, seed=2)
    known = Errors(0.01 * normal(40, seed=3).square(), 0.1 * per_chain)
    a = (x[2:] - x[1:-1]) / (x[2:] - x[:-2])
    rows = torch.diag_embed(-a, 0)
    weights = torch.nn.functional.pad(rows, (0, 2))
    weights += torch.nn.functional.pad(torch.eye(38, dtype=torch.float64), (1, 1))
    weights += torch.nn.functional.pad(torch.diag(a - 1), (2, 0))
    squares = (weights @ y).square()
    own = weights.square() @ known.own + (weights @ known.shared).square().sum(1)
    expected = ((squares / MEDIAN_CHI2 - own) / weights.square().sum(1)).quantile(0.5)
    assert expected > 0
    assert scatter(x, y, known) == pytest.approx(float(expected), abs=1e-12)


def test_many_readings_are_looked_at_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at n readings costs n: looking at every one of 10 000 would take most of a run. Boundaries are those of
    looking every time, known two looks later at most.
    """
    curve = steps_curve(0)
    steps = torch.arange(5, 2001, 2)
    values, noise = curve.value(steps.double().log()), 0.02 * normal(len(steps))
    rows = [
        Row(index=k, step=int(s), value=float(v), stderr=0.02, loss=1 / (k + 1))
        for k, (s, v) in enumerate(zip(steps, values + noise, strict=True))
    ]
    found, looks, find = {}, [], Detector.find

    def counted(detector: Detector, series: Series) -> list[Boundary]:
        looks.append(len(series.steps))
        return find(detector, series)

    monkeypatch.setattr(Detector, "find", counted)
    for many in (10**9, 100):
        monkeypatch.setattr("lightning_slt.analysis.announcing.MANY", many)
        looks.clear()
        follower = Follower(alarm=Alarm())
        for row in rows[:100] if many > 100 else rows:
            follower.take(row)
        if many > 100:
            assert len(looks) == 100
            for row in rows[100:]:
                follower.rows[row.index] = row
        else:
            assert len(looks) < 100 + 100 * (1 + math.log(len(rows) / 100)) * 1.2
        found[many] = follower.boundaries(final=True)
    assert len(found[100]) == len(curve.boundaries)
    for late, full in zip(found[100], found[10**9], strict=True):
        assert abs(math.log(late.step / full.step)) < WITHIN
