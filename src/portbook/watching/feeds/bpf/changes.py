"""From records to changes."""

from __future__ import annotations

import os
from _socket import AF_INET6
from collections.abc import Callable, Iterable, Iterator
from time import monotonic, monotonic_ns

from msgspec.structs import replace

from portbook.addresses import interface_names, is_link_local
from portbook.enrich import reach as reaches
from portbook.names import service_names
from portbook.records import Owner, Protocol, Reach, Socket, State
from portbook.sources.sockdiag import FAMILY, SIZES, Addresses
from portbook.system import namespaces
from portbook.watching.feeds.base import Change, ChangeKind
from portbook.watching.feeds.bpf.attempts import Attempts
from portbook.watching.feeds.bpf.processes import Doer, Processes
from portbook.watching.feeds.bpf.record import (
    ATTEMPT,
    BOUND,
    CONNECTING,
    IPV6_ONLY,
    LISTENING,
    MPTCP,
    OF_KERNEL,
    RELEASED,
    UNLISTENED,
    Record,
)

PROTOCOLS: dict[int, Protocol] = {6: "tcp", 17: "udp"}
MOST_ADDRESSES = 4096
MOST_WITHOUT_PORT = 4096
MOST_LOOKS = 100  # at addresses, a second
NAMES_LIMIT_S = 0.1  # how long a namespace is taken for one without a name
FAILED = "bind(2) returned an error"
FindPort = Callable[[int, int], int | None]


class Changes:
    """Makes changes of records."""

    def __init__(self, find_port: FindPort) -> None:
        """Begin without any record.

        :param find_port: gives the port of a socket, from where the kernel has it and its cookie; None if it is gone
        """
        self.attempts = Attempts()
        self._find_port = find_port
        self._processes = Processes()
        self._addresses = {number: Addresses(SIZES[family]) for number, family in FAMILY.items()}
        self._netns_names = NamespaceNames()
        self._local = LocalAddresses()
        self._services = service_names()
        self._own = namespaces.own()
        self._without_port: dict[int, Record] = {}  # listeners that were not bound, by cookie

    def of(self, records: Iterable[Record]) -> list[Change]:
        """The changes that these records report, in their order."""
        changes: list[Change] = []
        add, attempts = changes.append, self.attempts
        for record in records:
            kind = record[14]
            if kind == ATTEMPT:
                attempt = attempts.begin(record[7], record)
                self._doer(record)  # now: it may end before it is known whether it succeeded
            elif kind != UNLISTENED:  # which may be the work of another thread
                attempt = attempts.end(record[7])
            else:
                attempt = None
            if attempt is not None and (kind != BOUND or attempt[1] != record[1]):
                add(self._change("failed", attempt))
                attempt = None
            if kind == BOUND:
                add(self._change("bound", _completed(record, attempt)))
            elif kind == LISTENING and record[13]:
                add(self._change("listening", record))
            elif kind != ATTEMPT:
                changes += self._others(kind, record)
        return changes

    def _others(self, kind: int, record: Record) -> Iterator[Change]:
        """The changes of the kinds that need no process, or more than one look."""
        at_ns, cookie = record[0], record[1]
        if kind == RELEASED:
            if cookie in self._without_port:
                yield self._late_listening(record)
            yield Change("ended", at_ns, cookie)
        elif kind == CONNECTING:
            yield Change("connected", at_ns, cookie)
        elif kind == LISTENING:
            yield from self._listening_without_port(record)
        else:
            yield self._unlistened(record)

    def failure(self, record: Record) -> Change:
        """An attempt that failed."""
        return self._change("failed", record)

    def _listening_without_port(self, record: Record) -> Iterator[Change]:
        """A socket that listens without having been bound gets its port a moment later: inet_csk_listen_start()."""
        port = self._find_port(record[4], record[1])
        if port is not None:
            yield self._change("listening", (*record[:13], port, *record[14:]))
        else:  # it has ended: the record of its end is in the ring
            if len(self._without_port) >= MOST_WITHOUT_PORT:
                del self._without_port[next(iter(self._without_port))]
            self._without_port[record[1]] = record

    def _late_listening(self, end: Record) -> Change:
        """The listening of a socket that had no port then, by the record of its end."""
        begin = self._without_port.pop(end[1])
        return self._change("listening", (*begin[:13], end[13], *begin[14:]))

    def _unlistened(self, record: Record) -> Change:
        """Shut down, a listener stays bound if the process chose its port: inet_shutdown(). One of MPTCP is closed."""
        self._without_port.pop(record[1], None)  # it did not get one
        if record[13] and not record[17] & MPTCP:
            return self._change("bound", record)
        return Change("ended", record[0], record[1])

    def _change(self, kind: ChangeKind, record: Record) -> Change:
        (at_ns, cookie, cgroup_id, _, _, packed, _, _, _, uid, netns, interface, _, port, _, family, protocol_number,
         flags, _) = record  # fmt: skip
        doer = self._doer(record)
        texts = self._addresses[family]
        if len(texts) > MOST_ADDRESSES:
            texts.clear()
        address, reach = texts[packed]
        protocol = PROTOCOLS[protocol_number]
        zone = device = v6only = None
        if interface:
            zone, device = self._zone_or_device(netns, interface, address)
        if family == AF_INET6:
            v6only = flags & IPV6_ONLY != 0
        if protocol == "udp" or kind == "failed":
            state: State | None = None
        elif kind == "bound":
            state, reach = "BOUND", "none"
        else:
            state = "LISTEN"
        owners = doer.owners
        socket = Socket(
            protocol,
            FAMILY[family],
            address,
            port,
            None,  # remote_address
            None,  # remote_port
            state,
            reach,
            zone,
            self._services.get((port, protocol)),
            uid,
            doer.user,
            None,  # inode
            () if flags & OF_KERNEL else owners,
            None,  # recv_queue
            None,  # send_queue
            None,  # accept_queue
            None,  # backlog
            v6only,
            device,
            None,  # created
            None,  # state_text
            cookie,
            cgroup_id or None,
            owners[0].service,
            owners[0].container,
            netns or None,
            self._netns_name(netns, owners[0]),
            None,  # ends_in_ms
            f"made by {owners[0].name or owners[0].pid}" if flags & OF_KERNEL else None,
        )
        reason = ""
        if kind == "failed":
            reason = FAILED
            if reach == "address" and netns == self._own:
                socket = self._local.complete(socket)
        return Change(kind, at_ns, cookie, socket, doer.parents, doer.gone, True, 1, reason)

    def _doer(self, record: Record) -> Doer:
        return self._processes.of((record[8], record[3], record[12], record[2], record[9]), record)

    def _zone_or_device(self, netns: int, interface: int, address: str) -> tuple[str | None, str | None]:
        """The interface of a socket, as the zone of its link-local address or as the device that it is bound to."""
        name = str(interface)
        if netns == self._own:
            name = interface_names().get(interface, name)
        return (name, None) if is_link_local(address) else (None, name)

    def _netns_name(self, netns: int, owner: Owner) -> str | None:
        """As ``ip netns`` names it, else the container of the process that is in it."""
        if netns == self._own:
            return None
        return self._netns_names.get(netns) or owner.container


