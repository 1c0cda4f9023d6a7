"""Who holds a port."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime

import psutil
import pytest

from portbook import sources, who
from portbook.errors import UsageError
from portbook.testing import child, ports_of
from tests.components import need
from tests.conftest import unheld_port

pytestmark = pytest.mark.usefixtures("own_network")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="what Linux shows")
WORKING = [name for name in sources.names() if sources.missing(name) is None]
LISTEN = """
listener = socket.create_server(("127.0.0.1", 0))
say(listener.getsockname()[1])
wait()
"""
CONNECT = """
client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
say(client.getsockname()[1])
wait()
"""


@pytest.fixture
def server():
    with child(LISTEN) as one:
        yield one


@pytest.mark.parametrize("source", WORKING)
def test_the_listener_holds_the_port(server, source):
    answer = who(server.said, source=source)
    assert (answer.schema, answer.port, answer.protocol, answer.held) == (1, server.said, None, True)
    (holder,) = answer.holders
    assert (holder.owner.pid, holder.owner.user) == (server.pid, psutil.Process(server.pid).username())
    assert [owner.pid for owner in holder.parents] == [p.pid for p in psutil.Process(server.pid).parents()]
    assert [s.local_port for s in holder.sockets] == [server.said]
    assert holder.sockets == answer.sockets
    assert holder.other_ports == ()


def test_its_age_is_since_it_started(server):
    (holder,) = who(server.said).holders
    assert 0 <= holder.age_s <= (datetime.now(UTC) - holder.owner.started).total_seconds()


@pytest.mark.parametrize("source", WORKING)
def test_a_client_that_is_connected_to_it_does_not_hold_it(server, source):
    with child(CONNECT, str(server.said)) as client:
        assert [h.owner.pid for h in who(server.said, source=source).holders] == [server.pid]
        assert [h.owner.pid for h in who(client.said, source=source).holders] == [client.pid]


@pytest.mark.parametrize("source", WORKING)
def test_nobody_holds_a_port_that_was_closed(source):
    answer = who(unheld_port(), source=source)
    assert (answer.held, answer.holders, answer.sockets) == (False, (), ())
    if source in ("sockdiag", "iphlpapi"):  # others do not see every socket, and say so
        assert answer.gaps == ()


def test_the_protocol_narrows():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert who(port, "tcp").held
        assert not who(port, "udp").held
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.bind(("127.0.0.2" if sys.platform == "linux" else "127.0.0.1", port))
            assert [s.protocol for s in who(port, "udp").sockets] == ["udp"]
            assert {s.protocol for s in who(port).sockets} == {"tcp", "udp"}
            (holder,) = who(port).holders
            assert len(holder.sockets) == 2


@pytest.mark.parametrize("kind", ["tcp4-time-wait", "tcp6-time-wait"])
def test_a_port_in_time_wait_is_not_held(brief_zoo, kind):
    need(kind in brief_zoo, "IPv6")
    (port,) = ports_of(brief_zoo[kind])
    answer = who(port, "tcp")
    assert (answer.held, answer.holders) == (False, ())
    assert [s.state for s in answer.sockets] == ["TIME_WAIT"]


@pytest.mark.parametrize(
    "kind", ["tcp4-bound", "udp4", "udp4-wildcard", "tcp4-listening-wildcard", "tcp6-listening-dual-stack"]
)
def test_whatever_is_bound_to_the_port_holds_it(zoo, kind):
    need(kind in zoo, "IPv6")
    (port,) = ports_of(zoo[kind])
    (holder,) = who(port).holders
    assert holder.owner.pid == os.getpid()


def test_all_that_share_a_socket_hold_the_port(zoo):
    need("shared-by-fork" in zoo, "descriptors that children inherit")
    for expected in zoo["shared-by-fork"]:
        assert {h.owner.pid for h in who(expected.local_port).holders} == set(expected.pids)


def test_all_of_a_reuseport_group_hold_the_port(zoo):
    need("tcp4-reuseport" in zoo, "SO_REUSEPORT")
    group = zoo["tcp4-reuseport"]
    answer = who(group[0].local_port)
    assert {h.owner.pid: len(h.sockets) for h in answer.holders} == {os.getpid(): 2, group[2].pids[0]: 1}


def test_the_listener_comes_first_whatever_its_pid():
    need(hasattr(os, "fork"), "descriptors that children inherit by number")
    script = "listener = socket.socket(fileno=int(sys.argv[1]))\nsay()\nwait()\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with child(script, str(listener.fileno()), pass_fds=[listener.fileno()]) as later:
            client = socket.create_connection(("127.0.0.1", port))
            accepted, _ = listener.accept()
            listener.close()
            with client, accepted:
                answer = who(port)
    assert [h.owner.pid for h in answer.holders] == [later.pid, os.getpid()]
    assert [[s.state for s in h.sockets] for h in answer.holders] == [["LISTEN"], ["ESTABLISHED"]]


def test_a_server_that_no_longer_listens_still_holds_the_port_of_its_connections():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = listener.accept()
    with client, accepted:
        answer = who(port)
        assert answer.held
        assert [h.owner.pid for h in answer.holders] == [os.getpid()]


MANY = """
opened = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
opened.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
opened.append(socket.socket())
for one in opened[3:]:
    one.bind(("127.0.0.1", 0))
