"""Requests follow their specifications; replies are recognised or ignored, whatever their bytes.

test_engine.py tests replies of real services. The replies here are composed from the specifications, for services
without a daemon that is light enough for a test.
"""

from __future__ import annotations

import hmac
import re
import socket
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.ports import parse_several
from portbook.scanner.udp.payloads import (
    LONGEST_TEXT,
    PAYLOADS,
    UNKNOWN,
    Payload,
    describe_reply,
    for_port,
    recognise,
)
from portbook.scanner.udp.questions import binary
from tests.scanner.udp import fuzz

REQUIRED = {
    *("domain", "mdns", "ntp", "snmp", "ssdp", "netbios-ns", "tftp", "sunrpc", "cldap", "sip", "stun", "quic"),
    *("isakmp", "coap", "memcache", "radius", "kerberos", "dtls", "bacnet", "source"),
}


def payload_of(service: str, number: int = 0) -> Payload:
    return [p for p in PAYLOADS if p.service == service][number]


def tlv(tag: int, *parts: bytes) -> bytes:
    """A second writer of BER, for short values."""
    value = b"".join(parts)
    assert len(value) < 128
    return bytes([tag, len(value)]) + value


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_required_service_has_a_request() -> None:
    assert {p.service for p in PAYLOADS} >= REQUIRED


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: f"{p.service}-{p.ports[0]}")
def test_a_request_names_its_ports_and_specification_and_fits_a_packet(payload: Payload) -> None:
    assert payload.spec
    assert payload.ports
    assert all(0 < port < 65536 for port in payload.ports)
    assert len(payload.data) <= 1232  # the least MTU of IPv6, 1280, less its header and UDP's (RFC 8200 section 5)


def test_snmp_is_probed_in_all_three_versions() -> None:
    versions = [p.data[p.data.index(b"\x02\x01") + 2] for p in for_port(161, 2)]
    assert versions == [3, 1, 0]  # the version field of each: SNMPv3, SNMPv2c, SNMPv1


def test_the_first_attempt_asks_one_question_and_the_second_all() -> None:
    assert len(for_port(161)) == 1
    assert len(for_port(161, 2)) == 3
    assert for_port(53, 2) == for_port(53)


def test_an_unlisted_port_gets_an_empty_and_a_generic_request() -> None:
    assert [for_port(40000, attempt)[0].data for attempt in (1, 2, 3)] == [b"", UNKNOWN[1].data, b""]
    assert UNKNOWN[1].data


# --- questions against their specifications ------------------------------------------------------------------------


def test_dns_query() -> None:  # RFC 1035 section 4.1
    data = payload_of("domain").data
    assert data[2:12] == struct.pack("!5H", 0, 1, 0, 0, 0)
    assert data[12:] == b"\x07version\x04bind\0" + struct.pack("!HH", 16, 3)  # TXT, CHAOS


def test_netbios_question() -> None:  # RFC 1002 section 4.2.17
    assert payload_of("netbios-ns").data[12:] == b"\x20CKAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA\0\0\x21\0\x01"


def test_ntp_question() -> None:  # RFC 5905 section 7.3: version 4, mode 3
    data = payload_of("ntp").data
    assert (len(data), data[0] >> 3 & 7, data[0] & 7) == (48, 4, 3)


def test_quic_question() -> None:  # RFC 9000 sections 14.1 and 15
    data = payload_of("quic").data
    assert len(data) == 1200
    assert data[0] & 0xC0 == 0xC0
    assert all(octet & 0x0F == 0x0A for octet in data[1:5])  # reserved to force version negotiation


def test_stun_question() -> None:  # RFC 8489 section 5
    assert payload_of("stun").data[:8] == bytes.fromhex("000100002112a442")
    assert len(payload_of("stun").data) == 20


def test_radius_question() -> None:  # RFC 5997 section 3, RFC 2869 section 5.14
    data = payload_of("radius").data
    assert data[0] == 12
    assert struct.unpack("!H", data[2:4]) == (len(data),)
    assert data[20:22] == b"\x50\x12"
    assert hmac.digest(b"xyzzy5461", data[:22] + bytes(16), "md5") == data[22:]


def test_the_check_of_radius_agrees_with_the_example_of_the_rfc() -> None:  # RFC 5997 section 6.1
    example = bytes.fromhex("0cda00268a54f4686fb394c52866e302185d062350125a665e2e1e8411f3e243822097c84fa3")
    assert hmac.digest(b"xyzzy5461", example[:22] + bytes(16), "md5") == example[22:]


