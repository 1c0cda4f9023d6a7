"""Every error portbook raises on purpose.

    PortbookError                 exit code
    ├── UsageError                2   what was asked makes no sense
    ├── SourceError               5   a way to read this machine failed
    │   ├── SourceMissing         5   not on this system, or not this version
    │   ├── SourceDenied          5   more privilege is needed
    │   ├── SourceGarbled         5   its answer could not be understood
    │   └── SourceTimeout         5   no answer in time
    ├── LeaseError                1   a port could not be had
    ├── StoreError                5   a file of portbook's own could not be read or written
    └── RemoteError               5   another machine could not be asked

Errors of the system and of libraries are translated once, where they happen, and kept as the cause.
"""

from __future__ import annotations


class PortbookError(Exception):
    """One line that says what went wrong and where; ``hint`` says what to do."""

    exit_code = 5

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class UsageError(PortbookError):
    """What was asked makes no sense; the message says what is valid."""

    exit_code = 2


class SourceError(PortbookError):
    """A way to read this machine failed."""


class SourceMissing(SourceError):
    """The way does not exist on this system or in this version of it."""


class SourceDenied(SourceError):
    """The system refused; the hint names the privilege that is needed."""


class SourceGarbled(SourceError):
    """The answer could not be understood. Never read as "no sockets"."""


class SourceTimeout(SourceError):
    """No answer within the time limit."""


class LeaseError(PortbookError):
    """A port could not be had, by number or by choice; ``__cause__`` has the system's error."""

    exit_code = 1


class StoreError(PortbookError):
    """A file of portbook's own could not be read or written."""


class RemoteError(PortbookError):
    """Another machine could not be asked."""
