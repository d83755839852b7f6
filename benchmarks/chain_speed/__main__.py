"""One command: `python -m benchmarks.chain_speed`. See `benchmarks/README.md` for how to read the table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.chain_speed import report
from benchmarks.chain_speed.cases import CASES, Case
from benchmarks.chain_speed.environments import DEVINTERP_1_3
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.measure import Budget, Field, Worker, write_anchor
from benchmarks.chain_speed.worker import Spec
from lightning_slt.sampling import RECORDED_FROM

RESULTS = Path(__file__).resolve().parents[1] / "results"
QUICK = Budget(repeats=2, seconds=0.5, accuracy_draws=100, accuracy_burnin=50, accuracy_seeds=2)


@dataclass(frozen=True)
class Entry:
    """A contender that can be chosen.

    Attributes:
        module: Its file in `benchmarks.chain_speed.contenders`.
        options: What is passed to its `build`.
        default: Whether it runs when none is named.
        estimates: Whether it returns LLCs.
        one_thread_per_core: Whether it spreads over processes, one for each thread that the others have.
        least_steps: Steps of its shortest timed run.
    """

    module: str
    options: dict[str, Any] = field(default_factory=dict)
    default: bool = True
    estimates: bool = False
    one_thread_per_core: bool = False
    least_steps: int = 1


CONTENDERS = {
    "ours": Entry("ours", {"chain_method": "auto"}, estimates=True, least_steps=RECORDED_FROM),
    "ours vectorized": Entry(
        "ours", {"chain_method": "vectorized"}, default=False, estimates=True, least_steps=RECORDED_FROM
    ),
    "ours sequential": Entry(
        "ours", {"chain_method": "sequential"}, default=False, estimates=True, least_steps=RECORDED_FROM
    ),
    "devinterp": Entry("devinterp_1_3", {"sampling_method": "SGLD", "loader": "batched"}, estimates=True),
    "devinterp plain": Entry("devinterp_1_3", {"sampling_method": "SGMCMC.sgld", "loader": "plain"}),
    "devinterp cores": Entry(
        "devinterp_1_3", {"sampling_method": "SGLD", "loader": "batched"}, one_thread_per_core=True
    ),
    "bare loop": Entry("bare", {"kind": "loop"}),
    "bare vmap": Entry("bare", {"kind": "vmap"}),
    "training step": Entry("bare", {"kind": "train"}),
    "noise": Entry("bare", {"kind": "noise"}),
}
PEERS = tuple(name for name, entry in CONTENDERS.items() if entry.module.startswith("devinterp"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain_speed", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, metavar="CASE", help=f"which of: {', '.join(CASES)}")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, metavar="NAME", help=f"which of: {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for everyone (default 1)")
    parser.add_argument("--quick", action="store_true", help="short runs, two repeats: a smoke test, not a result")
    parser.add_argument("--repeats", type=int, help="rounds over all contenders (5; 2 with --quick)")
    parser.add_argument("--seconds", type=float, help="aimed length of a long timed run (2; 0.5 with --quick)")
    parser.add_argument(
        "--no-accuracy", action="store_true", help="leave out the LLCs and the time to a standard error"
    )
    parser.add_argument("--profile", action="store_true", help="also show where the time of each contender goes")
    parser.add_argument(
        "--peer-python", type=Path, help="interpreter that has the peer, in place of a made environment"
    )
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results, for complete runs only")
    return parser.parse_args(argv)


def budget_of(arguments: argparse.Namespace) -> Budget:
    """How long to measure, from the command line."""
    base = QUICK if arguments.quick else Budget()
    return Budget(
        repeats=arguments.repeats or base.repeats,
        seconds=arguments.seconds or base.seconds,
        accuracy_draws=0 if arguments.no_accuracy else base.accuracy_draws,
        accuracy_burnin=base.accuracy_burnin,
        accuracy_seeds=base.accuracy_seeds,
    )


def chosen_contenders(arguments: argparse.Namespace) -> list[str]:
    """The contenders named, or the default ones; several processes only where they have several threads to share."""
    if arguments.contenders:
        return list(arguments.contenders)
    several = arguments.threads > 1 and torch.device(arguments.device).type == "cpu" and not arguments.quick
    return [name for name, entry in CONTENDERS.items() if entry.default and (several or not entry.one_thread_per_core)]


def chosen_cases(arguments: argparse.Namespace) -> list[Case]:
    """The cases named, or those meant for the device."""
    if arguments.cases:
        return [CASES[name] for name in arguments.cases]
    return [case for case in CASES.values() if torch.device(arguments.device).type in case.devices]


def make_worker(name: str, case: Case, anchor: Path, arguments: argparse.Namespace) -> Worker:
    """Starts the process of one contender."""
    entry = CONTENDERS[name]
    python = Path(sys.executable)
    if name in PEERS:
        python = arguments.peer_python or DEVINTERP_1_3.python()
    options, threads = dict(entry.options), arguments.threads
    if entry.one_thread_per_core:
        options, threads = options | {"cores": arguments.threads}, 1
    return Worker(python, Spec(entry.module, case.name, str(anchor), arguments.device, threads, options))


def measure_case(
    case: Case, names: list[str], arguments: argparse.Namespace, budget: Budget, folder: Path
) -> dict[str, Any]:
    """Measures all contenders on one case."""
    say = partial(_progress, case.name)
    say("training the anchor")
    anchor = write_anchor(case, folder, arguments.device)
    with ExitStack() as stack:
        workers = {name: stack.enter_context(make_worker(name, case, anchor, arguments)) for name in names}
        contenders = Field(workers, budget, {name: CONTENDERS[name].least_steps for name in names})
        say("first calls")
        contenders.start()
        for repeat in range(budget.repeats):
            say(f"timing, repeat {repeat + 1} of {budget.repeats}")
            contenders.time(seed=repeat)
        if budget.accuracy_draws:
            say("comparing estimates")
            contenders.estimate(name for name in names if CONTENDERS[name].estimates)
        if arguments.profile:
            say("profiling")
            contenders.profile()
    _progress("", "")
    return report.summarize(case, contenders.measurements, PEERS, budget)


def _progress(case: str, text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{case}: {text}" if text else "\r\x1b[K", end="", file=sys.stderr, flush=True)


def output_path(arguments: argparse.Namespace) -> Path | None:
    """Where the JSON goes: the path asked for, else `benchmarks/results` if nothing was left out."""
    if arguments.output or arguments.cases or arguments.contenders:
        path: Path | None = arguments.output
        return path
    name = "chain_speed-quick" if arguments.quick else "chain_speed"
    threads = "" if torch.device(arguments.device).type == "cuda" else f"-threads-{arguments.threads}"
    return RESULTS / f"{name}-{slug(hardware_name(arguments.device))}{threads}.json"


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; returns 1 if a contender failed."""
    arguments = parse(argv)
    budget, names = budget_of(arguments), chosen_contenders(arguments)
    machine = describe(arguments.device, arguments.threads)
    print("  ".join(f"{key}: {value}" for key, value in machine.items()))
    summaries = []
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen_cases(arguments):
            summary = measure_case(case, names, arguments, budget, Path(folder))
            summaries.append(summary)
            print(report.render(summary), flush=True)
            for row in summary["rows"] if arguments.profile else []:
                if row["profile"]:
                    print(report.render_profile(row), flush=True)
    path = output_path(arguments)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": machine, "budget": vars(budget), "peer": DEVINTERP_1_3.requirements, "cases": summaries}
        path.write_text(json.dumps(report.without_nan(content), indent=1, allow_nan=False) + "\n")
        print(f"\nwritten to {path}")
    return int(any(row["error"] for summary in summaries for row in summary["rows"]))


if __name__ == "__main__":
    raise SystemExit(main())
