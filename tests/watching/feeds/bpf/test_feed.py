"""The feed against sockets that the tests open."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from portbook.watching.feeds.base import Change
from portbook.watching.feeds.bpf.subscription import Subscription

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works")]
LIMIT_S = 10.0
IP_BIND_ADDRESS_NO_PORT = 24  # include/uapi/linux/in.h
IPPROTO_MPTCP = 262


def changes_of(feed: Subscription, port: int, kind: str) -> list[Change]:
    """The changes of the sockets of this process with a port, until there is one of the kind."""
    keys, found = set(), []
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for change in feed.read(0.5):
            row = change.socket
            if row is not None and row.local_port == port and row.owners[0].pid == os.getpid():
                keys.add(change.key)
            if change.key in keys:
                found.append(change)
        if any(change.kind == kind for change in found):
            return found
    raise AssertionError(f"no {kind}: {found}")


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_listener_from_bind_to_end(feed: Subscription, family: int, address: str) -> None:
    before_ns = time.monotonic_ns()
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        cookie = int.from_bytes(listener.getsockopt(socket.SOL_SOCKET, 57, 8), "little")  # SO_COOKIE
    after_ns = time.monotonic_ns()
    bound, listening, ended = changes_of(feed, port, "ended")
    assert [bound.kind, listening.kind, ended.kind] == ["bound", "listening", "ended"]
    assert before_ns < bound.at_ns < listening.at_ns < ended.at_ns < after_ns
    assert bound.key == listening.key == ended.key == cookie
    assert bound.socket is not None
    assert bound.socket.state == "BOUND"
    found = listening.socket
    assert found is not None
    assert (found.protocol, found.state, found.local_address, found.local_port) == ("tcp", "LISTEN", address, port)
    assert (found.netns, found.reach) == (os.stat("/proc/self/ns/net").st_ino, "loopback")
    assert found.owners[0].pid == os.getpid()
    assert found.owners[0].exe == os.readlink("/proc/self/exe")
    assert found.owners[0].command_line is not None
    assert listening.parents[0].pid == os.getppid()
    assert not listening.process_gone


@pytest.mark.parametrize(("address", "v6only"), [("::", False), ("::", True), ("::ffff:127.0.0.1", False)])
def test_a_datagram_socket(feed: Subscription, address: str, v6only: bool) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        server.bind((address, 0))
        port = server.getsockname()[1]
    bound, ended = changes_of(feed, port, "ended")
    assert (bound.kind, ended.kind) == ("bound", "ended")
    row = bound.socket
    assert row is not None
    assert (row.protocol, row.state, row.local_address, row.v6only) == ("udp", None, address, v6only)


def test_a_link_local_address_has_its_zone(feed: Subscription) -> None:
    """lo has no address of fe80::/10; a bind to a device shows the same field of the record."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
        server.bind(("127.0.0.1", 0))
        bound, *_ = changes_of(feed, server.getsockname()[1], "bound")
    assert bound.socket is not None
    assert (bound.socket.interface, bound.socket.zone) == ("lo", None)


def test_a_listener_that_was_not_bound(feed: Subscription) -> None:
    """The kernel gives it a port after it has told that it listens: once read in time, once when it is gone already."""
    with socket.socket() as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert [change.kind for change in changes_of(feed, port, "listening")] == ["listening"]
    with socket.socket() as listener:
        listener.listen()
        port = listener.getsockname()[1]
    assert [change.kind for change in changes_of(feed, port, "ended")] == ["listening", "ended"]


