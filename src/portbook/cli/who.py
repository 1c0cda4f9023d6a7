"""``portbook who``: who holds a port."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output
from portbook.errors import UsageError

if TYPE_CHECKING:
    from portbook.records import Protocol


@base.command("who")
@click.argument("ports", nargs=-1, required=True, metavar="PORT[/tcp|/udp]...")
@output.json_option
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@output.strict_option
def command(ports: tuple[str, ...], as_json: bool, source: str | None, strict: bool) -> int:
    """Show which processes hold a port of this machine.

    Only the local port counts: a client that is connected to this port of another machine does not hold it. The exit
    code is 0 if every port is held, and 1 if one is not.

    \b
    Examples:
      portbook who 8080
      portbook who 53/udp 443 --json
      portbook who 8080 >/dev/null || start-the-server
    """
    from portbook.holding import who
    from portbook.render import holding as render

    requests = [read_port(port) for port in ports]
    answers = [who(port, protocol, source=source) for port, protocol in requests]
    if as_json:
        output.write_bytes(render.json(answers))
    else:
        from portbook.render.text import style_of

        sys.stdout.write("\n".join(render.lines(answers, style_of(sys.stdout))) + "\n")
        sys.stdout.flush()
        output.write_gaps(dict.fromkeys(gap for answer in answers for gap in answer.gaps))
    if strict and any(answer.gaps for answer in answers):
        return exits.GAPS
    if all(answer.held for answer in answers):
        return exits.YES
    return exits.NO


def read_port(text: str) -> tuple[int, Protocol | None]:
    """Read ``80``, ``80/tcp`` or ``53/udp``; raise UsageError."""
    from portbook.query import parse_port_ranges
    from portbook.records import PROTOCOLS

    number, slash, word = text.partition("/")
    ranges = parse_port_ranges(number)
    low, high = ranges[0]
    if len(ranges) > 1 or low != high:
        raise UsageError(f"{text!r} is more than one port", "name each port: 80 443/tcp")
    if not slash:
        return low, None
    for protocol in PROTOCOLS:
        if protocol == word.lower():
            return low, protocol
    raise UsageError(f"unknown protocol {word!r} in {text!r}", f"valid values are {', '.join(PROTOCOLS)}")
