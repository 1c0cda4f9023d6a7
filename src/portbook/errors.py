"""Every error portbook raises on purpose.

    PortbookError                 exit code
    ├── UsageError                2   the request is not valid
    │   └── PolicyError           2   a policy is not valid
    ├── SourceError               5   a source of data failed
    │   ├── SourceMissing         5   not on this system, or not in this version of it
    │   ├── SourceDenied          5   more privilege is needed
    │   ├── SourceGarbled         5   its answer could not be understood
    │   └── SourceTimeout         5   it did not answer in time
    ├── LeaseError                1   a port could not be bound
    ├── CommandMissing            127 there is no command to run, as a shell says it
    ├── CommandRefused            126 the system does not run the command
    ├── StoreError                5   a file of portbook's own could not be read or written
    └── RemoteError               5   another machine could not be reached

Errors of the system and of libraries are translated once, where they happen, and kept as the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class PortbookError(Exception):
    """What went wrong and where, in one line.

    :param message: one line, without the remedy
    :param hint: what to do about it; ``str(error)`` is the message and the hint
    """

    exit_code = 5

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}; {self.hint}" if self.hint else message


class UsageError(PortbookError):
    """The request is not valid; the hint names what is."""

    exit_code = 2


class PolicyError(UsageError):
    """A policy is not valid.

    :param problems: every mistake, with its place: ``portbook.watching.policy.Problem``; or a message as text
    """

    def __init__(self, problems: Sequence[object] | str, hint: str | None = None) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        more = len(self.problems) - 1
        mistakes = "mistake" if more == 1 else "mistakes"
        super().__init__(str(self.problems[0]), hint or (f"and {more} more {mistakes}" if more else None))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle the problems: by default exceptions pickle the message."""
        return type(self), (self.problems, self.hint)


class SourceError(PortbookError):
    """A source of data failed."""


class SourceMissing(SourceError):
    """The source does not exist on this system, or in this version of it."""


class SourceDenied(SourceError):
    """The system refused access; the hint names the privilege that is needed."""


class SourceGarbled(SourceError):
    """The answer of a source could not be understood. It is never read as "no sockets"."""


class SourceTimeout(SourceError):
    """A source did not answer within the time limit."""


class LeaseError(PortbookError):
    """No port could be bound, neither the requested one nor any other; ``__cause__`` is the error of the system."""

    exit_code = 1


class CommandMissing(PortbookError):
    """There is no command with this name. The exit code is that of a shell (POSIX.1-2024, 2.8.2)."""

    exit_code = 127


class CommandRefused(PortbookError):
    """The command exists, and the system does not run it."""

    exit_code = 126


class StoreError(PortbookError):
    """A file of portbook's own could not be read or written."""


class RemoteError(PortbookError):
    """Another machine could not be reached."""


def nearest(word: str, valid: Iterable[str]) -> str | None:
    """The valid word that a misspelt one most likely means; None if none is near."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word[:40], list(valid), 1)), None)
