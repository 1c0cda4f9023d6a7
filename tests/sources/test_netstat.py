"""The pure half of the netstat source: answers in many languages and code pages. Running it is in tests/windows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled, SourceMissing
from portbook.records import Gap, Owner, Socket
from portbook.sources import netstat
from portbook.sources.base import CAPABILITIES, Wanted
from portbook.sources.netstat import STATES, NetstatOutput, parse

DATA = Path(__file__).parents[1] / "data" / "netstat" / "windows"
SAMPLES = sorted(p.name.removesuffix(".txt") for p in DATA.glob("*.txt") if "stub" not in p.name)
NAMES = {4: "System", 888: "lsass.exe", 1060: "svchost.exe", 4040: "svchost.exe"}
NAMES |= {4242: "Acme, Server.exe", 5120: "postgres.exe", 7788: "browser.exe"}


def sample(name: str) -> NetstatOutput:
    tasks = (DATA / f"{name}.tasklist.csv").read_bytes()
    return NetstatOutput((DATA / f"{name}.txt").read_bytes(), tasks, name.rpartition(".")[2])


def owned(pid: int, name: str | None = None) -> tuple[Owner, ...]:
    return (Owner(pid, name or NAMES.get(pid), how="netstat"),) if pid else ()


def tcp(local, port, state, pid, remote=(None, None), family="ipv4", reach="address", zone=None) -> Socket:
    return Socket("tcp", family, local, port, *remote, state, reach, zone, owners=owned(pid))


def udp(local, port, pid, family="ipv4", reach="address", zone=None) -> Socket:
    return Socket("udp", family, local, port, reach=reach, zone=zone, owners=owned(pid))


LOCAL, WEB, OTHER = "192.0.2.10", ("198.51.100.7", 443), ("198.51.100.8", 443)
EXPECTED = [
    tcp("0.0.0.0", 135, "LISTEN", 1060, reach="any"),
    tcp("127.0.0.1", 8080, "LISTEN", 4242, reach="loopback"),
    tcp("127.0.0.1", 8080, "ESTABLISHED", 4242, ("127.0.0.1", 50123), reach="loopback"),
    tcp("127.0.0.1", 50123, "ESTABLISHED", 7788, ("127.0.0.1", 8080), reach="loopback"),
    tcp(LOCAL, 50124, "CLOSE_WAIT", 7788, WEB),
    tcp(LOCAL, 50125, "TIME_WAIT", 0, WEB),
    tcp(LOCAL, 50126, "SYN_SENT", 7788, OTHER),
    tcp(LOCAL, 50127, "FIN_WAIT2", 7788, OTHER),
    tcp(LOCAL, 50128, "CLOSING", 7788, OTHER),
    tcp(LOCAL, 50129, "LAST_ACK", 7788, OTHER),
    tcp("::", 135, "LISTEN", 1060, family="ipv6", reach="any"),
    tcp("::1", 5432, "LISTEN", 5120, family="ipv6", reach="loopback"),
    tcp("fe80::1", 49664, "LISTEN", 888, family="ipv6", zone="12"),
    tcp("fe80::1", 50130, "ESTABLISHED", 4, ("fe80::2", 445), family="ipv6", zone="12"),
    udp("0.0.0.0", 5353, 7788, reach="any"),
    udp(LOCAL, 138, 4),
    udp("::", 5353, 7788, family="ipv6", reach="any"),
    udp("fe80::1", 1900, 4040, family="ipv6", zone="12"),
]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_language_parses_to_the_same_rows(name):
    reading = parse(sample(name))
    assert reading.sockets == EXPECTED
    assert reading.gaps == []


def test_there_are_samples_of_thirteen_systems():
    assert len(SAMPLES) == 13


def test_the_german_sample_has_the_byte_that_is_no_utf8():
    data = sample("german.cp850").netstat
    assert b"ABH\x99REN" in data
    with pytest.raises(UnicodeDecodeError):
        data.decode("utf-8")


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("codec", ["utf-8", "cp1252", "cp65001", "cp437", "no-such-codec"])
def test_with_the_wrong_code_page_all_but_words_is_right(name, codec):
    sockets = parse(sample(name)._replace(codec=codec)).sockets
    places = [(s.local_address, s.local_port, s.remote_port, s.zone) for s in sockets]
    assert places == [(s.local_address, s.local_port, s.remote_port, s.zone) for s in EXPECTED]
    assert [s.state for s in sockets if s.remote_port is None] == [s.state for s in EXPECTED if s.remote_port is None]
    assert [o.pid for s in sockets for o in s.owners] == [o.pid for s in EXPECTED for o in s.owners]


# --- shapes --------------------------------------------------------------------------------------------------------


def rows(*lines: str, tasks: str = "") -> list[Socket]:
    return parse(NetstatOutput("\r\n".join(lines).encode(), tasks.encode(), "utf-8")).sockets


def test_an_unknown_word_is_kept_and_not_guessed():
    (found,) = rows("  TCP    127.0.0.1:80    127.0.0.1:5000    VERBUNDEN    7")
    assert (found.state, found.state_text) == ("UNKNOWN", "VERBUNDEN")
    assert (found.remote_address, found.remote_port) == ("127.0.0.1", 5000)


def test_a_state_may_be_two_words():
    (found,) = rows("  TCP    127.0.0.1:80    127.0.0.1:5000    IN ATTESA    7")
    assert (found.state, found.state_text, found.owners[0].pid) == ("UNKNOWN", "IN ATTESA", 7)


@pytest.mark.parametrize("word", ["LISTENING", "ABHÖREN", "ESCUCHANDO", "ABH\ufffdREN", "IN ASCOLTO"])
def test_a_foreign_port_0_makes_a_listener(word):
    (found,) = rows(f"TCP 0.0.0.0:80 0.0.0.0:0 {word} 7")
    assert (found.state, found.state_text, found.remote_port) == ("LISTEN", None, None)


def test_bound_rows_are_not_listeners():
    (found,) = rows("TCP 0.0.0.0:80 0.0.0.0:0 BOUND 7")
    assert (found.state, found.remote_address) == ("BOUND", None)


def test_udp_rows_have_no_state_and_their_pid_is_not_shifted():
    (found,) = rows("UDP [::]:500 *:* 3168")
    assert (found.state, found.remote_address, found.owners[0].pid) == (None, None, 3168)


def test_udp_with_a_peer_is_connected():
    (found,) = rows("UDP 127.0.0.1:500 127.0.0.1:53 3168")
    assert (found.state, found.remote_address, found.remote_port) == ("ESTABLISHED", "127.0.0.1", 53)


def test_only_link_local_addresses_have_a_zone():
    assert [s.zone for s in rows("UDP [fe80::1%12]:1 *:* 7", "UDP [ff02::1%12]:1 *:* 7")] == ["12", None]


def test_addresses_are_canonical():
    assert rows("UDP [::FFFF:127.0.0.1]:1 *:* 7")[0].local_address == "::ffff:127.0.0.1"
    assert rows("UDP [::ffff:127.0.0.1]:1 *:* 7")[0].reach == "loopback"
    assert rows("UDP [fe80::5efe:192.0.2.1%3]:1 *:* 7")[0].local_address == "fe80::5efe:c000:201"


def test_names_with_commas_quotes_and_foreign_letters():
    tasks = '"Acme, Server.exe","7"\r\n"a ""b"".exe","8","Services"\r\n"müller.exe","9"\r\n'
    found = rows(
        "UDP 1.2.3.4:1 *:* 7", "UDP 1.2.3.4:2 *:* 8", "UDP 1.2.3.4:3 *:* 9", "UDP 1.2.3.4:4 *:* 10", tasks=tasks
    )
    assert [s.owners[0].name for s in found] == ["Acme, Server.exe", 'a "b".exe', "müller.exe", None]


@pytest.mark.parametrize("tasks", ["INFO: No tasks are running.\r\n", '"a","x"\n"b"\n\n,\n', '"open', "\0"])
def test_without_output_of_tasklist_only_names_are_missing(tasks):
    assert rows("UDP 1.2.3.4:1 *:* 7", tasks=tasks)[0].owners == (Owner(7, how="netstat"),)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "\r\n",
        "Active Connections\r\n\r\n  Proto  Local Address  Foreign Address  State  PID\r\n",
        "Zugriff verweigert",
    ],
)
def test_an_answer_without_rows_is_garbled_and_not_an_empty_machine(answer):
    with pytest.raises(SourceGarbled, match="no row"):
        rows(answer)


def test_the_answer_of_wine_is_garbled():
    with pytest.raises(SourceGarbled, match="no state or no pid"):
        parse(NetstatOutput((DATA / "wine-stub.cp437.txt").read_bytes(), b"", "cp437"))


@pytest.mark.parametrize(
    "row",
    [
        "TCP",
        "TCP 127.0.0.1:80",
        "TCP 127.0.0.1:80 0.0.0.0:0",
        "TCP 127.0.0.1:80 0.0.0.0:0 LISTENING",
        "TCP 127.0.0.1:80 0.0.0.0:0 LISTENING seven",
        "TCP 127.0.0.1:80 0.0.0.0:0 LISTENING 1_0",
        "TCP 127.0.0.1:80 0.0.0.0:0 LISTENING -7",
        "TCP 127.0.0.1:80 0.0.0.0:0 LISTENING 99999999999",
        "TCP 127.0.0.1:70000 0.0.0.0:0 LISTENING 7",
        "TCP localhost:80 0.0.0.0:0 LISTENING 7",
        "TCP 127.0.0.1 0.0.0.0:0 LISTENING 7",
        "TCP 127.0.0.1:80 *:* LISTENING",
        "UDP 127.0.0.1:80 *:*",
    ],
)
def test_a_row_that_is_cut_or_wrong_is_garbled(row):
    with pytest.raises(SourceGarbled, match="not understood"):
        rows("UDP 127.0.0.1:80 *:* 7", row)


def test_gaps_are_passed_on():
    gap = Gap("process", None, "why")
    assert parse(NetstatOutput(b"UDP 127.0.0.1:80 *:* 7", b"", "utf-8", (gap,))).gaps == [gap]


def test_no_word_means_two_states():
    assert len(STATES) == sum(len(words.split()) for words in netstat.WORDS.values())


@pytest.mark.skipif(sys.platform == "win32", reason="here it can be read")
def test_elsewhere_the_source_is_missing():
    assert netstat.SOURCE.missing() == "only on Windows"
    with pytest.raises(SourceMissing):
        netstat.read(Wanted())


def test_the_capabilities_are_valid():
    assert netstat.SOURCE.capabilities <= CAPABILITIES.keys()


# --- any -----------------------------------------------------------------------------------------------------------

CODECS = st.sampled_from(["cp437", "cp850", "cp932", "cp936", "cp65001", "nonsense", "utf-16", "hex", ""])
PIECES = st.lists(
    st.sampled_from(["TCP", "UDP", " ", "127.0.0.1:1", "[::1%3]:2", "*:*", "0.0.0.0:0", "7", "X", "\n", '"'])
)


@given(st.binary() | PIECES.map(lambda p: " ".join(p).encode()), st.binary(), CODECS)
def test_any_bytes_are_read_or_garbled(answer, tasks, codec):
    try:
        sockets = parse(NetstatOutput(answer, tasks, codec)).sockets
    except SourceGarbled:
        return
    assert sockets
