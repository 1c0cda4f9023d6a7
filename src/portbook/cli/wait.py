"""``portbook wait``: until ports answer, or are free; then run a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exec_command, exits

if TYPE_CHECKING:
    from portbook.ports import Ports
    from portbook.waiting import Unready


@base.command("wait", cls=exec_command.CommandWithTail)
@click.argument("targets", nargs=-1, metavar="TARGET... [-- COMMAND...]")
@base.option("-p", "--ports", metavar="PORTS", help="ports of every TARGET, which is a host then: 22,8000-8010")
@base.option(
    "--timeout",
    type=click.FloatRange(0.001),
    default=60.0,
    metavar="SECONDS",
    help="time limit of the whole wait, name lookups included (default: 60)",
)
@base.option("--free", is_flag=True, help="wait until the local ports are free; PORT is enough")
@base.option("--udp", is_flag=True, help="UDP ports; silence is no answer")
@base.option("--stable", is_flag=True, help="a connection has to last 1 s: proxies accept before their service does")
@click.pass_context
def command(
    ctx: click.Context, targets: tuple[str, ...], ports: str | None, timeout: float, free: bool, udp: bool, stable: bool
) -> int:
    """Wait until every port answers, then run a command.

    TARGET is localhost:8080, [::1]:8080, 8080 on this machine, 53/udp, a URL, or a host and its ports: db.example 5432.
    With --free it is a port, a range, or an address of this machine and a port.

    The command replaces portbook: it keeps the process id, and its exit code is the result. Without a command, the exit
    code is 0. If the time is up, portbook names the ports that are not ready, with the reason, and exits with 1.

    \b
    Examples:
      portbook wait localhost:5432 localhost:6379 -- ./start-server
      portbook wait --free 8080 --timeout 10
      portbook wait --udp ns.example.org:53
      portbook wait --stable localhost:8080
    """
    from portbook.waiting import wait_until_ready

    arguments = exec_command.arguments(ctx)
    path = exec_command.executable(arguments[0]) if arguments else None  # fail before the wait
    wanted = _wanted(targets, ports, free)
    show = _progress(len(wanted))
    unready = wait_until_ready(wanted, udp=udp, free=free, stable=stable, timeout_s=timeout, on_round=show)
    if show is not None:
        show([])  # else what follows would be written behind it
    if unready:
        from portbook.render.text import note

        reasons = ", ".join(f"{each.target} ({each.reason})" for each in unready)
        sys.stderr.write(note(f"after {timeout:g} s not {'free' if free else 'ready'}: {reasons}"))
        return exits.NO
    return exec_command.run(path, arguments) if path else exits.YES


def _wanted(targets: Sequence[str], ports: str | None, free: bool) -> list[Ports]:
    from portbook.ports import parse_several, parse_targets

    if not free or (ports is not None and targets):
        return parse_targets(targets, ports)
    return parse_several(targets if ports is None else ports)


def _progress(total: int) -> Callable[[Sequence[Unready]], None] | None:
    """Return what shows progress in one line of a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    from portbook.escaping import safe
    from portbook.render.text import style_of

    width = style_of(sys.stderr).width or 80

    def show(unready: Sequence[Unready]) -> None:
        text = ""
        if unready:
            waiting = ", ".join(f"{each.target} ({each.reason})" for each in unready)
            text = f"{total - len(unready)} of {total} ready, waiting for {safe(waiting)}"
        sys.stderr.write(f"\r\x1b[K{text[: width - 1]}")
        sys.stderr.flush()

    return show
