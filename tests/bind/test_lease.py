"""Leases hold their port: asked of the kernel with binds of the test's own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack

import pytest

import portbook
from portbook.bind.lease import lease
from portbook.errors import LeaseError, PortbookError, UsageError
from tests import netlab
from tests.bind.sockets import forget_ipv6, nothing_left_open, only_descriptors, opened, refusal

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM


@pytest.fixture
def space(own_network):
    with netlab.namespace() as space:
        yield space


def whole(held):
    return [(s.family.name, s.type, s.getsockname()[:2]) for s in held.sockets]


@pytest.mark.parametrize("protocols", [("tcp",), ("udp",), ("udp", "tcp")])
@pytest.mark.parametrize("port", [0, 17000])
@pytest.mark.parametrize("listens", [True, False])
def test_no_other_socket_can_bind_it(own_network, protocols, port, listens):
    with nothing_left_open(), lease(port, protocols=protocols, listens=listens) as held:
        kinds = [kind for name, kind in (("tcp", TCP), ("udp", UDP)) if name in protocols]
        assert held.port == port or (port == 0 and held.port > 0)
        assert whole(held) == [
            (family, kind, (address, held.port))
            for kind in kinds
            for family, address in (("AF_INET", "0.0.0.0"), ("AF_INET6", "::"))
        ]
        for kind in kinds:
            for address in ("0.0.0.0", "127.0.0.1", "::", "::1"):
                for reuse in (False, True):
                    assert refusal(held.port, address, kind, reuse=reuse) == "EADDRINUSE"
    assert refusal(held.port) is None


@pytest.mark.parametrize("listens", [True, False])
def test_who_connects_waits_or_is_refused(listens):
    with lease(address="127.0.0.1", listens=listens) as held, socket.socket() as client:
        client.settimeout(10)
        answer = client.connect_ex(("127.0.0.1", held.port))
        assert bool(answer) is not listens
        if listens:
            accepted, _ = held.socket.accept()
            accepted.close()
        else:
            held.socket.listen()


def test_one_address_and_one_dual_socket(own_network):
    with lease(address="::1") as one, lease(dual=True) as two, lease(address="localhost") as three:
        assert whole(one) == [("AF_INET6", TCP, ("::1", one.port))]
        assert whole(two) == [("AF_INET6", TCP, ("::", two.port))]
        assert [place[2][0] for place in whole(three)] == ["127.0.0.1", "::1"]
        assert refusal(one.port, "127.0.0.1") is None
        assert refusal(two.port, "127.0.0.1", reuse=True) == "EADDRINUSE"


def test_any_of_some(own_network):
    with ExitStack() as stack:
        held = [stack.enter_context(lease(ports=range(17000, 17020))) for _ in range(20)]
        assert {one.port for one in held} == set(range(17000, 17020))
        with (
            nothing_left_open(),
            pytest.raises(LeaseError, match=r"any of 20 ports: bind\(\) on 0.0.0.0 \(tcp\) failed with EADDRINUSE"),
        ):
            lease(ports=range(17000, 17020))


def test_a_number_whose_other_family_is_taken_is_not_given(space):
    """Nine of ten ephemeral ports are held, each on one family only: one is left, and it is found.

    It is not among those that Linux prefers for bind(), which would succeed again and again on the other family.
    """

    def ask():
        with ExitStack() as stack:
            for port in range(40000, 40010):
                if port != 40004:
                    stack.enter_context(opened(port, "::"))
            with lease() as held:
                try:
                    lease()
                except LeaseError as error:
                    return held.port, str(error), error.exit_code
        return None

    space.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
    port, error, code = space.call(ask)
    assert (port, code) == (40004, 1)
    assert error.startswith("cannot lease any of 26 ports: bind() on ")  # which was the last is chance
    assert "failed with EADDRINUSE" in error


def test_no_port_is_left_at_all(space):
    def ask():
        with ExitStack() as stack:
            for port in range(40000, 40010):
                stack.enter_context(opened(port))
            with pytest.raises(LeaseError, match="EADDRINUSE"), nothing_left_open():
                lease()

    space.sysctl("net.ipv4.ip_local_port_range", "40000 40009")
    space.call(ask)


def test_a_socket_that_is_bound_and_about_to_listen_is_not_robbed(own_network):
    """A server between its bind and its listen: with SO_REUSEADDR, a chosen port could be taken from under it."""
    with opened(17000, reuse=True) as server:
        with pytest.raises(LeaseError):
            lease(ports=[17000])
        server.listen()
    with opened(17001, "::", reuse=True) as server, lease(ports=[17000, 17001]) as held:
        assert held.port == 17000
        server.listen()


@pytest.mark.parametrize("how", [{"port": 17000}, {"ports": [17000]}])
def test_connections_of_a_lease_do_not_keep_the_next_server_out(space, how):
    """The side that closes first keeps TIME_WAIT: here the server."""

    def ask():
        with lease(**how) as held:
            client = socket.create_connection(("127.0.0.1", 17000))
            accepted, _ = held.socket.accept()
            accepted.close()
            client.recv(1)
            client.close()
        return refusal(17000), refusal(17000, reuse=True), leased_again()

    def leased_again():
        with lease(17000) as held:
            return held.port

    assert space.call(ask) == ("EADDRINUSE", None, 17000)


def test_a_named_port_that_is_held(own_network):
    with lease(17000), nothing_left_open(), pytest.raises(LeaseError) as caught:
        lease(17000)
    assert str(caught.value) == (
        "cannot lease port 17000: bind() on 0.0.0.0 (tcp) failed with EADDRINUSE, address already in use; "
        "run portbook why 17000 for the reason"
    )
    assert caught.value.__cause__.errno == 98
    with opened(17000, "::", UDP), lease(17000), nothing_left_open():
        for asked, told in (
            ({"protocols": ("udp",)}, "run portbook why 17000/udp for"),
            ({"address": "127.0.0.1"}, "portbook why 17000 --address 127.0.0.1 for"),
            ({"address": "::1"}, "portbook why 17000 --address ::1 for"),
            ({"dual": True}, "portbook why 17000 --dual for"),
        ):
            with pytest.raises(LeaseError, match=told):
                lease(17000, **asked)


def test_of_two_who_want_a_named_port_one_has_it(own_network):
    """Both set SO_REUSEADDR; that both may be bound for a moment must not mean that both have it, or none."""
    for _ in range(200):
        barrier = threading.Barrier(2)
        got: list[object] = []

        def ask(barrier=barrier, got=got):
            barrier.wait()
            try:
                got.append(lease(17000))
            except LeaseError as error:
                got.append(error)

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        held = [one for one in got if isinstance(one, portbook.Lease)]
        assert len(held) == 1
        assert refusal(17000, reuse=True) == "EADDRINUSE"
        held[0].close()


@pytest.mark.parametrize(
    ("arguments", "more"),
    [([-1], {}), ([65536], {}), ([80], {"ports": [80]}), ([], {"ports": []}), ([], {"address": "example.org"}),
     ([], {"protocols": ["sctp"]}), ([], {"dual": True, "address": "0.0.0.0"})],
)  # fmt: skip
def test_invalid_arguments_are_refused(arguments, more):
    with pytest.raises(UsageError):
        lease(*arguments, **more)


def test_an_address_of_another_machine(own_network):
    with pytest.raises(LeaseError, match=r"a port: bind\(\) on 192.0.2.1 \(tcp\) failed with EADDRNOTAVAIL"):
        lease(address="192.0.2.1")


@LINUX
def test_without_ipv6_the_other_family_counts(space):
    def switched_off():
        with lease(address="localhost") as held:
            return whole(held)

    def unknown():
        forget_ipv6()
        with lease() as held, pytest.raises(LeaseError, match="EAFNOSUPPORT"):
            lease(dual=True)
        return len(held.sockets)

    space.sysctl("net.ipv6.conf.all.disable_ipv6", 1)
    assert [place[0] for place in space.call(switched_off)] == ["AF_INET"]
    assert space.call(unknown) == 1


@LINUX
def test_without_descriptors_nothing_is_kept(space):
    def ask():
        answers = []
        for spare in range(5):
            with nothing_left_open():
                try:
                    with only_descriptors(spare), lease(protocols=("tcp", "udp")) as held:
                        answers.append(len(held.sockets))
                except PortbookError as error:
                    answers.append((type(error), error.exit_code, "EMFILE" in str(error)))
        return answers

    lease().close()
    assert space.call(ask) == [*[(PortbookError, 5, True)] * 4, 4]


@LINUX
def test_a_privileged_port_of_an_ordinary_user(own_network, as_nobody):
    script = "import portbook\ntry:\n portbook.lease(80)\nexcept portbook.LeaseError as error:\n print(error)"
    done = as_nobody(sys.executable, "-c", script, env={"PYTHONPATH": os.path.dirname(portbook.__path__[0])})
    assert done.stderr == ""
    assert done.stdout == (
        "cannot lease port 80: bind() on 0.0.0.0 (tcp) failed with EACCES, permission denied; "
        "run portbook why 80 for the reason\n"
    )


# --- who closes ------------------------------------------------------------------------------------------------------


def test_what_was_taken_stays_open():
    with lease() as held:
        sockets = held.take()
    assert sockets == held.sockets
    assert all(sock.fileno() >= 0 for sock in sockets)
    assert refusal(held.port) == "EADDRINUSE"
    assert repr(held).endswith(", taken>")
    for sock in sockets:
        sock.close()


def test_closing_twice_and_closing_what_a_server_closed():
    held = lease()
    held.socket.close()
    held.close()
    held.close()
    assert all(sock.fileno() == -1 for sock in held.sockets)


def test_an_error_inside_closes():
    with pytest.raises(ZeroDivisionError), lease() as held:
        raise ZeroDivisionError
    assert held.socket.fileno() == -1


def test_async_with():
    async def use():
        async with lease() as held:
            assert refusal(held.port) == "EADDRINUSE"
            raise ZeroDivisionError

    with nothing_left_open(), pytest.raises(ZeroDivisionError):
        asyncio.run(use())


def test_sockets_are_not_inherited_unless_requested():
    with lease() as held:
        assert not any(sock.get_inheritable() for sock in held.sockets)


# --- many at once ----------------------------------------------------------------------------------------------------

CROWD = r"""
import json, sys, threading
import portbook
options = json.loads(sys.argv[1])
if "ports" in options:
    options["ports"] = range(*options["ports"])
