"""What people write for a port: every spelling, as text and as the types of Python; sockets say what is right."""

from __future__ import annotations

import socket
from importlib.util import find_spec

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import names, ports
from portbook.addresses import NamedHost, parse_host
from portbook.errors import UsageError
from portbook.ports import Ports
from tests.components import need

LOOPBACK, LOOPBACK6 = NamedHost("127.0.0.1", is_address=True), NamedHost("::1", is_address=True)
LOCAL = NamedHost("localhost")

SPELLINGS = [
    ("8080", Ports(8080, 8080)),
    (" 8080\n", Ports(8080, 8080)),
    (":8080", Ports(8080, 8080)),
    ("*:8080", Ports(8080, 8080)),
    ("8000-8100", Ports(8000, 8100)),
    (":8000-8100", Ports(8000, 8100)),
    ("8080/tcp", Ports(8080, 8080, "tcp")),
    ("53/UDP", Ports(53, 53, "udp")),
    ("udp:53", Ports(53, 53, "udp")),
    (":53/udp", Ports(53, 53, "udp")),
    ("8000-8100/udp", Ports(8000, 8100, "udp")),
    ("http", Ports(80, 80)),
    ("HTTPS", Ports(443, 443)),
    ("dns", Ports(53, 53)),
    ("rdp", Ports(3389, 3389)),
    ("http/tcp", Ports(80, 80, "tcp")),
    ("igmpv3lite", Ports(465, 465, "udp")),
    ("localhost:8080", Ports(8080, 8080, None, LOCAL)),
    ("localhost:http", Ports(80, 80, None, LOCAL)),
    ("localhost:53/udp", Ports(53, 53, "udp", LOCAL)),
    ("localhost.:80", Ports(80, 80, None, NamedHost("localhost", is_absolute=True))),
    ("127.0.0.1:8000-8010", Ports(8000, 8010, None, LOOPBACK)),
    ("[::1]:8080", Ports(8080, 8080, None, LOOPBACK6)),
    ("[0:0::1]:8080/tcp", Ports(8080, 8080, "tcp", LOOPBACK6)),
    (":::8080", Ports(8080, 8080, None, NamedHost("::", is_address=True))),
    ("[fe80::1%eth0]:80", Ports(80, 80, None, NamedHost("fe80::1", "eth0", is_address=True))),
    ("my_db.internal:5432", Ports(5432, 5432, None, NamedHost("my_db.internal"))),
    ("http://localhost:3000/a?b#c", Ports(3000, 3000, None, LOCAL)),
    ("https://example.org", Ports(443, 443, None, NamedHost("example.org"))),
    ("HTTP://[::1]/", Ports(80, 80, None, LOOPBACK6)),
    ("http://[fe80::1%25eth0]:80/", Ports(80, 80, None, NamedHost("fe80::1", "eth0", is_address=True))),
    ("postgres://me:word@db/x", Ports(5432, 5432, None, NamedHost("db"))),
    ("postgresql+asyncpg://db:5433/x", Ports(5433, 5433, None, NamedHost("db"))),
    ("jdbc:mysql://db/x", Ports(3306, 3306, None, NamedHost("db"))),
    ("redis://:word@cache:6380/0", Ports(6380, 6380, None, NamedHost("cache"))),
    ("ws://localhost/", Ports(80, 80, None, LOCAL)),
    ("tcp://0.0.0.0:2375", Ports(2375, 2375, "tcp", NamedHost("0.0.0.0", is_address=True))),
    ("udp://localhost:53", Ports(53, 53, "udp", LOCAL)),
    (8080, Ports(8080, 8080)),
    (("127.0.0.1", 8080), Ports(8080, 8080, None, LOOPBACK)),
    (("", 8080), Ports(8080, 8080)),
    (("::1", 8080, 0, 0), Ports(8080, 8080, None, LOOPBACK6)),
    (Ports(1, 2), Ports(1, 2)),
]


@pytest.mark.parametrize(("value", "expected"), SPELLINGS)
def test_a_spelling(value, expected):
    assert ports.parse(value) == expected
    assert ports.parse(str(expected)) == expected


