"""How well stages are found: synthetic curves with known boundaries, and curves that have none.

`python -m benchmarks.stages` prints the tables of docs/stages.md and writes `benchmarks/results/stages.json`; seeds are
fixed. Curves are steps of a quantity in log t, measured by four chains that share an offset over the whole run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_slt.analysis.announcing import Alarm, Follower, Row
from lightning_slt.analysis.stages import Detector

FIRST, LAST, CHAINS = 5, 2000, 4
WIDTH, APART = 0.18, 1.9
"""Scale of a step, whose middle 80 % take 4.4 of it, and the distance of two steps, both in log t."""

WITHIN = 0.35
"""Log t between a true boundary and the one found that counts for it."""


HALF_SLOPE = 2 * math.acosh(math.sqrt(2)) * WIDTH
"""From the centre of a step to where it is half as steep: sech²(u/2) is a half."""


class Curve(NamedTuple):
    """A curve without noise, as a function of log t; in log t its true boundaries, and where it comes to rest there."""

    value: Callable[[Tensor], Tensor]
    boundaries: tuple[float, ...]
    rests: tuple[tuple[float, float], ...]


def steps_curve(seed: int) -> Curve:
    """Three steps of height 0.6 to 1.4, each a rise, or a fall with probability 0.3; two plateaus between them."""
    g = torch.Generator().manual_seed(seed)
    start, size = (
        math.log(FIRST) + 1.0 + 0.4 * float(torch.rand(1, generator=g)),
        0.6 + 0.8 * torch.rand(3, generator=g),
    )
    heights = torch.where(torch.rand(3, generator=g) < 0.3, -size, size).double()
    centres = start + APART * torch.arange(3, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        return (heights * torch.sigmoid((x[:, None] - centres) / WIDTH)).sum(1)

    grid = torch.linspace(float(centres[0]), float(centres[-1]), 4001, dtype=torch.float64)
    speed = value(grid).diff().abs()
    truth = [
        float(grid[:-1][inside][speed[inside].argmin()])
        for left, right in itertools.pairwise(centres)
        for inside in [(grid[:-1] > left) & (grid[:-1] < right)]
    ]
    rests = [(a + HALF_SLOPE, b - HALF_SLOPE) for a, b in itertools.pairwise(centres.tolist())]
    return Curve(value, tuple(truth), tuple(rests))


SPAN = math.log(LAST) - math.log(FIRST)
WITHOUT: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda x: torch.zeros_like(x),
    "growing with log t": lambda x: (x - math.log(FIRST)) / SPAN,
    "growing with √t": lambda x: (x / 2 - math.log(LAST) / 2).exp(),
    "saturating": lambda x: 1 - (-x.exp() / 100).exp(),
    "one step": lambda x: torch.sigmoid((x - math.log(100)) / WIDTH),
}
"""Curves without a boundary, of height one."""


def readings(curve: Callable[[Tensor], Tensor], count: int, noise: float, seed: int, *, loss: bool = True) -> list[Row]:
    """Log-spaced readings; the chains' offsets are three times as large as the noise of a reading."""
    g = torch.Generator().manual_seed(10_000 + seed)  # callers give every series its own
    x = torch.linspace(math.log(FIRST), math.log(LAST), count, dtype=torch.float64)
    offset = 3 * noise * torch.randn(CHAINS, generator=g, dtype=torch.float64)
    each = noise * math.sqrt(CHAINS) * torch.randn(count, CHAINS, generator=g, dtype=torch.float64)
    per_chain = curve(x)[:, None] + each + offset
    losses = 0.01 * torch.randn(count, generator=g, dtype=torch.float64)
    return [
        Row(
            index=k, step=round(math.exp(float(x[k])) * 1000), value=float(values.mean()),
            stderr=float(values.std()) / math.sqrt(CHAINS), loss=float(losses[k]) if loss else math.nan,
            per_chain=tuple(values.tolist()),
        )
        for k, values in enumerate(per_chain)
    ]  # fmt: skip


class Outcome(NamedTuple):
    """Of one series: true boundaries, those found among them, all found, and the delays in readings."""

    truths: int
    hits: int
    found: int
    delays: tuple[int, ...]