@pytest.mark.parametrize(("service", "number", "start"), [("isakmp", 0, 0), ("isakmp", 1, 0), ("ipsec-nat-t", 0, 4)])
def test_ike_question(service: str, number: int, start: int) -> None:  # RFC 7296 section 3.1
    data = payload_of(service, number).data[start:]
    assert struct.unpack("!I", data[24:28]) == (len(data),)
    at, following = 28, data[16]
    while following:  # a chain of payloads that ends with the message
        following, size = data[at], struct.unpack("!H", data[at + 2 : at + 4])[0]
        at += size
    assert at == len(data)


def test_dtls_question() -> None:  # RFC 6347 section 4
    data = payload_of("dtls").data
    assert struct.unpack("!H", data[11:13])[0] == len(data) - 13
    assert int.from_bytes(data[14:17], "big") == int.from_bytes(data[22:25], "big") == len(data) - 25


def test_bacnet_question() -> None:  # annex J.2
    assert struct.unpack("!H", payload_of("bacnet").data[2:4])[0] == len(payload_of("bacnet").data)


# --- answers -------------------------------------------------------------------------------------------------------


def dns_answer(kind: int, data: bytes, name: bytes = b"\0", number: int = 0x7062) -> bytes:
    return struct.pack("!6H", number, 0x8400, 0, 1, 0, 0) + name + struct.pack("!HHIH", kind, 1, 0, len(data)) + data


def names(*entries: bytes) -> bytes:
    return bytes([len(entries)]) + b"".join(e.ljust(15) + b"\0\x04\0" for e in entries) + bytes(46)


def kerberos_error(code: int, realm: bytes) -> bytes:
    fields = (
        tlv(0xA0, tlv(2, b"\x05")),
        tlv(0xA1, tlv(2, b"\x1e")),
        tlv(0xA4, tlv(0x18, b"20260101000000Z")),
        tlv(0xA5, tlv(2, b"\x01")),
        tlv(0xA6, tlv(2, bytes([code]))),
        tlv(0xA9, tlv(0x1B, realm)),
    )
    return tlv(0x7E, tlv(0x30, *fields))


def ldap_entry(name: bytes, value: bytes) -> bytes:
    attribute = tlv(0x30, tlv(4, name), tlv(0x31, tlv(4, value)))
    return tlv(0x30, tlv(2, b"\x01"), tlv(0x64, tlv(4), tlv(0x30, attribute)))


LDAP_DONE = tlv(0x30, tlv(2, b"\x01"), tlv(0x65, tlv(0x0A, b"\0"), tlv(4), tlv(4)))
DOCUMENTATION = socket.inet_aton("192.0.2.7")  # RFC 5737
RPC_DENIED = struct.pack("!5I", binary.RPC_ID, 1, 1, 1, 1)
SQL_INSTANCE = b"ServerName;DB1;InstanceName;MAIN;IsClustered;No;Version;16.0.1000.6;;"


def bacnet_string(text: bytes) -> bytes:
    """A ComplexACK of ReadProperty with a character string in UTF-8 (clauses 20.1.5 and 20.2.9)."""
    value = b"\x3e\x75" + bytes([1 + len(text), 0]) + text + b"\x3f"
    body = bytes.fromhex("0100 30010c 0c023fffff 1979") + value
    return b"\x81\x0a" + struct.pack("!H", 4 + len(body)) + body


