"""Dialing and waiting, against real listeners, real refusals and real silence. Windows Python runs this too."""

import asyncio
import errno
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from portbook import UsageError, dialing, waiting
from portbook.probe import tcp
from portbook.probe.outcome import SILENCE
from tests.components import need
from tests.listeners import COMMAND, deaf, listening, peer_may_vanish, portbook, refusing

MADE_BEFORE = "PORTBOOK_TEST_CERTIFICATE"  # a directory with cert.pem and key.pem


# --- dial ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_open(address):
    with listening(address) as ((_, port),):
        found = dialing.dial(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
    (answer,) = found.addresses
    assert found.open
    assert (answer.address, answer.outcome, answer.evidence.kind) == (address, "open", "syn-ack")
    assert answer.connect_ms is not None


def test_closed():
    with refusing() as (_, port):
        (answer,) = dialing.dial(f"127.0.0.1:{port}").addresses
    assert (answer.outcome, answer.evidence.kind) == ("closed", "rst")
    assert answer.evidence.error in ("ECONNREFUSED", "WSAECONNREFUSED", "ERROR_CONNECTION_REFUSED")


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue refuses on other systems")
def test_silence_is_filtered_as_in_a_scan_and_repeated():
    with deaf() as (_, port):
        (answer,) = dialing.dial(f"127.0.0.1:{port}", timeout_s=0.2, retries=1).addresses
    assert (answer.outcome, answer.evidence.kind, answer.attempts, answer.connect_ms) == (
        "filtered",
        "silence",
        2,
        None,
    )


def test_a_name_without_an_address():
    found = dialing.dial("nosuch.invalid:80")  # RFC 6761 section 6.4: never resolves
    (answer,) = found.addresses
    assert (found.open, answer.address, answer.evidence.kind) == (False, None, "resolver")
    without_a_resolver = answer.evidence.error == "EAI_AGAIN"
    assert answer.outcome == ("lookup-failed" if without_a_resolver else "name-not-found")


def test_every_address_of_a_name_is_tried(monkeypatch):
    monkeypatch.setattr(
        "portbook.probe.resolve.look_up",
        lambda _: [
            dialing.ResolvedAddress("127.0.0.1"),
            dialing.ResolvedAddress("127.0.0.2"),
            dialing.ResolvedAddress("::1"),
        ],
    )
    with listening("127.0.0.2") as ((_, port),):
        found = dialing.dial(f"several.test:{port}")
    assert found.open
    assert [a.address for a in found.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
    assert [a.outcome for a in found.addresses] == ["closed", "open", "closed"]


def test_many_times():
    with listening("127.0.0.1") as ((_, port),):
        found = dialing.dial(f"127.0.0.1:{port}", times=20)
    assert found.timing is not None
    assert (found.timing.count, found.timing.lost) == (20, 0)
    assert found.timing.min_ms <= found.timing.median_ms <= found.timing.p95_ms <= found.timing.max_ms


def sample(connect_ms, outcome="open", evidence=tcp.OPEN.evidence):
    return dialing.DialedAddress("127.0.0.1", None, outcome, evidence, connect_ms)


def test_timing_by_hand():
    silent = sample(None, "filtered", SILENCE)
    shortage = tcp.errno_result(errno.EADDRNOTAVAIL, sent=False)
    unsent = sample(0.1, *shortage)
    timing = dialing.timing_of([sample(5.0), silent, *(sample(float(ms)) for ms in range(1, 19))])
    assert timing == dialing.Timing(20, 1, 1.0, 9.0, 18.0, 18.0)
    assert dialing.timing_of([silent]) == dialing.Timing(1, 1, None, None, None, None)
    assert dialing.timing_of([sample(1.0), unsent, silent, unsent]) == dialing.Timing(
        4, 1, 1.0, 1.0, 1.0, 1.0, 2, shortage.evidence
    )


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "::1:80", "host:0", "host:65536", "host:80-90", "host:x", "53/udp", "010.0.0.1:80"]
)
def test_invalid_targets(text):
    with pytest.raises(UsageError):
        dialing.parse_destination(text)


def test_async():
    with listening("127.0.0.1") as ((_, port),), refusing() as (_, closed):

        async def both():
            return await asyncio.gather(
                dialing.dial_async(f"127.0.0.1:{port}"), dialing.dial_async(f"127.0.0.1:{closed}")
            )

        first, second = asyncio.run(both())
    assert (first.open, second.open) == (True, False)
    assert second.addresses[0].outcome == "closed"


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
def test_cancelling_leaves_no_socket():
    async def cancelled(port):
        task = asyncio.create_task(dialing.dial_async(f"127.0.0.1:{port}", timeout_s=30))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in open_files())

    def open_files():
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]

    async def nothing():
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in open_files())

    with deaf() as (_, port):
        assert asyncio.run(cancelled(port)) == asyncio.run(nothing())


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if MADE_BEFORE in os.environ:  # by who runs this in the Windows laboratory, which has no openssl
        return Path(os.environ[MADE_BEFORE])
    place = tmp_path_factory.mktemp("tls")
    make_certificate(place)
    return place


