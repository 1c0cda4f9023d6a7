"""Addresses as the tables of a system hold them: packed, in network order."""

from __future__ import annotations

from ipaddress import IPv6Address

# IPv4-mapped IPv6 addresses, packed and as text: RFC 4291 section 2.5.5.2.
MAPPED = bytes(10) + b"\xff\xff"
MAPPED_PREFIX = "::ffff:"


def address_text(packed: bytes) -> str:
    """The canonical text of a packed address (RFC 5952), the same on every platform and Python version."""
    if len(packed) == 4:
        return ".".join(map(str, packed))
    if packed[:12] == MAPPED:
        return "::ffff:" + ".".join(map(str, packed[12:]))
    return IPv6Address(packed).compressed


def is_link_local(packed: bytes) -> bool:
    """fe80::/10 (RFC 4291 section 2.5.6): only there a scope id tells something."""
    return packed[0] == 0xFE and packed[1] & 0xC0 == 0x80