held, errors = [], []
def ask():
    try:
        held.append(portbook.lease(**options))
    except Exception as error:
        errors.append(repr(error))
portbook.lease(**options).close()
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(json.dumps([[one.port for one in held], errors]), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "options",
    [
        '{}',
        '{"protocols": ["tcp", "udp"]}',
        '{"protocols": ["tcp", "udp"], "listens": false}',
        '{"address": "127.0.0.1"}',
        '{"ports": [20000, 20400]}',
    ],
)  # fmt: skip
def test_320_leases_of_8_processes_never_collide(own_network, options):
    """The last one: in a range of 400 numbers, so that most are wanted by several."""
    import json

    everybody = [
        subprocess.Popen(
            [sys.executable, "-c", CROWD, options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]  # fmt: skip
    try:
        assert [process.stdout.readline() for process in everybody] == ["ready\n"] * 8
        for process in everybody:
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [json.loads(process.stdout.readline()) for process in everybody]
        assert [errors for _, errors in told] == [[]] * 8
        ports = [port for found, _ in told for port in found]
        assert len(ports) == len(set(ports)) == 320
        assert all(refusal(port, "127.0.0.1", reuse=True) == "EADDRINUSE" for port in ports)
    finally:
        for process in everybody:
            process.stdin.close()
            process.wait(30)
            process.stdout.close()
    assert all(process.returncode == 0 for process in everybody)


@LINUX
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_handler_that_raises_leaves_nothing_open():
    """Interrupted anywhere, at a thousand different moments; a socket without a name yet is closed by counting."""
    lease().close()
    assert netlab.call(interrupted_leases) > 0


def interrupted_leases() -> int:
    class Stop(Exception):
        pass

    def stop(*_):
        raise Stop

    signal.signal(signal.SIGALRM, stop)
    interrupted = 0
    with nothing_left_open():
        for microseconds in range(1, 1001):
            held = None
            try:
                signal.setitimer(signal.ITIMER_REAL, microseconds / 1e6)
                held = lease(protocols=("tcp", "udp"))
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Stop:
                interrupted += 1
            finally:
                if held is not None:
                    held.close()
    return interrupted
