"""Support for tests of portbook and of programs built on it: fake sources, child processes, a socket zoo.

The zoo opens real sockets of every kind that this machine supports, and returns for each what a listing must show:

    with zoo("tcp4-listening") as animals:
        seen = {identity(s): s for s in portbook.take().sockets}
        for expected in animals["tcp4-listening"]:
            assert seen[expected.identity].owners[0].pid == os.getpid()

Everything here works on every platform; for a kind that a platform does not support, ``absent`` says why.
"""

from __future__ import annotations

import json
import os
import socket as net
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace
from typing import Any, NamedTuple

from portbook import sources
from portbook.errors import SourceError
from portbook.records import Family, Gap, Protocol, Socket, State
from portbook.sources.base import CAPABILITIES, Capability, Reading, Source, Wanted

Identity = tuple[Protocol, Family, str, int, str | None, int | None, State | None]

LINUX = sys.platform == "linux"
PATIENCE_S = 10.0  # for what the kernel does at once, on a machine that is busy
# include/uapi/linux/tcp.h; struct tcp_info begins with tcpi_state, a byte. Python has these names on Linux only.
TCP_DEFER_ACCEPT, TCP_INFO, TCP_INFO_STATE = 9, 11, 1
SO_REUSEPORT = getattr(net, "SO_REUSEPORT", None)
BYTES = b"hello"  # left unread in the connected pairs


# --- fake sources --------------------------------------------------------------------------------------------------


class FakeSource:
    """A source with given sockets and gaps, or one that fails. ``requests`` lists what was wanted of it, in order.

    :param fails: the error that ``read`` raises
    """

    def __init__(
        self,
        sockets: Iterable[Socket] = (),
        gaps: Iterable[Gap] = (),
        *,
        fails: SourceError | None = None,
        name: str = "fake",
    ) -> None:
        self.requests: list[Wanted] = []
        self._reading = Reading(list(sockets), list(gaps))
        self._fails = fails
        self.source = Source(
            name=name,
            sees="what the test gave it",
            needs="nothing",
            capabilities=frozenset(CAPABILITIES),
            missing=lambda: str(fails) if fails else None,
            read=self._read,
            parse=lambda reading: Reading(list(reading.sockets), list(reading.gaps)),
        )

    def _read(self, wanted: Wanted) -> Reading:
        self.requests.append(wanted)
        if self._fails:
            raise self._fails
        return self._reading


@contextmanager
def only_sources(*fakes: FakeSource) -> Iterator[None]:
    """Replace the sources of portbook with these, in this order of preference, until the block ends."""
    modules = {f"portbook.sources.{fake.source.name}": SimpleNamespace(SOURCE=fake.source) for fake in fakes}
    saved = dict(sources.SOURCES)
    sources.SOURCES.clear()
    sources.SOURCES.update({fake.source.name: (fake.source.name, (sources.PLATFORM,)) for fake in fakes})
    sys.modules.update(modules)  # type: ignore[arg-type]  # only SOURCE is used
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]
        sources.SOURCES.clear()
        sources.SOURCES.update(saved)


# --- child processes -----------------------------------------------------------------------------------------------

PRELUDE = """
import json, os, socket, sys, threading
def say(something=None):
    print(json.dumps([os.getpid(), something]), flush=True)
def wait():
    sys.stdin.buffer.read()
"""


class ChildProcess(NamedTuple):
    """A running child: its pid, which on Windows may differ from that of ``process``, and what it said."""

    pid: int
    said: Any
    process: subprocess.Popen[bytes]


