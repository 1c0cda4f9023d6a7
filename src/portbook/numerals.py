"""Numbers as text: read from ASCII digits, printed with the noun they count.

int() is no parser for text of others: it accepts signs, blanks, underscores and the digits of every script, and a
megabyte of digits takes it seconds where sys.set_int_max_str_digits() is raised.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

UINT16, UINT32, UINT64 = 2**16 - 1, 2**32 - 1, 2**64 - 1
MOST_SECONDS = 1_000_000  # of a time limit: more than a week, and within what every timer of a system takes
MOST_DIGITS = 20  # of UINT64
MOST_HEX_DIGITS = 16  # of UINT64
MOST_NAMED = 4  # owners, addresses and the like in words: a server may have forked a hundred workers


def parse_number(text: str | bytes, most: int = UINT64, least: int = 0) -> int:
    """Read a decimal number of ASCII digits, leading zeros allowed.

    :raises ValueError: the text is anything else, or the number is not in the range from ``least`` to ``most``
    """
    if len(text) <= MOST_DIGITS and text.isdigit() and text.isascii():
        number = int(text)
        if least <= number <= most:
            return number
    raise ValueError(f"{text[:MOST_DIGITS]!r} is not a number from {least} to {most}")


def number_or_none(text: str | bytes, most: int = UINT64, least: int = 0) -> int | None:
    """Read a number as ``parse_number`` does; None where that raises."""
    try:
        return parse_number(text, most, least)
    except ValueError:
        return None


def is_number(text: str | bytes) -> bool:
    """Whether the text is ASCII digits and nothing else, of any length."""
    return text.isdigit() and text.isascii()


def parse_hex(text: str | bytes) -> int:
    """Read an even number of hexadecimal digits, without a prefix, of at most 64 bits; raise ValueError."""
    digits = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    # isalnum() refuses the blanks that fromhex() skips; fromhex() refuses "0x", which int() accepts.
    if len(digits) <= MOST_HEX_DIGITS and digits.isalnum():
        return int.from_bytes(bytes.fromhex(digits), "big")
    raise ValueError(f"{digits[:MOST_HEX_DIGITS]!r} is not a hexadecimal number of up to {MOST_HEX_DIGITS} digits")


def is_within(number: object, most: float) -> bool:
    """Whether it is a number from 0 to ``most``. "nan" is none, which no comparison refuses."""
    return isinstance(number, int | float) and 0 <= number <= most


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number and its noun: ``1 socket``, ``2,000 sockets``, ``3 addresses``.

    :param plural: where it is not the noun with an s
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + 's'}"


def join_words(words: Sequence[str], conjunction: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``; of many, the first four and how many more."""
    if len(words) > MOST_NAMED:
        return f"{', '.join(words[:MOST_NAMED])} and {len(words) - MOST_NAMED} more"
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {conjunction} {words[-1]}"
