"""One command: `python -m benchmarks.retraining`. See `benchmarks/README.md` for how to read the table."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.environments import ENVIRONMENTS, KRONFLUENCE
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.report import align, without_nan
from benchmarks.turns import Contender, Run, run, spread, take_turns, timings
from examples.influence_retraining import adam, digits, perceptron, reference
from lightning_slt.analysis.retraining import Retrained, lds, random_subsets, retrain

RESULTS = Path(__file__).resolve().parents[1] / "results"
HERE = "benchmarks.retraining.contenders"
EXACT = ("0.01", "0.003", "0.03", "0.1")
"""Dampings of the exact influence; the first, that of the example, is timed, the others are found in one run."""

EKFAC = ("default", "heuristic", "0.0001", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3")
"""The same for EK-FAC."""

TIMED = {f"Gauss-Newton {EXACT[0]}": "Gauss-Newton", f"EK-FAC {EKFAC[0]}": "EK-FAC"}
"""Rows of one damping and the run that was timed for them."""

CEILING = "noise ceiling"

Scores = dict[float, list[float]]
"""By share of the samples, one score a seed."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; defaults are those of the example."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.retraining", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3], help="of data, network, subsets, chains")
    parser.add_argument("--num-train", type=int, default=200)
    parser.add_argument("--num-query", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--num-subsets", type=int, default=50)
    parser.add_argument("--num-inits", type=int, default=4, help="networks trained on each subset")
    parser.add_argument("--num-steps", type=int, default=200, help="of Adam, for every network")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5, 0.75])
    parser.add_argument("--num-chains", type=int, default=32)
    parser.add_argument("--num-draws", type=int, default=400)
    parser.add_argument("--no-peer", action="store_true", help="leave kronfluence out")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, for everyone (default 1)")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where the peer's environment lies")
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results, if nothing was changed")
    return parser.parse_args(argv)


def contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    """Who runs; one entry for each setting that has a time of its own."""
    here = Path(sys.executable)
    counts = {"num_chains": arguments.num_chains, "num_draws": arguments.num_draws}
    exact, peer = f"{HERE}.gradients", f"{HERE}.kronfluence"
    found = {
        "Bayesian influence": Contender(here, f"{HERE}.ours", counts),
        "gradient dot product": Contender(here, exact),
        "Gauss-Newton": Contender(here, exact, {"dampings": EXACT[:1]}),
        "Gauss-Newton, others": Contender(here, exact, {"dampings": EXACT[1:]}),
    }
    if arguments.no_peer:
        return found
    python = KRONFLUENCE.python(arguments.environments)
    return found | {
        "EK-FAC": Contender(python, peer, {"dampings": EKFAC[:1]}),
        "EK-FAC, others": Contender(python, peer, {"dampings": EKFAC[1:]}),
    }