@contextmanager
def child(
    script: str, *arguments: str, pass_fds: Sequence[int] = (), python: str | None = None
) -> Iterator[ChildProcess]:
    """Run a Python script that calls ``say(something)`` once when it is ready, and then ``wait()``.

    The child ends with the block. It ends when its standard input is closed, so that it does not outlive a killed test
    run either.

    :param pass_fds: descriptors that the child inherits (not on Windows)
    :param python: the interpreter; None: that of this process
    :raises RuntimeError: the child ended before it wrote anything
    """
    command = [python or sys.executable, "-I", "-S", "-c", PRELUDE + script, *arguments]
    inherited = {"pass_fds": tuple(pass_fds)} if pass_fds else {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **inherited) as process:  # type: ignore[call-overload]
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the child ended early with {process.wait(PATIENCE_S)}")
            pid, said = json.loads(line)
            yield ChildProcess(pid, said, process)
        finally:
            with suppress(OSError):
                process.stdin.close()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


# --- what must be listed ---------------------------------------------------------------------------------------------


class Expected(NamedTuple):
    """A socket that was opened, as every source with the capabilities ``needs`` has to show it."""

    protocol: Protocol
    family: Family
    local_address: str
    local_port: int
    remote_address: str | None
    remote_port: int | None
    state: State | None
    needs: frozenset[Capability]
    pids: tuple[int, ...]  # of every owner; empty: no descriptor refers to it
    inode: int | None = None  # Linux; 0: none
    v6only: bool | None = None
    recv_queue: int | None = None
    send_queue: int | None = None
    accept_queue: int | None = None
    backlog: int | None = None

    @property
    def identity(self) -> Identity:
        """The fields of a socket that every source knows."""
        return identity(self)


def identity(s: Socket | Expected) -> Identity:
    """The fields of a socket that every source knows."""
    return s.protocol, s.family, s.local_address, s.local_port, s.remote_address, s.remote_port, s.state


def ports_of(animals: Iterable[Expected]) -> frozenset[int]:
    """The local ports of the sockets that were opened."""
    return frozenset(e.local_port for e in animals)


# --- the zoo -------------------------------------------------------------------------------------------------------

Hold = ExitStack
Maker = Callable[[ExitStack], "list[Expected]"]
LOOPBACK: dict[Family, str] = {"ipv4": "127.0.0.1", "ipv6": "::1"}
WILDCARD: dict[Family, str] = {"ipv4": "0.0.0.0", "ipv6": "::"}  # noqa: S104  # what is tested
AF: dict[Family, int] = {"ipv4": net.AF_INET, "ipv6": net.AF_INET6}
BACKLOG = 7


def _open(hold: Hold, family: Family, kind: int = net.SOCK_STREAM, v6only: bool | None = None) -> net.socket:
    opened = hold.enter_context(net.socket(AF[family], kind))
    if family == "ipv6":
        opened.setsockopt(net.IPPROTO_IPV6, net.IPV6_V6ONLY, v6only is not False)
    return opened


def _listen(
    hold: Hold, family: Family, address: str | None = None, v6only: bool | None = None, backlog: int = BACKLOG
) -> net.socket:
    listener = _open(hold, family, v6only=v6only)
    listener.bind((address or LOOPBACK[family], 0))
    listener.listen(backlog)
    return listener


def _udp(hold: Hold, family: Family, address: str | None = None, v6only: bool | None = None) -> net.socket:
    opened = _open(hold, family, net.SOCK_DGRAM, v6only)
    opened.bind((address or LOOPBACK[family], 0))
    return opened


def _connect(hold: Hold, listener: net.socket, family: Family) -> tuple[net.socket, net.socket]:
    """Connect to a listener: client, server."""
    client = _open(hold, family, v6only=False)
    client.connect((LOOPBACK[family], listener.getsockname()[1]))
    server, _ = listener.accept()
    return client, hold.enter_context(server)


def _pair(hold: Hold, family: Family = "ipv4") -> tuple[net.socket, net.socket]:
    """A connection whose listener is closed again: client, server."""
    with ExitStack() as temporary:
        return _connect(hold, _listen(temporary, family), family)


