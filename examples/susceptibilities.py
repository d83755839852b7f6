"""Susceptibilities (arXiv:2504.18274): which components express which samples and tokens.

`python examples/susceptibilities.py` holds the estimators against closed forms, finds two modules of a small network,
prints whether each result came out, and writes picture, table and JSON to `--out`. `--language` adds the heads of a
two-layer transformer that has learnt two mechanisms, held against zero-ablation (`--seeds 0 1 2`; minutes a seed).
`--scale paper --tokens FILE` takes a network of the paper's size on a file of tokens instead, for a GPU.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from susceptible_heads import SCALES, Scale, heads
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.agreement import auc
from lightning_slt.analysis.responses import modes, noise_share, standardized
from lightning_slt.estimators import Responses
from lightning_slt.reporting.responses import response_figure, response_table
from lightning_slt.types import student_t_quantile

Check = tuple[str, float, bool]
"""What, its value, and whether it is as it should be."""


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    """``½ (f(x) − y)²``, one a sample."""
    return (module(batch[0])[:, 0] - batch[1]).square() / 2


# (a) linear regression, whose susceptibilities are known


class Linear(nn.Module):
    """Two blocks of weights."""

    def __init__(self, best: Tensor, first: int) -> None:
        super().__init__()
        self.first, self.last = nn.Parameter(best[:first].clone()), nn.Parameter(best[first:].clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x @ torch.cat([self.first, self.last]))[:, None]


BLOCKS = {name: slt.Component((name,)) for name in ("first", "last")}


def closed_form(x: Tensor, *, nbeta: float, localization: float) -> tuple[Tensor, Tensor, Tensor]:
    """``E[g] = ½ tr(H S)``, ``E[Δᵢ] = ½ tr((Bᵢ − H) S)`` and ``χᵢ = −½ tr(H S (Bᵢ − H) S)`` of one block."""
    h = x.T @ x / len(x)
    s = torch.linalg.inv(nbeta * h + localization * torch.eye(len(h), dtype=h.dtype))
    apart = x[:, :, None] * x[:, None, :] - h
    return (
        (h @ s).trace() / 2,
        torch.einsum("iab,ba->i", apart, s) / 2,
        -torch.einsum("ab,ibc,ca->i", h @ s, apart, s) / 2,
    )


def exact(seed: int) -> list[Check]:
    """Both estimators on linear regression, by chains without a bias of the step."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 6, generator=g, dtype=torch.float64)
    y = x @ torch.randn(6, generator=g, dtype=torch.float64) + 0.3 * torch.randn(40, generator=g, dtype=torch.float64)
    best, data = torch.linalg.lstsq(x, y[:, None]).solution[:, 0], TensorDataset(x, y)
    probe, constants = slt.Probe(data, name="data"), {"nbeta": 20.0, "localization": 5.0}
    found = slt.estimate(
        Linear(best, 2), data,
        [slt.Susceptibility(probe, BLOCKS), slt.Susceptibility(probe, BLOCKS, method="restricted", name="restricted")],
        loss_fn=squared_error, sampler=slt.UnderdampedLangevin(step_size=0.1, friction=6.0), **constants,
        sampling=slt.SamplingConfig(num_chains=32, num_draws=300, num_burnin=50, thinning=3, batch_size=40, seed=seed),
    )  # fmt: skip
    both, restricted = found["susceptibility"], found["restricted"]
    limit = student_t_quantile(1 - 1e-3 / (2 * both.matrix.numel()), degrees=31)  # all entries at once, at 0.1 %
    whole, worst = closed_form(x, **constants)[1], [0.0, 0.0]
    signs = []
    for column, block in enumerate((x[:, :2], x[:, 2:])):
        rise, delta, chi = closed_form(block, **constants)
        for which, (result, truth) in enumerate(((restricted, chi), (both, chi + rise * (whole - delta)))):
            z = (result.matrix[:, column] - truth).abs() / result.stderr[:, column]
            worst[which] = max(worst[which], float(z.max()))
        clear = chi.abs() > 4 * restricted.stderr[:, column]
        signs.append((restricted.matrix[clear, column].sign() == chi[clear].sign()).double().mean())
    return [
        ("restricted: largest distance from the closed form, in standard errors", worst[0], worst[0] < limit),
        ("two-chain: the same", worst[1], worst[1] < limit),
        ("share of right signs among clear ones", float(min(signs)), bool(min(signs) == 1)),
        ("largest sum over the data, restricted", float(restricted.matrix.sum(0).abs().max()),
         float(restricted.matrix.sum(0).abs().max()) < 1e-10),
    ]  # fmt: skip


# (b) two modules


