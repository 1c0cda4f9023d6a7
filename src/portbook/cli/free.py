"""``portbook free``: ports that can be bound now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output
from portbook.records import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from portbook.bind.free import Free

PROTOCOLS_OF: dict[str | None, tuple[Protocol, ...]] = {None: ("tcp",), "udp": ("udp",), "both": PROTOCOLS}
udp_option = base.option("--udp", "which", flag_value="udp", default=None, help="UDP instead of TCP")
both_option = base.option("--both", "which", flag_value="both", default=None, help="TCP and UDP of the same port")
address_option = base.option(
    "--address", metavar="A", help="this address only; localhost: 127.0.0.1 and ::1 (default: 0.0.0.0 and ::)"
)


@base.command("free")
@base.option("-n", "count", type=click.IntRange(1, 65535), default=1, metavar="N", help="how many (default: 1)")
@base.option("--range", "among", metavar="A-B", help="choose among these ports")
@udp_option
@both_option
@address_option
@base.option("--avoid-ephemeral", is_flag=True, help="skip ports that an outgoing connection may get")
@base.option("-q", "--quiet", is_flag=True, help="omit the note that the ports are not reserved")
@output.json_option
def command(
    count: int,
    among: str | None,
    which: str | None,
    address: str | None,
    avoid_ephemeral: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Print ports that can be bound now, one per line.

    A number is not a reservation: another program may take the port before you do. portbook lease passes the
    bound socket to a command instead. The exit code is 0, or 1 if fewer ports were found than requested.

    \b
    Examples:
      portbook free
      portbook free -n 3 --range 8000-8100 --both
      portbook free --address 127.0.0.1 --avoid-ephemeral --json
    """
    from portbook.bind.free import free
    from portbook.render import free as render

    ports = parse_port_list(among) if among is not None else None
    answer = free(count, protocols=PROTOCOLS_OF[which], address=address, ports=ports, avoid_ephemeral=avoid_ephemeral)
    if as_json:
        output.write_bytes(render.json(answer))
    else:
        _write_text(answer, quiet)
    return exits.YES if answer.enough else exits.NO


def parse_port_list(text: str) -> list[int]:
    """Read ``8000-8100,9000``; raise UsageError."""
    from portbook import query

    ports: set[int] = set()
    for low, high in query.parse_port_ranges(text):
        ports.update(range(low, high + 1))
    return sorted(ports)


def _write_text(answer: Free, quiet: bool) -> None:
    from portbook.render import free as render
    from portbook.render.text import safe

    sys.stdout.write("".join(f"{port}\n" for port in answer.ports))
    sys.stdout.flush()
    if answer.ports and not quiet:
        sys.stderr.write(safe(f"portbook: {render.caution(answer)}") + "\n")
    if not answer.enough:
        sys.stderr.write(safe(f"portbook: {render.shortage(answer)}") + "\n")
    output.write_gaps(answer.gaps)
