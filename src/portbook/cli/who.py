"""``portbook who``: who holds a port."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output
from portbook.errors import UsageError

if TYPE_CHECKING:
    from portbook.ports import Ports
    from portbook.records import Holding


@base.command("who")
@click.argument("ports", nargs=-1, metavar="PORT...")
@base.port_option
@base.option("-w", "--wide", is_flag=True, help="show command lines whole")
@output.json_option
@base.option("--source", metavar="NAME", help="read this data source; see portbook sources")
@base.option("--at", metavar="TIME", help="who held it then, as portbook watch has recorded it: 14:03, '2h ago', …")
@base.option("--db", "--store", "path", metavar="FILE", help="with --at: the history; without it that of the user")
@output.strict_option
@click.pass_context
def command(
    ctx: click.Context,
    ports: tuple[str, ...],
    more: tuple[str, ...],
    wide: bool,
    as_json: bool,
    source: str | None,
    at: str | None,
    path: str | None,
    strict: bool,
) -> int:
    """Show which processes hold a port of this machine.

    PORT is 8080, 53/udp, http, a range, an address and a port such as 127.0.0.1:8080 or [::1]:8080, or a URL. Only the
    local port counts: a client that is connected to this port of another machine does not hold it. The exit code is 0
    if every port is held (of a range, at least one), and 1 if one is not.

    With --at, the answer is from the history: who held the port at that moment, as far as is known. The exit code is 1
    also if nobody watched then and nothing is known.

    \b
    Examples:
      portbook who 8080
      portbook who 53/udp https --json
      portbook who 8000-8100
      portbook who 8080 --at "yesterday 14:03"
      portbook who 8080 >/dev/null || start-the-server
    """
    from portbook.ports import parse_several
    from portbook.render import holding as render

    requested = parse_several(base.given(ctx, ports, more))
    if at is not None:
        from portbook.cli import past

        return past.answer(requested, at, path, source, as_json, strict)
    if path is not None:
        raise UsageError("--db is for questions about the past", "give --at too")
    groups = [_answers(each, source) for each in requested]
    answers = [answer for group in groups for answer in group]
    if as_json:
        output.write_bytes(render.json(answers))
    else:
        from portbook.render.text import style_of

        sys.stdout.write("".join(line + "\n" for line in render.lines(answers, style_of(sys.stdout), wide)))
        sys.stdout.flush()
        output.write_gaps(dict.fromkeys(gap for answer in answers for gap in answer.gaps))
    for each, group in zip(requested, groups, strict=True):
        _mention_others(each, len(each.numbers) - len(group))
    if strict and any(answer.gaps for answer in answers):
        return exits.GAPS
    if all(any(answer.held for answer in group) for group in groups):
        return exits.YES
    return exits.NO


def _answers(ports: Ports, source: str | None) -> list[Holding]:
    """The answer for a port; of a range, those for the ports that a socket has."""
    from portbook.holding import used_ports, who
    from portbook.ports import Ports

    if ports.first == ports.last:
        return [who(ports, source=source)]
    numbers = used_ports(ports, source=source)
    return [who(Ports(number, number, ports.protocol, ports.host), source=source) for number in numbers]


def _mention_others(ports: Ports, count: int) -> None:
    from portbook.numerals import counted
    from portbook.render.text import note

    if count:
        sys.stderr.write(note(f"no socket has the other {counted(count, 'port')} of {ports}"))
