"""Faults that come again at every reading are told once."""

from __future__ import annotations

import re

from lightning_slt.boundary import warn_user

_WORD = re.compile(r"[^\W\d]+")

AGAIN = " (told once; the records and …/ok tell it for every reading)"


class Complaints:
    """What is wrong with the readings of one fit. Messages of the same words, whatever the numbers, are one."""

    def __init__(self) -> None:
        """Nothing is wrong yet."""
        self._told: set[frozenset[str]] = set()

    def tell(self, message: str, *, again: str = AGAIN) -> None:
        """Warn the user, at the line of theirs that led here, unless that was told.

        Args:
            message: What happened at which step.
            again: Follows it: where to look for further ones.
        """
        kind = frozenset(_WORD.findall(message))  # a set: "chain 0, chain 3" is "chain 1"
        if kind not in self._told:
            self._told.add(kind)
            warn_user(message + again)
