"""Public names come when they are asked for: what ``import lightning_slt`` costs, and that nothing else differs."""

from __future__ import annotations

import ast
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_slt as slt


def typed_imports() -> dict[str, str]:
    """Public names with their modules, as type checkers see them."""
    tree = ast.parse(Path(slt.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    froms = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert len(froms) == len(block.body)
    return {alias.name: str(node.module) for node in froms for alias in node.names}


def test_type_checkers_see_what_there_is() -> None:
    modules = typed_imports()
    submodules = {name for name, module in modules.items() if module == "lightning_slt"}
    table = {name: f"lightning_slt.{module}" for name, module in slt._HOMES.items()}
    assert table == {name: module for name, module in modules.items() if name not in submodules}
    assert sorted(slt.__all__) == sorted([*modules, "__version__"])
    assert len(table) == sum(len(names.split()) for names in slt._NAMES.values())


def test_names_are_those_of_their_modules() -> None:
    star: dict[str, object] = {}
    exec("from lightning_slt import *", star)
    for name in slt.__all__:
        home = slt._HOMES.get(name)
        if home:
            assert star[name] is getattr(sys.modules[f"lightning_slt.{home}"], name)
        assert star[name] is getattr(slt, name)
    assert set(slt.__all__) <= set(dir(slt))
    assert pickle.loads(pickle.dumps(slt.SGLD)) is slt.SGLD
    assert slt.analysis.stages.__name__ == "lightning_slt.analysis.stages"  # modules are there, too


@pytest.mark.parametrize("name", ["Nothing", "LLCMonitors", "_nothing", "__path_hook__"])
def test_other_names_are_errors(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'lightning_slt' has no attribute '{name}'"):
        getattr(slt, name)


def loaded(code: str, *heavy: str) -> set[str]:
    """Which of these modules a new process has loaded after some code."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*(m for m in {heavy!r} if m in sys.modules))"],
        capture_output=True, text=True, check=True, timeout=100,
    )  # fmt: skip
    return set(told.stdout.split())


def test_the_import_costs_nothing() -> None:
    assert loaded("import lightning_slt", "torch", "lightning", "numpy") == set()


def test_the_tab_needs_no_lightning() -> None:
    """Nor what takes as long: TensorBoard waits for it when the tab is opened."""
    heavy = ("lightning", "torchmetrics", "matplotlib", "scipy", "sklearn", "lightning_slt.estimators")
    assert loaded("import lightning_slt.tab.plugin", *heavy) == set()


def test_bare_names_on_the_command_line() -> None:
    """LightningCLI finds ``--trainer.callbacks+=LLCMonitor`` among loaded classes: a script need not use any itself."""
    code = "from lightning.pytorch.cli import LightningCLI\nimport lightning_slt"
    assert loaded(code, "lightning_slt.callbacks.llc", "lightning_slt.samplers.sgld") == {
        "lightning_slt.callbacks.llc",
        "lightning_slt.samplers.sgld",
    }
