from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import UsageError
from portbook.scanner.groups import GROUPS, TCP, UDP
from portbook.scanner.ports import parse_ports, parse_survey


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("22", [22]),
        ("22,80", [22, 80]),
        ("80,22,22", [22, 80]),
        ("8000-8003", [8000, 8001, 8002, 8003]),
        ("1-3,2-4,65535", [1, 2, 3, 4, 65535]),
        ("00022", [22]),
        ("22 80", [22, 80]),
        ("http,https/tcp,:8080", [80, 443, 8080]),
        (22, [22]),
        ([22, "80-81"], [22, 80, 81]),
    ],
)
def test_lists_and_ranges(text, expected):
    assert parse_ports(text) == expected


def test_every_port():
    assert parse_ports("1-65535") == list(range(1, 65536))


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=50))
def test_what_is_written_is_read(ports):
    assert parse_ports(",".join(map(str, ports))) == sorted(ports) == parse_ports(ports)


@pytest.mark.parametrize(
    ("text", "wrong", "valid"),
    [
        ("0", "port '0' is out of range", "1 to 65535"),
        ("65536", "port '65536' is out of range", "1 to 65535"),
        ("1-65536", "port '1-65536' is out of range", "1 to 65535"),
        ("80-70", "port '80-70' runs backwards", "70-80"),
        ("nosuch", "port 'nosuch' is not a number", "80"),
        ("", "no port to scan", "1 to 65535"),
        ("80,", "port '' is not a number", "80"),
        ("-1", "port '-1' is not a number", "80"),
        ("localhost:80", "localhost:80 has a host", "target"),
        ("80/tcp,53/udp", "a scan has one protocol", "portbook probe TARGET PORTS"),
        ("53/udp", "these are ports of udp", "portbook probe TARGET PORTS"),
        ("9" * 5000, "is out of range", "1 to 65535"),
        ("@nonesuch", "unknown group of ports '@nonesuch'", "@common"),
        ("@", "unknown group of ports '@'", "@web"),
        ("22,@wbe", "unknown group of ports '@wbe'", "@web"),
    ],
)
def test_a_usage_error_is_one_line_with_the_valid_values(text, wrong, valid):
    with pytest.raises(UsageError) as caught:
        parse_ports(text)
    assert wrong in str(caught.value)
    assert valid in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("numbers", [[0], [65536], [-1], []])
def test_numbers_are_checked_too(numbers):
    with pytest.raises(UsageError, match="1 to 65535"):
        parse_ports(numbers)


def test_a_group_among_others():
    assert parse_ports("@MAIL,22,25") == sorted({22, *parse_ports("@mail")})


def test_a_group_that_udp_does_not_have_is_an_error():
    with pytest.raises(UsageError, match="unknown group of ports '@mail' over UDP; valid values are @web"):
        parse_ports("@mail", "udp")


@pytest.mark.parametrize(("protocol", "group"), [(p, g) for p in GROUPS for g in GROUPS[p]])
def test_every_port_of_a_group_is_listed_once(protocol, group):
    listed = [int(n) for n in GROUPS[protocol][group][1].split(",")]
    assert listed == sorted(set(listed)) == parse_ports(f"@{group}", protocol)


def test_the_groups_have_what_their_names_promise():
    assert {80, 443, 8080, 8443} <= set(parse_ports("@web"))
    assert {1433, 1521, 3306, 5432, 6379, 27017} <= set(parse_ports("@db"))
    assert {25, 110, 143, 465, 587, 993, 995} <= set(parse_ports("@mail"))
    assert {22, 23, 3389, 5900, 5985} <= set(parse_ports("@remote"))
    assert {88, 135, 139, 389, 445, 3389, 5985} <= set(parse_ports("@windows"))
    assert {1883, 5672, 61616, 9092} <= set(parse_ports("@queue"))
    assert {22, 53, 80, 443, 445, 3306, 3389} <= set(parse_ports("@common"))
    assert {53, 67, 69, 123, 137, 161, 500, 1900, 5353} <= set(parse_ports("@common", "udp"))
    assert 95 <= len(parse_ports("@common")) <= 105
    assert set(UDP) < set(TCP)


SURVEYS = [
    (("localhost", "22,80"), (("localhost",), (22, 80), "tcp")),
    (("localhost 22 80",), (("localhost",), (22, 80), "tcp")),
    (("localhost:22",), (("localhost",), (22,), "tcp")),
    (("[::1]:22,80",), (("[::1]",), (22, 80), "tcp")),
    ((":::22",), (("[::]",), (22,), "tcp")),
    (("http://localhost:3000/x",), (("localhost",), (3000,), "tcp")),
    (("8080",), (("localhost",), (8080,), "tcp")),
    ((8080,), (("localhost",), (8080,), "tcp")),
    (([8080, 8081],), (("localhost",), (8080, 8081), "tcp")),
    ((("127.0.0.1", 8080),), (("127.0.0.1",), (8080,), "tcp")),
    ((":8080",), (("localhost",), (8080,), "tcp")),
    (("8000-8002",), (("localhost",), (8000, 8001, 8002), "tcp")),
    (("53/udp",), (("localhost",), (53,), "udp")),
    (("localhost:53/udp",), (("localhost",), (53,), "udp")),
    (("http/tcp",), (("localhost",), (80,), "tcp")),
    (("10.0.0.0/24", "53/udp"), (("10.0.0.0/24",), (53,), "udp")),
    (("10.0.0.0/24:80",), (("10.0.0.0/24",), (80,), "tcp")),
    (("10.0.0.1-20", [80]), (("10.0.0.1-20",), (80,), "tcp")),
    (("fe80::1%eth0", 80), (("fe80::1%eth0",), (80,), "tcp")),
    (("a:80 b:80",), (("a", "b"), (80,), "tcp")),
    (("a:80 a:443",), (("a",), (80, 443), "tcp")),
    (("http", "443"), (("http",), (443,), "tcp")),  # a host, as it always was
    (("@file", "80"), (("@file",), (80,), "tcp")),
]


@pytest.mark.parametrize(("arguments", "expected"), SURVEYS)
def test_targets_may_have_ports(arguments, expected):
    survey = parse_survey(*arguments)
    assert (survey.targets, survey.ports, survey.protocol) == expected


def test_without_ports_the_common_ones_are_scanned():
    assert list(parse_survey("localhost").ports) == parse_ports("@common")
    assert list(parse_survey("localhost", protocol="udp").ports) == parse_ports("@common", "udp")


@pytest.mark.parametrize(
    ("targets", "ports", "message"),
    [
        ("a:80 b:443", None, "the same ports for every target; write portbook scan a b -p PORTS, or portbook dial"),
        ("a:80 b", None, "the same ports for every target"),
        ("a:80", "443", "the same ports for every target"),
        ("8080/udp 80/tcp", None, "one protocol"),
        ("localhost", [], "no port to scan"),
        ("localhost:99999", None, "out of range"),
        ("localhost:nosuch", None, "not a number or the name of a service"),
        ([None], None, "NoneType"),
        ("localhost", 1.5, "float"),
    ],
)
def test_a_wrong_survey(targets, ports, message):
    with pytest.raises(UsageError, match=message):
        parse_survey(targets, ports)
