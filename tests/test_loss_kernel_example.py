"""examples/loss_kernel.py: its figures are what they say, and ImageNet's route works on a small folder."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("loss_kernel")


@pytest.mark.slow  # trains two networks
def test_tasks_come_out(script: ModuleType) -> None:
    _, criteria, _ = script.part_a(3)
    assert [c for c in criteria if not script.came_out(c)] == []


def test_gradient_cosines_of_a_linear_model(script: ModuleType) -> None:
    """Of f = w·x with a posterior that localization alone shapes, the plain cosine of the inputs."""
    net, x = nn.Linear(3, 1, bias=False), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found = script.gradient_cosines(net, x, nbeta=0.0, gamma=10.0, step=1e-3)
    expected = nn.functional.cosine_similarity(x[:, None], x[None], dim=2).square()
    assert torch.allclose(found, expected.double(), atol=1e-6)


def test_the_tree_has_one_feature_a_node(script: ModuleType) -> None:
    features = script.tree_features()
    assert features.shape == (8, 15)
    assert bool((features.sum(1) == 4).all())
    apart = (features[:, None] != features).sum(2).float()
    assert torch.equal(apart, script.path_distances(script.NODES, script.ITEMS))


CLASSES = ["n01", "n02", "n03", "n04"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of four classes, each of its own colour, and their tree."""
    for row, name in enumerate(CLASSES):
        (tmp_path / name).mkdir()
        for index, size in enumerate(((300, 260), (224, 500), (60, 40))):
            colour = tuple(200 if channel == row else 30 for channel in range(3))
            Image.new("RGB", size, colour).save(tmp_path / name / f"{index}.JPEG")
    (tmp_path / "wordnet.is_a.txt").write_text("n10 n01\nn10 n02\nn11 n03\nn11 n04\nn20 n10\nn20 n11\nn99 n01\n")
    (tmp_path / "classes.json").write_text(json.dumps([*CLASSES, "n05"]))
    return tmp_path


def test_imagenet_folders(script: ModuleType, folder: Path) -> None:
    data = script.ImageFolder(folder, per_class=2)
    assert data.classes == CLASSES
    assert len(data) == 8
    picture, label = data[3]
    assert picture.shape == (3, 224, 224)
    assert label == 1
    # what a JPEG rounds
    assert float(picture[1].mean()) == pytest.approx((200 / 255 - 0.456) / 0.224, abs=2 / 255 / 0.224)
    with pytest.raises(ValueError, match=r"must hold a folder <wnid>/\*.JPEG for each of three classes"):
        script.ImageFolder(folder / "n01")


def test_imagenet_against_wordnet(script: ModuleType, folder: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    figures, kernel = script.imagenet(folder, net)
    assert kernel.traces.shape == (4, 100, 12)
    assert set(figures) == {"purity", "chance", "spearman", "p"}
    assert figures["purity"] > figures["chance"]
    assert script.wordnet(folder / "wordnet.is_a.txt")["n01"] == "n10"  # the first parent counts
