"""Linux: the tables /proc/net/{tcp,tcp6,udp,udp6}, for kernels and sandboxes without sock_diag.

Format: proc_pid_net(5); the kernel's writers are tcp4_seq_show, tcp6_seq_show and udp4_format_sock.
"""

from __future__ import annotations

import os
import sys
from socket import AF_INET, AF_INET6, inet_ntop
from typing import NamedTuple

from portbook.addresses import reach_of
from portbook.errors import SourceDenied, SourceGarbled, SourceMissing
from portbook.records import Family, Gap, Protocol, Reach, Socket, State
from portbook.sources.base import Reading, Source, Wanted

TABLES: dict[tuple[Protocol, Family], str] = {
    ("tcp", "ipv4"): "tcp",
    ("tcp", "ipv6"): "tcp6",
    ("udp", "ipv4"): "udp",
    ("udp", "ipv6"): "udp6",
}
STATES: dict[bytes, State] = {
    b"01": "ESTABLISHED",
    b"02": "SYN_SENT",
    b"03": "SYN_RECV",
    b"04": "FIN_WAIT1",
    b"05": "FIN_WAIT2",
    b"06": "TIME_WAIT",
    b"07": "CLOSE",
    b"08": "CLOSE_WAIT",
    b"09": "LAST_ACK",
    b"0A": "LISTEN",
    b"0B": "CLOSING",
    b"0C": "SYN_RECV",
}
ENDPOINT: dict[Family, int] = {"ipv4": 8 + 5, "ipv6": 32 + 5}  # hex digits of an address, a colon, those of a port
FIELDS = 10  # slot, local, remote, state, queues, timer, retransmissions, uid, timeout, inode; more may follow


class Table(NamedTuple):
    """One table as the kernel printed it."""

    protocol: Protocol
    family: Family
    text: bytes


class Raw(NamedTuple):
    """The tables, and the byte order in which the kernel printed the words of addresses."""

    tables: tuple[Table, ...]
    byteorder: str = sys.byteorder
    netns: int | None = None
    gaps: tuple[Gap, ...] = ()


def missing() -> str | None:
    """Why this source does not work here."""
    return None if os.path.exists("/proc/net/tcp") else "there is no /proc/net/tcp"


def read(wanted: Wanted) -> Raw:
    """Read the wanted tables; a machine without IPv6 has no tables for it."""
    tables = []
    for (protocol, family), name in TABLES.items():
        if protocol in wanted.protocols and family in wanted.families:
            text = _read(name)
            if text is not None:
                tables.append(Table(protocol, family, text))
            elif family == "ipv4":
                raise SourceMissing(f"procfs: there is no /proc/net/{name}")
    try:
        netns = os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        netns = None
    return Raw(tuple(tables), sys.byteorder, netns, _gaps(wanted))


def _read(name: str) -> bytes | None:
    try:
        with open(f"/proc/thread-self/net/{name}", "rb", buffering=0) as file:
            return file.readall()
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise SourceDenied(f"procfs: /proc/net/{name}: {error.strerror}") from error


def _gaps(wanted: Wanted) -> tuple[Gap, ...]:
    if "BOUND" not in wanted.states or "tcp" not in wanted.protocols:
        return ()
    why = "/proc/net does not list TCP sockets that are bound and do not listen"
    return (Gap("socket", None, why, "the source sockdiag does"),)


class _Addresses(dict[bytes, tuple[str, int, Reach]]):
    """Text, port and reach of ``0100007F:1F90``: 32-bit words in the host's byte order, the port as a number."""

    def __init__(self, byteorder: str) -> None:
        self.little = byteorder == "little"

    def __missing__(self, raw: bytes) -> tuple[str, int, Reach]:
        address, colon, port = raw.partition(b":")
        packed = bytes.fromhex(address.decode("ascii"))
        if len(packed) not in (4, 16) or not colon or len(port) != 4:
            raise ValueError(f"endpoint {raw!r}")
        if self.little:
            packed = b"".join(packed[i : i + 4][::-1] for i in range(0, len(packed), 4))
        text = inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)
        # fromhex, because int() would also take a sign, a 0x and an underscore
        self[raw] = text, int.from_bytes(bytes.fromhex(port.decode("ascii")), "big"), reach_of(text)
        return self[raw]


def parse(raw: Raw) -> Reading:
    """Read the tables; raise SourceGarbled."""
    sockets: list[Socket] = []
    endpoints = _Addresses(raw.byteorder)
    for table in raw.tables:
        for number, line in enumerate(table.text.splitlines()[1:], 2):
            try:
                sockets.append(_row(table, line.split(), endpoints, raw.netns))
            except (ValueError, KeyError, IndexError) as error:
                name = TABLES[table.protocol, table.family]
                raise SourceGarbled(f"procfs: /proc/net/{name} line {number}: {error}") from error
    return Reading(sockets, list(raw.gaps))


def _row(table: Table, fields: list[bytes], endpoints: _Addresses, netns: int | None) -> Socket:
    if len(fields) < FIELDS or len(fields[1]) != ENDPOINT[table.family]:
        raise ValueError(f"{len(fields)} fields, {fields[1:2]}")
    local, port, reach = endpoints[fields[1]]
    remote, remote_port, _ = endpoints[fields[2]]
    state: State | None = STATES[fields[3].upper()]
    if table.protocol == "udp" and state == "CLOSE":
        state = None
    send, _, receive = fields[4].partition(b":")
    uid, inode = int(fields[7]), int(fields[9])
    listening = state == "LISTEN"
    peer = remote_port != 0 and not listening
    return Socket(
        table.protocol,
        table.family,
        local,
        port,
        remote if peer else None,
        remote_port if peer else None,
        state,
        reach,
        uid=uid if uid or inode else None,  # the kernel prints 0 also where it does not know: get_timewait4_sock
        inode=inode,
        recv_queue=None if listening else int(receive, 16),
        send_queue=None if listening else int(send, 16),
        accept_queue=int(receive, 16) if listening else None,
        netns=netns,
    )


SOURCE = Source(
    name="procfs",
    sees="the TCP and UDP sockets of this network namespace that listen or are connected",
    needs="no privilege; /proc",
    capabilities=frozenset(("tcp", "udp", "ipv6", "time_wait", "uid", "inode")),
    missing=missing,
    read=read,
    parse=parse,
)
