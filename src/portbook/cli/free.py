"""``portbook free``: ports that can be bound now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exits, output

if TYPE_CHECKING:
    from portbook.bind.free import Free
    from portbook.records import Protocol

# None: that of the ports, else TCP.
PROTOCOLS_OF: dict[str | None, tuple[Protocol, ...] | None] = {None: None, "udp": ("udp",), "both": ("tcp", "udp")}
udp_option = base.option("--udp", "which", flag_value="udp", default=None, help="UDP instead of TCP")
both_option = base.option("--both", "which", flag_value="both", default=None, help="TCP and UDP of the same port")
address_option = base.option(
    "--address", metavar="A", help="this address only; localhost: 127.0.0.1 and ::1 (default: 0.0.0.0 and ::)"
)


@base.command("free")
@click.argument("ports", nargs=-1, metavar="[PORTS]...")
@base.option("-p", "--range", "--ports", "more", multiple=True, metavar="PORTS", help="the same as PORTS")
@base.option("-n", "count", type=click.IntRange(1, 65535), default=1, metavar="N", help="how many (default: 1)")
@udp_option
@both_option
@address_option
@base.option("--avoid-ephemeral", is_flag=True, help="skip ports that an outgoing connection may get")
@base.option("-q", "--quiet", is_flag=True, help="omit the note that the ports are not reserved")
@output.json_option
def command(
    ports: tuple[str, ...],
    more: tuple[str, ...],
    count: int,
    which: str | None,
    address: str | None,
    avoid_ephemeral: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Print ports that can be bound now, one per line.

    Without PORTS, any port; with PORTS, one of these: numbers, ranges, 53/udp, 127.0.0.1:8000-8100. A number is not a
    reservation: another program may take the port before you do. portbook lease passes the bound socket to a
    command instead. The exit code is 0, or 1 if fewer ports were found than requested.

    \b
    Examples:
      portbook free
      portbook free 8000-8100 -n 3 --both
      portbook free --address 127.0.0.1 --avoid-ephemeral --json
    """
    from portbook.bind.free import free
    from portbook.render import free as render

    among = [*ports, *more] or None
    answer = free(count, protocols=PROTOCOLS_OF[which], address=address, ports=among, avoid_ephemeral=avoid_ephemeral)
    if as_json:
        output.write_bytes(render.json(answer))
    else:
        _write_text(answer, quiet)
    return exits.YES if answer.enough else exits.NO


def _write_text(answer: Free, quiet: bool) -> None:
    from portbook.render import free as render
    from portbook.render.text import note

    sys.stdout.write("".join(f"{port}\n" for port in answer.ports))
    sys.stdout.flush()
    if answer.ports and not quiet:
        sys.stderr.write(note(render.caution(answer)))
    if answer.redirected:
        sys.stderr.write(note(render.redirections(answer)))
    if not answer.enough:
        sys.stderr.write(note(render.shortage(answer)))
    output.write_gaps(answer.gaps)
