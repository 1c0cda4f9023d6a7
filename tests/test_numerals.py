"""Numbers as text: what is a number, against what int() alone takes for one."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.numerals import UINT16, UINT64, counted, is_number, number_or_none, parse_hex, parse_number

# int() takes each of these for a number.
INT_TAKES = ["1_0", "٣", "\uff13", " 5", "5 ", "+5", "-5", "5\n"]
NO_INT_EITHER = ["", "x", "5.0", "²", "0x5", "1e3", "\0", "5\0"]


@pytest.mark.parametrize("text", INT_TAKES + NO_INT_EITHER)
def test_only_ascii_digits_are_a_number(text: str) -> None:
    assert number_or_none(text) is None
    assert number_or_none(text.encode()) is None
    assert not is_number(text)
    with pytest.raises(ValueError, match="is not a number from 0 to 65535"):
        parse_number(text, UINT16)


@given(st.integers(0, UINT64))
def test_every_number_of_64_bits(number: int) -> None:
    assert parse_number(str(number)) == parse_number(str(number).encode()) == number
    assert parse_hex(f"{number:016x}") == parse_hex(f"{number:016X}".encode()) == number


@given(st.integers(-10, 2 * UINT16))
def test_the_range_is_checked(number: int) -> None:
    expected = number if 1 <= number <= UINT16 else None
    assert number_or_none(str(number), UINT16, 1) == expected


def test_leading_zeros() -> None:
    assert parse_number("0080") == 80


def test_a_megabyte_of_digits_is_refused_at_once() -> None:
    before = time.process_time()
    assert number_or_none("9" * 5_000_000) is None
    assert is_number("9" * 5_000_000)
    with pytest.raises(ValueError, match=r"^'9{20}' is not a number"):
        parse_number("9" * 5_000_000)
    assert time.process_time() - before < 2  # int() takes minutes where it has no limit of its own


@pytest.mark.parametrize("text", ["", "0", "0x10", "1_00", " 10 ", "+f0f", "zz", "٣٣", "1" * 18, "ff\0f", "\xe9\xe9"])
def test_only_pairs_of_hexadecimal_digits(text: str) -> None:
    for form in (text, text.encode()):
        with pytest.raises(ValueError):  # noqa: PT011  the message of bytes.fromhex() differs by version
            parse_hex(form)


@given(st.binary(max_size=20) | st.text(max_size=20))
def test_whatever_is_given(text: bytes | str) -> None:
    for parse in (parse_number, parse_hex):
        try:
            number = parse(text)
        except ValueError:
            continue
        assert 0 <= number <= UINT64


def test_counted_nouns() -> None:
    assert [counted(n, "socket") for n in (0, 1, 2, 12345)] == ["0 sockets", "1 socket", "2 sockets", "12,345 sockets"]
    assert counted(1, "address", "addresses") == "1 address"
    assert counted(3, "address", "addresses") == "3 addresses"
