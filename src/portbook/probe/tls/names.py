"""Names in certificates as text: distinguished names (RFC 4514) and every kind of general name (RFC 5280 4.2.1.6)."""

from __future__ import annotations

from portbook.addresses import address_text
from portbook.probe.tls import der
from portbook.probe.tls.der import DerValue

# Attribute types with a registered short name: RFC 4514 section 3, RFC 4519, RFC 2985, the EV guidelines of the
# CA/Browser Forum section 9.2.
ATTRIBUTES = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "STREET",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.15": "businessCategory",
    "2.5.4.17": "postalCode",
    "2.5.4.42": "GN",
    "2.5.4.46": "dnQualifier",
    "2.5.4.97": "organizationIdentifier",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.3.6.1.4.1.311.60.2.1.1": "jurisdictionL",
    "1.3.6.1.4.1.311.60.2.1.2": "jurisdictionST",
    "1.3.6.1.4.1.311.60.2.1.3": "jurisdictionC",
}
SPECIAL = frozenset('"+,;<>\\')  # RFC 4514 section 2.4
# otherName: the types that have a name (RFC 8398, RFC 4985, RFC 6120 section 13.7.1.4, [MS-WCCE]).
OTHER_NAMES = {
    "1.3.6.1.4.1.311.20.2.3": "UPN",
    "1.3.6.1.5.5.7.8.5": "XMPP",
    "1.3.6.1.5.5.7.8.7": "SRV",
    "1.3.6.1.5.5.7.8.9": "email",
}
# GeneralName, the tags of its choices.
OTHER, EMAIL, DNS, X400, DIRECTORY, EDI, URI, IP, REGISTERED = 0xA0, 0x81, 0x82, 0xA3, 0xA4, 0xA5, 0x86, 0x87, 0x88
LABELS = {
    OTHER: "other",
    EMAIL: "email",
    X400: "X400",
    DIRECTORY: "directory",
    EDI: "EDI",
    URI: "URI",
    REGISTERED: "ID",
}
MOST_HEX_OCTETS = 64


def distinguished_name(name: DerValue) -> str:
    """A Name, the most specific part first; raise ValueError."""
    parts = [_relative(part.expect(der.SET)) for part in name.expect(der.SEQUENCE).parts()]
    return ",".join(reversed(parts))


def _relative(part: DerValue) -> str:
    return "+".join(_attribute(attribute.expect(der.SEQUENCE)) for attribute in part.parts())


def _attribute(attribute: DerValue) -> str:
    kind, value = attribute.parts()
    oid = der.oid_text(kind.expect(der.OID).content)
    name, text = ATTRIBUTES.get(oid), der.text_of(value)
    if name is None or text is None:  # RFC 4514 section 2.4: hexadecimal, of the whole value
        return f"{name or oid}={_hex(value.encoded)}"
    return f"{name}={escaped(text)}"


def escaped(text: str) -> str:
    """The value of an attribute as RFC 4514 section 2.4 has it, with control characters as hexadecimal, too."""
    characters = [_escape(character) for character in text]
    if text[:1] in (" ", "#"):
        characters[0] = "\\" + text[0]
    if len(text) > 1 and text[-1] == " ":
        characters[-1] = "\\ "
    return "".join(characters)


def _escape(character: str) -> str:
    if character in SPECIAL:
        return "\\" + character
    if character < " " or character == "\x7f":
        return f"\\{ord(character):02X}"
    return character


def general_name(name: DerValue) -> str:
    """A GeneralName: a DNS name or an address as it is, any other with its kind in front. Never raises."""
    try:
        return _general_name(name)
    except ValueError:
        return f"{LABELS.get(name.tag, 'unknown')}:{_hex(name.content)}"


def _general_name(name: DerValue) -> str:
    if name.tag == DNS:
        return name.content.decode("ascii")
    if name.tag == IP:
        return ip_text(name.content)
    if name.tag in (EMAIL, URI):
        return f"{LABELS[name.tag]}:{name.content.decode('ascii')}"
    if name.tag == DIRECTORY:
        return f"directory:{distinguished_name(der.read_one(name.content))}"
    if name.tag == REGISTERED:
        return f"ID:{der.oid_text(name.content)}"
    if name.tag == OTHER:
        return _other_name(name)
    raise ValueError("shown as hexadecimal")


def _other_name(name: DerValue) -> str:
    kind, value = name.parts()
    oid = der.oid_text(kind.expect(der.OID).content)
    inner = der.read_one(value.content)
    text = der.text_of(inner)
    if text is None:
        text = _hex(inner.encoded)
    if oid in OTHER_NAMES:
        return f"{OTHER_NAMES[oid]}:{text}"
    return f"other:{oid}:{text}"


def ip_text(packed: bytes) -> str:
    """An address, or an address and its mask as name constraints have it; raise ValueError."""
    if len(packed) in (4, 16):
        return address_text(packed)
    if len(packed) in (8, 32):
        half = len(packed) // 2
        bits = int.from_bytes(packed[half:], "big").bit_count()
        return f"{address_text(packed[:half])}/{bits}"
    raise ValueError("not an address")


def _hex(data: bytes) -> str:
    text = "#" + data[:MOST_HEX_OCTETS].hex().upper()
    return text + "…" if len(data) > MOST_HEX_OCTETS else text
