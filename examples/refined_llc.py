"""Refined LLCs (arXiv:2410.02984): of a deep linear network against closed forms, and of heads that learn induction.

`python examples/refined_llc.py` takes a few minutes. Its part "layers" prints estimates by layer, by data and by both
beside the truth, and whether they agree within 6 %; its part "heads" (refined_llc_heads.py) watches the heads of a
small transformer while it trains, and prints which of the paper's statements came out. Both write to `--out`;
`--seeds 0 1 2` gives pass rates, `--scale paper` heads of the paper's size.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from induction import SCALES
from refined_llc_heads import heads
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt

WIDTHS, RANK, KEPT = [5, 4, 5], 2, 3
"""Layers, rank of the map that they make, and inputs of the subspace, which hold all of the map's rank."""

NBETA, LOCALIZATION, WITHIN = 1000.0, 1.0, 0.06


class DeepLinear(nn.Module):
    """A deep linear network at the deepest point of the set where its loss vanishes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ParameterList(slt.theory.deepest_point(WIDTHS, rank=RANK, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x @ layer.T
        return x


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    """``‖f(x) − y‖² / outputs``, one a sample."""
    return (module(batch[0]) - batch[1]).square().mean(1)


def refined(seed: int, *, num_draws: int, num_burnin: int) -> list[dict[str, Any]]:
    """Estimates and closed forms, of layers and of all weights, on all inputs and on a subspace of them."""
    net = DeepLinear()
    x = torch.randn(2000, WIDTHS[0], generator=torch.Generator().manual_seed(seed))
    inputs = {"all": x, "subspace": x * (torch.arange(WIDTHS[0]) < KEPT)}
    data = {name: TensorDataset(rows, net(rows).detach()) for name, rows in inputs.items()}
    parts = {str(n): slt.Component((f"layers.{n}",)) for n in range(len(WIDTHS) - 1)}
    found = slt.estimate(
        net, data["all"], [slt.LLC().on(part, name=name) for name, part in data.items()], loss_fn=squared_error,
        components={"full": slt.Component(tuple(f"layers.{n}" for n in range(len(WIDTHS) - 1))), **parts},
        sampler=slt.SGLD(step_size=1.5e-4), nbeta=NBETA, localization=LOCALIZATION,
        sampling=slt.SamplingConfig(
            num_chains=64, num_draws=num_draws, num_burnin=num_burnin, batch_size=256, seed=seed
        ),
    )  # fmt: skip
    rows = []
    for name in data:
        widths = [KEPT if name == "subspace" else WIDTHS[0], *WIDTHS[1:]]
        moment = inputs[name].double().T @ inputs[name].double() / len(x)
        truth = {"full": float(slt.theory.deep_linear_learning_coefficient(widths, rank=RANK)[0])}
        for part in parts:
            truth[part] = slt.theory.deep_linear_layer_llc(
                [layer.detach() for layer in net.layers], layer=int(part), nbeta=NBETA, localization=LOCALIZATION,
                second_moment=moment,
            )  # fmt: skip
        for part, value in truth.items():
            estimate = found[part][f"llc/{name}"]
            close = abs(estimate.mean / value - 1) <= WITHIN
            rows.append({"moves": part, "data": name, "estimate": estimate.mean, "stderr": estimate.stderr,
                         "truth": value, "passed": close, "health": str(estimate.health)})  # fmt: skip
    return rows


def layers(seeds: Sequence[int], folder: Path, *, num_draws: int, num_burnin: int) -> None:
    """Print a table of estimates and closed forms, and write it down."""
    record = {seed: refined(seed, num_draws=num_draws, num_burnin=num_burnin) for seed in seeds}
    for seed, rows in record.items():
        for row in rows:
            verdict = "yes" if row["passed"] else "NO "
            print(f"seed {seed}: {verdict}  {row['moves']:>5} on {row['data']:<9} {row['estimate']:.3f} ± "
                  f"{row['stderr']:.3f}, closed form {row['truth']:.3f}; {row['health']}")  # fmt: skip
    (folder / "refined_llc.json").write_text(json.dumps(record, indent=1))


def main() -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=["layers", "heads"], default=["layers", "heads"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--scale", choices=list(SCALES), default="small", help="of the heads' network")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--num-draws", type=int, default=3000, help="of the layers' chains")
    parser.add_argument("--num-burnin", type=int, default=2000, help="of the layers' chains")
    parser.add_argument("--out", type=Path, default=Path("refined_llc"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    if "layers" in options.parts:
        layers(options.seeds, options.out, num_draws=options.num_draws, num_burnin=options.num_burnin)
    if "heads" in options.parts:
        heads(options.seeds, SCALES[options.scale], options.out)


if __name__ == "__main__":
    main()
