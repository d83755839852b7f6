"""The loss kernel (arXiv:2509.26537): which samples' losses move together, on tasks, digits and a tree of classes.

`python examples/loss_kernel.py` takes half a minute and downloads nothing. It prints its figures and whether each
result came out, and writes them, with heat maps and maps for the projector, to TensorBoard and to a JSON file.
`--imagenet DIR --weights FILE` adds a network of torchvision on a folder of ImageNet classes held against WordNet,
`--scale paper` on ten thousand images, for a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.cluster import AgglomerativeClustering
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.analysis.agreement import agreement, auc, group_means, mantel, path_distances
from lightning_slt.analysis.kernels import clusters, suspects
from lightning_slt.estimators import KernelEstimate
from lightning_slt.gram import normalized
from lightning_slt.reporting.kernels import kernel_figure
from lightning_slt.reporting.pictures import write_pictures

Criterion = tuple[str, float, str, float]
"""What, its value, ">=" or "<=", and the limit."""

Part = tuple[dict[str, float], list[Criterion], dict[str, KernelEstimate]]
"""Figures, what they are held against, and the kernels."""


@dataclass(frozen=True)
class Scale:
    """How much is computed.

    Attributes:
        steps: Of training on the four tasks; on the tree half as many again.
        draws: Of each of 8 chains on the tasks; on digits 3 for 5 of them.
        digits: Digits whose kernel is taken.
        images: Of each class of ImageNet.
        image_draws: Of each of 4 chains on these.
        network: Of torchvision.
    """

    steps: int = 2000
    draws: int = 250
    digits: int = 500
    images: int = 20
    image_draws: int = 100
    network: str = "resnet18"


SCALES = {
    "quick": Scale(steps=40, draws=10, digits=60, images=2, image_draws=10),  # to see that it runs: nothing comes out
    "cpu": Scale(),
    "paper": Scale(draws=1000, digits=1797, images=10, image_draws=250, network="googlenet"),
}


def squared_error(module: nn.Module, batch: Any) -> Tensor:
    """``½‖f(x) − y‖²``, one a sample."""
    return (module(batch[0]) - batch[1]).square().sum(1) / 2


def train(net: nn.Module, loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, steps: int) -> None:
    """Full-batch descent."""
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


# (a) four regression tasks in one network


class Private(nn.Module):
    """The control: hidden units that only one task can use, and no weight that two tasks share."""

    def __init__(self, tasks: int = 4, units: int = 12) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(10, tasks * units), nn.Linear(tasks * units, 1, bias=False)
        self.units = units

    def forward(self, x: Tensor) -> Tensor:
        mine = x[:, 6:].repeat_interleave(self.units, 1) > 0
        return self.out(torch.where(mine, self.hidden(x).relu(), 0.0))


def tasks(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """4 tasks × 40 points: six numbers and which task, and ``sin(w·x) + relu(v·x)`` with vectors of the task's own."""
    g = torch.Generator().manual_seed(seed)
    task = torch.arange(4).repeat_interleave(40)
    x, (w, v) = torch.randn(160, 6, generator=g), torch.randn(2, 4, 6, generator=g) / 2
    y = torch.sin((w[task] * x).sum(1)) + torch.relu((v[task] * x).sum(1))
    return torch.cat([x, 2.0 * F.one_hot(task, 4)], 1), y[:, None], task


def gradient_cosines(net: nn.Module, x: Tensor, *, nbeta: float, gamma: float, step: float) -> Tensor:
    r"""What R is at zero residual: ``cos²`` of the output's gradients in the metric of SGLD's stationary variance.

    ``ℓ = ½r²`` has ``Cov(ℓ_i, ℓ_j) = ½(J_i S J_jᵀ)²`` with ``S = (P − εP²/4)⁻¹``, ``P = nβ JᵀJ/n + γ``.
    """
    output = torch.func.grad(lambda weights, row: torch.func.functional_call(net, weights, (row[None],))[0, 0])
    rows = torch.func.vmap(output, (None, 0))(dict(net.named_parameters()), x)
    jacobian = torch.cat([r.detach().flatten(1) for r in rows.values()], 1).double()
    precision = nbeta * jacobian.T @ jacobian / len(x) + gamma * torch.eye(jacobian.shape[1]).double()
    spread = torch.linalg.inv(precision - step * precision @ precision / 4)
    unit = normalized(torch.linalg.cholesky(spread).T @ jacobian.T)
    return (unit.T @ unit).square()


