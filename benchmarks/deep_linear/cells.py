"""One cell of the contest: a sampler at a step size on a network, through the package's own `estimate`."""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
import time
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import TensorDataset

import lightning_slt as slt
from benchmarks.deep_linear.classes import CLASSES, LOCALIZATION
from benchmarks.deep_linear.contestants import CONTESTANTS
from benchmarks.deep_linear.networks import (
    DeepLinear,
    Plan,
    make_data,
    make_factors,
    moment_loss,
    plan_network,
    sample_loss,
)
from lightning_slt.samplers import Sampler


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one estimate is made of; small enough to be sent to a process.

    Attributes:
        network_class: Name of the class.
        recipe: Of the networks.
        sampler: Name of the contestant.
        step_size: Of its grid.
        seed: Of the set of networks.
        index: Which of the set.
        device: Where it runs.
    """

    network_class: str
    recipe: str
    sampler: str
    step_size: float
    seed: int
    index: int
    device: str = "cpu"

    @property
    def settings(self) -> Sampler:
        """The sampler with everything that it was given."""
        return CONTESTANTS[self.sampler].make(self.step_size, CLASSES[self.network_class])

    @property
    def key(self) -> str:
        """Names the cell in the results; changes with any setting of the sampler."""
        return f"{self.settings!r} on {self.seed}/{self.index}"


@lru_cache(maxsize=2)
def _prepared(
    class_name: str, recipe: str, seed: int, index: int, device: str
) -> tuple[Plan, DeepLinear, TensorDataset]:
    network_class = CLASSES[class_name]
    plan = plan_network(network_class, recipe, seed=seed, index=index)
    return plan, DeepLinear(make_factors(plan)).to(device), TensorDataset(make_data(network_class, plan))


def sampling_of(cell: Cell) -> slt.SamplingConfig:
    """The counts of the cell's class; the same minibatches and noise for all samplers and step sizes."""
    network_class = CLASSES[cell.network_class]
    return slt.SamplingConfig(
        num_chains=network_class.num_chains,
        num_draws=network_class.num_draws,
        num_burnin=network_class.num_burnin,
        thinning=network_class.thinning,
        batch_size=network_class.batch_size,
        seed=cell.seed * 10_000 + cell.index,
    )


def run_cell(cell: Cell) -> dict[str, Any]:
    """Estimates λ at the network's anchor.

    Returns:
        The cell and what came out, ready for JSON: ``estimate`` and ``stderr`` are None where no chain finished.
    """
    network_class = CLASSES[cell.network_class]
    plan, module, data = _prepared(cell.network_class, cell.recipe, cell.seed, cell.index, cell.device)
    # the product of the weights costs in_1 for every multiplication that a batch of B samples costs B for
    loss_fn = moment_loss if plan.widths[0] < network_class.batch_size else sample_loss
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chains die at the long steps of every grid; `dead_chains` keeps the record
        estimate = slt.estimate(
            module,
            data,
            [slt.LLC()],
            sampler=cell.settings,
            nbeta=network_class.nbeta,
            localization=LOCALIZATION,
            sampling=sampling_of(cell),
            loss_fn=loss_fn,
        )["llc"]
    health = estimate.health
    return {
        "key": cell.key,
        "sampler": cell.sampler,
        "step_size": cell.step_size,
        "seed": cell.seed,
        "index": cell.index,
        "estimate": finite(estimate.mean),
        "stderr": finite(estimate.stderr),
        "ok": health.ok,
        "failed": list(health.failed),
        "warnings": list(health.warnings),
        "dead_chains": len(health.dead_chains),
        "values": {name: finite(value, digits=3) for name, value in health.values.items()},
        "seconds": round(time.perf_counter() - started, 3),
    }


def finite(value: float, digits: int = 7) -> float | None:
    """The value to so many digits, or None, as JSON has no word for NaN and infinity."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def one_thread() -> None:
    """For processes that share the cores: several threads each would wait for one another."""
    torch.set_num_threads(1)


def start_worker() -> None:
    """One thread, and an end with the parent: the workers of a parent that was killed would wait for work for ever."""
    one_thread()
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
