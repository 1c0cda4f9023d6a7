"""What to say to a UDP port so that a service there answers, and how to know its answer.

A UDP service is heard only if it is asked in its own language. PAYLOADS is a table of such questions: each is the
smallest request of its specification that asks for nothing secret and changes nothing. A port that is not in the table
gets an empty datagram, then a question to a DNS server, because DNS is what mostly lives on odd ports.

Identifiers inside the questions are constants: two probes of one port are the same question, and a packet capture
shows whose they are. Readers are pure; they see bytes that a stranger chose, so that what they do not understand is
not recognised, never an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import NamedTuple

Reader = Callable[[bytes], "str | None"]  # what the answer says, in a line; None: it is not of this protocol

LONGEST = 120  # characters of what a stranger says that are repeated


class Payload(NamedTuple):
    """One question."""

    service: str  # its name in the IANA registry, where it has one
    ports: tuple[int, ...]
    data: bytes
    read: Reader
    spec: str
    elsewhere: bool = False  # the answer comes from another port of the target


class Recognised(NamedTuple):
    """Who answered, and what it said of itself."""

    service: str
    text: str


def for_port(port: int, attempt: int = 1) -> tuple[Payload, ...]:
    """What to send to a port: the best question first and alone, so that a closed port has to refuse only one.

    Later attempts ask everything that is known for the port; of an unknown one, empty and generic by turns.
    """
    known = _BY_PORT.get(port)
    if known is None:
        return (UNKNOWN[(attempt - 1) % len(UNKNOWN)],)
    return known[:1] if attempt == 1 else known


def recognise(reply: bytes, asked: Iterable[Payload]) -> Recognised | None:
    """Who sent this reply, if it answers one of the questions asked."""
    for payload in asked:
        if reply == payload.data and reply:
            return Recognised("echo", "repeats what it is sent")
        try:
            text = payload.read(reply)
        except (IndexError, ValueError, struct.error):  # cut short, or something else altogether
            continue
        if text is not None:
            return Recognised(payload.service, _line(text))
    return None


def described(reply: bytes) -> str:
    """A reply that nobody recognised: its length and what is readable of its beginning."""
    start = "".join(chr(b) if 32 <= b < 127 else "." for b in reply[:32])
    return f"{len(reply)} bytes: {start}" if reply else "an empty datagram"


def _line(text: str) -> str:
    """One line of bounded length, spaces for everything that cannot be printed."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * LONGEST]).split())[:LONGEST]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- DNS: RFC 1035, RFC 6762, RFC 4892 -----------------------------------------------------------------------------

DNS_ID = 0x7062
DNS_PTR, DNS_TXT, DNS_IN, DNS_CHAOS = 12, 16, 1, 3
DNS_RCODES = ("no error", "format error", "server failure", "no such name", "not implemented", "refused")
MOST_RECORDS = 64


def _dns_question(name: str, kind: int, zone: int) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode("ascii") for label in name.split("."))
    return struct.pack("!6H", DNS_ID, 0, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, zone)


def _dns_name(data: bytes, at: int) -> tuple[str, int]:
    """A name and where it ends; compression pointers are followed backwards only (RFC 1035 section 4.1.4)."""
    labels: list[str] = []
    end = 0
    limit = at
    while data[at]:
        if data[at] >= 0xC0:
            end = end or at + 2
            at = (data[at] & 0x3F) << 8 | data[at + 1]
            if at >= limit:
                raise ValueError("a pointer that does not lead backwards")
            limit = at
            continue
        labels.append(_text(data[at + 1 : at + 1 + data[at]]))
        at += 1 + data[at]
    return ".".join(labels), end or at + 1


def _dns_records(data: bytes) -> tuple[int, list[tuple[int, int, int]]]:
    """The response code, and of each answer its type and where its data lies."""
    number, flags, questions, answers = struct.unpack_from("!4H", data)
    if number not in (DNS_ID, 0) or not flags & 0x8000:
        raise ValueError("not a response to this question")
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


