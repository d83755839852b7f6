"""Does the suite notice? Breaks a copy of the package in one place at a time and runs the tests that should fail.

    python tests/mutants.py

Prints a line per mutant and exits 1 if one survives. Takes some minutes, so it is a script and no test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

MUTANTS = [
    ("noise √(ε/2)", "samplers/sgld.py", "math.sqrt(eps * ", "math.sqrt(eps / 2 * ", "test_sgld.py"),
    ("drift ε for ε/2", "samplers/sgld.py", "scale=-eps / 2 * nbeta", "scale=-eps * nbeta", "test_sgld.py"),
    ("no localization", "samplers/sgld.py", "w.lerp_(anchor, eps / 2 * gamma)", "pass", "test_sgld.py"),
    (
        "covariance without the mean product",
        "statistics.py",
        " - self.total[seen, :, None] * self.total[seen, None, :] / self.count[seen, None, None]",
        "",
        "test_statistics.py",
    ),
    (
        "/n for /(n−1)",
        "statistics.py",
        "/ (self.count[seen] - 1).sum()",
        "/ self.count[seen].sum()",
        "test_statistics.py",
    ),
    ("float32 sums", "statistics.py", "dtype=torch.float64", "dtype=torch.float32", "test_statistics.py"),
    ("one seed for all chains", "sampling.py", '"noise", chain,', '"noise", 0,', "test_coverage.py"),
    ("burn-in kept", "sampling.py", "past = step - (config.num_burnin or 0)", "past = step", "test_zoo.py"),
    (
        "no isolation of generators",
        "isolation.py",
        "stack.enter_context(_preserved_generators())",
        "pass",
        "test_isolation.py",
    ),
    (
        "no restored training flags",
        "isolation.py",
        "stack.enter_context(remembered([module, *also], known=module.parameters()))",
        "pass",
        "test_isolation.py",
    ),
]


def survives(file: str, old: str, new: str, tests: str) -> bool:
    """Whether the tests pass on a copy with one change."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("lightning_slt", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        target = copy / "lightning_slt" / file
        text = target.read_text()
        assert old in text, f"{file} has no {old!r} any more"
        target.write_text(text.replace(old, new))
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-m",
            "not slow",
            "-p",
            "no:cacheprovider",
            f"tests/{tests}",
        ]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False).returncode == 0


def main() -> int:
    """Try all."""
    alive = []
    for name, file, old, new, tests in MUTANTS:
        survived = survives(file, old, new, tests)
        print(f"{'SURVIVED' if survived else 'killed':>9}  {name}", flush=True)
        alive += [name] if survived else []
    return int(bool(alive))


if __name__ == "__main__":
    raise SystemExit(main())