def make_question(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Data and the reference network of one seed, as in the example."""
    train, query = digits(arguments.num_train, arguments.num_query, seed)
    net = reference(train, arguments.hidden, arguments.num_steps, seed=1000 + 100 * seed)
    return {
        "hidden": arguments.hidden, "state": net.state_dict(), "train": train.tensors, "query": query.tensors,
        "seed": seed,
    }  # fmt: skip


def retrained(question: Mapping[str, Any], arguments: argparse.Namespace) -> dict[float, Retrained]:
    """Networks trained on subsets of each size."""
    train, query = TensorDataset(*question["train"]), TensorDataset(*question["query"])
    count, seed = arguments.num_subsets, question["seed"]
    return {
        share: retrain(
            lambda: perceptron(arguments.hidden),
            train,
            query,
            random_subsets(len(train), share=share, num_subsets=count, seed=seed),
            loss_fn=slt.losses.classification,
            optimizer=adam,
            num_steps=arguments.num_steps,
            num_seeds=arguments.num_inits,
            seed=seed,
        )
        for share in arguments.shares
    }


def rows_of(name: str, answer: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rows of the table that one run gives, as predictions ``[train, query]``."""
    family, _, _ = name.partition(",")
    if "normalized" in answer:
        return {family: answer["influence"], f"{family}, normalized": answer["normalized"]}
    if list(answer) == ["dot"]:
        return {family: answer["dot"]}
    return {f"{family} {damping}": prediction for damping, prediction in answer.items()}


def score(runs: Mapping[str, Sequence[Run]], outcomes: Sequence[Mapping[float, Retrained]]) -> dict[str, Scores]:
    """LDS of every row, by share, one value a seed; and what a perfect prediction would reach."""
    found: dict[str, Scores] = {}
    for place, by_share in enumerate(outcomes):
        for share, networks in by_share.items():
            for name, each in runs.items():
                for row, prediction in rows_of(name, each[place].answer).items():
                    value = lds(prediction.double(), networks, num_resamples=2)
                    found.setdefault(row, {}).setdefault(share, []).append(value.score)
            found.setdefault(CEILING, {}).setdefault(share, []).append(value.ceiling)
    return found


def best(scores: Mapping[str, Scores], family: str, share: float) -> str:
    """The damping of a family with the largest mean score: chosen with the answer at hand."""
    names = [name for name in scores if name.startswith(f"{family} ")]
    return max(names, key=lambda name: fmean(scores[name][share]))


def render(scores: Mapping[str, Scores], runs: Mapping[str, Sequence[Run]], shares: Sequence[float]) -> str:
    """Mean and standard error over seeds, and what each costs."""
    head = ("", *(f"LDS at {share:g}" for share in shares), "processor s", "wall s", "peak MB")
    rows = []
    for name, by_share in scores.items():
        cells = [_mean_and_error(by_share[share]) for share in shares]
        each = runs.get(TIMED.get(name, name))
        costs = ["", "", ""] if each is None else [
            spread([r.processor for r in each]), spread([r.wall for r in each]),
            f"{median(r.peak_bytes for r in each) / 2**20:.0f}",
        ]  # fmt: skip
        rows.append((name, *cells, *costs))
    families = [f for f in ("Gauss-Newton", "EK-FAC") if any(name.startswith(f"{f} ") for name in scores)]
    notes = [
        f"best damping of {family}, chosen by the scores themselves: "
        + ", ".join(f"{best(scores, family, share).removeprefix(family).strip()} at {share:g}" for share in shares)
        for family in families
    ]
    return "\n".join([align([head, *rows]), *notes])


def _mean_and_error(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{fmean(values):.3f} +- {stdev(values) / math.sqrt(len(values)):.3f}"


def main(argv: list[str] | None = None) -> None:
    """Retrain, predict, score, print, write."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    machine = describe("cpu", arguments.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    who = contenders(arguments)
    questions = [make_question(arguments, seed) for seed in arguments.seeds]
    runs: dict[str, list[Run]] = {name: [] for name in who}
    for place, name in take_turns(list(who), len(questions)):
        runs[name].append(run(who[name], questions[place], threads=arguments.threads))
        last = runs[name][-1]
        print(f"seed {arguments.seeds[place]} {name}: {last.processor:.2f} s", file=sys.stderr, flush=True)
    scores = score(runs, [retrained(question, arguments) for question in questions])
    networks = arguments.num_subsets * arguments.num_inits * len(arguments.shares)
    print(
        f"\ndigits, {arguments.num_train} to train on, {arguments.num_query} queries, MLP 64-{arguments.hidden}-10; "
        f"{len(questions)} seeds of {networks} networks\n{render(scores, runs, arguments.shares)}"
    )
    defaults = parse([])
    same = all(getattr(arguments, k) == v for k, v in vars(defaults).items() if k not in ("environments", "output"))
    output = arguments.output or (RESULTS / f"retraining-{slug(hardware_name('cpu'))}.json" if same else None)
    if output:
        settings = {k: v for k, v in vars(arguments).items() if k not in ("environments", "output")}
        rows = {name: {"lds": {f"{s:g}": v for s, v in by_share.items()}} for name, by_share in scores.items()}
        costs = {name: timings(each) for name, each in runs.items()}
        content = {"machine": machine, "settings": settings, "scores": rows, "costs": costs}
        output.write_text(json.dumps(without_nan(content), indent=1) + "\n")
        print(f"\nwritten to {output}")


if __name__ == "__main__":
    main()
