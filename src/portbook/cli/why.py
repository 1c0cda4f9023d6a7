"""``portbook why``: whether a server can bind a port, and why not."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output

if TYPE_CHECKING:
    from portbook.verdict.judge import Verdict

EXIT_CODES = {True: exits.YES, False: exits.NO, None: exits.UNKNOWN}


@base.command("why")
@click.argument("ports", nargs=-1, metavar="PORT...")
@base.port_option
@base.option("--address", metavar="A", help="bind this address only (IPv6: with IPV6_V6ONLY)")
@base.option("--dual", is_flag=True, help="bind one [::] socket for IPv6 and IPv4, without IPV6_V6ONLY")
@base.option("--no-reuse", is_flag=True, help="bind like a server that does not set SO_REUSEADDR")
@base.option("--reuseport", is_flag=True, help="bind with SO_REUSEPORT")
@output.json_option
@output.strict_option
@click.pass_context
def command(
    ctx: click.Context,
    ports: tuple[str, ...],
    more: tuple[str, ...],
    address: str | None,
    dual: bool,
    no_reuse: bool,
    reuseport: bool,
    as_json: bool,
    strict: bool,
) -> int:
    """Say whether a server can bind a port, and what blocks it.

    PORT is 8080, 53/udp, http, a range, an address and a port such as 127.0.0.1:8080 or [::1]:8080, or a URL.
    Binds the port for a moment, as a server would: TCP with SO_REUSEADDR and listen(), on Windows with
    SO_EXCLUSIVEADDRUSE; on 0.0.0.0 and [::], which must both be free. Each finding has its evidence and a remedy; the
    result of the bind decides. The exit code is 0 if a server can bind every port, 1 if not, and 5 if that could not
    be determined.

    \b
    Examples:
      portbook why 8080
      portbook why 127.0.0.1:53/udp
      portbook why 8080 --dual --json
    """
    from portbook.ports import parse_several, singles
    from portbook.render import verdict as render
    from portbook.verdict.why import why

    code, has_gaps = exits.YES, False
    for position, port in enumerate(singles(parse_several(base.given(ctx, ports, more)))):
        answer = why(
            port, address=address, dual=dual, reuse_address=False if no_reuse else None, reuse_port=reuseport
        )  # fmt: skip
        if as_json:
            output.write_bytes([render.json(answer)])
        else:
            _write_text(answer, is_first=position == 0)
        code = max(code, EXIT_CODES[answer.can_have])
        has_gaps = has_gaps or bool(answer.gaps)
    if strict and has_gaps:
        return exits.GAPS
    return code


def _write_text(answer: Verdict, *, is_first: bool) -> None:
    from portbook.render import verdict as render
    from portbook.render.text import style_of

    lines = render.lines(answer, style_of(sys.stdout))
    sys.stdout.write(("" if is_first else "\n") + "\n".join(lines) + "\n")
    sys.stdout.flush()
    output.write_gaps(answer.gaps)
