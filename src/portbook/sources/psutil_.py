"""psutil.net_connections on Linux, Windows and macOS (psutil.readthedocs.io, net_connections).

It returns one owner for each socket, however many it has, and no socket that is bound and does not listen. On macOS it
needs root; on Linux it needs root for the owners of other users' sockets.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, NamedTuple

from portbook.addresses import address_text, is_link_local, reach_of
from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import PROTOCOLS, STATES, Family, Owner, Protocol, Reach, Socket, State
from portbook.sources.base import Reading, Source, Wanted

PsutilAddress = tuple[str, int] | tuple[()]
PsutilRow = tuple[int, int, PsutilAddress, PsutilAddress, str, int | None]  # family, type, local, remote, status, pid


class PsutilRows(NamedTuple):
    """What ``read`` returns: psutil's rows as plain tuples."""

    rows: tuple[PsutilRow, ...]


# PsutilAddress families as the systems number them: AF_INET6 is 10 on Linux, 23 on Windows, 30 on macOS.
FAMILY: dict[int, Family] = {2: "ipv4", 10: "ipv6", 23: "ipv6", 30: "ipv6"}
PROTOCOL: dict[int, Protocol] = {1: "tcp", 2: "udp"}  # SOCK_STREAM, SOCK_DGRAM
WORDS: dict[str, State] = {state: state for state in STATES} | {"DELETE_TCB": "CLOSE"}


def missing() -> str | None:
    """Why psutil cannot be used here; None if it can."""
    if find_spec("psutil"):
        return None
    return "psutil is not installed"


def read(wanted: Wanted) -> PsutilRows:
    """Return the rows of the wanted protocols and families; raise SourceMissing or SourceDenied."""
    try:
        import psutil
    except ImportError as error:
        raise SourceMissing("psutil is not installed") from error
    try:
        connections = [connection for kind in _kinds(wanted) for connection in psutil.net_connections(kind)]
    except psutil.AccessDenied as error:
        raise SourceDenied("psutil may not list the sockets of other users' processes", _remedy()) from error
    except (psutil.Error, OSError, RuntimeError, LookupError, ValueError) as error:
        # psutil does not translate every OSError, and raises LookupError for a state that it has no name for.
        raise SourceMissing(f"psutil could not read this machine: {error!r}") from error
    return PsutilRows(tuple(_row(connection) for connection in connections))


def _remedy() -> str | None:
    if sys.platform == "win32":
        return "run as administrator"
    return None if os.geteuid() == 0 else "run with sudo"


FAMILY_SUFFIX: dict[tuple[Family, ...], str] = {("ipv4",): "4", ("ipv6",): "6"}


def _kinds(wanted: Wanted) -> list[str]:
    """The fewest of psutil's kinds that cover the wanted protocols and families."""
    names: tuple[str, ...] = wanted.protocols
    if set(names) == set(PROTOCOLS):
        names = ("inet",)
    return [name + FAMILY_SUFFIX.get(wanted.families, "") for name in names]


def _row(connection: Any) -> PsutilRow:
    return (
        int(connection.family),
        int(connection.type),
        _pair(connection.laddr),
        _pair(connection.raddr),
        connection.status,
        connection.pid,
    )


def _pair(address: object) -> PsutilAddress:
    if isinstance(address, tuple) and address:
        return str(address[0]), int(address[1])
    return ()


def parse(raw: PsutilRows) -> Reading:
    """Turn psutil's rows into sockets; raise SourceGarbled."""
    addresses = _Addresses()
    sockets: list[Socket] = []
    try:
        for row in raw.rows:
            local = row[2]
            if local and local[1]:  # macOS lists sockets that were never bound: without a local port they block no bind
                sockets.append(_socket(row, local, addresses))
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise SourceGarbled(f"psutil: a row was not understood: {error!r}") from error
    return Reading(sockets, [])


class _Addresses(dict[str, tuple[str, str | None, Reach]]):
    """Canonical text, zone and reach of an address in psutil's spelling, each computed once."""

    def __missing__(self, spelling: str) -> tuple[str, str | None, Reach]:
        address, _, suffix = spelling.partition("%")
        text = address_text(ip_address(address).packed)
        zone: str | None = None
        if suffix and is_link_local(text):
            zone = suffix
        self[spelling] = text, zone, reach_of(text)
        return self[spelling]


def _socket(row: PsutilRow, local: tuple[str, int], addresses: _Addresses) -> Socket:
    family, kind, _, remote, status, pid = row
    protocol = PROTOCOL[kind]
    state = _state(protocol, status, remote)
    address, zone, reach = addresses[local[0]]
    peer: str | None = None
    peer_port: int | None = None
    if remote and state != "LISTEN":
        peer, peer_port = addresses[remote[0]][0], remote[1]
    return Socket(
        protocol=protocol,
        family=FAMILY[family],
        local_address=address,
        local_port=local[1],
        remote_address=peer,
        remote_port=peer_port,
        state=state,
        reach=reach,
        zone=zone,
        owners=(Owner(pid, how="psutil"),) if pid else (),  # Windows returns pid 0 for sockets without a process
        state_text=status if state == "UNKNOWN" else None,
    )


def _state(protocol: Protocol, status: str, remote: PsutilAddress) -> State | None:
    if protocol == "udp":
        return "ESTABLISHED" if remote else None
    return WORDS.get(status, "UNKNOWN")


SOURCE = Source(
    name="psutil",
    sees="listening and connected TCP sockets, UDP sockets, one owner each",
    needs="nothing on Windows; on Linux sudo for other users' owners; on macOS sudo",
    capabilities=frozenset(("tcp", "udp", "ipv6", "time_wait", "owner")),
    missing=missing,
    read=read,
    parse=parse,
)
