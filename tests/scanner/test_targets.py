from __future__ import annotations

import contextlib
import tracemalloc
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import islice, pairwise
from time import thread_time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import UsageError
from portbook.probe.request import Probe
from portbook.scanner import targets
from portbook.scanner.targets import BLOCK, Name, Span, disjoint, parse_target, parse_targets, probes_of, walk, weave


def four(target: str, first: str, last: str | None = None) -> Span:
    return Span(target, 4, int(IPv4Address(first)), int(IPv4Address(last or first)))


def six(target: str, first: str, last: str | None = None, zone: str | None = None) -> Span:
    return Span(target, 6, int(IPv6Address(first)), int(IPv6Address(last or first)), zone)


# --- reading -------------------------------------------------------------------------------------------------------

READ = [
    ("10.0.0.1", four("10.0.0.1", "10.0.0.1")),
    ("10.0.0.0/30", four("10.0.0.0/30", "10.0.0.0", "10.0.0.3")),
    ("10.0.0.77/24", four("10.0.0.77/24", "10.0.0.0", "10.0.0.255")),
    ("10.0.0.5/32", four("10.0.0.5/32", "10.0.0.5")),
    ("10.0.0.1-20", four("10.0.0.1-20", "10.0.0.1", "10.0.0.20")),
    ("10.0.0.7-7", four("10.0.0.7-7", "10.0.0.7")),
    ("10.0.0.250-10.0.1.3", four("10.0.0.250-10.0.1.3", "10.0.0.250", "10.0.1.3")),
    ("10.0.0.0/8", four("10.0.0.0/8", "10.0.0.0", "10.255.255.255")),
    ("::1", six("::1", "::1")),
    ("[::1]", six("[::1]", "::1")),
    ("FD00::A-fd00::f", six("FD00::A-fd00::f", "fd00::a", "fd00::f")),
    ("fd00::/120", six("fd00::/120", "fd00::", "fd00::ff")),
    ("fe80::1%eth0", six("fe80::1%eth0", "fe80::1", zone="eth0")),
    ("fe80::1%br-12ab34", six("fe80::1%br-12ab34", "fe80::1", zone="br-12ab34")),
    ("fe80::1-fe80::9%3", six("fe80::1-fe80::9%3", "fe80::1", "fe80::9", "3")),
    ("fe80::%eth0/126", six("fe80::%eth0/126", "fe80::", "fe80::3", "eth0")),
    ("fe80::/126%eth0", six("fe80::/126%eth0", "fe80::", "fe80::3", "eth0")),
    ("::ffff:10.0.0.1", four("::ffff:10.0.0.1", "10.0.0.1")),
    ("::ffff:10.0.0.0/126", four("::ffff:10.0.0.0/126", "10.0.0.0", "10.0.0.3")),
    ("localhost", Name("localhost")),
    ("my-host", Name("my-host")),
    ("10-0-0-1.example", Name("10-0-0-1.example")),
    ("3com.example.", Name("3com.example.")),
    ("xn--mnchen-3ya.example", Name("xn--mnchen-3ya.example")),
    ("münchen.example", Name("münchen.example")),
]


@pytest.mark.parametrize(("text", "expected"), READ)
def test_a_target_is_read(text, expected):
    assert parse_target(text) == expected


WRONG = [
    ("0.0.0.0/0", "4,294,967,296 addresses", "/8"),
    ("10.0.0.0/7", "33,554,432 addresses", "/8"),
    ("0.0.0.0-255.255.255.255", "addresses", "/8"),
    ("::/0", "2**128 addresses", "/104"),
    ("fd00::/64", "2**64 addresses", "/104"),
    ("10.0.0.20-10", "runs backwards", "10.0.0.10-10.0.0.20"),
    ("10.0.0.20-10.0.0.1", "runs backwards", "10.0.0.1-10.0.0.20"),
    ("10.0.0.1-256", "not a range", "10.0.0.1-20"),
    ("10.0.0.1-::2", "not a range", "10.0.0.1-20"),
    ("10.0.0.1-host", "not a range", "10.0.0.1-20"),
    ("fd00::1-20000", "not a range", "10.0.0.1-20"),
    ("10.0.0.0/33", "not a network", "10.0.0.0/24"),
    ("host/24", "not a network", "10.0.0.0/24"),
    ("http://localhost", "not a network", "a name"),
    ("10.0.0.256", "not an address", "four numbers from 0 to 255"),
    ("10.1", "not an address", "10.0.0.1"),
    ("1", "not an address", "write 0.0.0.1"),
    ("10.0.0.1-020", "not a range of addresses", "10.0.0.1-20"),
    ("0x7f000001", "not an address", "write 127.0.0.1"),
    ("host.0x7f", "not an address", "four numbers"),
    ("010.0.0.1", "is read as 10.0.0.1 or as 8.0.0.1", "write the one that is meant"),
    ("10.0.0-5.1", "not an address", "10.0.0.1"),
    ("", "not an address", "a name"),
    ("[::1", "not an address", "a name"),
    ("localhost:80", "not an address", "-p"),
    ("10.0.0.1:80", "not an address", ""),
    ("a b", "not an address", "a name"),
    ("a\0b", "not an address", "a name"),
    ("a,b", "not an address", "a name"),
    ("-", "not an address", "a name"),
    ("::1%lo", "only a link-local address", "%lo"),
    ("fe80::1", "needs its interface", "fe80::1%eth0"),
    ("fe80::1%", "no interface", "%eth0"),
    ("10.0.0.1%eth0", "not an address", "10.0.0.1"),
]


