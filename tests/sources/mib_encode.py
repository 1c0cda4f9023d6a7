"""Rows to the bytes of a MIB table: the reverse of what portbook.sources.iphlpapi parses, written from the headers.

Kept apart from the parser on purpose: field by field at the offsets that learn.microsoft.com gives for
MIB_TCPROW_OWNER_MODULE and its relatives, so that a wrong offset there is not repeated here.
"""

from __future__ import annotations

from typing import NamedTuple

from portbook.records import Family, Protocol
from portbook.sources.iphlpapi import MibTable, RowKind


class Row(NamedTuple):
    """One row, numbers as the parser shall return them."""

    local: bytes
    port: int
    state: int = 0
    remote: bytes = b""
    remote_port: int = 0
    scope: int = 0
    pid: int = 0
    created: int = 0
    tag: int = 0


# field: (offset, size) for each table; the size of a row, and where the first row begins, come first
OFFSETS: dict[tuple[Protocol, Family, RowKind], tuple[int, int, dict[str, tuple[int, int]]]] = {}
TCP4 = {"state": (0, 4), "local": (4, 4), "port": (8, 2), "remote": (12, 4), "remote_port": (16, 2), "pid": (20, 4)}
TCP6 = {
    "local": (0, 16),
    "scope": (16, 4),
    "port": (20, 2),
    "remote": (24, 16),
    "remote_port": (44, 2),
    "state": (48, 4),
    "pid": (52, 4),
}
UDP4 = {"local": (0, 4), "port": (4, 2), "pid": (8, 4)}
UDP6 = {"local": (0, 16), "scope": (16, 4), "port": (20, 2), "pid": (24, 4)}
OFFSETS["tcp", "ipv4", "pid"] = (24, 4, TCP4)
OFFSETS["tcp", "ipv4", "bound"] = (28, 4, TCP4)
OFFSETS["tcp", "ipv4", "module"] = (160, 8, TCP4 | {"created": (24, 8), "tag": (32, 8)})
OFFSETS["tcp", "ipv6", "pid"] = (56, 4, TCP6)
OFFSETS["tcp", "ipv6", "bound"] = (60, 4, TCP6)
OFFSETS["tcp", "ipv6", "module"] = (192, 8, TCP6 | {"created": (56, 8), "tag": (64, 8)})
OFFSETS["udp", "ipv4", "pid"] = (12, 4, UDP4)
OFFSETS["udp", "ipv4", "module"] = (160, 8, UDP4 | {"created": (16, 8), "tag": (32, 8)})
OFFSETS["udp", "ipv6", "pid"] = (28, 4, UDP6)
OFFSETS["udp", "ipv6", "module"] = (176, 8, UDP6 | {"created": (32, 8), "tag": (48, 8)})


def encode(protocol: Protocol, family: Family, kind: RowKind, rows: list[Row], filler: int = 0) -> MibTable:
    """The table that holds ``rows``; ``filler`` is in every byte that no field uses, as the system may leave them."""
    size, header, fields = OFFSETS[protocol, family, kind]
    data = len(rows).to_bytes(4, "little") + bytes([filler]) * (header - 4)
    for row in rows:
        data += bytes(_row(row, size, fields, filler))
    return MibTable(protocol, family, kind, data)


def _row(row: Row, size: int, fields: dict[str, tuple[int, int]], filler: int) -> bytearray:
    out = bytearray([filler]) * size
    for name, (offset, width) in fields.items():
        value = getattr(row, name)
        if isinstance(value, int):
            value = value.to_bytes(width, "big" if name.endswith("port") else "little", signed=name == "created")
        out[offset : offset + width] = value.ljust(width, b"\0")
    return out
