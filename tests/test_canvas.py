"""Every figure can be read on a light and on a dark page, whatever the user's matplotlib looks like."""

from __future__ import annotations

import importlib
import inspect
import io
import pkgutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from models import MemoryLogger, trainer_for
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_loss_kernel import kernel_of, random
from test_refined import blobs
from test_responses import planted
from test_responses import result as responses
from test_stagewise import STEPS, curve, heard
from test_trajectories import walk
from torch import nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt import reporting
from lightning_slt.analysis.compression import Correlated, Correlation
from lightning_slt.analysis.curves import Curves, group
from lightning_slt.analysis.forms import forms, smoothed
from lightning_slt.analysis.stages import Series, stages
from lightning_slt.analysis.trajectories import joint_trajectories
from lightning_slt.callbacks.stagewise import InfluenceFollower
from lightning_slt.estimators.compressibility import Compression
from lightning_slt.reporting.compression import compression_figure, correlation_figure
from lightning_slt.reporting.curves import groups_figure
from lightning_slt.reporting.kernels import kernel_figure
from lightning_slt.reporting.responses import response_figure
from lightning_slt.reporting.stages import stages_figure
from lightning_slt.reporting.stagewise import stagewise_figure
from lightning_slt.reporting.tensorboard import write_figure
from lightning_slt.reporting.trajectories import trajectory_figure
from lightning_slt.types import Health

pytestmark = pytest.mark.usefixtures("elsewhere")

DARK: dict[str, Any] = {
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.transparent": True, "savefig.facecolor": "none",
    "text.color": "white", "axes.labelcolor": "white", "axes.edgecolor": "white", "xtick.color": "white",
    "ytick.color": "white", "axes.grid": True, "grid.color": "white", "lines.color": "white", "figure.dpi": 40,
    "legend.facecolor": "black", "legend.labelcolor": "white", "image.cmap": "gray",
}  # fmt: skip


def kernel() -> Figure:
    return kernel_figure(kernel_of(random(4, 40, 30), labels=torch.arange(30) % 3))


def response() -> Figure:
    return response_figure(responses(planted()[0]))


@cache
def calibrated() -> slt.Calibration:
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    net, data = nn.Linear(3, 2), TensorDataset(x, (x[:, 0] > 0).long())
    counts = slt.SamplingConfig(num_chains=2, num_draws=4, batch_size=16)
    return slt.calibrate(net, data, sampling=counts, loss_fn=slt.losses.classification)


def calibration() -> Figure:
    return calibrated().plot()


def trajectory() -> Figure:
    joint = joint_trajectories({"walk": walk()}, references={"start": walk().values[0]})
    return trajectory_figure(joint, found={"walk": forms(smoothed(joint.points["walk"], 1.0))}, title="a walk")


def groups() -> Figure:
    points, _ = blobs()
    names = tuple(f"h{k}" for k in range(12))
    return groups_figure(Curves(names, torch.tensor([0, 10, 1000]), points, points.abs() / 10), group(points))


def compression() -> Figure:
    grid = torch.tensor([[4.0, 0.5], [16.0, 0.04], [256.0, 0.01]])
    curves = {"quantization": grid, "noise": torch.tensor([[0.01, 0.0], [0.1, 0.02], [1.0, 0.9]])}
    critical = {"bits_0.02": 5.0, "sigma_0.02": 0.1}
    return compression_figure(Compression(loss=0.3, critical=critical, curves=curves, health=Health(ok=True)))


def correlation() -> Figure:
    t, found = torch.linspace(1, 9, 9).double(), Correlation(0.5, 0.1, 0.8)
    return correlation_figure(
        Correlated("slt/full/c/bits", "slt/full/llc", (t * 10).int(), t, t**2, t / 9, 1 / t, found, found, found, 0.5),
        title="bits and LLC",
    )


def staged() -> Figure:
    steps = torch.logspace(0, 3, 30).double()
    values = torch.sigmoid(4 * (steps.log10() - 1.5)) * 10
    series = Series(steps=steps, values=values, stderr=torch.full_like(values, 0.2), loss=3 - values / 5)
    return stages_figure(series, stages(series, [30.0]), quantity="slt/full/llc", title="stages by step 1000")


def influence() -> Figure:
    follower = InfluenceFollower("slt", "full", "influence", significance=3.0)
    trainer, (value, error) = trainer_for(logger=MemoryLogger()), curve(0)
    for step, v, e in zip(STEPS, value, error, strict=True):
        follower.hear(trainer, heard(int(step), float(v), float(e)))
    assert follower.curves is not None
    return stagewise_figure(
        follower.curves, follower.told, boundaries=[500.0], title="slt: influence between groups over training, full"
    )


def comparison() -> Figure:
    from test_compare import estimate_of

    g = torch.Generator().manual_seed(0)
    first, second = (estimate_of(torch.randn(4, generator=g).double() + shift) for shift in (0, 9))
    return slt.compare({"llc": first}, {"llc": second}).plot()


FIGURES: dict[str, Callable[[], Figure]] = {
    "kernel_figure": kernel, "response_figure": response, "calibration_figure": calibration, "draw": comparison,
    "trajectory_figure": trajectory, "groups_figure": groups, "compression_figure": compression,
    "correlation_figure": correlation, "stages_figure": staged, "stagewise_figure": influence,
}  # fmt: skip


def test_every_figure_is_looked_at() -> None:
    modules = [
        importlib.import_module(f"{reporting.__name__}.{m.name}") for m in pkgutil.iter_modules(reporting.__path__)
    ]
    found = {
        name
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and function.__annotations__.get("return") == "Figure"
    }
    assert found == FIGURES.keys()


def pixels(figure: Figure) -> np.ndarray:
    """Red, green, blue, and how opaque."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


@pytest.mark.parametrize("name", FIGURES)
def test_figures_look_the_same_whatever_the_style(name: str) -> None:
    """Rendered in the user's style, in which matplotlib makes what it has put off."""
    expected = pixels(FIGURES[name]())
    with matplotlib.rc_context(DARK):
        seen = pixels(FIGURES[name]())
    assert (seen[..., 3] == 255).all()
    assert (seen[0, 0, :3] == 255).all()
    np.testing.assert_array_equal(seen, expected)


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_is_cut_off(name: str) -> None:
    figure = FIGURES[name]()
    FigureCanvasAgg(figure).draw()
    width, height = figure.bbox.size
    beyond = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}  # of the limits, undrawn
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text() and text not in beyond:
            box = text.get_window_extent()
            assert -0.5 <= box.x0 <= box.x1 <= width + 0.5, text
            assert -0.5 <= box.y0 <= box.y1 <= height + 0.5, text


def test_letters_in_tensorboard_keep_their_size(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="")
    with matplotlib.rc_context({**DARK, "font.size": 30}):
        write_figure([logger], "stages", staged, 1)
        assert matplotlib.rcParams["font.size"] == 30
    logger.experiment.flush()
    (image,) = EventAccumulator(str(tmp_path), size_guidance={"images": 0}).Reload().Images("stages")
    shown = np.array(Image.open(io.BytesIO(image.encoded_image_string)))
    np.testing.assert_array_equal(shown, pixels(staged())[..., :3])
