"""What happened in a run as one Markdown text: events in the order of their steps, then the stages between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_slt.events import RunEvent

MOST = 100
"""Rows, those of the latest events: a text that is written at every event must not grow with all of them."""


def happenings(events: Sequence[RunEvent], stages: Mapping[str, str]) -> str:
    """Events and stages as Markdown.

    Args:
        events: In the order of their steps.
        stages: A table of stages for each quantity.

    >>> event = RunEvent(source="stages", kind="boundary", step=120.0, known_at=150, quantity="q", text="q rests")
    >>> print(happenings([event], {}))
    | step | what | told at step | by |
    |---|---|---|---|
    | 120 | **boundary** q rests | 150 | stages |
    """
    shown = events[-MOST:]
    rows = ["| step | what | told at step | by |", "|---|---|---|---|"]
    for e in shown:
        rows.append(f"| {e.step:.0f} | **{_cell(e.kind)}** {_cell(e.text)} | {e.known_at} | {_cell(e.source)} |")
    if len(shown) < len(events):
        rows += ["", f"{len(events) - len(shown)} earlier ones stand in the files of events beside the records."]
    for quantity, table in stages.items():
        rows += ["", f"**Stages of {quantity}**", "", table]
    return "\n".join(rows)


def _cell(text: str) -> str:
    """A text that stays one cell of its table."""
    return " ".join(text.split()).replace("|", "\\|")
