"""Messages to a service manager: a real socket receives them, as systemd's does."""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

if sys.platform == "win32":
    pytest.skip("the sockets are those of Unix", allow_module_level=True)

from portbook.system import notify


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A socket, and what NOTIFY_SOCKET names it."""
    name = f"{tmp_path}/notify"
    if request.param == "abstract":
        if sys.platform != "linux":
            pytest.skip("abstract sockets are of Linux")
        name = f"@portbook-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        yield receiver, name


def received(receiver: socket.socket) -> dict[str, str]:
    return dict(line.split("=", 1) for line in receiver.recv(4096).decode().split("\n"))


def test_each_message_arrives_as_it_is_documented(manager):
    receiver, name = manager
    service = notify.of_environment({"NOTIFY_SOCKET": name})
    assert service.listens
    service.ready("watches by bpf")
    assert received(receiver) == {"READY": "1", "STATUS": "watches by bpf"}
    before = time.monotonic_ns() // 1000
    service.reloading()
    message = received(receiver)
    assert message["RELOADING"] == "1"
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    service.stopping("ends")
    assert received(receiver) == {"STOPPING": "1", "STATUS": "ends"}


def test_a_status_is_one_line_and_is_sent_when_it_changes(manager):
    receiver, name = manager
    service = notify.of_environment({"NOTIFY_SOCKET": name})
    service.status("held by a\nREADY=1\x1b[31m" + "x" * 10_000)
    message = received(receiver)
    assert message.keys() == {"STATUS"}
    assert message["STATUS"].startswith("held by a READY=1 [31mxxx")
    assert len(message["STATUS"]) <= notify.MOST_STATUS
    service.status("one")
    service.status("one")
    service.status("two")
    assert [received(receiver)["STATUS"] for _ in range(2)] == ["one", "two"]


def test_the_watchdog_hears_three_times_in_its_period(manager):
    receiver, name = manager
    service = notify.of_environment(
        {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    )
    assert service.alive_every_s == 10
    service.alive()
    service.alive()
    service.ready("")
    assert [received(receiver).keys() for _ in range(2)] == [{"WATCHDOG"}, {"READY", "STATUS"}]


@pytest.mark.parametrize(
    "environment",
    [
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},  # of the process that started this one
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {},
    ],
)
def test_without_a_watchdog_nothing_is_sent(manager, environment):
    receiver, name = manager
    service = notify.of_environment({"NOTIFY_SOCKET": name, **environment})
    service.alive()
    receiver.settimeout(0)
    with pytest.raises(BlockingIOError):
        receiver.recv(1)


@pytest.mark.parametrize("address", [None, "", "@", "/", "vsock:2:1234", "relative", "/nowhere/at/all"])
def test_where_nobody_listens_nothing_happens(address):
    service = notify.of_environment({} if address is None else {"NOTIFY_SOCKET": address})
    service.ready("a")
    service.status("b")
    service.alive()
    service.stopping("c")


def test_children_do_not_inherit_the_socket(manager):
    environment = {"NOTIFY_SOCKET": manager[1], "WATCHDOG_USEC": "1", "WATCHDOG_PID": "1", "PATH": "/bin"}
    notify.of_environment(environment)
    assert environment == {"PATH": "/bin"}


def test_a_manager_that_does_not_read_delays_for_a_bounded_time(manager, monkeypatch):
    """The queue of a datagram socket is full after net.unix.max_dgram_qlen messages: unix(7)."""
    monkeypatch.setattr(notify, "LIMIT_S", 0.02)
    service = notify.of_environment({"NOTIFY_SOCKET": manager[1]})
    with open("/proc/sys/net/unix/max_dgram_qlen") if sys.platform == "linux" else open(os.devnull) as file:
        most = int(file.read() or 10)
    for number in range(min(most, 600) + 3):
        service.status(str(number))
