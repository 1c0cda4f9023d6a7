"""An empty list says how it was read, and what would have matched. Sockets of the test say what is right."""

from __future__ import annotations

import socket
import sys
from datetime import UTC, datetime

import pytest

from portbook import query
from portbook.__main__ import main
from portbook.cli import empty
from portbook.records import Listing, Owner, Socket
from portbook.testing import FakeSource, only_sources
from tests.conftest import unheld_port


def explain(text: str, every: bool = False) -> str:
    with only_sources(FakeSource()):
        return empty.explain(query.parse(text), not every, "fake")


def test_nothing_at_all():
    assert explain("") == "nothing waits on this machine"
    assert explain("", every=True) == "there is no socket"


def test_a_word_says_how_it_was_read():
    assert explain("nginx") == (
        "no socket that waits on a port matches word:nginx; 'nginx' was read as the name of a process"
    )
    assert "'http' was read as the name of a process, and as port 80" in explain("http")
    assert explain("8080/udp", every=True) == "no socket matches port:8080/udp"


def test_what_a_word_would_have_matched_elsewhere(monkeypatch):
    web = Owner(7, name="python3", user="shop", service="cart.service", container="docker:web")
    found = Socket("tcp", "ipv4", "0.0.0.0", 80, state="LISTEN", owners=(web,))

    def take(wanted, source):
        tests = filter(None, (wanted.socket_test(), wanted.owner_test()))
        sockets = (found,) if all(test(found) for test in tests) else ()
        return Listing(1, "here", "linux", datetime.now(UTC), "fake", True, sockets)

    monkeypatch.setattr(empty, "take", take)
    assert "a container matches" not in explain("web udp")
    assert "a container matches: portbook list container:web protocol:tcp" in explain("web tcp")
    assert "a service matches: portbook list service:cart" in explain("cart")
    assert "a user matches: portbook list user:shop" in explain("shop")


@pytest.mark.usefixtures("own_network")
@pytest.mark.parametrize(
    "words", [["{port}"], ["{port}/tcp"], [":{port}"], ["-p", "{port}"], ["127.0.0.1:{port}"], ["localhost:{port}"]]
)
def test_the_port_of_a_connection_is_in_another_state(words, capsys, monkeypatch):
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        port = client.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["portbook", *(word.format(port=port) for word in words)])
        assert main() == 0
    assert "1 socket in other states matches: --all" in capsys.readouterr().err


def test_a_free_port(capsys, monkeypatch):
    port = unheld_port()
    monkeypatch.setattr(sys, "argv", ["portbook", f"{port}/udp"])
    assert main() == 0
    assert f"no socket that waits on a port matches port:{port}/udp\n" in capsys.readouterr().err
