"""The hash chain over the history: which bytes are hashed, and where a chain breaks. Pure.

Every row of the history has a hash (SHA-256, FIPS 180-4) of the hash before it and of everything else in the row. So
nobody can alter, remove or insert a row without making every hash after it anew. Who may write the
file can do that, and can cut off its end: both are found only by who keeps an *anchor*, a sequence and its hash, in
another place.
"""

from __future__ import annotations

from hashlib import sha256
from struct import Struct as Layout

from msgspec import Struct

from portbook.errors import UsageError
from portbook.numerals import UINT64, number_or_none

START = bytes(32)  # stands for the hash before the first row
_pack = Layout(">32sQqiQ").pack  # the hash before, sequence, time, port or -1, interval or 0; kind, 0 and body follow


def link(
    before: bytes, sequence: int, at_us: int, kind: str, port: int | None, interval: int | None, body: bytes
) -> bytes:
    """The hash of a row."""
    head = _pack(before, sequence, at_us, -1 if port is None else port, interval or 0)
    return sha256(b"%b%b\0%b" % (head, kind.encode(), body)).digest()


class Anchor(Struct, frozen=True):
    """A row of the history and its hash: as text ``1234:9f86d0…``."""

    sequence: int
    hash: bytes

    def __str__(self) -> str:
        return f"{self.sequence}:{self.hash.hex()}"


def parse_anchor(text: str) -> Anchor:
    """Read what ``str(anchor)`` wrote; raise UsageError."""
    number, colon, digits = text.strip().partition(":")
    sequence = number_or_none(number, UINT64)
    # isalnum() refuses the blanks that fromhex() skips.
    if sequence is None or not colon or len(digits) != 64 or not digits.isalnum():
        raise _no_anchor(text)
    try:
        return Anchor(sequence, bytes.fromhex(digits))
    except ValueError:
        raise _no_anchor(text) from None


def _no_anchor(text: str) -> UsageError:
    return UsageError(f"{text[:40]!r} is not an anchor", "write what portbook history --anchor printed: 1234:9f86d0…")
