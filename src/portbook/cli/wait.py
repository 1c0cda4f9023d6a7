"""``portbook wait``: until ports answer, or are free; then run a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import click

from portbook.cli import base, exec_command, exits
from portbook.cli.base import option
from portbook.records import Protocol

Ready = Callable[[float], bool]


@base.command("wait", cls=exec_command.CommandWithTail)
@click.argument("targets", nargs=-1, required=True, metavar="HOST:PORT... [-- COMMAND...]")
@option("--timeout", type=click.FloatRange(0.001), default=60.0, metavar="SECONDS", help="for all together")
@option("--free", is_flag=True, help="wait until nobody holds the local ports any more: PORT is enough")
@option("--udp", is_flag=True, help="UDP: an answer counts, silence does not")
@click.pass_context
def command(ctx: click.Context, targets: tuple[str, ...], timeout: float, free: bool, udp: bool) -> int:
    """Wait until every port answers, then run a command in place of this one.

    Exit code 0, or that of the command; 1 when the time was not enough, naming what is still missing.

    \b
    Examples:
      portbook wait localhost:5432 localhost:6379 -- ./start-server
      portbook wait --free 8080 --timeout 10
      portbook wait --udp ns.example.org:53
    """
    from portbook.waiting import wait_for

    arguments = exec_command.arguments(ctx)
    path = exec_command.executable(arguments[0]) if arguments else None  # what cannot be run is said before the wait
    protocol: Protocol = "udp" if udp else "tcp"
    ready = [(target, _free(target, protocol) if free else _answers(target, protocol)) for target in targets]
    missing = wait_for(ready, timeout, _progress(len(ready)))
    if missing:
        what = "still held" if free else "no answer from"
        sys.stderr.write(f"portbook: after {timeout:g} s {what} {', '.join(missing)}\n")
        return exits.NO
    return exec_command.run(path, arguments) if path else exits.YES


def _answers(target: str, protocol: Protocol) -> Ready:
    from portbook import dialing

    asked = dialing.parse_target(target)
    if protocol == "tcp":
        return lambda left_s: dialing.dial(target, timeout_s=min(left_s, dialing.TIMEOUT_S), lookup_s=left_s).open
    return lambda left_s: _answers_udp(asked.host, asked.port, left_s)


def _answers_udp(host: str, port: int, left_s: float) -> bool:
    """Whether any address answers; each is asked twice, since the second time everything that fits the port is."""
    from portbook.dialing import TIMEOUT_S
    from portbook.probe.request import Limits, Probe
    from portbook.probe.resolve import resolve
    from portbook.scanner.udp.engine import scan_udp

    (resolved,) = resolve([host], left_s)
    probes = [Probe(host, place.address, port, place.zone) for place in resolved.places]
    limits = Limits(retries=1, deadline_s=min(left_s, TIMEOUT_S))
    return any(answer.outcome == "open" for answer in scan_udp(probes, limits))


def _free(target: str, protocol: Protocol) -> Ready:
    """Nobody holds the local port. Looking does not take it, not even for a moment, as trying to bind would."""
    from portbook import inventory, query

    text = target.rpartition(":")[2]
    asked = query.Query((query.term("port", [text]), query.term("protocol", [protocol])))
    return lambda _: all(s.state == "TIME_WAIT" for s in inventory.select(asked)[1])


def _progress(total: int) -> Callable[[Sequence[str]], None] | None:
    """One line that is written over, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        return None
    from portbook.render.text import safe

    def tell(missing: Sequence[str]) -> None:
        text = f"waiting for {safe(', '.join(missing))} ({total - len(missing)} of {total} ready)" if missing else ""
        sys.stderr.write(f"\r\x1b[K{text[:200]}")
        sys.stderr.flush()

    return tell
