"""What the precision of the passes gains in speed, and what it does to λ̂.

    python -m benchmarks.precision                       # CPU, one thread
    python -m benchmarks.precision --device cuda
    python -m benchmarks.precision --cases mlp-118k --seeds 1

Speed: marginal cost of a step of all chains on the cases of `benchmarks.chain_speed`, precisions taking turns. Bias:
scikit-learn's digits, MLP 64-32-10, the same seeds, so noise and minibatches, in every precision; the mean over chains
of what λ̂ differs by from that of float32, with its standard error between chains. Beside it λ̂ and the standard error of
one run of 8 chains, which is what the difference has to be small against. On a CPU TF32 is float32, and is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, get_args

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.chain_speed.cases import CASES, mlp
from benchmarks.chain_speed.contenders.ours import build
from benchmarks.chain_speed.hardware import describe, hardware_name, slug
from benchmarks.chain_speed.measure import write_anchor
from benchmarks.chain_speed.report import align
from benchmarks.chain_speed.worker import Problem, Spec, load_problem, synchronize
from benchmarks.turns import take_turns
from lightning_slt.precision import Precision
from lightning_slt.sampling import RECORDED_FROM

RESULTS = Path(__file__).resolve().parent / "results"
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
RUN_CHAINS = 8


def step_seconds(problem: Problem, precisions: Sequence[Precision], repeats: int, seconds: float) -> dict[str, Any]:
    """Marginal cost of a step of all chains, one value a repeat; both runs are long enough to be recorded."""
    contenders = {p: build(problem, chain_method="auto", precision=p) for p in precisions}

    def clocked(precision: Precision, steps: int) -> float:
        synchronize(problem.device)
        began = problem.clock()
        contenders[precision].run(num_steps=steps, num_burnin=0, seed=0)
        synchronize(problem.device)
        return problem.clock() - began

    found: dict[str, Any] = {p: [] for p in precisions}
    more: dict[str, int] = {}
    for p in precisions:
        clocked(p, RECORDED_FROM)
        once = clocked(p, RECORDED_FROM) / RECORDED_FROM
        more[p] = max(RECORDED_FROM, int(seconds / once))
    for _, name in take_turns(list(precisions), repeats):
        precision: Any = name
        short = clocked(precision, RECORDED_FROM)
        found[name].append((clocked(precision, RECORDED_FROM + more[name]) - short) / more[name])
    return found


def trained(device: str, seed: int) -> tuple[nn.Module, TensorDataset]:
    """A network that has learnt the digits, and the digits."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32, device=device) / 16
    y = torch.tensor(labels, device=device)
    torch.manual_seed(seed)
    net = mlp(64, 32, 10).to(device)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(1000):
        rows = torch.randint(len(x), (64,), device=device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return net, TensorDataset(x, y)


def llcs(device: str, precision: Precision, seeds: int, draws: int) -> Tensor:
    """λ̂ of every chain ``[seed, chain]``; a seed draws network, noise and minibatches."""
    rows = []
    for seed in range(seeds):
        net, data = trained(device, seed)
        sampling = slt.SamplingConfig(
            num_chains=RUN_CHAINS, num_draws=draws, num_burnin=draws, batch_size=64, seed=seed, precision=precision
        )
        options: dict[str, Any] = {"loss_fn": slt.losses.classification, "nbeta": 240.0, "localization": 50.0}
        found = slt.estimate(net, data, [slt.LLC()], sampler=slt.SGLD(step_size=2e-4), sampling=sampling, **options)
        rows.append(found["llc"].per_chain.cpu())
    return torch.stack(rows)


def bias(values: Tensor, exact: Tensor) -> dict[str, float]:
    """Of λ̂ against float32, from chains with the same noise; errors are between chains, within networks."""
    difference, chains = values - exact, values.shape[1]
    stderr = lambda x: float((x.var(1) / chains).mean().sqrt() / len(x) ** 0.5)  # noqa: E731
    one_run = float((values.var(1) / chains).mean().sqrt())
    return {
        "llc": float(values.mean()),
        "stderr_of_a_run": one_run,
        "bias": float(difference.mean()),
        "stderr": stderr(difference),
        "share": float(difference.mean() / exact.mean()),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; writes JSON where nothing was left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cases", nargs="*", choices=CASES, help="of the speed; by default those for the device")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, help="by default all, on a CPU without tf32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a long timed run")
    parser.add_argument("--seeds", type=int, default=8, help="networks of the bias")
    parser.add_argument("--draws", type=int, default=500, help="a chain, and as many steps before them")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind = torch.device(asked.device).type
    usual: list[Precision] = [p for p in PRECISIONS if kind != "cpu" or p != "tf32"]
    precisions: list[Precision] = asked.precisions or usual
    names = [n for n, c in CASES.items() if kind in c.devices] if asked.cases is None else asked.cases
    content: dict[str, Any] = {"machine": describe(asked.device, 1), "draws": asked.draws, "speed": {}, "bias": {}}
    print("  ".join(f"{key}: {value}" for key, value in content["machine"].items()))

    rows: list[tuple[str, ...]] = [("case", "precision", "chain-steps/s", "against float32")]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            anchor = write_anchor(CASES[name], Path(folder), asked.device)
            problem = load_problem(Spec("ours", name, str(anchor), asked.device, 1))
        found = step_seconds(problem, precisions, asked.repeats, asked.seconds)
        content["speed"][name] = found
        first = found.get("float32", found[precisions[0]])
        for p, times in found.items():
            gain = median(a / b for a, b in zip(first, times, strict=True))
            rows.append((name, p, f"{CASES[name].num_chains / median(times):.0f}", f"{gain:.2f}"))
    if names:
        print(align(rows), flush=True)

    rows = [("precision", "λ̂", "error of a run", "bias", "its error", "share of λ̂")]
    exact = llcs(asked.device, "float32", asked.seeds, asked.draws)
    for p in precisions:
        row = bias(exact if p == "float32" else llcs(asked.device, p, asked.seeds, asked.draws), exact)
        content["bias"][p] = row
        rows.append((p, f"{row['llc']:.3f}", f"{row['stderr_of_a_run']:.3f}", f"{row['bias']:+.4f}",
                     f"{row['stderr']:.4f}", f"{row['share']:+.2%}"))  # fmt: skip
    print("\n" + align(rows))
    path = asked.output
    if path is None and asked.cases is None and precisions == usual:
        path = RESULTS / f"precision-{slug(hardware_name(asked.device))}.json"
    if path is not None:
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nwritten to {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