def follow(rows: list[Row], truths: tuple[float, ...], detector: Detector) -> Outcome:
    """Feed a series reading by reading. A delay counts readings after the TRUE boundary, up to the announcing one."""
    follower, delays, hit = Follower(detector=detector), [], set()
    for row in rows:
        for announced, _, _ in follower.take(row)[0]:
            spot = math.log(announced.step / 1000)
            near = [t for t in truths if abs(t - spot) <= WITHIN and t not in hit]
            if near:
                hit.add(near[0])
                delays.append(sum(math.exp(near[0]) * 1000 < r.step <= row.step for r in rows))
    return Outcome(len(truths), len(hit), len(follower.announced), tuple(delays))


def table_of_steps(detector: Detector, series: int) -> Iterator[dict[str, Any]]:
    """Recall, precision and delay for each noise and number of readings."""
    for noise in (0.01, 0.03, 0.1):
        for count in (20, 30, 40, 60):
            outcomes = []
            for seed in range(series):
                curve = steps_curve(seed)
                outcomes.append(follow(readings(curve.value, count, noise, seed), curve.boundaries, detector))
            truths, hits, found = (sum(getattr(o, name) for o in outcomes) for name in ("truths", "hits", "found"))
            delays = sorted(d for o in outcomes for d in o.delays)
            yield {
                "noise": noise, "readings": count, "recall": hits / truths,
                "precision": hits / found if found else math.nan,
                "median delay": delays[len(delays) // 2] if delays else math.nan,
                "largest delay": delays[-1] if delays else math.nan,
            }  # fmt: skip


def table_of_rests(detector: Detector, series: int) -> Iterator[dict[str, Any]]:
    """Mean error and spread, in log t, of where plateaus begin, have their step and end, in all readings together."""
    for noise in (0.01, 0.03, 0.1):
        for count in (20, 40, 60):
            errors = []
            for seed in range(series):
                curve = steps_curve(seed)
                follower = Follower(rows={row.index: row for row in readings(curve.value, count, noise, seed)})
                for b in detector.find(follower.series):
                    found = [math.log(step / 1000) for step in (b.earliest, b.step, b.latest)]
                    for middle, (first, last) in zip(curve.boundaries, curve.rests, strict=True):
                        if found[0] < last and found[2] > first:
                            errors.append([f - t for f, t in zip(found, (first, middle, last), strict=True)])
            table = torch.tensor(errors)
            shown = [f"{mean:+.2f} ± {spread:.2f}" for mean, spread in zip(table.mean(0), table.std(0), strict=True)]
            yield {"noise": noise, "readings": count, "found": len(errors)} | dict(
                zip(("begins", "step", "ends"), shown, strict=True)
            )


def table_without(detector: Detector, series: int) -> Iterator[dict[str, Any]]:
    """Share of series with at least one boundary announced, where there is none."""
    for which, (name, curve) in enumerate(WITHOUT.items()):
        for count in (20, 40, 60):
            alarms = [
                follow(
                    readings(curve, count, noise, 100_000 * which + 1000 * count + 300 * k + seed), (), detector
                ).found
                > 0
                for k, noise in enumerate((0.01, 0.03, 0.1))
                for seed in range(series)
            ]
            yield {"curve": name, "readings": count, "series": len(alarms), "false alarms": sum(alarms) / len(alarms)}


def false_alerts(count: int, noise: float, series: int, alarm: Alarm) -> float:
    """Share of flat series with a flat loss that raise an alert."""
    raised = 0
    for seed in range(series):
        follower = Follower(alarm=alarm)
        raised += any(follower.take(row)[1] for row in readings(WITHOUT["flat"], count, noise, seed))
    return raised / series


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table."""
    shown = [[f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = [list(rows[0]), ["---"] * len(rows[0]), *shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """All tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, default=12, help="per setting")
    parser.add_argument("--bandwidth", type=float, default=Detector().bandwidth)
    parser.add_argument("--z", type=float, default=Detector().z)
    parser.add_argument("--depth", type=float, default=Detector().depth)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/stages.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    detector = Detector(bandwidth=options.bandwidth, z=options.z, depth=options.depth)
    found = {
        "steps": list(table_of_steps(detector, options.series)),
        "rests": list(table_of_rests(detector, 3 * options.series)),
        "without": list(table_without(detector, options.series)),
        "alerts": [
            {"readings": n, "series": options.series, "false alerts": false_alerts(n, 0.03, options.series, Alarm())}
            for n in (20, 60)
        ],
    }
    for name, rows in found.items():
        print(f"\n{name}\n\n{markdown(rows)}", flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(
        json.dumps({"detector": {k: v for k, v in vars(options).items() if k != "out"}, **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
