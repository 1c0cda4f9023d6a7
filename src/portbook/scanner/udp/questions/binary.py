"""Protocols with binary headers of fixed size: NTP, TFTP, ONC RPC, STUN, CoAP, RADIUS, BACnet and others."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from portbook.scanner.udp.questions import as_text

# --- NTP: RFC 5905 -------------------------------------------------------------------------------------------------

NTP_TRANSMITTED = b"portbook"  # any value that a server has to return (section 7.3: origin timestamp)
NTP_REQUEST = b"\x23" + bytes(39) + NTP_TRANSMITTED  # leap 0, version 4, mode 3 (client)


def read_ntp(reply: bytes) -> str | None:
    """Return version, stratum, and the reference of the clock."""
    if len(reply) < 48 or reply[0] & 7 != 4 or reply[24:32] != NTP_TRANSMITTED:  # mode 4: server
        return None
    stratum, reference = reply[1], reply[12:16]
    source = str(ip_address(reference))
    if stratum < 2:  # a kiss code, or the name of a clock, in ASCII (sections 7.3 and 7.4)
        source = as_text(reference.rstrip(b"\0"))
    text = f"NTP version {reply[0] >> 3 & 7}, stratum {stratum}, reference {source}"
    if reply[0] >> 6 == 3:
        text += ", not synchronised"
    return text


# --- TFTP: RFC 1350 ------------------------------------------------------------------------------------------------

TFTP_READ = b"\0\x01" + b"portbook-asks-if-you-are-there" + b"\0octet\0"


def read_tftp(reply: bytes) -> str | None:
    """Return the error that a missing file gets."""
    kind = reply[1] if reply[:1] == b"\0" else 0
    if kind == 5 and len(reply) > 4:  # ERROR
        return f"error {reply[3]}: {as_text(reply[4:].rstrip(bytes(1)))}"
    return {3: "sends the file", 6: "acknowledges options"}.get(kind)  # DATA, OACK (RFC 2347)


# --- ONC RPC: RFC 5531, RFC 1833, RFC 7530 -------------------------------------------------------------------------

RPC_ID = 0x70627062
PORTMAP, NFS = 100000, 100003


def rpc_call(program: int) -> bytes:
    """Return a call of procedure 0 of a version that does not exist: the error names those that do."""
    no_authentication = bytes(16)
    return struct.pack("!6I", RPC_ID, 0, 2, program, 0xFFFFFFFF, 0) + no_authentication


def read_rpc(reply: bytes) -> str | None:
    """Return the versions that the server supports."""
    number, kind, status, _, length = struct.unpack_from("!5I", reply)
    if number != RPC_ID or kind != 1:  # REPLY
        return None
    if status != 0:  # MSG_DENIED
        return "denied"
    (accept,) = struct.unpack_from("!I", reply, 20 + length)
    if accept == 2:  # PROG_MISMATCH
        low, high = struct.unpack_from("!II", reply, 24 + length)
        return f"versions {low} to {high}"
    return {0: "success", 1: "no such program"}.get(accept, f"status {accept}")


# --- STUN: RFC 8489 ------------------------------------------------------------------------------------------------

STUN_COOKIE = 0x2112A442
STUN_TRANSACTION = b"portbook-ask"
STUN_BINDING = struct.pack("!HHI", 1, 0, STUN_COOKIE) + STUN_TRANSACTION
STUN_SOFTWARE = 0x8022
MOST_ATTRIBUTES = 64  # that are looked at


def read_stun(reply: bytes) -> str | None:
    """Return the software, or that there is a binding."""
    kind, length, cookie = struct.unpack_from("!HHI", reply)
    if kind not in (0x0101, 0x0111) or cookie != STUN_COOKIE or reply[8:20] != STUN_TRANSACTION:
        return None
    at = 20
    for _ in range(MOST_ATTRIBUTES):
        if at + 4 > min(20 + length, len(reply)):
            break
        attribute, size = struct.unpack_from("!HH", reply, at)
        if attribute == STUN_SOFTWARE:
            return as_text(reply[at + 4 : at + 4 + size])
        at += 4 + (size + 3 & ~3)
    return "binding" if kind == 0x0101 else "refused"


# --- CoAP: RFC 7252, RFC 6690 --------------------------------------------------------------------------------------

COAP_ID = b"pb"
# Confirmable GET of /.well-known/core, the list of resources; options are Uri-Path (11), delta and length in a byte.
COAP_GET = b"\x40\x01" + COAP_ID + b"\xbb.well-known" + b"\x04core"


def read_coap(reply: bytes) -> str | None:
    """Return the list of resources."""
    if reply[2:4] != COAP_ID or not (reply[0] == 0x60 or reply[:2] == b"\x70\0"):  # version 1: an ACK, or an empty RST
        return None
    _, marker, content = reply.partition(b"\xff")
    code = f"{reply[1] >> 5}.{reply[1] & 31:02}"
    if not marker:
        return code
    return f"{code} {as_text(content)}"


# --- RADIUS: RFC 5997, RFC 2865 ------------------------------------------------------------------------------------

# Status-Server with a Message-Authenticator (RFC 2869 section 5.14): an HMAC with the shared secret, here that of the
# examples in RFC 5997 section 6, xyzzy5461. Most servers do not answer a request with another secret than their own.
RADIUS_STATUS = bytes.fromhex("0c700026") + b"portbook-probe-1" + bytes.fromhex("5012b4fd25912efc8ba5d12ce24b570c3a72")


def read_radius(reply: bytes) -> str | None:
    """Return that the server is alive."""
    code, _, length = struct.unpack_from("!BBH", reply)
    if length != len(reply) or length < 20:
        return None
    return {2: "alive", 5: "alive (accounting)", 3: "rejects"}.get(code)


# --- BACnet/IP: ASHRAE 135 clauses 15.5 and 20, annex J ------------------------------------------------------------

# ReadProperty of vendor-name (121) of the device with the wildcard instance 4194303, which every device answers.
BACNET_READ = bytes.fromhex("810a0011 0104 0005010c 0c023fffff 1979")


def read_bacnet(reply: bytes) -> str | None:
    """Return the vendor of a device."""
    if reply[0] != 0x81 or struct.unpack_from("!H", reply, 2)[0] != len(reply) or reply[4] != 1:
        return None
    kind, start = reply[6] >> 4, reply.find(b"\x3e\x75")  # the value: a character string (clause 20.2.9)
    if kind == 3 and start > 0:  # ComplexACK
        size = reply[start + 2]
        return f"vendor {as_text(reply[start + 4 : start + 3 + size])}"
    return {3: "answers", 5: "error", 6: "rejects", 7: "aborts"}.get(kind)


# --- games: developer.valvesoftware.com/wiki/Server_queries --------------------------------------------------------

SOURCE_INFO = b"\xff\xff\xff\xffTSource Engine Query\0"


def read_source(reply: bytes) -> str | None:
    """Return game, name and map of a server."""
    if reply[:4] != b"\xff\xff\xff\xff" or reply[4:5] not in (b"I", b"A", b"m"):
        return None
    if reply[4:5] == b"A":
        return "asks for a challenge"
    name, level, _, game = reply[6:].split(b"\0", 4)[:4]
    return f"{as_text(game)}: {as_text(name)} ({as_text(level)})"


# --- short ones ----------------------------------------------------------------------------------------------------

NATPMP_ADDRESS = b"\0\0"  # RFC 6886 section 3.2: the public address
SQL_BROWSER = b"\x03"  # [MC-SQLR] section 2.2.2, CLNT_UCAST_EX
MOST_WORDS = 64  # of its reply: the description of the first instance has fewer
RMCP_PING = bytes.fromhex("0600ff06 000011be 80000000")  # ASF 2.0 (DMTF DSP0136) section 3.2.4.2: presence ping


def read_natpmp(reply: bytes) -> str | None:
    """Return the public address of a router."""
    if len(reply) != 12 or reply[:2] != b"\0\x80":
        return None
    if reply[2:4] != b"\0\0":
        return "refuses"
    return f"public address {ip_address(reply[8:12])}"


def read_sql_browser(reply: bytes) -> str | None:
    """Return server, instance and version."""
    if reply[:1] != b"\x05" or struct.unpack_from("<H", reply, 1)[0] != len(reply) - 3:
        return None
    words = as_text(reply[3:]).split(";", MOST_WORDS)
    fields = dict(zip(words[::2], words[1::2], strict=False))
    return " ".join(fields.get(name, "?") for name in ("ServerName", "InstanceName", "Version"))


def read_rmcp(reply: bytes) -> str | None:
    """Return whether the device supports IPMI."""
    if reply[:9] != RMCP_PING[:8] + b"\x40":  # presence pong
        return None
    return "supports IPMI" if reply[20] & 0x80 else "does not support IPMI"


def read_time(reply: bytes) -> str | None:
    """Return the seconds since 1900 (RFC 868)."""
    return f"{struct.unpack('!I', reply)[0]} s since 1900"
