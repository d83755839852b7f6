"""TensorBoard's entry point for the tab "SLT".

A module of its own, because TensorBoard imports the entry points of all plugins whenever it starts: inside
``lightning_slt`` it would bring torch and Lightning with it, three seconds each time. They are imported in
the background where a run keeps records, at the latest when the tab is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any

from tensorboard.plugins import base_plugin

Application = Callable[[Any, Any], Any]


class SLTPlugin(base_plugin.TBPlugin):  # type: ignore[misc]  # TensorBoard has no types
    """The tab: routes under ``/data/plugin/slt/``.

    Args:
        context: TensorBoard's.
    """

    plugin_name = "slt"

    def __init__(self, context: base_plugin.TBContext) -> None:
        """Look at nothing yet."""
        self._folders = log_folders(context.flags)
        self._provider = context.data_provider

    def get_plugin_apps(self) -> dict[str, Application]:
        """The routes; from now on they may be asked."""
        Thread(target=self._prepare, daemon=True).start()
        return {"/static/*": self._answer, "/data/*": self._answer}

    def is_active(self) -> bool:
        """Whether any run keeps records."""
        return any("slt_records" in below for top in self._folders for _, below, _ in os.walk(top))

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """Where the front end begins."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="SLT")

    def _prepare(self) -> None:
        if self.is_active():
            import_module("lightning_slt.tab.plugin")

    def _answer(self, environ: Any, start_response: Any) -> Any:
        return self._tab(environ, start_response)

    @cached_property
    def _tab(self) -> Application:
        from lightning_slt.tab.plugin import Tab

        return Tab(self._folders, self._provider)


def log_folders(flags: Any) -> dict[str, str]:
    """Log folders, each with the name that its runs begin with, of ``--logdir`` or ``--logdir_spec``.

    >>> from types import SimpleNamespace
    >>> log_folders(SimpleNamespace(logdir="", logdir_spec="a:/x,/y"))
    {'/x': 'a', '/y': ''}
    """
    if logdir := getattr(flags, "logdir", ""):
        return {_local(logdir): ""}
    found = {}
    for part in filter(None, (getattr(flags, "logdir_spec", "") or "").split(",")):
        name, colon, folder = part.partition(":")
        named = bool(colon) and "/" not in name and not folder.startswith("//")
        found[_local(folder if named else part)] = name if named else ""
    return found


def _local(folder: str) -> str:
    return folder if "://" in folder else str(Path(folder).expanduser().resolve())