def _read_dns(reply: bytes) -> str | None:
    if reply[:2] != struct.pack("!H", DNS_ID):
        return None
    rcode, records = _dns_records(reply)
    versions = [_text(reply[start + 1 : end]) for kind, start, end in records if kind == DNS_TXT]
    if versions:
        return f"version {versions[0]}"
    return DNS_RCODES[rcode] if rcode < len(DNS_RCODES) else f"response code {rcode}"


def _read_mdns(reply: bytes) -> str:
    _, records = _dns_records(reply)
    names = [_dns_name(reply, start)[0].removesuffix(".local") for kind, start, _ in records if kind == DNS_PTR]
    return "services: " + ", ".join(dict.fromkeys(names)) if names else "no services"


# --- NTP: RFC 5905 -------------------------------------------------------------------------------------------------

NTP_TRANSMITTED = b"portbook"  # any value that a server has to return (section 7.3: origin timestamp)
NTP_REQUEST = b"\x23" + bytes(39) + NTP_TRANSMITTED  # leap 0, version 4, mode 3 (client)


def _read_ntp(reply: bytes) -> str | None:
    if len(reply) < 48 or reply[0] & 7 != 4 or reply[24:32] != NTP_TRANSMITTED:  # mode 4: server
        return None
    stratum, reference = reply[1], reply[12:16]
    # Of stratum 0 and 1: a kiss code, or the name of a clock, in ASCII (sections 7.3 and 7.4).
    source = _text(reference.rstrip(b"\0")) if stratum < 2 else str(ip_address(reference))
    unsynchronised = ", not synchronised" if reply[0] >> 6 == 3 else ""
    return f"NTP version {reply[0] >> 3 & 7}, stratum {stratum}, reference {source}{unsynchronised}"


# --- ASN.1 in BER and DER: X.690 -----------------------------------------------------------------------------------


def _tlv(tag: int, *parts: bytes) -> bytes:
    """Tag, length, value."""
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
        """The values inside a constructed one."""
        return _values(self.value)

    def number(self) -> int:
        return int.from_bytes(self.value[:16], "big", signed=True)


def _values(data: bytes) -> list[_Value]:
    """The values that follow one another; one that is cut short is an error."""
    found = []
    at = 0
    while at < len(data):
        tag, size = data[at], data[at + 1]
        at += 2
        if size >= 0x80:
            octets = size & 0x7F
            size = int.from_bytes(data[at : at + min(octets, 8)], "big")
            at += octets
        if at + size > len(data):
            raise ValueError("cut short")
        found.append(_Value(tag, data[at : at + size]))
        at += size
    return found


# --- SNMP: RFC 3416, RFC 3412, RFC 3414, RFC 3411 ------------------------------------------------------------------

SNMP_ID = 0x7062
SYS_DESCR = _tlv(6, bytes([0x2B, 6, 1, 2, 1, 1, 1, 0]))  # 1.3.6.1.2.1.1.1.0 (RFC 3418)
GET, RESPONSE, REPORT = 0xA0, 0xA2, 0xA8


def _snmp_get(version: int) -> bytes:
    """Ask for sysDescr.0 with the community "public", the one that RFC 1157's readers know."""
    binding = _tlv(0x30, SYS_DESCR, _tlv(5))
    pdu = _tlv(GET, _integer(SNMP_ID), _integer(0), _integer(0), _tlv(0x30, binding))
    return _tlv(0x30, _integer(version), _tlv(4, b"public"), pdu)


def _snmp_discovery() -> bytes:
    """Ask for the engine id, which needs no user (RFC 3414 section 4)."""
    header = _tlv(0x30, _integer(SNMP_ID), _integer(65507), _tlv(4, b"\x04"), _integer(3))  # reportable, USM
    nobody = _tlv(0x30, _tlv(4), _integer(0), _integer(0), _tlv(4), _tlv(4), _tlv(4))
    pdu = _tlv(GET, _integer(SNMP_ID), _integer(0), _integer(0), _tlv(0x30))
    return _tlv(0x30, _integer(3), header, _tlv(4, nobody), _tlv(0x30, _tlv(4), _tlv(4), pdu))


def _read_snmp(reply: bytes) -> str | None:
    (message,) = _values(reply)
    version, *rest = message.parts()
    if message.tag != 0x30 or version.tag != 2:
        return None
    return _read_engine(rest) if version.number() == 3 else _read_sysdescr(version.number(), rest)


