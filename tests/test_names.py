from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import names

# A selection of https://www.iana.org/assignments/service-names-port-numbers
REGISTERED = [
    (22, "tcp", "ssh"),
    (53, "udp", "domain"),
    (80, "tcp", "http"),
    (443, "tcp", "https"),
    (443, "udp", "https"),
    (465, "tcp", "submissions"),
    (514, "tcp", "shell"),
    (514, "udp", "syslog"),
    (853, "tcp", "domain-s"),
    (2375, "tcp", "docker"),
    (2376, "tcp", "docker-s"),
    (2379, "tcp", "etcd-client"),
    (3306, "tcp", "mysql"),
    (5353, "udp", "mdns"),
    (5432, "tcp", "postgresql"),
    (5672, "tcp", "amqp"),
    (6379, "tcp", "redis"),
    (8080, "tcp", "http-alt"),
    (9389, "tcp", "adws"),
    (11211, "tcp", "memcache"),
    (27017, "tcp", "mongodb"),
    (47808, "udp", "bacnet"),
]


@pytest.fixture
def ours():
    with open(names.OURS, encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize(("port", "protocol", "name"), REGISTERED)
def test_our_table_has_the_registered_name(ours, port, protocol, name):
    assert names.parse(ours)[port, protocol] == name


def test_every_line_of_our_table_is_well_formed(ours):
    lines = [line for line in ours.splitlines() if line and not line.startswith("#")]
    seen = set()
    for line in lines:
        name, spec = line.split(" ")
        port, *protocols = spec.split("/")
        assert name.isascii()
        assert 0 < int(port) < 65536
        assert protocols in (["tcp"], ["udp"], ["tcp", "udp"])
        for protocol in protocols:
            assert (port, protocol) not in seen, line
            seen.add((port, protocol))
    assert len(lines) >= 300


def test_an_unregistered_port_has_no_name():
    assert names.service_name(65535, "tcp") is None


def test_the_machines_file_comes_first(tmp_path, monkeypatch):
    mine = tmp_path / "services"
    mine.write_text("my-app 80/tcp www\nlegacy\t\t9999/tcp # kept for the old client\n")
    monkeypatch.setattr(names, "_machine_file", lambda: str(mine))
    monkeypatch.setattr(names, "_names", {})
    assert names.service_name(80, "tcp") == "my-app"
    assert names.service_name(9999, "tcp") == "legacy"
    assert names.service_name(443, "tcp") == "https"


def test_a_machine_without_the_file_still_has_names(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "_machine_file", lambda: str(tmp_path / "none"))
    monkeypatch.setattr(names, "_names", {})
    assert names.service_name(22, "tcp") == "ssh"


def test_the_first_name_of_a_port_counts_and_comments_do_not():
    text = "# http 1/tcp\nhttp 80/udp www www-http # Web\nhttp 80/tcp\nalso 80/tcp\n\n80/tcp\nx y/tcp\nz 123456/tcp\n"
    assert names.parse(text) == {(80, "udp"): "http", (80, "tcp"): "http"}


@given(st.text())
def test_any_text_can_be_parsed(text):
    names.parse(text)


def test_loading_is_quick():
    best = min(_timed(names.load) for _ in range(20))
    assert best < 0.010, "2 ms is the aim; five times that on a loaded machine is a regression"


def _timed(call):
    start = time.thread_time()
    call()
    return time.thread_time() - start
