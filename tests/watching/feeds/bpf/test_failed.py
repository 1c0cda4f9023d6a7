"""Binds that fail, of five kinds, in both families."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from portbook.enrich import cgroup
from portbook.watching.feeds.base import Change
from portbook.watching.feeds.bpf.subscription import Subscription
from tests.components import need
from tests.conftest import NOBODY

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("works")]
LIMIT_S = 10.0
CLONE_NEWNET = 0x40000000
FAMILIES = [socket.AF_INET, socket.AF_INET6]
LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
EVERY = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
NOT_LOCAL = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # RFC 5737, RFC 3849
CONTAINER = "c" * 64


def failure_of(feed: Subscription, pid: int, successes: int = 0) -> Change:
    """The failed bind of a process, which has succeeded so often before."""
    left = ["bound"] * successes
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        for change in feed.read(0.5):
            if change.socket is not None and change.socket.owners[0].pid == pid:
                if change.kind == "failed":
                    assert not left
                    return change
                left.remove(change.kind)
    raise AssertionError(f"no failed bind of {pid}")


@contextmanager
def child(work: Callable[[], None]) -> Iterator[int]:
    """A process that does its work, and then stays until the block ends."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        with suppress(BaseException):
            work()
        with suppress(BaseException):
            os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    try:
        yield pid
    finally:
        os.close(writing)
        os.waitpid(pid, 0)


def attempt(family: int, kind: int, address: str, port: int, error: str) -> Callable[[], None]:
    def work() -> None:
        with socket.socket(family, kind) as failing, pytest.raises(OSError, match=error):
            failing.bind((address, port))
        time.sleep(0)

    return work


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_in_use(feed: Subscription, family: int, kind: int) -> None:
    with socket.socket(family, kind) as holder:
        holder.bind((LOOPBACK[family], 0))
        port = holder.getsockname()[1]
        with child(attempt(family, kind, LOOPBACK[family], port, "in use")) as pid:
            failed = failure_of(feed, pid)
    row = failed.socket
    assert row is not None
    protocol = "tcp" if kind == socket.SOCK_STREAM else "udp"
    assert (row.protocol, row.local_address, row.local_port) == (protocol, LOOPBACK[family], port)
    assert row.owners[0].exe == os.readlink("/proc/self/exe")
    assert failed.parents[0].pid == os.getpid()
    assert not failed.process_gone


@pytest.mark.parametrize("family", FAMILIES)
def test_privileged(feed: Subscription, family: int) -> None:
    def work() -> None:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        attempt(family, socket.SOCK_STREAM, LOOPBACK[family], 81, "denied")()

    with child(work) as pid:
        failed = failure_of(feed, pid)
    assert failed.socket is not None
    assert (failed.socket.local_port, failed.socket.uid) == (81, NOBODY)


@pytest.mark.parametrize("family", FAMILIES)
def test_not_local(feed: Subscription, family: int) -> None:
    with child(attempt(family, socket.SOCK_STREAM, NOT_LOCAL[family], 8081, "assign")) as pid:
        failed = failure_of(feed, pid)
    assert failed.socket is not None
    assert (failed.socket.local_address, failed.socket.local_port) == (NOT_LOCAL[family], 8081)
    assert failed.socket.reach == "none"


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_container(feed: Subscription, family: int) -> None:
    """What a container is for the kernel: a network namespace, and a cgroup with the name of the container."""
    with container_cgroup() as enter:

        def work() -> None:
            enter()
            assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
            with socket.socket(family) as holder:
                holder.bind((EVERY[family], 8082))
                attempt(family, socket.SOCK_STREAM, EVERY[family], 8082, "in use")()

        with child(work) as pid:
            failed = failure_of(feed, pid, successes=1)
            netns = os.stat(f"/proc/{pid}/ns/net").st_ino
    row = failed.socket
    assert row is not None
    assert netns != os.stat("/proc/self/ns/net").st_ino
    assert (row.netns, row.local_port) == (netns, 8082)
    assert row.container == row.netns_name == f"podman:{CONTAINER[:12]}"


@pytest.mark.parametrize("family", FAMILIES)
def test_in_a_container_whose_process_is_gone(feed: Subscription, family: int) -> None:
    with container_cgroup() as enter:
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):
                enter()
                attempt(family, socket.SOCK_DGRAM, NOT_LOCAL[family], 8083, "assign")()
            os._exit(0)
        os.waitpid(pid, 0)
        failed = failure_of(feed, pid)
    assert failed.process_gone
    assert failed.socket is not None
    assert failed.socket.container == f"podman:{CONTAINER[:12]}"


@contextmanager
def container_cgroup() -> Iterator[Callable[[], None]]:
    """A cgroup with the name of a container, in cgroup v2 and, where there is one, in the hierarchy of systemd."""
    with open("/proc/self/mountinfo", "rb") as file:
        roots = [os.fsdecode(point) for root, point in cgroup.mounts(file.read()) if root == b"/"][:1]
    need(bool(roots), "a mounted root of cgroup v2")
    roots += [root for root in ("/sys/fs/cgroup/systemd",) if os.path.isdir(root)]
    directories = [f"{root}/libpod-{CONTAINER}.scope" for root in roots]

    def enter() -> None:
        for directory in directories:
            with open(f"{directory}/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

    for directory in directories:
        os.mkdir(directory)
    try:
        yield enter
    finally:
        for directory in directories:
            remove(directory)


def remove(directory: str) -> None:
    until = time.monotonic() + LIMIT_S
    while True:
        try:
            os.rmdir(directory)
        except OSError:  # its process is ending
            assert time.monotonic() < until
            time.sleep(0.01)
        else:
            return


def test_a_thread_that_computes_after_its_failed_bind(feed: Subscription) -> None:
    """No system call and no end shows that bind(2) is over: the thread is seen to run in user mode."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        pid = os.fork()
        if pid == 0:
            failing = socket.socket()
            with suppress(OSError):
                failing.bind(("127.0.0.1", port))
            until = time.monotonic() + 2 * LIMIT_S
            while time.monotonic() < until:
                pass
            os._exit(0)
        try:
            assert failure_of(feed, pid).at_ns > time.monotonic_ns() - 5_000_000_000
        finally:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


def test_a_second_bind_of_one_socket(feed: Subscription) -> None:
    with child(bind_twice) as pid:
        assert failure_of(feed, pid, successes=1).socket is not None


def bind_twice() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        with suppress(OSError):
            bound.bind(("127.0.0.1", 0))
        time.sleep(0.05)