def _read_engine(rest: list[_Value]) -> str | None:
    if rest[2].parts()[2].tag != REPORT:
        return None
    engine, boots, uptime = _values(rest[1].value)[0].parts()[:3]
    if engine.tag != 4 or boots.tag != 2 or uptime.tag != 2:
        return None
    words = f"SNMPv3, engine {engine.value[:32].hex()}, up {uptime.number()} s, boots {boots.number()}"
    if len(engine.value) >= 5:  # its first bit set, the enterprise number follows (RFC 3411 section 5)
        words += f", enterprise {int.from_bytes(engine.value[:4], 'big') & 0x7FFFFFFF}"
    return words


def _read_sysdescr(version: int, rest: list[_Value]) -> str | None:
    pdu = rest[1]
    if version not in (0, 1) or pdu.tag != RESPONSE:
        return None
    name = "SNMPv1" if version == 0 else "SNMPv2c"
    value = pdu.parts()[3].parts()[0].parts()[1]
    return f"{name}: {_text(value.value)}" if value.tag == 4 else f"{name}, without a description"


# --- text protocols ------------------------------------------------------------------------------------------------


def _headers(reply: bytes) -> tuple[str, dict[str, str]]:
    """The first line, and the header fields in lower case (RFC 9112 section 2.1 and its like)."""
    first, *lines = _text(reply[:4096]).split("\r\n")
    fields = (line.partition(":") for line in lines if ":" in line)
    return first, {name.strip().lower(): value.strip() for name, _, value in fields}


SSDP_SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\nST: upnp:rootdevice\r\n\r\n'
)


def _read_ssdp(reply: bytes) -> str | None:
    first, fields = _headers(reply)
    if not first.startswith(("HTTP/1.1 200", "NOTIFY * HTTP/1.1")):
        return None
    return fields.get("server") or fields.get("location") or first


