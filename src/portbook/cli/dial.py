"""``portbook dial``: can a port be reached, and how fast."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output

if TYPE_CHECKING:
    from portbook.dialing import Dial
    from portbook.ports import Ports

NOT_FOUND_OUT = ("error", "lookup-failed")


@base.command("dial")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@base.option("-p", "--ports", metavar="PORTS", help="ports of every TARGET, which is a host then: 22,8000-8010")
@base.option(
    "--timeout",
    type=click.FloatRange(0.001, 3600),
    metavar="SECONDS",
    help="time limit of one attempt: name lookup, connection and TLS (default: 10 for the lookup, then 4)",
)
@base.option(
    "--retries", type=click.IntRange(0, 100), default=0, metavar="N", help="how often to try again after silence"
)
@base.option(
    "--count", "times", type=click.IntRange(1, 10_000), default=1, metavar="N", help="dial N times and show statistics"
)
@base.option("--tls", is_flag=True, help="do a TLS handshake and show the certificates; exit with 1 if it fails")
@base.option("--tls-verify", "verify", is_flag=True, help="--tls, and exit with 1 if a server is not trusted")
@base.option(
    "--expires-within",
    type=click.IntRange(0, 100_000),
    metavar="DAYS",
    help="--tls, and exit with 1 if a certificate of the chain expires within DAYS days",
)
@base.option("--server-name", metavar="NAME", help="--tls with this name for SNI and verification (default: HOST)")
@output.json_option
def command(
    targets: tuple[str, ...],
    ports: str | None,
    timeout: float | None,
    retries: int,
    times: int,
    tls: bool,
    verify: bool,
    expires_within: int | None,
    server_name: str | None,
    as_json: bool,
) -> int:
    """Find out whether a TCP port can be reached.

    TARGET is localhost:8080, [::1]:8080, 8080 on this machine, a URL, or a host and its ports: db.example 5432 5433.
    Every address of the host is dialed. Each outcome comes with its evidence: SYN/ACK is open, RST is closed, an ICMP
    message is shown with its type, code and sender, and silence is called that. The exit code is 0 if every target is
    open at some address, 1 if one is not, and 5 if that could not be found out. With --tls, --tls-verify and
    --expires-within every open address has to pass the check.

    \b
    Examples:
      portbook dial 8080
      portbook dial db.example:5432
      portbook dial example.org:443 --tls
      portbook dial example.org:443 --tls-verify --expires-within 14
      portbook dial '[::1]:8080' --count 20 --json
    """
    from portbook import dialing
    from portbook.ports import parse_targets
    from portbook.render import dial as render
    from portbook.render.text import note, style_of

    tls = tls or verify or expires_within is not None or server_name is not None
    wanted = parse_targets(targets, ports)
    for target in wanted:
        dialing.parse_destination(target)  # report an invalid target before anything is dialed

    def dial(target: Ports) -> Dial:
        return dialing.dial(
            target, timeout_s=timeout, retries=retries, times=times, tls=tls, server_name=server_name
        )  # fmt: skip

    code = exits.YES
    # One after the other if times are compared: they would disturb each other.
    for result in map(dial, wanted) if times > 1 else dialing.in_threads(dial, wanted):
        failures = list(render.failures(result, verify=verify, expires_within=expires_within))
        if as_json:
            output.write_bytes(render.json([result]))
        else:
            sys.stdout.write("\n".join(render.lines(result, style_of(sys.stdout))) + "\n")
            sys.stdout.flush()
        sys.stderr.write("".join(map(note, failures)))
        code = _worse(code, exits.NO if failures else _exit_code(result))
    return code


def _exit_code(dial: Dial) -> int:
    """UNKNOWN when this machine or its resolver is the reason at every address."""
    if dial.open:
        return exits.YES
    if any(answer.outcome not in NOT_FOUND_OUT for answer in dial.addresses):
        return exits.NO
    return exits.UNKNOWN


def _worse(one: int, other: int) -> int:
    """NO is certain, UNKNOWN is not: of several targets, one NO is the answer."""
    return min(one, other, key=(exits.NO, exits.UNKNOWN, exits.YES).index)
