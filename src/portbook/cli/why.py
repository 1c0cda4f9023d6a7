"""``portbook why``: can I have this port, and if not, why not."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output
from portbook.cli.base import option
from portbook.cli.who import read_port

CODES = {True: exits.YES, False: exits.NO, None: exits.UNKNOWN}


@base.command("why")
@click.argument("port", metavar="PORT[/tcp|/udp]")
@option("--address", metavar="A", help="ask for one address; IPv6 without IPv4")
@option("--dual", is_flag=True, help="ask for one socket of both families, [::] without V6ONLY")
@option("--no-reuse", is_flag=True, help="without SO_REUSEADDR, as a careless server")
@option("--reuseport", is_flag=True, help="with SO_REUSEPORT")
@output.json_option
@output.strict_option
def command(
    port: str, address: str | None, dual: bool, no_reuse: bool, reuseport: bool, as_json: bool, strict: bool
) -> int:
    """Say whether a server could have a port, and what stands in its way.

    The port is bound for a moment, as a server would bind it: TCP with SO_REUSEADDR and a listen(), on Windows with
    SO_EXCLUSIVEADDRUSE; 0.0.0.0 and [::] each, and both must be free. What is found is told with its evidence and a
    remedy; what the bind was told always counts. Exit code 0 you can have it, 1 you cannot, 5 could not find out.

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
    return exits.GAPS if strict and answer.gaps else CODES[answer.can_have]