def multitask(seed: int, net: nn.Module, scale: Scale) -> tuple[KernelEstimate, Tensor, nn.Module, Tensor]:
    """Train on all tasks, and take the kernel of all points."""
    x, y, task = tasks(seed)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    train(net, lambda: squared_error(net, (x, y)).mean(), optimizer, scale.steps)
    data = TensorDataset(x, y)
    kernel = slt.estimate(
        net, data, [slt.LossKernel(slt.Probe(data, labels=task))], loss_fn=squared_error,
        sampler=slt.SGLD(step_size=5e-4), nbeta=10.0, localization=1000.0,
        sampling=slt.SamplingConfig(
            num_chains=8, num_draws=scale.draws, num_burnin=30, thinning=2, batch_size=160, seed=seed
        ),
    )["loss_kernel"]  # fmt: skip
    return kernel, task, net, x


def part_a(seed: int, scale: Scale) -> Part:
    """Kernel of a shared network, of one with private units, and the gradients' cosines beside it."""
    torch.manual_seed(seed)
    shared, task, net, x = multitask(seed, nn.Sequential(nn.Linear(10, 48), nn.ReLU(), nn.Linear(48, 1)), scale)
    private, _, _, _ = multitask(seed, Private(), scale)
    told = agreement(shared.factor, task, found=clusters(shared.factor, 4), n_eff=shared.n_eff)
    control = agreement(private.factor, task, found=clusters(private.factor, 4), n_eff=private.n_eff)
    cosines = gradient_cosines(net, x, nbeta=10.0, gamma=1000.0, step=5e-4)
    same = (task[:, None] == task) & ~torch.eye(160, dtype=torch.bool)
    within, between = (float(cosines[pairs].mean()) for pairs in (same, task[:, None] != task))
    figures = {
        "within": told.within, "between": told.between, "ratio": told.within / told.between, "purity": told.purity,
        "adjusted_rand": told.adjusted_rand, "auc": told.auc, "cosine_within": within, "cosine_between": between,
        "private_between": control.between, "private_adjusted_rand": control.adjusted_rand,
        "n_eff": shared.n_eff, "reliability": shared.reliability,
    }  # fmt: skip
    criteria = [
        ("mean R within tasks", told.within, ">=", 0.18),
        ("mean R between tasks", told.between, "<=", 0.09),
        ("their ratio", told.within / told.between, ">=", 3.0),
        ("5-NN purity", told.purity, ">=", 0.9),
        ("private units: |mean R between|", abs(control.between), "<=", 0.01),
        ("private units: adjusted Rand index", control.adjusted_rand, ">=", 0.9),
        ("within: |R / gradient cosine² − 1|", abs(told.within / within - 1), "<=", 0.2),
        ("between: |R / gradient cosine² − 1|", abs(told.between / between - 1), "<=", 0.2),
    ]
    return figures, criteria, {"tasks": shared, "private": private}


# (b) digits, some of them mislabelled


def part_b(seed: int, scale: Scale, flips: int = 10) -> Part:
    """Classes of digits in the kernel, and flipped labels in its diagonal."""
    images, truth = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    g = torch.Generator().manual_seed(seed)
    x, order = (images / 16).float(), torch.randperm(len(images), generator=g)
    flipped = order[:flips]
    given = truth.clone()
    given[flipped] = (truth[flipped] + torch.randint(1, 10, (flips,), generator=g)) % 10
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, weight_decay=1e-2)
    train(net, lambda: F.cross_entropy(net(x), given), optimizer, 200)
    some = order[: scale.digits]  # the flipped ones among them
    data, probe = TensorDataset(x, given), slt.Probe(TensorDataset(x[some], given[some]), name="digits")
    sprites = 1 - x[some].reshape(-1, 1, 8, 8)
    kernel = slt.estimate(
        net, data, [slt.LossKernel(probe, sprites=sprites)], loss_fn=slt.losses.classification,
        sampler=slt.SGLD(step_size=1e-3), nbeta=100.0, localization=300.0,
        sampling=slt.SamplingConfig(
            num_chains=8, num_draws=3 * scale.draws // 5, num_burnin=100, thinning=4, batch_size=256, seed=seed
        ),
    )["loss_kernel"]  # fmt: skip
    clean = torch.arange(flips, scale.digits)
    told = agreement(kernel.factor[:, clean], truth[some][clean], n_eff=kernel.n_eff)
    is_flipped = torch.arange(scale.digits) < flips
    named = suspects(kernel.variances, flips)
    found = float(is_flipped[named.indices].double().mean())
    figures = {
        "purity": told.purity, "within": told.within, "between": told.between, "within_square": told.within_square,
        "between_square": told.between_square, "auc": told.auc, "flipped_found": found,
        "flipped_auc": auc(named.scores, is_flipped), "loss_auc": auc(kernel.anchor, is_flipped),
        "n_eff": kernel.n_eff, "reliability": kernel.reliability,
        "wrong": float((net(x).argmax(1) != truth).double().mean()),
    }  # fmt: skip
    criteria = [
        ("5-NN class purity", told.purity, ">=", 0.95),
        ("flipped labels by self-variance: AUC", figures["flipped_auc"], ">=", 0.95),
    ]
    return figures, criteria, {"digits": kernel}


