"""Does Bayesian influence foretell retraining (arXiv:2509.26544)? On handwritten digits, against networks trained anew.

`python examples/influence_retraining.py` trains one small perceptron, measures the influence of every training digit on
every query from the losses along Langevin chains, and compares what it foretells with networks trained on random
subsets: all of them at once, in seconds. Beside it stand the dot product of gradients, and the exact damped
Gauss–Newton influence, which needs the whole Hessian. It prints its figures, says whether the result came out, and
writes figure, table and numbers to `runs/influence_retraining`. About two minutes on two cores.

The larger task, with several reference networks:

    python examples/influence_retraining.py --num-train 400 --hidden 32 --num-subsets 60 --shares 0.5 --models 3
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils.data import TensorDataset
from torch.utils.tensorboard import SummaryWriter

import lightning_slt as slt
from lightning_slt.analysis.retraining import LDS, Retrained, lds, random_subsets, retrain
from lightning_slt.reporting.influence import influence_table

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

NBETA, DAMPING = 300.0, 0.03
"""nβ, and γ/nβ: found on the larger task's first network and data (seed 0), kept for everything else."""

SMALL_SUBSETS = {"share": 0.1, "bar": 0.7}
LABELS = {
    "influence": "Bayesian influence",
    "normalized": "normalized Bayesian influence",
    "dot": "gradient dot product",
    "cosine": "gradient cosine",
    "damped": "exact damped Gauss–Newton",
}
COLOURS = dict(zip(LABELS, ("#0072B2", "#56B4E9", "#E69F00", "#F0E442", "#999999"), strict=True))


def digits(num_train: int, num_query: int, seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Disjoint digits, chosen at random."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(images / 16).float()[order], torch.tensor(labels)[order]
    end = num_train + num_query
    return TensorDataset(x[:num_train], y[:num_train]), TensorDataset(x[num_train:end], y[num_train:end])


def perceptron(hidden: int) -> nn.Module:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))


def adam(weights: list[Tensor]) -> torch.optim.Optimizer:
    """How every network here is trained, on all of its samples at each step."""
    return torch.optim.Adam(weights, lr=3e-3)


def reference(data: TensorDataset, hidden: int, num_steps: int, seed: int) -> nn.Module:
    """A network trained on everything, as the others are on their subsets."""
    torch.manual_seed(seed)
    net, (x, y) = perceptron(hidden), data.tensors
    descent = adam(list(net.parameters()))
    for _ in range(num_steps):
        descent.zero_grad()
        F.cross_entropy(net(x), y).backward()
        descent.step()
    return net


def bayesian_influence(
    net: nn.Module,
    train: TensorDataset,
    query: TensorDataset,
    *,
    nbeta: float,
    localization: float,
    sampling: slt.SamplingConfig,
) -> Any:
    """Full-batch Langevin dynamics with momentum: no discretization bias, and √(λ_max nβ/γ) steps to forget in."""
    pilot = slt.SamplingConfig(num_chains=2, num_draws=1, num_burnin=0, batch_size=len(train))
    words = {"loss_fn": slt.losses.classification, "nbeta": nbeta, "localization": localization}
    curvature = slt.estimate(net, train, [slt.LLC()], sampling=pilot, **words)["llc"].settings.curvature
    sampler = slt.UnderdampedLangevin(
        step_size=1 / math.sqrt(1.2 * nbeta * curvature + localization), friction=math.sqrt(localization)
    )
    estimator = slt.BayesianInfluence(train=train, query=query)
    return slt.estimate(net, train, [estimator], sampler=sampler, sampling=sampling, **words)["influence"]


def gradients(net: nn.Module, data: TensorDataset) -> Tensor:
    """Gradient of each sample's loss ``[sample, weight]``."""

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, weights, (x[None],)), y[None])

    weights = {name: w.detach() for name, w in net.named_parameters()}
    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, *data.tensors)
    return torch.cat([g.flatten(1) for g in each.values()], 1)