@pytest.mark.parametrize(("text", "wrong", "valid"), WRONG)
def test_a_usage_error_is_one_line_with_the_valid_values(text, wrong, valid):
    with pytest.raises(UsageError) as caught:
        parse_target(text)
    said = str(caught.value)
    assert wrong in said
    assert valid in said
    assert "\n" not in said


@given(st.text(max_size=40))
def test_any_text_is_a_target_or_a_usage_error(text):
    try:
        found = parse_target(text)
    except UsageError:
        return
    assert found.target == text


@given(st.integers(0, 2**32 - 1), st.integers(0, 5000))
def test_a_range_has_exactly_its_addresses(first, more):
    last = min(first + more, 2**32 - 1)
    span = parse_target(f"{IPv4Address(first)}-{IPv4Address(last)}")
    assert isinstance(span, Span)
    assert span.size == last - first + 1
    assert list(span.addresses()) == [str(IPv4Address(n)) for n in range(first, last + 1)]


def test_a_file_has_targets_comments_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "hosts"
    path.write_bytes("\ufeff10.0.0.1 10.0.0.2\r\n\n# all\nlocalhost # here\n  fd00::/127\n".encode())
    assert list(parse_targets([f"@{path}", "10.0.0.9"])) == [
        four("10.0.0.1", "10.0.0.1"),
        four("10.0.0.2", "10.0.0.2"),
        Name("localhost"),
        six("fd00::/127", "fd00::", "fd00::1"),
        four("10.0.0.9", "10.0.0.9"),
    ]


def test_a_mistake_in_a_file_names_the_line(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1\n10.0.0.300\n")
    with pytest.raises(UsageError, match=r"hosts line 2: target '10\.0\.0\.300' is not an address; an IPv4 address"):
        list(parse_targets([f"@{path}"]))


@pytest.mark.parametrize("content", [b"@more\n", b"\xff\xfe\n"], ids=["a file in a file", "not UTF-8"])
def test_a_file_that_is_no_list_is_one_line(tmp_path, content):
    path = tmp_path / "hosts"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        list(parse_targets([f"@{path}"]))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", ["", "/nonesuch/hosts", ".", "a\0b"])
def test_a_file_that_cannot_be_read_is_one_line(path):
    with pytest.raises(UsageError, match="cannot read"):
        list(parse_targets([f"@{path}"]))


def test_a_file_without_end_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(targets, "MOST_FILE_BYTES", 10)
    path = tmp_path / "hosts"
    path.write_text("10.0.0.1\n10.0.0.2\n")
    with pytest.raises(UsageError, match="too large"):
        targets.read_file(str(path))


def test_a_file_with_many_targets_takes_little_time(tmp_path):
    """Every step is linear: with 440,000 lines the deadline of a scan was over before its first probe."""
    path = tmp_path / "hosts"
    path.write_text("".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}\n" for n in range(150_000)))
    began = thread_time()
    spans = list(parse_targets([f"@{path}"]))
    targets.refuse_public(spans)
    assert len(list(targets.disjoint(spans))) == 150_000
    assert thread_time() - began < 6


# --- who may be asked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.31.255.255", False),
        ("172.32.0.0", True),
        ("192.168.0.1", False),
        ("169.254.0.1", False),
        ("100.64.0.1", False),
        ("192.0.2.1", False),
        ("8.8.8.8", True),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("2001:db8::1", False),
        ("2606:4700::1", True),
        ("::ffff:8.8.8.8", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::808:808", True),
    ],
)
def test_public_is_what_is_routed_globally(address, public):
    span = targets.span_of(address, address.partition("%")[0])
    with pytest.raises(UsageError) if public else contextlib.nullcontext():
        targets.refuse_public([span])


