"""The pure half: records of the program and dumps of sock_diag become sockets, each once, with its owners."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6, ntohs
from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from portbook.addresses import is_link_local
from portbook.errors import SourceGarbled
from portbook.query import LISTENING
from portbook.records import Gap, Owner, Protocol, Socket, State
from portbook.sources import sockdiag
from portbook.sources.base import OtherNamespaces, Reading
from portbook.sources.bpf.record import (
    FORMAT,
    IPV6_ONLY,
    IS_COUNTED,
    IS_MPTCP,
    OWN_TABLE,
    PLACES,
    PROTOCOLS,
    SIZE,
    TCP,
    UDP,
)
from portbook.sources.sockdiag import FAMILY, TCP_STATES, UDP_STATES, Addresses

if TYPE_CHECKING:
    from portbook.sources.bpf import BpfDump

NEGATIVE = 1 << 31  # of 32 bits: a queue length that TCP computes may be below zero while a FIN is in it


def parse(dump: BpfDump) -> Reading:
    """Read the records and the dumps of sock_diag; raise SourceGarbled."""
    try:
        rows = _rows(dump)
    except (struct.error, ValueError, KeyError, TypeError, OverflowError) as error:
        raise SourceGarbled(f"bpf: {len(dump.records or b'')} bytes of records: {error}") from error
    gaps = list(dump.gaps)
    added: list[Socket] = []
    tables = 0
    for netns, namespace in dump.namespaces.items():
        tables += len(namespace.dumps)
        try:
            readings = [sockdiag.parse(table, rows.by_inode.keys()) for table in namespace.dumps]
        except SourceGarbled as error:
            if netns == dump.netns:
                raise
            gaps.append(Gap("socket", None, f"network namespace {netns} was not read: {error}"))
            continue
        for reading in readings:
            added += reading.sockets
            gaps += reading.gaps
    added = _with_mptcp_owners(_distinct(added), rows.mptcp)
    if not tables:  # the TCP sockets below MPTCP sockets were not read: then these stand for them
        added += [s for s in rows.mptcp.values() if s.state == "LISTEN"]
    others = None if dump.all_namespaces or dump.records is None else rows.other_namespaces
    return Reading(_once(list(rows.by_inode.values()), added), gaps, others)


def _distinct(sockets: list[Socket]) -> list[Socket]:
    """Each inode once, as it was seen last: a table may show one twice. Sockets without an inode are all kept."""
    inodes = [s.inode for s in sockets if s.inode]
    if len(set(inodes)) == len(inodes):
        return sockets
    return list({s.inode or -i: s for i, s in enumerate(sockets, 1)}.values())


def _with_mptcp_owners(sockets: list[Socket], mptcp: Mapping[int, Socket]) -> list[Socket]:
    """TCP sockets with the owners of the MPTCP sockets above them, which have the same inode."""
    if not mptcp:
        return sockets
    completed: list[Socket] = []
    for s in sockets:
        above = mptcp.get(s.inode or 0)
        completed.append(s if above is None else replace(s, owners=above.owners))
    return completed


def _once(rows: list[Socket], added: list[Socket]) -> list[Socket]:
    """Each connection once, in its later state.

    While we read, it may have been accepted, or its process may have closed it: it is then both among the rows, with a
    file, and among the added ones, without.
    """
    from portbook.sources.bpf.fileless import PASSED

    peers = {s.remote_port for s in rows}
    without_file = {_ends(s): s for s in added if s.remote_port in peers and not s.inode}
    if not without_file:
        return rows + added
    ports = {(s.local_port, s.remote_port) for s in without_file.values()}
    earlier: set[int] = set()  # by identity: to hash a record is to hash all its fields
    for s in rows:
        if (s.local_port, s.remote_port) not in ports:
            continue
        twin = without_file.get(_ends(s))
        if twin is not None:
            was_closed = twin.state in PASSED
            earlier.add(id(s if was_closed else twin))
    if not earlier:
        return rows + added
    return [s for s in (*rows, *added) if id(s) not in earlier]


def _ends(s: Socket) -> tuple[object, ...]:
    return s.protocol, s.local_port, s.remote_port, s.local_address, s.remote_address, s.netns


# --- rows ----------------------------------------------------------------------------------------------------------


class _Rows(Struct, frozen=True):
    """The sockets that have files, with their owners."""

    by_inode: dict[int, Socket]
    mptcp: dict[int, Socket]  # MPTCP sockets, which are not in by_inode
    other_namespaces: OtherNamespaces


class _Owners(dict[int, tuple[Owner, ...]]):
    """One owner, made once for all its sockets; the key is the pid times two, plus one for a thread's own table."""

    def __missing__(self, key: int) -> tuple[Owner, ...]:
        self[key] = (Owner(key >> 1, how="task-fd" if key & 1 else "fd"),)
        return self[key]


