"""Where the time of a contender goes: by phase of a step, by torch operation, and by function.

The phases come from Python's own profiler, as the time spent inside the functions that make up a phase; `rest` is what
none of them accounts for: the dispatch of `torch.vmap`, statistics, bookkeeping. That profiler slows Python code, not
torch's kernels, so phases of many small calls look larger than they are; the wall time without it stands beside. On
CUDA the phases are the time to launch the work, the operations the time of the kernels.
"""

from __future__ import annotations

import cProfile
import pstats
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from benchmarks.chain_speed.worker import Contender, Problem, timed_run

NUM_ROWS = 12

# (end of the file's path, function) of the outermost functions of each phase; "" is a function written in C.
FORWARD = (("chain_speed/cases.py", "mean_loss"), ("chain_speed/cases.py", "per_sample_loss"))
BACKWARD = (("torch/autograd/__init__.py", "grad"), ("torch/autograd/__init__.py", "backward"))
NOISE = (("", "'normal_' of 'torch"), ("", "torch.normal"), ("", "torch.randn"))
UPDATE = (
    ("optim/sgld.py", "step"),
    ("optim/sgmcmc.py", "step"),
    ("optim/sgd.py", "step"),
    ("samplers/sgld.py", "step"),
)
DATA = (("data/dataloader.py", "__next__"), ("lightning_slt/sampling.py", "_next_batch"))
PHASES = ("forward", "backward", "noise", "update", "data", "rest")


@dataclass(frozen=True)
class Function:
    """One function as the Python profiler saw it; seconds include the functions that it called."""

    file: str
    name: str
    seconds: float

    def is_one_of(self, patterns: tuple[tuple[str, str], ...]) -> bool:
        """Whether a pattern describes it; functions in C have no file and are matched by a part of their name."""
        if self.file == "~":
            return any(not file and name in self.name for file, name in patterns)
        return any(file and self.file.endswith(file) and self.name == name for file, name in patterns)


def profile(contender: Contender, num_steps: int, problem: Problem) -> dict[str, Any]:
    """Profiles warm runs of a contender.

    Returns:
        In seconds per chain-step: `phases`, by name; `operations`, the costliest torch operations without those they
        called; `functions`, the costliest of the contender's own functions with those they called; `seconds`, wall
        time without a profiler, and `profiled_seconds`, with Python's. All include the set-up of the call.
    """
    command = {"steps": num_steps, "seed": 0}
    timed_run(contender, command, problem)
    plain = timed_run(contender, command, problem)["seconds"]
    wall, functions = _python_profile(contender, command, problem)
    rows: dict[str, dict[str, float]] = {
        "phases": _phases(wall, functions),
        "operations": _operations(contender, command, problem),
        "functions": _largest(
            {_label(f): f.seconds for f in functions if "lightning_slt" in f.file or "devinterp" in f.file}
        ),
    }
    per_chain_step = 1 / (num_steps * problem.case.num_chains)
    scaled = {kind: {name: value * per_chain_step for name, value in row.items()} for kind, row in rows.items()}
    return scaled | {"seconds": plain * per_chain_step, "profiled_seconds": wall * per_chain_step}


def _python_profile(contender: Contender, command: dict[str, Any], problem: Problem) -> tuple[float, list[Function]]:
    profiler = cProfile.Profile()
    profiler.enable()
    wall = timed_run(contender, command, problem)["seconds"]
    profiler.disable()
    stats: dict[tuple[str, int, str], tuple[Any, ...]] = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    return wall, [Function(file, name, values[3]) for (file, _line, name), values in stats.items()]


def _phases(wall: float, functions: list[Function]) -> dict[str, float]:
    def total(patterns: tuple[tuple[str, str], ...]) -> float:
        return sum(function.seconds for function in functions if function.is_one_of(patterns))

    phases = {"forward": total(FORWARD), "backward": total(BACKWARD), "noise": total(NOISE), "data": total(DATA)}
    phases["update"] = max(0.0, total(UPDATE) - phases["noise"])  # samplers draw their noise inside the step
    phases["rest"] = max(0.0, wall - sum(phases.values()))
    return {name: phases[name] for name in PHASES}


def _operations(contender: Contender, command: dict[str, Any], problem: Problem) -> dict[str, float]:
    on_cuda = problem.device.type == "cuda"
    with torch_profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as profiler:
        timed_run(contender, command, problem)
    totals: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        totals[event.name] += (event.self_device_time_total if on_cuda else event.self_cpu_time_total) / 1e6
    return _largest(totals)


def _largest(rows: dict[str, float]) -> dict[str, float]:
    return dict(sorted(rows.items(), key=lambda row: -row[1])[:NUM_ROWS])


def _label(function: Function) -> str:
    return f"{Path(function.file).name}:{function.name}"