say([one.getsockname()[1] for one in opened])
wait()
"""


@pytest.mark.parametrize("source", WORKING)
def test_the_other_ports_of_the_holder(source):
    with child(MANY) as one:
        first, second, third, udp, bound = one.said
        (holder,) = who(first, source=source).holders
    expected = {f"{second}/tcp", f"{third}/tcp", f"{udp}/udp"}
    if "bound" in sources.load(source).capabilities:
        expected.add(f"{bound}/tcp")
    assert set(holder.other_ports) == expected
    assert len(holder.other_ports) == len(expected)


@pytest.mark.parametrize("port", [0, -1, 65536, 10**30])
def test_a_port_that_cannot_be_is_a_usage_error(port):
    with pytest.raises(UsageError, match="1 to 65535"):
        who(port)


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match="tcp, udp"):
        who(80, "sctp")


@pytest.mark.parametrize("source", ["nonesuch", ["bpf"], {80}, b"bpf", 7])
def test_an_unknown_source_is_a_usage_error(source):
    with pytest.raises(UsageError, match="unknown source"):
        who(80, source=source)


# --- what else is known of a holder --------------------------------------------------------------------------------

BOTH = """
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.bind(("127.0.0.1", port))
say(port)
wait()
"""


def test_the_same_number_with_the_other_protocol():
    """As of a DNS server: to end the holder of 53/tcp ends 53/udp."""
    with child(BOTH) as one:
        (tcp,), (udp,), (both,) = (who(one.said, protocol).holders for protocol in ("tcp", "udp", None))
    assert tcp.other_ports == (f"{one.said}/udp",)
    assert udp.other_ports == (f"{one.said}/tcp",)
    assert both.other_ports == ()
    assert len(both.sockets) == 2


@on_linux
def test_a_suspended_holder(server):
    assert who(server.said).holders[0].owner.state == "running"
    os.kill(server.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED | os.WNOWAIT)
    with socket.create_connection(("127.0.0.1", server.said)):  # it accepts
        assert who(server.said).holders[0].owner.state == "suspended"
    os.kill(server.pid, signal.SIGCONT)


def test_script_and_directory(server):
    (holder,) = who(server.said).holders
    assert holder.owner.script == "-c"
    assert holder.owner.directory in (None, os.getcwd())
    if sys.platform == "linux":
        assert holder.owner.directory == os.getcwd()
        assert holder.owner in holder.sockets[0].owners


@on_linux
def test_a_socket_that_is_bound_has_no_reach(zoo):
    (port,) = ports_of(zoo["tcp4-bound"])
    assert {s.reach for s in who(port).sockets} == {"none"}


@on_linux
def test_a_socket_in_close_wait():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        client.close()
        with accepted:
            (holder,) = who(listener.getsockname()[1]).holders
    assert sorted(str(s.state) for s in holder.sockets) == ["CLOSE_WAIT", "LISTEN"]


@on_linux
def test_ipv4_comes_before_ipv6():
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as six:
        port = six.getsockname()[1]
        with socket.create_server(("127.0.0.1", port)):
            for source in ("sockdiag", "procfs"):
                assert [s.family for s in who(port, source=source).sockets] == ["ipv4", "ipv6"]


@on_linux
def test_what_a_relay_forwards_to():
    need(shutil.which("socat") is not None, "socat")
    port = unheld_port()
    with subprocess.Popen(["socat", f"TCP-LISTEN:{port},bind=127.0.0.1", "TCP:127.0.0.9:5432"]) as relay:
        try:
            last = time.monotonic() + 60
            while not (answer := who(port)).held:
                assert time.monotonic() < last
                time.sleep(0.01)
        finally:
            relay.kill()
    assert answer.holders[0].forwards_to == "TCP:127.0.0.9:5432"


@on_linux
def test_parents_are_shared_by_workers():
    script = "listener = socket.create_server(('127.0.0.1', 0))\nfor _ in range(3):\n    if not os.fork(): break\n"
    with child(script + "say(listener.getsockname()[1])\nwait()\n") as one:
        last = time.monotonic() + 60
        while len((answer := who(one.said)).holders) < 4:
            assert time.monotonic() < last
        pids = {holder.owner.pid for holder in answer.holders}
        workers = [holder for holder in answer.holders if holder.parents[0].pid in pids]
        for holder in workers:
            os.kill(holder.owner.pid, signal.SIGKILL)
    assert len(workers) == 3
    assert all(holder.parents[0] is workers[0].parents[0] for holder in workers)