# (c) a tree of classes

NODES = {
    **{f"item{i}": f"kind{i // 2}" for i in range(8)},
    **{f"kind{i}": f"kingdom{i // 2}" for i in range(4)},
    **{f"kingdom{i}": "life" for i in range(2)},
}
ITEMS = [f"item{i}" for i in range(8)]


def tree_features() -> Tensor:
    """One feature for each node of the tree, 1 for the items below it ``[item, node]``."""
    nodes = [*ITEMS, *dict.fromkeys(NODES.values())]
    lines = [[item, NODES[item], NODES[NODES[item]], "life"] for item in ITEMS]
    return torch.tensor([[float(node in line) for node in nodes] for line in lines])


MOMENTS = {"a quarter learned": 0.75, "half learned": 0.5, "mostly learned": 0.15, "learned": 0.0}
"""When the kernel of the tree is taken: the loss over that at the start; 0 is the last step."""


def part_c(seed: int, scale: Scale, digits: KernelEstimate) -> Part:
    """Mantel's test on a tree of items at four moments of training, and on a tree of digits made from their pixels."""
    torch.manual_seed(seed)
    x, y = torch.eye(8), tree_features()
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Linear(16, 15, bias=False))
    for layer in net:
        nn.init.normal_(layer.weight, std=(1e-3 / 16) ** 0.5)
    data, tree = TensorDataset(x, y), path_distances(NODES, ITEMS)
    optimizer, figures, kernels, step = torch.optim.SGD(net.parameters(), lr=0.02), {}, {}, 0

    def loss() -> Tensor:
        return squared_error(net, (x, y)).mean()

    start = loss().item()
    for moment, share in MOMENTS.items():
        while step < 3 * scale.steps // 2 and loss().item() > share * start:
            train(net, loss, optimizer, 1)
            step += 1
        kernel = slt.estimate(
            net, data, [slt.LossKernel(slt.Probe(data, labels=torch.arange(8)))], loss_fn=squared_error,
            sampler=slt.SGLD(step_size=5e-4), nbeta=8.0, localization=1000.0,
            sampling=slt.SamplingConfig(num_burnin=20, thinning=2, batch_size=8, seed=seed),
        )["loss_kernel"]  # fmt: skip
        test = mantel(1 - kernel.correlation, tree, seed=seed)
        figures |= {f"{moment}: Spearman": test.correlation, f"{moment}: p": test.p, f"{moment}: step": step}
        for name, distance in (("siblings", 2), ("cousins", 4), ("other kingdom", 6)):
            figures[f"{moment}: R of {name}"] = float(kernel.correlation[tree == distance].mean())
        kernels[f"tree, {moment}"] = kernel
    means = group_means(digits.factor, digits.labels, n_eff=digits.n_eff)
    pixels = pixel_distances()
    of_digits = mantel(-means.square, pixels, permutations=9999, seed=seed)
    figures |= {"digits_spearman": of_digits.correlation, "digits_p": of_digits.p}
    criteria = [
        ("tree of items, a quarter learned: Mantel's p", figures["a quarter learned: p"], "<=", 0.05),
        ("digits and a tree of their pixels: Mantel's p", of_digits.p, "<=", 0.05),
    ]
    return figures, criteria, kernels


def pixel_distances() -> Tensor:
    """Paths between digits in a tree by average linkage of their mean images, which knows nothing of the network."""
    images, truth = load_digits(return_X_y=True)
    means = [images[truth == digit].mean(0) for digit in range(10)]
    merges = AgglomerativeClustering(n_clusters=1, linkage="average", compute_full_tree=True).fit(means).children_
    parents = {str(child): str(10 + row) for row, pair in enumerate(merges) for child in pair}
    return path_distances(parents, [str(digit) for digit in range(10)])


# ImageNet and WordNet, where they are at hand


def wordnet(file: Path) -> dict[str, str]:
    """``{class: parent}`` of ImageNet's ``wordnet.is_a.txt``, "parent child" a line; the first parent counts."""
    parents: dict[str, str] = {}
    for line in file.read_text().splitlines():
        parent, child = line.split()
        parents.setdefault(child, parent)
    return parents


