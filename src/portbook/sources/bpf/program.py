"""The BPF program that looks at every open file and writes a record of each TCP or UDP socket. Pure.

The kernel calls it once for each descriptor of each process (the ``task_file`` iterator,
Documentation/bpf/bpf_iterators.rst). Offsets of the kernel's structures are those of the running kernel, from its
BTF. The program itself tests what a query selects, so that nothing else has to leave the kernel.

Facts: include/net/{sock,inet_sock,inet_connection_sock}.h, include/linux/{tcp,udp,pid,bpf}.h; numbers of helpers in
include/uapi/linux/bpf.h, their arguments in bpf-helpers(7). Queue lengths are computed as sock_diag computes them:
tcp_diag_get_info() in net/ipv4/tcp_diag.c, udp_diag_get_info() in net/ipv4/udp_diag.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from portbook.records import PortRange
from portbook.sources.bpf.assembler import R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, Code, RegisterNumber
from portbook.sources.bpf.btf import Place
from portbook.sources.bpf.record import IPV6_ONLY, IS_COUNTED, IS_MPTCP, OWN_TABLE, PLACES, RECORD, SIZE

FUNCTION = "bpf_iter_task_file"  # the program is attached to it
WORD, PAIR = 4, 8  # bytes that are copied at once
BELOW = {name: at - SIZE for name, at in PLACES.items()}  # the record is at the end of the stack

# --- members of the kernel's structures that are needed -----------------------------------------------------------

COMMON = "sock.__sk_common."
REQUIRED = (
    "bpf_iter__task_file.meta", "bpf_iter__task_file.task", "bpf_iter__task_file.fd", "bpf_iter__task_file.file",
    "bpf_iter_meta.seq", "file.f_inode", "inode.i_ino", "socket.sk",
    "task_struct.pid", "task_struct.tgid", "task_struct.signal", "task_struct.thread_pid",
    "signal_struct.pids", "pid.level", "pid.numbers", "upid.nr",
    COMMON + "skc_family", COMMON + "skc_state", COMMON + "skc_num", COMMON + "skc_dport", COMMON + "skc_net.net",
    COMMON + "skc_rcv_saddr", COMMON + "skc_daddr", COMMON + "skc_bound_dev_if", "net.ns.inum",
    "sock.sk_protocol", "sock.sk_type", "sock.sk_uid", "sock.sk_ack_backlog", "sock.sk_max_ack_backlog",
    "sock.sk_wmem_alloc", "sock.sk_backlog.rmem_alloc", "udp_sock.forward_deficit",
    "tcp_sock.rcv_nxt", "tcp_sock.copied_seq", "tcp_sock.write_seq", "tcp_sock.snd_una",
    "tcp_sock.inet_conn.icsk_accept_queue.qlen",
)  # fmt: skip
# These do not exist without CONFIG_IPV6 and without cgroups.
V6 = (COMMON + "skc_v6_rcv_saddr", COMMON + "skc_v6_daddr", COMMON + "skc_ipv6only")
CGROUP = ("sock.sk_cgrp_data.cgroup", "cgroup.kn", "kernfs_node.id")
# For census.py: the list of network namespaces, and how many refer to one, by the name before and since Linux 6.18.
NAMESPACES = (
    "bpf_iter__task_file.meta", "bpf_iter_meta.seq", "bpf_iter_meta.seq_num", "task_struct.nsproxy", "nsproxy.net_ns",
    "net.list", "net.ns.inum", "net.ns.ops",
)  # fmt: skip
COUNTERS = ("net.ns.__ns_ref", "net.ns.count")
COUNTING = ("bpf_iter_num_new", "bpf_iter_num_next", "bpf_iter_num_destroy")  # functions, of Linux 6.4
RINGS = ("file.f_path.dentry", "dentry.d_name.name")  # for rings.py: the name of a file
PATHS = (*REQUIRED, *V6, *CGROUP, *NAMESPACES, *COUNTERS, *RINGS)
# These are for port_tables.py. One file keeps the places of all (offsets.py).
PORT_TABLES = (
    "task_struct.nsproxy", "nsproxy.net_ns", "net.list", "net.ns.inum", "net.ns.ops", "net.hash_mix",
    "net.ipv4.tcp_death_row.hashinfo", "inet_hashinfo.bhash", "inet_hashinfo.bhash_size",
    "inet_bind_hashbucket.chain", "inet_bind_bucket.ib_net.net", "inet_bind_bucket.port", "inet_bind_bucket.node",
    "net.ipv4.udp_table", "udp_table.hash", "udp_table.mask", "udp_hslot.head", "udp_hslot.lock",
    COMMON + "skc_net.net", COMMON + "skc_num", COMMON + "skc_node",
    "sock.sk_socket", "socket.file", "socket_alloc.socket.file", "socket_alloc.vfs_inode.i_ino",
)  # fmt: skip

# --- numbers -------------------------------------------------------------------------------------------------------

GET_SOCKET_COOKIE, PROBE_READ_KERNEL, SEQ_WRITE, SKC_TO_TCP_SOCK = 46, 113, 127, 137
GET_CURRENT_TASK_BTF, SOCK_FROM_FILE = 158, 162
AF_INET, AF_INET6 = 2, 10
SOCK_STREAM, SOCK_DGRAM = 1, 2
IPPROTO_TCP, IPPROTO_UDP, IPPROTO_MPTCP = 6, 17, 262
ANY_STATE = 0xFFFF
ESTABLISHED, CLOSE, LISTEN = 1, 7, 10  # include/net/tcp_states.h
PIDTYPE_TGID = 1  # include/linux/pid_types.h
UPID_SIZE = 16  # struct upid: a number and a pointer
POINTER = 8
WAITING = 1 << LISTEN | 1 << CLOSE  # the states of a socket that waits on its port


class Choice(Struct, frozen=True):
    """The sockets that the program writes records of. Masks have a bit for each state."""

    families: tuple[int, ...] = (AF_INET, AF_INET6)
    tcp: int = 0xFFFF
    udp: int = 0xFFFF
    ports: tuple[PortRange, ...] = ()  # empty: every port
    netns: int | None = None  # outside this namespace only sockets that wait on a port; None: all namespaces alike
    counted_outside: int | None = None  # outside this namespace also what is not wanted, marked, so that it is counted
    pid_level: int | None = None  # how deep the reader's pid namespace is nested; None: the program looks


def missing(places: Mapping[str, Place | None]) -> str | None:
    """The first thing that the program needs and this kernel does not have; None if it has everything."""
    return next((path for path in REQUIRED if places.get(path) is None), None)


def build(places: Mapping[str, Place | None], choice: Choice) -> Code:
    """The program for a kernel, given the places of its members, and a choice."""
    code = Code()
    known = KernelLoads(code, {path: place for path, place in places.items() if place is not None})
    _find_socket(code, known)
    _select_kind(code, known, choice)
    _select_port(code, known, choice)
    _select_state(code, known, choice)
    _write_identity(code, known, choice.pid_level)
    _write_addresses(code, known)
    _write_queues(code, known)
    _write_cookie(code)
    _send(code, known)
    return code


class KernelLoads:
    """Loads by name: ``load(to, base, "struct.member")``."""

    def __init__(self, code: Code, places: Mapping[str, Place]) -> None:
        self.code, self.places = code, places

    def load(
        self, to: RegisterNumber, base: RegisterNumber, path: str, why: str, width: int = 0, beyond: int = 0
    ) -> None:
        """Read a member. For an element of an array, ``width`` is its size and ``beyond`` its offset in the array."""
        place = self.places[path]
        self.code.load(to, base, place.offset + beyond, width or place.size, why)

    def has(self, paths: tuple[str, ...]) -> bool:
        """Whether this kernel has all of these members."""
        return all(path in self.places for path in paths)


# --- which socket --------------------------------------------------------------------------------------------------
# R6 is the context, R7 the file, R8 the task that has it open, R9 the socket (struct sock).


def _find_socket(code: Code, known: KernelLoads) -> None:
    code.move(R6, R1, "the context stays in r6")
    known.load(R7, R6, "bpf_iter__task_file.file", "the file")
    code.jump_if(R7, "==", 0, "out", "the last call has none")
    known.load(R8, R6, "bpf_iter__task_file.task", "the task that has it open")
    code.jump_if(R8, "==", 0, "out", "the last call has none")
    code.move(R1, R7, "the file")
    code.call(SOCK_FROM_FILE, "its socket")
    code.jump_if(R0, "==", 0, "out", "the file is no socket")
    known.load(R9, R0, "socket.sk", "its part in the network stack")
    code.jump_if(R9, "==", 0, "out", "it has been closed")


def _select_kind(code: Code, known: KernelLoads, choice: Choice) -> None:
    known.load(R1, R9, COMMON + "skc_family", "family")
    for family in choice.families:
        code.jump_if(R1, "==", family, "family", "wanted")
    code.jump("out", "another family")
    code.label("family")
    # A raw socket may have the protocol number of TCP or UDP, and UDP-Lite is 136: type and protocol have to match.
    known.load(R2, R9, "sock.sk_type", "type")
    known.load(R3, R9, "sock.sk_protocol", "protocol")
    code.move(R4, choice.tcp, "states of TCP that are wanted")
    code.move(R5, 0, "no flag")
    code.jump_if(R2, "==", SOCK_STREAM, "stream", "perhaps TCP")
    code.jump_if(R2, "!=", SOCK_DGRAM, "out", "raw, for one")
    code.jump_if(R3, "!=", IPPROTO_UDP, "out", "UDP-Lite, ping")
    code.move(R4, choice.udp, "states of UDP that are wanted")
    code.jump("kind", "UDP it is")
    code.label("stream")
    code.jump_if(R3, "==", IPPROTO_TCP, "kind", "TCP it is")
    code.jump_if(R3, "!=", IPPROTO_MPTCP, "out", "SCTP, for one")
    # Only its owner counts: address, port and state are those of the TCP sockets below, which sock_diag shows.
    code.move(R3, IPPROTO_TCP, "it is shown as TCP")
    code.move(R4, ANY_STATE if choice.tcp else 0, "whatever its own state is")
    code.move(R5, IS_MPTCP, "and marked")
    code.label("kind")
    code.store(R10, BELOW["protocol"], 1, R3, "protocol")
    code.store(R10, BELOW["family"], 1, R1, "family")
    code.store(R10, BELOW["flags"], 1, R5, "flags")


def _select_port(code: Code, known: KernelLoads, choice: Choice) -> None:
    known.load(R2, R9, COMMON + "skc_net.net", "network namespace")
    known.load(R2, R2, "net.ns.inum", "its inode")
    code.store(R10, BELOW["netns"], 4, R2, "network namespace")
    known.load(R1, R9, COMMON + "skc_num", "local port, in this machine's byte order")
    code.jump_if(R1, "==", 0, "out", "it has none")
    code.store(R10, BELOW["port"], 2, R1, "local port")
    if choice.ports:
        code.jump_if(R5, "!=", 0, "port", "MPTCP, whatever its port")
    for i, (low, high) in enumerate(choice.ports):
        code.jump_if(R1, "<", low, f"above {i}", "below this range")
        code.jump_if(R1, "<=", high, "port", "inside this range")
        code.label(f"above {i}")
    if choice.ports:
        code.jump(_refusal(choice), "in none of the ranges")
    code.label("port")


def _select_state(code: Code, known: KernelLoads, choice: Choice) -> None:
    if choice.netns is not None:
        _load_number(code, choice.netns, "the namespace whose sockets are wanted")
        code.jump_if(R1, "==", R2, "namespace", "it is the wanted one")
        code.change(R4, "&", WAITING, "of another one only sockets that wait")
        code.label("namespace")
    known.load(R3, R9, COMMON + "skc_state", "state")
    code.move(R1, 1, "as a bit")
    code.change(R1, "<<", R3, "the bit of this state")
    code.jump_if(R1, "&", R4, "state", "wanted")
    if choice.counted_outside is None:
        code.jump("out", "not in such a state")
    else:
        code.label("refused")
        _load_number(code, choice.counted_outside, "the namespace whose sockets are not counted")
        code.jump_if(R1, "==", R2, "out", "it is that one")
        _mark(code, IS_COUNTED)
        known.load(R3, R9, COMMON + "skc_state", "state")
    code.label("state")
    code.store(R10, BELOW["state"], 1, R3, "state")


def _refusal(choice: Choice) -> str:
    """Where the program goes on with a socket that is not wanted."""
    return "out" if choice.counted_outside is None else "refused"


def _load_number(code: Code, number: int, why: str) -> None:
    """Put a number of 32 bits into R1: immediate values are signed."""
    code.move(R1, _signed(number), why)
    code.change(R1, "<<", 32, "clear the upper half, which was filled with the sign")
    code.change(R1, ">>", 32, "and shift back, with zeros")


def _signed(number: int) -> int:
    """Immediate values are signed."""
    return number - (1 << 32) if number >= 1 << 31 else number


# --- the record ----------------------------------------------------------------------------------------------------


def _write_identity(code: Code, known: KernelLoads, pid_level: int | None) -> None:
    known.load(R1, R6, "bpf_iter__task_file.fd", "descriptor")
    code.store(R10, BELOW["fd"], 4, R1, "descriptor")
    known.load(R1, R7, "file.f_inode", "inode of the file")
    known.load(R1, R1, "inode.i_ino", "its number", 8)
    code.store(R10, BELOW["inode"], 8, R1, "inode")
    known.load(R1, R9, "sock.sk_uid", "user")
    code.store(R10, BELOW["uid"], 4, R1, "user")
    known.load(R1, R9, COMMON + "skc_bound_dev_if", "interface")
    code.store(R10, BELOW["interface"], 4, R1, "interface")
    _write_cgroup(code, known)
    write_pid(code, known, pid_level)
    _write_thread(code, known)


def _write_cgroup(code: Code, known: KernelLoads) -> None:
    code.move(R1, 0, "none")
    if known.has(CGROUP):
        known.load(R1, R9, "sock.sk_cgrp_data.cgroup", "the creator's cgroup")
        known.load(R1, R1, "cgroup.kn", "its directory")
        known.load(R1, R1, "kernfs_node.id", "and that one's inode", 8)
    code.store(R10, BELOW["cgroup"], 8, R1, "cgroup")


def write_pid(code: Code, known: KernelLoads, level: int | None) -> None:
    """The number that the reader's pid namespace gives the process.

    Pid namespaces are nested, and ``numbers`` has one for each, from the outermost in. The reader is the current task;
    to read its level here would cost more than all the rest when the program is verified, because the verifier looks
    through all types of the kernel for a pointer from the current task (type_is_rcu() in kernel/bpf/verifier.c).
    """
    if level is None:
        code.call(GET_CURRENT_TASK_BTF, "the reader")
        known.load(R1, R0, "task_struct.thread_pid", "its pid")
        known.load(R3, R1, "pid.level", "how deep its namespace is nested")
        code.change(R3, "*", UPID_SIZE, "in bytes")
    else:
        code.move(R3, level * UPID_SIZE, "how deep its namespace is nested, in bytes")
    known.load(R1, R8, "task_struct.signal", "what the threads of a process share")
    known.load(R1, R1, "signal_struct.pids", "the pid of the process", POINTER, PIDTYPE_TGID * POINTER)
    code.change(R3, "+", R1, "from its beginning")
    code.change(R3, "+", known.places["pid.numbers"].offset + known.places["upid.nr"].offset, "its numbers")
    code.move(R1, R10, "into the record")
    code.change(R1, "+", BELOW["pid"], "at this place")
    code.move(R2, 4, "a number is an int")
    code.call(PROBE_READ_KERNEL, "pid")
    code.load(R1, R10, BELOW["pid"], 4, "that")
    code.jump_if(R1, "==", 0, "out", "it has none any more: the process is ending, and its files are closed")


def _write_thread(code: Code, known: KernelLoads) -> None:
    """The iterator visits the table of another thread only if it is not that of the leader: kernel/bpf/task_iter.c."""
    known.load(R1, R8, "task_struct.pid", "number of the thread")
    known.load(R2, R8, "task_struct.tgid", "and of the process")
    code.jump_if(R1, "==", R2, "leader", "the first thread")
    _mark(code, OWN_TABLE)
    code.label("leader")


def _mark(code: Code, flag: int) -> None:
    code.load(R1, R10, BELOW["flags"], 1, "our flags")
    code.change(R1, "|", flag, "one more")
    code.store(R10, BELOW["flags"], 1, R1, "flags")


def _write_addresses(code: Code, known: KernelLoads) -> None:
    for name in ("local", "remote"):
        for at in range(0, RECORD[name], PAIR):
            code.store(R10, BELOW[name] + at, PAIR, 0, "nothing yet")
    known.load(R1, R9, COMMON + "skc_dport", "port of the peer, in network byte order")
    code.store(R10, BELOW["remote_port"], 2, R1, "port of the peer")
    if known.has(V6):
        known.load(R1, R9, COMMON + "skc_family", "family")
        code.jump_if(R1, "==", AF_INET6, "six", "addresses of 16 bytes")
    for name, member in (("local", "skc_rcv_saddr"), ("remote", "skc_daddr")):
        known.load(R1, R9, COMMON + member, name)
        code.store(R10, BELOW[name], WORD, R1, f"{name} address")
    if known.has(V6):
        code.jump("addresses", "done")
        _write_six(code, known)
        code.label("addresses")


def _write_six(code: Code, known: KernelLoads) -> None:
    code.label("six")
    for name, member in (("local", "skc_v6_rcv_saddr"), ("remote", "skc_v6_daddr")):
        for at in range(0, RECORD[name], WORD):
            known.load(R1, R9, COMMON + member, f"{name}, word {at // WORD}", WORD, at)
            code.store(R10, BELOW[name] + at, WORD, R1, f"{name} address")
    known.load(R1, R9, COMMON + "skc_ipv6only", "a byte of flags")
    code.change(R1, "&", known.places[COMMON + "skc_ipv6only"].mask, "is it for IPv6 only?")
    code.jump_if(R1, "==", 0, "addresses", "it is not")
    _mark(code, IPV6_ONLY)


def _write_queues(code: Code, known: KernelLoads) -> None:
    """Bytes received and sent; of a listener the connections in its accept queue, and their limit."""
    for name in ("pending", "received", "sent"):
        code.store(R10, BELOW[name], 4, 0, f"nothing {name}")
    code.load(R1, R10, BELOW["flags"], 1, "our flags")
    code.jump_if(R1, "&", IS_MPTCP, "queues", "its queues are not TCP's")
    code.load(R1, R10, BELOW["protocol"], 1, "protocol")
    code.jump_if(R1, "==", IPPROTO_UDP, "datagrams", "UDP has other queues")
    code.move(R1, R9, "the socket")
    code.call(SKC_TO_TCP_SOCK, "as a TCP socket")
    code.jump_if(R0, "==", 0, "out", "it is not TCP any more")
    code.load(R1, R10, BELOW["state"], 1, "state")
    code.jump_if(R1, "==", LISTEN, "listener", "a listener has connections in its queue")
    _write_difference(code, known, "received", "tcp_sock.rcv_nxt", "tcp_sock.copied_seq")
    _write_difference(code, known, "sent", "tcp_sock.write_seq", "tcp_sock.snd_una")
    code.jump("queues", "done")
    code.label("listener")
    known.load(R1, R0, "tcp_sock.inet_conn.icsk_accept_queue.qlen", "handshakes that are not complete")
    code.store(R10, BELOW["pending"], 4, R1, "pending")
    known.load(R1, R9, "sock.sk_ack_backlog", "waiting to be accepted")
    code.store(R10, BELOW["received"], 4, R1, "accept queue")
    known.load(R1, R9, "sock.sk_max_ack_backlog", "as many may")
    code.store(R10, BELOW["sent"], 4, R1, "backlog")
    code.jump("queues", "done")
    _write_datagrams(code, known)
    code.label("queues")


def _write_difference(code: Code, known: KernelLoads, name: str, more: str, less: str) -> None:
    """Of two positions in a stream, which are numbers of 32 bits that may run over."""
    known.load(R1, R0, more, more)
    known.load(R2, R0, less, less)
    code.change(R1, "-", R2, "the bytes between them")
    code.store(R10, BELOW[name], 4, R1, name)


def _write_datagrams(code: Code, known: KernelLoads) -> None:
    code.label("datagrams")
    code.move(R1, R10, "a scratch place")
    code.change(R1, "+", BELOW["received"], "where the result goes")
    code.move(R2, 4, "an int")
    code.move(R3, R9, "the socket, which is the beginning of a udp_sock")
    code.change(R3, "+", known.places["udp_sock.forward_deficit"].offset, "what was read and not yet given back")
    code.call(PROBE_READ_KERNEL, "copy it there")
    code.load(R2, R10, BELOW["received"], 4, "that")
    known.load(R1, R9, "sock.sk_backlog.rmem_alloc", "memory of what waits to be read")
    code.change(R1, "-", R2, "what is really in the queue")
    code.store(R10, BELOW["received"], 4, R1, "received")
    known.load(R1, R9, "sock.sk_wmem_alloc", "memory of what waits to be sent")
    code.change(R1, "-", 1, "one is the socket itself")
    code.store(R10, BELOW["sent"], 4, R1, "sent")


def _write_cookie(code: Code) -> None:
    code.move(R1, R9, "the socket")
    code.call(GET_SOCKET_COOKIE, "its number, given now if it has none")
    code.store(R10, BELOW["cookie"], 8, R0, "cookie")


def _send(code: Code, known: KernelLoads) -> None:
    known.load(R1, R6, "bpf_iter__task_file.meta", "about the reading")
    known.load(R1, R1, "bpf_iter_meta.seq", "where it goes")
    code.move(R2, R10, "the record")
    code.change(R2, "+", -SIZE, "from its beginning")
    code.move(R3, SIZE, "all of it")
    code.call(SEQ_WRITE, "if it does not fit, the kernel comes back to this file")
    code.label("out")
    code.move(R0, 0, "go on with the next file")
    code.leave()