def _expected(
    opened: net.socket, state: State | None, *needs: Capability, pids: tuple[int, ...] | None = None, **queues: int
) -> Expected:
    """What a listing must show of a socket of this process."""
    protocol: Protocol = "tcp" if opened.type == net.SOCK_STREAM else "udp"
    family: Family = "ipv4" if opened.family == net.AF_INET else "ipv6"
    local_address, local_port = opened.getsockname()[:2]
    remote_address = remote_port = v6only = None
    if state not in ("LISTEN", "BOUND", None):
        remote_address, remote_port = opened.getpeername()[:2]
    if family == "ipv6":
        v6only = bool(opened.getsockopt(net.IPPROTO_IPV6, net.IPV6_V6ONLY))
    return Expected(
        protocol,
        family,
        local_address,
        local_port,
        remote_address,
        remote_port,
        state,
        _needs(protocol, family, *needs),
        (os.getpid(),) if pids is None else pids,
        os.fstat(opened.fileno()).st_ino if LINUX else None,
        v6only,
        **queues,
    )


def _needs(protocol: Protocol, family: Family, *needs: Capability) -> frozenset[Capability]:
    if family == "ipv6":
        return frozenset((protocol, family, *needs))
    return frozenset((protocol, *needs))


def _without_descriptor(peer: Expected, state: State) -> Expected:
    """The other end of a connection, which no process has open. Sources with TIME_WAIT look beyond descriptors."""
    assert peer.remote_address is not None  # noqa: S101  # for the type checker
    assert peer.remote_port is not None  # noqa: S101
    return Expected(
        peer.protocol,
        peer.family,
        local_address=peer.remote_address,
        local_port=peer.remote_port,
        remote_address=peer.local_address,
        remote_port=peer.local_port,
        state=state,
        needs=_needs(peer.protocol, peer.family, "time_wait"),
        pids=(),
        inode=0 if LINUX else None,
    )


def _wait_until(is_reached: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} not within {PATIENCE_S:g} s")
        time.sleep(0.001)


def _wait_for_state(opened: net.socket, number: int) -> None:
    """Wait until the kernel reports a state: tcp(7), TCP_INFO."""

    def is_reached() -> bool:
        return opened.getsockopt(net.IPPROTO_TCP, TCP_INFO, TCP_INFO_STATE)[0] == number

    _wait_until(is_reached, f"TCP state {number}")


def _listening(family: Family) -> Maker:
    def make(hold: Hold) -> list[Expected]:
        return [_expected(_listen(hold, family), "LISTEN", accept_queue=0, backlog=BACKLOG)]

    return make


def _listening_wildcard(family: Family, v6only: bool | None = None) -> Maker:
    def make(hold: Hold) -> list[Expected]:
        listener = _listen(hold, family, WILDCARD[family], v6only)
        return [_expected(listener, "LISTEN", accept_queue=0, backlog=BACKLOG)]

    return make


def _connected(family: Family) -> Maker:
    """Listener, client and server; the server has bytes to read."""

    def make(hold: Hold) -> list[Expected]:
        listener = _listen(hold, family)
        client, server = _connect(hold, listener, family)
        client.sendall(BYTES)
        server.recv(len(BYTES), net.MSG_PEEK)
        return [
            _expected(listener, "LISTEN", accept_queue=0, backlog=BACKLOG),
            _expected(client, "ESTABLISHED", recv_queue=0, send_queue=0),
            _expected(server, "ESTABLISHED", recv_queue=len(BYTES), send_queue=0),
        ]

    return make


def _dual_stack_connected(hold: Hold) -> list[Expected]:
    """An IPv4 client of an IPv6 socket: the server's end has IPv4-mapped addresses (RFC 4291 section 2.5.5.2)."""
    listener = _listen(hold, "ipv6", WILDCARD["ipv6"], v6only=False)
    client, server = _connect(hold, listener, "ipv4")
    return [_expected(listener, "LISTEN"), _expected(client, "ESTABLISHED"), _expected(server, "ESTABLISHED")]


def _bound(family: Family) -> Maker:
    def make(hold: Hold) -> list[Expected]:
        opened = _open(hold, family)
        opened.bind((LOOPBACK[family], 0))
        return [_expected(opened, "BOUND", "bound")]

    return make


