"""Protocols in ASN.1: SNMP, connectionless LDAP, Kerberos. Written as DER, read as BER."""

from __future__ import annotations

import struct
from typing import NamedTuple

from portbook.scanner.udp.questions import as_text

# --- ASN.1 in BER and DER: X.690 -----------------------------------------------------------------------------------

MOST_VALUES = 64  # in a sequence; the protocols below have at most a dozen


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Encode tag, length and value."""
    value = b"".join(parts)
    size = len(value)
    length = bytes([size]) if size < 128 else b"\x82" + struct.pack("!H", size)
    return bytes([tag]) + length + value


def _integer(number: int, tag: int = 2) -> bytes:
    return _tlv(tag, number.to_bytes(number.bit_length() // 8 + 1, "big"))


class _Value(NamedTuple):
    tag: int
    value: bytes

    def parts(self) -> list[_Value]:
        """Return the values inside a constructed one."""
        return _values(self.value)

    def number(self) -> int:
        return int.from_bytes(self.value[:16], "big", signed=True)


def _values(data: bytes) -> list[_Value]:
    """Return a sequence of values; raise ValueError if one is cut short, or there are too many."""
    values: list[_Value] = []
    at = 0
    while at < len(data):
        if len(values) == MOST_VALUES:
            raise ValueError("too many values")
        tag, size = data[at], data[at + 1]
        at += 2
        if size >= 0x80:
            octets = size & 0x7F
            size = int.from_bytes(data[at : at + min(octets, 8)], "big")
            at += octets
        if at + size > len(data):
            raise ValueError("cut short")
        values.append(_Value(tag, data[at : at + size]))
        at += size
    return values


# --- SNMP: RFC 3416, RFC 3412, RFC 3414, RFC 3411 ------------------------------------------------------------------

SNMP_ID = 0x7062
SYS_DESCR = _tlv(6, bytes([0x2B, 6, 1, 2, 1, 1, 1, 0]))  # 1.3.6.1.2.1.1.1.0 (RFC 3418)
GET, RESPONSE, REPORT = 0xA0, 0xA2, 0xA8


def snmp_get(version: int) -> bytes:
    """Return a request for sysDescr.0 with the community "public", the usual one."""
    binding = _tlv(0x30, SYS_DESCR, _tlv(5))
    pdu = _tlv(GET, _integer(SNMP_ID), _integer(0), _integer(0), _tlv(0x30, binding))
    return _tlv(0x30, _integer(version), _tlv(4, b"public"), pdu)


def snmp_discovery() -> bytes:
    """Return a request for the engine id, which needs no user (RFC 3414 section 4)."""
    header = _tlv(0x30, _integer(SNMP_ID), _integer(65507), _tlv(4, b"\x04"), _integer(3))  # reportable, USM
    nobody = _tlv(0x30, _tlv(4), _integer(0), _integer(0), _tlv(4), _tlv(4), _tlv(4))
    pdu = _tlv(GET, _integer(SNMP_ID), _integer(0), _integer(0), _tlv(0x30))
    return _tlv(0x30, _integer(3), header, _tlv(4, nobody), _tlv(0x30, _tlv(4), _tlv(4), pdu))


def read_snmp(reply: bytes) -> str | None:
    """Return the description of a device, or the engine of version 3."""
    (message,) = _values(reply)
    version, *rest = message.parts()
    if message.tag != 0x30 or version.tag != 2:
        return None
    if version.number() == 3:
        return _read_engine(rest)
    return _read_sysdescr(version.number(), rest)


def _read_engine(rest: list[_Value]) -> str | None:
    if rest[2].parts()[2].tag != REPORT:
        return None
    engine, boots, uptime = _values(rest[1].value)[0].parts()[:3]
    if engine.tag != 4 or boots.tag != 2 or uptime.tag != 2:
        return None
    words = f"SNMPv3, engine {engine.value[:32].hex()}, up {uptime.number()} s, boots {boots.number()}"
    if len(engine.value) >= 5:  # the enterprise number, with the first bit set (RFC 3411 section 5)
        words += f", enterprise {int.from_bytes(engine.value[:4], 'big') & 0x7FFFFFFF}"
    return words


def _read_sysdescr(version: int, rest: list[_Value]) -> str | None:
    pdu = rest[1]
    if version not in (0, 1) or pdu.tag != RESPONSE:
        return None
    name = "SNMPv1" if version == 0 else "SNMPv2c"
    value = pdu.parts()[3].parts()[0].parts()[1]
    return f"{name}: {as_text(value.value)}" if value.tag == 4 else f"{name}, without a description"


# --- connectionless LDAP: RFC 4511, [MS-ADTS] section 3.1.1.3 and RFC 1798 ------------------------------------

CLDAP_ATTRIBUTES = (b"dnsHostName", b"defaultNamingContext", b"vendorName")
CLDAP_SEARCH = _tlv(
    0x30,
    _integer(1),
    _tlv(
        0x63,  # SearchRequest: of the root entry itself
        *(_tlv(4), _tlv(0x0A, b"\0"), _tlv(0x0A, b"\0"), _integer(0), _integer(0), _tlv(1, b"\0")),
        _tlv(0x87, b"objectClass"),  # present
        _tlv(0x30, *(_tlv(4, name) for name in CLDAP_ATTRIBUTES)),
    ),
)


def read_cldap(reply: bytes) -> str | None:
    """Return attributes of the root entry."""
    first = _values(reply)[0]
    number, entry = first.parts()[:2]
    if first.tag != 0x30 or number != _Value(2, b"\x01") or entry.tag not in (0x64, 0x65):
        return None
    if entry.tag == 0x65:  # SearchResultDone
        return f"result {entry.parts()[0].number()}"
    attributes = [pair.parts() for pair in entry.parts()[1].parts()]
    texts = []
    for name, values in attributes:
        if values.value:
            texts.append(f"{as_text(name.value)} {as_text(values.parts()[0].value)}")
    return ", ".join(texts) or "an empty root entry"


# --- Kerberos: RFC 4120 --------------------------------------------------------------------------------------------

KERBEROS_REALM = b"PROBE.INVALID"
KERBEROS_ERRORS = {6: "client unknown", 7: "server unknown", 25: "pre-authentication required", 68: "wrong realm"}


def _kerberos_name(kind: int, *parts: bytes) -> bytes:
    strings = _tlv(0xA1, _tlv(0x30, *(_tlv(0x1B, part) for part in parts)))
    return _tlv(0x30, _tlv(0xA0, _integer(kind)), strings)


def kerberos_request() -> bytes:
    """Return a request for a ticket of a realm that cannot exist (RFC 2606)."""
    body = _tlv(
        0x30,
        _tlv(0xA0, _tlv(3, bytes(5))),
        _tlv(0xA1, _kerberos_name(1, b"probe")),
        _tlv(0xA2, _tlv(0x1B, KERBEROS_REALM)),
        _tlv(0xA3, _kerberos_name(2, b"krbtgt", KERBEROS_REALM)),
        _tlv(0xA5, _tlv(0x18, b"20370913024805Z")),
        _tlv(0xA7, _integer(0x7062)),
        _tlv(0xA8, _tlv(0x30, _integer(18), _integer(17))),  # AES (RFC 3962)
    )
    return _tlv(0x6A, _tlv(0x30, _tlv(0xA1, _integer(5)), _tlv(0xA2, _integer(10)), _tlv(0xA4, body)))


def read_kerberos(reply: bytes) -> str | None:
    """Return the realm, and the error that an unknown client or realm gets."""
    (message,) = _values(reply)
    if message.tag != 0x7E:  # KRB-ERROR
        return {0x6B: "grants a ticket"}.get(message.tag)
    fields = {field.tag: field.parts()[0] for field in message.parts()[0].parts()}
    code, realm = fields[0xA6].number(), fields[0xA9].value
    words = KERBEROS_ERRORS.get(code, f"error {code}")
    return words if realm == KERBEROS_REALM else f"realm {as_text(realm)}, {words}"
