"""Excluded and dynamic port ranges: what netsh prints in many languages. Running it is in tests/windows."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled, SourceMissing
from portbook.netconfig.facts import DynamicRange, ExcludedRange
from portbook.netconfig.windows import netsh, reservations
from portbook.netconfig.windows.netsh import NetshOutput, parse_dynamic, parse_excluded
from tests.netconfig.windows.reading import dynamic_ranges, excluded_ranges, port_proxies

DATA = Path(__file__).parents[2] / "data" / "netsh" / "windows"
CODECS = ["utf-8", "cp1252", "cp65001", "cp437", "cp932", "no-such-codec"]

# The rows as they are in the files; an asterisk: administered.
EXCLUDED = {
    "english.cp437": "1462-1462 1487-1487 5357-5357 28385-28385 28390-28390 49776-49875 49876-49975 50000-50059* "
    "50060-50159 54288-54288",
    "english-none.cp437": "",
    "english-server.cp437": "80-80 5986-5986 47001-47001 55679-55679*",
    "spanish.cp850": "1025-1124 1125-1224 1225-1324 5357-5357 5700-5700 8884-8884 24266-24365 25313-25412 50000-50059",
    "german.cp850": "28380-28380 28385-28385 49711-49810 49811-49910 49911-50010 50111-50210 50211-50310 51099-51198",
    "french.cp850": "80-80 1587-1686 1787-1886 1887-1986 2180-2279 2280-2379 5357-5357 50000-50059*",
    "chinese.cp936": "4549-4648 4649-4748 5704-5803 11581-11680 12281-12380 50000-50059*",
    "korean.cp949": "7654-7753 7754-7853 7939-8038 8039-8138 10226-10325 10326-10425 10426-10525 10526-10625 "
    "50000-50059*",
    "japanese.cp932": "5357-5357 50000-50059* 55676-55775",
    "russian.cp866": "5357-5357 50000-50059*",
}
DYNAMIC = {
    "english.cp437": (49152, 16384),
    "english-low.cp437": (1024, 64511),
    "french.cp850": (49152, 16384),
    "chinese.cp936": (1024, 13977),
    "japanese.cp932": (49152, 16384),
    "german.cp850": (49152, 16384),
    "korean.cp949": (49152, 16384),
    "wide-colon.cp936": (49152, 16384),
}


def sample(question: str, name: str) -> NetshOutput:
    return NetshOutput((DATA / f"{question}.{name}.txt").read_bytes(), name.rpartition(".")[2])


def in_utf8(raw: NetshOutput) -> NetshOutput:
    """As a system prints it whose code page is UTF-8, while we believe in the OEM code page."""
    return raw._replace(data=raw.data.decode(raw.codec).encode())


def samples(question: str) -> set[str]:
    return {path.name.removeprefix(f"{question}.").removesuffix(".txt") for path in DATA.glob(f"{question}.*.txt")}


def excluded(text: str | bytes) -> tuple[ExcludedRange, ...]:
    return parse_excluded(NetshOutput(text.encode() if isinstance(text, str) else text, "cp437"), "ipv4", "tcp")


def shown(ranges: tuple[ExcludedRange, ...]) -> str:
    return " ".join(f"{r.start}-{r.end}{'*' * r.administered}" for r in ranges)


# --- excluded ranges -----------------------------------------------------------------------------------------------


def test_every_sample_has_its_answer_here():
    assert samples("excluded") == EXCLUDED.keys()
    assert samples("dynamic") == DYNAMIC.keys()


@pytest.mark.parametrize("name", EXCLUDED)
def test_excluded_ranges_in_every_language(name):
    assert shown(parse_excluded(sample("excluded", name), "ipv4", "tcp")) == EXCLUDED[name]
    assert shown(parse_excluded(in_utf8(sample("excluded", name)), "ipv4", "tcp")) == EXCLUDED[name]


@pytest.mark.parametrize("name", EXCLUDED)
@pytest.mark.parametrize("codec", CODECS)
def test_excluded_ranges_with_the_wrong_code_page(name, codec):
    assert shown(parse_excluded(sample("excluded", name)._replace(codec=codec), "ipv4", "tcp")) == EXCLUDED[name]


def test_a_sample_of_each_kind_is_no_utf8():
    for name in ("german.cp850", "chinese.cp936", "korean.cp949", "japanese.cp932"):
        with pytest.raises(UnicodeDecodeError):
            sample("excluded", name).data.decode("utf-8")


def test_ranges_have_the_requested_family_and_protocol():
    (found, *_) = parse_excluded(sample("excluded", "german.cp850"), "ipv6", "udp")
    assert (found.family, found.protocol) == ("ipv6", "udp")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\r\n",
        "\0\0\0",
        "The following command was not found: interface ipv4 show excludedportrange.\r\n",
        "Protocol tcp Port Exclusion Ranges\r\n\r\nStart Port    End Port\r\n",  # cut before the ruler
        "----------    --------\r\nElement not found.\r\n",
        "---------------------------------\r\n",
        "- -\r\n",
    ],
)
def test_an_answer_that_is_no_table_is_garbled_and_not_no_ranges(answer):
    with pytest.raises(SourceGarbled, match="neither a range nor an empty table"):
        excluded(answer)


@pytest.mark.parametrize(
    "row",
    [
        "50000",
        "50000 500",
        "50000 70000",
        "50000 5oo59",
        "50000 50059 x",
        "50000 50059 * *",
        "50000 50059 1",
        "50000 -1",
        "50000 99999999999",
        "50000 5_0_0_6_0",
        "50000 \u0665\u0660\u0660\u0665\u0669",
    ],
)
def test_a_row_that_is_cut_or_wrong_is_garbled(row):
    with pytest.raises(SourceGarbled, match="not understood"):
        excluded(f"----------    --------\r\n  80  80\r\n  {row}\r\n")


RANGES = st.lists(
    st.tuples(st.integers(0, 65535), st.integers(0, 65535), st.booleans()).map(
        lambda row: ExcludedRange("ipv6", "udp", min(row[:2]), max(row[:2]), row[2])
    )
)
WORDS = st.sampled_from(["Start Port", "Startport", "Port de début", "开始端口", "시작 포트", "開始ポート", "x"])


@given(RANGES, WORDS, st.sampled_from(["utf-8", "cp936", "cp949", "cp932"]), st.booleans())
def test_what_is_laid_out_like_netsh_is_read_back(ranges, word, codec, padded):
    rows = [f"{r.start:>10}  {r.end:>10}{'     *' if r.administered else '      ' * padded}" for r in ranges]
    lines = ["", f"{word} udp", "", f"{word}    {word}", "----------    --------", *rows, "", f"* - {word}.", ""]
    data = "\r\n".join(lines).encode(codec, "replace")
    assert parse_excluded(NetshOutput(data, codec), "ipv6", "udp") == tuple(ranges)


# --- dynamic ranges ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DYNAMIC)
def test_dynamic_ranges_in_every_language(name):
    answer = (DynamicRange("ipv4", "udp", *DYNAMIC[name]),)
    assert parse_dynamic(sample("dynamic", name), "ipv4", "udp") == answer
    assert parse_dynamic(in_utf8(sample("dynamic", name)), "ipv4", "udp") == answer


@pytest.mark.parametrize("name", sorted(DYNAMIC.keys() - {"wide-colon.cp936"}))
@pytest.mark.parametrize("codec", CODECS)
def test_dynamic_ranges_with_the_wrong_code_page(name, codec):
    answer = (DynamicRange("ipv4", "tcp", *DYNAMIC[name]),)
    assert parse_dynamic(sample("dynamic", name)._replace(codec=codec), "ipv4", "tcp") == answer


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "Start Port : 49152",
        "Start Port : 49152\r\nNumber of Ports : many",
        "Start Port : 49152\r\nNumber of Ports : 16385",  # would end at 65536
        "Start Port : 0\r\nNumber of Ports : 5",
        "Start Port : 70000\r\nNumber of Ports : 1",
        "Start Port : 49152\r\nNumber of Ports : 0",
        "Start Port : 49152\r\nNumber of Ports : 1\r\nOther : 2",
        "49152\r\n16384",
    ],
)
def test_a_dynamic_range_that_is_cut_or_wrong_is_garbled(answer):
    with pytest.raises(SourceGarbled, match="no first port"):
        parse_dynamic(NetshOutput(answer.encode(), "cp437"), "ipv4", "tcp")


# --- any -----------------------------------------------------------------------------------------------------------

CODEC = st.sampled_from(["cp437", "cp850", "cp932", "cp936", "cp65001", "nonsense", "utf-16", "hex", ""])
PIECES = st.lists(st.sampled_from(["80", "65535", "*", "-", "-----", ":", "\uff1a", " ", "\r\n", "x", "開", "\u2028"]))
ANY = st.binary() | PIECES.map(lambda pieces: " ".join(pieces).encode())


@given(ANY, CODEC)
def test_any_bytes_are_read_or_garbled(data, codec):
    for parser in (parse_excluded, parse_dynamic):
        try:
            answer = parser(NetshOutput(data, codec), "ipv4", "tcp")
        except SourceGarbled:
            continue
        for row in answer:
            last = row.end if isinstance(row, ExcludedRange) else row.start + row.count - 1
            assert 0 <= row.start <= last <= 65535


@pytest.mark.parametrize("unit", [b"1 ", b" ", b"-", b"*", b":", b"1:", b"80  80  *  ", b"\xff", b"80 80\r\n"])
def test_the_longest_answer_takes_no_time(unit):
    raw = NetshOutput(unit * (netsh.MOST_BYTES // len(unit)), "cp850")
    started = time.process_time()
    for parser in (parse_excluded, parse_dynamic):
        try:
            parser(raw, "ipv4", "tcp")
        except SourceGarbled:
            continue
    assert time.process_time() - started < 20  # what is quadratic takes days


# --- read ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="here it can be asked")
@pytest.mark.parametrize("look", [excluded_ranges, dynamic_ranges, port_proxies, reservations.take])
def test_elsewhere_the_commands_are_missing(look):
    with pytest.raises(SourceMissing):
        look()