class TwoModules(nn.Module):
    """Two tanh networks, each fed by its own half of the input, added up."""

    def __init__(self, size: int = 3, units: int = 6) -> None:
        super().__init__()
        self.size = size
        self.a_in, self.b_in = (nn.Linear(size, units, bias=False) for _ in range(2))
        self.a_out, self.b_out = (nn.Linear(units, 1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.size, 1)
        return self.a_out(self.a_in(a).tanh()) + self.b_out(self.b_in(b).tanh())


def modules(seed: int) -> tuple[list[Check], Responses]:
    """Samples that only one module sees, and the mode that tells them apart."""
    torch.manual_seed(seed)
    teacher, net = TwoModules(), TwoModules()
    kinds = torch.arange(120) % 2
    x = torch.randn(120, 6) * torch.where(torch.arange(6) // 3 == kinds[:, None], 1.0, 0.05)
    y = teacher(x).detach()[:, 0]
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(1500):
        optimizer.zero_grad()
        squared_error(net, (x, y)).mean().backward()
        optimizer.step()
    parts = {name: slt.Component((f"{name}.weight",)) for name in ("a_in", "a_out", "b_in", "b_out")}
    found = slt.estimate(
        net, TensorDataset(x, y),
        [slt.Susceptibility(slt.Probe(TensorDataset(x, y), name="samples"), parts)],
        loss_fn=squared_error, sampler=slt.SGLD(step_size=2e-3), nbeta=100.0, localization=20.0,
        sampling=slt.SamplingConfig(num_chains=8, num_draws=200, num_burnin=100, thinning=5, batch_size=120, seed=seed),
    )["susceptibility"]  # fmt: skip
    first = modes(standardized(found.matrix))
    area = float(auc(first.scores[:, 0], kinds == 1))
    loads = first.loadings[:, 0]
    apart = bool((loads[:2].sign() == loads[0].sign()).all() and (loads[2:].sign() == -loads[0].sign()).all())
    return [
        ("AUC of mode 1 for the kind of sample", max(area, 1 - area), max(area, 1 - area) >= 0.99),
        ("loadings of mode 1 are (+, +, −, −)", float(apart), apart),
        ("share of noise in the matrix", noise_share(found.matrix, found.stderr), True),
    ], found


CHOSEN_ON = range(5)
"""Seeds on which the settings of (c) were chosen; the others were looked at once, afterwards."""


def summary(outcomes: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """How many seeds pass (c), and how many each criterion: of those that settings were chosen on, and of others."""
    groups = {
        "chosen on": [of for of in outcomes if of["seed"] in CHOSEN_ON],
        "held out": [of for of in outcomes if of["seed"] not in CHOSEN_ON],
    }
    return {name: _counts(group) for name, group in groups.items() if group}


def _counts(outcomes: list[dict[str, Any]]) -> dict[str, str]:
    met: dict[str, list[bool]] = {}
    for outcome in outcomes:
        met.setdefault("passed", []).append(outcome["passed"])
        for name, of in {**outcome["criteria"], **outcome["not required"]}.items():
            for what, good in {name: of}.items() if isinstance(of, bool) else of.items():
                met.setdefault(name if what == name else f"{name}: {what}", []).append(good)
    return {what: f"{sum(good)} of {len(good)}" for what, good in met.items()}


def main() -> None:
    """All parts, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--language", action="store_true", help="also (c), minutes a seed")
    parser.add_argument("--scale", choices=SCALES, default="small", help="paper: (c) alone, on --tokens")
    parser.add_argument("--tokens", type=Path, help="for --scale paper: .npy, or bare 16-bit unsigned integers")
    parser.add_argument("--weights", type=Path, help="for --scale paper: a state dict; else the network is trained")
    parser.add_argument("--out", type=Path, default=Path("susceptibilities"))
    options = parser.parse_args()
    if (options.scale == "paper") != (options.tokens is not None):
        parser.error("--scale paper and --tokens FILE go together")
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {}
    for seed in options.seeds:
        if options.scale == "small":
            checks, found = modules(seed)
            for what, value, good in (*exact(seed), *checks):
                print(f"seed {seed}: {'yes' if good else 'NO '}  {what}: {value:.3g}")
                record.setdefault(what, []).append({"seed": seed, "value": value, "passed": good})
            print(response_table(found))
            response_figure(found).savefig(options.out / f"modules-{seed}.png")
        if options.language or options.scale == "paper":
            outcome, figure = heads(seed, SCALES[options.scale], tokens=options.tokens, weights=options.weights)
            record.setdefault("heads", []).append(outcome)
            print(json.dumps(outcome, indent=1, ensure_ascii=False))
            figure.savefig(options.out / f"heads-{seed}.png")
        _write(options.out / "susceptibilities.json", record, SCALES[options.scale])
    for seeds, counts in summary(record.get("heads", [])).items():
        for what, count in counts.items():
            print(f"(c), seeds {seeds}: {what}: {count}")


def _write(file: Path, record: dict[str, Any], scale: Scale) -> None:
    of_heads = {"heads settings": asdict(scale), "heads summary": summary(record["heads"])} if "heads" in record else {}
    file.write_text(json.dumps({**record, **of_heads}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