class ImageFolder(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """``DIR/<wnid>/*.JPEG``, the middle 224 × 224 pixels, normalized as torchvision's networks expect."""

    def __init__(self, folder: Path, per_class: int = 20) -> None:
        self.classes = sorted(d.name for d in folder.iterdir() if d.is_dir() and any(d.glob("*.JPEG")))
        if len(self.classes) < 3:
            raise ValueError(f"{folder} must hold a folder <wnid>/*.JPEG for each of three classes at least")
        self.files = [
            (file, label)
            for label, name in enumerate(self.classes)
            for file in sorted((folder / name).glob("*.JPEG"))[:per_class]
        ]

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, index: int, size: int = 224, shorter: int = 256) -> Tensor:
        """The middle of a picture whose shorter side is made so long, in 0 to 1 ``[channel, size, size]``."""
        import numpy as np
        from PIL import Image

        with Image.open(self.files[index][0]) as picture:
            scale = shorter / min(picture.size)
            width, height = (max(size, round(side * scale)) for side in picture.size)
            resized = picture.convert("RGB").resize((width, height))
        top, left = (height - size) // 2, (width - size) // 2
        whole = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1) / 255
        return whole[:, top : top + size, left : left + size]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return (self.pixels(index) - mean[:, None, None]) / std[:, None, None], self.files[index][1]


