"""``portbook free``: numbers of ports that can be bound now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output
from portbook.cli.base import option
from portbook.records import PROTOCOLS, Protocol

if TYPE_CHECKING:
    from portbook.bind.free import Free

ASKED: dict[str | None, tuple[Protocol, ...]] = {None: ("tcp",), "udp": ("udp",), "both": PROTOCOLS}
udp_option = option("--udp", "which", flag_value="udp", default=None, help="UDP instead of TCP")
both_option = option("--both", "which", flag_value="both", default=None, help="TCP and UDP, the same number")
address_option = option(
    "--address", metavar="A", help="this address only; localhost: both loopbacks (default: 0.0.0.0 and ::)"
)


@base.command("free")
@option("-n", "count", type=click.IntRange(1, 65535), default=1, metavar="N", help="how many (default: 1)")
@option("--range", "among", metavar="A-B", help="choose among these ports")
@udp_option
@both_option
@address_option
@option("--avoid-ephemeral", is_flag=True, help="none that an outgoing connection may take")
@option("-q", "--quiet", is_flag=True, help="do not say that nothing reserves them")
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
    """Print ports that can be bound now, one a line.

    A number is not a reservation: anybody may take the port before you do. portbook lease hands over the bound
    socket instead. Exit code 0, or 1 when fewer were found than asked for.

    \b
    Examples:
      portbook free
      portbook free -n 3 --range 8000-8100 --both
      portbook free --address 127.0.0.1 --avoid-ephemeral --json
    """
    from portbook.bind.free import free
    from portbook.render import free as render

    ports = read_ports(among) if among is not None else None
    found = free(count, protocols=ASKED[which], address=address, ports=ports, avoid_ephemeral=avoid_ephemeral)
    if as_json:
        output.write_bytes(render.json(found))
    else:
        _write_people(found, quiet)
    return exits.YES if found.enough else exits.NO


def read_ports(text: str) -> list[int]:
    """Read ``8000-8100,9000``; raise UsageError."""
    from portbook import query

    return sorted({port for low, high in query.read_ports(text) for port in range(low, high + 1)})


def _write_people(found: Free, quiet: bool) -> None:
    from portbook.render import free as render
    from portbook.render.text import safe

    sys.stdout.write("".join(f"{port}\n" for port in found.ports))
    sys.stdout.flush()
    if found.ports and not quiet:
        sys.stderr.write(safe(f"portbook: {render.caution(found)}") + "\n")
    if not found.enough:
        sys.stderr.write(safe(f"portbook: {render.shortage(found)}") + "\n")
    output.write_gaps(found.gaps)
