"""Linux: which network namespaces have a socket on a port, looked up where the kernel itself looks when it binds one.

The kernel keeps every bound TCP port and every UDP socket in a hash table by port and namespace. Whether a port is in
use takes a few reads there, however many sockets and namespaces there are, while sock_diag walks all sockets of the
machine for each namespace that it is asked in.

The tables change while they are read, and no lock is taken. So what is read has to prove itself: a namespace by the
functions that it points to, an entry by its hash, which has to be that of its chain. If it does not, everything is read
again, and given up after MOST_TRIES. Whether this kernel hashes as is assumed here is tried first, with two sockets of
our own.

A port is found whatever the state of its sockets, TIME_WAIT included. Only a connection that is being made through a
transparent proxy, to another port than that of its listener, is in no table yet.

Facts: inet_bhashfn() and struct inet_bind_bucket in include/net/inet_hashtables.h; udp_hashfn() and struct udp_table in
include/net/udp.h; net_hash_mix() in include/net/netns/hash.h; the list of namespaces in net/core/net_namespace.c.
"""

from __future__ import annotations

import struct
from _socket import AF_INET, SOCK_DGRAM, SOCK_STREAM, socket
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

from msgspec import Struct

from portbook.errors import SourceError
from portbook.records import Protocol
from portbook.sources.bpf.btf import Place
from portbook.sources.bpf.memory import ADDRESS, WORD, ChangedMemory, KernelMemory
from portbook.sources.bpf.program import COMMON, PORT_TABLES

Looked = TypeVar("Looked")
Found = dict[int, frozenset[Protocol]]  # by inode of the namespace

NET = ("net.list", "net.ns.inum", "net.ns.ops", "net.hash_mix", "net.ipv4.tcp_death_row.hashinfo", "net.ipv4.udp_table")
BUCKET = "inet_bind_bucket."
MOST_NAMESPACES = 20_000
MOST_LINKS = 10_000  # of a chain
MOST_TRIES = 3
# What is read at once, in words of 8 bytes. NET_WORDS: the next namespace, inode, functions, mix, TCP, UDP.
NET_WORDS = struct.Struct("=QI4xQI4xQQ")
ARRAY = struct.Struct("=QI4x")  # its address, its length or mask
LINK = struct.Struct("=H6xQQ")  # port, namespace, next link
MIX = struct.Struct("=I4x")


class Namespace(Struct, frozen=True):
    """A network namespace in the kernel's memory."""

    address: int
    inode: int
    mix: int  # a random number that goes into its hashes
    tcp: int  # addresses of its tables
    udp: int


class Chains(Struct, frozen=True):
    """A hash table: an array of lists. Where things are in an entry is counted from its link to the next one."""

    first: int
    size: int  # of an element of the array
    mask: int
    net_at: int
    port_at: int


def find(places: Mapping[str, Place | None], ports: Collection[int], every_namespace: bool) -> Found | None:
    """The protocols that have any of these ports, by namespace; None where that cannot be looked up.

    :param places: of the kernel's members, those of program.PORT_TABLES among them
    :param every_namespace: not only in the namespace of the calling thread
    """
    return _look(places, lambda tables: tables.find(ports, every_namespace))


def kept_by_kernel(places: Mapping[str, Place | None], ports: Collection[int]) -> frozenset[int]:
    """The inodes of UDP sockets on these ports that no file refers to: those of the kernel's own tunnels, as vxlan.

    In the namespace of the calling thread; none where that cannot be looked up.
    """
    return _look(places, lambda tables: tables.kept_by_kernel(ports)) or frozenset()


def _look(places: Mapping[str, Place | None], answer: Callable[[_Tables], Looked]) -> Looked | None:
    known = {path: place for path in PORT_TABLES if (place := places.get(path)) is not None}
    if len(known) < len(PORT_TABLES):
        return None
    try:
        with KernelMemory() as memory:
            for _ in range(MOST_TRIES):
                tables = _Tables(memory, known)
                try:
                    return answer(tables) if _is_proven(tables) else None
                except ChangedMemory:
                    continue
    except SourceError:
        pass  # the kernel lacks something that nothing else needs
    return None


# --- whether the kernel hashes as is assumed here --------------------------------------------------------------------

KINDS: dict[Protocol, int] = {"tcp": SOCK_STREAM, "udp": SOCK_DGRAM}
_proven: list[bool] = []  # empty before the first try: the kernel does not change while we run


def _is_proven(tables: _Tables) -> bool:
    """Whether sockets of ours are found, on ports of loopback that the kernel chooses."""
    if not _proven:
        try:
            _proven.append(all(_finds_own(tables, protocol) for protocol in KINDS))
        except OSError:
            return False  # no descriptor left, or loopback is down: the next time it may work
    return _proven[0]


def _finds_own(tables: _Tables, protocol: Protocol) -> bool:
    opened = socket(AF_INET, KINDS[protocol])
    try:
        opened.bind(("127.0.0.1", 0))
        return protocol in tables.protocols(tables.own(), opened.getsockname()[1])
    finally:
        opened.close()


# --- the tables ----------------------------------------------------------------------------------------------------