WRONG = [
    ("", "", "write 8080"),
    (":", "no port", "write 8080"),
    ("localhost:", "no port", "write 8080"),
    ("0", "'0' is out of range", "1 to 65535"),
    ("65536", "out of range", "1 to 65535"),
    ("9" * 5000, "out of range", "1 to 65535"),
    (0, "port 0", "1 to 65535"),
    (-1, "port -1", "1 to 65535"),
    pytest.param(10**5000, "out of range", "1 to 65535", id="huge"),
    ("8100-8000", "backwards", "8000-8100"),
    ("80-", "'80-'", "write 80-65535"),
    ("-80", "'-80'", "write 1-80"),
    (">1024", "'>1024'", "write 1025-65535"),
    (">=1024", "'>=1024'", "write 1024-65535"),
    ("<1024", "'<1024'", "write 1-1023"),
    ("<=1023", "'<=1023'", "write 1-1023"),
    (">65536", "'>65536'", "1 to 65535"),
    ("=80", "'=80'", "1 to 65535"),
    ("80:90", "not a range", "write 80-90"),
    ("+80", "'+80'", "1 to 65535"),
    ("٨٠", "'٨٠'", "1 to 65535"),
    ("80.0", "'80.0'", "1 to 65535"),
    ("tcp", "'tcp'", "tcp:8080"),
    ("tcp/80", "'tcp/80'", "write 80/tcp"),
    ("80/sctp", "'sctp'", "tcp, udp"),
    ("localhost:3000/api", "'api'", "tcp, udp"),
    ("example", "'example'", "write 8080, or example:8080"),
    ("127.0.0.1", "'127.0.0.1'", "127.0.0.1:8080"),
    ("127.0.0.1.8080", "not a port", "write 127.0.0.1:8080"),
    ("localhost:nosuchservice", "'nosuchservice'", "1 to 65535"),
    ("::1", "without a port", "write [::1]:80"),
    ("::1:8080", "without a port", "[::1]:8080"),
    ("[::1]", "no port", "write [::1]:80"),
    ("a:b:80", "not a host and a port", "[::1]:80"),
    ("[127.0.0.1]:80", "in brackets", "write 127.0.0.1"),
    ("010.91.0.254:80", "read as 10.91.0.254 or as 8.91.0.254", "write the one"),
    ("127.1:80", "'127.1'", "write 127.0.0.1"),
    ("0x7f.1:80", "'0x7f.1'", "write 127.0.0.1"),
    ("0177.0.0.1:80", "read as 177.0.0.1 or as 127.0.0.1", "write the one"),
    ("2130706433:80", "'2130706433'", "write 127.0.0.1"),
    ("[::1%lo]:80", "only a link-local address", "write ::1"),
    ("unix:///run/x.sock", "names no host", "write http"),
    ("gopher-ng://localhost/", "no port", "gopher-ng://localhost:80"),
    ("http://localhost:99999/", "out of range", "1 to 65535"),
    (True, "bool", "write 8080"),
    (80.0, "float", "write 8080"),
    (None, "NoneType", "write 8080"),
    (b"80", "bytes", "write 8080"),
    ([80], "list", "write 8080"),
    (("a", "b"), "socket address", "a list"),
    (Ports(0, 80), "out of range", "1 to 65535"),
]


@pytest.mark.parametrize(("value", "wrong", "hint"), WRONG)
def test_what_is_wrong_and_what_to_write(value, wrong, hint):
    with pytest.raises(UsageError) as caught:
        ports.parse(value)
    assert wrong in caught.value.args[0]
    assert hint in caught.value.hint
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("url", ["postgres://me:hidden@db:x/", "foo://me:hidden@db/", "http://me:hidden@127.1/"])
def test_a_password_is_in_no_message(url):
    with pytest.raises(UsageError) as caught:
        ports.parse(url)
    assert "hidden" not in str(caught.value)


@given(st.text() | st.from_regex(r"[0-9a-f.:\[\]%/@tcpudl*-]{0,30}", fullmatch=True))
def test_any_text_is_a_port_or_wrong_usage(text):
    try:
        read = ports.parse(text)
    except UsageError:
        return
    assert 1 <= read.first <= read.last <= 65535
    assert ports.parse(str(read)) == read


