"""The command behind "--", which takes the place of ours: same process, same signals, its exit code."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from errno import ENOEXEC
from typing import TYPE_CHECKING

import click

from portbook.cli import base
from portbook.errors import PortbookError, UsageError

if TYPE_CHECKING:
    from subprocess import Popen

    Start = Callable[[Sequence[str]], Popen[bytes]]

# Python ignores these from its start on, and what is ignored stays so across exec (signal(7)): a program whose reader
# has gone would run on. subprocess gives them back as well, with restore_signals.
IGNORED = ("SIGPIPE", "SIGXFSZ")
HINTS = {ENOEXEC: "a script begins with #! and its interpreter"}


class CommandWithTail(base.Command):
    """Takes everything behind "--" as a command to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the command apart, whatever it looks like."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["portbook.command"] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])


def arguments(ctx: click.Context) -> list[str]:
    """The command and its arguments; empty when there is none."""
    given: list[str] = ctx.meta["portbook.command"]
    return given


def executable(name: str) -> str:
    """The full path of a command; raise UsageError when there is none of this name."""
    path = shutil.which(name)
    if path is None:
        raise UsageError(f"there is no command {name!r}", "what follows -- is run without a shell")
    return path


def run(path: str, given: list[str], beside: Start | None = None) -> int:
    """Run the command in place of this process; on Windows, which cannot, as a child whose exit code is ours.

    :param beside: how such a child is started
    :raises PortbookError: the system refuses to run it
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform != "win32":
            _give_back_signals()
            os.execv(path, given)  # noqa: S606  what the user asked for, and no shell
        return _ended((beside or _start)([path, *given[1:]]))
    except OSError as error:
        raise PortbookError(f"{path} cannot be run: {error.strerror}", HINTS.get(error.errno or 0)) from error


def _give_back_signals() -> None:
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _start(command: Sequence[str]) -> Popen[bytes]:
    import subprocess

    return subprocess.Popen(command)


def _ended(process: Popen[bytes]) -> int:
    """The exit code. Ctrl-C goes to everybody at the console: what it means is for the command to decide."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
