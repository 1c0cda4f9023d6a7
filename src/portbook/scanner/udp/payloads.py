"""What to send to a UDP port so that a service there replies, and how to recognise its reply.

A UDP service replies only to requests of its own protocol. PAYLOADS is a table of such requests: each is the smallest
in its specification that requests nothing secret and changes nothing. A port that is not in the table gets an empty
datagram, then a DNS query, because DNS is the most frequent service on unusual ports.

Identifiers inside the requests are constants: all probes of a port send the same bytes, and a packet capture shows
whose they are. Readers get bytes that a stranger chose: a reply that they do not understand is not recognised, never an
error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import NamedTuple

from portbook.scanner.udp.questions import asn1, binary, dns, secured, texts

Reader = Callable[[bytes], "str | None"]  # describes a reply in one line; None: it is not of this protocol

LONGEST_TEXT = 120  # characters of a reply that are shown


class Payload(NamedTuple):
    """One request, and how its reply is read."""

    service: str  # its name in the IANA registry, where it has one
    ports: tuple[int, ...]
    data: bytes
    read: Reader
    spec: str
    from_other_port: bool = False  # the reply comes from another port of the target


class RecognisedService(NamedTuple):
    """The service that replied, and a summary of its reply."""

    service: str
    text: str


def for_port(port: int, attempt: int = 1) -> tuple[Payload, ...]:
    """Return what to send to a port: first the best request alone, so that a closed port has to refuse only one.

    Later attempts send every request for the port; to an unlisted port, the empty and the generic one in turn.
    """
    known = _BY_PORT.get(port)
    if known is None:
        return (UNKNOWN[(attempt - 1) % len(UNKNOWN)],)
    return known[:1] if attempt == 1 else known


def recognise(reply: bytes, requests: Iterable[Payload]) -> RecognisedService | None:
    """Return the service that sent a reply; None if it answers none of the requests."""
    for payload in requests:
        if reply == payload.data and reply:
            return RecognisedService("echo", "sends back what it receives")
        try:
            text = payload.read(reply)
        except (IndexError, ValueError, struct.error):  # cut short, or something else altogether
            continue
        if text is not None:
            return RecognisedService(payload.service, _one_line(text))
    return None


READABLE = bytes(byte if 32 <= byte < 127 else ord(".") for byte in range(256))


def describe_reply(reply: bytes) -> str:
    """Describe a reply of an unknown service: its length and the readable part of its beginning."""
    if not reply:
        return "an empty datagram"
    start = reply[:32].translate(READABLE).decode("ascii")
    return f"{len(reply)} bytes: {start}"


def _one_line(text: str) -> str:
    """Return one line of bounded length, with spaces for everything that cannot be printed."""
    printable = "".join(char if char.isprintable() else " " for char in text[: 4 * LONGEST_TEXT])
    return " ".join(printable.split())[:LONGEST_TEXT]


EMPTY = Payload("", (), b"", lambda _: None, "RFC 768: a datagram may be empty")
# RFC 4892 section 3: a name of the class CHAOS that many DNS servers have, and that all of them respond to.
DNS_VERSION = Payload(
    "domain", (53,), dns.query("version.bind", dns.DNS_TXT, dns.DNS_CHAOS), dns.read_dns, "RFC 1035, RFC 4892"
)
UNKNOWN = (EMPTY, DNS_VERSION)

# Several requests for one port are sent in the order of this table.
PAYLOADS = (
    Payload("echo", (7,), b"portbook", lambda _: None, "RFC 862"),
    Payload("daytime", (13,), b"", texts.read_anything, "RFC 867"),
    Payload("qotd", (17,), b"", texts.read_anything, "RFC 865"),
    Payload("chargen", (19,), b"", texts.read_anything, "RFC 864"),
    Payload("time", (37,), b"", binary.read_time, "RFC 868"),
    DNS_VERSION,
    # RFC 1350 section 4: the reply comes from a new port.
    Payload("tftp", (69,), binary.TFTP_READ, binary.read_tftp, "RFC 1350", from_other_port=True),
    Payload("kerberos", (88,), asn1.kerberos_request(), asn1.read_kerberos, "RFC 4120"),
    Payload("sunrpc", (111,), binary.rpc_call(binary.PORTMAP), binary.read_rpc, "RFC 1833, RFC 5531"),
    Payload("ntp", (123,), binary.NTP_REQUEST, binary.read_ntp, "RFC 5905"),
    Payload("netbios-ns", (137,), dns.NETBIOS_STATUS, dns.read_netbios, "RFC 1002"),
    Payload("snmp", (161,), asn1.snmp_discovery(), asn1.read_snmp, "RFC 3412, RFC 3414"),
    Payload("snmp", (161,), asn1.snmp_get(1), asn1.read_snmp, "RFC 3416, RFC 1901"),
    Payload("snmp", (161,), asn1.snmp_get(0), asn1.read_snmp, "RFC 1157"),
    Payload("cldap", (389,), asn1.CLDAP_SEARCH, asn1.read_cldap, "RFC 4511, [MS-ADTS]"),
    Payload("quic", (443, 80, 853, 8443), secured.QUIC_UNKNOWN, secured.read_quic, "RFC 9000, RFC 9250"),
    Payload("isakmp", (500,), secured.ike_init(), secured.read_ike, "RFC 7296"),
    Payload("isakmp", (500,), secured.ike_main_mode(), secured.read_ike, "RFC 2408, RFC 2409"),
    Payload("ipsec-nat-t", (4500,), secured.NON_ESP + secured.ike_init(), secured.read_ike, "RFC 7296, RFC 3948"),
    Payload("asf-rmcp", (623,), binary.RMCP_PING, binary.read_rmcp, "DMTF DSP0136"),
    Payload("ms-sql-m", (1434,), binary.SQL_BROWSER, binary.read_sql_browser, "[MC-SQLR]"),
    Payload("radius", (1812, 1813, 1645, 1646), binary.RADIUS_STATUS, binary.read_radius, "RFC 5997"),
    Payload(
        "ssdp",
        (1900,),
        texts.SSDP_SEARCH,
        texts.read_ssdp,
        "UPnP Device Architecture 2.0, section 1.3",
        from_other_port=True,
    ),
    Payload("nfs", (2049,), binary.rpc_call(binary.NFS), binary.read_rpc, "RFC 7530, RFC 5531"),
    Payload("stun", (3478, 5349, 19302), binary.STUN_BINDING, binary.read_stun, "RFC 8489"),
    Payload("dtls", (4433, 5684, 5349, 2083, 853, 10161), secured.dtls_hello(), secured.read_dtls, "RFC 6347"),
    Payload("sip", (5060,), texts.SIP_OPTIONS, texts.read_sip, "RFC 3261, RFC 3581"),
    Payload("nat-pmp", (5351,), binary.NATPMP_ADDRESS, binary.read_natpmp, "RFC 6886"),
    # The top bit of the class asks for a unicast response (RFC 6762 section 5.4).
    Payload(
        "mdns",
        (5353,),
        dns.query("_services._dns-sd._udp.local", dns.DNS_PTR, dns.DNS_IN | 0x8000),
        dns.read_mdns,
        "RFC 6762, RFC 6763",
    ),
    Payload("coap", (5683,), binary.COAP_GET, binary.read_coap, "RFC 7252, RFC 6690"),
    Payload("memcache", (11211,), texts.MEMCACHED_VERSION, texts.read_memcached, "memcached protocol.txt"),
    Payload("source", tuple(range(27015, 27021)), binary.SOURCE_INFO, binary.read_source, "Valve server queries"),
    Payload("bacnet", (47808,), binary.BACNET_READ, binary.read_bacnet, "ASHRAE 135"),
)

_BY_PORT: dict[int, tuple[Payload, ...]] = {}
for _payload in PAYLOADS:
    for _port in _payload.ports:
        _BY_PORT[_port] = (*_BY_PORT.get(_port, ()), _payload)