@given(
    st.none()
    | st.booleans()
    | st.floats()
    | st.binary()
    | st.lists(st.integers())
    | st.dictionaries(st.text(), st.text())
    | st.complex_numbers()
    | st.tuples(st.text(), st.text())
)
def test_any_other_value_is_wrong_usage(value):
    with pytest.raises(UsageError):
        ports.parse(value)


def test_several():
    expected = [Ports(80, 80), Ports(443, 443), Ports(8000, 8010), Ports(53, 53, "udp")]
    assert ports.parse_several("80,https 8000-8010  53/udp,:80") == expected
    assert ports.parse_several(["80", 443, "8000-8010,53/udp"]) == expected
    assert ports.parse_several(iter([80, "https", Ports(8000, 8010), "53/udp"])) == expected
    assert ports.parse_several(range(80, 82)) == [Ports(80, 80), Ports(81, 81)]
    assert ports.parse_several((80, 81)) == [Ports(80, 80), Ports(81, 81)]
    assert ports.parse_several(("localhost", 80)) == [Ports(80, 80, None, LOCAL)]


@pytest.mark.parametrize("value", ["", [], "80,,81", "80,", ["80", None], b"80", {}, object()])
def test_no_port_among_several(value):
    with pytest.raises(UsageError):
        ports.parse_several(value)


def test_one_port_is_no_range():
    assert ports.parse_one("80-80") == Ports(80, 80)
    with pytest.raises(UsageError, match="more than one port; name one, such as 80"):
        ports.parse_one("80-81")


TARGETS = [
    ("8080", ["localhost:8080"]),
    (8080, ["localhost:8080"]),
    (["localhost", "8080", "8081"], ["localhost:8080", "localhost:8081"]),
    (["::1", "22"], ["[::1]:22"]),
    (["fe80::1%eth0", "22"], ["[fe80::1%eth0]:22"]),
    (["db", "5432", "cache", "6379-6380"], ["db:5432", "cache:6379", "cache:6380"]),
    (["redis", "6379"], ["redis:6379"]),
    (["http", "https"], ["localhost:80", "localhost:443"]),
    (["localhost", "http", "https"], ["localhost:80", "localhost:443"]),
    (["127.0.0.1", "http", "::1", "dns"], ["127.0.0.1:80", "[::1]:53"]),
    (["db.example:80", "http"], ["db.example:80", "localhost:80"]),
    ("db:5432 8080", ["db:5432", "localhost:8080"]),
    (["db", "5432", "8080/tcp", "8081"], ["db:5432", "localhost:8080/tcp", "localhost:8081"]),
    (["localhost:80", "localhost:80"], ["localhost:80"]),
    (("127.0.0.1", 80), ["127.0.0.1:80"]),
]


@pytest.mark.parametrize(("values", "expected"), TARGETS)
def test_targets(values, expected):
    assert list(map(str, ports.parse_targets(values))) == expected


def test_targets_with_ports_of_their_own():
    assert list(map(str, ports.parse_targets(["db", "::1"], "80,443"))) == ["db:80", "db:443", "[::1]:80", "[::1]:443"]
    assert list(map(str, ports.parse_targets([], [80]))) == ["localhost:80"]
    with pytest.raises(UsageError, match="write the ports once"):
        ports.parse_targets(["db:80"], "443")
    with pytest.raises(UsageError, match=r"write 127\.0\.0\.1"):
        ports.parse_targets(["127.1"], "443")
    with pytest.raises(UsageError, match="int"):
        ports.parse_targets([80], "443")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["127.1", "80"], "write 127.0.0.1"),
        (["010.0.0.1", "80"], "write the one that is meant"),
        (["db"], "db:8080"),
        (["fe80::1", "80"], r"write \[fe80::1%eth0\]:80"),
        ("[fe80::1]:80", r"write \[fe80::1%eth0\]:80"),
        ([], "no port"),
        ("localhost:1-65535", "portbook scan"),
    ],
)
def test_no_targets(values, message):
    with pytest.raises(UsageError, match=message):
        ports.parse_targets(values)


