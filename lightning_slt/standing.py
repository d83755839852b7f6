"""How the processes of a reading stand: all are well and go on, or all give it up, for the same reason."""

from __future__ import annotations

from enum import IntEnum


class Standing(IntEnum):
    """Of one process in a reading; of several together the least counts."""

    INTERRUPTED = 0
    """It was asked to end: there is to be no reading, whatever else went wrong."""
    FAILED = 1
    WELL = 2

    def go_on(self) -> None:
        """Nothing where all are well.

        Raises:
            PeerInterruptedError: If a process was asked to end.
            PeerFailedError: If one has failed.
        """
        if self is Standing.INTERRUPTED:
            raise PeerInterruptedError("a signal to another process")
        if self is Standing.FAILED:
            raise PeerFailedError("another process failed in this reading; its own message says why")


class InterruptedReadingError(Exception):
    """The process was asked to end in the middle of a reading."""


class PeerInterruptedError(InterruptedReadingError):
    """Another process was."""


class PeerFailedError(Exception):
    """A reading that another process could not make."""