@pytest.mark.parametrize(
    "target",
    ["8.8.8.8", "8.8.8.0/24", "10.255.0.0-11.0.0.0", "9.255.255.255-10.0.0.1", "2606:4700::/120", "::ffff:8.8.8.8"],
)
def test_a_target_with_a_public_address_is_refused_in_one_line(target):
    span = parse_target(target)
    with pytest.raises(UsageError) as caught:
        targets.refuse_public([span])
    said = str(caught.value)
    assert said.startswith(target)
    assert "is globally routable" in said
    assert "--allow-public" in said
    assert "\n" not in said


@pytest.mark.parametrize("target", ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0-192.168.255.255", "fd00::/104"])
def test_private_networks_are_not(target):
    targets.refuse_public([parse_target(target)])


def test_a_name_is_refused_with_the_address_it_has():
    with pytest.raises(UsageError, match=r"^www\.example \(8\.8\.8\.8\) is globally routable"):
        targets.refuse_public([targets.span_of("www.example", "8.8.8.8")])


# --- no address twice ----------------------------------------------------------------------------------------------

SPANS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20), st.sampled_from([None, "a"])), max_size=12)


@given(SPANS)
def test_disjoint_keeps_every_address_once_with_the_first_target_that_has_it(rows):
    spans = [Span(str(i), 6, first, first + more, zone) for i, (first, more, zone) in enumerate(rows)]
    expected: dict[tuple[int, str | None], str] = {}
    for span in spans:
        for number in range(span.first, span.last + 1):
            expected.setdefault((number, span.zone), span.target)
    found = [(n, s.zone, s.target) for s in disjoint(spans) for n in range(s.first, s.last + 1)]
    assert sorted(found, key=str) == sorted(((n, z, t) for (n, z), t in expected.items()), key=str)


def test_ipv4_and_ipv6_of_the_same_number_are_two_addresses():
    spans = [Span("a", 4, 7, 7), Span("b", 6, 7, 7)]
    assert list(disjoint(spans)) == spans


# --- the order -----------------------------------------------------------------------------------------------------


@given(st.integers(0, 3000), st.integers(0, 10**6))
def test_a_walk_has_every_number_once(size, seed):
    assert sorted(walk(size, seed)) == list(range(size))


@pytest.mark.parametrize("size", [65535, 1000, 101, 100])
def test_a_walk_keeps_neighbours_apart(size):
    steps = Counter(min(abs(a - b), size - abs(a - b)) for a, b in pairwise(walk(size)))
    assert min(steps) > size / 4


@given(st.integers(1, 700), st.integers(1, 40), st.integers(0, 99))
def test_every_port_of_every_address_is_probed_once(hosts, ports, seed):
    span = Span("t", 4, 0x0A000000, 0x0A000000 + hosts - 1)
    stream = list(probes_of([span], range(1, ports + 1), seed))
    assert Counter(stream) == Counter(
        Probe("t", address, port) for address in span.addresses() for port in range(1, ports + 1)
    )
    assert stream == list(probes_of([span], range(1, ports + 1), seed))


def test_hosts_of_a_block_take_turns_each_at_another_port():
    span = parse_target("10.0.0.0/24")
    stream = probes_of([span], range(1, 1001))
    for _ in range(5):
        turn = list(islice(stream, BLOCK))
        assert {p.address for p in turn} == set(span.addresses())
        assert len({p.port for p in turn}) == BLOCK


def test_zone_and_target_go_with_each_probe():
    assert list(probes_of([parse_target("fe80::1%eth0"), parse_target("10.0.0.1")], [22])) == [
        Probe("fe80::1%eth0", "fe80::1", 22, "eth0"),
        Probe("10.0.0.1", "10.0.0.1", 22, None),
    ]


def test_a_large_network_is_not_held_in_memory():
    span = parse_target("10.0.0.0/8")
    assert span.size == ip_network("10.0.0.0/8").num_addresses
    tracemalloc.start()
    for _ in islice(probes_of(disjoint([span]), range(1, 11)), 100_000):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


@given(st.integers(0, 50), st.integers(0, 10), st.integers(1, 20))
def test_weaving_adds_the_extras_and_keeps_the_order(count, more, every):
    stream = [Probe("s", "10.0.0.1", n) for n in range(count)]
    extras = [Probe("x", "10.0.0.2", n) for n in range(more)]
    woven = list(weave(stream, extras, every))
    assert [p for p in woven if p.target == "s"] == stream
    assert [p for p in woven if p.target == "x"] == extras
    gaps = [i for i, p in enumerate(woven) if p.target == "x"]
    assert gaps[:1] in ([], [min(every, count)])


def test_weaving_reads_no_further_than_it_gives():
    read = []
    stream = (read.append(n) or Probe("s", "10.0.0.1", n) for n in range(1000))
    woven = weave(stream, [Probe("x", "10.0.0.2", 1)], 500)
    assert [p.port for p in islice(woven, 3)] == [0, 1, 2]
    assert read == [0, 1, 2]