REPLIES = {
    ("domain", "not implemented"): struct.pack("!6H", 0x7062, 0x8004, 0, 0, 0, 0),
    ("domain", "version dnsd 1"): dns_answer(16, b"\x06dnsd 1"),
    ("mdns", "services: _ipp._tcp"): dns_answer(12, b"\x04_ipp\x04_tcp\x05local\0"),
    ("mdns", "no services"): struct.pack("!6H", 0, 0x8400, 0, 0, 0, 0),
    ("netbios-ns", "names: OFFICE, WORKGROUP"): dns_answer(0x21, names(b"OFFICE", b"WORKGROUP")),
    ("ntp", "NTP version 4, stratum 1, reference GPS, not synchronised"): b"\xe4\x01"
    + bytes(10)
    + b"GPS\0"
    + bytes(8)
    + b"portbook"
    + bytes(16),
    ("kerberos", "realm EXAMPLE.ORG, wrong realm"): kerberos_error(68, b"EXAMPLE.ORG"),
    ("kerberos", "client unknown"): kerberos_error(6, b"PROBE.INVALID"),
    ("kerberos", "error 60"): kerberos_error(60, b"PROBE.INVALID"),
    ("cldap", "dnsHostName dc1.example.org"): ldap_entry(b"dnsHostName", b"dc1.example.org") + LDAP_DONE,
    ("cldap", "result 0"): LDAP_DONE,
    ("sunrpc", "denied"): RPC_DENIED,
    ("sip", "Example PBX 2.1 (200 OK)"): b"SIP/2.0 200 OK\r\nServer: Example PBX 2.1\r\n\r\n",
    ("sip", "483 Too Many Hops"): b"SIP/2.0 483 Too Many Hops\r\n\r\n",
    ("ssdp", "OS/1 UPnP/1.1 product/2"): b"HTTP/1.1 200 OK\r\nSERVER: OS/1 UPnP/1.1 product/2\r\n\r\n",
    ("bacnet", "vendor Example"): bacnet_string(b"Example"),
    ("bacnet", "error"): bytes.fromhex("810a000d 0100 50010c 91029120"),
    ("source", "asks for a challenge"): b"\xff\xff\xff\xffA\x01\x02\x03\x04",
    ("source", "Game: A server (map)"): b"\xff\xff\xff\xffI\x11A server\0map\0folder\0Game\0\0\0",
    ("nat-pmp", "public address 192.0.2.7"): struct.pack("!BBHI", 0, 128, 0, 1) + DOCUMENTATION,
    ("nat-pmp", "refuses"): struct.pack("!BBHI", 0, 128, 2, 1) + bytes(4),
    ("ms-sql-m", "DB1 MAIN 16.0.1000.6"): b"\x05" + struct.pack("<H", len(SQL_INSTANCE)) + SQL_INSTANCE,
    ("asf-rmcp", "supports IPMI"): bytes.fromhex("0600ff06 000011be 40000010 000011be 00000000 81") + bytes(7),
    ("time", "2208988800 s since 1900"): struct.pack("!I", 2208988800),
    ("daytime", "Tuesday, February 22, 1982 17:37:43-PST"): b"Tuesday, February 22, 1982 17:37:43-PST\r\n",
    ("dtls", "DTLS 1.2, alert 40"): bytes.fromhex("15fefd 0000000000000000 0002 0228"),
    ("isakmp", "IKEv2"): b"portbook" + b"responds" + struct.pack("!BBBBII", 33, 0x20, 34, 0x20, 0, 28),
    ("tftp", "acknowledges options"): b"\0\x06blksize\x001024\0",
    ("quic", "versions v2, draft-29, 0x51303530"): b"\x80" + bytes(4) + b"\x08portbook\x08anybody?"
    + struct.pack("!4I", 0x6B3343CF, 0xFF00001D, 0x51303530, 0x0A0A0A0A),
    ("echo", "sends back what it receives"): b"portbook",
    ("coap", "4.04"): b"\x60\x84pb",
    ("stun", "refused"): struct.pack("!HHI", 0x0111, 0, 0x2112A442) + b"portbook-ask",
    ("radius", "alive"): struct.pack("!BBH16s", 2, 0x70, 20, bytes(16)),
    ("snmp", "SNMPv3, engine 8000000a01, up 7 s, boots 2, enterprise 10"): tlv(
        0x30,
        tlv(2, b"\x03"),
        tlv(0x30),
        tlv(4, tlv(0x30, tlv(4, bytes.fromhex("8000000a01")), tlv(2, b"\x02"), tlv(2, b"\x07"))),
        tlv(0x30, tlv(4), tlv(4), tlv(0xA8)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("service", "text"), REPLIES)
def test_a_reply_is_recognised(service: str, text: str) -> None:
    requests = [p for p in PAYLOADS if p.service == service]
    recognised = recognise(REPLIES[service, text], requests)
    assert recognised is not None
    assert (recognised.service, recognised.text) == (service, text)


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if p.data], ids=lambda p: f"{p.service}-{p.ports[0]}")
def test_a_port_that_sends_back_the_request_is_an_echo_and_not_the_service(payload: Payload) -> None:
    recognised = recognise(payload.data, [payload])
    assert recognised is not None
    assert recognised.service == "echo"
    # The readers do not recognise a request either, except the one of the old services that reads any text.
    assert recognise(payload.data + b"\0", [payload]) is None


