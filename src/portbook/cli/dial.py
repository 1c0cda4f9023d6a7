"""``portbook dial``: can a port be reached, and how fast."""

from __future__ import annotations

import sys

import click

from portbook.cli import base, exits, output


@base.command("dial")
@click.argument("targets", nargs=-1, required=True, metavar="HOST:PORT...")
@base.option(
    "--timeout",
    type=click.FloatRange(0.001, 3600),
    default=3.0,
    metavar="SECONDS",
    help="time limit of one attempt (default: 3)",
)
@base.option(
    "--retries", type=click.IntRange(0, 100), default=0, metavar="N", help="how often to try again after silence"
)
@base.option(
    "--count", "times", type=click.IntRange(1, 10_000), default=1, metavar="N", help="dial N times and show statistics"
)
@base.option("--tls", is_flag=True, help="do a TLS handshake: protocol, certificate, expiry")
@output.json_option
def command(targets: tuple[str, ...], timeout: float, retries: int, times: int, tls: bool, as_json: bool) -> int:
    """Find out whether a TCP port can be reached.

    Every address of the host is dialed. Each outcome comes with its evidence: SYN/ACK is open, RST is closed, an ICMP
    message is shown with its type, code and sender, and silence is a timeout. The exit code is 0 if every target is
    open at some address, and 1 if one is not.

    \b
    Examples:
      portbook dial localhost:5432
      portbook dial example.org:443 --tls
      portbook dial '[::1]:8080' --count 20 --json
    """
    from portbook import dialing
    from portbook.render import dial as render
    from portbook.render.text import style_of

    for target in targets:
        dialing.parse_host_port(target)  # report an invalid target before anything is dialed
    all_open = True
    for target in targets:
        result = dialing.dial(target, timeout_s=timeout, retries=retries, times=times, tls=tls)
        all_open = all_open and result.open
        if as_json:
            output.write_bytes(render.json([result]))
        else:
            sys.stdout.write("\n".join(render.lines(result, style_of(sys.stdout))) + "\n")
            sys.stdout.flush()
    return exits.YES if all_open else exits.NO
