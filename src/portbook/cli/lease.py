"""``portbook lease``: bind a port, then run a command that has the socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exec_command
from portbook.cli.base import option
from portbook.cli.free import ASKED, address_option, both_option, read_ports, udp_option
from portbook.errors import PortbookError, UsageError
from portbook.records import Protocol

if TYPE_CHECKING:
    from subprocess import Popen

    from portbook.bind.lease import Lease

PLACEHOLDER = "{port}"


@base.command("lease", cls=exec_command.CommandWithTail)
@click.argument("port", type=click.IntRange(0, 65535), default=0, metavar="[PORT] -- COMMAND...")
@option("--range", "among", metavar="A-B", help="any of these ports")
@udp_option
@both_option
@address_option
@option("--dual", is_flag=True, help="one dual-stack socket instead of one for each family")
@option("--number-only", is_flag=True, help="let go just before the command starts: for one that binds itself")
@option("-q", "--quiet", is_flag=True, help="do not say which port it is")
@click.pass_context
def command(
    ctx: click.Context,
    port: int,
    among: str | None,
    which: str | None,
    address: str | None,
    dual: bool,
    number_only: bool,
    quiet: bool,
) -> int:
    """Bind a port, listen, and run a command that has the socket.

    Without PORT the system chooses one. The command finds the sockets as descriptors from 3 on, with LISTEN_FDS,
    LISTEN_PID and LISTEN_FDNAMES as for systemd; on Windows as inherited handles, PORTBOOK_HANDLES. {port} in its
    arguments is replaced, and PORT is set. Exit code of the command; 1 when the port cannot be had.

    \b
    Examples:
      portbook lease --dual -- uvicorn --fd 3 app:app
      portbook lease 8080 --address 127.0.0.1 -- ./server
      portbook lease --number-only -- python3 -m http.server {port}
    """
    from portbook.bind.lease import lease

    given = exec_command.arguments(ctx)
    if not given:
        raise UsageError("no command to run", "portbook lease [PORT] -- COMMAND...")
    path = exec_command.executable(given[0])  # what cannot be run is said before anything is bound
    ports: Sequence[int] | None = read_ports(among) if among is not None else None
    if number_only and not port and ports is None:
        ports = _quiet_ports(ASKED[which], address)
    held = lease(port, protocols=ASKED[which], address=address, dual=dual, ports=ports)
    if not quiet and (port == 0 or number_only):
        sys.stderr.write(f"portbook: {_told(held, number_only)}\n")
    filled = [given[0], *(word.replace(PLACEHOLDER, str(held.port)) for word in given[1:])]
    return _run_alone(path, filled, held) if number_only else _run_with(path, filled, held)


def _quiet_ports(protocols: Sequence[Protocol], address: str | None) -> Sequence[int] | None:
    """Numbers that no connection and hardly any server wants, so that the race is seldom lost."""
    from portbook.bind.free import free

    return free(8, protocols=protocols, address=address, avoid_ephemeral=True).ports or None


def _told(held: Lease, number_only: bool) -> str:
    from portbook.bind.handover import name

    what = ", ".join(map(name, held.sockets))
    if number_only:
        return f"port {held.port} ({what}) is let go now: until the command binds it, anybody else may"
    return f"port {held.port} ({what})"


def _run_alone(path: str, filled: list[str], held: Lease) -> int:
    held.close()
    os.environ["PORT"] = str(held.port)
    return exec_command.run(path, filled)


def _run_with(path: str, filled: list[str], held: Lease) -> int:
    """The command's copies are all that is left: the port is free when the command ends."""
    from portbook.bind import handover

    with held:
        if sys.platform == "win32":
            return exec_command.run(path, filled, beside=lambda command: _handed_over(command, held))
        try:
            handover.place([sock.fileno() for sock in held.sockets])
        except OSError as error:
            raise PortbookError(f"cannot pass the sockets on: {error.strerror}", "raise the limit") from error
        os.environ.update(held.environment())
        return exec_command.run(path, filled)


def _handed_over(command: Sequence[str], held: Lease) -> Popen[bytes]:
    process = held.start(command)
    held.close()
    return process