_Kind = tuple[Protocol, State | None, bool, bool]  # whether it listens, whether it waits on its port
KINDS: dict[tuple[int, int], _Kind] = {
    (number, bit): (PROTOCOLS[number], state, state == "LISTEN", state in LISTENING)
    for number, states in ((TCP, TCP_STATES), (UDP, UDP_STATES))
    for bit, state in states.items()
}


def _rows(dump: BpfDump) -> _Rows:
    """Read the records, of which a socket has one for each descriptor.

    There may be a hundred thousand: the loop calls few functions, and makes each socket by position, as sockdiag does.
    """
    addresses_of = {AF_INET: Addresses(4), AF_INET6: Addresses(16)}
    owners = _Owners()
    rows: dict[int, Socket] = {}
    mptcp_inodes: set[int] = set()
    more_owners: dict[int, list[int]] = defaultdict(list)  # keys, of sockets that have several records
    other_netns: dict[int, int] = {}  # by inode, of sockets in namespaces that are not wanted
    own, all_namespaces = dump.netns, dump.all_namespaces
    records = _wanted_records(dump.records or b"")
    # fmt: off
    for (inode, cookie, cgroup_id, source, destination, pid, _fd, netns, uid, received, sent, interface, _pending,
         port, peer_port, family, protocol_number, state_number, flags) in FORMAT.iter_unpack(records):
        # fmt: on
        owner = pid << 1 | (flags & OWN_TABLE) // OWN_TABLE
        if inode in rows:
            more_owners[inode].append(owner)
            continue
        if netns != own and not all_namespaces:
            other_netns[inode] = netns
            continue
        if flags & IS_MPTCP:
            mptcp_inodes.add(inode)

        protocol, state, listens, waits = KINDS[protocol_number, state_number]
        addresses = addresses_of[family]
        local, reach = addresses[source]
        reach = "none" if state == "BOUND" else reach

        remote = remote_port = None
        if peer_port and not listens:
            remote, remote_port = addresses[destination][0], ntohs(peer_port)

        zone = device = None
        if interface:
            zone, device = _zone_or_device(dump, netns, interface, local)

        if received >= NEGATIVE:
            received = 0  # noqa: PLW2901
        recv_queue = send_queue = accept_queue = backlog = None
        if listens:
            accept_queue, backlog = received, sent
        else:
            recv_queue, send_queue = received, sent

        v6only = None
        if waits and family == AF_INET6:
            v6only = flags & IPV6_ONLY != 0

        rows[inode] = Socket(
            protocol,
            FAMILY[family],
            local,
            port,
            remote,
            remote_port,
            state,
            reach,
            zone,
            None,  # service_name
            uid,
            None,  # user
            inode,
            owners[owner],
            recv_queue,
            send_queue,
            accept_queue,
            backlog,
            v6only,
            device,
            None,  # created
            None,  # state_text
            cookie,
            cgroup_id or None,
            None,  # service
            None,  # container
            netns,
        )
    _add_owners(rows, more_owners, owners)
    mptcp = {inode: rows.pop(inode) for inode in mptcp_inodes}
    return _Rows(rows, mptcp, OtherNamespaces(len(other_netns), len(set(other_netns.values()))))


def _wanted_records(records: bytes) -> bytes:
    """Without those that are there to be counted only."""
    flags = records[PLACES["flags"] :: SIZE]
    if not flags or max(flags) < IS_COUNTED:
        return records
    wanted = [i for i, flag in enumerate(flags) if not flag & IS_COUNTED]
    return b"".join([records[SIZE * i : SIZE * (i + 1)] for i in wanted])


def _zone_or_device(dump: BpfDump, netns: int, interface: int, address: str) -> tuple[str | None, str | None]:
    """The interface of a socket, as the zone of its link-local address or as the device that it is bound to."""
    name = str(interface)
    namespace = dump.namespaces.get(netns)
    if namespace is not None:
        name = namespace.interfaces.get(interface, name)
    return (name, None) if is_link_local(address) else (None, name)


def _add_owners(rows: dict[int, Socket], more_owners: Mapping[int, list[int]], owners: _Owners) -> None:
    for inode, keys in more_owners.items():
        rows[inode] = replace(rows[inode], owners=_merged(rows[inode].owners, keys, owners))


def _merged(first: tuple[Owner, ...], keys: list[int], owners: _Owners) -> tuple[Owner, ...]:
    """Each process once. A thread of its own counts only where the process itself does not have the socket."""
    by_process = {key for key in keys if not key & 1}
    by_thread = {key for key in keys if key & 1}
    for owner in first:
        if owner.how == "task-fd":
            by_thread.add(owner.pid << 1 | 1)
        else:
            by_process.add(owner.pid << 1)
    merged = by_process | {key for key in by_thread if key - 1 not in by_process}
    return tuple(owners[key][0] for key in sorted(merged))
