"""LLC, loss kernel and Bayesian influence from one pass of chains, against each of them alone on the same samples.

    python -m benchmarks.joint

One process, interleaved: in every repeat each of the four runs once, in an order that is turned, with the same
network, chains, draws and seeds. The table shows their times, and the ratio of the joint run to the dearest single one
of the same repeat. Network and chains are those of `benchmarks.covariances`, case `kernel`; the influence is of its
training samples on 100 more, the kernel that of the training samples, so that they share a probe.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.report import align
from benchmarks.covariances.cases import CASES, Case, per_sample_loss, read_question
from benchmarks.covariances.contenders.ours import sampling
from benchmarks.covariances.problem import make_question
from benchmarks.turns import spread, take_turns

RESULTS = Path(__file__).resolve().parents[1] / "results"
JOINT = "together"
TARGET = 1.15
CASE = replace(CASES["kernel"], num_query=100)

Clocks = dict[str, list[float]]
"""Seconds by clock, one a repeat."""


def works(case: Case) -> dict[str, Callable[[], Any]]:
    """Each quantity alone, and all three together."""
    problem = read_question(make_question(case, seed=0))
    train, query = TensorDataset(*problem.train), TensorDataset(*problem.query)
    probe = slt.Probe(train, name="train")
    single = {
        "LLC": slt.LLC(),
        "loss kernel": slt.LossKernel(probe),
        "influence": slt.BayesianInfluence(train=probe, query=slt.Probe(query, name="query")),
    }
    asked = {name: [estimator] for name, estimator in single.items()} | {JOINT: list(single.values())}

    def work(estimators: Sequence[Any]) -> Callable[[], Any]:
        return lambda: slt.estimate(
            problem.net,
            train,
            estimators,
            sampler=slt.SGLD(step_size=case.step_size),
            nbeta=case.nbeta,
            localization=case.localization,
            sampling=sampling(case, problem.seed),
            loss_fn=per_sample_loss,
        )

    return {name: work(estimators) for name, estimators in asked.items()}


def measure(work: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Clocks]:
    """Times of all repeats; one round before them is not counted."""
    for one in work.values():
        one()
    found: dict[str, Clocks] = {name: {"processor": [], "wall": []} for name in work}
    for _, name in take_turns(list(work), repeats):
        wall, processor = time.perf_counter(), time.process_time()
        work[name]()
        found[name]["processor"].append(time.process_time() - processor)
        found[name]["wall"].append(time.perf_counter() - wall)
    return found


def joint_ratios(found: Mapping[str, Clocks], clock: str) -> list[float]:
    """The joint run over the dearest single one, by repeat.

    >>> joint_ratios({"a": {"wall": [1.0, 4.0]}, "b": {"wall": [2.0, 3.0]}, "together": {"wall": [3.0, 6.0]}}, "wall")
    [1.5, 1.5]
    """
    alone = [times[clock] for name, times in found.items() if name != JOINT]
    return [both / max(each) for both, each in zip(found[JOINT][clock], zip(*alone, strict=True), strict=True)]


def render(found: Mapping[str, Clocks]) -> str:
    """The table and the ratio."""
    rows = [(name, *(spread(times[clock]) for clock in ("processor", "wall"))) for name, times in found.items()]
    processor, wall = (joint_ratios(found, clock) for clock in ("processor", "wall"))
    verdict = "within" if median(processor) <= TARGET else "ABOVE"
    return "\n".join(
        [
            align([("", "processor s", "wall s"), *rows]),
            f"together over the dearest alone: {spread(processor)} of the processor, {spread(wall)} on the wall; "
            f"{verdict} {TARGET}",
        ]
    )


def main(argv: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="few chains and draws: a smoke test, not a result")
    parser.add_argument("--output", type=Path, help="JSON file; by default benchmarks/results")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    case = CASE.small() if arguments.small else CASE
    machine = describe("cpu", arguments.threads)
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = measure(works(case), arguments.repeats)
    print(render(found), flush=True)
    output = arguments.output or (None if arguments.small else RESULTS / f"joint-{slug(hardware_name('cpu'))}.json")
    if output:
        content = {"machine": machine, "case": asdict(case), "seconds": found}
        content["ratio"] = {clock: joint_ratios(found, clock) for clock in ("processor", "wall")}
        output.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {output}")


if __name__ == "__main__":
    main()
