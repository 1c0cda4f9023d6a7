"""``portbook why``: whether a server can bind a port, and why not."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.who import read_port

EXIT_CODES = {True: exits.YES, False: exits.NO, None: exits.UNKNOWN}


@base.command("why")
@click.argument("port", metavar="PORT[/tcp|/udp]")
@base.option("--address", metavar="A", help="bind this address only (IPv6: with IPV6_V6ONLY)")
@base.option("--dual", is_flag=True, help="bind one [::] socket for IPv6 and IPv4, without IPV6_V6ONLY")
@base.option("--no-reuse", is_flag=True, help="bind like a server that does not set SO_REUSEADDR")
@base.option("--reuseport", is_flag=True, help="bind with SO_REUSEPORT")
@output.json_option
@output.strict_option
def command(
    port: str, address: str | None, dual: bool, no_reuse: bool, reuseport: bool, as_json: bool, strict: bool
) -> int:
    """Say whether a server can bind a port, and what blocks it.

    Binds the port for a moment, as a server would: TCP with SO_REUSEADDR and listen(), on Windows with
    SO_EXCLUSIVEADDRUSE; on 0.0.0.0 and [::], which must both be free. Each finding has its evidence and a remedy; the
    result of the bind decides. The exit code is 0 if a server can bind the port, 1 if not, and 5 if that could not be
    determined.

    \b
    Examples:
      portbook why 8080
      portbook why 53/udp --address 127.0.0.1
      portbook why 8080 --dual --json
    """
    from portbook.render import verdict as render
    from portbook.verdict.why import why

    number, protocol = read_port(port)
    answer = why(
        number,
        protocol or "tcp",
        address=address,
        dual=dual,
        reuse_address=False if no_reuse else None,
        reuse_port=reuseport,
    )
    if as_json:
        output.write_bytes([render.json(answer)])
    else:
        from portbook.render.text import style_of

        sys.stdout.write("\n".join(render.lines(answer, style_of(sys.stdout))) + "\n")
        sys.stdout.flush()
        output.write_gaps(answer.gaps)
    if strict and answer.gaps:
        return exits.GAPS
    return EXIT_CODES[answer.can_have]
