"""What the BPF programs write of what happened: one record of fixed size for each event. Pure."""

from __future__ import annotations

import struct

# Name and size in bytes of every field. Wide ones first, so that each offset is a multiple of the field's size.
RECORD = {
    "at_ns": 8,  # CLOCK_MONOTONIC
    "cookie": 8,
    "cgroup": 8,  # id of the cgroup v2 of the process
    "started_ns": 8,  # when the process started, since boot, suspended time included
    "sock": 8,  # where the kernel has the socket
    "address": 16,  # an IPv4 address is in the first four bytes
    "name": 16,  # of the process, with zeros at its end
    "tid": 4,
    "pid": 4,
    "uid": 4,
    "netns": 4,
    "interface": 4,
    "executions": 4,  # how often the process has called execve(2), with those of its ancestors
    "port": 2,
    "kind": 1,
    "family": 1,
    "protocol": 1,
    "flags": 1,
    "unused": 2,
    "ppid": 4,
    "unused at the end": 4,
}
CODES = {1: "B", 2: "H", 4: "I", 8: "Q", 16: "16s"}  # of the struct module, by size
UNUSED = tuple(name for name in RECORD if name.startswith("unused"))
BODY = "".join(f"{size}x" if name in UNUSED else CODES[size] for name, size in RECORD.items())
FORMAT = struct.Struct("=" + BODY)
IN_RING = struct.Struct("=8x" + BODY)  # behind the header that each record in a ring has
SIZE = FORMAT.size
PLACES = {name: sum(list(RECORD.values())[:i]) for i, name in enumerate(RECORD)}

# Kinds. ATTEMPT: bind(2) was called. BOUND: it succeeded. LISTENING, UNLISTENED: the state of a TCP socket.
# CONNECTING: a socket that has been bound becomes a client. RELEASED: the last descriptor was closed.
ATTEMPT, BOUND, LISTENING, UNLISTENED, CONNECTING, RELEASED = range(6)
KINDS = ("attempts", "binds", "listens", "ends of listening", "connects", "ends")  # in words, for counts
# Flags. IPV6_ONLY: the socket takes no IPv4. OF_KERNEL: no process has it. MPTCP: it is
# the TCP socket below an MPTCP socket (RFC 8684).
IPV6_ONLY, OF_KERNEL, MPTCP = 1, 2, 4

Record = tuple[
    int, int, int, int, int, bytes, bytes, int, int, int, int, int, int, int, int, int, int, int, int
]  # the fields in the order of RECORD, without those that are not used
