"""Addresses that no interface has, and broadcast addresses, in a network namespace of the tests' own."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("Linux's interfaces and routes", allow_module_level=True)

from portbook import sources, take
from portbook.enrich import reach
from portbook.netconfig.linux import interfaces
from portbook.records import Socket
from tests.components import need
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("own_network")
IP_FREEBIND, IPV6_FREEBIND = 15, 78
WORKING = [name for name in sources.names() if sources.missing(name) is None]


@pytest.fixture(scope="module")
def network(own_network):
    need(ROOT, "root, for addresses of the test's own")
    for line in (
        "link add d0 type veth peer name d1",
        "link set d1 up",
        "address add 192.0.2.1/24 broadcast 192.0.2.255 dev d0",
        "address add 2001:db8::1/64 dev d0 nodad",
        "link set d0 up",
        "route add local 198.51.100.0/24 dev lo",
        "-6 route add local 2001:db8:1::/64 dev lo",
    ):
        subprocess.run(["ip", *line.split()], check=True)


def bound(address, kind=socket.SOCK_DGRAM):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, kind)
    if family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    one.bind((address, 0))
    if kind == socket.SOCK_STREAM:
        one.listen()
    return one


REACHES = [
    ("192.0.2.1", "address"),
    ("192.0.2.255", "broadcast"),
    ("192.0.2.9", "none"),
    ("203.0.113.1", "none"),
    ("198.51.100.7", "address"),  # a local route without an address of an interface
    ("2001:db8::1", "address"),
    ("2001:db8::9", "none"),
    ("2001:db8:1::9", "address"),
    ("127.0.0.9", "loopback"),
    ("0.0.0.0", "any"),
    ("224.0.0.251", "multicast"),
    ("255.255.255.255", "broadcast"),
]


@pytest.mark.parametrize(("address", "expected"), REACHES)
def test_udp(network, address, expected):
    with bound(address) as one:
        (found,) = take(f"udp port:{one.getsockname()[1]}").sockets
    assert (found.local_address, found.reach) == (address, expected)


@pytest.mark.parametrize("source", WORKING)
def test_a_listener_whose_interface_has_lost_the_address(network, source):
    subprocess.run(["ip", "address", "add", "192.0.2.77/24", "dev", "d0"], check=True)
    with socket.create_server(("192.0.2.77", 0)) as one:
        query = f"state:listen port:{one.getsockname()[1]}"
        assert [s.reach for s in take(query, source=source).sockets] == ["address"]
        subprocess.run(["ip", "address", "delete", "192.0.2.77/24", "dev", "d0"], check=True)
        assert [s.reach for s in take(query, source=source).sockets] == ["none"]


def test_a_filtered_answer_equals_the_filtered_whole(network):
    opened = [bound(address) for address, _ in REACHES]
    ports = {one.getsockname()[1] for one in opened}
    whole = [s for s in take("state:listening").sockets if s.local_port in ports]
    for word in ("none", "address", "broadcast", "multicast", "any", "loopback"):
        part = [s for s in take(f"reach:{word} state:listening").sockets if s.local_port in ports]
        assert {s.inode for s in part} == {s.inode for s in whole if s.reach == word} != set()
    for one in opened:
        one.close()


def test_other_namespaces_have_other_interfaces(network):
    sockets = [Socket("tcp", "ipv4", "203.0.113.1", 80, state="LISTEN", netns=1)]
    assert reach.complete(sockets) == sockets


def test_connections_keep_their_reach(network):
    sockets = [Socket("tcp", "ipv4", "203.0.113.1", 80, "192.0.2.1", 9, "ESTABLISHED")]
    assert reach.complete(sockets) is sockets


def test_interfaces_that_cannot_be_read(network, monkeypatch):
    def refuse():
        raise OSError("no netlink")

    monkeypatch.setattr(interfaces, "read_addresses", refuse)
    sockets = [Socket("tcp", "ipv4", "203.0.113.1", 80, state="LISTEN")]
    assert reach.complete(sockets) is sockets
