"""Dialing and waiting in networks of their own: slow hosts, missing hosts, resolvers, process 1 of a container."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from portbook import dialing, waiting
from tests import netlab
from tests.components import need
from tests.listeners import COMMAND


@pytest.mark.root
def test_a_handshake_of_four_seconds_succeeds():
    """The old limit of one attempt was 3 s, whatever --timeout said."""
    with netlab.pair(rtt_ms=3600) as lab:
        with lab.target:
            listener = socket.create_server((netlab.TARGET, 80))
        with listener:
            # The neighbour is found beforehand: that takes a round trip of its own.
            for one, other, address in (
                (lab.client, lab.target, netlab.TARGET),
                (lab.target, lab.client, netlab.CLIENT),
            ):
                mac = other.run("ip", "-br", "link", "show", "link0").split()[2]
                one.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", "link0")
            missing = lab.client.call(waiting.wait_for, [f"{netlab.TARGET}:80"])
    assert missing == []


@pytest.mark.root
def test_dial_waits_for_the_verdict_about_a_neighbour_that_does_not_exist():
    with netlab.pair() as lab:
        (answer,) = lab.client.call(dialing.dial, "10.77.0.99:80").addresses
    assert (answer.outcome, answer.evidence.icmp_type, answer.evidence.icmp_code) == ("unreachable", 3, 1)


@pytest.mark.root
def test_a_shortage_of_own_ports_is_no_loss():
    def dialed():
        with socket.create_server(("127.0.0.1", 80)) as listener:
            threading.Thread(target=accept_all, args=(listener,), daemon=True).start()
            return dialing.dial("127.0.0.1:80", times=30).timing

    with netlab.pair() as lab:
        lab.client.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
        lab.client.sysctl("net.ipv4.tcp_tw_reuse", 0)
        timing = lab.client.call(dialed)
    assert (timing.count, timing.lost, timing.shortage.error) == (30, 0, "EADDRNOTAVAIL")
    assert timing.not_sent >= 15


def accept_all(listener):
    kept = []
    with contextlib.suppress(OSError):
        while True:
            kept.append(listener.accept()[0])


# --- resolvers -----------------------------------------------------------------------------------------------------


def dns_answers(codes):
    """A DNS server that answers with a code for each name (RFC 1035 section 4.1.1), and no address."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))

    def serve():
        while True:
            query, sender = server.recvfrom(512)
            label = query[13 : 13 + query[12]].decode()
            if label in codes:
                server.sendto(
                    query[:2] + bytes([0x81, 0x80 | codes[label]]) + query[4:6] + bytes(6) + query[12:], sender
                )

    threading.Thread(target=serve, daemon=True).start()


def outcomes_with_a_dns_server(names):
    """In a mount namespace of its own, with a resolver that is the server above."""
    libc = netlab._libc()
    netlab._check(libc.unshare(0x00020000), "unshare")  # CLONE_NEWNS
    netlab._check(libc.mount(None, b"/", None, 0x4000 | 0x40000, None), "mount")  # MS_REC | MS_PRIVATE
    path = f"/tmp/portbook-resolv-{os.getpid()}"
    with open(path, "w", encoding="ascii") as file:
        file.write("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    try:
        netlab._check(libc.mount(path.encode(), b"/etc/resolv.conf", None, 0x1000, None), "mount")  # MS_BIND
    finally:
        os.unlink(path)
    dns_answers({"missing": 3, "broken": 2, "refused": 5})
    dials = [dialing.dial(f"{name}.test:80").addresses[0] for name in names]
    return [(dial.outcome, dial.evidence.error) for dial in dials]


@pytest.mark.root
def test_what_a_real_resolver_says_about_names():
    with netlab.namespace() as space:
        missing, broken, refused = space.call(outcomes_with_a_dns_server, ["missing", "broken", "refused"])
    assert missing == ("name-not-found", "EAI_NONAME")
    assert broken == ("lookup-failed", "EAI_AGAIN")
    assert refused == ("lookup-failed", "EAI_AGAIN")


# --- process 1 of a container --------------------------------------------------------------------------------------

ENDLESS = [["wait", "127.0.0.1:1", "--timeout", "60"], ["scan", "127.0.0.1", "-p", "1-65535", "--rate", "10"]]


@pytest.mark.root
@pytest.mark.parametrize("words", ENDLESS, ids=["wait", "scan"])
@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("HUP", 129), ("INT", 130)])
def test_process_1_ends_on_signals(words, name, code):
    """It has no default actions: a signal without a handler is dropped (pid_namespaces(7))."""
    netlab.needed()
    need(shutil.which("unshare") is not None, "unshare (package util-linux)")
    number = getattr(signal, f"SIG{name}")
    with subprocess.Popen(
        ["unshare", "--fork", "--pid", "--mount-proc", *COMMAND, *words], stdout=subprocess.DEVNULL
    ) as outer:
        try:
            inner = first_child(outer.pid)
            until_handled(inner, signal.SIGTERM)  # which the command does first; SIGINT is Python's until then
            os.kill(inner, number)
            assert outer.wait(20) == code
        finally:
            outer.kill()


def first_child(pid):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            if children := file.read().split():
                return int(children[0])
        time.sleep(0.01)
    raise AssertionError("unshare did not start the command")


def until_handled(pid, number):
    """Until the process has a handler: proc_pid_status(5), SigCgt."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            caught = next(line for line in file if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) >> (number - 1) & 1:
            return
        time.sleep(0.01)
    raise AssertionError(f"no handler for {number}")
