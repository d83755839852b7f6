"""One command: `python -m benchmarks.covariances`. See `benchmarks/README.md` for how to read the table."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.chain_speed.environments import DEVINTERP_1_3, DEVINTERP_2_0, ENVIRONMENTS
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.report import align, without_nan
from benchmarks.covariances.agreement import Agreement, agreement
from benchmarks.covariances.cases import CASES, Case
from benchmarks.covariances.problem import make_question
from benchmarks.turns import Contender, Run, ratios, run, spread, take_turns, timings

RESULTS = Path(__file__).resolve().parents[1] / "results"
HERE = "benchmarks.covariances.contenders"
PEERS = {"devinterp 1.3.2": (DEVINTERP_1_3, "devinterp_1_3"), "devinterp 2.0.1": (DEVINTERP_2_0, "devinterp_2_0")}
OURS = "ours"
COLUMNS = ("", "processor s", "over ours", "wall s", "over ours", "peak MB", "r with ours", "ceiling", "size", "signs")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.covariances", description=__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--contenders", nargs="+", choices=[OURS, *PEERS], default=[OURS, *PEERS])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for everyone (default 1)")
    parser.add_argument("--small", action="store_true", help="few chains and draws: a smoke test, not a result")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where the peers' environments lie")
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results, for complete runs only")
    return parser.parse_args(argv)


def contenders(names: list[str], environments: Path) -> dict[str, Contender]:
    """Who runs, the peers in interpreters of their own."""
    found = {}
    for name in names:
        if name == OURS:
            found[name] = Contender(Path(sys.executable), f"{HERE}.ours")
        else:
            environment, module = PEERS[name]
            found[name] = Contender(environment.python(environments), f"{HERE}.{module}")
    return found


def measure(case: Case, who: dict[str, Contender], repeats: int, threads: int) -> dict[str, list[Run]]:
    """Everyone's runs, in turns; repeats differ in the seed of the chains."""
    questions = [make_question(case, seed) for seed in range(repeats)]
    runs: dict[str, list[Run]] = {name: [] for name in who}
    for repeat, name in take_turns(list(who), repeats):
        runs[name].append(run(who[name], questions[repeat], threads=threads))
        last = runs[name][-1]
        print(f"{case.name} {repeat} {name}: {last.processor:.2f} s, {last.wall:.2f} s on the wall", file=sys.stderr)
    return runs


def compare(runs: dict[str, list[Run]]) -> dict[str, Agreement]:
    """Everyone's covariances with ours, where we ran."""
    if OURS not in runs:
        return {}
    ours = [r.answer["covariance"] for r in runs[OURS]]
    return {name: agreement(ours, [r.answer["covariance"] for r in each]) for name, each in runs.items()}


def render(case: Case, runs: dict[str, list[Run]], alike: dict[str, Agreement]) -> str:
    """One case as text."""
    rows = []
    for name, each in runs.items():
        cells = [name, spread([r.processor for r in each])]
        cells += [spread(ratios(each, runs[OURS]), ".1f") if OURS in runs else ""]
        cells += [spread([r.wall for r in each])]
        cells += [spread(ratios(each, runs[OURS], "wall"), ".1f") if OURS in runs else ""]
        cells += [f"{median(r.peak_bytes for r in each) / 2**20:.0f}"]
        if name in alike:
            a = alike[name]
            cells += [f"{a.alike:.3f}", f"{a.ceiling:.3f}", f"{a.scale:.3f} +- {a.scale_error:.3f}", f"{a.signs:.3f}"]
        rows.append(tuple(cells + [""] * (len(COLUMNS) - len(cells))))
    steps = case.num_burnin + case.num_draws * case.thinning
    heading = (
        f"\n{case.name}: {case.title}; SGLD, {case.num_chains} chains of {steps} steps, batch {case.batch_size}, "
        f"{case.num_draws} draws each"
    )
    return "\n".join([heading, align([COLUMNS, *rows])])


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    arguments = parse(argv)
    machine = describe("cpu", arguments.threads)
    who = contenders(arguments.contenders, arguments.environments)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    cases = []
    for name in arguments.cases:
        case = CASES[name].small() if arguments.small else CASES[name]
        runs = measure(case, who, arguments.repeats, arguments.threads)
        alike = compare(runs)
        print(render(case, runs, alike), flush=True)
        cases.append(_record(case, runs, alike))
    complete = not arguments.small and set(arguments.cases) == set(CASES) and len(who) == 1 + len(PEERS)
    output = arguments.output or (RESULTS / f"covariances-{slug(hardware_name('cpu'))}.json" if complete else None)
    if output:
        output.write_text(json.dumps(without_nan({"machine": machine, "cases": cases}), indent=1) + "\n")
        print(f"\nwritten to {output}")


def _record(case: Case, runs: dict[str, list[Run]], alike: dict[str, Agreement]) -> dict[str, Any]:
    rows = {name: timings(each) | (alike[name]._asdict() if name in alike else {}) for name, each in runs.items()}
    return {"case": asdict(case), "contenders": rows}


if __name__ == "__main__":
    main()
