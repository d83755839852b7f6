"""How near the passes come to the device's arithmetic, and a sampler's update to its memory.

    python -m benchmarks.roofline                        # CPU, one thread
    python -m benchmarks.roofline --device cuda
    python -m benchmarks.roofline --cases mlp-wide --forms

Peaks are measured: the fastest of some products of two large square matrices in each precision, and of some copies of a
large buffer. Passes: operations of one chain's plain forward and backward pass, as `torch.utils.flop_counter` counts
them (products, convolutions, attention where it has a formula), times chains, over the time of the passes as a reading
runs them. Update: a step of SGLD with the noise drawn already; it reads and writes eight numbers a coordinate (pull to
the anchor two, gradient three, noise three) where three would do. A share above 1 says that rows stay in the cache.
Noise is timed apart.

`--forms` compares the update with two others: gradients added by one `torch._foreach_add_`, and everything compiled
into one kernel by `torch.compile`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from torch import Tensor
from torch.utils.data import TensorDataset
from torch.utils.flop_counter import FlopCounterMode

import lightning_slt as slt
from benchmarks.chain_speed.cases import CASES, per_sample_loss
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.measure import write_anchor
from benchmarks.chain_speed.report import align
from benchmarks.chain_speed.worker import Problem, Spec, load_problem, synchronize
from lightning_slt.batches import ChainBatch
from lightning_slt.data import Streams, load_data
from lightning_slt.functional import ModuleLoss
from lightning_slt.isolation import isolated
from lightning_slt.passes import CHECKS, Passes, SequentialPasses, VectorizedPasses
from lightning_slt.posterior import Evaluation, Gradient
from lightning_slt.precision import Precision, forward_context
from lightning_slt.preflight import choose_route
from lightning_slt.sampling import ChainNoise
from lightning_slt.types import Product

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MOVED = 8
"""Numbers that an update reads and writes for each coordinate."""

Clock = Callable[[], float]


class Timer:
    """Seconds of a call.

    Args:
        device: Waited for before the clock is read.
        clock: Processor time for one thread of a CPU, else that on the wall.
        seconds: Aimed length of a measurement.
    """

    def __init__(self, device: torch.device, clock: Clock, seconds: float) -> None:
        self.device, self.clock, self.seconds = device, clock, seconds

    def __call__(self, work: Callable[[], Any], *, repeats: int = 5) -> list[float]:
        """One value a repeat, after as many calls as fill its share of the time."""
        work()
        calls = max(1, int(self.seconds / repeats / max(self._time(work, 1), 1e-7)))
        return [self._time(work, calls) for _ in range(repeats)]

    def _time(self, work: Callable[[], Any], calls: int) -> float:
        synchronize(self.device)
        began = self.clock()
        for _ in range(calls):
            work()
        synchronize(self.device)
        return (self.clock() - began) / calls


def peaks(timer: Timer, precisions: Sequence[Precision]) -> dict[str, float]:
    """Operations a second by precision, and bytes a second of ``copy``."""
    large = timer.device.type == "cuda"
    size, buffer = (8192, 2**30) if large else (512, 2**26)
    left, right = (torch.randn(size, size, device=timer.device) for _ in range(2))
    found: dict[str, float] = {}
    for precision in precisions:
        with forward_context(precision, timer.device.type):
            a, b = (m.bfloat16() if precision == "bf16" else m for m in (left, right))
            found[precision] = 2 * size**3 / min(timer(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    source, target = (torch.empty(buffer // 4, device=timer.device).fill_(1.0) for _ in range(2))
    found["copy"] = 2 * buffer / min(timer(lambda: target.copy_(source)))
    return found


@dataclass(frozen=True)
class Setup:
    """Chains of a case at their anchor, on the route that a reading takes."""

    posterior: slt.LocalPosterior
    position: Tensor
    passes: Passes
    batch: ChainBatch
    route: str

    @property
    def dense(self) -> Gradient:
        """The gradient leaf by leaf, without what a recording hands on as factors."""
        _, gradient = VectorizedPasses(self.posterior, self.position).loss_and_gradient(self.batch)
        return gradient


def set_up(problem: Problem, precision: Precision) -> Setup:
    """Call inside ``isolated``."""
    case = problem.case
    loss = ModuleLoss(problem.module, per_sample_loss, precision=precision)
    posterior = slt.LocalPosterior(
        loss=loss,
        anchor=dict(loss.weights),
        nbeta=case.nbeta,
        localization=case.localization,
        precision=precision,
    )
    config = slt.SamplingConfig(num_chains=case.num_chains, batch_size=case.batch_size)
    data, chains = load_data(TensorDataset(*problem.data)), range(case.num_chains)
    streams = Streams(len(data), batch_size=case.batch_size, seed=0, chains=tuple(chains), share_batches=False)
    batch = data.chain_batch(streams.next())
    route = choose_route(posterior, batch, config).chain_method
    position = posterior.anchor_row.repeat(case.num_chains, 1)
    kind = SequentialPasses if route == "sequential" else VectorizedPasses
    passes = kind(posterior, position, record=True)
    for _ in range(CHECKS + 1):
        passes.loss_and_gradient(batch)
    return Setup(posterior, position, passes, batch, route)


def operations(setup: Setup) -> int:
    """Of forward and backward passes of all chains."""
    alone = SequentialPasses(setup.posterior, setup.position[:1].clone())
    with FlopCounterMode(display=False) as counter:
        alone.loss_and_gradient(setup.batch.rows(0, 1))
    return int(counter.get_total_flops()) * len(setup.position)


def pass_of(setup: Setup) -> Callable[[], None]:
    """One pass, with the products that a recording hands on as factors."""

    def run() -> None:
        _, gradient = setup.passes.loss_and_gradient(setup.batch)
        for part in gradient.parts:
            if isinstance(part.values, Product):
                _ = part.values.dense

    return run


class Drawn:
    """Noise that was drawn before."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def normals(self) -> Tensor:
        """The same each time."""
        return self.rows

    def uniforms(self) -> Tensor:
        """Not used by SGLD."""
        raise NotImplementedError


