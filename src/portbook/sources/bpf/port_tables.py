"""Linux: which network namespaces have a socket on a port, looked up where the kernel itself looks when it binds one.

The kernel keeps every bound TCP port and every UDP socket in a hash table by port and namespace. Whether a port is in
use takes a few reads there, however many sockets and namespaces there are, while sock_diag walks all sockets of the
machine for each namespace that it is asked in.

The tables change while they are read, and no lock is taken. So everything that is read has to prove itself: a
namespace by the functions that it points to, an entry by its hash, which has to be that of its chain. What does not
is read again, and given up after MOST_TRIES. Whether this kernel hashes as is assumed here is tried first with two
sockets of our own.

A port is found whatever the state of its sockets, TIME_WAIT included; only a connection that is just being made to
another port than that of its listener (tproxy) is in no table yet.

Facts: inet_bhashfn() and struct inet_bind_bucket in include/net/inet_hashtables.h; udp_hashfn() and struct udp_table in
include/net/udp.h; net_hash_mix() in include/net/netns/hash.h; the list of namespaces in net/core/net_namespace.c.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, SocketType
from _socket import socket as Socket
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from portbook.errors import SourceError
from portbook.records import Protocol
from portbook.sources.bpf import offsets
from portbook.sources.bpf.btf import Place
from portbook.sources.bpf.memory import WORD, ChangedMemory, KernelMemory

NET = ("net.list", "net.ns.inum", "net.ns.ops", "net.hash_mix", "net.ipv4.tcp_death_row.hashinfo", "net.ipv4.udp_table")
BUCKET = "inet_bind_bucket."
COMMON = "sock.__sk_common."
PATHS = (
    "task_struct.nsproxy", "nsproxy.net_ns", *NET,
    "inet_hashinfo.bhash", "inet_hashinfo.bhash_size", "inet_bind_hashbucket.chain",
    BUCKET + "ib_net.net", BUCKET + "port", BUCKET + "node",
    "udp_table.hash", "udp_table.mask", "udp_hslot.head", "udp_hslot.lock",
    COMMON + "skc_net.net", COMMON + "skc_num", COMMON + "skc_node", "sock.sk_socket", "socket.file",
)  # fmt: skip
MOST_PORTS = 16  # that are looked up; with more the tables are read
MOST_NAMESPACES = 20_000
MOST_LINKS = 10_000  # of a chain
MOST_TRIES = 3
HALF = struct.Struct("=H")
NET_WORDS = struct.Struct("=QI4xQI4xQQ")
POINTER = struct.Struct("=Q")
POINTER_AND_NUMBER = struct.Struct("=QI4x")
LINK = struct.Struct("=H6xQQ")  # port, namespace, next

_is_proven: bool | None = None  # whether this kernel hashes as is assumed here; None: not tried yet


class Namespace(Struct, frozen=True):
    """A network namespace in the kernel's memory."""

    address: int
    inode: int
    mix: int  # of its hashes
    tcp: int  # where its tables are
    udp: int


class Chains(Struct, frozen=True):
    """A hash table: an array of lists. Where in an entry, counted from its link to the next one, things are."""

    first: int
    size: int  # of an element of the array
    mask: int
    net_at: int
    port_at: int


Found = dict[int, frozenset[Protocol]]  # by inode of the namespace


def find(ports: Sequence[int], every_namespace: bool) -> Found | None:
    """The protocols that have any of these ports, by namespace; None where that could not be looked up.

    :param every_namespace: not only in the namespace of the calling thread
    """
    try:
        places = _places()
        if places is None:
            return None
        with KernelMemory() as memory:
            for _ in range(MOST_TRIES):
                try:
                    return _Tables(memory, places).find(ports, every_namespace)
                except ChangedMemory:
                    continue
    except SourceError:
        pass  # the kernel lacks something that is needed here alone
    return None


def _places() -> dict[str, Place] | None:
    """Where the members are; None if this kernel does not have one of them."""
    layout = offsets.offsets(*_wanted())
    places = {path: place for path, place in layout.places.items() if place is not None}
    return places if places.keys() >= set(PATHS) else None


