"""Maps of samples in TensorBoard's projector: picture, texts and point i are all of sample i."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from google.protobuf import text_format
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.reporting import tensorboard
from lightning_slt.reporting.pictures import write_pictures
from lightning_slt.reporting.tensorboard import Embedding, write_embedding

TRUNCATED = 1.01 / 255
"""torch cuts pixels down to whole numbers."""


def sprites_of(count: int, channels: int = 3, height: int = 6, width: int = 6) -> Tensor:
    """Noise: no two alike, none like its own mirror image."""
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(count)) / 255


def embedding_of(sprites: Tensor | None, labels: list[list[str]] | None = None) -> Embedding:
    count = 3 if sprites is None else len(sprites)
    labels = [[f"name {i}", str(i)] for i in range(count)] if labels is None else labels
    return Embedding(
        points=torch.arange(2.0 * len(labels)).reshape(-1, 2),
        labels=labels,
        header=("label", "sample"),
        sprites=sprites,
    )


class Written:
    """What the projector reads, read as it reads it."""

    def __init__(self, folder: Path) -> None:
        config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
        (self.info,) = config.embeddings
        self.folder = folder

    def table(self, path: str) -> list[list[str]]:
        text = (self.folder / path).read_bytes().decode()
        return [line.split("\t") for line in text.removesuffix("\n").split("\n")]

    @property
    def sheet(self) -> Tensor:
        """``[channel, height, width]``."""
        with Image.open(self.folder / self.info.sprite.image_path) as image:
            width, height = image.size
            assert width == height  # the projector takes square ones only
            return torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8).reshape(
                height, width, 3
            ).permute(2, 0, 1) / 255  # fmt: skip

    def tile(self, index: int) -> Tensor:
        """As many in a row as the sheet is wide, rows from the top."""
        sheet, (width, height) = self.sheet, self.info.sprite.single_image_dim
        row, column = divmod(index, sheet.shape[2] // width)
        return sheet[:, row * height : (row + 1) * height, column * width : (column + 1) * width]


def written(embedding: Embedding, folder: Path) -> Written:
    write_embedding([TensorBoardLogger(folder, name="", version="")], "samples", embedding, 0)
    return Written(folder)


def alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= TRUNCATED


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 9, 10, 13])
def test_tile_i_is_sample_i(count: int, channels: int, tmp_path: Path) -> None:
    sprites = sprites_of(count, channels)
    found = written(embedding_of(sprites), tmp_path)
    assert all(alike(found.tile(i), sprites[i].expand(3, -1, -1)) for i in range(count))


@pytest.mark.parametrize(("height", "width"), [(12, 5), (5, 12), (7, 6)])
@pytest.mark.parametrize("count", [1, 4, 7, 9])
def test_pictures_that_are_not_square_stand_in_the_middle_of_square_tiles(
    count: int, height: int, width: int, tmp_path: Path
) -> None:
    sprites, side = sprites_of(count, 3, height, width), max(height, width)
    found = written(embedding_of(sprites), tmp_path)
    top, left = (side - height) // 2, (side - width) // 2
    for i in range(count):
        tile = found.tile(i)
        assert tile.shape == (3, side, side)
        assert alike(tile[:, top : top + height, left : left + width], sprites[i])


def test_many_large_pictures_are_shrunk_to_a_sheet_that_browsers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorboard, "SHEET", 12)
    sprites = sprites_of(5, 3, 8, 8)  # three in a row: four pixels for each
    found = written(embedding_of(sprites), tmp_path)
    assert found.sheet.shape == (3, 12, 12)
    for i in range(5):
        assert alike(found.tile(i), sprites[i].unflatten(1, (4, 2)).unflatten(3, (4, 2)).mean((2, 4)))


HOSTILE = ["a\tb", "c\nd", "e\r\nf", "\t\n", "g\rh", "i\u2028j\x0bk\x85l", "", "  ü “m”  ", "#1", "0"]


def test_texts_line_up_whatever_they_hold(tmp_path: Path) -> None:
    labels = [[text, str(i)] for i, text in enumerate(HOSTILE)]
    found = written(embedding_of(sprites_of(len(HOSTILE)), labels), tmp_path)
    header, *rows = found.table(found.info.metadata_path)
    assert header == ["label", "sample"]
    assert [row[1] for row in rows] == [str(i) for i in range(len(HOSTILE))]
    assert [row[0] for row in rows] == ["a b", "c d", "e f", "", "g h", "i j k l", "", "ü “m”", "#1", "0"]
    points = found.table(found.info.tensor_path)
    assert [[float(v) for v in row] for row in points] == [[2.0 * i, 2.0 * i + 1] for i in range(len(HOSTILE))]


def test_kernels_of_some_samples_show_their_pictures_and_labels(tmp_path: Path) -> None:
    """Seven of twenty samples, in an order that chance made."""
    g = torch.Generator().manual_seed(0)
    x, y, sprites = torch.randn(20, 3, generator=g), torch.randperm(20, generator=g), sprites_of(20)
    kernel = slt.estimate(
        nn.Linear(3, 20), TensorDataset(x, y),
        [slt.LossKernel(slt.Probe(TensorDataset(x, y), num_samples=7), sprites=sprites)],
        loss_fn=slt.losses.classification, sampler=slt.SGLD(step_size=1e-3), nbeta=10.0, localization=10.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=8, num_burnin=0, batch_size=8), on_failure="warn",
    )["loss_kernel"]  # fmt: skip
    write_pictures([TensorBoardLogger(tmp_path, name="", version="")], "slt", {"full": {"loss_kernel": kernel}}, 0)
    found = Written(tmp_path)
    _, *rows = found.table(found.info.metadata_path)
    chosen = kernel.indices.tolist()
    assert len(set(chosen)) == 7
    assert [row[:2] for row in rows] == [[str(int(y[i])), str(i)] for i in chosen]
    assert [row[2] for row in rows] == [f"{float(v):.3g}" for v in kernel.variances]
    assert all(alike(found.tile(place), sprites[i]) for place, i in enumerate(chosen))
    points = torch.tensor([[float(v) for v in row] for row in found.table(found.info.tensor_path)], dtype=torch.float64)
    apart = (2 * (1 - kernel.correlation)).clamp(min=0).sqrt()
    assert torch.allclose(torch.cdist(points, points), apart, atol=math.sqrt(2**-22))  # a root of float32's rounding
