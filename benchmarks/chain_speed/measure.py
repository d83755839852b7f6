"""The driver's side: workers, and timed runs of all contenders in turn.

A run of n steps costs set-up + n·(time per step). Each repeat times a short and a long run of every contender, one
contender after the other, and takes the difference: the marginal cost of a step. Ratios are formed within a repeat.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, median, variance
from types import TracebackType
from typing import Any

import torch

from benchmarks.chain_speed.cases import Case, mean_loss
from benchmarks.chain_speed.worker import Spec

ROOT = Path(__file__).resolve().parents[2]
FIRST_CALL_STEPS = 20
MAX_STEPS = 50_000


class WorkerError(RuntimeError):
    """A worker ended before it answered; the message is the end of what it wrote to standard error."""


@dataclass(frozen=True)
class Budget:
    """How long to measure.

    Attributes:
        repeats: Rounds over all contenders.
        seconds: Aimed length of the long run.
        accuracy_draws: Draws per chain of the runs that compare estimates, 0 to leave them out.
        accuracy_burnin: Burn-in of those runs.
        accuracy_seeds: Number of those runs.
    """

    repeats: int = 5
    seconds: float = 2.0
    accuracy_draws: int = 300
    accuracy_burnin: int = 150
    accuracy_seeds: int = 3


@dataclass(frozen=True)
class Accuracy:
    """Estimates of one contender over several independent runs with the same settings.

    Attributes:
        mean: Mean LLC of all chains of all runs.
        stderr: Standard error of `mean`, between chains within runs.
        run_stderr: Standard error of ONE run, pooled over the runs.
        degrees: Degrees of freedom behind the standard errors.
    """

    mean: float
    stderr: float
    run_stderr: float
    degrees: int


@dataclass
class Measurement:
    """Everything measured of one contender on one case; times in seconds for ONE step of ALL chains.

    Attributes:
        contender: Its name.
        step_seconds: Marginal time of a step, one value per repeat.
        setup_seconds: What a call costs beyond its steps, one value per repeat.
        first_call_seconds: The first call in a fresh interpreter, `FIRST_CALL_STEPS` steps, imports left out.
        peak_bytes: Growth of the peak memory over the loaded network and data.
        accuracy: Estimates, for contenders that estimate.
        profile: Result of `profiling.profile`, if asked for.
        error: Why there are no numbers.
    """

    contender: str
    step_seconds: list[float] = field(default_factory=list)
    setup_seconds: list[float] = field(default_factory=list)
    first_call_seconds: float = float("nan")
    peak_bytes: int = 0
    accuracy: Accuracy | None = None
    profile: dict[str, Any] | None = None
    error: str | None = None

    @property
    def cost(self) -> float:
        """Median marginal time of a step of all chains, NaN where there is none."""
        return median(self.step_seconds) if self.step_seconds else float("nan")


class Worker:
    """A running contender; a context manager that ends its process."""

    def __init__(self, python: Path, spec: Spec) -> None:
        self.stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the worker)
        self.process = subprocess.Popen(
            [str(python), "-m", "benchmarks.chain_speed.worker", json.dumps(asdict(spec))],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": str(spec.threads)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.stderr.close()

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Sends a command and waits for its reply."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the worker ended; the missing reply says why
        return self.reply()

    def run(self, steps: int, *, burnin: int = 0, seed: int = 0) -> dict[str, Any]:
        """One timed run."""
        return self.ask({"do": "run", "steps": steps, "burnin": burnin, "seed": seed})

    def reply(self) -> dict[str, Any]:
        """The next line of the worker."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.stderr.seek(0)
            raise WorkerError((self.stderr.read().strip().splitlines() or ["no message"])[-1])
        reply: dict[str, Any] = json.loads(line)
        return reply


def write_anchor(case: Case, folder: Path, device: str) -> Path:
    """Trains the network to its anchor w* and writes weights, data and the loss over all data."""
    generator = torch.Generator().manual_seed(0)
    data = tuple(tensor.to(device) for tensor in case.make_data(case.num_samples, generator))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = case.build().to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    for _ in range(case.train_steps):
        rows = torch.randint(case.num_samples, (case.batch_size,), generator=generator).to(device)
        optimizer.zero_grad()
        mean_loss(module, tuple(tensor[rows] for tensor in data)).backward()
        optimizer.step()
    path = folder / f"{case.name}.pt"
    torch.save({"state": module.state_dict(), "data": data, "loss": _full_loss(module, data, case.batch_size)}, path)
    return path


