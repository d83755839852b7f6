"""TensorBoard: a custom-scalars page with the LLC's band beside the loss, and the settings as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import StringIO
from typing import Any

import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor

from lightning_slt.components import FULL
from lightning_slt.reporting.canvas import plainly
from lightning_slt.reporting.hparams import FINAL
from lightning_slt.reporting.scalars import Keys

SHEET = 4096
"""Pixels of the side of the projector's sheet of pictures: browsers take textures of 8192, this one in 400 MB."""


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """A map of samples for TensorBoard's projector.

    Attributes:
        points: ``[sample, coordinate]``.
        labels: One row of texts a sample under ``header``; tabs and line breaks in them become spaces.
        header: What the texts are.
        sprites: A small picture of every sample ``[sample, channel, height, width]`` in 0 to 1, or None. Made square,
            and shrunk where there are too many for one sheet.
    """

    points: Tensor = field(repr=False)
    labels: Sequence[Sequence[str]] = field(repr=False)
    header: Sequence[str]
    sprites: Tensor | None = field(default=None, repr=False)


def write_layout(loggers: Sequence[Logger], monitors: Mapping[str, Keys]) -> None:
    """Write the custom-scalars layout of all monitors; TensorBoard keeps one layout a run.

    Args:
        loggers: The Trainer's.
        monitors: ``{monitor: {component: {key: fields}}}``.
    """
    layout: dict[str, dict[str, list[Any]]] = {}
    others = "|".join(re.escape(name) for name in (*monitors, FINAL))  # a loss kernel's are none of training's losses
    loss = ["Multiline", [f"(?i)^(?!({others})/).*loss"]]
    for name, components in monitors.items():
        charts = _margins(name, {FULL: components[FULL]}) if FULL in components else {}
        parts = {component: keys for component, keys in components.items() if component != FULL}
        layout[name] = {**charts, **_by_layer(name, parts), "loss": loss}
        if each := _margins(name, parts):
            layout[f"{name}: each component"] = each
        prefix = re.escape(name)
        layout[f"{name}: can it be trusted?"] = {
            "passed its health checks (1) or not (0)": ["Multiline", [f"^{prefix}/.*/ok$"]],
            "R-hat, below 1.1 where chains agree": ["Multiline", [f"^{prefix}/.*/rhat$"]],
            "reading time over training time": ["Multiline", [f"^{prefix}/overhead$"]],
        }
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger) and layout:
            logger.experiment.add_custom_scalars(layout)


def _margins(name: str, components: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[Any]]:
    """A chart with its band for every number that has an interval."""
    tags = {
        f"{key} of {component}, 90 % interval": f"{name}/{component}/{key}"
        for component, keys in components.items()
        for key, fields in keys.items()
        if "lower" in fields
    }
    return {title: ["Margin", [f"{tag}/mean", f"{tag}/lower", f"{tag}/upper"]] for title, tag in tags.items()}


def _by_layer(name: str, components: Mapping[str, Mapping[str, Sequence[str]]]) -> dict[str, list[Any]]:
    """One chart for the components that have the beginning of their names in common: heads of a layer."""
    layers: dict[str, list[str]] = {}
    for component, keys in components.items():
        layer, dot, _ = component.rpartition(".")
        for key in (key for key, fields in keys.items() if "lower" in fields):
            layers.setdefault(f"{key} in {layer}" if dot else f"{key} by component", []).append(f"{component}/{key}")
    return {
        title: ["Multiline", [f"^{re.escape(f'{name}/{tag}')}/mean$" for tag in tags]] for title, tags in layers.items()
    }


def write_text(loggers: Sequence[Logger], tag: str, markdown: str, step: int) -> None:
    """Log a Markdown text where a logger can show it."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(tag, markdown, step)


def write_figure(loggers: Sequence[Logger], tag: str, draw: Callable[[], Any], step: int) -> None:
    """Log a picture where a logger can show it; nothing without matplotlib."""
    able = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if able and find_spec("matplotlib") is not None:
        with plainly():  # sizes of letters are settled when a figure is rendered
            figure = draw()
            for logger in able:
                logger.experiment.add_figure(tag, figure, step)


def write_embedding(loggers: Sequence[Logger], tag: str, embedding: Embedding, step: int) -> None:
    """Log a map of samples where a logger has a projector."""
    able = [logger for logger in loggers if isinstance(logger, TensorBoardLogger)]
    if not able:
        return
    header, *rows = ([_one_field(text) for text in row] for row in (embedding.header, *embedding.labels))
    tiles = None if embedding.sprites is None else _tiles(embedding.sprites)
    for logger in able:
        with redirect_stdout(StringIO()):  # torch prints a warning where a reading is made again
            logger.experiment.add_embedding(
                embedding.points.float().cpu(),
                metadata=rows,
                metadata_header=header,
                label_img=tiles,
                global_step=step,
                tag=tag,
            )


def _one_field(text: str) -> str:
    """A text that stays one field of a table of tabs and lines; torch writes it as it is."""
    return " ".join(text.split())


def _tiles(sprites: Tensor) -> Tensor:
    """Pictures in the middle of squares: the projector takes square sheets, on which torch cannot place others."""
    height, width = sprites.shape[2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    square = torch.nn.functional.pad(sprites.float(), (left, side - width - left, top, side - height - top))
    most = SHEET // math.ceil(math.sqrt(len(sprites)))
    return square if side <= most else torch.nn.functional.adaptive_avg_pool2d(square, max(1, most))
