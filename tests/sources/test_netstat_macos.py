"""netstat -anv of macOS: three families of headings, as documented; composed rows. It was never run on macOS."""

# ruff: noqa: E501  lines as netstat prints them

from __future__ import annotations

import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import sources
from portbook.errors import SourceGarbled, SourceMissing
from portbook.sources import netstat_macos
from portbook.sources.base import Wanted
from portbook.sources.netstat_macos import parse

FIRST = "Proto Recv-Q Send-Q  Local Address          Foreign Address        (state)     "
TITLES = {
    "macos-12": " rhiwat shiwat    pid   epid state    options",
    "macos-15": " rxbytes      txbytes rhiwat shiwat    pid   epid state  options  gencnt    flags   flags1 usscnt rtncnt fltrs",
    "macos-26": " rxbytes      txbytes rhiwat shiwat process:pid    state  options  gencnt    flags   flags1 usscnt rtncnt fltrs",
}
BEHIND = {
    "macos-12": "131072 131072 {pid} 0 0x0100 0x00000106",
    "macos-15": "0 0 131072 131072 {pid} 0 00100 00000006 000000000001a2b3 00000081 01000900 1 0 000001",
    "macos-26": "0 0 131072 131072 {name}:{pid} 00100 00000006 000000000001a2b3 00000081 01000900 1 0 000001",
}
ROWS = [  # protocol, local, foreign, state, pid, name, and what it is
    ("tcp4", "127.0.0.1.8021", "*.*", "LISTEN", 84517, "Code Helper (Plu",
     ("tcp", "ipv4", "127.0.0.1", 8021, None, None, "LISTEN", "loopback", None, None)),
    ("tcp46", "*.3000", "*.*", "LISTEN", 501, "node",
     ("tcp", "ipv6", "::", 3000, None, None, "LISTEN", "any", None, False)),
    ("tcp6", "fe80::1%lo0.631", "*.*", "LISTEN", 77, "a:b",
     ("tcp", "ipv6", "fe80::1", 631, None, None, "LISTEN", "address", "lo0", None)),
    ("tcp4", "192.0.2.5.53123", "198.51.100.8.443", "ESTABLISHED", 700, "Google Chrome He",
     ("tcp", "ipv4", "192.0.2.5", 53123, "198.51.100.8", 443, "ESTABLISHED", "address", None, None)),
    ("tcp6", "2001:db8::5.53124", "2001:db8:1::8.443", "FIN_WAIT_2", 700, "Google Chrome He",
     ("tcp", "ipv6", "2001:db8::5", 53124, "2001:db8:1::8", 443, "FIN_WAIT2", "address", None, None)),
    ("tcp4", "192.0.2.5.53125", "198.51.100.8.443", "TIME_WAIT", 0, "",
     ("tcp", "ipv4", "192.0.2.5", 53125, "198.51.100.8", 443, "TIME_WAIT", "address", None, None)),
    ("tcp4", "*.9000", "*.*", "CLOSED", 8, "x", ("tcp", "ipv4", "0.0.0.0", 9000, None, None, "BOUND", "none", None, None)),
    ("udp4", "*.5353", "*.*", "", 200, "mDNSResponder", ("udp", "ipv4", "0.0.0.0", 5353, None, None, None, "any", None, None)),
    ("udp46", "*.60001", "*.*", "", 7, "x", ("udp", "ipv6", "::", 60001, None, None, None, "any", None, False)),
    ("udp6", "::1.5000", "::1.5001", "", 7, "x", ("udp", "ipv6", "::1", 5000, "::1", 5001, "ESTABLISHED", "loopback", None, None)),
    ("udp4", "*.*", "*.*", "", 9, "unbound", None),
]  # fmt: skip


def output(family, rows=ROWS):
    lines = ["Active Internet connections (including servers)", FIRST + TITLES[family]]
    for protocol, local, foreign, state, pid, name, _ in rows:
        behind = BEHIND[family].format(pid=pid, name=name)
        lines.append(f"{protocol:<5}      0      0  {local:<22} {foreign:<22} {state:<11} {behind}")
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize("family", TITLES)
def test_every_family_of_headings(family):
    reading = parse((output(family),))
    expected = [row[-1] for row in ROWS if row[-1]]
    found = [
        (
            s.protocol,
            s.family,
            s.local_address,
            s.local_port,
            s.remote_address,
            s.remote_port,
            s.state,
            s.reach,
            s.zone,
            s.v6only,
        )
        for s in reading.sockets
    ]
    assert found == expected
    assert [s.owners[0].pid if s.owners else 0 for s in reading.sockets] == [row[4] for row in ROWS if row[-1]]
    names = [s.owners[0].name if s.owners else "" for s in reading.sockets]
    shown = [row[5] for row in ROWS if row[-1]] if family == "macos-26" else None
    assert names == (shown or [None if s.owners else "" for s in reading.sockets])
    assert reading.gaps == []


def test_rows_that_are_not_understood_are_a_gap():
    wrong = ("tcp4", "127.0.0.1.99999", "*.*", "LISTEN", 1, "x", None)
    reading = parse((output("macos-15", [*ROWS, wrong]),))
    assert [gap.count for gap in reading.gaps] == [1]
    with pytest.raises(SourceGarbled):
        parse((output("macos-15", [wrong]),))


@pytest.mark.parametrize(
    "text", [b"", b"usage: netstat\n", FIRST.encode() + b"rhiwat\n", b"tcp4 0 0 *.1 *.* LISTEN 1 1 1 0 0 0\n"]
)
def test_an_output_without_its_columns_is_garbled(text):
    with pytest.raises(SourceGarbled):
        parse((text,))


@given(st.lists(st.text(max_size=40), max_size=8))
def test_any_text_is_sockets_or_garbled(lines):
    text = "\n".join([FIRST + TITLES["macos-26"], *(f"tcp4 {line}" for line in lines)])
    with suppress(SourceGarbled):
        parse((text.encode("utf-8", "replace"),))


def test_it_is_the_first_source_of_macos_and_of_no_other_system():
    assert sources.names("macos")[0] == "netstat-anv"
    if sys.platform != "darwin":
        assert "netstat-anv" not in sources.names()
        assert netstat_macos.missing() == "only on macOS"
        with pytest.raises(SourceMissing):
            netstat_macos.read(Wanted())
