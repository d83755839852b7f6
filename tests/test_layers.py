"""Who may import whom: a module only from lower layers, Lightning and torchmetrics only where they belong."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lightning_slt

ROOT = Path(lightning_slt.__file__).parent

LAYERS = [
    {"types", "version", "seeding", "memory", "boundary", "standing"},
    {"sharding", "precision"},
    {"offload"},
    {"posterior", "components", "losses", "functional", "isolation", "sources", "diagnostics", "statistics"}
    | {"theory", "batching", "batches", "tracing", "probes", "results", "gram", "weights", "files"},
    {"data", "health", "samplers", "records", "covariances", "groupings", "responses", "compression"},
    {"passes", "estimators", "motion", "store", "events", "checkpoints"},
    {"sampling"},
    {"preflight", "published", "chains", "capacity"},
    {"calibration", "soundness", "together", "probing", "assignment", "analysis"},
    {"snapshot"},
    {"running", "reporting"},
    {"plan"},
    {"sides"},
    {"comparing"},
    {"finding"},
    {"reading"},
    {"callbacks"},
    {"tab"},
    {"cli"},
]
LIGHTNING = {"callbacks", "reporting", "cli"}
SHARED = ("base", "preconditioning")
TORCHMETRICS = {"statistics", "isolation", "estimators"}


def parts() -> dict[Path, str]:
    """Every file with the name of its module or sub-package."""
    files = [f for f in ROOT.rglob("*.py") if f != ROOT / "__init__.py"]
    return {f: f.relative_to(ROOT).parts[0].removesuffix(".py") for f in files}


def imports(file: Path) -> list[str]:
    """Full names that a file imports, at any depth of its code but under TYPE_CHECKING alike."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def layer(part: str) -> int:
    return next(index for index, members in enumerate(LAYERS) if part in members)


def test_every_part_has_one_layer() -> None:
    listed = [part for members in LAYERS for part in members]
    assert sorted(listed) == sorted(set(parts().values()))


@pytest.mark.parametrize("file", parts(), ids=lambda f: str(f.relative_to(ROOT)))
def test_imports_go_down(file: Path) -> None:
    part = parts()[file]
    for name in imports(file):
        top, _, rest = name.partition(".")
        if top in ("lightning", "pytorch_lightning"):
            assert part in LIGHTNING, f"{name} in {part}"
        if top == "torchmetrics":
            assert part in TORCHMETRICS, f"{name} in {part}"
        if top != "lightning_slt":
            continue
        target = rest.split(".")[0]
        assert target, "the package itself is imported"
        assert {part, target} != {"samplers", "estimators"}, f"{part} imports {name}"
        if target != part:
            assert layer(target) < layer(part), f"{part} imports {name}"
        elif part in ("samplers", "estimators") and file.name not in ("__init__.py", "base.py"):
            assert rest.split(".")[1] in SHARED, f"siblings in {part} import from {SHARED} alone, not {name}"
