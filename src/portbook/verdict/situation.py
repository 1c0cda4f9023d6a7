"""What is known about a port and this machine before it is judged: frozen facts, no I/O here."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from portbook.addresses import EVERYWHERE, Endpoint
from portbook.bind.attempt import Options
from portbook.managers.supervisor import Supervisor
from portbook.netconfig.facts import (
    Caller,
    Diversion,
    DynamicRange,
    ExcludedRange,
    HttpQueue,
    IpvsService,
    Link,
    LocalAddress,
    PortProxy,
    Publication,
    SocketLookup,
)
from portbook.records import Family, Gap, Owner, Platform, PortRange, Protocol, Socket


class BindRequest(Struct, frozen=True):
    """The bind that a server would make."""

    port: int
    protocol: Protocol = "tcp"
    endpoints: tuple[Endpoint, ...] = EVERYWHERE
    options: Options = Options()


class Situation(Struct, frozen=True):
    """Everything that the rules may look at. A fact that could not be read is None or empty, with a gap."""

    platform: Platform
    port: int
    protocol: Protocol = "tcp"
    endpoints: tuple[Endpoint, ...] = EVERYWHERE
    options: Options = Options()
    caller: Caller = Caller()
    sockets: tuple[Socket, ...] = ()  # on the port, with their owners
    parents: dict[int, tuple[Owner, ...]] = {}  # of owners, by pid, nearest first
    supervisors: dict[int, Supervisor] = {}  # of owners, by pid
    activated: dict[int, str] = {}  # Linux: inode of a socket that a service manager holds, and its socket unit
    privileged_below: int | None = None  # Linux: ip_unprivileged_port_start
    sharing: tuple[str, ...] = ()  # UDP: requested endpoints in use that could be bound with SO_REUSEADDR
    ephemeral: PortRange | None = None  # from which the system takes ports for outgoing connections
    reserved: tuple[PortRange, ...] = ()  # Linux: ip_local_reserved_ports
    nonlocal_bind: frozenset[Family] = frozenset()  # Linux: families with ip_nonlocal_bind
    ipv6: Literal["on", "disabled", "absent"] | None = None  # disabled: no address, but "::" can be bound
    vrf_accepts_all: bool = False  # Linux: tcp_l3mdev_accept, for TCP
    addresses: tuple[LocalAddress, ...] | None = None  # None: not read
    foreign: tuple[str, ...] = ()  # requested addresses that this machine does not have
    broadcast: tuple[str, ...] = ()  # requested addresses that are broadcast addresses of a network
    links: tuple[Link, ...] = ()  # interfaces that sockets on the port are bound to
    publications: tuple[Publication, ...] = ()
    nat: tuple[Diversion, ...] = ()
    proxies_waiting: frozenset[int] = frozenset()  # Linux: ports to which TPROXY rules lead and where a socket waits
    ipvs: tuple[IpvsService, ...] = ()  # Linux: virtual services with the port
    lookups: tuple[SocketLookup, ...] = ()  # Linux: BPF programs that choose sockets
    excluded: tuple[ExcludedRange, ...] = ()
    dynamic: tuple[DynamicRange, ...] = ()
    proxies: tuple[PortProxy, ...] = ()
    queues: tuple[HttpQueue, ...] = ()
    queue_owners: dict[int, Owner] = {}  # Windows: the processes of http.sys queues with the port, by pid
    gaps: tuple[Gap, ...] = ()