def make_certificate(place):
    """A key and a certificate signed with it."""
    need(shutil.which("openssl") is not None, "openssl")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
         "-subj", "/O=Portbook/CN=test.invalid",
         "-addext", "subjectAltName=DNS:test.invalid", "-keyout", place / "key.pem", "-out", place / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr


@contextmanager
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve():
            for _ in range(2):  # verified, then shown
                try:
                    accepted, _ = server.accept()
                    accepted.settimeout(10)
                    with context.wrap_socket(accepted, server_side=True) as secure:
                        secure.recv(1)
                except OSError:
                    continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.close()
        thread.join(15)


def test_an_untrusted_certificate_is_read_too(certificate):
    with tls_server(certificate) as port:
        (answer,) = dialing.dial(f"127.0.0.1:{port}", tls=True).addresses
    shown = answer.tls
    assert answer.outcome == "open"
    assert (shown.protocol, shown.trusted) == ("TLSv1.3", False)
    assert (shown.subject, shown.issuer) == ("CN=test.invalid,O=Portbook", "CN=test.invalid,O=Portbook")
    assert shown.names == ("test.invalid",)
    assert shown.days_left in (29, 30)
    assert "self-signed" in shown.error or "self signed" in shown.error


def test_a_port_without_tls_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            accepted, _ = server.accept()
            with accepted, peer_may_vanish():
                accepted.recv(1000)
                accepted.sendall(b"220 mail.test ready\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        (answer,) = dialing.dial(f"127.0.0.1:{server.getsockname()[1]}", tls=True).addresses
        thread.join(10)
    assert answer.outcome == "open"
    assert answer.tls.protocol is None
    assert answer.tls.error


# --- wait ----------------------------------------------------------------------------------------------------------


def test_waits_until_it_listens():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        waiting = subprocess.Popen([*COMMAND, "wait", f"127.0.0.1:{port}", "--timeout", "30"])
        try:
            time.sleep(0.5)
            assert waiting.poll() is None
            server.listen()
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()
            waiting.wait()


def test_names_what_is_missing():
    with listening("127.0.0.1") as ((_, port),), refusing() as (_, closed):
        done = portbook("wait", f"127.0.0.1:{port}", f"127.0.0.1:{closed}", "--timeout", "0.3")
    assert done.returncode == 1
    assert str(closed) in done.stderr
    assert str(port) not in done.stderr


def test_runs_the_command_in_its_place():
    with listening("127.0.0.1") as ((_, port),):
        words = [sys.executable, "-c", "import sys; print(sys.argv[1:]); raise SystemExit(7)"]
        done = portbook("wait", f"127.0.0.1:{port}", "--", *words, "--x", "a b", "--")
    assert (done.returncode, done.stdout) == (7, "['--x', 'a b', '--']\n")


@pytest.mark.parametrize("code", [0, 1, 2, 5, 130, 255])
def test_the_exit_code_is_that_of_the_command(code):
    with listening("127.0.0.1") as ((_, port),):
        done = portbook("wait", f"127.0.0.1:{port}", "--", sys.executable, "-c", f"raise SystemExit({code})")
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_command_that_dies_of_a_signal():
    with listening("127.0.0.1") as ((_, port),):
        script = "import os, signal; os.kill(os.getpid(), signal.SIGTERM)"
        done = portbook("wait", f"127.0.0.1:{port}", "--", sys.executable, "-c", script)
    assert done.returncode == -signal.SIGTERM


def test_the_command_is_not_run_when_the_time_is_up():
    with refusing() as (_, port):
        done = portbook("wait", f"127.0.0.1:{port}", "--timeout", "0.2", "--", sys.executable, "-c", "print('ran')")
    assert (done.returncode, done.stdout) == (1, "")


def test_nothing_behind_the_dashes_is_no_command():
    with listening("127.0.0.1") as ((_, port),):
        assert portbook("wait", f"127.0.0.1:{port}", "--").returncode == 0


def test_a_resolver_that_hangs_does_not_outlast_the_time(monkeypatch):
    """As the name lookups of a machine without a network, which take ten seconds and more."""
    released = threading.Event()
    monkeypatch.setattr("portbook.probe.resolve.look_up", lambda name: released.wait(60) and [])
    began = time.monotonic()
    missing = waiting.wait_for(["slow.test:80"], timeout_s=0.3)
    released.set()
    assert missing == ["slow.test:80"]
    assert time.monotonic() - began < 30


def test_a_missing_command_is_an_error_before_the_wait():
    done = portbook("wait", "127.0.0.1:1", "--", "no-such-command")
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)


