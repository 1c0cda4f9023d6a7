"""DNS and protocols with its message format: multicast DNS, the NetBIOS name service."""

from __future__ import annotations

import struct

from portbook.scanner.udp.questions import as_text

# --- DNS: RFC 1035, RFC 6762, RFC 4892 -----------------------------------------------------------------------------

DNS_ID = 0x7062
DNS_PTR, DNS_TXT, DNS_IN, DNS_CHAOS = 12, 16, 1, 3
DNS_RCODES = ("no error", "format error", "server failure", "no such name", "not implemented", "refused")
MOST_RECORDS = 64
MOST_OCTETS = 255  # of a name, with the lengths of its labels (RFC 1035 section 3.1)
MOST_POINTERS = 127  # a name of 255 octets has no more labels, and each pointer leads to one


def query(name: str, kind: int, dns_class: int) -> bytes:
    """Return a query for one name."""
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack("!6H", DNS_ID, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, dns_class)


def _dns_name(data: bytes, at: int) -> tuple[str, int]:
    """Return a name and where it ends; raise ValueError if it is not one (RFC 1035 sections 3.1 and 4.1.4).

    Compression pointers must lead backwards. That alone would allow a chain of thousands of them in each of the names.
    """
    labels: list[str] = []
    octets = 1  # the root, at the end
    pointers = 0
    end = 0
    limit = at
    while data[at]:
        size = data[at]
        if size >= 0xC0:
            end = end or at + 2
            at = (size & 0x3F) << 8 | data[at + 1]
            pointers += 1
            if at >= limit or pointers > MOST_POINTERS:
                raise ValueError("compression pointers that lead forwards, or too many")
            limit = at
            continue
        octets += 1 + size
        if size > 63 or octets > MOST_OCTETS:  # the other two values of the upper bits are reserved
            raise ValueError("a label or a name that is too long")
        labels.append(as_text(data[at + 1 : at + 1 + size]))
        at += 1 + size
    return ".".join(labels), end or at + 1


def _dns_records(data: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """Return the response code, and of each answer record its type and the start and end of its data."""
    number, flags, questions, answers = struct.unpack_from("!4H", data)
    if number not in (DNS_ID, 0) or not flags & 0x8000:
        raise ValueError("not a response to this query")
    at = 12
    for _ in range(min(questions, MOST_RECORDS)):
        at = _dns_name(data, at)[1] + 4
    records = []
    for _ in range(min(answers, MOST_RECORDS)):
        at = _dns_name(data, at)[1]
        kind, _, _, length = struct.unpack_from("!HHIH", data, at)
        records.append((kind, at + 10, at + 10 + length))
        at += 10 + length
    return flags & 15, records


def read_dns(reply: bytes) -> str | None:
    """Return the version, or the response code."""
    if reply[:2] != struct.pack("!H", DNS_ID):
        return None
    rcode, records = _dns_records(reply)
    versions = [as_text(reply[start + 1 : end]) for kind, start, end in records if kind == DNS_TXT]
    if versions:
        return f"version {versions[0]}"
    if rcode < len(DNS_RCODES):
        return DNS_RCODES[rcode]
    return f"response code {rcode}"


def read_mdns(reply: bytes) -> str:
    """Return the types of the services."""
    _, records = _dns_records(reply)
    names = [_dns_name(reply, start)[0].removesuffix(".local") for kind, start, _ in records if kind == DNS_PTR]
    if not names:
        return "no services"
    return "services: " + ", ".join(dict.fromkeys(names))


# --- NetBIOS name service: RFC 1002 sections 4.2.17 and 4.2.18 -----------------------------------------------------

NBSTAT = 0x21
# The name "*", each half byte as a letter (RFC 1001 section 14.1).
NETBIOS_WILDCARD = b"\x20CK" + b"A" * 30 + b"\0"
NETBIOS_STATUS = struct.pack("!6H", DNS_ID, 0, 1, 0, 0, 0) + NETBIOS_WILDCARD + struct.pack("!HH", NBSTAT, DNS_IN)


def read_netbios(reply: bytes) -> str | None:
    """Return the names of a machine."""
    _, records = _dns_records(reply)
    ((kind, start, _),) = records
    if kind != NBSTAT:
        return None
    entries = [reply[at : at + 18] for at in range(start + 1, start + 1 + 18 * reply[start], 18)]
    names = dict.fromkeys(as_text(entry[:15].rstrip(b" \0")) for entry in entries)
    return "names: " + ", ".join(names)
