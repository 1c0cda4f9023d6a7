"""The facts that portbook reports: one frozen record for each kind, no I/O here.

Field names are an API: they are the JSON that ``portbook list --json`` prints. They are never renamed or removed.
Their order is an API too: records are made by position and pickled by position. ``Socket`` and the others are
append-only: a new field is added at the end, with a default (tests/test_public.py keeps the list). What a platform does
not provide is ``None``, never invented.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, get_args

from msgspec import Struct

SCHEMA = 1

Protocol = Literal["tcp", "udp"]
Family = Literal["ipv4", "ipv6"]
# From where a socket can be reached. none: it is bound and does not listen, or no interface has its address. multicast,
# broadcast: it gets what is sent to a group, or to every host of a network.
Reach = Literal["loopback", "address", "any", "none", "multicast", "broadcast"]
Confidence = Literal["certain", "likely"]
Platform = Literal["linux", "windows", "macos"]
# How the pid of an owner was found: in the descriptors of the process, in a thread's own descriptor table, among the
# files that it has registered with io_uring, or by a source that reports pids. Empty for a process that no socket led
# to: a parent, a process given by its pid.
FoundBy = Literal["fd", "task-fd", "io-uring", "iphlpapi", "psutil", "netstat", "lsof", ""]
# What a process does at the moment, of the letters in /proc/PID/stat (proc_pid_stat(5)): R, S and I; T; t; D; Z.
# frozen: its cgroup is, which that file does not show.
ProcessState = Literal["running", "suspended", "traced", "uninterruptible", "zombie", "frozen"]
PortRange = tuple[int, int]  # first and last
# What a gap is about.
GapSubject = Literal[
    "owner",
    "socket",
    "source",
    "process",
    "service",
    "container",
    "setting",
    "address",
    "interface",
    "nat",
    "reservation",
]
# RFC 9293 section 3.3.2, in the Linux kernel's spelling. BOUND is a TCP socket that has a port but does not
# listen; an unconnected UDP socket has no state at all and is None.
State = Literal[
    "LISTEN",
    "BOUND",
    "ESTABLISHED",
    "SYN_SENT",
    "SYN_RECV",
    "FIN_WAIT1",
    "FIN_WAIT2",
    "TIME_WAIT",
    "CLOSE",
    "CLOSE_WAIT",
    "LAST_ACK",
    "CLOSING",
    "UNKNOWN",
]
STATES: tuple[State, ...] = get_args(State)
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
FAMILIES: tuple[Family, ...] = get_args(Family)
REACHES: tuple[Reach, ...] = get_args(Reach)


class Owner(Struct, frozen=True, gc=False):
    """A process that holds a socket.

    ``name`` and ``command_line`` are text that the process chose, with bytes that are not UTF-8 replaced by U+FFFD:
    hostile input, to be escaped before it reaches a terminal.
    """

    pid: int
    name: str | None = None
    exe: str | None = None
    user: str | None = None
    started: datetime | None = None  # aware, UTC
    service: str | None = None  # systemd unit or Windows service
    container: str | None = None  # "docker:web", "podman:1f2e3d4c5b6a", "kubernetes:pod…/…"
    how: FoundBy = ""
    confidence: Confidence = "certain"
    command_line: tuple[str, ...] | None = None
    ppid: int | None = None
    cgroup: str | None = None  # Linux: path of the process in the cgroup hierarchy
    service_tag: int | None = None  # Windows: the row's tag of a service inside a shared svchost
    state: ProcessState | None = None  # Linux
    # Read by ``who``, and by ``list`` with --wide:
    script: str | None = None  # what an interpreter runs: "server.py", "-m http.server", "uvicorn shop:app"
    directory: str | None = None  # working directory
    project: str | None = None  # Linux: the nearest directory, from there upwards, with .git, package.json or the like
    orphaned: bool | None = None  # Linux: the terminal that it was started from has been closed
    tracer: int | None = None  # Linux: pid of the process that traces it


class Socket(Struct, frozen=True, gc=False):
    """One TCP or UDP socket of the machine. Append-only: see the module."""

    protocol: Protocol
    family: Family
    local_address: str  # canonical text, no brackets, no zone
    local_port: int
    remote_address: str | None = None  # None: it has no peer
    remote_port: int | None = None
    state: State | None = None  # None: unconnected UDP
    reach: Reach = "address"  # from where the local address can be reached
    zone: str | None = None  # interface of a link-local IPv6 address
    service_name: str | None = None  # registered for the local port (IANA, /etc/services)
    uid: int | None = None  # Unix: user id of the socket
    user: str | None = None  # Unix: name of uid
    inode: int | None = None  # Linux: 0 is a socket that no descriptor refers to
    owners: tuple[Owner, ...] = ()
    recv_queue: int | None = None  # bytes; None for a listener
    send_queue: int | None = None  # bytes; None for a listener
    accept_queue: int | None = None  # connections that wait to be accepted by a listener
    backlog: int | None = None  # limit of accept_queue
    v6only: bool | None = None  # False: an IPv6 socket that takes the IPv4 port too
    interface: str | None = None  # SO_BINDTODEVICE
    created: datetime | None = None  # Windows: when the row was made; aware, UTC
    state_text: str | None = None  # the word that a tool printed, when state is UNKNOWN
    cookie: int | None = None  # Linux: the kernel's unique number of this socket
    cgroup_id: int | None = None  # Linux: inode of the creator's cgroup v2 directory
    service: str | None = None  # Linux: systemd unit that the creator's cgroup names
    container: str | None = None  # Linux: container that the creator's cgroup names
    netns: int | None = None  # Linux: inode of the network namespace
    netns_name: str | None = None  # Linux: its name in "ip netns", or the container whose processes are in it
    ends_in_ms: int | None = None  # Linux: until the kernel drops a closed connection: TIME_WAIT, FIN_WAIT2
    kernel: str | None = None  # Linux: what in the kernel has it, when no process does: "vxlan vx0"


class Gap(Struct, frozen=True):
    """Something that could not be known, why, and what would help."""

    what: GapSubject
    count: int | None  # how many are affected; None: not countable
    why: str
    hint: str | None = None


class Listing(Struct, frozen=True):
    """The sockets that a query selected on one machine at one moment."""

    schema: int
    host: str
    platform: Platform
    taken_at: datetime  # aware, UTC
    source: str
    complete: bool  # no gaps
    sockets: tuple[Socket, ...]
    gaps: tuple[Gap, ...] = ()
    # Linux: how many sockets wait on ports in other network namespaces, and in how many namespaces, when the query did
    # not select them; None: other namespaces were not looked at
    listeners_elsewhere: int | None = None
    namespaces_elsewhere: int | None = None


class Holder(Struct, frozen=True):
    """A process that holds the port."""

    owner: Owner
    age_s: float | None  # seconds since it started
    parents: tuple[Owner, ...]  # nearest first
    sockets: tuple[Socket, ...]  # on the port
    other_ports: tuple[str, ...]  # what else it waits on: "8443/tcp", and "53/udp" when 53/tcp was asked for
    forwards_to: str | None = None  # a relay: what is behind the port, "container 172.17.0.2:80 (docker:web)"


class Holding(Struct, frozen=True):
    """The answer to "who holds this port?"."""

    schema: int
    port: int
    protocol: Protocol | None  # None: both were looked at
    held: bool
    holders: tuple[Holder, ...]
    sockets: tuple[Socket, ...]  # all on the port, including those in TIME_WAIT or without a visible owner
    gaps: tuple[Gap, ...] = ()
    # Linux: holders and sockets in other network namespaces. The port is held there, and may be free here.
    holders_elsewhere: tuple[Holder, ...] = ()
    sockets_elsewhere: tuple[Socket, ...] = ()
