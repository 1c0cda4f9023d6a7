"""The end of a run: an exit code, and for an error one line on standard error, never a traceback."""

from __future__ import annotations

import os
import sys

import click

from portbook.cli import portbook
from portbook.errors import PortbookError

YES, NO, USAGE, GAPS, VIOLATED, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
# Commands whose output alone is what they are for: a reader that goes away has seen enough of it (head(1), a pager).
READINGS = frozenset(("list", "scan", "probe", "sources", "watch", "history", "man", "help", None))  # None: help
COMPLETE = "_PORTBOOK_COMPLETE"  # set by the shell's completion script


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code. Errors of the output are raised.

    :raises BrokenPipeError: the reader of the output has gone before a command was done that has more to do than write
    """
    _escape_what_cannot_be_encoded()
    if instruction := os.environ.get(COMPLETE):
        from portbook.cli import completion

        return completion.run(portbook, "portbook", COMPLETE, instruction)
    running: str | None = None
    try:
        with portbook.make_context("portbook", arguments) as context:
            try:
                return int(portbook.invoke(context) or YES)
            finally:
                running = context.invoked_subcommand
    except BrokenPipeError:
        if running not in READINGS:
            raise
        return YES
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.exceptions.Abort as interrupted:
        raise KeyboardInterrupt from interrupted
    except click.UsageError as error:
        from portbook.cli import mistakes

        return _report(mistakes.describe(error, arguments), USAGE)
    except click.ClickException as error:
        return _report(error.format_message(), UNKNOWN)
    except PortbookError as error:
        return _report(_complete(error, running), error.exit_code)


def _complete(error: PortbookError, running: str | None) -> str:
    """The error; of a wrong usage without a remedy, where the right usage is shown."""
    if error.exit_code != USAGE or error.hint:
        return str(error)
    from portbook.cli import mistakes

    return mistakes.with_help(str(error), f"portbook {running}" if running else "portbook")


def _report(message: str, code: int) -> int:
    from portbook.render.text import note

    sys.stderr.write(note(message))
    return code


def _escape_what_cannot_be_encoded() -> None:
    """Write characters that the encoding of an output lacks as escapes: a Windows code page has few characters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