def gauss_newton(net: nn.Module, data: TensorDataset) -> Tensor:
    """``1/n Σ_i J_iᵀ (diag p_i − p_i p_iᵀ) J_i`` ``[weight, weight]``."""
    weights, x = {name: w.detach() for name, w in net.named_parameters()}, data.tensors[0]
    each = vmap(jacrev(lambda w, x: functional_call(net, w, (x[None],))[0]), in_dims=(None, 0))(weights, x)
    jacobian = torch.cat([j.flatten(2) for j in each.values()], 2)
    root = net(x).detach().softmax(1).sqrt()
    rows = root[:, :, None] * (jacobian - (root.square()[:, None] @ jacobian))
    rows = rows.flatten(0, 1)
    return rows.T @ rows / len(x)


def predictions(net: nn.Module, train: TensorDataset, query: TensorDataset, found: Any) -> dict[str, Tensor]:
    """All that is compared ``[train, query]``, negative where a sample helps."""
    of_train, of_query = gradients(net, train), gradients(net, query)
    damped = gauss_newton(net, train) + 0.01 * torch.eye(of_train.shape[1])
    return {
        "influence": found.influence,
        "normalized": found.normalized,
        "dot": -of_train @ of_query.T,
        "cosine": -F.normalize(of_train) @ F.normalize(of_query).T,
        "damped": -of_train @ torch.linalg.solve(damped, of_query.T),
    }


def limit(net: nn.Module, train: TensorDataset, query: TensorDataset) -> float:
    """Correlation with the gradient dot product where localization is strong: a check of the estimator."""
    sampling = slt.SamplingConfig(num_chains=8, num_draws=500, num_burnin=50, thinning=3, batch_size=len(train))
    found = bayesian_influence(net, train, query, nbeta=10.0, localization=1000.0, sampling=sampling)
    dots = gradients(net, train) @ gradients(net, query).T
    return float(torch.corrcoef(torch.stack([found.covariance.flatten(), dots.double().flatten()]))[0, 1])


def draw(scores: dict[float, dict[str, LDS]]) -> Figure:
    """Scores by size of the subsets, with intervals and ceilings."""
    figure, axes = plt.subplots(figsize=(8, 4.4), layout="constrained")
    width = 0.8 / len(LABELS)
    for place, (key, label) in enumerate(LABELS.items()):
        at = [i + (place - (len(LABELS) - 1) / 2) * width for i in range(len(scores))]
        bars = [by_key[key] for by_key in scores.values()]
        axes.bar(at, [b.score for b in bars], width, label=label, color=COLOURS[key])
        axes.errorbar(at, [b.score for b in bars], [b.upper - b.score for b in bars], fmt="none", ecolor="#333333")
    for i, by_key in enumerate(scores.values()):
        ceiling = by_key["influence"].ceiling
        axes.hlines(ceiling, i - 0.45, i + 0.45, color="#333333", linestyle="--", label=None if i else "noise ceiling")
    axes.set(ylabel="LDS: rank correlation with retraining", xlabel="share of the training samples in a subset")
    axes.set_xticks(range(len(scores)), [f"{share:g}" for share in scores])
    figure.legend(fontsize=8, ncols=3, loc="outside upper center")
    return figure


def average(scores: Sequence[LDS]) -> dict[str, float]:
    """Over reference networks."""
    keys = ("score", "lower", "upper", "ceiling")
    return {key: round(sum(getattr(s, key) for s in scores) / len(scores), 4) for key in keys}


def verdicts(scores: dict[float, dict[str, LDS]], correlation: float) -> dict[str, bool]:
    """What was to come out, by what it says."""
    out = {f"correlation with the dot product at γ = 1000, nβ = 10: {correlation:.3f} ≥ 0.97": correlation >= 0.97}
    if half := scores.get(0.5):
        found, dot, damped = (half[key].score for key in ("influence", "dot", "damped"))
        out[f"half: LDS of the influence {found:.3f} ≥ 0.55"] = found >= 0.55
        out[f"half: above the dot product's {dot:.3f} by 0.15"] = found >= dot + 0.15
        out[f"half: within 0.10 of the exact damped influence's {damped:.3f}"] = found >= damped - 0.10
    if small := scores.get(SMALL_SUBSETS["share"]):
        found = small["normalized"].score
        out[f"a tenth: LDS of the normalized influence {found:.3f} ≥ {SMALL_SUBSETS['bar']}"] = (
            found >= SMALL_SUBSETS["bar"]
        )
    return out