def test_a_bound_socket_that_becomes_a_client(feed: Subscription) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())
        kinds = [change.kind for change in changes_of(feed, client.getsockname()[1], "connected")]
    assert kinds == ["bound", "connected"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind(("127.0.0.1", 0))
        client.connect(("127.0.0.1", 9))
        kinds = [change.kind for change in changes_of(feed, client.getsockname()[1], "connected")]
    assert kinds == ["bound", "connected"]


def test_a_listener_that_is_shut_down_stays_bound(feed: Subscription) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.shutdown(socket.SHUT_RDWR)
        with socket.socket() as second, suppress(OSError):
            second.bind(("127.0.0.1", port))
            pytest.fail("the port was free")
    kinds = [change.kind for change in changes_of(feed, port, "failed")]
    assert [kind for kind in kinds if kind != "failed"] == ["bound", "ended", "bound", "listening", "bound", "ended"]


def test_a_listener_of_mptcp(feed: Subscription) -> None:
    """Its process has the MPTCP socket; the port is that of a TCP socket below, which is the kernel's."""
    for listens in (True, False):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as listener:
            listener.bind(("127.0.0.1", 0))
            if listens:
                listener.listen()
            port = listener.getsockname()[1]
        found = changes_of(feed, port, "ended")
        expected = ["bound", "listening", "ended"] if listens else ["bound", "ended"]
        assert [change.kind for change in found][: len(expected)] == expected
        assert found[0].socket is not None
        assert found[0].socket.owners[0].pid == os.getpid()


def test_sockets_from_before_the_feed_end(feed: Subscription) -> None:
    """What was bound before is not told; its end is: the loop has read it at the start."""
    with socket.socket() as listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        feed.close()
        listener.bind(("127.0.0.1", 0))
        server.bind(("127.0.0.1", 0))
        keys = {int.from_bytes(s.getsockopt(socket.SOL_SOCKET, 57, 8), "little") for s in (listener, server)}
        feed.__init__(1 << 20)  # type: ignore[misc]
    ended = set()
    until = time.monotonic() + LIMIT_S
    while not keys <= ended and time.monotonic() < until:
        ended |= {change.key for change in feed.read(0.5) if change.kind == "ended"}
    assert keys <= ended


def test_a_client_without_a_port_of_its_own_choice(feed: Subscription) -> None:
    """Such a bind succeeds without the hook of a success; and a client that the kernel gives a port is not told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for prepare in (lambda s: s.setsockopt(0, IP_BIND_ADDRESS_NO_PORT, 1), None):
            with socket.socket() as client:
                if prepare is not None:
                    prepare(client)
                    client.bind(("127.0.0.1", 0))
                client.connect(server.getsockname())
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(b"", server.getsockname())
    with socket.socket() as last:
        last.bind(("127.0.0.1", 0))
        port = last.getsockname()[1]
    mine: list[Change] = []
    until = time.monotonic() + LIMIT_S
    while not any(change.socket and change.socket.local_port == port for change in mine):
        assert time.monotonic() < until
        mine += [c for c in feed.read(0.5) if c.socket is not None and c.socket.owners[0].pid == os.getpid()]
    kinds = [change.kind for change in mine]
    assert kinds == ["bound", "listening", "bound"]


def test_the_process_is_known_when_it_was_gone_first(feed: Subscription) -> None:
    """Nobody reads until it has ended; its name is any bytes."""

    def child() -> None:
        with open("/proc/self/comm", "wb") as file:
            file.write(b"\xff\n\x1b[2Jevil")
        listener = socket.create_server(("127.0.0.1", 0))
        os.write(writing, b"%d" % listener.getsockname()[1])

    reading, writing = os.pipe()
    pid = forked(child)
    os.waitpid(pid, 0)
    port = int(os.read(reading, 10))
    os.close(reading)
    os.close(writing)
    until = time.monotonic() + LIMIT_S
    found: list[Change] = []
    while not found and time.monotonic() < until:
        found = [c for c in feed.read(0.5) if c.kind == "listening" and c.socket and c.socket.local_port == port]
    (listening,) = found
    assert listening.process_gone
    assert listening.socket is not None
    owner = listening.socket.owners[0]
    assert (owner.pid, owner.name, owner.user, owner.exe) == (pid, "\ufffd\n\x1b[2Jevil", "root", None)
    assert listening.parents[0].pid == owner.ppid == os.getpid()
    assert owner.started is not None
    assert abs(owner.started.timestamp() - time.time()) < 30


def test_a_process_whose_first_thread_has_ended(feed: Subscription) -> None:
    """Its entry in /proc is that of a zombie; another thread tells what it runs."""
    program = """
import ctypes, os, socket, sys, threading
def serve():
    while open("/proc/self/stat").read().rpartition(")")[2].split()[0] != "Z": pass
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=serve).start()
ctypes.CDLL(None).syscall(60, 0)
"""
    import subprocess
    import sys

    if os.uname().machine != "x86_64":
        program = program.replace("syscall(60", "syscall(93")
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        port = int(running.stdout.readline())
        until = time.monotonic() + LIMIT_S
        found: list[Change] = []
        while not found and time.monotonic() < until:
            found = [c for c in feed.read(0.5) if c.kind == "listening" and c.socket and c.socket.local_port == port]
        running.stdin.close()
    (listening,) = found
    assert listening.socket is not None
    assert not listening.process_gone
    assert listening.socket.owners[0].exe == os.path.realpath(sys.executable)
    assert listening.socket.owners[0].pid == running.pid


def forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        with suppress(BaseException):
            work()
        os._exit(0)
    return pid