def test_an_address_of_this_machine():
    local = {
        text: ports.local_address(ports.parse(text)) for text in ("80", "localhost:80", "a.localhost:80", "[::1]:80")
    }
    assert list(local.values()) == [None, "localhost", "localhost", "::1"]
    assert ports.local_address(ports.parse("[fe80::1%eth0]:80")) == "fe80::1%eth0"
    with pytest.raises(UsageError, match="write 80/tcp, or to reach that host: portbook dial db:80"):
        ports.local_address(ports.parse("db:80/tcp"))


# --- hosts ---------------------------------------------------------------------------------------------------------


@given(st.from_regex(r"(0x?)?[0-9a-f]{1,4}(\.(0x?)?[0-9a-f]{1,4}){0,4}\.?", fullmatch=True))
def test_no_text_is_silently_another_address(text):
    """What the C library reads as an address is that address here too, or refused."""
    try:
        reading = socket.inet_ntoa(socket.inet_aton(text))
    except OSError:
        reading = None
    try:
        host = parse_host(text)
    except UsageError:
        return
    if reading is None:
        assert not host.is_address
    else:
        assert (host.name, host.is_address, text) == (reading, True, reading)


@pytest.mark.parametrize(
    "text",
    [
        "\uff11\uff12\uff17.0.0.1",
        "127。0。0。1",
        "127.0.0.1.",
        "127.0.0.0x1",
        "\uff11\uff12\uff17.1",
        "::ffff:010.0.0.1",
    ],
)
def test_what_becomes_an_address_is_refused(text):
    with pytest.raises(UsageError):
        parse_host(text)


def test_names_beyond_ascii_follow_idna_2008():
    need(find_spec("idna") is not None, "the package idna")
    assert parse_host("straße.example").name == "xn--strae-oqa.example"  # IDNA 2003: strasse.example, RFC 5894 7.2
    assert parse_host("Bücher.example.").lookup_name == "xn--bcher-kva.example."
    with pytest.raises(UsageError, match="xn--"):
        parse_host("a\u200db.example")


def test_the_trailing_dot_is_for_the_resolver_alone():
    host = parse_host("example.org.")
    assert (host.name, host.lookup_name, str(host)) == ("example.org", "example.org.", "example.org.")


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "$HOST",
        "a/b",
        "a@b",
        "a\0b",
        "a\x1b[2J",
        "x" * 64,
        "x." * 127 + "x",
        "ß" * 3000,
        "[]",
        "[a]",
        "%",
        "::1%",
        "127.0.0.1%lo",
    ],
)
def test_no_host(text):
    with pytest.raises(UsageError) as caught:
        parse_host(text)
    assert len(str(caught.value)) < 300


@given(st.text())
def test_any_text_is_a_host_or_wrong_usage(text):
    try:
        host = parse_host(text)
    except UsageError:
        return
    assert host.lookup_name.isascii()
    host.lookup_name.encode("idna")  # what Python's getaddrinfo() does with it


# --- names of services ---------------------------------------------------------------------------------------------


def test_the_machines_names_and_aliases_come_first(tmp_path, monkeypatch):
    mine = tmp_path / "services"
    mine.write_text("my-app 8123/tcp Mine other # comment\ndns 54/udp\nhttp 8000/tcp\nhttp 80/udp\n\nbad\nx y/tcp\n")
    monkeypatch.setattr(names, "_machine_file", lambda: str(mine))
    monkeypatch.setattr(names, "_ports", {})
    found = {name: names.port_of(name) for name in ("MY-APP", "mine", "other", "comment", "dns", "http", "https", "x")}
    assert list(found.values()) == [(8123, None)] * 3 + [None, (54, "udp"), (8000, None), (443, None), None]


@pytest.mark.parametrize("name", names.CUSTOMARY)
def test_customary_names_are_in_lower_case_and_have_a_port(name):
    assert name == name.lower()
    assert ports.parse(name).first == ports.parse(f"localhost:{name}").first == names.port_of(name)[0]
