"""The sink ``command``: a program that is run for each event, one at a time.

It gets the event as JSON on standard input, and the fields as variables ``PORTBOOK_…`` of an environment that has
nothing else of ours. There is no shell, and no text of an event becomes an argument.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Sequence

from portbook.errors import SourceError, SourceMissing, UsageError
from portbook.system import program
from portbook.watching.sinks.base import (
    DeliveryError,
    EncodedEvent,
    PlainSink,
    Sink,
    SinkKind,
    SinkOption,
    SinkSettings,
)
from portbook.watching.sinks.journald import PREFIX

LIMIT_S = 30
MOST_OUTPUT = 4096  # bytes that are kept, for the message when it fails
MOST_ERROR = 200  # characters
EX_TEMPFAIL = 75  # sysexits.h: a temporary failure, try again
# Of a Windows program's own environment: what it needs to start.
WINDOWS_ENVIRONMENT = ("SYSTEMROOT", "SYSTEMDRIVE", "PATH", "PATHEXT", "COMSPEC", "TEMP", "TMP", "USERPROFILE")

OPTIONS = {
    "timeout_s": SinkOption("number", LIMIT_S, "seconds after which it is killed with what it started", 1, 3600),
    "environment": SinkOption("texts", (), 'names of variables that it gets too: ["HOME", "DISPLAY"]'),
}


class CommandSink(PlainSink):
    """A program for each event."""

    at_once = 1

    def __init__(self, command: Sequence[str], limit_s: float, environment: dict[str, str]) -> None:
        self.name = f"command:{command[0]}"
        self._command = list(command)
        self._limit_s = limit_s
        self._environment = environment
        self._running: program.Running | None = None

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Run the program for each event; raise DeliveryError."""
        for done, event in enumerate(events):
            self._run(event, done)

    def _run(self, event: EncodedEvent, done: int) -> None:
        variables = {f"{PREFIX}{name.upper()}": text for name, text in event.fields.items()}
        variables[f"{PREFIX}MESSAGE"] = event.sentence
        try:
            check(self._command[0])
            with program.start(
                self._command,
                self._limit_s,
                environment={**self._environment, **variables},
                most_bytes=MOST_OUTPUT,
                stdin=event.json + b"\n",
                discards_excess=True,
            ) as self._running:
                output = self._running.output()
        except SourceMissing as error:  # it may be there again after an update
            raise DeliveryError(str(error), done) from error
        except (SourceError, UsageError) as error:
            raise DeliveryError(str(error), done, refused=True) from error
        finally:
            self._running = None
        if output.code:
            raise DeliveryError(_failure(output), done, refused=output.code != EX_TEMPFAIL)

    def test(self, event: EncodedEvent) -> str | None:
        """Run the program; raise DeliveryError."""
        self.deliver((event,))
        return None

    def interrupt(self) -> None:
        """Kill the program that runs."""
        running = self._running
        if running is not None:
            running.kill()

    def close(self, limit_s: float) -> None:
        """Nothing is open."""


def _failure(output: program.Output) -> str:
    if output.code < 0:
        message = f"{output.name} was ended by signal {-output.code}"
    else:
        message = f"{output.name} ended with exit code {output.code}"
    first_line = output.stderr.decode("utf-8", "replace").strip().partition("\n")[0]
    if first_line:
        message += f": {first_line[:MOST_ERROR]}"
    return message


def check(path: str) -> None:
    """Refuse a program that another user may change, or put another in its place.

    Only the program itself: what an interpreter is told to read is not seen here.

    :raises SourceMissing: there is no such program
    :raises UsageError: others may change it
    """
    try:
        real = os.path.realpath(path, strict=True)
        if not stat.S_ISREG(os.stat(real).st_mode) or not os.access(real, os.X_OK):
            raise UsageError(f"{path!r} is not a program", "name a file that may be executed")
        if sys.platform == "win32":
            return
        for part in (*_upwards(os.path.abspath(path)), *_upwards(real)):
            status = os.lstat(part)
            if not stat.S_ISLNK(status.st_mode) and not _is_ours(status):
                raise UsageError(
                    f"others may change {path!r}: {part!r} is not only yours", "use one that root alone may write"
                )
    except OSError as error:
        raise SourceMissing(f"{path!r} cannot be run: {error.strerror or error}") from error


def _upwards(path: str) -> list[str]:
    """The path and every directory above it."""
    parts = [path]
    while parts[-1] != "/":
        parts.append(os.path.dirname(parts[-1]))
    return parts


def _is_ours(status: os.stat_result) -> bool:
    """Whether only root and we may change it. A group of our own counts as us, unless we are root."""
    if status.st_uid not in (0, os.geteuid()) or status.st_mode & stat.S_IWOTH:
        return False
    if not status.st_mode & stat.S_IWGRP:
        return True
    return status.st_gid == 0 or (os.geteuid() != 0 and status.st_gid == os.getegid())


def environment_of(names: Sequence[str]) -> dict[str, str]:
    """The environment of the program: the system's, and the variables of ours that were named."""
    if sys.platform == "win32":
        names = (*WINDOWS_ENVIRONMENT, *names)
        return {name: os.environ[name] for name in names if name in os.environ}
    return {**program.ENVIRONMENT, **{name: os.environ[name] for name in names if name in os.environ}}


def open_sink(settings: SinkSettings) -> Sink:
    """A sink that runs the program; raise UsageError."""
    import shlex

    place = settings.place
    try:
        command = shlex.split(settings.target)
    except ValueError as error:
        raise UsageError(f"{place}: {settings.target[:40]!r}: {error}", "quote it as for a shell") from error
    if not command or not os.path.isabs(command[0]):
        raise UsageError(f"{place}: command needs the whole path of a program", "write command:/usr/local/bin/hook")
    if "\0" in settings.target:
        raise UsageError(f"{place}: a command cannot have a NUL")
    try:
        check(command[0])
    except (UsageError, SourceMissing) as error:
        raise UsageError(f"{place}: {error}") from error
    return CommandSink(command, settings.options["timeout_s"], environment_of(settings.options["environment"]))


SINK = SinkKind(
    name="command",
    targets=("/usr/local/bin/hook --argument",),
    meaning="a program that is run for each event, with JSON on standard input and PORTBOOK_… variables",
    severity="info",
    options=OPTIONS,
    open=open_sink,
)
