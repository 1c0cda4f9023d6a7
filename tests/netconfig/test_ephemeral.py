"""The range of automatic choice: what the kernel says, and what it does."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from portbook.netconfig import ephemeral
from tests import netlab

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own files")


def test_the_range_of_the_kernel():
    found = ephemeral.parse(b"32768\t60999\n", b"8080,9000-9010\n", "linux")
    assert (found.low, found.high, found.reserved) == (32768, 60999, ((8080, 8080), (9000, 9010)))
    assert (found.how, found.gaps) == ("/proc/sys/net/ipv4/ip_local_port_range", ())
    assert ephemeral.parse(b"49152 65535", b"", "darwin").how == "net.inet.ip.portrange.first"


def test_nothing_reserved_is_an_empty_line():
    assert ephemeral.parse(b"32768\t60999\n", b"\n", "linux").reserved == ()


@pytest.mark.parametrize("said", [b"", b"-1 -1", b"60999 32768", b"1 99999", b"something else"])
@pytest.mark.parametrize(("platform", "first"), [("linux", 32768), ("win32", 49152), ("darwin", 49152)])
def test_an_unreadable_range_is_the_default_with_a_gap(said, platform, first):
    found = ephemeral.parse(said, b"", platform)
    assert (found.low, found.how) == (first, "documented default")
    assert [gap.what for gap in found.gaps] == ["setting"]


def test_hidden_reserved_ports_are_a_gap():
    found = ephemeral.parse(b"32768 60999", None, "linux")
    assert (found.reserved, found.gaps) == ((), ())
    assert [gap.why for gap in found.reserved_gaps] == ["/proc/sys/net/ipv4/ip_local_reserved_ports could not be read"]


@LINUX
def test_in_a_container_that_hides_its_settings():
    """With an empty directory mounted there, as root in a mount namespace of its own."""
    netlab.needed()
    script = "import portbook; print(*(gap.why for gap in portbook.free(avoid_ephemeral=True).gaps), sep='\\n')"
    shell = 'mount -t tmpfs none /proc/sys && exec "$0" -c "$1"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", shell, sys.executable, script], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    assert first.endswith("the documented default, 32768 to 60999, is assumed")
    assert second.endswith("ip_local_reserved_ports could not be read")


@pytest.mark.parametrize("text", [b"80-", b"a", b"80,,90", b"1_0", b"+80", b"99999", b"80-90-100"])
def test_reserved_ports_that_are_not_understood_are_a_gap(text):
    found = ephemeral.parse(b"32768 60999", text, "linux")
    assert (found.low, found.reserved, found.gaps) == (32768, (), ())
    (gap,) = found.reserved_gaps
    assert gap.why.startswith("/proc/sys/net/ipv4/ip_local_reserved_ports could not be parsed: ")


@pytest.mark.parametrize("text", ["٣٢٧٦٨ ٦٠٩٩٩".encode(), b"+1 +2", b"1_0 2_0"])
def test_a_range_is_ascii_digits(text):
    assert ephemeral.parse(text, b"", "linux").how == "documented default"


def test_reserved_ports_are_not_ephemeral():
    found = ephemeral.parse(b"40000 40009", b"40005", "linux")
    assert [port for port in range(39998, 40012) if found.has(port)] == [*range(40000, 40005), *range(40006, 40010)]


@LINUX
def test_sysctl_agrees():
    told = subprocess.run(
        ["sysctl", "-n", "net.ipv4.ip_local_port_range"], capture_output=True, text=True, check=True
    ).stdout.split()
    found = ephemeral.take()
    assert [found.low, found.high] == [int(word) for word in told]


@LINUX
def test_connections_get_ephemeral_ports():
    """In a network of ten ephemeral ports, two of them reserved: connections have all the others, and no more."""
    with netlab.namespace() as space:
        space.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
        space.sysctl("net.ipv4.ip_local_reserved_ports", "40003,40007")
        used, found = space.call(_used)
    assert used == {port for port in range(1, 65536) if found.has(port)}
    assert len(used) == 8


def _used():
    with socket.create_server(("127.0.0.1", 9)) as server:
        clients = []
        try:
            for _ in range(8):
                clients.append(socket.create_connection(server.getsockname()))
            return {client.getsockname()[1] for client in clients}, ephemeral.take()
        finally:
            for client in clients:
                client.close()
