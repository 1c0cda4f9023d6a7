"""``portbook wait``: until ports answer, or are free; then run a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from portbook.cli import base, exec_command, exits


@base.command("wait", cls=exec_command.CommandWithTail)
@click.argument("targets", nargs=-1, required=True, metavar="HOST:PORT... [-- COMMAND...]")
@base.option(
    "--timeout",
    type=click.FloatRange(0.001),
    default=60.0,
    metavar="SECONDS",
    help="time limit of the whole wait (default: 60)",
)
@base.option("--free", is_flag=True, help="wait until the local ports are free; PORT is enough")
@base.option("--udp", is_flag=True, help="UDP ports; silence is no answer")
@click.pass_context
def command(ctx: click.Context, targets: tuple[str, ...], timeout: float, free: bool, udp: bool) -> int:
    """Wait until every port answers, then run a command.

    The command replaces portbook: it keeps the process id, and its exit code is the result. Without a command, the exit
    code is 0. If the time is up, portbook names the ports that are not ready and exits with 1.

    \b
    Examples:
      portbook wait localhost:5432 localhost:6379 -- ./start-server
      portbook wait --free 8080 --timeout 10
      portbook wait --udp ns.example.org:53
    """
    from portbook.waiting import wait_for

    arguments = exec_command.arguments(ctx)
    path = exec_command.executable(arguments[0]) if arguments else None  # fail before the wait
    missing = wait_for(targets, udp=udp, free=free, timeout_s=timeout, on_round=_progress(len(targets)))
    if missing:
        what = "still in use:" if free else "no answer from"
        sys.stderr.write(f"portbook: after {timeout:g} s {what} {', '.join(missing)}\n")
        return exits.NO
    return exec_command.run(path, arguments) if path else exits.YES


def _progress(total: int) -> Callable[[Sequence[str]], None] | None:
    """Return what shows progress in one line of a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    from portbook.render.text import safe

    def show(missing: Sequence[str]) -> None:
        text = ""
        if missing:
            text = f"waiting for {safe(', '.join(missing))} ({total - len(missing)} of {total} ready)"
        sys.stderr.write(f"\r\x1b[K{text[:200]}")
        sys.stderr.flush()

    return show
