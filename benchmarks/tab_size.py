"""How the tab fares with a large run: 2000 readings, 64 components, kernels of 1000 samples.

Makes such a run with the package's own record writer, then asks each route as a browser would, first of a server that
has read nothing, then again, and after one more reading::

    python -m benchmarks.tab_size                       # in a temporary folder
    python -m benchmarks.tab_size --keep runs/large     # and leave it there, to be opened in TensorBoard
"""

from __future__ import annotations

import argparse
import gzip
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from werkzeug.test import Client

from lightning_slt.records import Reading, RecordWriter
from lightning_slt.results import StoredResult
from lightning_slt.tab.plugin import Tab
from lightning_slt.types import Estimate, Health

RANK = 32
CHAINS = 8
CHECKS = (
    "above_anchor", "drift", "rhat", "spikes", "snr", "below_anchor", "finite", "distance", "gradient_norm",
    "localization_norm", "noise_norm", "drift_to_noise", "acceptance", "heating", "heating_stderr", "prior_bound",
    "step_size", "steps", "curvature", "resolution", "ess_bulk", "autocorrelation_time", "anchor_loss",
)  # fmt: skip
"""What the health of a real λ̂ holds."""


def write_run(folder: Path, *, readings: int, components: int, samples: int, kernel_every: int) -> None:
    """A run with made-up numbers in records of the usual form.

    Args:
        folder: Of the run.
        readings: How many.
        components: How many have an LLC of their own, beside that of all weights.
        samples: Of the loss kernel.
        kernel_every: Every so many readings keep a kernel.
    """
    random = torch.Generator().manual_seed(0)
    writers = {name: RecordWriter(folder, name) for name in ("slt", "kernel")}
    names = ["full", *(f"blocks.{index // 8}.h{index % 8}" for index in range(components))]
    groups = torch.arange(samples) % 8
    centres = torch.randn(RANK, 8, generator=random)
    for index in range(readings):
        estimates = {
            name: {"llc": _llc(10 + 5 * math.sin(index / 200 + place), random)} for place, name in enumerate(names)
        }
        writers["slt"].write(_reading("slt", index, estimates))
        if index % kernel_every == 0:
            noise = torch.randn(RANK, samples, generator=random)
            factor = centres[:, groups] * min(1.0, index / readings * 2) + noise
            writers["kernel"].write(
                _reading(
                    "kernel", index // kernel_every, {"full": {"loss_kernel": _kernel(factor, groups)}}, step=10 * index
                )
            )


def _reading(name: str, index: int, estimates: dict[str, dict[str, Any]], *, step: int | None = None) -> Reading:
    step = 10 * index if step is None else step
    return Reading(
        name=name, index=index, step=step, global_step=step, epoch=0, time=1.8e9 + step, duration=0.5, overhead=0.1,
        settings={"sampler": "SGLD", "nbeta": 30.0, "localization": 300.0, "num_chains": CHAINS}, estimates=estimates,
    )  # fmt: skip


def _llc(value: float, random: torch.Generator) -> Estimate:
    chains = value + torch.randn(CHAINS, generator=random, dtype=torch.float64)
    values = dict(zip(CHECKS, torch.rand(len(CHECKS), generator=random, dtype=torch.float64).tolist(), strict=True))
    failed = ("rhat",) if values["drift"] > 0.9 else ()
    return Estimate(
        mean=float(chains.mean()), stderr=float(chains.std()) / math.sqrt(CHAINS), per_chain=chains,
        health=Health(ok=not failed, failed=failed, values={**values, "rhat": 1.0 + values["drift"]}),
    )  # fmt: skip


def _kernel(factor: torch.Tensor, labels: torch.Tensor) -> StoredResult:
    unit = factor / factor.norm(dim=0)
    tensors = {
        "factor": unit.half(),
        "variances": factor.square().sum(0),
        "labels": labels,
        "indices": torch.arange(len(labels)).int(),
    }
    return StoredResult(
        health=Health(ok=True), kind="KernelEstimate", numbers={"n_eff": 800.0, "reliability": 0.9}, tensors=tensors,
        dims={"factor": ("feature", "sample")},
    )  # fmt: skip


def measure(folder: Path) -> None:
    """Print seconds and sizes of each route."""
    client = Client(Tab({str(folder): ""}))
    kernel = "run=.&monitor=kernel&index=1&component=full&key=loss_kernel"
    routes = [
        "runs", "timeline?run=.", "runs", "timeline?run=.", "reading?run=.&monitor=slt&index=1000", f"kernel?{kernel}",
        f"kernel?{kernel}", f"array?{kernel}&name=factor",
    ]  # fmt: skip
    _ask(client, routes)
    print("after one more reading:")
    RecordWriter(folder, "slt", resume="slt.jsonl").write(
        _reading("slt", 10**6, {"full": {"llc": _llc(1.0, torch.Generator().manual_seed(1))}})
    )
    _ask(client, ["runs", "timeline?run=."])


def _ask(client: Client, routes: list[str]) -> None:
    for route in routes:
        began, worked = time.perf_counter(), time.process_time()
        answer = client.get(f"/data/{route}")
        seconds, work = time.perf_counter() - began, time.process_time() - worked
        packed = len(gzip.compress(answer.data, 3))
        size = len(answer.data) / 1e6
        times = f"{seconds:7.3f} s ({work:.3f} s of CPU)"
        print(
            f"{route.partition('?')[0]:10} {answer.status_code} {times} {size:6.2f} MB, {packed / 1e6:.2f} compressed"
        )


def main() -> None:
    """Make a run and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readings", type=int, default=2000)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--kernel-every", type=int, default=20)
    parser.add_argument("--keep", type=Path, help="folder of the run; else a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        began = time.perf_counter()
        write_run(
            folder, readings=options.readings, components=options.components, samples=options.samples,
            kernel_every=options.kernel_every,
        )  # fmt: skip
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        print(f"written in {time.perf_counter() - began:.0f} s, {size / 1e6:.0f} MB")
        measure(folder)


if __name__ == "__main__":
    main()
