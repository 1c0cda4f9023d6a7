"""``portbook lease``: bind a port, then run a command that has the socket."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from portbook.cli import base, exec_command, output
from portbook.cli.free import PROTOCOLS_OF, address_option, both_option, udp_option
from portbook.errors import PortbookError, UsageError

if TYPE_CHECKING:
    from subprocess import Popen

    from portbook.bind.lease import Lease
    from portbook.ports import Ports
    from portbook.records import Protocol

PLACEHOLDER = "{port}"
MOST_CANDIDATES = 8  # for --number-only


@base.command("lease", cls=exec_command.CommandWithTail)
@click.argument("ports", nargs=-1, metavar="[PORT] -- COMMAND...")
@base.option("-p", "--range", "--ports", "more", multiple=True, metavar="PORTS", help="choose among these ports")
@udp_option
@both_option
@address_option
@base.option("--dual", is_flag=True, help="one dual-stack socket instead of one per family")
@base.option(
    "--number-only", is_flag=True, help="pass the number only: release the port, which the command then binds itself"
)
@base.option("-q", "--quiet", is_flag=True, help="do not print the number of the port and what the command gets")
@click.pass_context
def command(
    ctx: click.Context,
    ports: tuple[str, ...],
    more: tuple[str, ...],
    which: str | None,
    address: str | None,
    dual: bool,
    number_only: bool,
    quiet: bool,
) -> int:
    """Bind a port, listen, and run a command that has the socket.

    Without PORT, the system chooses one; of several ports or a range, one is taken. The command gets the sockets as
    descriptors from 3 on, with LISTEN_FDS, LISTEN_PID and LISTEN_FDNAMES as from systemd; on Windows as inherited
    handles, listed in PORTBOOK_HANDLES. {port} in its arguments is replaced by the number, and the variable PORT is set
    to it. The exit code is that of the command, or 1 if the port cannot be bound.

    \b
    Examples:
      portbook lease --dual -- uvicorn --fd 3 app:app
      portbook lease 8080 --address 127.0.0.1 -- ./server
      portbook lease --number-only -- python3 -m http.server {port}
    """
    from portbook.bind.lease import lease

    given = exec_command.arguments(ctx)
    if not given:
        raise UsageError("no command to run", "write portbook lease [PORT] -- COMMAND...")
    path = exec_command.executable(given[0])  # before anything is bound
    protocols = PROTOCOLS_OF[which]
    port, among = _wanted(ports, more)
    if number_only and port is None and among is None:
        among = _unwanted_ports(protocols, address)
    leased = lease(port or 0, protocols=protocols, address=address, dual=dual, ports=among)
    if not quiet and (port is None or number_only):
        from portbook.render.text import note

        sys.stderr.write(note(_announcement(leased, number_only)))
    _write_warnings(leased, quiet)
    if not quiet and not number_only and sys.platform != "win32":
        _write_advice(given, leased)
    arguments = [given[0], *(word.replace(PLACEHOLDER, str(leased.port)) for word in given[1:])]
    if number_only:
        return _run_with_number(path, arguments, leased)
    return _run_with_sockets(path, arguments, leased)


def _wanted(ports: Sequence[str], more: Sequence[str]) -> tuple[Ports | None, list[Ports] | None]:
    """The one port that is named, or those to choose among; None and None: any."""
    from portbook.ports import parse_several

    if list(ports) == ["0"] and not more:
        return None, None
    if not ports and not more:
        return None, None
    among = parse_several([*ports, *more])
    if len(among) == 1 and among[0].first == among[0].last and not more:
        return among[0], None
    return None, among


def _unwanted_ports(protocols: Sequence[Protocol] | None, address: str | None) -> list[Ports] | None:
    """Free ports that no connection gets and few servers want, so that the race is seldom lost."""
    from portbook.bind.free import free
    from portbook.ports import Ports

    answer = free(MOST_CANDIDATES, protocols=protocols, address=address, avoid_ephemeral=True)
    return [Ports(port, port) for port in answer.ports] or None


def _write_advice(given: Sequence[str], leased: Lease) -> None:
    """Say what the command gets, where that is not what it takes."""
    from portbook.bind import servers
    from portbook.render.text import note

    advice = servers.advise(given, len(leased.sockets))
    if advice:
        sys.stderr.write(note(advice))


def _write_warnings(leased: Lease, quiet: bool) -> None:
    """Say what sends packets to the port elsewhere."""
    if not leased.diversions and (quiet or not leased.gaps):
        return  # there may be no descriptor left to import a module
    from msgspec.structs import replace

    from portbook.render.text import note

    if leased.diversions:
        from portbook.netconfig.diversion import describe

        for diversion in leased.diversions:
            sys.stderr.write(note(f"{describe(diversion, leased.port)}; see portbook why {leased.port}"))
    if not quiet:  # with sudo, the command would run as root too
        output.write_gaps(replace(gap, hint=f"sudo portbook why {leased.port} shows it") for gap in leased.gaps)


def _announcement(leased: Lease, number_only: bool) -> str:
    from portbook.bind.handover import name

    text = f"port {leased.port} ({', '.join(map(name, leased.sockets))})"
    if number_only:
        return f"{text} is released now: another program may take it before the command binds it"
    return text


def _run_with_number(path: str, arguments: list[str], leased: Lease) -> int:
    leased.close()
    os.environ["PORT"] = str(leased.port)
    return exec_command.run(path, arguments)


def _run_with_sockets(path: str, arguments: list[str], leased: Lease) -> int:
    """Only the command's copies of the sockets remain: the port is free when the command ends."""
    from portbook.bind import handover

    with leased:
        if sys.platform == "win32":
            return exec_command.run(path, arguments, start=lambda command: _start_and_close(command, leased))
        try:
            handover.place([sock.fileno() for sock in leased.sockets])
        except OSError as error:
            message = f"cannot pass the sockets to the command: {error.strerror}"
            raise PortbookError(message, "raise the limit on open files") from error
        os.environ.update(leased.environment())
        return exec_command.run(path, arguments)


def _start_and_close(command: Sequence[str], leased: Lease) -> Popen[bytes]:
    process = leased.start(command)
    leased.close()
    return process
