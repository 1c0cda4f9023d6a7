"""Leases and free ports on Windows: exclusive binds, handles that a child inherits, the dynamic range."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading

import pytest

import portbook
from portbook.bind.free import free
from portbook.bind.lease import lease
from portbook.errors import LeaseError
from portbook.netconfig import ephemeral

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; sys.exit(main())"
SRC = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "src"))
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
IN_USE, FORBIDDEN = 10048, 10013


def refusal(port: int, address: str, kind: int, option: int | None = None) -> int | None:
    """The error of a bind by the test; None: it worked."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as sock:
        try:
            if option is not None:
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind((address, port))
        except OSError as error:
            return error.winerror
    return None


@pytest.mark.parametrize("protocols", [("tcp",), ("udp",), ("tcp", "udp")])
@pytest.mark.parametrize("listens", [True, False])
def test_no_other_socket_can_bind_it(protocols, listens):
    with lease(protocols=protocols, listens=listens) as held:
        kinds = [{"tcp": TCP, "udp": UDP}[protocol] for protocol in protocols]
        assert [sock.type for sock in held.sockets] == [kind for kind in kinds for _ in range(2)]
        for kind in kinds:
            for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
                for option in (None, socket.SO_REUSEADDR, socket.SO_EXCLUSIVEADDRUSE):
                    assert refusal(held.port, address, kind, option) in (IN_USE, FORBIDDEN)
    assert refusal(held.port, "0.0.0.0", TCP) is None


def test_a_named_port_that_is_held():
    with lease() as held, pytest.raises(LeaseError, match="portbook why") as caught:
        lease(held.port)
    assert caught.value.__cause__.number in (IN_USE, FORBIDDEN)


def test_forty_at_once_do_not_collide():
    held: list[portbook.Lease] = []
    threads = [threading.Thread(target=lambda: held.extend(lease() for _ in range(5))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.port for one in held}) == 40
    for one in held:
        one.close()


def test_any_of_some():
    held = [lease(ports=range(21000, 21010), address="127.0.0.1") for _ in range(10)]
    assert {one.port for one in held} == set(range(21000, 21010))
    with pytest.raises(LeaseError, match="any of 10 ports"):
        lease(ports=range(21000, 21010), address="127.0.0.1")
    for one in held:
        one.close()


# The embeddable Python of the laboratory does not read PYTHONPATH.
SERVER = (
    f"import sys; sys.path.insert(0, {SRC!r})"
    + """
import json, os, portbook
sockets = portbook.inherited()
print(json.dumps([[s.getsockname()[:2] for s in sockets], [s.family.name + s.type.name for s in sockets],
    os.environ["PORT"], sys.argv[1:], len(portbook.inherited()), [s.get_inheritable() for s in sockets]]), flush=True)
client, _ = sockets[0].accept()
client.sendall(b"hello " + client.recv(100))
client.close()
raise SystemExit(7)
"""
)


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"you")
        return client.recv(100)


def test_a_child_has_the_sockets_by_their_handles():
    with lease(protocols=("tcp", "udp")) as held:
        child = held.start([sys.executable, "-c", SERVER, "word"], stdout=subprocess.PIPE)
        assert not any(sock.get_inheritable() for sock in held.sockets)
    with child:  # our copies are closed
        places, kinds, port, words, again, inheritable = json.loads(child.stdout.readline())
        assert places == [[address, held.port] for address in ("0.0.0.0", "::")] * 2
        assert kinds == ["AF_INETSOCK_STREAM", "AF_INET6SOCK_STREAM", "AF_INETSOCK_DGRAM", "AF_INET6SOCK_DGRAM"]
        assert (port, words, again, inheritable) == (str(held.port), ["word"], 0, [False] * 4)
        assert ask(held.port) == b"hello you"
        assert child.wait(30) == 7
    assert refusal(held.port, "0.0.0.0", TCP) is None


def test_the_command_runs_a_server_with_handles():
    command = [sys.executable, "-c", START, SRC, "lease", "--address", "127.0.0.1", "--", sys.executable, "-c"]
    run = subprocess.Popen([*command, SERVER, "{port}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with run:
        places, _, port, words, _, _ = json.loads(run.stdout.readline())
        assert places == [["127.0.0.1", int(port)]]
        assert words == [port]
        assert ask(int(port)) == b"hello you"
        assert run.wait(60) == 7
        assert run.stderr.read().split() == f"portbook: port {port} (tcp-ipv4)".encode().split()


def test_the_number_alone():
    bind = "import socket, sys; socket.create_server(('', int(sys.argv[1]))).close(); print('bound')"
    command = [
        sys.executable,
        "-c",
        START,
        SRC,
        "lease",
        "--number-only",
        "-q",
        "--",
        sys.executable,
        "-c",
        bind,
        "{port}",
    ]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, b"bound", b"")


def test_free_ports_can_be_bound():
    found = free(100, protocols=("tcp", "udp"))
    assert found.enough
    assert not [
        (port, address, kind)
        for port in found.ports
        for address in ("0.0.0.0", "::")
        for kind in (TCP, UDP)
        if refusal(port, address, kind, socket.SO_EXCLUSIVEADDRUSE)
    ]
    with lease(address="127.0.0.1") as held:
        assert sum(free(ports=[held.port]).refused.values()) == 1


def test_the_dynamic_range_is_the_documented_one_with_a_gap():
    found = free(20, avoid_ephemeral=True)
    assert all(port < 49152 for port in found.ports)
    assert [gap.what for gap in found.gaps] == ["setting"]
    assert "netsh" in (found.gaps[0].hint or "")
    assert ephemeral.take().how == "documented default"