def _time_wait(family: Family) -> Maker:
    """The end that closes first waits (RFC 9293 section 3.6.1). It is there as soon as it has read the other's FIN."""

    def make(hold: Hold) -> list[Expected]:
        client, server = _pair(hold, family)
        closed = _without_descriptor(_expected(server, "ESTABLISHED"), "TIME_WAIT")
        client.shutdown(net.SHUT_WR)
        server.recv(1)
        server.close()
        client.recv(1)
        client.close()
        return [closed]

    return make


def _half_closed(hold: Hold) -> list[Expected]:
    client, server = _pair(hold)
    client.shutdown(net.SHUT_WR)
    server.recv(1)
    if LINUX:
        _wait_for_state(client, 5)
    return [_expected(client, "FIN_WAIT2"), _expected(server, "CLOSE_WAIT")]


def _not_accepted(hold: Hold) -> list[Expected]:
    """Two connections wait in a listener's queue: established, with no descriptor of the server's end."""
    listener = _listen(hold, "ipv4")
    clients = [_open(hold, "ipv4") for _ in range(2)]
    for client in clients:
        client.connect(listener.getsockname())
    ends = [_expected(client, "ESTABLISHED") for client in clients]
    return [
        _expected(listener, "LISTEN", accept_queue=len(clients), backlog=BACKLOG),
        *ends,
        *(_without_descriptor(end, "ESTABLISHED") for end in ends),
    ]


def _syn_sent(hold: Hold) -> list[Expected]:
    """Linux drops a SYN when the accept queue is full (listen(2), tcp_abort_on_overflow in tcp(7))."""
    listener = _listen(hold, "ipv4", backlog=0)  # a backlog of n lets n + 1 wait
    filler = _open(hold, "ipv4")
    filler.connect(listener.getsockname())
    end = _expected(filler, "ESTABLISHED")
    client = _open(hold, "ipv4")
    client.setblocking(False)
    client.connect_ex(listener.getsockname())
    _wait_for_state(client, 2)
    inode = os.fstat(client.fileno()).st_ino
    pending = end._replace(local_port=client.getsockname()[1], state="SYN_SENT", inode=inode)
    waiting = _without_descriptor(end, "ESTABLISHED")
    return [_expected(listener, "LISTEN", accept_queue=1, backlog=0), end, waiting, pending]


def _syn_recv(hold: Hold) -> list[Expected]:
    """With TCP_DEFER_ACCEPT the server's end stays in SYN_RECV until the client sends (tcp(7))."""
    listener = _open(hold, "ipv4")
    listener.setsockopt(net.IPPROTO_TCP, TCP_DEFER_ACCEPT, 60)
    listener.bind((LOOPBACK["ipv4"], 0))
    listener.listen(BACKLOG)
    client = _open(hold, "ipv4")
    client.connect(listener.getsockname())
    end = _expected(client, "ESTABLISHED")
    return [_expected(listener, "LISTEN"), end, _without_descriptor(end, "SYN_RECV")]


def _full_pair(hold: Hold) -> tuple[net.socket, net.socket]:
    """A connection whose client has more to send than the server reads, so that its FIN has to wait."""
    with ExitStack() as temporary:
        listener = _open(temporary, "ipv4")
        listener.setsockopt(net.SOL_SOCKET, net.SO_RCVBUF, 4096)
        listener.bind((LOOPBACK["ipv4"], 0))
        listener.listen(1)
        client, server = _connect(hold, listener, "ipv4")
    _fill(client)
    return client, server


def _fill(client: net.socket) -> None:
    client.setblocking(False)
    with suppress(BlockingIOError):
        for _ in range(100_000):
            client.send(b"x" * 65536)


def _fin_wait1(hold: Hold) -> list[Expected]:
    client, server = _full_pair(hold)
    client.shutdown(net.SHUT_WR)
    _wait_for_state(client, 4)
    return [_expected(client, "FIN_WAIT1"), _expected(server, "ESTABLISHED")]


