"""DER (X.690): values inside values, read with bounds. Only what certificates have; nothing here recurses."""

from __future__ import annotations

from datetime import UTC, datetime

from msgspec import Struct

BOOLEAN, INTEGER, BIT_STRING, OCTET_STRING, OID = 0x01, 0x02, 0x03, 0x04, 0x06
SEQUENCE, SET = 0x30, 0x31
UTC_TIME, GENERALIZED_TIME = 0x17, 0x18
# Types of text and their encoding. TeletexString is T.61 in theory and Latin-1 in practice.
ENCODINGS = {
    0x0C: "utf-8",
    0x12: "ascii",  # NumericString
    0x13: "ascii",  # PrintableString
    0x14: "latin-1",  # TeletexString
    0x16: "ascii",  # IA5String
    0x1A: "ascii",  # VisibleString
    0x1B: "latin-1",  # GeneralString
    0x1C: "utf-32-be",  # UniversalString
    0x1E: "utf-16-be",  # BMPString
}
MOST_LENGTH_OCTETS = 4
MOST_OID_OCTETS = 128


class DerValue(Struct, frozen=True, gc=False):
    """A value: its tag, its content, and all its octets."""

    tag: int
    content: bytes
    encoded: bytes

    def parts(self) -> list[DerValue]:
        """The values inside a constructed one; raise ValueError."""
        return read_all(self.content)

    def expect(self, tag: int) -> DerValue:
        """The value itself, if it has the tag; raise ValueError."""
        if self.tag != tag:
            raise ValueError(f"tag {self.tag:#x} instead of {tag:#x}")
        return self


def read_all(data: bytes) -> list[DerValue]:
    """Read values, one behind the other; raise ValueError when one is cut short or is not DER."""
    values: list[DerValue] = []
    at = 0
    while at < len(data):
        value = _read(data, at)
        values.append(value)
        at += len(value.encoded)
    return values


def read_one(data: bytes) -> DerValue:
    """Read the first value; raise ValueError."""
    return _read(data, 0)


def _read(data: bytes, start: int) -> DerValue:
    if start + 2 > len(data):
        raise ValueError("cut short")
    tag, length = data[start], data[start + 1]
    at = start + 2
    if tag & 0x1F == 0x1F:
        raise ValueError("a tag of several octets")
    if length >= 0x80:
        octets = length & 0x7F
        if not 1 <= octets <= MOST_LENGTH_OCTETS or at + octets > len(data):
            raise ValueError("an indefinite or too long length")
        length = int.from_bytes(data[at : at + octets], "big")
        at += octets
    if at + length > len(data):
        raise ValueError("cut short")
    return DerValue(tag, data[at : at + length], data[start : at + length])


def oid_text(content: bytes) -> str:
    """An object identifier as dotted numbers; raise ValueError (X.690 section 8.19)."""
    if not content or len(content) > MOST_OID_OCTETS or content[-1] & 0x80:
        raise ValueError("not an object identifier")
    numbers: list[int] = []
    number = 0
    for octet in content:
        number = number << 7 | octet & 0x7F
        if not octet & 0x80:
            numbers.append(number)
            number = 0
    first = min(numbers[0] // 40, 2)
    return ".".join(str(n) for n in (first, numbers[0] - 40 * first, *numbers[1:]))


def text_of(value: DerValue) -> str | None:
    """The text of a value; None when it is no text, or is not encoded as its type requires."""
    encoding = ENCODINGS.get(value.tag)
    if encoding is None:
        return None
    try:
        return value.content.decode(encoding)
    except UnicodeDecodeError:
        return None


def time_of(value: DerValue) -> datetime:
    """A UTCTime or GeneralizedTime as RFC 5280 section 4.1.2.5 allows them; raise ValueError."""
    text = value.content.decode("ascii")
    if value.tag == UTC_TIME and len(text) == 13:
        year = int(text[:2])
        text = f"{1900 + year if year >= 50 else 2000 + year}{text[2:]}"
    elif value.tag != GENERALIZED_TIME:
        raise ValueError("not a time")
    if len(text) != 15 or not text[:14].isdigit() or text[14] != "Z":
        raise ValueError("not a time in UTC")
    month, day, hour, minute, second = (int(text[at : at + 2]) for at in range(4, 14, 2))
    return datetime(int(text[:4]), month, day, hour, minute, second, tzinfo=UTC)
