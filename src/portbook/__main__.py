"""``portbook`` and ``python -m portbook``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

TYPE_CHECKING = False  # importing typing would double the time of "portbook --version"
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> int:
    """Run the command line and return its exit code."""
    return ended(_version if sys.argv[1:] in (["--version"], ["-V"]) else _run)


def _version() -> int:
    """Answered before anything is imported: scripts ask this in loops."""
    from portbook import __version__

    sys.stdout.write(f"portbook {__version__}\n")
    return 0


def _run() -> int:
    from portbook.cli import exits

    return exits.run(sys.argv[1:])


def ended(command: Callable[[], int]) -> int:
    """Run a command to an end without a traceback, whatever becomes of its output."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # started with the descriptor closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for the rest of the process
    try:
        code = command()
        sys.stdout.flush()
    except BrokenPipeError:
        code = 0  # the reader has seen enough: head(1), a pager
    except KeyboardInterrupt:
        code = 130
    except OSError as error:
        sys.stderr.write(f"portbook: the output cannot be written: {error.strerror or error}\n")
        code = 5
    else:
        return code
    _forget_output()
    return code


def _forget_output() -> None:
    """Keep the interpreter from flushing what is left when it ends (Python documentation, signal: SIGPIPE)."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return


def start() -> NoReturn:
    """Run the command line and end the process at once.

    The interpreter would first free every module and object, which takes as long as a bare Python runs. What that
    skips: functions registered with atexit (portbook has none), and waiting for threads that nobody needs any more.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    start()