def _wanted() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Asked for together with what the other program needs, so that one file keeps both."""
    from portbook.sources.bpf import program

    return (*program.PATHS, *PATHS), (program.FUNCTION,)


class _Tables:
    """The tables, read through one program."""

    def __init__(self, memory: KernelMemory, places: Mapping[str, Place]) -> None:
        self.memory = memory
        self.places = places
        self.mixes: dict[int, int] = {}  # of namespaces, by address
        self.chains: dict[tuple[Protocol, int], Chains] = {}  # by address of the table

    def at(self, path: str) -> int:
        return self.places[path].offset

    def find(self, ports: Sequence[int], every_namespace: bool) -> Found | None:
        own = self.own_namespace()
        if not self._is_proven(own):
            return None
        found: Found = {}
        for namespace in self.namespaces(own) if every_namespace else [own]:
            protocols = {protocol for port in ports for protocol in self.protocols(namespace, port)}
            if protocols:
                found[namespace.inode] = frozenset(protocols)
        return found

    def _is_proven(self, own: Namespace) -> bool:
        """Whether sockets of ours are found, on ports of loopback that the kernel chooses."""
        global _is_proven  # noqa: PLW0603  the kernel does not change while we run
        if _is_proven is None:
            kinds: tuple[tuple[Protocol, int], ...] = (("tcp", SOCK_STREAM), ("udp", SOCK_DGRAM))
            _is_proven = all(self._finds(own, protocol, kind) for protocol, kind in kinds)
        return _is_proven

    def _finds(self, own: Namespace, protocol: Protocol, kind: int) -> bool:
        try:
            opened: SocketType = Socket(AF_INET, kind)
            try:
                opened.bind(("127.0.0.1", 0))
                return protocol in self.protocols(own, opened.getsockname()[1])
            finally:
                opened.close()
        except OSError:
            return False  # no descriptor left, or loopback is down

    # --- namespaces ---

    def own_namespace(self) -> Namespace:
        (proxy,) = POINTER.unpack(self.memory.read(self.memory.task + self.at("task_struct.nsproxy")))
        (address,) = POINTER.unpack(self.memory.read(proxy + self.at("nsproxy.net_ns")))
        _, _, namespace = self._namespace(address)
        return namespace

    def _namespace(self, address: int) -> tuple[int, int, Namespace]:
        """The one after it in the list, the functions that it points to, and the namespace."""
        words = self.memory.read(*(address + self.at(path) for path in NET))
        link, inode, functions, mix, tcp, udp = NET_WORDS.unpack(words)
        return link - self.at("net.list"), functions, Namespace(address, inode, mix, tcp, udp)

    def namespaces(self, own: Namespace) -> list[Namespace]:
        """Every namespace of the machine, ours first: the list is a ring. Its head, which is none, is left out."""
        following, functions, _ = self._namespace(own.address)
        found = [own]
        for _ in range(MOST_NAMESPACES):
            if following == own.address:
                self.mixes.update((namespace.address, namespace.mix) for namespace in found)
                return found
            after, its_functions, namespace = self._namespace(following)
            if its_functions == functions:
                found.append(namespace)
            following = after
        raise ChangedMemory("the list of namespaces has no end")

    # --- ports ---

    def protocols(self, namespace: Namespace, port: int) -> Iterator[Protocol]:
        """The protocols of which a socket has the port in a namespace."""
        tables: tuple[tuple[Protocol, int], ...] = (("tcp", namespace.tcp), ("udp", namespace.udp))
        for protocol, table in tables:
            if (protocol, table) not in self.chains:
                self.chains[protocol, table] = self._tcp(table) if protocol == "tcp" else self._udp(table)
            if self._has(self.chains[protocol, table], namespace, port):
                yield protocol

    def _tcp(self, table: int) -> Chains:
        read = self.memory.read(table + self.at("inet_hashinfo.bhash"), table + self.at("inet_hashinfo.bhash_size"))
        first, count = POINTER_AND_NUMBER.unpack(read)
        chain = self.places["inet_bind_hashbucket.chain"]
        node = self.at(BUCKET + "node")
        return Chains(
            first=first + chain.offset,
            size=_aligned(chain.offset + WORD, WORD),
            mask=count - 1,
            net_at=self.at(BUCKET + "ib_net.net") - node,
            port_at=self.at(BUCKET + "port") - node,
        )

    def _udp(self, table: int) -> Chains:
        read = self.memory.read(table + self.at("udp_table.hash"), table + self.at("udp_table.mask"))
        first, mask = POINTER_AND_NUMBER.unpack(read)
        lock = self.places["udp_hslot.lock"]  # the last member
        node = self.at(COMMON + "skc_node")
        return Chains(
            first=first + self.at("udp_hslot.head"),
            size=_aligned(lock.offset + lock.size, 2 * WORD),
            mask=mask,
            net_at=self.at(COMMON + "skc_net.net") - node,
            port_at=self.at(COMMON + "skc_num") - node,
        )

    def _has(self, chains: Chains, namespace: Namespace, port: int) -> bool:
        number = port + namespace.mix & chains.mask
        (link,) = POINTER.unpack(self.memory.read(chains.first + number * chains.size))
        for _ in range(MOST_LINKS):
            if not link:
                return False
            its_port, net, following = LINK.unpack(
                self.memory.read(link + chains.port_at, link + chains.net_at, link)
            )
            if (its_port, net) == (port, namespace.address):
                return True
            if its_port + self._mix(net) & chains.mask != number:
                raise ChangedMemory("an entry belongs to another chain")
            link = following
        raise ChangedMemory("a chain has no end")

    def _mix(self, net: int) -> int:
        if net not in self.mixes:
            (self.mixes[net],) = struct.unpack_from("=I", self.memory.read(net + self.at("net.hash_mix")))
        return self.mixes[net]


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to