def forms_of_update(setup: Setup, noise: Tensor, step_size: float, *, others: bool) -> dict[str, Callable[[], Any]]:
    """SGLD's update as it is written, and two others where they are asked for."""
    posterior, gradient, w = setup.posterior, setup.dense, setup.position
    again = lambda: setup.passes.loss_and_gradient(setup.batch)  # noqa: E731
    here = Evaluation(posterior=posterior, loss=torch.zeros(len(w)), gradient=gradient, again=again)
    sampler = slt.SGLD(step_size=step_size)
    state = sampler.init(w, Drawn(noise))
    written = {"as written": lambda: sampler.step(state, here, Drawn(noise))}
    if not others:
        return written
    pull, push = step_size / 2 * posterior.localization, -step_size / 2 * posterior.nbeta
    views = [w[:, part.leaf.start : part.leaf.stop].view_as(part.values) for part in gradient.parts]  # type: ignore[arg-type]
    values: list[Any] = [part.values for part in gradient.parts]
    anchor, root = posterior.anchor_row, step_size**0.5

    def foreach() -> None:
        w.lerp_(anchor, pull)
        torch._foreach_add_(views, values, alpha=push)
        w.add_(noise, alpha=root)

    def whole(w: Tensor, anchor: Tensor, values: Sequence[Tensor], noise: Tensor) -> None:
        rows = torch.cat([value.flatten(1) for value in values], 1)
        w.copy_(torch.lerp(w, anchor, pull) + push * rows + root * noise)

    compiled = torch.compile(whole)
    return {**written, "foreach": foreach, "compiled": lambda: compiled(w, anchor, values, noise)}


def measure(problem: Problem, precision: Precision, timer: Timer, peak: dict[str, float], forms: bool) -> Any:
    """One row of the table; times are medians, all of them in the result."""
    with isolated(problem.module, seed=0):
        setup = set_up(problem, precision)
        flops, passes = operations(setup), timer(pass_of(setup))
        source = ChainNoise(range(len(setup.position)), like=setup.position, seed=0)
        drawing, noise = timer(source.normals), source.normals().clone()
        works = forms_of_update(setup, noise, problem.case.step_size, others=forms)
        updates = {"as written": timer(works.pop("as written"))}
    with torch.no_grad():  # outside `isolated`, which makes compiled code run eagerly
        updates |= {name: timer(work) for name, work in works.items()}
    coordinates = setup.position.numel()
    moved = MOVED * 4 * coordinates / median(updates["as written"])
    return {
        "route": setup.route,
        "coordinates": coordinates,
        "flops": flops,
        "passes_seconds": passes,
        "share_of_peak": flops / median(passes) / peak[precision],
        "update_seconds": updates,
        "share_of_bandwidth": moved / peak["copy"],
        "noise_seconds": drawing,
    }


def cells(name: str, precision: str, row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    passes, noise = median(row["passes_seconds"]), median(row["noise_seconds"])
    updates = [f"{1e6 * median(times):.0f}" for times in row["update_seconds"].values()]
    return (name, precision, row["route"], f"{row['flops'] / 1e9:.3g}", f"{1e3 * passes:.2f}",
            f"{row['share_of_peak']:.1%}", f"{1e6 * noise:.0f}", updates[0], f"{row['share_of_bandwidth']:.0%}",
            *updates[1:])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; writes JSON for complete runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="+", choices=CASES)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="by default all, on a CPU without tf32")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--forms", action="store_true", help="time the update in other forms too")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind = torch.device(asked.device).type
    precisions: list[Precision] = asked.precisions or [p for p in PRECISIONS if kind != "cpu" or p != "tf32"]
    names = asked.cases or [name for name, case in CASES.items() if kind in case.devices]
    machine = describe(asked.device, 1)
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    found: dict[str, Any] = {}
    rows: list[tuple[str, ...]] = [
        ("case", "passes in", "route", "GFLOP", "ms", "of peak", "noise us", "update us", "of bandwidth")
    ]
    rows[0] += ("foreach us", "compiled us") if asked.forms else ()
    peak: dict[str, float] = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            anchor = write_anchor(CASES[name], Path(folder), asked.device)
            problem = load_problem(Spec("ours", name, str(anchor), asked.device, 1))
        timer = Timer(problem.device, problem.clock, asked.seconds)
        peak = peak or peaks(timer, precisions)
        for precision in precisions:
            row = measure(problem, precision, timer, peak, asked.forms)
            found.setdefault(name, {})[precision] = row
            rows.append(cells(name, precision, row))
    print("peaks: " + ", ".join(f"{p} {peak[p] / 1e9:.4g} GFLOP/s" for p in precisions), end="")
    print(f", copy {peak['copy'] / 1e9:.3g} GB/s\n" + align(rows))
    path = asked.output
    if path is None and not asked.cases and not asked.precisions:
        path = RESULTS / f"roofline-{slug(hardware_name(asked.device))}.json"
    if path is not None:
        path.write_text(json.dumps({"machine": machine, "peaks": peak, "cases": found}, indent=1) + "\n")
        print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
