"""Work of several contenders, each in an interpreter of its own, timed while they take turns.

A contender is a module with `prepare(question, **options)`, which loads everything and returns `run(small)`: the work
itself, on the whole question or on a small version of it. `run(small=True)` comes first and is not timed, so that
imports, first calls and compiled kernels of nobody count; then `run(small=False)` under both clocks. The question and
the answer are files, so a peer's packages are never imported beside ours, nor its memory charged to another.

    python -m benchmarks.turns FOLDER        # what `run` starts, not for users
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.chain_speed.worker import PeakMemory

ROOT = Path(__file__).resolve().parents[1]

Answer = Mapping[str, Tensor]
Work = Callable[[bool], Answer]
"""What `prepare` returns: the work, small or whole."""


@dataclass(frozen=True)
class Contender:
    """Who works, and in which interpreter.

    Attributes:
        python: The interpreter.
        module: Has `prepare`.
        options: What is passed to it besides the question.
    """

    python: Path
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One timed run.

    Attributes:
        answer: What the work gave.
        wall: Seconds on the wall.
        processor: Seconds of the processor, of all threads; what other processes take is left out.
        peak_bytes: Growth of the peak memory over the loaded and warmed-up process.
    """

    answer: Answer
    wall: float
    processor: float
    peak_bytes: int


def run(contender: Contender, question: Mapping[str, Any], *, threads: int = 1) -> Run:
    """Let a contender work on a question.

    Raises:
        RuntimeError: If its process failed; with the end of what it wrote.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(dict(question), folder / "question.pt")
        order = {"module": contender.module, "options": dict(contender.options), "threads": threads}
        (folder / "order.json").write_text(json.dumps(order))
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
        command = [str(contender.python), "-m", "benchmarks.turns", name]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{contender.module} failed: {done.stderr.strip()[-1500:]}")
        found = torch.load(folder / "answer.pt")
    return Run(found["answer"], found["wall"], found["processor"], found["peak_bytes"])


def take_turns(names: Sequence[str], repeats: int) -> Iterator[tuple[int, str]]:
    """Every name once a repeat, each repeat beginning with another, so that none always follows the same.

    >>> list(take_turns(["a", "b"], 2))
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    for repeat in range(repeats):
        shift = repeat % len(names)
        yield from ((repeat, name) for name in [*names[shift:], *names[:shift]])


def ratios(runs: Sequence[Run], others: Sequence[Run], clock: str = "processor") -> list[float]:
    """Time of each run over that of the other one in the same repeat."""
    return [getattr(a, clock) / getattr(b, clock) for a, b in zip(runs, others, strict=True)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Median and range in one cell.

    >>> spread([1.0, 3.0, 2.0])
    '2.00 (1.00 to 3.00)'
    """
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def timings(runs: Sequence[Run]) -> dict[str, Any]:
    """All that was measured, for the results file."""
    return {
        "wall_seconds": [r.wall for r in runs],
        "processor_seconds": [r.processor for r in runs],
        "peak_bytes": [r.peak_bytes for r in runs],
    }


def main(name: str) -> None:
    """What runs in the contender's interpreter."""
    folder = Path(name)
    order = json.loads((folder / "order.json").read_text())
    warnings.simplefilter("ignore")
    torch.set_num_threads(order["threads"])
    work: Work = importlib.import_module(order["module"]).prepare(
        torch.load(folder / "question.pt"), **order["options"]
    )
    work(True)
    memory = PeakMemory(torch.device("cpu"))
    wall, processor = time.perf_counter(), time.process_time()
    answer = work(False)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    torch.save(
        {"answer": dict(answer), "wall": wall, "processor": processor, "peak_bytes": memory.growth()},
        folder / "answer.pt",
    )


if __name__ == "__main__":
    main(sys.argv[1])
