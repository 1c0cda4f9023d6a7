"""psutil.net_connections: one way for Linux, Windows and macOS (psutil.readthedocs.io, net_connections).

It names one owner for a socket however many hold it, and shows no socket that is bound and does not listen. On macOS it
needs root; on Linux the owners of other users' sockets do.
"""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_address
from typing import Any, NamedTuple

from portbook.addresses import address_text, is_link_local, reach_of
from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import PROTOCOLS, STATES, Family, Owner, Protocol, Reach, Socket, State
from portbook.sources.base import Reading, Source, Wanted

Address = tuple[str, int] | tuple[()]
Row = tuple[int, int, Address, Address, str, int | None]  # family, type, local, remote, status, pid


class PsutilRows(NamedTuple):
    """What ``read`` returns: psutil's rows as plain tuples."""

    rows: tuple[Row, ...]


# Address families as the systems number them: AF_INET6 is 10 on Linux, 23 on Windows, 30 on macOS.
FAMILY: dict[int, Family] = {2: "ipv4", 10: "ipv6", 23: "ipv6", 30: "ipv6"}
PROTOCOL: dict[int, Protocol] = {1: "tcp", 2: "udp"}  # SOCK_STREAM, SOCK_DGRAM
WORDS: dict[str, State] = {state: state for state in STATES} | {"DELETE_TCB": "CLOSE"}


def missing() -> str | None:
    """Why psutil cannot be used here; None if it can."""
    return None if find_spec("psutil") else "psutil is not installed"


def read(wanted: Wanted) -> PsutilRows:
    """Return the rows of the wanted protocols and families; raise SourceMissing or SourceDenied."""
    try:
        import psutil
    except ImportError as error:
        raise SourceMissing("psutil is not installed") from error
    try:
        connections = [connection for kind in _kinds(wanted) for connection in psutil.net_connections(kind)]
    except psutil.AccessDenied as error:
        raise SourceDenied("psutil may not list the sockets of other users' processes", "run with sudo") from error
    except (psutil.Error, OSError, RuntimeError, LookupError, ValueError) as error:
        # Plain OSErrors come from the system below; LookupError from a state that this psutil has no name for.
        raise SourceMissing(f"psutil could not read this machine: {error!r}") from error
    return PsutilRows(tuple(_row(connection) for connection in connections))


FAMILY_SUFFIX: dict[tuple[Family, ...], str] = {("ipv4",): "4", ("ipv6",): "6"}


def _kinds(wanted: Wanted) -> list[str]:
    """The fewest of psutil's kinds that cover the wanted protocols and families."""
    names = ("inet",) if set(wanted.protocols) == set(PROTOCOLS) else wanted.protocols
    return [name + FAMILY_SUFFIX.get(wanted.families, "") for name in names]


def _row(connection: Any) -> Row:
    return (
        int(connection.family),
        int(connection.type),
        _pair(connection.laddr),
        _pair(connection.raddr),
        connection.status,
        connection.pid,
    )


def _pair(address: object) -> Address:
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and address else ()


def parse(raw: PsutilRows) -> Reading:
    """Turn psutil's rows into sockets; raise SourceGarbled."""
    addresses = _Addresses()
    try:
        # Without a local port it is in nobody's way: sockets that were never bound, which macOS lists.
        return Reading([_socket(row, addresses) for row in raw.rows if row[2] and row[2][1]], [])
    except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise SourceGarbled(f"psutil: a row was not understood: {error!r}") from error


class _Addresses(dict[str, tuple[str, str | None, Reach]]):
    """Canonical text, zone and reach of an address as psutil spells it, found once for each."""

    def __missing__(self, spelled: str) -> tuple[str, str | None, Reach]:
        bare, _, zone = spelled.partition("%")
        packed = ip_address(bare).packed
        text = address_text(packed)
        self[spelled] = text, zone if zone and is_link_local(text) else None, reach_of(text)
        return self[spelled]


def _socket(row: Row, addresses: _Addresses) -> Socket:
    family, kind, local, remote, status, pid = row
    protocol = PROTOCOL[kind]
    state = _state(protocol, status, remote)
    address, zone, reach = addresses[local[0]] if local else ("", None, "address")
    peer = remote if state != "LISTEN" else ()
    return Socket(
        protocol=protocol,
        family=FAMILY[family],
        local_address=address,
        local_port=local[1] if local else 0,
        remote_address=addresses[peer[0]][0] if peer else None,
        remote_port=peer[1] if peer else None,
        state=state,
        reach=reach,
        zone=zone,
        owners=(Owner(pid, how="psutil"),) if pid else (),  # 0: Windows, for what no process holds
        state_text=status if state == "UNKNOWN" else None,
    )


def _state(protocol: Protocol, status: str, remote: Address) -> State | None:
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
