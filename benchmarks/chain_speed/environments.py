"""Environments of their own for the peers, made on first use and kept under `benchmarks/.envs`, or where one says."""

from __future__ import annotations

import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parents[1] / ".envs"


@dataclass(frozen=True)
class Environment:
    """A virtual environment with pinned packages.

    Attributes:
        name: Of its folder.
        requirements: What pip installs, each pinned.
    """

    name: str
    requirements: tuple[str, ...]

    def python(self, parent: Path = ENVIRONMENTS) -> Path:
        """The interpreter; the environment is made first if it is not complete."""
        folder = parent.resolve() / self.name
        interpreter, complete = folder / "bin" / "python", folder / "complete"
        wanted = "\n".join(self.requirements)
        if not (complete.exists() and complete.read_text() == wanted):
            print(f"making the environment {self.name} ({', '.join(self.requirements)})", file=sys.stderr, flush=True)
            venv.EnvBuilder(with_pip=True, clear=True).create(folder)
            subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *self.requirements], check=True)
            complete.write_text(wanted)
        return interpreter


DEVINTERP_1_3 = Environment("devinterp-1.3.2", ("torch==2.13.0", "devinterp==1.3.2"))
DEVINTERP_2_0 = Environment("devinterp-2.0.1", ("torch==2.13.0", "devinterp==2.0.1"))
KRONFLUENCE = Environment("kronfluence-1.0.1", ("torch==2.13.0", "kronfluence==1.0.1"))
