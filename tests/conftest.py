"""Fixtures of all tests."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder: Trainers write into the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    """Examples that run in this process silence Lightning; the next test may listen to it."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


def pytest_configure(config: pytest.Config) -> None:
    """Readings of a few draws fail their checks, and say so; the tests of that message ask for it."""
    config.addinivalue_line("filterwarnings", "ignore:.*cannot be relied on:UserWarning")