def imagenet(folder: Path, net: nn.Module, scale: Scale, seed: int = 0) -> Part:
    """Kernel of a classifier on folders of ImageNet classes, held against WordNet by Mantel's test over classes.

    Args:
        folder: Holds ``<wnid>/*.JPEG``, ``wordnet.is_a.txt``, and ``classes.json``, a list of the network's classes.
        net: Gives a logit for each of them, in this order.
        scale: How many images and draws.
        seed: Of the chains.
    """
    data = ImageFolder(folder, per_class=scale.images)
    order = json.loads((folder / "classes.json").read_text())
    rows = torch.tensor([order.index(name) for name in data.classes])

    def loss(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(module(batch[0]), rows.to(batch[1].device)[batch[1]], reduction="none")

    sprites = torch.stack([data.pixels(index, 32, 32) for index in range(len(data))])
    kernel = slt.estimate(
        net, data, [slt.LossKernel(slt.Probe(data, name="imagenet"), sprites=sprites)], loss_fn=loss,
        nbeta=30.0, localization=300.0,
        sampling=slt.SamplingConfig(
            num_chains=4, num_draws=scale.image_draws, batch_size=min(64, len(data)), seed=seed
        ),
    )["loss_kernel"]  # fmt: skip
    means = group_means(kernel.factor, kernel.labels, n_eff=kernel.n_eff)
    tree = path_distances(wordnet(folder / "wordnet.is_a.txt"), data.classes)
    test = mantel(-means.square, tree, permutations=9999, seed=seed)
    told = agreement(kernel.factor, kernel.labels, n_eff=kernel.n_eff)
    figures = {
        "images": len(data), "classes": len(data.classes), "purity": told.purity, "chance": told.chance,
        "within": told.within, "between": told.between, "within_square": told.within_square,
        "between_square": told.between_square, "spearman": test.correlation, "p": test.p, "n_eff": kernel.n_eff,
        "reliability": kernel.reliability,
    }  # fmt: skip
    criteria = [
        ("5-NN class purity over that of chance", told.purity / told.chance, ">=", 2.0),
        ("classes and WordNet: Mantel's p", test.p, "<=", 0.05),
    ]
    return figures, criteria, {"imagenet": kernel}


def pretrained(name: str, weights: Path) -> nn.Module:
    """A network of torchvision with weights from a file, on the GPU where there is one."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError("--imagenet needs torchvision; pip install torchvision") from error
    if name == "googlenet":  # Inception-v1: torchvision's weights expect pixels scaled otherwise, which it does itself
        net: nn.Module = models.googlenet(transform_input=True, init_weights=False, aux_logits=False)
    else:
        net = getattr(models, name)()
    found = torch.load(weights, weights_only=True, map_location="cpu")
    net.load_state_dict({key: value for key, value in found.items() if not key.startswith("aux")})
    return net.to("cuda" if torch.cuda.is_available() else "cpu")


# running and telling


def parts(seed: int, scale: Scale, folder: Path | None, weights: Path | None) -> Iterator[tuple[str, Part]]:
    """All parts for one seed, one after another."""
    yield "a", part_a(seed, scale)
    yield "b", (b := part_b(seed, scale))
    yield "c", part_c(seed, scale, b[2]["digits"])
    if folder is not None and weights is not None:
        yield "imagenet", imagenet(folder, pretrained(scale.network, weights), scale, seed)


def came_out(criterion: Criterion) -> bool:
    """Whether a value is on the right side of its limit."""
    _, value, side, limit = criterion
    return value >= limit if side == ">=" else value <= limit


def record(part: str, seed: int, found: Part) -> dict[str, Any]:
    """What is written down of one part: figures, criteria and the health of its kernels."""
    figures, criteria, kernels = found
    return {
        "part": part,
        "seed": seed,
        "figures": {name: round(float(value), 5) for name, value in figures.items()},
        "criteria": [
            {"what": c[0], "value": round(c[1], 5), "side": c[2], "limit": c[3], "came_out": came_out(c)}
            for c in criteria
        ],
        "health": {name: str(kernel.health) for name, kernel in kernels.items()},
    }


def tell(row: dict[str, Any]) -> None:
    """Print one part."""
    figures = "  ".join(f"{name} {value:.3g}" for name, value in row["figures"].items())
    print(f"\n({row['part']}) seed {row['seed']}   {figures}")
    for c in row["criteria"]:
        word = "came out       " if c["came_out"] else "DID NOT COME OUT"
        print(f"    {word}  {c['what']}: {c['value']:.3f} ({c['side']} {c['limit']:g})")
    for name, health in row["health"].items():
        print(f"    {name}: {health}")


def write(file: Path, options: argparse.Namespace, rows: list[dict[str, Any]]) -> list[bool]:
    """All parts so far as JSON; which results came out."""
    results = [c["came_out"] for row in rows for c in row["criteria"]]
    written = {"scale": options.scale, "seeds": options.seeds, "came_out": sum(results), "of": len(results)}
    file.write_text(json.dumps({**written, "parts": rows}, indent=1, ensure_ascii=False) + "\n")
    return results


def draw(logger: TensorBoardLogger, folder: Path, kernels: dict[str, KernelEstimate]) -> None:
    """Heat maps and maps of samples for TensorBoard, and heat maps as files."""
    for name, kernel in kernels.items():
        write_pictures([logger], "kernel", {name: {"loss_kernel": kernel}}, 0)
        kernel_figure(kernel, title=f"{name}: R, ± {kernel.noise:.2g} an entry").savefig(folder / f"{name}.png")


def side_by_side(folder: Path) -> None:
    """The picture of docs/loss_kernel.md."""
    from PIL import Image

    pictures = [Image.open(folder / f"{name}.png") for name in ("tasks", "digits")]
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "white")
    for index, picture in enumerate(pictures):
        whole.paste(picture, (index * pictures[0].width, 0))
    whole.quantize(256).save(folder / "loss_kernel.png")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Options, refused before anything is computed where the folder of images cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"))
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="paper: ten thousand images, for a GPU")
    parser.add_argument("--imagenet", type=Path, help="folder of <wnid>/*.JPEG, wordnet.is_a.txt and classes.json")
    parser.add_argument("--weights", type=Path, help="state dict of torchvision's network for --imagenet")
    options = parser.parse_args(arguments)
    if (options.imagenet is None) != (options.weights is None):
        parser.error("--imagenet DIR and --weights FILE go together")
    needed = [] if options.imagenet is None else [options.weights]
    needed += [] if options.imagenet is None else [options.imagenet / n for n in ("wordnet.is_a.txt", "classes.json")]
    missing = ", ".join(str(file) for file in needed if not file.is_file())
    if missing:
        parser.error(f"--imagenet needs {missing}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, tell, draw."""
    options = options_of(arguments)
    logger, rows, began = TensorBoardLogger(options.folder, name="loss_kernel"), [], time.perf_counter()
    folder = Path(logger.log_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for part, found in parts(seed, SCALES[options.scale], options.imagenet, options.weights):
            rows.append(record(part, seed, found))
            tell(rows[-1])
            results = write(folder / "loss_kernel.json", options, rows)
            tags = {name.replace(": ", "/").replace(" ", "_"): value for name, value in rows[-1]["figures"].items()}
            logger.log_metrics({f"{part}/{tag}": value for tag, value in tags.items()}, step=seed)
            if seed == options.seeds[0]:
                draw(logger, folder, found[2])
    side_by_side(folder)
    logger.finalize("success")
    missed = len(results) - sum(results)
    told = f"{missed} of {len(results)} results did not come out" if missed else f"all {len(results)} results came out"
    print(f"\n{told} in {time.perf_counter() - began:.0f} s; figures: {folder}")


if __name__ == "__main__":
    main()
