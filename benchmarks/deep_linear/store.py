"""The results file: written whole at every save, so that an interrupted run leaves a complete one to go on from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAVE_EVERY = 5.0
"""Seconds between two saves while cells come in."""


class Store:
    """Cells by key, in a JSON file with one cell a line.

    Args:
        path: The file; read if it is there.
        header: What the cells have in common. ``header["run"]`` must agree with that of the file.

    Raises:
        ValueError: If the file holds cells of other networks or counts.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.header = path, dict(header)
        self.cells: dict[str, dict[str, Any]] = {}
        self._saved = time.monotonic()
        if path.exists():
            content = json.loads(path.read_text())
            if content["run"] != header["run"]:
                raise ValueError(
                    f"{path} holds cells of another run: {content['run']}, expected {header['run']}. Write to another "
                    "file with --out, or remove this one"
                )
            self.cells = {cell["key"]: cell for cell in content["cells"]}

    def add(self, cell: dict[str, Any]) -> None:
        """Keep a finished cell, and save now and then."""
        self.cells[cell["key"]] = cell
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Replace the file, or leave the old one whole."""
        order = sorted(self.cells.values(), key=lambda c: (c["sampler"], c["step_size"], c["seed"], c["index"]))
        head = json.dumps(self.header, indent=1, allow_nan=False).removesuffix("\n}")
        lines = ",\n".join(json.dumps(cell, allow_nan=False, separators=(",", ":")) for cell in order)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.write_text(f'{head},\n "cells": [\n{lines}\n ]\n}}\n')
        os.replace(fresh, self.path)
        self._saved = time.monotonic()