@torch.no_grad()
def _full_loss(module: torch.nn.Module, data: tuple[torch.Tensor, ...], batch_size: int) -> float:
    batches = zip(*(torch.split(tensor, batch_size) for tensor in data), strict=True)
    return sum(float(mean_loss(module, batch)) * len(batch[0]) for batch in batches) / len(data[0])


class Field:
    """All contenders of one case: their workers, and what has been measured of them.

    Args:
        workers: By contender.
        budget: How long to measure.
        least_steps: By contender, steps from which on a run is of the kind that is timed.
    """

    def __init__(self, workers: dict[str, Worker], budget: Budget, least_steps: dict[str, int]) -> None:
        self.workers, self.budget, self.least_steps = workers, budget, least_steps
        self.measurements = {name: Measurement(name) for name in workers}
        self.steps: dict[str, int] = {}

    def start(self) -> None:
        """First call of every contender, and the number of steps that fill a long run."""
        for name, worker, measurement in self._alive():
            with _noting_failure(measurement):
                worker.reply()
                measurement.first_call_seconds = worker.run(FIRST_CALL_STEPS)["seconds"]
                self.steps[name] = _calibrate(worker, self.budget.seconds)

    def time(self, seed: int) -> None:
        """One repeat: a short and a long run of each."""
        for name, worker, measurement in self._alive():
            with _noting_failure(measurement):
                cost, setup, peak = _time_step(worker, self.steps[name], seed, self.least_steps[name])
                measurement.step_seconds.append(cost)
                measurement.setup_seconds.append(setup)
                measurement.peak_bytes = peak
                self.steps[name] = min(4 * self.steps[name], _num_steps(cost, self.budget.seconds))

    def estimate(self, names: Iterable[str]) -> None:
        """Estimates of these contenders with several seeds."""
        chosen, chains = set(names), dict[str, list[list[float]]]()
        for seed in range(self.budget.accuracy_seeds):
            for name, worker, measurement in self._alive():
                if name in chosen:
                    with _noting_failure(measurement):
                        reply = worker.run(self.budget.accuracy_draws, burnin=self.budget.accuracy_burnin, seed=seed)
                        chains.setdefault(name, []).append(reply["result"]["per_chain"])
        for name, runs in chains.items():
            self.measurements[name].accuracy = pool(runs)

    def profile(self) -> None:
        """Profiles every contender."""
        for name, worker, measurement in self._alive():
            with _noting_failure(measurement):
                measurement.profile = worker.ask({"do": "profile", "steps": self.steps[name]})

    def _alive(self) -> list[tuple[str, Worker, Measurement]]:
        return [(name, self.workers[name], m) for name, m in self.measurements.items() if m.error is None]


@contextmanager
def _noting_failure(measurement: Measurement) -> Iterator[None]:
    try:
        yield
    except WorkerError as error:
        measurement.error = str(error)


def _time_step(worker: Worker, long: int, seed: int, least: int) -> tuple[float, float, int]:
    """Marginal seconds of a step, seconds of the set-up, and the peak memory, from runs of at least some steps."""
    short = max(least, long // 4)
    long = max(2 * short, long)
    for _ in range(3):
        first, second = worker.run(short, seed=seed), worker.run(long, seed=seed)
        cost = (second["seconds"] - first["seconds"]) / (long - short)
        if cost > 0:
            return cost, first["seconds"] - short * cost, second["peak_bytes"]
    raise WorkerError("a long run was three times faster than a short one: the machine is too busy to time anything")


def _calibrate(worker: Worker, seconds: float) -> int:
    """Steps that take about this long: lengthens a run until what was added stands out from the set-up."""
    steps, before = 5, worker.run(5)["seconds"]
    while True:
        added = 2 * steps
        steps += added
        after = worker.run(steps)["seconds"]
        if after - before > max(seconds / 10, before / 4) or steps > MAX_STEPS:
            return _num_steps((after - before) / added, seconds)
        before = after


def _num_steps(cost: float, seconds: float) -> int:
    return int(min(MAX_STEPS, max(8, seconds / max(1e-6, cost))))


def pool(runs: list[list[float]]) -> Accuracy:
    """Pools the chains of independent runs, [run][chain] of LLCs."""
    num_chains = len(runs[0])
    run_stderr = (fmean(variance(chains) for chains in runs) / num_chains) ** 0.5
    mean = fmean(value for chains in runs for value in chains)
    return Accuracy(mean, run_stderr / len(runs) ** 0.5, run_stderr, len(runs) * (num_chains - 1))
