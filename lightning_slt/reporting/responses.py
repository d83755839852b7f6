"""A response matrix as a picture and as a table: its modes, and what lies at their ends."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lightning_slt.analysis.responses import MODES, Modes, Text, modes, modes_table, noise_share, standardized
from lightning_slt.estimators import Responses
from lightning_slt.reporting.canvas import picture
from lightning_slt.results import StoredResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#333333"
ROWS = 400
"""Rows that the heat map shows, evenly spaced among all: more than a screen can tell apart."""


def response_pictures(result: Responses) -> Mapping[str, Any]:
    """Figure and table of one result; none of a single component, which has no modes, or where no chain finished."""
    if len(result.components) < 2 or not bool(result.matrix.isfinite().all()):
        return {}
    return {"modes": response_table(result), "matrix": partial(response_figure, result)}


def response_table(result: Responses | StoredResult, *, count: int = MODES, text: Text | None = None) -> str:
    """The modes of the standardized matrix as a Markdown table, under a line that says what they can be relied on for.

    Args:
        result: Of :class:`lightning_slt.estimators.Susceptibility`, or what was recorded of it.
        count: Modes.
        text: Names a row; see :func:`lightning_slt.analysis.responses.modes_table`.
    """
    found = _modes(result, count)
    table = modes_table(found, result.rows, components=result.components, probes=result.probes, text=text)
    return f"{_reliance(result)}\n\n{table}"


@picture
def response_figure(result: Responses | StoredResult, *, title: str | None = None) -> Figure:
    """The standardized matrix, rows in the order of the first mode; shares of the modes; loadings of the components.

    Args:
        result: Of :class:`lightning_slt.estimators.Susceptibility`, or what was recorded of it.
        title: Above all panels.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib.figure import Figure

    values = standardized(result.matrix)
    found = _modes(result, MODES)
    figure = Figure(figsize=(12, 5.5), dpi=110, layout="constrained")
    figure.suptitle(
        "\n".join(textwrap.wrap(title or _reliance(result), 140)), fontsize=10, color=INK, x=0.01, ha="left"
    )
    heat, shares, loadings = figure.subplots(1, 3, width_ratios=(2, 1, 2))
    ordered = values[found.scores[:, 0].argsort()]
    shown = ordered[:: -(-len(ordered) // ROWS)]
    scale = float(shown.abs().flatten().quantile(0.98)) or 1.0
    image = heat.imshow(shown.numpy(), aspect="auto", cmap="RdBu_r", vmin=-scale, vmax=scale, interpolation="nearest")
    figure.colorbar(image, ax=heat, shrink=0.8)
    _names(heat, result.components)
    heat.set_yticks([])
    heat.set_ylabel(f"{len(values)} rows, by mode 1")
    heat.set_title("standardized χ; blue: expressed", fontsize=10, color=INK, loc="left")
    raw = modes(torch.as_tensor(result.matrix))
    for offset, share, colour, label in (
        (-0.2, raw.share, "#BBBBBB", "raw"),
        (0.2, found.share, "#0072B2", "standardized"),
    ):
        places = [1 + index + offset for index in range(len(share))]
        shares.bar(places, share.tolist(), width=0.4, color=colour, label=label)
    shares.set_xlabel("mode")
    shares.set_title("share of the sum of squares", fontsize=10, color=INK, loc="left")
    shares.legend(frameon=False, fontsize=8)
    scale = float(found.loadings.abs().max())
    image = loadings.imshow(found.loadings.mT.numpy(), aspect="auto", cmap="PuOr", vmin=-scale, vmax=scale)
    figure.colorbar(image, ax=loadings, shrink=0.8)
    _names(loadings, result.components)
    loadings.set_yticks(range(len(found.share)), [f"mode {1 + index}" for index in range(len(found.share))])
    loadings.set_title("loadings of the components", fontsize=10, color=INK, loc="left")
    for axis in (heat, shares, loadings):
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _modes(result: Responses | StoredResult, count: int) -> Modes:
    """Of the standardized matrix, whose rows add up to zero, so that there is one mode less than components."""
    return modes(standardized(result.matrix), count=min(count, len(result.components) - 1))


def _reliance(result: Responses | StoredResult) -> str:
    noise = noise_share(result.matrix, result.stderr)
    return (
        f"{len(result.matrix)} rows × {len(result.components)} components; noise makes up {noise:.0%} of the "
        f"standardized matrix; median |χ| over its error {result.signal:.2g}; {result.uniform:.0%} of the raw matrix "
        f"is alike in all components; health {result.health}"
    )


def _names(axis: Axes, components: tuple[str, ...]) -> None:
    axis.set_xticks(range(len(components)), components, rotation=90 if len(components) > 4 else 0, fontsize=8)