@pytest.mark.parametrize(("service", "text"), REPLIES)
def test_a_reply_is_not_taken_for_that_of_another_service(service: str, text: str) -> None:
    """Only of protocols with some structure; text, lengths and single types match many replies."""
    others = [
        p for p in PAYLOADS if p.service in ("ntp", "quic", "stun", "snmp", "sunrpc", "coap", "kerberos", "cldap")
    ]
    recognised = recognise(REPLIES[service, text], [p for p in others if p.service != service])
    assert recognised is None


# --- whatever comes ------------------------------------------------------------------------------------------------


def check(reply: bytes) -> None:
    for payload in (*PAYLOADS, *UNKNOWN):
        recognised = recognise(reply, [payload])
        if recognised is not None:
            assert recognised.service
            assert len(recognised.text) <= LONGEST_TEXT
            assert recognised.text.isprintable()
    assert describe_reply(reply).isprintable()


@given(st.binary(max_size=200))
def test_readers_take_any_bytes(reply: bytes) -> None:
    check(reply)


@given(st.sampled_from(sorted(REPLIES.values())), st.data())
def test_readers_take_damaged_answers(reply: bytes, data: st.DataObject) -> None:
    damaged = bytearray(reply[: data.draw(st.integers(0, len(reply)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(damaged))


@given(st.lists(st.integers(0, 255), max_size=40))
def test_compressed_names_do_not_go_in_circles(tail: list[int]) -> None:
    """Pointers to themselves, to one another, forwards (RFC 1035 section 4.1.4)."""
    head = struct.pack("!6H", 0x7062, 0x8400, 1, 3, 0, 0)
    for start in (b"\xc0\x0c", b"\xc0\x0e\xc0\x0c", b"\x01a\xc0\x0c"):
        check(head + start + bytes(tail))


def test_no_reply_takes_long() -> None:
    """A datagram of 65,507 bytes must not cost a second, or a deadline is none: see fuzz.py."""
    slowest = max(fuzz.check(reply) for reply in fuzz.replies(200, tuple(REPLIES.values())))
    assert slowest < fuzz.CPU_LIMIT_S


@pytest.mark.parametrize("size", [255, 256])
def test_a_name_has_at_most_255_octets(size: int) -> None:  # RFC 1035 section 3.1
    labels = (b"\x3f" + b"a" * 63) * 3 + bytes([size - 194]) + b"b" * (size - 194)
    reply = (
        struct.pack("!6H", 0x7062, 0x8400, 0, 1, 0, 0) + b"\0" + struct.pack("!HHIH", 12, 1, 0, size) + labels + b"\0"
    )
    recognised = recognise(reply, [payload_of("mdns")])
    assert (recognised is not None) == (size == 255)


@pytest.mark.parametrize("length", [b"\x40", b"\x80"])
def test_a_label_has_at_most_63_octets(length: bytes) -> None:  # RFC 1035 section 4.1.4: 01 and 10 are reserved
    reply = struct.pack("!6H", 0x7062, 0x8400, 0, 1, 0, 0) + length + b"a" * length[0] + b"\0" + bytes(10)
    assert recognise(reply, [payload_of("mdns")]) is None


def test_any_reply_becomes_one_printable_line() -> None:
    recognised = recognise(b"VERSION 1\x1b[31m\r\n\xff" * 100, [payload_of("daytime")])
    assert recognised is not None
    assert recognised.text.startswith("VERSION 1 [31m")
    assert len(recognised.text) <= LONGEST_TEXT


def test_an_unknown_reply_is_described() -> None:
    assert describe_reply(b"hi\0there") == "8 bytes: hi.there"
    assert describe_reply(b"") == "an empty datagram"


def test_the_page_lists_every_service_with_its_ports() -> None:
    page = (Path(__file__).parents[3] / "docs" / "probe.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` \| ([0-9, -]+) \|", page, re.MULTILINE))
    in_page = {
        service: {n for ports in parse_several(text.replace(" ", "")) for n in range(ports.first, ports.last + 1)}
        for service, text in listed.items()
    }
    in_table: dict[str, set[int]] = {}
    for payload in PAYLOADS:
        in_table.setdefault(payload.service, set()).update(payload.ports)
    assert in_page == in_table