def _completed(record: Record, attempt: Record | None) -> Record:
    """A success with what it leaves out: that of its attempt; where that was not seen, what can be known still."""
    at_ns, cookie, _, _, sock, address, _, tid, pid, _, _, interface, _, port, kind, family, protocol, flags, ppid = (
        record
    )
    if attempt is None:
        at_ns, cgroup_id, started_ns, name, uid, netns, executions = monotonic_ns(), 0, 0, b"", 0, _netns_of(pid), 0
    else:
        at_ns, _, cgroup_id, started_ns, _, _, name, _, _, uid, netns, _, executions, *_, ppid = attempt
    return (at_ns, cookie, cgroup_id, started_ns, sock, address, name, tid, pid, uid, netns, interface, executions,
            port, kind, family, protocol, flags, ppid)  # fmt: skip


def _netns_of(pid: int) -> int:
    """The network namespace of a process; 0 if it is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


class LocalAddresses:
    """Whether an interface has the address of a failed bind: that is one of the reasons for which it can fail.

    To look takes the time of a hundred records, and who makes binds fail decides how many there are: a look serves for
    a second, and so many are taken in it.
    """

    def __init__(self) -> None:
        self._reaches: dict[str, Reach] = {}
        self._since = 0.0

    def complete(self, socket: Socket) -> Socket:
        """The socket with reach "none" if no interface has its address."""
        now = monotonic()
        if now - self._since > 1:
            self._reaches.clear()
            self._since = now
        known = self._reaches.get(socket.local_address)
        if known is None and len(self._reaches) < MOST_LOOKS:
            known = reaches.complete([socket])[0].reach
            self._reaches[socket.local_address] = known
        return socket if known is None else replace(socket, reach=known)


class NamespaceNames:
    """The names of ``ip netns``, read again when the directory has changed."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._changed_ns: int | None = None
        self._read_at = 0.0

    def get(self, netns: int) -> str | None:
        """The name of a namespace; None if it has none."""
        try:
            changed_ns = os.stat(namespaces.NAMED).st_mtime_ns
        except OSError:
            return None
        now = monotonic()
        # A file is made first, and the namespace mounted on it a moment later: an unknown one is looked for again.
        is_unknown = netns not in self._names and now - self._read_at > NAMES_LIMIT_S
        if changed_ns != self._changed_ns or is_unknown:
            self._names = namespaces.names()
            self._changed_ns, self._read_at = changed_ns, now
        return self._names.get(netns)
