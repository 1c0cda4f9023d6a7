"""The BPF programs that write a record when a socket gets a port, listens, becomes a client or ends. Pure.

The kernel runs them inside bind(2), listen(2), connect(2) and close(2), in the process that calls: what they must not
do is cost time, or refuse. The programs of cgroups answer 1, "go on", on every path.

Facts: include/uapi/linux/bpf.h (numbers; struct bpf_sock_addr, struct bpf_sock), bpf-helpers(7);
BPF_CGROUP_RUN_PROG_* in net/ipv4/af_inet.c and net/ipv6/af_inet6.c; inet_csk_listen_start() and tcp_set_state().
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import Struct

from portbook.sources.bpf.assembler import R0, R1, R2, R3, R4, R6, R7, R8, R9, R10, Code, RegisterNumber
from portbook.sources.bpf.btf import Place
from portbook.watching.feeds.bpf.record import (
    ATTEMPT,
    BOUND,
    CONNECTING,
    IPV6_ONLY,
    LISTENING,
    MPTCP,
    OF_KERNEL,
    PLACES,
    RECORD,
    RELEASED,
    SIZE,
    UNLISTENED,
    UNUSED,
)

TRACE_POINT = "btf_trace_inet_sock_set_state"
COMMON = "sock.__sk_common."
V4 = COMMON + "skc_rcv_saddr"
# The members of a socket that are copied at once. Those of IPv6 do not exist without CONFIG_IPV6.
COPIED = tuple(
    COMMON + name
    for name in (
        "skc_rcv_saddr",
        "skc_num",
        "skc_family",
        "skc_state",
        "skc_net_refcnt",
        "skc_bound_dev_if",
        "skc_net.net",
        "skc_cookie",
    )
)
V6 = tuple(COMMON + name for name in ("skc_v6_rcv_saddr", "skc_ipv6only"))
REQUIRED = (
    *COPIED, "net.ns.inum", "sock.sk_protocol", "sock.sk_userlocks", "sock.sk_shutdown", "bpf_sock_addr_kern.sk",
    "task_struct.group_leader", "task_struct.start_boottime", "task_struct.comm", "task_struct.self_exec_id",
    "task_struct.pid", "task_struct.tgid", "task_struct.real_parent", "task_struct.cred", "cred.euid.val",
)  # fmt: skip
# Whether a bind without a port leaves it for later (IP_BIND_ADDRESS_NO_PORT of ip(7)): before and since Linux 6.6.
NO_PORT_BIT, NO_PORT_FLAGS = "inet_sock.bind_address_no_port", "inet_sock.inet_flags"
NO_PORT_FLAG = 1 << 18  # INET_FLAGS_BIND_ADDRESS_NO_PORT in include/net/inet_sock.h
OF_MPTCP, ABOVE = "tcp_sock.is_mptcp", "mptcp_sock.first"  # with CONFIG_MPTCP
COOKIE = COMMON + "skc_cookie"
PATHS = (*REQUIRED, *V6, NO_PORT_BIT, NO_PORT_FLAGS, OF_MPTCP, ABOVE)
MOST_COPIED = 256  # bytes: the stack has 512

# Numbers of helpers.
KTIME, SOCKET_COOKIE, CGROUP_ID, STORAGE_GET, PROBE_READ_KERNEL = 5, 46, 80, 107, 113
RING_RESERVE, RING_SUBMIT, CURRENT_TASK_BTF = 131, 132, 158
CREATE = 1  # BPF_SK_STORAGE_GET_F_CREATE
# Kinds of programs and where they are attached.
CGROUP_SOCK, CGROUP_SOCK_ADDR = 9, 18
BIND4, BIND6, CONNECT4, CONNECT6, POST_BIND4, POST_BIND6, RELEASE = 8, 9, 10, 11, 12, 13, 34
# struct bpf_sock_addr, struct bpf_sock.
ADDR_IP4, ADDR_IP6, ADDR_PORT, ADDR_PROTOCOL = 4, 8, 24, 36
SOCK_PROTOCOL, SOCK_STATE = 12, 72
TCP, UDP, IPPROTO_MPTCP = 6, 17, 262
AF_INET, AF_INET6 = 2, 10
SYN_SENT, CLOSE, LISTEN = 2, 7, 10  # include/net/tcp_states.h
SHUT = 3  # both directions: tcp_close() sets it before the state
# SOCK_BINDADDR_LOCK, SOCK_BINDPORT_LOCK in include/net/sock.h: the process chose the address, the port.
LOCKS = 4 | 8
COMM_SIZE = 16
POINTER = 8
SCRATCH = -POINTER  # on the stack
COPY = SCRATCH - MOST_COPIED  # below it, of the socket


# Fields that are left out, because to find them takes time: the attempt has those of a success, and who ends a socket
# is of no interest.
OF_PROCESS = ("cgroup", "started_ns", "name", "uid", "executions", "netns", "ppid")
BRIEF: dict[int | None, tuple[str, ...]] = {
    BOUND: ("at_ns", *OF_PROCESS),
    CONNECTING: OF_PROCESS,
    RELEASED: OF_PROCESS,
}


class Maps(Struct, frozen=True):
    """Descriptors of the maps that the programs use."""

    ring: int
    counters: int  # records that found no room in the ring, by kind
    marks: int  # UDP sockets whose bind was seen


class HookProgram(Struct, frozen=True):
    """A program and where it belongs. ``kind`` None: at the trace point."""

    name: str
    kind: int | None
    attach_type: int
    code: Code


def missing(places: Mapping[str, Place | None]) -> str | None:
    """The first thing that the programs need and this kernel does not have; None if it has everything."""
    return next((path for path in REQUIRED if places.get(path) is None), None)


def build(places: Mapping[str, Place | None], maps: Maps) -> tuple[HookProgram, ...]:
    """The programs for a kernel, given the places of its members; raise ValueError if it is too strange."""
    known = {path: place for path, place in places.items() if place is not None}
    programs = [
        HookProgram("ends", CGROUP_SOCK, RELEASE, _Writer(known, maps).release()),
        HookProgram("states", None, 0, _Writer(known, maps).state()),
        HookProgram("IPv4 binds", CGROUP_SOCK, POST_BIND4, _Writer(known, maps).bound((V4, 0))),
        HookProgram("IPv4 attempts", CGROUP_SOCK_ADDR, BIND4, _Writer(known, maps).attempt(AF_INET)),
    ]
    programs.append(HookProgram("IPv4 connects", CGROUP_SOCK_ADDR, CONNECT4, _Writer(known, maps).connect()))
    if all(path in known for path in V6):
        programs += [
            HookProgram("IPv6 connects", CGROUP_SOCK_ADDR, CONNECT6, _Writer(known, maps).connect()),
            HookProgram(
                "IPv6 binds", CGROUP_SOCK, POST_BIND6, _Writer(known, maps).bound((V6[0], 0), (V6[0], POINTER))
            ),
            HookProgram("IPv6 attempts", CGROUP_SOCK_ADDR, BIND6, _Writer(known, maps).attempt(AF_INET6)),
        ]
    return tuple(programs)


class _Writer:
    """Writes one program. R6 is the context, R7 where the socket is, R8 the record, R9 the protocol or the kind."""

    def __init__(self, places: Mapping[str, Place], maps: Maps) -> None:
        self.places, self.maps, self.code = places, maps, Code()
        self.is_direct = False  # whether R7 is a pointer that the verifier knows, which needs no copies
        copied = [places[path] for path in (*COPIED, *V6) if path in places]
        self.first = min(place.offset for place in copied) // POINTER * POINTER  # the stack is read in aligned words
        self.length = max(place.offset + (place.size or POINTER) for place in copied) - self.first
        if self.length > MOST_COPIED:
            raise ValueError(f"the wanted members of a socket are {self.length} bytes apart")

    # --- the programs

    def attempt(self, family: int) -> Code:
        code = self.code
        code.move(R6, R1, "the context stays in r6")
        code.load(R9, R6, ADDR_PROTOCOL, 4, "protocol")
        self._only_tcp_and_udp(R9)
        self._find_socket()
        code.load(R1, R6, ADDR_PORT, 4, "the wanted port, in network byte order")
        code.jump_if(R1, "!=", 0, "wanted", "a certain port")
        self._leave_if_without_port()
        code.label("wanted")
        self._copy_socket()
        self._reserve(ATTEMPT)
        code.load(R1, R6, ADDR_PORT, 4, "the wanted port, in network byte order")
        code.to_network_order(R1, 16, "and back")
        code.store(R8, PLACES["port"], 2, R1, "port")
        code.store(R8, PLACES["family"], 1, family, "family")
        self._clear_address()
        if family == AF_INET:
            code.load(R1, R6, ADDR_IP4, 4, "the wanted address")
            code.store(R8, PLACES["address"], 4, R1, "address")
        else:
            for at in range(0, 16, 4):
                code.load(R1, R6, ADDR_IP6 + at, 4, "a word of the wanted address")
                code.store(R8, PLACES["address"] + at, 4, R1, "address")
        return self._finish(ATTEMPT)

    def connect(self) -> Code:
        """A bound UDP socket that becomes a client. What TCP does is seen by its state."""
        code = self.code
        code.load(R9, R1, ADDR_PROTOCOL, 4, "protocol")
        code.jump_if(R9, "!=", UDP, "out", "not UDP")
        code.move(R6, R1, "the context stays in r6")
        self._find_socket()
        self._copy_socket()
        self._load_copied(R1, COMMON + "skc_num")
        code.jump_if(R1, "==", 0, "out", "it was not bound")
        self._reserve(CONNECTING)
        self._write_port_and_address()
        return self._finish(CONNECTING)

    def bound(self, *addresses: tuple[str, int]) -> Code:
        """A success.

        :param addresses: the members that have the address, and where in them
        """
        code = self.code
        code.move(R6, R1, "the context stays in r6")
        code.load(R9, R6, SOCK_PROTOCOL, 4, "protocol")
        self._only_tcp_and_udp(R9)
        code.move(R7, R6, "the kernel's side of the context is the socket")
        self._copy_socket()
        code.jump_if(R9, "!=", UDP, "unmarked", "the state of a TCP socket says enough at its end")
        for path, at in addresses:
            self._load_copied(R1, path, at, min(POINTER, self.places[path].size))
            code.jump_if(R1, "!=", 0, "unmarked", "a chosen address does too: LOCKS")
        self._mark(CREATE)
        code.label("unmarked")
        self._reserve(BOUND)
        self._write_port_and_address()
        return self._finish(BOUND)

    def release(self) -> Code:
        """The end of a listener, a bound TCP socket, a bound UDP socket. Others leave after two comparisons."""
        code = self.code
        code.load(R9, R1, SOCK_PROTOCOL, 4, "protocol")
        code.load(R2, R1, SOCK_STATE, 4, "state")
        code.move(R6, R1, "the context stays in r6")
        code.move(R7, R1, "the kernel's side of the context is the socket")
        code.jump_if(R9, "==", UDP, "datagrams", "UDP")
        self._descend_to_mptcp()
        code.jump_if(R9, "!=", TCP, "out", "neither TCP nor UDP")
        code.jump_if(R2, "==", LISTEN, "wanted", "a listener")
        code.jump_if(R2, "!=", CLOSE, "out", "a connection")
        code.jump("wanted", "bound, or without a port")
        code.label("datagrams")
        self._read_scratch_member("sock.sk_userlocks")
        code.jump_if(R1, "&", self._bits("sock.sk_userlocks", LOCKS), "wanted", "it was bound")
        self._mark(0)
        code.jump_if(R0, "==", 0, "out", "a client, which has its port from the kernel")
        code.label("wanted")
        self._copy_socket()
        self._load_copied(R1, COMMON + "skc_num")
        code.jump_if(R1, "==", 0, "out", "it has no port")
        self._reserve(RELEASED)
        self._write_port_and_address()
        return self._finish(RELEASED)

    def state(self) -> Code:
        """Changes of state of every TCP socket of the machine: what is not wanted leaves after three comparisons."""
        code = self.code
        self.is_direct = True
        code.load(R2, R1, 2 * POINTER, 8, "the new state")
        code.load(R3, R1, POINTER, 8, "the old state")
        code.jump_if(R2, "==", LISTEN, "listens", "it begins to listen")
        code.jump_if(R2, "==", SYN_SENT, "connects", "it becomes a client")
        code.jump_if(R3, "!=", LISTEN, "out", "a connection")
        code.jump_if(R2, "!=", CLOSE, "out", "a new connection of a listener")
        code.load(R7, R1, 0, POINTER, "the socket")
        self._leave_if_closed()
        code.move(R9, UNLISTENED, "it listens no more")
        code.jump("socket", "wanted")
        code.label("connects")
        code.load(R7, R1, 0, POINTER, "the socket")
        port = self.places[COMMON + "skc_num"]
        code.load(R4, R7, port.offset, port.size, "its port")
        code.jump_if(R4, "==", 0, "out", "it was not bound")
        code.move(R9, CONNECTING, "a bound socket becomes a client")
        code.jump("socket", "wanted")
        code.label("listens")
        code.move(R9, LISTENING, "it listens")
        code.load(R7, R1, 0, POINTER, "the socket")
        code.label("socket")
        protocol = self.places["sock.sk_protocol"]
        code.load(R4, R7, protocol.offset, protocol.size, "its protocol")
        code.jump_if(R4, "!=", TCP, "out", "SCTP, DCCP")
        code.move(R6, R7, "the socket, for its cookie")
        self._reserve(None)
        self._write_port_and_address()
        return self._finish(None)

    # --- steps

    def _find_socket(self) -> None:
        """Where the socket of a struct bpf_sock_addr is, into R7."""
        self.code.move(R3, R6, "the kernel's side of the context")
        self.code.change(R3, "+", self.places["bpf_sock_addr_kern.sk"].offset, "where it has the socket")
        self._read_scratch(R3, POINTER)
        self.code.load(R7, R10, SCRATCH, POINTER, "the socket")

    def _only_tcp_and_udp(self, protocol: RegisterNumber) -> None:
        self.code.jump_if(protocol, "==", TCP, "protocol", "TCP")
        self.code.jump_if(protocol, "!=", UDP, "out", "neither TCP nor UDP")
        self.code.label("protocol")

    def _probe(self, to: Callable[[], None], size: int) -> None:
        """Copy from the address in R3. ``to`` puts the destination into R1."""
        to()
        self.code.move(R2, size, "as many bytes")
        self.code.call(PROBE_READ_KERNEL, "copy, or zeros and an error")

    def _read_scratch(self, base: RegisterNumber, size: int) -> None:
        if base != R3:
            self.code.move(R3, base, "from there")
        self._probe(lambda: self._stack(SCRATCH), size)

    def _read_scratch_member(self, path: str) -> None:
        """A member of the socket into R1, by a copy; of a bit field its byte, without the other bits."""
        place = self.places[path]
        self.code.move(R3, R7, "the socket")
        self.code.change(R3, "+", place.offset, path)
        self._read_scratch(R3, place.size)
        self.code.load(R1, R10, SCRATCH, place.size, path)
        if place.mask:
            self.code.change(R1, "&", place.mask, "its bits")

    def _stack(self, at: int) -> None:
        self.code.move(R1, R10, "the stack")
        self.code.change(R1, "+", at, "a place on it")

    def _record(self, field: str) -> None:
        self.code.move(R1, R8, "the record")
        self.code.change(R1, "+", PLACES[field], field)

    def _bits(self, path: str, value: int) -> int:
        """A value of a bit field, where it is in its byte."""
        mask = self.places[path].mask
        return value * (mask & -mask) if mask else value

    def _leave_if_without_port(self) -> None:
        if NO_PORT_BIT in self.places:
            self._read_scratch_member(NO_PORT_BIT)
            self.code.jump_if(R1, "!=", 0, "out", "it takes a port later, as a client")
        elif NO_PORT_FLAGS in self.places:
            self._read_scratch_member(NO_PORT_FLAGS)
            self.code.jump_if(R1, "&", NO_PORT_FLAG, "out", "it takes a port later, as a client")
        else:
            self.code.jump("out", "it is not known whether the port is to be taken later")

    def _descend_to_mptcp(self) -> None:
        """From an MPTCP socket, which is what is closed, to the TCP socket below it, which has the port."""
        code = self.code
        if ABOVE not in self.places:
            return
        code.jump_if(R9, "!=", IPPROTO_MPTCP, "plain", "TCP")
        self._read_scratch_member(ABOVE)
        code.move(R7, R1, "the TCP socket")
        self._read_scratch_member(COMMON + "skc_state")
        code.move(R2, R1, "its state")
        code.move(R9, TCP, "and its protocol")
        code.label("plain")

    def _leave_if_closed(self) -> None:
        """Leave if the socket is being closed: its release has been told already."""
        code = self.code
        place, shut = self.places["sock.sk_shutdown"], self._bits("sock.sk_shutdown", SHUT)
        code.load(R4, R7, place.offset, place.size, "what was shut down")
        code.change(R4, "&", shut, "both directions?")
        code.jump_if(R4, "==", shut, "out", "it is being closed")

    def _copy_socket(self) -> None:
        """The wanted members, onto the stack: a program of a cgroup may not read them in their place."""
        self.code.move(R3, R7, "the socket")
        self.code.change(R3, "+", self.first, "the first member that is wanted")
        self._probe(lambda: self._stack(COPY), self.length)

    def _load_copied(self, to: RegisterNumber, path: str, at: int = 0, width: int = 0) -> None:
        place = self.places[path]
        base, begin = (R7, 0) if self.is_direct else (R10, COPY - self.first)
        self.code.load(to, base, begin + place.offset + at, width or place.size or POINTER, path)

    def _mark(self, flags: int) -> None:
        code = self.code
        code.load_map(R1, self.maps.marks, "marks of sockets")
        code.move(R2, R6, "the socket")
        code.move(R3, 0, "no value yet")
        code.move(R4, flags, "whether to make a mark")
        code.call(STORAGE_GET, "its mark")

    def _reserve(self, kind: int | None) -> None:
        """Reserve a record; count the loss where there is no room. ``kind`` None: it is in R9."""
        code = self.code
        code.load_map(R1, self.maps.ring, "the ring")
        code.move(R2, SIZE, "a record")
        code.move(R3, 0, "no flags")
        code.call(RING_RESERVE, "room in the ring")
        code.move(R8, R0, "the record")
        code.jump_if(R8, "!=", 0, "room", "there is room")
        if kind is None:
            for each in (LISTENING, UNLISTENED, CONNECTING):
                code.load_place(R1, self.maps.counters, 8 * each, "the count of losses of this kind")
                code.jump_if(R9, "==", each, "count", "it is this one")
            code.label("count")
        else:
            code.load_place(R1, self.maps.counters, 8 * kind, "the count of losses of this kind")
        code.move(R2, 1, "one more")
        code.add_atomically(R1, 0, R2, "count")
        code.jump("out", "nothing to write to")
        code.label("room")

    def _clear_address(self) -> None:
        for at in (0, 8):
            self.code.store(R8, PLACES["address"] + at, 8, 0, "no address yet")

    def _write_port_and_address(self) -> None:
        code = self.code
        self._load_copied(R1, COMMON + "skc_num")
        code.store(R8, PLACES["port"], 2, R1, "port")
        self._clear_address()
        self._load_copied(R1, COMMON + "skc_family")
        code.store(R8, PLACES["family"], 1, R1, "family")
        if all(path in self.places for path in V6):
            code.jump_if(R1, "!=", AF_INET6, "four", "an address of four bytes")
            for at in (0, 8):
                self._load_copied(R1, V6[0], at, 8)
                code.store(R8, PLACES["address"] + at, 8, R1, "half of the address")
            code.jump("address", "done")
            code.label("four")
        self._load_copied(R1, COMMON + "skc_rcv_saddr")
        code.store(R8, PLACES["address"], 4, R1, "address")
        code.label("address")

    def _finish(self, kind: int | None) -> Code:
        """The part that all records have: what it is, of which socket, by which process."""
        code = self.code
        if kind != BOUND:
            code.call(KTIME, "the time")
            code.store(R8, PLACES["at_ns"], 8, R0, "when")
        self._write_socket(kind)
        self._write_thread()
        if kind in BRIEF:
            self._leave_out(BRIEF[kind])
        else:
            self._write_process()
        code.move(R1, R8, "the record")
        code.move(R2, 0, "wake the reader if it waits")
        code.call(RING_SUBMIT, "it is whole")
        code.label("out")
        code.move(R0, 1, "go on: 0 would refuse the bind")
        code.leave()
        return code

    def _write_socket(self, kind: int | None) -> None:
        code = self.code
        if kind is None:
            code.store(R8, PLACES["kind"], 1, R9, "what happened")
            code.store(R8, PLACES["protocol"], 1, TCP, "protocol")
        else:
            code.store(R8, PLACES["kind"], 1, kind, "what happened")
            code.store(R8, PLACES["protocol"], 1, R9, "protocol")
        self._leave_out(UNUSED)
        code.store(R8, PLACES["sock"], 8, R7, "where the socket is")
        self._load_copied(R1, COMMON + "skc_bound_dev_if")
        code.store(R8, PLACES["interface"], 4, R1, "the interface it is bound to")
        self._write_flags(kind)
        if kind not in BRIEF:
            self._write_namespace()
        self._load_copied(R1, COOKIE)
        code.jump_if(R1, "!=", 0, "cookie", "it was needed before")
        code.move(R1, R6, "the socket, or the context that stands for it")
        code.call(SOCKET_COOKIE, "its number")
        code.move(R1, R0, "that")
        code.label("cookie")
        code.store(R8, PLACES["cookie"], 8, R1, "cookie")

    def _write_namespace(self) -> None:
        self._load_copied(R3, COMMON + "skc_net.net", width=POINTER)
        number = self.places["net.ns.inum"]
        if self.is_direct:
            self.code.load(R1, R3, number.offset, number.size, "the number of its network namespace")
            self.code.store(R8, PLACES["netns"], 4, R1, "network namespace")
        else:
            self.code.change(R3, "+", number.offset, "the number of its network namespace")
            self._probe(lambda: self._record("netns"), 4)

    def _write_flags(self, kind: int | None) -> None:
        code = self.code
        if kind is None and OF_MPTCP in self.places:
            code.jump_if(R9, "!=", UNLISTENED, "not closed", "it is not of interest")
            self._read_scratch_member(OF_MPTCP)
            code.move(R9, 0, "no flags")
            code.jump_if(R1, "==", 0, "flags", "it is not")
            code.move(R9, MPTCP, "it is below an MPTCP socket")
            code.jump("flags", "the others are of no interest")
            code.label("not closed")
        code.move(R9, 0, "no flags")
        if all(path in self.places for path in V6):
            self._load_copied(R1, V6[1])
            code.change(R1, "&", self.places[V6[1]].mask, "is it for IPv6 only?")
            code.jump_if(R1, "==", 0, "dual", "it is not")
            code.change(R9, "|", IPV6_ONLY, "it is")
            code.label("dual")
        refers = COMMON + "skc_net_refcnt"  # sk_alloc(): the kernel's own sockets do not keep their namespace
        self._load_copied(R1, refers)
        code.change(R1, "&", self.places[refers].mask, "does it keep its namespace?")
        code.jump_if(R1, "!=", 0, "flags", "a process has it")
        code.change(R9, "|", OF_KERNEL, "no process has it")
        code.label("flags")
        code.store(R8, PLACES["flags"], 1, R9, "flags")

    def _write_thread(self) -> None:
        """Thread and process; the thread stays in R9."""
        self.code.call(CURRENT_TASK_BTF, "the thread")
        self.code.move(R9, R0, "it")
        self._load_member(R1, R9, "task_struct.pid", "its number")
        self.code.store(R8, PLACES["tid"], 4, R1, "thread")
        self._load_member(R1, R9, "task_struct.tgid", "that of its process")
        self.code.store(R8, PLACES["pid"], 4, R1, "process")

    def _leave_out(self, fields: tuple[str, ...]) -> None:
        for field in fields:
            width = min(RECORD[field], POINTER)
            for at in range(0, RECORD[field], width):
                self.code.store(R8, PLACES[field] + at, width, 0, "not told")

    def _write_process(self) -> None:
        code = self.code
        self._load_member(R1, R9, "task_struct.cred", "what it may do")
        self._load_member(R1, R1, "cred.euid.val", "its user, as the initial user namespace counts")
        code.store(R8, PLACES["uid"], 4, R1, "user")
        executions = self.places["task_struct.self_exec_id"]
        code.load(R1, R9, executions.offset, executions.size, "the count of its programs")
        code.store(R8, PLACES["executions"], 4, R1, "executions")
        self._load_member(R1, R9, "task_struct.real_parent", "its parent")
        self._load_member(R1, R1, "task_struct.tgid", "the number of that one")
        code.store(R8, PLACES["ppid"], 4, R1, "parent")
        self._load_member(R9, R9, "task_struct.group_leader", "the first thread of the process")
        self._load_member(R1, R9, "task_struct.start_boottime", "when it started")
        code.store(R8, PLACES["started_ns"], 8, R1, "start")
        code.move(R3, R9, "the task")
        code.change(R3, "+", self.places["task_struct.comm"].offset, "its name")
        self._probe(lambda: self._record("name"), COMM_SIZE)
        code.call(CGROUP_ID, "the cgroup of the process")
        code.store(R8, PLACES["cgroup"], 8, R0, "cgroup")

    def _load_member(self, to: RegisterNumber, base: RegisterNumber, path: str, why: str) -> None:
        place = self.places[path]
        self.code.load(to, base, place.offset, place.size, why)
