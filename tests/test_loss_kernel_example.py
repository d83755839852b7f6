"""examples/loss_kernel.py: its figures are what they say, and ImageNet's route works on a small folder."""

from __future__ import annotations

import importlib
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lightning_slt import SamplingConfig

ROOT = Path(__file__).parents[1]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("loss_kernel")


@pytest.mark.slow  # trains two networks
def test_tasks_come_out(script: ModuleType) -> None:
    _, criteria, _ = script.part_a(3, script.SCALES["cpu"])
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


def test_sprites_of_pictures(script: ModuleType, folder: Path) -> None:
    sprite = script.ImageFolder(folder).pixels(4, 32, 32)
    assert sprite.shape == (3, 32, 32)
    assert float(sprite[1].mean()) == pytest.approx(200 / 255, abs=2 / 255)
    assert (float(sprite.min()) >= 0, float(sprite.max()) <= 1) == (True, True)


class Tiny(nn.Sequential):
    """A logit for each of five classes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
        self.options = options


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(Tiny().state_dict() | {"aux1.weight": torch.zeros(1)}, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


def test_imagenet_against_wordnet(script: ModuleType, folder: Path) -> None:
    torch.manual_seed(0)
    figures, criteria, kernels = script.imagenet(folder, Tiny(), script.Scale())
    kernel = kernels["imagenet"]
    assert kernel.traces.shape == (4, 100, 12)
    assert kernel.sprites.shape == (12, 3, 32, 32)
    assert figures["purity"] > figures["chance"]
    assert [c[1] for c in criteria] == [figures["purity"] / figures["chance"], figures["p"]]
    assert script.wordnet(folder / "wordnet.is_a.txt")["n01"] == "n10"  # the first parent counts


def test_logits_are_those_of_the_folders(script: ModuleType, folder: Path) -> None:
    """Whatever the order of the network's classes, and with an empty folder among them."""
    (folder / "n00").mkdir()
    (folder / "classes.json").write_text(json.dumps(["n05", "n03", "n02", "n04", "n01"]))
    net, data = Tiny(), script.ImageFolder(folder, per_class=2)
    _, _, kernels = script.imagenet(folder, net, script.SCALES["quick"])
    logits = net(torch.stack([data[index][0] for index in range(8)]))
    expected = nn.functional.cross_entropy(logits, torch.tensor([4, 4, 2, 2, 1, 1, 3, 3]), reduction="none")
    assert torch.allclose(kernels["imagenet"].anchor.float(), expected, rtol=1e-5)


