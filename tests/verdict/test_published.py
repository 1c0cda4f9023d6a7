"""A real container with a published port: podman, whose conmon holds the port while NAT rules redirect the packets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import time

import pytest

from portbook import why
from portbook.managers import publications, runtimes
from portbook.netconfig.facts import Publication
from tests import netlab
from tests.components import need
from tests.managers import test_podman
from tests.managers.test_container import daemon
from tests.verdict.network import bound, everywhere
from tests.verdict.verdicts import codes, finding

image = test_podman.image
NAME = f"portbook-published-{os.getpid()}"


@pytest.fixture
def network():
    with netlab.namespace() as space, space:
        yield space


@pytest.fixture
def web(network, image):
    """A web server on port 80 of a container, published as 8080."""
    networks = ("/usr/lib/cni/portmap", "/usr/lib/podman/netavark")
    need(any(map(os.path.exists, networks)), "podman's networks (package containernetworking-plugins)")
    need(shutil.which("iptables") is not None, "iptables")
    network.sysctl("net.ipv4.ip_forward", 1)
    published = ("--detach", "--name", NAME, "--publish", "8080:80", *test_podman.LIMITS)
    try:
        test_podman.podman(
            "--runtime", "runc", "run", *published, image, "/bin/busybox", "httpd", "-f", "-p", "80"
        )  # fmt: skip
        yield json.loads(test_podman.podman("inspect", NAME))[0]
    finally:
        test_podman.podman("rm", "--force", "--time", "0", NAME, check=False)


def test_a_port_that_podman_publishes(web):
    address = web["NetworkSettings"]["Networks"]["podman"]["IPAddress"]
    verdict = why(8080)
    assert (verdict.can_have, everywhere(8080)) == (False, False)
    assert codes(verdict, "blocks") == ["listener"]
    relay, rule = finding(verdict, "relay"), finding(verdict, "nat-rule")
    assert (relay.evidence["pid"], relay.evidence["container"]) == (web["State"]["ConmonPid"], f"podman:{NAME}")
    assert relay.remedy == f"podman stop {NAME} frees the port"
    assert (rule.evidence["to_address"], rule.evidence["to_port"]) == (address, 80)
    assert codes(why(8081)) == []


def test_when_only_its_nat_rules_are_left(web, network):
    """The container's monitor has ended: the port is free, but its packets still go to the container."""
    os.kill(web["State"]["ConmonPid"], signal.SIGKILL)
    for _ in range(200):
        if everywhere(8080):
            break
        time.sleep(0.02)
    verdict = why(8080)
    assert (verdict.can_have, codes(verdict)) == (True, ["nat-rule"])
    gateway = web["NetworkSettings"]["Networks"]["podman"]["Gateway"]
    with bound(listens=True) as mine, socket.create_connection((gateway, 8080), 10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.")  # the container answers, not this listener
        mine.setblocking(False)
        with pytest.raises(BlockingIOError):
            mine.accept()


LISTED = [
    {
        "Id": "0123456789abcdef" * 4,
        "Names": ["/web", "/other/alias"],
        "Ports": [{"IP": "0.0.0.0", "PrivatePort": 80, "PublicPort": 8080, "Type": "tcp"}],
        "NetworkSettings": {"Networks": {"bridge": {"IPAddress": "172.17.0.2", "GlobalIPv6Address": ""}}},
    }
]


def answer(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" + body


@pytest.fixture
def no_podman(monkeypatch):
    monkeypatch.setattr(runtimes, "_podman_socket", lambda _: "/nonexistent")


def test_docker_names_the_container_behind_an_address(tmp_path, monkeypatch, no_podman):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [str(tmp_path / "none"), path])
    with daemon(path, answer(json.dumps(LISTED).encode())) as asked:
        found, gaps = publications.take()
    assert found == (Publication("docker:web", "tcp", 8080, ("172.17.0.2",)),)
    assert gaps == []
    assert len(asked) == 1


@pytest.mark.parametrize("body", [b"", b"[]garbage", b'{"message": "no"}', b'[{"Id": 5}]', b"[" * 100_000])
def test_a_daemon_that_talks_nonsense_is_a_gap(tmp_path, monkeypatch, no_podman, body):
    path = str(tmp_path / "docker.sock")
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: [path])
    with daemon(path, answer(body)):
        found, (gap,) = publications.take()
    assert (found, gap.what) == ((), "container")


def test_no_daemon_is_no_loss(monkeypatch, no_podman):
    monkeypatch.setattr(runtimes, "_docker_sockets", lambda _: ["/nonexistent"])
    assert publications.take() == ((), [])