def _closing(hold: Hold) -> list[Expected]:
    """Both have closed, and the client's FIN has not been acknowledged."""
    client, server = _full_pair(hold)
    client.shutdown(net.SHUT_WR)
    server.shutdown(net.SHUT_WR)
    _wait_for_state(client, 11)
    _wait_for_state(server, 5)
    return [_expected(client, "CLOSING"), _expected(server, "FIN_WAIT2")]


def _last_ack(hold: Hold) -> list[Expected]:
    """The server has closed first; the client's FIN waits behind what the server does not read."""
    client, server = _full_pair(hold)
    server.shutdown(net.SHUT_WR)
    _wait_for_state(client, 8)
    client.shutdown(net.SHUT_WR)
    _wait_for_state(client, 9)
    return [_expected(client, "LAST_ACK"), _expected(server, "FIN_WAIT2")]


def _udp_unconnected(family: Family, address: str | None = None, v6only: bool | None = None) -> Maker:
    return lambda hold: [_expected(_udp(hold, family, address, v6only), None, recv_queue=0, send_queue=0)]


def _udp_connected(family: Family) -> Maker:
    def make(hold: Hold) -> list[Expected]:
        server, client = _udp(hold, family), _udp(hold, family)
        client.connect(server.getsockname()[:2])
        return [_expected(server, None), _expected(client, "ESTABLISHED")]

    return make


SHARE = """
inherited = socket.socket(fileno=int(sys.argv[1]))
say()
wait()
"""


def _shared_by_fork(hold: Hold) -> list[Expected]:
    """A listener and a UDP socket that a child has inherited: both processes own them."""
    animals = []
    for opened, state in ((_listen(hold, "ipv4"), "LISTEN"), (_udp(hold, "ipv4"), None)):
        other = hold.enter_context(child(SHARE, str(opened.fileno()), pass_fds=[opened.fileno()]))
        animals.append(_expected(opened, state, pids=(os.getpid(), other.pid)))  # type: ignore[arg-type]
    return animals


REUSE_PORT = """
kind, port = int(sys.argv[1]), int(sys.argv[2])
member = socket.socket(socket.AF_INET, kind)
member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
member.bind(("127.0.0.1", port))
if kind == socket.SOCK_STREAM:
    member.listen(7)
say(os.fstat(member.fileno()).st_ino)
wait()
"""


def _reuseport(kind: int) -> Maker:
    """Two of ours and one of another process on one address and port (socket(7), SO_REUSEPORT)."""

    def make(hold: Hold) -> list[Expected]:
        group: list[net.socket] = []
        port = 0
        for _ in range(2):
            member = _open(hold, "ipv4", kind)
            member.setsockopt(net.SOL_SOCKET, SO_REUSEPORT or 0, 1)
            member.bind((LOOPBACK["ipv4"], port))
            port = member.getsockname()[1]
            if kind == net.SOCK_STREAM:
                member.listen(BACKLOG)
            group.append(member)
        state: State | None = "LISTEN" if kind == net.SOCK_STREAM else None
        other = hold.enter_context(child(REUSE_PORT, str(int(kind)), str(port)))
        ours = [_expected(member, state) for member in group]
        return [*ours, ours[0]._replace(pids=(other.pid,), inode=other.said if LINUX else None)]

    return make


class SocketKind(NamedTuple):
    """A kind of socket: how it is opened, and what says whether this machine supports it."""

    make: Maker
    absent: Callable[[], str | None]  # why it cannot be made here; None if it can


def _on_every_platform() -> str | None:
    return None


def _with_ipv6() -> str | None:
    try:
        with net.socket(net.AF_INET6) as probe:
            probe.bind((LOOPBACK["ipv6"], 0))
    except OSError as error:
        return f"IPv6: {error.strerror}"
    return None


def _on_linux() -> str | None:
    return None if LINUX else "Linux: how long the state lasts on other systems is not known"