class _Tables:
    """The tables as they are now. Every method raises ChangedMemory when what it reads does not fit together."""

    def __init__(self, memory: KernelMemory, places: Mapping[str, Place]) -> None:
        self.memory = memory
        self.places = places
        self.mixes: dict[int, int] = {}  # of namespaces, by address
        self.chains: dict[tuple[Protocol, int], Chains] = {}  # by address of the table

    def find(self, ports: Collection[int], every_namespace: bool) -> Found:
        own = self.own()
        found: Found = {}
        for namespace in self.every(own) if every_namespace else [own]:
            protocols = frozenset(protocol for port in ports for protocol in self.protocols(namespace, port))
            if protocols:
                found[namespace.inode] = protocols
        return found

    def protocols(self, namespace: Namespace, port: int) -> Iterator[Protocol]:
        """The protocols of which a socket has the port in a namespace."""
        if any(its_port == port for its_port, _ in self._entries(self._tcp(namespace), namespace, port)):
            yield "tcp"
        if any(its_port == port for its_port, _ in self._entries(self._udp(namespace), namespace, port)):
            yield "udp"

    def kept_by_kernel(self, ports: Collection[int]) -> frozenset[int]:
        own = self.own()
        inodes: set[int] = set()
        for port in ports:
            for its_port, link in self._entries(self._udp(own), own, port):
                if its_port == port:
                    inodes.update(self._inode_without_file(link - self._at(COMMON + "skc_node")))
        return frozenset(inodes)

    def _inode_without_file(self, sock: int) -> Iterator[int]:
        """A socket and its inode are parts of one structure."""
        between = self._at("socket_alloc.vfs_inode.i_ino") - self._at("socket_alloc.socket.file")
        part = self._pointer(sock + self._at("sock.sk_socket"))
        file_at = part + self._at("socket.file")
        if part and not self._pointer(file_at):
            yield self._pointer(file_at + between)

    def _at(self, path: str) -> int:
        return self.places[path].offset

    def _pointer(self, address: int) -> int:
        return int(ADDRESS.unpack(self.memory.read(address))[0])

    # --- namespaces

    def own(self) -> Namespace:
        """The namespace of the calling thread."""
        proxy = self._pointer(self.memory.task + self._at("task_struct.nsproxy"))
        return self._namespace(self._pointer(proxy + self._at("nsproxy.net_ns")))[2]

    def every(self, own: Namespace) -> list[Namespace]:
        """Every namespace of the machine, ours first. The list is a ring; its head, which is none, is left out."""
        found = [own]
        following, functions, _ = self._namespace(own.address)
        for _ in range(MOST_NAMESPACES):
            if following == own.address:
                self.mixes.update((namespace.address, namespace.mix) for namespace in found)
                return found
            following, its_functions, namespace = self._namespace(following)
            if its_functions == functions:
                found.append(namespace)
        raise ChangedMemory("the list of namespaces has no end")

    def _namespace(self, address: int) -> tuple[int, int, Namespace]:
        """The one after it in the list, the functions that it points to, and the namespace."""
        words = self.memory.read(*(address + self._at(path) for path in NET))
        link, inode, functions, mix, tcp, udp = NET_WORDS.unpack(words)
        return link - self._at("net.list"), functions, Namespace(address, inode, mix, tcp, udp)

    # --- chains

    def _tcp(self, namespace: Namespace) -> Chains:
        """The table of bound ports, which have their sockets."""
        key: tuple[Protocol, int] = ("tcp", namespace.tcp)
        if key not in self.chains:
            members = ("inet_hashinfo.bhash", "inet_hashinfo.bhash_size")
            first, count = ARRAY.unpack(self.memory.read(*(namespace.tcp + self._at(member) for member in members)))
            list_at, node = self._at("inet_bind_hashbucket.chain"), self._at(BUCKET + "node")
            self.chains[key] = Chains(
                first=first + list_at,
                size=_aligned(list_at + WORD, WORD),
                mask=count - 1,
                net_at=self._at(BUCKET + "ib_net.net") - node,
                port_at=self._at(BUCKET + "port") - node,
            )
        return self.chains[key]

    def _udp(self, namespace: Namespace) -> Chains:
        """The table of sockets by port."""
        key: tuple[Protocol, int] = ("udp", namespace.udp)
        if key not in self.chains:
            members = ("udp_table.hash", "udp_table.mask")
            first, mask = ARRAY.unpack(self.memory.read(*(namespace.udp + self._at(member) for member in members)))
            last, node = self.places["udp_hslot.lock"], self._at(COMMON + "skc_node")
            self.chains[key] = Chains(
                first=first + self._at("udp_hslot.head"),
                size=_aligned(last.offset + last.size, 2 * WORD),
                mask=mask,
                net_at=self._at(COMMON + "skc_net.net") - node,
                port_at=self._at(COMMON + "skc_num") - node,
            )
        return self.chains[key]

    def _entries(self, chains: Chains, namespace: Namespace, port: int) -> Iterator[tuple[int, int]]:
        """The entries of this namespace in the chain of a port: port and address of the link."""
        number = port + namespace.mix & chains.mask
        link = self._pointer(chains.first + number * chains.size)
        for _ in range(MOST_LINKS):
            if not link:
                return
            its_port, net, following = LINK.unpack(self.memory.read(link + chains.port_at, link + chains.net_at, link))
            if its_port + self._mix(net) & chains.mask != number:
                del self.mixes[net]  # a namespace that has ended may have left its place to another
                if its_port + self._mix(net) & chains.mask != number:
                    raise ChangedMemory("an entry belongs to another chain")
            if net == namespace.address:
                yield its_port, link
            link = following
        raise ChangedMemory("a chain has no end")

    def _mix(self, net: int) -> int:
        if net not in self.mixes:
            (self.mixes[net],) = MIX.unpack(self.memory.read(net + self._at("net.hash_mix")))
        return self.mixes[net]


def _aligned(size: int, to: int) -> int:
    return -(-size // to) * to