def retrained(train: TensorDataset, query: TensorDataset, share: float, args: argparse.Namespace) -> Retrained:
    """Networks trained on random subsets, from several initializations."""
    subsets = random_subsets(len(train), share=share, num_subsets=args.num_subsets, seed=args.seed)
    return retrain(
        lambda: perceptron(args.hidden),
        train,
        query,
        subsets,
        loss_fn=slt.losses.classification,
        optimizer=adam,
        num_steps=args.num_steps,
        num_seeds=args.num_seeds,
        seed=args.seed,
    )


def one_model(
    number: int, train: TensorDataset, query: TensorDataset, outcomes: dict[float, Retrained], args: argparse.Namespace
) -> tuple[dict[float, dict[str, LDS]], Any, nn.Module]:
    """Scores of everything that one reference network foretells."""
    net = reference(train, args.hidden, args.num_steps, seed=1000 + 100 * args.seed + number)
    sampling = slt.SamplingConfig(
        num_chains=args.num_chains, num_draws=args.num_draws, num_burnin=300, thinning=8, batch_size=len(train)
    )
    began = time.perf_counter()
    found = bayesian_influence(
        net, train, query, nbeta=args.nbeta, localization=args.damping * args.nbeta, sampling=sampling
    )
    seconds = time.perf_counter() - began
    print(
        f"network {number}: influences in {seconds:.0f} s, worth {found.n_eff:.0f} independent draws, "
        f"reliability {found.reliability:.2f}, health {found.health}"
    )
    foretold = predictions(net, train, query, found)
    scores = {share: {key: lds(p, r) for key, p in foretold.items()} for share, r in outcomes.items()}
    for share, by_key in scores.items():
        for key, score in by_key.items():
            print(f"  subsets of {share:<5g} {LABELS[key]:<30} {score}")
    return scores, found, net


def run(args: argparse.Namespace) -> bool:
    """The whole experiment; whether everything came out."""
    torch.set_num_threads(args.threads)
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, query = digits(args.num_train, args.num_query, args.seed)
    began = time.perf_counter()
    outcomes = {share: retrained(train, query, share, args) for share in args.shares}
    networks = args.num_subsets * args.num_seeds * len(args.shares)
    print(f"{networks} networks of 64-{args.hidden}-10 trained in {time.perf_counter() - began:.0f} s")
    models = [one_model(number, train, query, outcomes, args) for number in range(args.models)]
    scores, found, net = models[0]
    checks = verdicts(scores, limit(net, train, query))
    for what, held in checks.items():
        print(f"{'yes' if held else 'NO ':3} {what}")
    results = {
        "settings": {key: value for key, value in vars(args).items() if key != "folder"},
        "scores": {
            str(share): {key: average([m[0][share][key] for m in models]) for key in LABELS} for share in args.shares
        },
        "each_network": {str(s): [round(m[0][s]["influence"].score, 4) for m in models] for s in args.shares},
        "checks": checks,
        "seconds": round(time.perf_counter() - began),
    }
    if args.models > 1:
        for share, by_key in results["scores"].items():
            for key, values in by_key.items():
                print(f"mean of {args.models} networks, subsets of {share}: {LABELS[key]} {values['score']:.3f}")
    (folder / "influence_retraining.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    figure = draw(scores)
    figure.savefig(folder / "influence_retraining.png", dpi=120)
    table = influence_table(found, queries=range(min(10, len(query))))
    with SummaryWriter(str(folder)) as writer:
        writer.add_figure("influence/retraining", figure)
        writer.add_text("influence/samples", table)
    print(table, f"written to {folder} in {results['seconds']} s", sep="\n\n")
    return all(checks.values())


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-train", type=int, default=200)
    parser.add_argument("--num-query", type=int, default=100)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--num-subsets", type=int, default=50)
    parser.add_argument("--num-seeds", type=int, default=4)
    parser.add_argument("--num-steps", type=int, default=200, help="of Adam, for every network")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.25, 0.5, 0.75])
    parser.add_argument("--models", type=int, default=1, help="reference networks")
    parser.add_argument("--nbeta", type=float, default=NBETA)
    parser.add_argument("--damping", type=float, default=DAMPING, help="γ/nβ")
    parser.add_argument("--num-chains", type=int, default=32)
    parser.add_argument("--num-draws", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", default="runs/influence_retraining")
    raise SystemExit(0 if run(parser.parse_args()) else 1)


if __name__ == "__main__":
    main()
