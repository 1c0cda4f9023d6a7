"""The command after ``--``, which replaces this process: same process id, same signals, its own exit code."""

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
from portbook.errors import CommandMissing, CommandRefused

if TYPE_CHECKING:
    from subprocess import Popen

    Start = Callable[[Sequence[str]], Popen[bytes]]

# Python ignores these signals, and an ignored signal stays ignored across exec (signal(7)): a program whose reader has
# ended would run on. subprocess restores them as well, with restore_signals.
IGNORED = ("SIGPIPE", "SIGXFSZ")
HINTS = {ENOEXEC: "begin a script with #! and its interpreter"}


class CommandWithTail(base.Command):
    """A click command that keeps everything after ``--`` as a command to run."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Remove the command from the arguments, whatever it contains."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta["portbook.command"] = args[end + 1 :]
        return super().parse_args(ctx, args[:end])


def arguments(ctx: click.Context) -> list[str]:
    """The command to run and its arguments; empty if there is none."""
    given: list[str] = ctx.meta["portbook.command"]
    return given


def executable(name: str) -> str:
    """The full path of a command.

    :raises CommandMissing: there is no command with this name
    :raises CommandRefused: there is one, and it may not be run
    """
    path = shutil.which(name)
    if path is not None:
        return path
    if os.path.dirname(name) and os.path.isdir(name):
        raise CommandRefused(f"cannot run {name}: it is a directory")
    file = shutil.which(name, os.F_OK)
    if file is None:
        raise CommandMissing(f"there is no command {name!r}", "the words after -- are run without a shell")
    raise CommandRefused(f"cannot run {file}: it is not executable", f"chmod +x {file}")


def run(path: str, given: list[str], start: Start | None = None) -> int:
    """Run the command in place of this process; on Windows, which cannot, as a child with its exit code.

    :param start: on Windows, what starts the child
    :returns: the exit code, on Windows; elsewhere this does not return
    :raises CommandMissing: it, or the interpreter that its first line names, is not there
    :raises CommandRefused: the system refuses to run it
    """
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if sys.platform != "win32":
            _restore_signals()
            os.execv(path, given)  # noqa: S606  what the user typed, without a shell
        return _wait((start or _start_child)([path, *given[1:]]))
    except FileNotFoundError as error:
        hint = "the interpreter that its first line names is not there"
        raise CommandMissing(f"cannot run {path}: {error.strerror}", hint) from error
    except OSError as error:
        raise CommandRefused(f"cannot run {path}: {error.strerror}", HINTS.get(error.errno or 0)) from error


def _restore_signals() -> None:
    for name in IGNORED:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _start_child(command: Sequence[str]) -> Popen[bytes]:
    import subprocess

    return subprocess.Popen(command)


def _wait(process: Popen[bytes]) -> int:
    """The exit code. Ctrl-C reaches every process of the console: the command decides what to do about it."""
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
