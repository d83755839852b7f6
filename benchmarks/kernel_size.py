"""Time and memory of a loss kernel of many samples, each step in a process of its own, on one thread.

    python -m benchmarks.kernel_size                 # 10 000 samples, 8 chains × 100 draws
    python -m benchmarks.kernel_size --samples 2000 --only clusters

Seconds of one core are the processor's, and on a free core those that pass. "More memory" is the most that the process
held during the step, less what it held before: python, torch and the losses. Linux tells both.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.agreement import agreement, group_means
from lightning_slt.analysis.kernels import clusters, neighbours, normalized, pca
from lightning_slt.estimators import KernelEstimate, Run
from lightning_slt.probes import ProbeAtAnchor
from lightning_slt.reporting.kernels import kernel_embedding, kernel_figure
from lightning_slt.reporting.tensorboard import write_embedding
from lightning_slt.types import Draw

CLASSES, LEAN = 10, 20
"""Labels, and samples of the kernel that lends the others its numbers."""


def made_up(samples: int, chains: int, draws: int) -> tuple[Tensor, Tensor]:
    """Losses that samples of one label share in part ``[chain, draw, sample]``, and the labels, in turn."""
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % CLASSES
    traces = torch.randn(chains, draws, samples, generator=g)
    for label in range(CLASSES):  # without another array of this size
        traces[:, :, labels == label] += torch.randn(chains, draws, 1, generator=g)
    return traces, labels


def computed(traces: Tensor, labels: Tensor) -> KernelEstimate:
    """The estimate that a run with these losses gives."""
    chains, draws, samples = traces.shape
    known = ProbeAtAnchor(anchor=torch.zeros(samples), labels=labels, indices=torch.arange(samples))
    probe = slt.Probe(range(samples))
    run = Run(num_chains=chains, num_draws=draws, nbeta=10.0, localization=5.0, dimension=3, probes={probe.name: known})
    accumulator, zero = slt.LossKernel(probe).start(run), torch.zeros(chains)
    for index in range(draws):
        accumulator.update(
            Draw(chains=tuple(range(chains)), index=index, step=index, loss=zero, anchor_loss=zero, position=zero,
                 probes={probe.name: traces[:, index]})
        )  # fmt: skip
    found = accumulator.compute()
    assert isinstance(found, KernelEstimate)
    return found


def sampled(samples: int, chains: int, draws: int, *, kernel: bool) -> Any:
    """A run of chains of a perceptron 64-256-10 from its first weights, minibatches of 256 and a burn-in of 50."""
    g = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(samples, 64, generator=g), torch.randint(0, CLASSES, (samples,), generator=g))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    return slt.estimate(
        net, data, [slt.LLC(), *([slt.LossKernel(slt.Probe(data))] if kernel else [])],
        loss_fn=slt.losses.classification, sampler=slt.SGLD(step_size=1e-4), nbeta=10.0, localization=100.0,
        sampling=slt.SamplingConfig(num_chains=chains, num_draws=draws, num_burnin=50, batch_size=256),
    )  # fmt: skip


def write_map(kernel: KernelEstimate) -> None:
    """The map of samples with sprites of 28 × 28, as TensorBoard gets it."""
    samples = kernel.traces.shape[2]
    pictured = slt.LossKernel(range(samples), sprites=torch.rand(1, 1, 28, 28).expand(samples, -1, -1, -1)).sprites
    with TemporaryDirectory() as folder:
        logger, embedding = TensorBoardLogger(folder), kernel_embedding(kernel)
        write_embedding([logger], "samples", type(embedding)(**{**vars(embedding), "sprites": pictured}), 0)


Step = Callable[[KernelEstimate], Any]

OF_KERNELS: dict[str, tuple[str, Step]] = {
    "numbers": ("numbers for the loggers and health", lambda k: computed(k.traces, k.labels)),
    "records": ("records: factor of rank 32", lambda k: k.arrays()),
    "heat map": ("heat map", lambda k: kernel_figure(k).savefig("/dev/null", format="png")),
    "heat map without labels": ("heat map ordered by clusters", lambda k: kernel_figure(
        KernelEstimate(**{**vars(k), "labels": None})).savefig("/dev/null", format="png")),
    "projector": ("map with sprites for the projector", write_map),
    "neighbours": ("`neighbours(k.factor, 5)`", lambda k: neighbours(k.factor, 5)),
    "group means": ("`group_means(k.factor, labels)`", lambda k: group_means(k.factor, k.labels)),
    "agreement": ("`agreement(k.factor, labels)`", lambda k: agreement(k.factor, k.labels)),
    "clusters": ("`clusters(k.factor, 10)`", lambda k: clusters(k.factor, CLASSES)),
    "pca": ("`pca(normalized(k.factor), 2)`", lambda k: pca(normalized(k.factor), 2)),
    "correlation": ("`k.correlation`, a matrix", lambda k: k.correlation),
    "stderr": ("`k.stderr`, a matrix", lambda k: k.stderr),
    "correlation stderr": ("`k.correlation_stderr`, a matrix", lambda k: k.correlation_stderr),
}  # fmt: skip
STEPS = {
    "chains": "chains alone, with the LLC",
    "chains and kernel": "chains with the LLC and the kernel",
    **{name: what for name, (what, _) in OF_KERNELS.items()},
}


def megabytes(what: str) -> float:
    """``VmRSS``, what this process holds, or ``VmHWM``, the most that it held."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return float(lines[what].split()[0]) / 1024


def measure(name: str, samples: int, chains: int, draws: int) -> dict[str, float]:
    """Seconds and megabytes of one step, in this process."""
    if name.startswith("chains"):
        step: Callable[[], Any] = partial(sampled, samples, chains, draws, kernel=name != "chains")
    else:
        few = computed(*made_up(LEAN, chains, draws))
        traces, labels = made_up(samples, chains, draws)
        many = {"traces": traces, "labels": labels, "anchor": torch.zeros(samples), "indices": torch.arange(samples)}
        kernel = KernelEstimate(**{**{n: getattr(few, n) for n in few.__dataclass_fields__}, **many})
        step = partial(OF_KERNELS[name][1], kernel)
    before, began, used = megabytes("VmRSS"), time.perf_counter(), time.process_time()
    step()
    seconds, passed = time.process_time() - used, time.perf_counter() - began
    return {"seconds": seconds, "passed": passed, "more": megabytes("VmHWM") - before}


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("samples", 10_000), ("chains", 8), ("draws", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = options.samples, options.chains, options.draws
    if options.inside:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.only[0], *size)))
        return
    print("{} samples, {} chains × {} draws, one thread\n".format(*size))
    print("| step | seconds of one core | seconds that passed | more memory |\n|---|---|---|---|")
    counts = [word for n in ("samples", "chains", "draws") for word in (f"--{n}", str(getattr(options, n)))]
    for name in options.only:
        command = [sys.executable, "-m", "benchmarks.kernel_size", "--inside", *counts, "--only", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"| {STEPS[name]} | {found['seconds']:.1f} | {found['passed']:.1f} | {found['more']:,.0f} MB |", flush=True
        )


if __name__ == "__main__":
    main()