def _with_inheritance() -> str | None:
    return None if hasattr(os, "fork") else "descriptors that children inherit by number"


def _with_reuseport() -> str | None:
    return None if SO_REUSEPORT else "SO_REUSEPORT"


KINDS: dict[str, SocketKind] = {
    "tcp4-listening": SocketKind(_listening("ipv4"), _on_every_platform),
    "tcp6-listening": SocketKind(_listening("ipv6"), _with_ipv6),
    "tcp4-listening-wildcard": SocketKind(_listening_wildcard("ipv4"), _on_every_platform),
    "tcp6-listening-v6only": SocketKind(_listening_wildcard("ipv6", v6only=True), _with_ipv6),
    "tcp6-listening-dual-stack": SocketKind(_listening_wildcard("ipv6", v6only=False), _with_ipv6),
    "tcp4-connected": SocketKind(_connected("ipv4"), _on_every_platform),
    "tcp6-connected": SocketKind(_connected("ipv6"), _with_ipv6),
    "tcp6-dual-stack-connected": SocketKind(_dual_stack_connected, _with_ipv6),
    "tcp4-bound": SocketKind(_bound("ipv4"), _on_every_platform),
    "tcp6-bound": SocketKind(_bound("ipv6"), _with_ipv6),
    "tcp4-time-wait": SocketKind(_time_wait("ipv4"), _on_every_platform),
    "tcp6-time-wait": SocketKind(_time_wait("ipv6"), _with_ipv6),
    "tcp4-half-closed": SocketKind(_half_closed, _on_every_platform),
    "tcp4-not-accepted": SocketKind(_not_accepted, _on_linux),
    "tcp4-syn-sent": SocketKind(_syn_sent, _on_linux),
    "tcp4-syn-recv": SocketKind(_syn_recv, _on_linux),
    "tcp4-fin-wait1": SocketKind(_fin_wait1, _on_linux),
    "tcp4-closing": SocketKind(_closing, _on_linux),
    "tcp4-last-ack": SocketKind(_last_ack, _on_linux),
    "udp4": SocketKind(_udp_unconnected("ipv4"), _on_every_platform),
    "udp6": SocketKind(_udp_unconnected("ipv6"), _with_ipv6),
    "udp4-wildcard": SocketKind(_udp_unconnected("ipv4", WILDCARD["ipv4"]), _on_every_platform),
    "udp6-v6only": SocketKind(_udp_unconnected("ipv6", WILDCARD["ipv6"], v6only=True), _with_ipv6),
    "udp6-dual-stack": SocketKind(_udp_unconnected("ipv6", WILDCARD["ipv6"], v6only=False), _with_ipv6),
    "udp4-connected": SocketKind(_udp_connected("ipv4"), _on_every_platform),
    "udp6-connected": SocketKind(_udp_connected("ipv6"), _with_ipv6),
    "shared-by-fork": SocketKind(_shared_by_fork, _with_inheritance),
    "tcp4-reuseport": SocketKind(_reuseport(net.SOCK_STREAM), _with_reuseport),
    "udp4-reuseport": SocketKind(_reuseport(net.SOCK_DGRAM), _with_reuseport),
}


# These end after a minute or two: TCP_TIMEWAIT_LEN, tcp_syn_retries, tcp_synack_retries (tcp(7)).
BRIEF = frozenset(("tcp4-time-wait", "tcp6-time-wait", "tcp4-syn-sent", "tcp4-syn-recv"))


def absent(kind: str) -> str | None:
    """Why this kind of socket cannot be made on this machine; None if it can."""
    return KINDS[kind].absent()


@contextmanager
def zoo(*kinds: str) -> Iterator[dict[str, tuple[Expected, ...]]]:
    """Open these kinds of sockets, or all that this machine supports; give by kind what must be listed of them."""
    with ExitStack() as hold:
        chosen = kinds or [name for name in KINDS if absent(name) is None]
        yield {name: tuple(KINDS[name].make(hold)) for name in chosen}