def test_free_waits_for_the_holder():
    with listening("127.0.0.1") as ((_, port),):
        done = portbook("wait", "--free", port, "--timeout", "0.3")
    assert (done.returncode, done.stderr) == (1, f"portbook: after 0.3 s not free: {port} (in use)\n")
    assert portbook("wait", "--free", port, "--timeout", "20").returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="sockets that are bound and nothing else are not in every table")
def test_free_waits_for_a_holder_that_a_dial_would_not_find():
    with refusing() as (_, port):
        assert portbook("wait", "--free", port, "--timeout", "0.3").returncode == 1
    assert portbook("wait", "--free", port, "--timeout", "5").returncode == 0


@contextmanager
def datagrams(answer):
    """A UDP port that answers each datagram with what a function makes of it; None: not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        place = sock.getsockname()

        def serve():
            while True:
                try:
                    data, sender = sock.recvfrom(2048)
                except ConnectionError:  # Windows: the receiver of a reply is gone
                    continue
                if data == b"stop":
                    return
                if (reply := answer(data)) is not None:
                    with peer_may_vanish():
                        sock.sendto(reply, sender)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield place[1]
        finally:
            sock.sendto(b"stop", place)
            thread.join(20)


def test_the_library_waits_for_tcp_udp_and_free_ports():
    with listening("127.0.0.1") as ((_, port),), datagrams(lambda data: b"here") as udp_port:
        rounds = []
        assert waiting.wait_for([f"127.0.0.1:{port}"], timeout_s=20, on_round=rounds.append) == []
        assert rounds == [[]]
        assert waiting.wait_for(f"127.0.0.1:{udp_port}", udp=True, timeout_s=20) == []
        assert waiting.wait_for([port, f"localhost:{port}"], free=True, timeout_s=0.2) == [
            str(port),
            f"localhost:{port}",
        ]
        assert waiting.wait_for([udp_port], udp=True, free=True, timeout_s=0.2) == [str(udp_port)]
    assert waiting.wait_for([port], free=True, timeout_s=20) == []
    assert waiting.wait_for([udp_port], udp=True, free=True, timeout_s=20) == []


@pytest.mark.parametrize(("targets", "free"), [(["host"], False), (["host:90-80"], False), (["port"], True)])
def test_an_invalid_target_is_an_error_before_the_wait(targets, free):
    with pytest.raises(UsageError):
        waiting.wait_for(targets, free=free, timeout_s=60)


def test_udp_waits_for_an_answer():
    with datagrams(lambda data: b"here") as port:
        assert portbook("wait", "--udp", f"127.0.0.1:{port}", "--timeout", "20").returncode == 0


def test_udp_sends_a_request_that_a_dns_server_understands():
    with datagrams(lambda data: data[:2] + b"\x84\x05" + bytes(8) if b"version" in data else None) as port:
        assert portbook("wait", "--udp", f"127.0.0.1:{port}", "--timeout", "20").returncode == 0


def test_udp_silence_is_no_answer():
    with datagrams(lambda data: None) as silent, datagrams(lambda data: b"here") as port:
        ports = [f"127.0.0.1:{silent}", f"127.0.0.1:{port}"]
        assert waiting.wait_until_ready(ports, udp=True, timeout_s=1) == [waiting.Unready(ports[0], "silent")]


def test_udp_refused_is_no_answer():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
    assert portbook("wait", "--udp", f"127.0.0.1:{port}", "--timeout", "0.3").returncode == 1


# --- the command ---------------------------------------------------------------------------------------------------


def test_dial_prints_open_and_exits_with_0():
    with listening("127.0.0.1") as ((_, port),):
        done = portbook("dial", f"127.0.0.1:{port}")
    assert done.returncode == 0
    assert f"127.0.0.1:{port} is open" in done.stdout
    assert "SYN/ACK" in done.stdout


def test_dial_json():
    with refusing() as (_, port):
        done = portbook("dial", f"127.0.0.1:{port}", "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["open"], answer["addresses"][0]["evidence"]["kind"]) == (False, "rst")


@pytest.mark.parametrize("target", ["x", "a:b", "::1:80", "host:0"])
def test_an_invalid_target_is_one_line(target):
    done = portbook("dial", target)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