@pytest.mark.parametrize(("scale", "options"), [("cpu", {}), ("paper", {"transform_input": True, "aux_logits": False})])
def test_networks_of_torchvision(
    script: ModuleType, weights: Path, monkeypatch: pytest.MonkeyPatch, scale: str, options: dict[str, bool]
) -> None:
    """Inception-v1's weights come with auxiliary heads, and for pixels of another scale."""
    name = script.SCALES[scale].network
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=SimpleNamespace(**{name: Tiny})))
    net = script.pretrained(name, weights)
    assert options.items() <= net.options.items()
    assert torch.equal(net[2].weight.cpu(), torch.load(weights, weights_only=True)["2.weight"])
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="--imagenet needs torchvision; pip install torchvision"):
        script.pretrained(name, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--imagenet", "DIR"], "--imagenet DIR and --weights FILE go together"),
        (["--weights", "DIR/weights.pt"], "--imagenet DIR and --weights FILE go together"),
        (
            ["--imagenet", "DIR/n01", "--weights", "DIR/weights.pt"],
            r"--imagenet needs \S*wordnet.is_a.txt, \S*json",
        ),
        (["--imagenet", "DIR", "--weights", "DIR/none.pt"], r"--imagenet needs \S*none.pt"),
        (["--scale", "huge"], "choose from"),
    ],
)
def test_what_cannot_run_says_so_first(
    script: ModuleType, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        script.main([a.replace("DIR", str(folder)) for a in arguments])
    assert re.search(message, capsys.readouterr().err)


def test_a_short_run(
    script: ModuleType, folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of everything, ImageNet included, from the command line to the files."""
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(models=SimpleNamespace(resnet18=Tiny)))
    images = ["--imagenet", str(folder), "--weights", str(weights)]
    script.main(["--scale", "quick", "--folder", str(tmp_path / "runs"), *images])
    out = tmp_path / "runs" / "loss_kernel" / "version_0"
    found = json.loads((out / "loss_kernel.json").read_text())
    assert [(row["part"], row["seed"]) for row in found["parts"]] == [("a", 0), ("b", 0), ("c", 0), ("imagenet", 0)]
    criteria = [c for row in found["parts"] for c in row["criteria"]]
    assert (found["of"], found["came_out"]) == (len(criteria), sum(c["came_out"] for c in criteria))
    assert [len(row["criteria"]) for row in found["parts"]] == [8, 2, 2, 2]
    for c in criteria:
        assert c["came_out"] == (c["value"] >= c["limit"] if c["side"] == ">=" else c["value"] <= c["limit"])
    told = capsys.readouterr().out
    assert told.count("DID NOT COME OUT") == found["of"] - found["came_out"] > 0  # ten draws cannot do it
    assert f"{found['of'] - found['came_out']} of 14 results did not come out" in told
    assert {"tasks.png", "digits.png", "imagenet.png", "loss_kernel.png"} <= {file.name for file in out.iterdir()}
    scalars = EventAccumulator(str(out)).Reload()
    (within,) = scalars.Scalars("a/within")
    assert within.value == pytest.approx(found["parts"][0]["figures"]["within"], rel=1e-6)
    assert "kernel/imagenet/loss_kernel/samples" in (out / "projector_config.pbtxt").read_text()


@pytest.mark.parametrize("shared", [0.0, 0.7])
def test_criteria_are_of_the_kernel(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    shared: float,
) -> None:  # fmt: skip
    """Losses that samples of one label share, and losses that know of no label: which results come out follows."""
    real = script.slt.estimate

    def estimate(*where: Any, sampling: SamplingConfig, **keywords: Any) -> Any:
        few = replace(sampling, num_chains=2, num_draws=4, num_burnin=0, thinning=1)
        found = real(*where, sampling=few, **keywords)["loss_kernel"]
        g, labels = torch.Generator().manual_seed(0), found.labels
        noise = torch.randn(8, 250, len(labels), generator=g, dtype=torch.float64)
        of_label = torch.randn(8, 250, 10, generator=g, dtype=torch.float64)
        traces = (1 - shared) ** 0.5 * noise + shared**0.5 * of_label[:, :, labels]
        return {"loss_kernel": replace(found, traces=traces, n_eff=2000.0)}

    monkeypatch.setattr(script.slt, "estimate", estimate)
    script.main(["--scale", "quick", "--folder", str(tmp_path)])
    found = json.loads((tmp_path / "loss_kernel" / "version_0" / "loss_kernel.json").read_text())
    results = {c["what"]: c for row in found["parts"] for c in row["criteria"]}
    expected = {
        "mean R within tasks": shared, "mean R between tasks": 0.0,
        "5-NN purity": 1.0 if shared else 39 / 159, "private units: adjusted Rand index": 1.0 if shared else 0.0,
    }  # fmt: skip
    came_out = {what: results[what]["came_out"] for what in expected}
    assert came_out == dict.fromkeys(expected, shared > 0) | {"mean R between tasks": True}
    for what, value in expected.items():
        # four standard errors of one correlation of 2000 draws, or of shares of 160 samples' neighbours
        assert results[what]["value"] == pytest.approx(value, abs=4 / (2000 if "mean" in what else 160 * 5) ** 0.5)
    told = capsys.readouterr().out
    assert told.count("DID NOT COME OUT") == sum(not c["came_out"] for c in results.values()) > 0
    assert re.search(("came out" if shared else "DID NOT COME OUT") + " +mean R within tasks: ", told)
    assert "results did not come out" in told.splitlines()[-1]  # gradients know nothing of made-up losses
