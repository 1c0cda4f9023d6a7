"""``portbook who``: who holds a port."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.base import option
from portbook.errors import UsageError
from portbook.query import read_ports
from portbook.records import PROTOCOLS, Protocol


@base.command("who")
@click.argument("ports", nargs=-1, required=True, metavar="PORT[/tcp|/udp]...")
@output.json_option
@option("--source", metavar="NAME", help="the way to read the machine: see portbook sources")
@output.strict_option
def command(ports: tuple[str, ...], as_json: bool, source: str | None, strict: bool) -> int:
    """Say who holds a port of this machine.

    Only the local side counts: a client that is connected to such a port elsewhere does not hold it. Exit code 0
    when every port is held, 1 when one is not.

    \b
    Examples:
      portbook who 8080
      portbook who 53/udp 443 --json
      portbook who 8080 >/dev/null || start-the-server
    """
    from portbook.holding import who
    from portbook.render import holding as render

    asked = [read_port(port) for port in ports]
    answers = [who(port, protocol, source=source) for port, protocol in asked]
    if as_json:
        output.write_bytes(render.json(answers))
    else:
        from portbook.render.text import style_of

        sys.stdout.write("\n".join(render.lines(answers, style_of(sys.stdout))) + "\n")
        sys.stdout.flush()
        output.write_gaps(dict.fromkeys(gap for answer in answers for gap in answer.gaps))
    if strict and any(answer.gaps for answer in answers):
        return exits.GAPS
    return exits.YES if all(answer.held for answer in answers) else exits.NO


def read_port(text: str) -> tuple[int, Protocol | None]:
    """Read ``80``, ``80/tcp`` or ``53/udp``; raise UsageError."""
    number, slash, word = text.partition("/")
    ((low, high),) = read_ports(number) if "," not in number else ((0, 1),)
    if low != high:
        raise UsageError(f"port {text!r} is more than one", "name each port: 80 443/tcp")
    if not slash:
        return low, None
    protocol = next((p for p in PROTOCOLS if p == word.lower()), None)
    if protocol is None:
        raise UsageError(f"unknown protocol {word!r} in {text!r}", f"valid are {', '.join(PROTOCOLS)}")
    return low, protocol
