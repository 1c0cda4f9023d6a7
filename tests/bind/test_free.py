"""Free numbers: real binds on what was answered, and reasons for what was not."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from portbook.bind.free import Free, free
from portbook.errors import PortbookError, UsageError
from portbook.netconfig import ephemeral
from tests import netlab
from tests.bind.sockets import forget_ipv6, nothing_left_open, only_descriptors, opened, refusal

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
SRC = str(Path(__file__).parents[2] / "src")
KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


def command(*arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "portbook", "free", *arguments]
    return subprocess.run(run, capture_output=True, text=True, timeout=60, check=False, **more)


@pytest.fixture
def space(own_network):
    """A separate network: no other program takes a port meanwhile."""
    with netlab.namespace() as space:
        yield space


def test_a_hundred_can_really_be_bound(own_network):
    with nothing_left_open():
        found = free(100, protocols=("tcp", "udp"))
    assert found.enough
    assert len(set(found.ports)) == 100
    assert found.addresses == ("0.0.0.0", "::")
    refused = {
        (port, address, kind): why
        for port in found.ports
        for address in found.addresses
        for kind in KINDS.values()
        if (why := refusal(port, address, kind))
    }
    assert refused == {}


def test_two_answers_differ():
    assert free(50).ports != free(50).ports


@pytest.mark.parametrize(
    ("address", "kind", "listens"),
    [
        ("0.0.0.0", socket.SOCK_STREAM, True),
        ("::", socket.SOCK_STREAM, True),
        ("127.0.0.1", socket.SOCK_STREAM, True),
        ("::1", socket.SOCK_STREAM, False),
        ("127.0.0.2", socket.SOCK_STREAM, False),
        ("0.0.0.0", socket.SOCK_DGRAM, False),
        ("::1", socket.SOCK_DGRAM, False),
    ],
)
def test_a_port_in_use_is_not_free(own_network, address, kind, listens):
    """Any address, any family, listening or only bound, sharing or not: it blocks the wildcards."""
    with opened(0, address, kind, reuse=True) as held:
        if listens:
            held.listen()
        port = held.getsockname()[1]
        found = free(3, protocols=("tcp", "udp"), ports=range(port - 1, port + 2))
    assert found.ports == (port - 1, port + 1)
    assert found.refused == {"EADDRINUSE": 1}
    assert (found.tried, found.count, found.enough) == (3, 3, False)


def test_other_addresses_and_protocols_are_free(own_network):
    with opened(0, "127.0.0.1") as held:
        ports = [held.getsockname()[1]]
        held.listen()
        assert free(ports=ports, address="127.0.0.2").enough
        assert free(ports=ports, address="::1").enough
        assert free(ports=ports, protocols=("udp",)).enough
        assert not free(ports=ports, address="127.0.0.1").enough
        assert not free(ports=ports, address="localhost").enough


@pytest.mark.parametrize("arguments", [{"count": 0}, {"protocols": ()}, {"protocols": ("sctp",)}, {"ports": [70000]}])
def test_invalid_arguments_are_refused(arguments):
    with pytest.raises(UsageError):
        free(**arguments)


def test_an_address_of_another_machine_is_given_up_at_once(own_network):
    found = free(address="192.0.2.1")  # RFC 5737: documentation
    assert (found.ports, found.refused, found.tried) == ((), {"EADDRNOTAVAIL": 1}, 1)


@LINUX
def test_every_port_of_a_range_is_taken(space):
    def ask():
        with ExitStack() as stack:
            for port in range(17000, 17100):
                stack.enter_context(opened(port, "::" if port % 2 else "0.0.0.0"))
            return free(1, ports=range(17000, 17100)), free(2, ports=range(17000, 17102))

    none, two = space.call(ask)
    assert (none.ports, none.refused) == ((), {"EADDRINUSE": 100})
    assert two.ports == (17100, 17101)


@LINUX
def test_time_wait_blocks(space):
    """A server could bind, a program without SO_REUSEADDR could not: a free port is free for both."""

    def ask():
        with socket.create_server(("127.0.0.1", 17000)) as server:
            client = socket.create_connection(server.getsockname())
            accepted, _ = server.accept()
            accepted.close()
            client.recv(1)
            client.close()
        return free(ports=[17000]).refused, refusal(17000), refusal(17000, reuse=True)

    assert space.call(ask) == ({"EADDRINUSE": 1}, "EADDRINUSE", None)


@LINUX
def test_reserved_ports_and_the_ephemeral_range(space):
    """Few are left outside of them, so they would be met."""

    def ask():
        return free(200), free(200, avoid_ephemeral=True), free(64535, ports=range(1000, 65000), avoid_ephemeral=True)

    space.sysctl("net.ipv4.ip_local_port_range", "1500 65535")
    space.sysctl("net.ipv4.ip_local_reserved_ports", "2000-60000")
    anything, lasting, asked = space.call(ask)
    assert anything.enough
    assert not any(2000 <= port <= 60000 for port in (*anything.ports, *lasting.ports))
    assert all(port < 1500 for port in lasting.ports)
    assert asked.ports == (*range(1000, 1500), *range(2000, 60001))
    assert asked.passed_over == {"ephemeral": 500 + 4999}


@LINUX
def test_without_ipv6_the_other_family_counts(space):
    """Switched off in the namespace: ::1 is gone. Not in the kernel: there is no such socket at all."""

    def switched_off():
        return free(address="localhost"), free(address="::1")

    def unknown():
        forget_ipv6()
        return free(3), free(address="localhost"), free(address="::1")

    space.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    both, only = space.call(switched_off)
    assert (both.enough, both.addresses) == (True, ("127.0.0.1",))
    assert (only.ports, only.refused) == ((), {"EADDRNOTAVAIL": 1})
    wildcards, loopback, six = space.call(unknown)
    assert (wildcards.enough, wildcards.addresses) == (True, ("0.0.0.0",))
    assert (loopback.enough, loopback.addresses) == (True, ("127.0.0.1",))
    assert (six.ports, six.refused) == ((), {"EAFNOSUPPORT": 1})


@LINUX
def test_without_descriptors_it_cannot_be_found_out(space):
    def ask():
        free()
        answers = []
        for spare in (0, 1, 2):
            try:
                with only_descriptors(spare):
                    answers.append(free(ports=range(17000, 17010)).enough)
            except PortbookError as error:
                answers.append((type(error).__name__, error.exit_code, "EMFILE" in str(error)))
        return answers

    refused = ("PortbookError", 5, True)
    assert space.call(ask) == [refused, refused, True]


@LINUX
def test_privileged_ports_of_an_ordinary_user(own_network, as_nobody):
    done = as_nobody(sys.executable, "-m", "portbook", "free", "--range", "80-89,17000", "-n2", env={"PYTHONPATH": SRC})
    assert (done.returncode, done.stdout) == (1, "17000\n")
    assert "found 1 of 2: permission denied for 10 (EACCES)" in done.stderr


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_prints_numbers_and_that_they_are_not_reserved(own_network):
    done = command("-n", "20", "--range", "17000-17100", "--both")
    numbers = [int(line) for line in done.stdout.split("\n")[:-1]]
    assert (done.returncode, len(set(numbers))) == (0, 20)
    assert numbers == sorted(numbers)
    binds = [(port, address, kind) for port in numbers for address in ("0.0.0.0", "::") for kind in KINDS.values()]
    assert all(refusal(*one) is None for one in binds)
    assert "not reserved" in done.stderr
    assert command("-q").stderr == ""


def test_the_command_reports_how_many_are_missing_and_why(own_network):
    with opened(17001):
        done = command("-n", "3", "--range", "17000-17002")
    assert (done.returncode, done.stdout) == (1, "17000\n17002\n")
    assert done.stderr.splitlines()[1] == "portbook: found 2 of 3: 1 in use (EADDRINUSE)"
    done = command("--address", "192.0.2.1")
    assert done.stderr == "portbook: found 0 of 1: this machine does not have the address (EADDRNOTAVAIL)\n"
    limits = ephemeral.take()
    done = command("--range", f"{limits.low}-{limits.low + 9}", "--avoid-ephemeral")
    assert (done.returncode, done.stdout) == (1, "")
    assert "10 skipped because outgoing connections may get them" in done.stderr


def test_json(own_network):
    with opened(17001):
        done = command("-n", "3", "--range", "17000-17002", "--address", "127.0.0.1", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert json.loads(done.stdout) == {
        "schema": 1,
        "count": 3,
        "ports": [17000, 17002],
        "protocols": ["tcp"],
        "addresses": ["127.0.0.1"],
        "reserved": False,
        "tried": 3,
        "refused": {"EADDRINUSE": 1},
        "passed_over": {},
        "gaps": [],
        "redirected": [],
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "0"],
        ["-n", "x"],
        ["--range", "10-5"],
        ["--range", "0-5"],
        ["--range", ""],
        ["--address", "no.such"],
        ["x"],
    ],
)
def test_usage_errors(arguments):
    done = command(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


def test_the_json_page_has_the_fields():
    page = (Path(__file__).parents[2] / "docs" / "json.md").read_text()
    assert all(f"`{field}`" in page for field in Free.__struct_fields__)
