"""The settings of a machine that concern its ports: one frozen record for each kind of fact, no I/O here."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from portbook.records import Family, Protocol

SYSTEM_PID = 4  # Windows: the process "System", the kernel; http.sys listens in it
NatFamily = Literal["ipv4", "ipv6", "both"]
NatHook = Literal["prerouting", "output"]  # what comes in; what this machine sends itself
NatTool = Literal["nft", "iptables-save"]
# nat: destination NAT; tproxy: the packet is handed to a transparent proxy; rewrite: NAT without connection tracking.
DiversionKind = Literal["nat", "tproxy", "rewrite"]
ProxyKind = Literal["v4tov4", "v4tov6", "v6tov4", "v6tov6"]  # families listened on and connected to


class ExcludedRange(Struct, frozen=True):
    """Windows: ports that cannot be bound by number; the bind fails with WSAEACCES (10013)."""

    family: Family
    protocol: Protocol
    start: int
    end: int  # inclusive
    administered: bool  # an administrator reserved it (netsh's asterisk); else a service, until the next start


class DynamicRange(Struct, frozen=True):
    """Windows: the range of ports for outgoing connections, and for the system's own reservations."""

    family: Family
    protocol: Protocol
    start: int
    count: int


class KernelUser(Struct, frozen=True):
    """Linux: a part of the kernel that has a port itself."""

    protocol: Protocol
    port: int
    name: str  # what it is, and which one: "vxlan vx0"; the second word may be a stranger's


class PortProxy(Struct, frozen=True):
    """Windows: a port on which the service iphlpsvc listens to forward connections."""

    kind: ProxyKind
    listen_address: str  # "*": every address
    listen_port: int
    connect_address: str  # an address or a host name
    connect_port: int


class HttpQueue(Struct, frozen=True):
    """Windows: a request queue of http.sys: its ports belong to pid 4, and these processes answer."""

    name: str | None  # None: unnamed
    urls: tuple[str, ...]  # as registered: "HTTP://+:5985/WSMAN/"
    pids: tuple[int, ...]  # attached to it; if none is, the one that controls it; empty: not known


# Who may change the settings net.*: this process; root, by sudo; nobody in this container or user namespace.
SettingsAccess = Literal["here", "root", "outside"]


class Caller(Struct, frozen=True):
    """The process that binds the port, or wants to."""

    uid: int | None = None  # effective; None on Windows
    may_bind_low: bool | None = None  # Linux: CAP_NET_BIND_SERVICE; None: not known
    may_read_nat: bool | None = None  # Linux: CAP_NET_ADMIN
    in_user_namespace: bool = False  # Linux: not in the initial one: capabilities do not count for the whole machine
    may_gain_low: bool = True  # Linux: CAP_NET_BIND_SERVICE can be had by a file's capabilities: setcap(8)
    settings: SettingsAccess = "root"  # who may change net.* settings


class LocalAddress(Struct, frozen=True):
    """An address that an interface of this machine has."""

    address: str
    interface: str
    tentative: bool = False  # IPv6: cannot be bound until duplicate address detection has finished (RFC 4862)


class Link(Struct, frozen=True):
    """A network interface that a socket is bound to."""

    name: str
    kind: str | None = None  # "vrf", "bridge", "veth"
    vrf: str | None = None  # the VRF that it is, or belongs to


class Publication(Struct, frozen=True):
    """A port of a container that its runtime has published."""

    container: str  # "docker:web"
    protocol: str
    host_port: int
    container_addresses: tuple[str, ...] = ()
    user: str = "root"  # whose runtime it is


class NatRule(Struct, frozen=True):
    """A rule by which packets to the port reach something else: another machine, or another port of this one."""

    family: NatFamily
    hook: NatHook
    to_address: str | None  # None: this machine
    to_port: int | None  # None: the same
    destination: str | None = None  # only for packets to this address; None: to every address in question
    conditions: tuple[str, ...] = ()  # what is not known of a packet, in the words of the tool
    chain: str = ""
    tool: NatTool | None = None  # that printed it
    kind: DiversionKind = "nat"
    to_last_port: int | None = None  # one of several, the last of them
    interface: str | None = None  # only for packets that come in here; None: through every interface


class NatTarget(Struct, frozen=True):
    """Where packets go instead."""

    address: str | None  # an address or a range of addresses; None: this machine
    port: int | None  # None: the same
    last_port: int | None = None
    computed: bool = False  # the rule computes the address


class Diversion(Struct, frozen=True):
    """Packets to the port that do not reach its sockets, and the rules that make it so."""

    kind: DiversionKind
    targets: tuple[NatTarget, ...]  # each packet goes to one of them
    certain: bool  # False: it depends on what is not known of a packet, such as its source or a mark
    rules: tuple[NatRule, ...]


class IpvsService(Struct, frozen=True):
    """A virtual service of IPVS, the load balancer in the kernel: packets to it are forwarded to other servers."""

    protocol: Protocol
    address: str
    port: int
    scheduler: str = ""


class LookupChoice(Struct, frozen=True):
    """What a BPF program of type sk_lookup does with a packet to an endpoint."""

    endpoint: str
    dropped: bool = False
    cookie: int | None = None  # of the socket that it chooses; None: it leaves the choice to the kernel


class SocketLookup(Struct, frozen=True):
    """A BPF program of type sk_lookup, which may choose the socket that a packet to any port reaches."""

    id: int
    name: str | None = None
    choices: tuple[LookupChoice, ...] = ()  # for a packet from this machine; empty: the kernel did not run it
