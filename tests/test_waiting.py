"""One limit for a wait, reasons for what is not ready, proxies, ports of one address. Windows Python runs this too."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from portbook import RemoteError, UsageError, dialing, waiting
from portbook.probe import readiness
from portbook.probe.resolve import ResolvedAddress
from tests.components import need
from tests.listeners import COMMAND, deaf, listening, peer_may_vanish, portbook, refusing
from tests.windows.conftest import WINE, lacks

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone has a listener that does not answer")
FOREIGN = lacks("binds IPv4 addresses of other machines", until=10)
MARGIN_S = 3.0  # for a machine under load; the limits that are tested would be missed by more


@contextlib.contextmanager
def takes_at_most(limit_s):
    began = time.monotonic()
    yield
    assert time.monotonic() - began < limit_s + MARGIN_S


def reasons(targets, **options):
    return {each.target: each.reason for each in waiting.wait_until_ready(targets, **options)}


# --- one limit -----------------------------------------------------------------------------------------------------


@LINUX
def test_several_silent_ports_take_no_longer_than_the_limit():
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(deaf())[1] for _ in range(70)]  # more than there were threads
        with takes_at_most(0.3):
            found = reasons([f"127.0.0.1:{port}" for port in ports], timeout_s=0.3)
    assert set(found.values()) == {"silent"}
    assert len(found) == 70


def test_a_resolver_that_hangs_does_not_delay_the_others(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("portbook.probe.resolve.look_up", lambda name: released.wait(60) and [])
    with listening("127.0.0.1") as ((_, port),), takes_at_most(0.4):
        found = reasons(["slow.test:80", "slow.test:53/udp", f"127.0.0.1:{port}"], timeout_s=0.4)
    released.set()
    assert found == dict.fromkeys(
        ("slow.test:80", "slow.test:53/udp"), "name lookup failed: no answer from the resolver"
    )


def test_dial_counts_the_name_lookup(monkeypatch):
    released = threading.Event()
    monkeypatch.setattr("portbook.probe.resolve.look_up", lambda name: released.wait(60) and [])
    with takes_at_most(0.3):
        (answer,) = dialing.dial("slow.test:80", timeout_s=0.3).addresses
    released.set()
    assert (answer.outcome, answer.evidence.text) == ("lookup-failed", "no answer from the resolver within 0.3 s")


@LINUX
def test_dial_counts_lookup_and_connection_together(monkeypatch):
    def slow(name):
        time.sleep(0.4)
        return [ResolvedAddress("127.0.0.1")]

    monkeypatch.setattr("portbook.probe.resolve.look_up", slow)
    seen = []
    connect = dialing.tcp.connect

    def connected(address, port, zone, timeout_s):
        seen.append(timeout_s)
        return connect(address, port, zone, timeout_s)

    monkeypatch.setattr(dialing.tcp, "connect", connected)
    with deaf() as (_, port):
        dialing.dial(f"slow.test:{port}", timeout_s=0.6, retries=1)
    assert seen[0] <= 0.2  # what the lookup has left of 0.6 s
    assert seen[1] == 0.6  # the further attempt has the time anew


@LINUX
def test_one_silent_address_delays_nothing(monkeypatch):
    with deaf() as (_, port), listening("127.0.0.2", port=port):
        monkeypatch.setattr(
            "portbook.probe.resolve.look_up",
            lambda _: [ResolvedAddress("127.0.0.1"), ResolvedAddress("127.0.0.2")],
        )
        monkeypatch.setattr(readiness, "BESIDE_S", 30.0)  # so long an attempt at the silent address lasts alone
        began = time.monotonic()
        assert waiting.wait_for(f"several.test:{port}", timeout_s=60) == []
        assert time.monotonic() - began < 20


def test_a_name_that_gets_its_address_later(monkeypatch):
    answers = iter([OSError(-2, "unknown"), OSError(-2, "unknown")])
    with listening("127.0.0.1") as ((_, port),):

        def look_up(name):
            for error in answers:
                raise error
            return [ResolvedAddress("127.0.0.1")]

        monkeypatch.setattr("portbook.probe.resolve.look_up", look_up)
        assert waiting.wait_for(f"late.test:{port}", timeout_s=60) == []


@LINUX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_dial_of_several_silent_ports_can_be_interrupted(name):
    with deaf() as (_, one), deaf() as (_, other):
        words = [f"127.0.0.1:{one}", f"127.0.0.1:{other}", "--timeout", "60"]
        with subprocess.Popen([*COMMAND, "dial", *words]) as process:
            time.sleep(1)  # then it is on its way; before that it would end all the same
            with takes_at_most(1):
                process.send_signal(getattr(signal, name))
                assert process.wait(30) == {"SIGINT": 130, "SIGTERM": -signal.SIGTERM}[name]


@LINUX
def test_several_targets_are_dialed_at_the_same_time():
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(deaf())[1] for _ in range(20)]
        with listening("127.0.0.1") as ((_, port),), takes_at_most(1):
            done = portbook("dial", *ports, port, "--timeout", "0.5")
    headings = [line for line in done.stdout.splitlines() if not line.startswith(" ")]
    assert [line.split()[0] for line in headings] == [f"localhost:{each}" for each in (*ports, port)]
    assert done.returncode == 1


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0])
def test_a_limit_that_is_none_is_a_mistake(seconds):
    with pytest.raises(UsageError, match="time limit"):
        waiting.wait_for(80, timeout_s=seconds)
    with pytest.raises(UsageError, match="time limit"):
        dialing.dial(80, timeout_s=seconds)


# --- reasons -------------------------------------------------------------------------------------------------------


def test_reasons_in_the_words_of_dial_and_scan(monkeypatch):
    def look_up(name):
        raise OSError(socket.EAI_NONAME if name == "missing.test" else socket.EAI_AGAIN, "text of the system")

    monkeypatch.setattr("portbook.probe.resolve.look_up", look_up)
    with refusing() as (_, port):
        found = reasons([f"127.0.0.1:{port}", "missing.test:80", "later.test:80"], timeout_s=0.3)
        monkeypatch.undo()
        (dialed,) = dialing.dial(f"127.0.0.1:{port}").addresses
    assert found == {
        f"127.0.0.1:{port}": "refused",
        "missing.test:80": "name not found",
        "later.test:80": "name lookup failed: EAI_AGAIN: text of the system",
    }
    assert dialed.outcome == "closed"


def test_the_command_gives_the_reasons_in_one_line():
    with refusing() as (_, port):
        done = portbook("wait", port, "--timeout", "0.3")
    assert (done.returncode, done.stderr) == (1, f"portbook: after 0.3 s not ready: localhost:{port} (refused)\n")


def test_dial_exits_with_5_when_the_resolver_could_not_find_out(tmp_path):
    script = (
        "import socket, sys; from portbook.probe import resolve; from portbook.__main__ import main\n"
        "def look_up(name): raise OSError(socket.EAI_AGAIN, 'no server')\n"
        "resolve.look_up = look_up; raise SystemExit(main())"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {os.path.abspath('src')!r})\n{script}"]
    done = subprocess.run([*command, "dial", "x.test:80"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert done.stdout.startswith("x.test:80 could not be looked up\n")


# --- proxies -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def accepting(handle):
    """A server that passes each connection to a function, with how many came before."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            number = 0
            with contextlib.suppress(OSError):
                while True:
                    accepted = listener.accept()[0]
                    with peer_may_vanish():
                        handle(accepted, number)
                    number += 1

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


