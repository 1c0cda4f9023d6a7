"""How a run ends: one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import os
import sys

import click

from portbook.cli import portbook
from portbook.errors import PortbookError

YES, NO, USAGE, GAPS, UNKNOWN, INTERRUPTED = 0, 1, 2, 3, 5, 130


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    _write_anything()
    try:
        return _run(arguments)
    except BrokenPipeError:
        _forget_output()
        return YES  # the reader has seen enough: head(1), a pager
    except (KeyboardInterrupt, click.exceptions.Abort):
        _forget_output()
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    try:
        code = portbook.main(arguments, prog_name="portbook", standalone_mode=False)
        sys.stdout.flush()
        return int(code or YES)
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        return _complain(_explain(error), USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), UNKNOWN)
    except PortbookError as error:
        return _complain(str(error), error.exit_code)


def _complain(message: str, code: int) -> int:
    from portbook.render.text import safe

    sys.stderr.write(f"portbook: {safe(message)}\n")
    return code


def _explain(error: click.UsageError) -> str:
    """What is wrong, then what is valid."""
    message = error.format_message().strip().rstrip(".")
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        options = sorted({o for p in error.ctx.command.get_params(error.ctx) for o in p.opts if o.startswith("--")})
        return f"no such option {error.option_name}; valid are {', '.join(options)}"
    if message.startswith("No such command") and isinstance(error.ctx.command if error.ctx else None, click.Group):
        return f"{message[0].lower()}{message[1:]}; valid are {', '.join(error.ctx.command.list_commands(error.ctx))}"  # type: ignore[union-attr]
    return f"{message[0].lower()}{message[1:]}; see portbook --help"


def _write_anything() -> None:
    """What an output's encoding cannot show is written escaped: a Windows code page has few characters."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _forget_output() -> None:
    """Keep the interpreter from flushing into a closed pipe when it ends (Python documentation, signal: SIGPIPE)."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
