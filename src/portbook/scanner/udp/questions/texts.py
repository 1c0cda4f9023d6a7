"""Protocols of text lines: SSDP, SIP, memcached, and services that send text to everyone."""

from __future__ import annotations

import struct

from portbook.scanner.udp.questions import as_text

# --- text protocols ------------------------------------------------------------------------------------------------


def _headers(reply: bytes) -> tuple[str, dict[str, str]]:
    """Return the first line, and the header fields by name in lower case (as in RFC 9112 section 2.1)."""
    first, *lines = as_text(reply[:4096]).split("\r\n")
    fields = (line.partition(":") for line in lines if ":" in line)
    return first, {name.strip().lower(): value.strip() for name, _, value in fields}


SSDP_SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n'
)


def read_ssdp(reply: bytes) -> str | None:
    """Return the server, or the location of its description."""
    first, fields = _headers(reply)
    if not first.startswith(("HTTP/1.1 200", "NOTIFY * HTTP/1.1")):
        return None
    return fields.get("server") or fields.get("location") or first


SIP_OPTIONS = (
    b"OPTIONS sip:probe@probe.invalid SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP probe.invalid;branch=z9hG4bK-portbook;rport\r\n"  # rport: answer to the source port (RFC 3581)
    b"Max-Forwards: 0\r\n"  # a proxy answers itself instead of forwarding (RFC 3261 section 11)
    b"From: <sip:probe@probe.invalid>;tag=portbook\r\nTo: <sip:probe@probe.invalid>\r\n"
    b"Call-ID: portbook@probe.invalid\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)


def read_sip(reply: bytes) -> str | None:
    """Return the software and the status."""
    first, fields = _headers(reply)
    if not first.startswith("SIP/2.0 "):
        return None
    software = fields.get("server") or fields.get("user-agent")
    status = first[8:]
    return f"{software} ({status})" if software else status


MEMCACHED_ID = 0x7062
# The frame of UDP: request id, sequence number, number of datagrams, reserved (memcached's protocol.txt).
MEMCACHED_VERSION = struct.pack("!4H", MEMCACHED_ID, 0, 1, 0) + b"version\r\n"


def read_memcached(reply: bytes) -> str | None:
    """Return the version."""
    if reply[:2] != MEMCACHED_VERSION[:2] or not reply[8:].startswith(b"VERSION "):
        return None
    return "version " + as_text(reply[16:])


def read_anything(reply: bytes) -> str:
    """Return the text."""
    return as_text(reply)