DROPPED = "accepted, and closed the connection: a proxy in front of a service that is down?"


def drop(connection, number):
    connection.close()


def reset(connection, number):
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, dialing.tcp.ABORT)
    connection.close()


LOSES_RESETS = pytest.mark.skipif(WINE, reason="Wine may not report that a connection was reset at once")


@pytest.mark.parametrize("handle", [drop, pytest.param(reset, marks=LOSES_RESETS)])
def test_a_connection_that_does_not_last_is_not_stable(handle):
    with accepting(handle) as port:
        assert waiting.wait_for(port, timeout_s=20) == []
        assert reasons(f"127.0.0.1:{port}", stable=True, timeout_s=0.4) == {f"127.0.0.1:{port}": DROPPED}


def test_stable_when_the_service_behind_the_proxy_has_started():
    kept = []

    def handle(connection, number):
        kept.append(connection) if number >= 2 else connection.close()

    with accepting(handle) as port:
        assert waiting.wait_for(f"127.0.0.1:{port}", stable=True, timeout_s=30) == []
    (connection,) = kept
    connection.close()


def test_a_service_that_speaks_is_stable_at_once():
    def greet(connection, number):
        connection.sendall(b"220 ready\r\n")
        connection.close()

    with accepting(greet) as port, takes_at_most(0):
        assert waiting.wait_for(f"127.0.0.1:{port}", stable=True, timeout_s=30) == []


on_unix = pytest.mark.skipif(os.name != "posix", reason="a program of Unix")


