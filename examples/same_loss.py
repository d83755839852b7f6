"""Two networks with the same loss told apart by their geometry (arXiv:2502.05475); one before and after a fine-tune.

Both kinds of network are trained on the same 600 handwritten digits until the loss is 0.005. One starts from random
weights and generalizes; the other has memorized random labels of the same pictures before, and memorizes the true ones
as well. Their training losses are equal, their LLCs and loss kernels are not. Then a network is fine-tuned on digits of
which 3 and 8 are swapped, and held against itself, trained on as before.

    python examples/same_loss.py                     # under three minutes of one core
    python examples/same_loss.py --seeds 0 1 2

It prints both reports, says whether the result came out, and writes figures and numbers to `runs/same_loss`.
"""

from __future__ import annotations

import argparse
import copy
import json
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter

import lightning_slt as slt
from lightning_slt.losses import classification

matplotlib.use("Agg")

NUM_TRAIN, NUM_PROBE, LOSS = 600, 300, 5e-3


def digits() -> tuple[Tensor, Tensor]:
    """All digits in one order, pixels between 0 and 1."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]


def network(seed: int) -> nn.Sequential:
    """A perceptron of two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def train(net: nn.Module, x: Tensor, y: Tensor, *, until: float, most: int = 5000) -> nn.Module:
    """Adam on all samples at once until the loss is small enough; the same network."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(most):
        loss = F.cross_entropy(net(x), y)
        if float(loss.detach()) < until:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net


def generalizing(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """Trained from random weights."""
    return train(network(seed), x, y, until=LOSS)


def memorizing(seed: int, x: Tensor, y: Tensor) -> nn.Module:
    """Trained on random labels first."""
    labels = torch.randint(10, y.shape, generator=torch.Generator().manual_seed(seed))
    return train(train(network(seed), x, labels, until=0.01), x, y, until=LOSS)


def trained_on(net: nn.Module, x: Tensor, y: Tensor, *, steps: int, seed: int) -> nn.Module:
    """A copy of a network, trained on by minibatches."""
    other, g = copy.deepcopy(net), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(other.parameters(), lr=1e-3)
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(other(x[batch]), y[batch]).backward()
        optimizer.step()
    return other


def run(seed: int, args: argparse.Namespace) -> tuple[dict[str, bool], dict[str, Any], list[Any]]:
    """Both comparisons of one seed: what came out, the numbers, and the reports."""
    x, y = digits()
    seen, unseen = (x[:NUM_TRAIN], y[:NUM_TRAIN]), (x[NUM_TRAIN:], y[NUM_TRAIN:])
    probe = slt.Probe(TensorDataset(unseen[0][:NUM_PROBE], unseen[1][:NUM_PROBE]), name="held out")
    settings: dict[str, Any] = {
        "data": TensorDataset(*seen),
        "estimators": [slt.LLC(), slt.LossKernel(probe)],
        "loss_fn": classification,
        "nbeta": args.nbeta,
        "sampling": slt.SamplingConfig(num_chains=args.num_chains, num_draws=args.num_draws, batch_size=128),
    }
    plain = [generalizing(100 * seed + k, *seen) for k in range(args.baseline + 1)]
    other = memorizing(100 * seed, *seen)
    correct = [float((net(unseen[0]).argmax(1) == unseen[1]).float().mean()) for net in (plain[0], other)]
    kinds = slt.compare(plain[0], other, baseline=plain[1:], names=("generalizing", "memorizing"), **settings)
    swapped = torch.where(seen[1] == 3, 8, torch.where(seen[1] == 8, 3, seen[1]))
    tuned = trained_on(plain[0], seen[0], swapped, steps=300, seed=1)
    same = [trained_on(plain[0], *seen, steps=300, seed=2 + k) for k in range(args.baseline)]
    diff = slt.compare(plain[0], tuned, baseline=same, names=("before", "after"), **settings)
    llc, kernel = kinds.differences["full/llc"], kinds.alignments["full/loss_kernel"]
    gap = kinds.preference.loss if kinds.preference is not None else float("nan")
    checks = {
        "training losses within 0.001": abs(gap) < 1e-3,
        "LLCs apart by more than three standard errors": abs(llc.z) > 3,
        "kernels less alike than those of two seeds of one kind": kernel.differs is True,
        "the fine-tune shows in the kernel": diff.alignments["full/loss_kernel"].differs is True,
    }
    numbers = {
        "loss difference": gap,
        "test accuracy": correct,
        "llc": [llc.first, llc.second],
        "standard errors apart": llc.z,
        "llc ok": llc.ok,
        "alignment": kernel.cka,
        "alignment of seeds": list(kernel.baseline),
        "fine-tune alignment": diff.alignments["full/loss_kernel"].cka,
        "fine-tune baseline": list(diff.alignments["full/loss_kernel"].baseline),
    }
    return checks, numbers, [kinds, diff]


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--baseline", type=int, default=3, help="further networks of one kind")
    parser.add_argument("--nbeta", type=float, default=30.0)
    parser.add_argument("--num-chains", type=int, default=8)
    parser.add_argument("--num-draws", type=int, default=200)
    parser.add_argument("--folder", type=Path, default=Path("runs/same_loss"))
    parser.add_argument("--out", type=Path, help="where the numbers go; by default into the folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", ".*cannot be relied on.*")
    args.folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    for seed in args.seeds:
        checks, numbers, reports = run(seed, args)
        results[str(seed)] = {"checks": checks, **numbers}
        if seed == args.seeds[0]:
            with SummaryWriter(str(args.folder)) as writer:
                for name, report in zip(("kinds", "fine-tune"), reports, strict=True):
                    print(report)
                    report.plot().savefig(args.folder / f"{name}.png")
                    writer.add_text(name, str(report))
        print(f"seed {seed}: {json.dumps(numbers)}")
        for what, held in checks.items():
            print(f"  {'yes' if held else 'NO ':3} {what}")
    passed = sum(all(r["checks"].values()) for r in results.values())
    print(f"{passed} of {len(results)} seeds show all of it")
    out = args.out or args.folder / "same_loss.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    raise SystemExit(0 if passed == len(results) else 1)


if __name__ == "__main__":
    main()
