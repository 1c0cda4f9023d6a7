"""Encrypted protocols: QUIC, IKE, DTLS. Each request is of the unencrypted beginning of the handshake."""

from __future__ import annotations

import struct

# --- QUIC: RFC 9000 sections 6 and 17.2.1, RFC 8999 ----------------------------------------------------------------

QUIC_FROM, QUIC_TO = b"portbook", b"anybody?"
# A reserved version, which forces version negotiation (section 15), in a datagram long enough for it (section 14.1).
QUIC_UNKNOWN = (b"\xc0\x1a\x2a\x3a\x4a" + b"\x08" + QUIC_TO + b"\x08" + QUIC_FROM).ljust(1200, b"\0")
MOST_VERSIONS = 16  # that are looked at
QUIC_NAMES = {1: "v1", 0x6B3343CF: "v2"}  # RFC 9000, RFC 9369


def read_quic(reply: bytes) -> str | None:
    """Return the versions that the server supports."""
    head = b"\0\0\0\0" + b"\x08" + QUIC_FROM + b"\x08" + QUIC_TO
    if not reply[0] & 0x80 or reply[1:23] != head:
        return None
    count = min((len(reply) - 23) // 4, MOST_VERSIONS)
    versions = struct.unpack_from(f"!{count}I", reply, 23)
    known = [version for version in versions if version & 0x0F0F0F0F != 0x0A0A0A0A]  # the others are reserved, as ours
    return "versions " + ", ".join(_quic_name(version) for version in known)


def _quic_name(number: int) -> str:
    if number in QUIC_NAMES:
        return QUIC_NAMES[number]
    is_draft = number >> 8 == 0xFF0000
    return f"draft-{number & 0xFF}" if is_draft else f"{number:#010x}"


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


def ike_init() -> bytes:
    """Return IKE_SA_INIT with AES-CBC-256, SHA-256 and Curve25519 (RFC 8031), with its base point as public key."""
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


def ike_main_mode() -> bytes:
    """Return the first message of IKEv1: AES-128, SHA-1, a shared key, group 2, eight hours (RFC 2409 appendix A)."""
    choices = struct.pack("!14H", 0x8001, 7, 0x800E, 128, 0x8002, 2, 0x8003, 1, 0x8004, 2, 0x800B, 1, 0x800C, 28800)
    transform = struct.pack("!BBHBBH", 0, 0, 8 + len(choices), 1, 1, 0) + choices
    proposal = struct.pack("!BBHBBBB", 0, 0, 8 + len(transform), 1, 1, 0, 1) + transform
    return _ike_header(1, 0x10, 2, 0, _ike_payload(0, struct.pack("!II", 1, 1) + proposal))


def read_ike(reply: bytes) -> str | None:
    """Return the version and the notification."""
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


# --- DTLS: RFC 6347 ------------------------------------------------------------------------------------------------

DTLS_VERSIONS = {b"\xfe\xff": "DTLS 1.0", b"\xfe\xfd": "DTLS 1.2"}
DTLS_SUITES = (0xC02B, 0xC02F, 0xC02C, 0xC030, 0xC0AE, 0xC0A8, 0x009C, 0x002F, 0x00AE, 0x00FF)


def dtls_hello() -> bytes:
    """Return a ClientHello with the suites of RFC 8422, RFC 7925 (constrained devices) and shared keys."""
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


def read_dtls(reply: bytes) -> str | None:
    """Return the version, or the alert."""
    version = DTLS_VERSIONS.get(reply[1:3])
    if version is None or len(reply) < 15:
        return None
    if reply[0] == 21:  # alert
        return f"{version}, alert {reply[14]}"
    if reply[0] != 22 or reply[13] not in (2, 3):  # a handshake: ServerHello, HelloVerifyRequest
        return None
    if reply[13] == 3:
        return "DTLS, asks for a cookie"  # its version says nothing (section 4.2.1)
    return DTLS_VERSIONS.get(reply[25:27], version)
