"""Linux: BPF programs of type sk_lookup, which choose the socket that receives a connection or a datagram.

Such a program is attached to a network namespace and runs for every first packet to any port, before the kernel looks
for a listener. What it does with a port only it knows; so the kernel is asked to run it for a packet to the port
(BPF_PROG_TEST_RUN), which reports the cookie of the socket that it chooses.

Sources: Documentation/bpf/prog_sk_lookup.rst and bpf_prog_run.rst; struct bpf_sk_lookup, struct bpf_prog_info and union
bpf_attr in include/uapi/linux/bpf.h; bpf_prog_test_run_sk_lookup() in net/bpf/test_run.c.
"""

from __future__ import annotations

import _socket
import errno
import os
import struct
from collections.abc import Iterator, Sequence

from portbook.addresses import Endpoint
from portbook.netconfig.facts import LookupChoice, SocketLookup
from portbook.records import Protocol
from portbook.system import bpf

PROG_TEST_RUN, PROG_GET_FD_BY_ID, OBJ_GET_INFO, PROG_QUERY = 10, 13, 15, 16
BPF_SK_LOOKUP = 36  # enum bpf_attach_type
# target_fd, attach_type, query_flags, attach_flags, prog_ids, prog_cnt, and what later kernels have added
QUERY = struct.Struct("=IIIIQIIQQQQ")
COUNT_AT = 24
MOST_PROGRAMS = 16  # a link per program; BPF_MAX_ATTACHED_PROGS is 64
BY_ID = struct.Struct("=III")  # prog_id, next_id, open_flags
INFO = struct.Struct("=IIQ")  # bpf_fd, info_len, info
NAME_AT, NAME_SIZE, INFO_SIZE = 64, 16, 128
# prog_fd, retval, data_size_in, data_size_out, data_in, data_out, repeat, duration, ctx_size_in, ctx_size_out, ctx_in,
# ctx_out, flags, cpu, batch_size
RUN = struct.Struct("=IIIIQQIIIIQQIIII")
RETVAL_AT = 4
# cookie, family, protocol, remote_ip4, remote_ip6, remote_port, local_ip4, local_ip6, local_port, ingress_ifindex
CONTEXT = struct.Struct("=QII4s16s2s2x4s16sIII")
SK_DROP = 0
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  a key
SOURCE_PORT = struct.pack("!H", 40_000)  # of the packet that is made up
# The answers of a kernel without such programs (Linux 5.9), without BPF, or to a process without the privilege.
ABSENT = frozenset((errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES))


def take(port: int, protocol: Protocol, endpoints: Sequence[Endpoint]) -> tuple[SocketLookup, ...]:
    """The programs of this network namespace, and what each does with a packet to the port; raises OSError."""
    return tuple(_examine(number, port, protocol, endpoints) for number in read_programs())


def read_programs() -> list[int]:
    """The ids of the programs; none where the kernel has no such programs, or does not list them to this process.

    :raises OSError: the kernel does not answer
    """
    ids = bytearray(4 * MOST_PROGRAMS)
    namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        query = bytearray(QUERY.pack(namespace, BPF_SK_LOOKUP, 0, 0, bpf.address_of(ids), MOST_PROGRAMS, 0, 0, 0, 0, 0))
        bpf.call(PROG_QUERY, query)
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise
    finally:
        os.close(namespace)
    (count,) = struct.unpack_from("=I", query, COUNT_AT)
    return list(struct.unpack_from(f"={min(count, MOST_PROGRAMS)}I", ids))


def _examine(number: int, port: int, protocol: Protocol, endpoints: Sequence[Endpoint]) -> SocketLookup:
    """A program's name and choices; without them if the kernel does not give it to this process."""
    try:
        program = bpf.call(PROG_GET_FD_BY_ID, bytearray(BY_ID.pack(number, 0, 0)))
    except OSError:  # CAP_SYS_ADMIN
        return SocketLookup(number)
    try:
        return SocketLookup(number, _name(program), tuple(_choices(program, port, protocol, endpoints)))
    finally:
        os.close(program)


def _name(program: int) -> str | None:
    info = bytearray(INFO_SIZE)
    try:
        bpf.call(OBJ_GET_INFO, bytearray(INFO.pack(program, INFO_SIZE, bpf.address_of(info))))
    except OSError:
        return None
    return bytes(info[NAME_AT : NAME_AT + NAME_SIZE]).partition(b"\0")[0].decode("utf-8", "replace") or None


def _choices(program: int, port: int, protocol: Protocol, endpoints: Sequence[Endpoint]) -> Iterator[LookupChoice]:
    """What the program does with a packet to each endpoint; nothing where the kernel cannot run it."""
    for endpoint in endpoints:
        context = bytearray(_context(endpoint, port, protocol))
        at = bpf.address_of(context)
        run = bytearray(RUN.pack(program, 0, 0, 0, 0, 0, 1, 0, CONTEXT.size, CONTEXT.size, at, at, 0, 0, 0, 0))
        try:
            bpf.call(PROG_TEST_RUN, run)
        except OSError:
            continue
        (verdict,) = struct.unpack_from("=I", run, RETVAL_AT)
        (cookie,) = struct.unpack_from("=Q", context)
        yield LookupChoice(str(endpoint), dropped=verdict == SK_DROP, cookie=cookie or None)


def _context(endpoint: Endpoint, port: int, protocol: Protocol) -> bytes:
    """A packet from this machine to the endpoint; to loopback, for a wildcard."""
    number = _socket.IPPROTO_UDP if protocol == "udp" else _socket.IPPROTO_TCP
    address = LOOPBACK.get(endpoint.address, endpoint.address)
    packed = _socket.inet_pton(endpoint.family, address)
    four, six = packed[:4], bytes(16)
    if endpoint.family == _socket.AF_INET6:
        four, six = bytes(4), packed
    return CONTEXT.pack(0, endpoint.family, number, four, six, SOURCE_PORT, four, six, port, 0, 0)
