"""A loss kernel as a heat map ordered by what is alike, and as a map of samples for TensorBoard's projector."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightning_slt.analysis.kernels import clusters, order, pca
from lightning_slt.estimators.loss_kernel import KernelEstimate
from lightning_slt.gram import normalized, some_of
from lightning_slt.reporting.canvas import picture
from lightning_slt.reporting.tensorboard import Embedding

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PIXELS = 400
"""Samples that a heat map shows, chosen by chance among all: more than a screen can tell apart."""

GROUPS = 8
"""Clusters that order a heat map without labels."""

DIMENSIONS = 32
"""Principal components that the projector gets; it makes its own maps of them."""

INK = "#333333"


def kernel_pictures(result: KernelEstimate) -> Mapping[str, Any]:
    """Heat map and map of samples of one result; none where no chain finished."""
    if not len(result.traces) or not bool(result.factor.isfinite().all()):
        return {}
    return {"heatmap": partial(kernel_figure, result), "samples": kernel_embedding(result)}


@picture
def kernel_figure(result: KernelEstimate, *, groups: Tensor | None = None, title: str | None = None) -> Figure:
    """R as a heat map, samples of one group together, in each those first that are most like it.

    Of more than 400 samples it shows as many by chance, always the same, and says so below.

    Args:
        result: The kernel.
        groups: What orders it ``[sample]``; None takes the labels, without those eight clusters.
        title: Above it.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    samples = result.traces.shape[2]
    some = some_of(samples, PIXELS)
    factor = result.factor[:, some]
    mine, kind = (groups[some], "group") if groups is not None else _groups(result, some)
    places = order(factor, mine)
    unit = normalized(factor)[:, places]
    matrix = unit.mT @ unit
    figure = Figure(figsize=(6.5, 6), dpi=110, layout="constrained")
    axis = figure.subplots()
    # The diagonal is 1 whatever the kernel, and would leave the rest pale.
    pairs = matrix[~torch.eye(len(matrix), dtype=torch.bool)].abs()
    scale = min(1.0, max(3 * result.noise, float(pairs.quantile(0.95))))
    image = axis.imshow(matrix.numpy(), cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    shown = "samples" if len(some) == samples else f"{len(some)} of {samples} samples, by chance,"
    _mark(axis, mine[places], f"{shown} by {kind}")
    words = title or f"correlation of losses R, ± {result.noise:.2g} an entry, reliability {result.reliability:.2f}"
    axis.set_title("\n".join(textwrap.wrap(words, 70)), fontsize=10, color=INK, loc="left")
    figure.colorbar(image, ax=axis, shrink=0.8, label="R")
    return figure


def kernel_embedding(result: KernelEstimate) -> Embedding:
    """Kernel PCA of R with labels, self-variance and, where there are any, sprites."""
    points = pca(normalized(result.factor), DIMENSIONS).points
    labels = ["" if result.labels is None else str(int(v)) for v in _labels(result)]
    texts = [
        [label, str(int(index)), f"{float(variance):.3g}", f"{float(loss):.3g}"]
        for label, index, variance, loss in zip(labels, result.indices, result.variances, result.anchor, strict=True)
    ]
    return Embedding(
        points=points,
        labels=texts,
        header=("label", "sample", "variance", "loss at the anchor"),
        sprites=result.sprites,
    )


def _labels(result: KernelEstimate) -> Tensor:
    return torch.zeros(result.traces.shape[2]) if result.labels is None else result.labels


def _groups(result: KernelEstimate, some: Tensor) -> tuple[Tensor, str]:
    """Of the samples that are shown; clusters of these alone."""
    if result.labels is not None:
        return result.labels[some], "label"
    if len(some) >= GROUPS:
        return clusters(result.factor[:, some], GROUPS), "cluster"
    return torch.zeros(len(some)), "sample"


def _mark(axis: Any, groups: Tensor, words: str) -> None:
    """A line between groups, and the name of each beside its block."""
    names, counts = torch.unique_consecutive(groups, return_counts=True)
    ends = counts.cumsum(0)
    for end in ends[:-1].tolist():
        axis.axhline(end - 0.5, color=INK, lw=0.5)
        axis.axvline(end - 0.5, color=INK, lw=0.5)
    middles = (ends - counts.double() / 2 - 0.5).tolist()
    shown = [f"{float(name):g}" for name in names]
    few = len(names) <= 40
    axis.set_xticks(middles if few else [], shown if few else [], fontsize=8)
    axis.set_yticks(middles if few else [], shown if few else [], fontsize=8)
    axis.set_xlabel(words, color=INK)