@on_unix
def test_a_real_proxy_in_front_of_nothing():
    need(shutil.which("socat") is not None, "socat")
    with refusing() as (_, backend), refusing() as (_, port):
        pass  # the port is free again
    proxy = subprocess.Popen(
        ["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"TCP:127.0.0.1:{backend}"],
        stderr=subprocess.DEVNULL,
    )
    try:
        assert waiting.wait_for(f"127.0.0.1:{port}", timeout_s=20) == []
        assert reasons(f"127.0.0.1:{port}", stable=True, timeout_s=0.4) == {f"127.0.0.1:{port}": DROPPED}
        with socket.create_server(("127.0.0.1", backend)):
            assert waiting.wait_for(f"127.0.0.1:{port}", stable=True, timeout_s=30) == []
    finally:
        proxy.kill()
        proxy.wait(10)


@on_unix
def test_a_real_load_balancer_in_front_of_nothing(tmp_path):
    need(shutil.which("haproxy") is not None, "haproxy")
    with refusing() as (_, backend), refusing() as (_, port):
        pass  # the port is free again
    settings = (
        "defaults\n mode tcp\n timeout connect 1s\n timeout client 9s\n timeout server 9s\n retries 0\n"
        f"listen it\n bind 127.0.0.1:{port}\n server one 127.0.0.1:{backend}\n"
    )
    (tmp_path / "haproxy.cfg").write_text(settings)
    proxy = subprocess.Popen(["haproxy", "-db", "-f", tmp_path / "haproxy.cfg"], stderr=subprocess.DEVNULL)
    try:
        assert waiting.wait_for(f"127.0.0.1:{port}", timeout_s=20) == []
        assert reasons(f"127.0.0.1:{port}", stable=True, timeout_s=0.4) == {f"127.0.0.1:{port}": DROPPED}
        with socket.create_server(("127.0.0.1", backend)):
            assert waiting.wait_for(f"127.0.0.1:{port}", stable=True, timeout_s=30) == []
    finally:
        proxy.kill()
        proxy.wait(10)


@pytest.mark.parametrize("options", [{"free": True}, {"udp": True}])
def test_only_tcp_connections_can_last(options):
    with pytest.raises(UsageError, match="stable"):
        waiting.wait_for("53", stable=True, **options)


# --- free ports of one address -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="other systems have 127.0.0.1 alone")
def test_free_at_the_address_that_is_written():
    with listening("127.0.0.1") as ((_, port),):
        held = [f"127.0.0.1:{port}", f"localhost:{port}", f"0.0.0.0:{port}", str(port)]
        assert waiting.wait_for([*held, f"127.0.0.2:{port}"], free=True, timeout_s=0.2) == held


@pytest.mark.parametrize(
    "host",
    [pytest.param("192.0.2.7", marks=FOREIGN), "[2001:db8::7]"],  # RFC 5737, RFC 3849: of no machine
)
def test_a_foreign_host_has_no_free_ports(host):
    with pytest.raises(UsageError, match="is no address of this machine"):
        waiting.wait_for(f"{host}:80", free=True, timeout_s=5)


@FOREIGN
def test_a_name_of_another_machine_has_no_free_ports(monkeypatch):
    monkeypatch.setattr("portbook.probe.resolve.look_up", lambda _: [ResolvedAddress("192.0.2.7")])
    with pytest.raises(UsageError, match=r"^db\.test \(192\.0\.2\.7\) is no address of this machine"):
        waiting.wait_for("db.test:80", free=True, timeout_s=5)


def test_a_resolver_that_fails_is_no_wrong_usage(monkeypatch):
    def look_up(name):
        raise OSError(socket.EAI_AGAIN, "no server")

    monkeypatch.setattr("portbook.probe.resolve.look_up", look_up)
    with pytest.raises(RemoteError, match=r"^db\.test could not be looked up: EAI_AGAIN: no server"):
        waiting.wait_for("db.test:80", free=True, timeout_s=5)


# --- what can be written -------------------------------------------------------------------------------------------


def test_a_wait_for_tcp_and_udp_together():
    with listening("127.0.0.1") as ((_, port),), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        udp = silent.getsockname()[1]
        assert reasons([f"127.0.0.1:{port}", f"127.0.0.1:{udp}/udp"], timeout_s=0.5) == {
            f"127.0.0.1:{udp}/udp": "silent"
        }


def test_a_udp_port_of_a_name_is_silent_before_the_first_round_ends():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        target = f"localhost:{silent.getsockname()[1]}/udp"
        assert reasons([target], timeout_s=0.3) == {target: "silent"}


def test_hosts_and_ports_apart():
    with listening("127.0.0.1", "127.0.0.1") as ((_, one), (_, other)):
        assert portbook("wait", "127.0.0.1", one, other, "--timeout", "20").returncode == 0
        done = portbook("dial", "127.0.0.1", "-p", f"{one},{other}")
    assert done.returncode == 0
    assert done.stdout.count("is open") == 2


@pytest.mark.parametrize("name", ["localhost.", "app.localhost", "App.LocalHost."])
def test_every_name_of_this_machine_is_loopback(name):
    """RFC 6761 section 6.3; glibc knows none of these."""
    with listening("127.0.0.1") as ((_, port),):
        assert dialing.dial(f"{name}:{port}").open
        assert waiting.wait_for(f"{name}:{port}", timeout_s=20) == []


@pytest.mark.parametrize("command", ["wait", "dial"])
def test_nothing_to_wait_for_is_a_mistake(command):
    done = portbook(command)
    assert (done.returncode, done.stderr.startswith("portbook: no port; ")) == (2, True)