SIP_OPTIONS = (
    b"OPTIONS sip:probe@probe.invalid SIP/2.0\r\n"
    b"Via: SIP/2.0/UDP probe.invalid;branch=z9hG4bK-portbook;rport\r\n"  # rport: answer where this came from (RFC 3581)
    b"Max-Forwards: 0\r\n"  # a proxy answers itself instead of forwarding (RFC 3261 section 11)
    b"From: <sip:probe@probe.invalid>;tag=portbook\r\nTo: <sip:probe@probe.invalid>\r\n"
    b"Call-ID: portbook@probe.invalid\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)


def _read_sip(reply: bytes) -> str | None:
    first, fields = _headers(reply)
    if not first.startswith("SIP/2.0 "):
        return None
    software = fields.get("server") or fields.get("user-agent")
    return f"{software} ({first[8:]})" if software else first[8:]


MEMCACHED_ID = 0x7062
# The frame of UDP: request id, sequence number, number of datagrams, reserved (memcached's protocol.txt).
MEMCACHED_VERSION = struct.pack("!4H", MEMCACHED_ID, 0, 1, 0) + b"version\r\n"


def _read_memcached(reply: bytes) -> str | None:
    if reply[:2] != MEMCACHED_VERSION[:2] or not reply[8:].startswith(b"VERSION "):
        return None
    return "version " + _text(reply[16:])


# --- NetBIOS name service: RFC 1002 sections 4.2.17 and 4.2.18 -----------------------------------------------------

NBSTAT = 0x21
# The name "*", each half byte as a letter (RFC 1001 section 14.1).
NETBIOS_ANYBODY = b"\x20CK" + b"A" * 30 + b"\0"
NETBIOS_STATUS = struct.pack("!6H", DNS_ID, 0, 1, 0, 0, 0) + NETBIOS_ANYBODY + struct.pack("!HH", NBSTAT, DNS_IN)


def _read_netbios(reply: bytes) -> str | None:
    _, records = _dns_records(reply)
    ((kind, start, _),) = records
    if kind != NBSTAT:
        return None
    entries = [reply[at : at + 18] for at in range(start + 1, start + 1 + 18 * reply[start], 18)]
    names = dict.fromkeys(_text(entry[:15].rstrip(b" \0")) for entry in entries)
    return "names: " + ", ".join(names)


# --- TFTP: RFC 1350 ------------------------------------------------------------------------------------------------

TFTP_READ = b"\0\x01" + b"portbook-asks-if-you-are-there" + b"\0octet\0"


def _read_tftp(reply: bytes) -> str | None:
    kind = reply[1] if reply[:1] == b"\0" else 0
    if kind == 5 and len(reply) > 4:  # ERROR
        return f"error {reply[3]}: {_text(reply[4:].rstrip(bytes(1)))}"
    return {3: "sends the file", 6: "acknowledges options"}.get(kind)  # DATA, OACK (RFC 2347)


# --- ONC RPC: RFC 5531, RFC 1833, RFC 7530 -------------------------------------------------------------------------

RPC_ID = 0x70627062
PORTMAP, NFS = 100000, 100003


def _rpc_call(program: int) -> bytes:
    """Call procedure 0 of a version that does not exist: the refusal names those that do."""
    no_authentication = bytes(16)
    return struct.pack("!6I", RPC_ID, 0, 2, program, 0xFFFFFFFF, 0) + no_authentication


def _read_rpc(reply: bytes) -> str | None:
    number, kind, status, _, length = struct.unpack_from("!5I", reply)
    if number != RPC_ID or kind != 1:  # REPLY
        return None
    if status != 0:  # MSG_DENIED
        return "denied"
    (accept,) = struct.unpack_from("!I", reply, 20 + length)
    if accept == 2:  # PROG_MISMATCH
        low, high = struct.unpack_from("!II", reply, 24 + length)
        return f"versions {low} to {high}"
    return {0: "success", 1: "program not here"}.get(accept, f"status {accept}")


# --- LDAP without connections: RFC 4511, [MS-ADTS] section 3.1.1.3 and RFC 1798 ------------------------------------

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


def _read_cldap(reply: bytes) -> str | None:
    first = _values(reply)[0]
    number, entry = first.parts()[:2]
    if first.tag != 0x30 or number != _Value(2, b"\x01") or entry.tag not in (0x64, 0x65):
        return None
    if entry.tag == 0x65:  # SearchResultDone
        return f"result {entry.parts()[0].number()}"
    attributes = [pair.parts() for pair in entry.parts()[1].parts()]
    shown = [f"{_text(name.value)} {_text(values.parts()[0].value)}" for name, values in attributes if values.value]
    return ", ".join(shown) or "an empty root entry"


# --- STUN: RFC 8489 ------------------------------------------------------------------------------------------------

STUN_COOKIE = 0x2112A442
STUN_TRANSACTION = b"portbook-ask"
STUN_BINDING = struct.pack("!HHI", 1, 0, STUN_COOKIE) + STUN_TRANSACTION
STUN_SOFTWARE = 0x8022


def _read_stun(reply: bytes) -> str | None:
    kind, length, cookie = struct.unpack_from("!HHI", reply)
    if kind not in (0x0101, 0x0111) or cookie != STUN_COOKIE or reply[8:20] != STUN_TRANSACTION:
        return None
    at = 20
    while at + 4 <= min(20 + length, len(reply)):
        attribute, size = struct.unpack_from("!HH", reply, at)
        if attribute == STUN_SOFTWARE:
            return _text(reply[at + 4 : at + 4 + size])
        at += 4 + (size + 3 & ~3)
    return "binding" if kind == 0x0101 else "refused"


# --- QUIC: RFC 9000 sections 6 and 17.2.1, RFC 8999 ----------------------------------------------------------------

QUIC_FROM, QUIC_TO = b"portbook", b"anybody?"
# A version that is reserved to be unknown (section 15), in a datagram long enough for an answer (section 14.1).
QUIC_UNKNOWN = (b"\xc0\x1a\x2a\x3a\x4a" + b"\x08" + QUIC_TO + b"\x08" + QUIC_FROM).ljust(1200, b"\0")
QUIC_NAMES = {1: "v1", 0x6B3343CF: "v2"}  # RFC 9000, RFC 9369


def _read_quic(reply: bytes) -> str | None:
    head = b"\0\0\0\0" + b"\x08" + QUIC_FROM + b"\x08" + QUIC_TO
    if not reply[0] & 0x80 or reply[1:23] != head:
        return None
    numbers = struct.unpack(f"!{(len(reply) - 23) // 4}I", reply[23 : 23 + (len(reply) - 23) // 4 * 4])
    known = [n for n in numbers if n & 0x0F0F0F0F != 0x0A0A0A0A]  # the rest is reserved, as ours
    return "versions " + ", ".join(_quic_name(n) for n in known[:16])


def _quic_name(number: int) -> str:
    draft = f"draft-{number & 0xFF}" if number >> 8 == 0xFF0000 else f"{number:#010x}"
    return QUIC_NAMES.get(number, draft)


# --- IKE: RFC 7296, RFC 2408 and RFC 2409 --------------------------------------------------------------------------

IKE_SPI = b"portbook"
IKE_EXCHANGE = {1: "IKEv1", 2: "IKEv2"}
IKE_NOTIFY = {7: "invalid syntax", 5: "invalid major version", 14: "no proposal chosen", 17: "invalid KE payload"}
NON_ESP = bytes(4)  # in front of IKE on port 4500 (RFC 3948 section 2.2)


def _ike_header(following: int, version: int, exchange: int, flags: int, body: bytes) -> bytes:
    return IKE_SPI + bytes(8) + struct.pack("!BBBBII", following, version, exchange, flags, 0, 28 + len(body)) + body


def _ike_payload(following: int, body: bytes) -> bytes:
    return struct.pack("!BBH", following, 0, 4 + len(body)) + body


def _ike_transform(last: bool, kind: int, number: int, attributes: bytes = b"") -> bytes:
    return struct.pack("!BBHBBH", 0 if last else 3, 0, 8 + len(attributes), kind, 0, number) + attributes


def _ike_init() -> bytes:
    """IKE_SA_INIT with AES-CBC-256, SHA-256 and Curve25519 (RFC 8031), whose base point stands for a key."""
    transforms = (
        _ike_transform(False, 1, 12, struct.pack("!HH", 0x800E, 256))
        + _ike_transform(False, 2, 5)
        + _ike_transform(False, 3, 12)
        + _ike_transform(True, 4, 31)
    )
    proposal = struct.pack("!BBHBBBB", 0, 0, 8 + len(transforms), 1, 1, 0, 4) + transforms
    key = struct.pack("!HH", 31, 0) + b"\x09".ljust(32, b"\0")
    body = _ike_payload(34, proposal) + _ike_payload(40, key) + _ike_payload(0, IKE_SPI * 4)
    return _ike_header(33, 0x20, 34, 0x08, body)


def _ike_main_mode() -> bytes:
    """The first message of IKEv1: AES-128, SHA-1, a shared key, group 2, for eight hours (RFC 2409 appendix A)."""
    choices = struct.pack("!14H", 0x8001, 7, 0x800E, 128, 0x8002, 2, 0x8003, 1, 0x8004, 2, 0x800B, 1, 0x800C, 28800)
    transform = struct.pack("!BBHBBH", 0, 0, 8 + len(choices), 1, 1, 0) + choices
    proposal = struct.pack("!BBHBBBB", 0, 0, 8 + len(transform), 1, 1, 0, 1) + transform
    return _ike_header(1, 0x10, 2, 0, _ike_payload(0, struct.pack("!II", 1, 1) + proposal))


def _read_ike(reply: bytes) -> str | None:
    reply = reply.removeprefix(NON_ESP)
    following, version, _, _, _, length = struct.unpack_from("!BBBBII", reply, 16)
    name = IKE_EXCHANGE.get(version >> 4)
    if reply[:8] != IKE_SPI or name is None or length != len(reply):
        return None
    if following != (41 if name == "IKEv2" else 11):  # a Notify payload
        return name
    at = 34 if name == "IKEv2" else 38  # IKEv1 has the domain of interpretation first
    (notice,) = struct.unpack_from("!H", reply, at)
    return f"{name}, {IKE_NOTIFY.get(notice, f'notice {notice}')}"


# --- CoAP: RFC 7252, RFC 6690 --------------------------------------------------------------------------------------

COAP_ID = b"pb"
# Confirmable GET of /.well-known/core, the list of resources; options are Uri-Path (11), delta and length in a byte.
COAP_GET = b"\x40\x01" + COAP_ID + b"\xbb.well-known" + b"\x04core"


def _read_coap(reply: bytes) -> str | None:
    if reply[2:4] != COAP_ID or not (reply[0] == 0x60 or reply[:2] == b"\x70\0"):  # version 1: an ACK, or an empty RST
        return None
    _, marker, content = reply.partition(b"\xff")
    code = f"{reply[1] >> 5}.{reply[1] & 31:02}"
    return f"{code} {_text(content)}" if marker else code


# --- RADIUS: RFC 5997, RFC 2865 ------------------------------------------------------------------------------------

# Status-Server with a Message-Authenticator (RFC 2869 section 5.14): an HMAC with the shared secret, for which the one
# of the examples in RFC 5997 section 6 stands, xyzzy5461. Most servers are silent to a secret that is not theirs.
RADIUS_STATUS = bytes.fromhex("0c700026") + b"portbook-probe-1" + bytes.fromhex("5012b4fd25912efc8ba5d12ce24b570c3a72")


def _read_radius(reply: bytes) -> str | None:
    code, _, length = struct.unpack_from("!BBH", reply)
    if length != len(reply) or length < 20:
        return None
    return {2: "alive", 5: "alive (accounting)", 3: "rejects"}.get(code)


# --- Kerberos: RFC 4120 --------------------------------------------------------------------------------------------

KERBEROS_REALM = b"PROBE.INVALID"
KERBEROS_ERRORS = {6: "client unknown", 7: "server unknown", 25: "pre-authentication required", 68: "wrong realm"}


def _kerberos_name(kind: int, *parts: bytes) -> bytes:
    strings = _tlv(0xA1, _tlv(0x30, *(_tlv(0x1B, part) for part in parts)))
    return _tlv(0x30, _tlv(0xA0, _integer(kind)), strings)


def _kerberos_request() -> bytes:
    """Ask for a ticket of a realm that cannot exist (RFC 2606)."""
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


def _read_kerberos(reply: bytes) -> str | None:
    (message,) = _values(reply)
    if message.tag != 0x7E:  # KRB-ERROR
        return {0x6B: "grants a ticket"}.get(message.tag)
    fields = {field.tag: field.parts()[0] for field in message.parts()[0].parts()}
    code, realm = fields[0xA6].number(), fields[0xA9].value
    words = KERBEROS_ERRORS.get(code, f"error {code}")
    return words if realm == KERBEROS_REALM else f"realm {_text(realm)}, {words}"


# --- DTLS: RFC 6347 ------------------------------------------------------------------------------------------------

DTLS_VERSIONS = {b"\xfe\xff": "DTLS 1.0", b"\xfe\xfd": "DTLS 1.2"}
DTLS_SUITES = (0xC02B, 0xC02F, 0xC02C, 0xC030, 0xC0AE, 0xC0A8, 0x009C, 0x002F, 0x00AE, 0x00FF)


def _dtls_hello() -> bytes:
    """A ClientHello with the suites of RFC 8422, RFC 7925 (constrained devices) and shared keys."""
    extensions = bytes.fromhex(
        "000a00080006001d00170018"  # supported groups: X25519, P-256, P-384
        "000b00020100"  # point formats: uncompressed
        "000d000e000c040305030804040105010201"  # signatures: ECDSA, PSS, PKCS 1
    )
    suites = struct.pack(f"!H{len(DTLS_SUITES)}H", 2 * len(DTLS_SUITES), *DTLS_SUITES)
    random = b"portbook" * 4
    body = b"\xfe\xfd" + random + b"\0" + b"\0" + suites + b"\x01\0" + struct.pack("!H", len(extensions)) + extensions
    size = struct.pack("!I", len(body))[1:]
    handshake = b"\x01" + size + b"\0\0" + b"\0\0\0" + size + body
    return b"\x16\xfe\xff" + bytes(8) + struct.pack("!H", len(handshake)) + handshake


def _read_dtls(reply: bytes) -> str | None:
    version = DTLS_VERSIONS.get(reply[1:3])
    if version is None or len(reply) < 15:
        return None
    if reply[0] == 21:  # alert
        return f"{version}, alert {reply[14]}"
    if reply[0] != 22 or reply[13] not in (2, 3):  # a handshake: ServerHello, HelloVerifyRequest
        return None
    if reply[13] == 3:
        return "DTLS, asks for a cookie"  # in a version that says nothing (section 4.2.1)
    return DTLS_VERSIONS.get(reply[25:27], version)


# --- BACnet/IP: ASHRAE 135 clauses 15.5 and 20, annex J ------------------------------------------------------------

# ReadProperty of vendor-name (121) of the device with the wildcard instance 4194303, which is whoever is asked.
BACNET_READ = bytes.fromhex("810a0011 0104 0005010c 0c023fffff 1979")


def _read_bacnet(reply: bytes) -> str | None:
    if reply[0] != 0x81 or struct.unpack_from("!H", reply, 2)[0] != len(reply) or reply[4] != 1:
        return None
    kind, start = reply[6] >> 4, reply.find(b"\x3e\x75")  # the value: a character string (clause 20.2.9)
    if kind == 3 and start > 0:  # ComplexACK
        size = reply[start + 2]
        return f"vendor {_text(reply[start + 4 : start + 3 + size])}"
    return {3: "answers", 5: "error", 6: "rejects", 7: "aborts"}.get(kind)


# --- games: developer.valvesoftware.com/wiki/Server_queries --------------------------------------------------------

SOURCE_INFO = b"\xff\xff\xff\xffTSource Engine Query\0"


def _read_source(reply: bytes) -> str | None:
    if reply[:4] != b"\xff\xff\xff\xff" or reply[4:5] not in (b"I", b"A", b"m"):
        return None
    if reply[4:5] == b"A":
        return "asks for a challenge"
    name, level, _, game = reply[6:].split(b"\0", 4)[:4]
    return f"{_text(game)}: {_text(name)} ({_text(level)})"


# --- smaller ones --------------------------------------------------------------------------------------------------

NATPMP_ADDRESS = b"\0\0"  # RFC 6886 section 3.2: the public address
SQL_BROWSER = b"\x03"  # [MC-SQLR] section 2.2.2, CLNT_UCAST_EX
RMCP_PING = bytes.fromhex("0600ff06 000011be 80000000")  # ASF 2.0 (DMTF DSP0136) section 3.2.4.2: presence ping


def _read_natpmp(reply: bytes) -> str | None:
    if len(reply) != 12 or reply[:2] != b"\0\x80":
        return None
    return f"public address {ip_address(reply[8:12])}" if reply[2:4] == b"\0\0" else "refuses"


def _read_sql_browser(reply: bytes) -> str | None:
    if reply[:1] != b"\x05" or struct.unpack_from("<H", reply, 1)[0] != len(reply) - 3:
        return None
    words = _text(reply[3:]).split(";")
    fields = dict(zip(words[::2], words[1::2], strict=False))
    return " ".join(fields.get(name, "?") for name in ("ServerName", "InstanceName", "Version"))


def _read_rmcp(reply: bytes) -> str | None:
    if reply[:9] != RMCP_PING[:8] + b"\x40":  # presence pong
        return None
    return "supports IPMI" if reply[20] & 0x80 else "does not support IPMI"


def _read_anything(reply: bytes) -> str:
    return _text(reply)


def _read_time(reply: bytes) -> str | None:
    """Seconds since 1900 (RFC 868)."""
    return f"{struct.unpack('!I', reply)[0]} s since 1900"


EMPTY = Payload("", (), b"", lambda _: None, "RFC 768: a datagram may be empty")
# RFC 4892 section 3: a name of the class CHAOS that many DNS servers have, and that all of them answer somehow.
DNS_VERSION = Payload(
    "domain", (53,), _dns_question("version.bind", DNS_TXT, DNS_CHAOS), _read_dns, "RFC 1035, RFC 4892"
)
UNKNOWN = (EMPTY, DNS_VERSION)
DTLS_HELLO = _dtls_hello()

# Several questions for one port are asked in the order of this table.
PAYLOADS = (
    Payload("echo", (7,), b"portbook", lambda _: None, "RFC 862"),
    Payload("daytime", (13,), b"", _read_anything, "RFC 867"),
    Payload("qotd", (17,), b"", _read_anything, "RFC 865"),
    Payload("chargen", (19,), b"", _read_anything, "RFC 864"),
    Payload("time", (37,), b"", _read_time, "RFC 868"),
    DNS_VERSION,
    Payload("tftp", (69,), TFTP_READ, _read_tftp, "RFC 1350", elsewhere=True),  # section 4: a new port answers
    Payload("kerberos", (88,), _kerberos_request(), _read_kerberos, "RFC 4120"),
    Payload("sunrpc", (111,), _rpc_call(PORTMAP), _read_rpc, "RFC 1833, RFC 5531"),
    Payload("ntp", (123,), NTP_REQUEST, _read_ntp, "RFC 5905"),
    Payload("netbios-ns", (137,), NETBIOS_STATUS, _read_netbios, "RFC 1002"),
    Payload("snmp", (161,), _snmp_discovery(), _read_snmp, "RFC 3412, RFC 3414"),
    Payload("snmp", (161,), _snmp_get(1), _read_snmp, "RFC 3416, RFC 1901"),
    Payload("snmp", (161,), _snmp_get(0), _read_snmp, "RFC 1157"),
    Payload("cldap", (389,), CLDAP_SEARCH, _read_cldap, "RFC 4511, [MS-ADTS]"),
    Payload("quic", (443, 80, 853, 8443), QUIC_UNKNOWN, _read_quic, "RFC 9000, RFC 9250"),
    Payload("isakmp", (500,), _ike_init(), _read_ike, "RFC 7296"),
    Payload("isakmp", (500,), _ike_main_mode(), _read_ike, "RFC 2408, RFC 2409"),
    Payload("ipsec-nat-t", (4500,), NON_ESP + _ike_init(), _read_ike, "RFC 7296, RFC 3948"),
    Payload("asf-rmcp", (623,), RMCP_PING, _read_rmcp, "DMTF DSP0136"),
    Payload("ms-sql-m", (1434,), SQL_BROWSER, _read_sql_browser, "[MC-SQLR]"),
    Payload("radius", (1812, 1813, 1645, 1646), RADIUS_STATUS, _read_radius, "RFC 5997"),
    Payload("ssdp", (1900,), SSDP_SEARCH, _read_ssdp, "UPnP Device Architecture 2.0, section 1.3", elsewhere=True),
    Payload("nfs", (2049,), _rpc_call(NFS), _read_rpc, "RFC 7530, RFC 5531"),
    Payload("stun", (3478, 5349, 19302), STUN_BINDING, _read_stun, "RFC 8489"),
    Payload("dtls", (4433, 5684, 5349, 2083, 853, 10161), DTLS_HELLO, _read_dtls, "RFC 6347"),
    Payload("sip", (5060,), SIP_OPTIONS, _read_sip, "RFC 3261, RFC 3581"),
    Payload("nat-pmp", (5351,), NATPMP_ADDRESS, _read_natpmp, "RFC 6886"),
    # The top bit of the class asks for an answer to us alone (RFC 6762 section 5.4).
    Payload(
        "mdns",
        (5353,),
        _dns_question("_services._dns-sd._udp.local", DNS_PTR, DNS_IN | 0x8000),
        _read_mdns,
        "RFC 6762, RFC 6763",
    ),
    Payload("coap", (5683,), COAP_GET, _read_coap, "RFC 7252, RFC 6690"),
    Payload("memcache", (11211,), MEMCACHED_VERSION, _read_memcached, "memcached protocol.txt"),
    Payload("source", tuple(range(27015, 27021)), SOURCE_INFO, _read_source, "Valve server queries"),
    Payload("bacnet", (47808,), BACNET_READ, _read_bacnet, "ASHRAE 135"),
)

_BY_PORT: dict[int, tuple[Payload, ...]] = {}
for _payload in PAYLOADS:
    for _port in _payload.ports:
        _BY_PORT[_port] = (*_BY_PORT.get(_port, ()), _payload)
