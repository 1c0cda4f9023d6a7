"""What the BPF program writes of a socket: one record of fixed size for each descriptor. Pure."""

from __future__ import annotations

import struct

# name: bytes. Wide ones first, so that each lies where its width divides.
RECORD = {
    "inode": 8, "cookie": 8, "cgroup": 8, "local": 16, "remote": 16,
    "pid": 4, "fd": 4, "netns": 4, "uid": 4, "received": 4, "sent": 4, "interface": 4, "pending": 4,
    "port": 2, "remote_port": 2, "family": 1, "protocol": 1, "state": 1, "flags": 1,
}  # fmt: skip
FORMAT = struct.Struct("=" + "".join({1: "B", 2: "H", 4: "I", 8: "Q", 16: "16s"}[width] for width in RECORD.values()))
SIZE = FORMAT.size
PLACES = {name: sum(list(RECORD.values())[:i]) for i, name in enumerate(RECORD)}
# Flags: the socket takes no IPv4; the descriptor table is not the leader's; the file is that of an MPTCP socket
# (RFC 8684), under which lie TCP sockets that have the same inode and no file of their own.
FOR_IPV6_ONLY, OF_A_THREAD, OF_MPTCP = 1, 2, 4
