"""The process that one contender runs in: reads a spec, then answers commands, one JSON object a line.

Every contender has an interpreter of its own, so a peer's packages never meet ours and the memory of one is not
charged to another. The process stays up for the whole case, so that the driver can interleave short timed runs of all
contenders: a machine that slows down for a while slows them all.

    python -m benchmarks.chain_speed.worker '{"contender": "bare", "case": "mlp-small", …}'

Commands on standard input: `{"do": "run", "steps": 100, "burnin": 0, "seed": 0}` and `{"do": "profile", "steps": 50}`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from benchmarks.chain_speed.cases import CASES, Batch, Case


@dataclass(frozen=True)
class Spec:
    """What the driver asks of one worker.

    Attributes:
        contender: Name of a module in `benchmarks.chain_speed.contenders`.
        case: Key of `CASES`.
        anchor: File with the trained weights and the data.
        device: Torch device of the network and the data.
        threads: Threads of torch in this process.
        options: Keyword arguments of the contender.
    """

    contender: str
    case: str
    anchor: str
    device: str
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """The loaded problem: the case, the network at the anchor, the training set and its mean loss at the anchor.

    The clock gives processor time where one thread of a CPU does all the work, else the time on the wall. Nothing
    waits on one thread, so on an idle machine both agree; on a busy one, what other processes take is left out.
    """

    case: Case
    module: nn.Module
    data: Batch
    anchor_loss: float
    device: torch.device
    clock: Callable[[], float]


class Contender(Protocol):
    """Something that takes steps of all chains of a case."""

    def run(self, *, num_steps: int, num_burnin: int, seed: int) -> dict[str, Any]:
        """Takes `num_burnin` and then `num_steps` steps with every chain; returns what it estimated, if anything."""
        ...


def load_problem(spec: Spec) -> Problem:
    """Reads the anchor file that the driver wrote and puts everything on the device."""
    case, device = CASES[spec.case], torch.device(spec.device)
    stored = torch.load(spec.anchor, map_location=device)
    module = case.build().to(device)
    module.load_state_dict(stored["state"])
    alone = device.type == "cpu" and spec.threads == 1 and "cores" not in spec.options
    clock = time.process_time if alone else time.perf_counter
    return Problem(case, module, tuple(stored["data"]), stored["loss"], device, clock)


def synchronize(device: torch.device) -> None:
    """Waits for the accelerator, so that a clock read afterwards counts its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Growth of the peak memory over what was in use when this was made: imports, network and data are not counted.

    On CUDA the caching allocator's peak, else the resident set of this process, to which the largest resident set of a
    child process is added `num_children` times.
    """

    def __init__(self, device: torch.device, *, num_children: int = 0) -> None:
        self.device, self.num_children = device, num_children
        self.forget()
        self.before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _resident_peak()

    def forget(self) -> None:
        """Forget peaks so far; growth still counts from construction."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            _reset_resident_peak()

    def growth(self) -> int:
        """Bytes since construction."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * _MAXRSS_UNIT
        return _resident_peak() - self.before + self.num_children * children


_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024


def _reset_resident_peak() -> None:
    # Linux forgets the peak of the imports when 5 is written here; elsewhere the peak so far is the baseline.
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _resident_peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS_UNIT


def timed_run(contender: Contender, command: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """Runs one command under the clock."""
    synchronize(problem.device)
    start = problem.clock()
    result = contender.run(num_steps=command["steps"], num_burnin=command.get("burnin", 0), seed=command["seed"])
    synchronize(problem.device)
    return {"seconds": problem.clock() - start, "result": result}


def answer(contender: Contender, command: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """The reply to one command."""
    if command["do"] == "profile":
        from benchmarks.chain_speed.profiling import profile

        return profile(contender, command["steps"], problem)
    return timed_run(contender, command, problem)


def serve(spec: Spec) -> None:
    """Answers commands until standard input closes."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever a contender prints must not mix with the replies
    warnings.simplefilter("ignore")
    torch.set_num_threads(spec.threads)
    problem = load_problem(spec)
    build = importlib.import_module(f"benchmarks.chain_speed.contenders.{spec.contender}").build
    contender: Contender = build(problem, **spec.options)
    memory = PeakMemory(problem.device, num_children=spec.options.get("cores", 1) if "cores" in spec.options else 0)
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), file=replies, flush=True)
    for line in sys.stdin:
        reply = answer(contender, json.loads(line), problem) | {"peak_bytes": memory.growth()}
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    serve(Spec(**json.loads(sys.argv[1])))
