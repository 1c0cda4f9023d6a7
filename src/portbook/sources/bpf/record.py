"""What the BPF program writes of a socket: one record of fixed size for each descriptor. Pure."""

from __future__ import annotations

import struct

from portbook.records import Protocol

# Name and size in bytes of every field. Wide ones first, so that each offset is a multiple of the field's size.
RECORD = {
    "inode": 8,
    "cookie": 8,
    "cgroup": 8,
    "local": 16,
    "remote": 16,
    "pid": 4,
    "fd": 4,
    "netns": 4,
    "uid": 4,
    "received": 4,
    "sent": 4,
    "interface": 4,
    "pending": 4,
    "port": 2,
    "remote_port": 2,
    "family": 1,
    "protocol": 1,
    "state": 1,
    "flags": 1,
}
CODES = {1: "B", 2: "H", 4: "I", 8: "Q", 16: "16s"}  # of the struct module, by size
FORMAT = struct.Struct("=" + "".join(CODES[size] for size in RECORD.values()))
SIZE = FORMAT.size
PLACES = {name: sum(list(RECORD.values())[:i]) for i, name in enumerate(RECORD)}
TCP, UDP = 6, 17
PROTOCOLS: dict[int, Protocol] = {TCP: "tcp", UDP: "udp"}
# Flags. IPV6_ONLY: the socket takes no IPv4. OWN_TABLE: it was found in the descriptor table of a thread, which is not
# that of the thread's leader. IS_MPTCP: the file is that of an MPTCP socket (RFC 8684), below which there are TCP
# sockets that have the same inode and no file of their own. IS_COUNTED: the socket is not wanted, and is there because
# the sockets of its namespace are counted.
IPV6_ONLY, OWN_TABLE, IS_MPTCP, IS_COUNTED = 1, 2, 4, 8
