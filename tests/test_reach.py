"""Dialing and waiting, against real listeners, real refusals and real silence."""

import asyncio
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from portbook import UsageError, reach
from tests.components import need

PORTBOOK = (sys.executable, "-m", "portbook")


@contextmanager
def listening(family=socket.AF_INET, address="127.0.0.1", backlog=16):
    with socket.socket(family) as server:
        server.bind((address, 0))
        server.listen(backlog)
        yield server.getsockname()[1]


@contextmanager
def refusing():
    """A port that nobody else can get meanwhile, and that refuses."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@contextmanager
def silent():
    """A listener whose queue is full: Linux then drops further SYNs (listen(2))."""
    with listening(backlog=0) as port, socket.create_connection(("127.0.0.1", port)), socket.socket() as second:
        second.setblocking(False)
        second.connect_ex(("127.0.0.1", port))
        yield port


def run(*arguments, **options):
    return subprocess.run([*PORTBOOK, *arguments], capture_output=True, text=True, timeout=60, check=False, **options)


# --- dial ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_open(family, address):
    with listening(family, address) as port:
        found = reach.dial(f"[{address}]:{port}" if ":" in address else f"{address}:{port}")
    (answer,) = found.addresses
    assert found.open
    assert (answer.address, answer.outcome, answer.evidence.kind) == (address, "open", "syn-ack")
    assert answer.connect_ms is not None


def test_closed():
    with refusing() as port:
        (answer,) = reach.dial(f"127.0.0.1:{port}").addresses
    assert (answer.outcome, answer.evidence.kind, answer.evidence.error) == ("closed", "rst", "ECONNREFUSED")


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue refuses on other systems")
def test_silence_is_a_timeout_and_asked_again():
    with silent() as port:
        (answer,) = reach.dial(f"127.0.0.1:{port}", timeout_s=0.2, retries=1).addresses
    assert (answer.outcome, answer.evidence.kind, answer.attempts, answer.connect_ms) == ("timeout", "silence", 2, None)


def test_a_name_without_an_address():
    found = reach.dial("nosuch.invalid:80")  # RFC 6761 section 6.4: never resolves
    (answer,) = found.addresses
    assert (found.open, answer.address, answer.outcome, answer.evidence.kind) == (
        False,
        None,
        "name-not-found",
        "resolver",
    )


def test_every_address_of_a_name_is_tried(monkeypatch):
    monkeypatch.setattr(
        "portbook.scan.resolve.look_up",
        lambda _: [reach.Place("127.0.0.1"), reach.Place("127.0.0.2"), reach.Place("::1")],
    )
    with listening(address="127.0.0.2") as port:
        found = reach.dial(f"several.test:{port}")
    assert found.open
    assert [a.address for a in found.addresses] == ["127.0.0.1", "127.0.0.2", "::1"]
    assert [a.outcome for a in found.addresses] == ["closed", "open", "closed"]


def test_often():
    with listening(backlog=64) as port:
        found = reach.dial(f"127.0.0.1:{port}", times=20)
    assert found.timing is not None
    assert (found.timing.count, found.timing.lost) == (20, 0)
    assert found.timing.min_ms <= found.timing.median_ms <= found.timing.p95_ms <= found.timing.max_ms


def test_timing_by_hand():
    timing = reach.timing_of([5.0, None, *map(float, range(1, 19))])
    assert timing == reach.Timing(20, 1, 1.0, 9.0, 18.0, 18.0)
    assert reach.timing_of([None]) == reach.Timing(1, 1, None, None, None, None)


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "::1:80", "host:0", "host:65536", "host:80-90", "host:x"])
def test_what_is_no_target(text):
    with pytest.raises(UsageError):
        reach.parse_target(text)


def test_async():
    with listening() as port, refusing() as closed:

        async def both():
            return await asyncio.gather(reach.dial_async(f"127.0.0.1:{port}"), reach.dial_async(f"127.0.0.1:{closed}"))

        first, second = asyncio.run(both())
    assert (first.open, second.open) == (True, False)
    assert second.addresses[0].outcome == "closed"


@pytest.mark.skipif(sys.platform != "linux", reason="counts /proc/self/fd")
def test_cancelling_leaves_no_socket():
    async def cancelled(port):
        dialing = asyncio.create_task(reach.dial_async(f"127.0.0.1:{port}", timeout_s=30))
        await asyncio.sleep(0.2)
        dialing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dialing
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in open_files())

    def open_files():
        return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]

    async def nothing():
        return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in open_files())

    with silent() as port:
        assert asyncio.run(cancelled(port)) == asyncio.run(nothing())


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    need(shutil.which("openssl") is not None, "openssl")
    place = tmp_path_factory.mktemp("tls")
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30",
         "-subj", "/O=Portbook/CN=test.invalid",
         "-addext", "subjectAltName=DNS:test.invalid", "-keyout", place / "key.pem", "-out", place / "cert.pem"],
        capture_output=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return place


@contextmanager
def tls_server(certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)

        def serve():
            for _ in range(3):
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


def test_an_untrusted_certificate_is_read_all_the_same(certificate):
    with tls_server(certificate) as port:
        (answer,) = reach.dial(f"127.0.0.1:{port}", tls=True).addresses
    shown = answer.tls
    assert answer.outcome == "open"
    assert (shown.protocol, shown.trusted) == ("TLSv1.3", False)
    assert (shown.subject, shown.issuer) == ("CN=test.invalid, O=Portbook", "CN=test.invalid, O=Portbook")
    assert shown.names == ("test.invalid",)
    assert shown.days_left in (29, 30)
    assert "self-signed" in shown.error or "self signed" in shown.error


def test_a_port_that_speaks_no_tls_is_open_all_the_same():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            accepted, _ = server.accept()
            with accepted:
                accepted.recv(1000)
                accepted.sendall(b"220 mail.test ready\r\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        (answer,) = reach.dial(f"127.0.0.1:{server.getsockname()[1]}", tls=True).addresses
        thread.join(10)
    assert answer.outcome == "open"
    assert answer.tls.protocol is None
    assert answer.tls.error


# --- wait ----------------------------------------------------------------------------------------------------------


def test_waits_until_it_listens():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        waiting = subprocess.Popen([*PORTBOOK, "wait", f"127.0.0.1:{port}", "--timeout", "30"])
        try:
            time.sleep(0.5)
            assert waiting.poll() is None
            server.listen()
            assert waiting.wait(30) == 0
        finally:
            waiting.kill()
            waiting.wait()


def test_names_what_is_missing():
    with listening() as port, refusing() as closed:
        done = run("wait", f"127.0.0.1:{port}", f"127.0.0.1:{closed}", "--timeout", "0.3")
    assert done.returncode == 1
    assert str(closed) in done.stderr
    assert str(port) not in done.stderr


def test_runs_the_command_in_its_place():
    with listening() as port:
        done = run("wait", f"127.0.0.1:{port}", "--", sys.executable, "-c", "print('ran'); raise SystemExit(7)", "--x")
    assert (done.returncode, done.stdout) == (7, "ran\n")


def test_a_command_that_is_not_there_is_said_before_the_wait():
    done = run("wait", "127.0.0.1:1", "--", "no-such-command")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_free_waits_for_the_holder_and_never_takes_the_port():
    with refusing() as port:  # bound, not listening: a dial would find nobody
        assert run("wait", "--free", str(port), "--timeout", "0.3").returncode == 1
    assert run("wait", "--free", str(port), "--timeout", "5").returncode == 0


# --- the command ---------------------------------------------------------------------------------------------------


def test_dial_says_open_and_exits_with_0():
    with listening() as port:
        done = run("dial", f"127.0.0.1:{port}")
    assert done.returncode == 0
    assert f"127.0.0.1:{port} is open" in done.stdout
    assert "SYN/ACK" in done.stdout


def test_dial_json():
    with refusing() as port:
        done = run("dial", f"127.0.0.1:{port}", "--json")
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    assert (answer["open"], answer["addresses"][0]["evidence"]["kind"]) == (False, "rst")


@pytest.mark.parametrize("target", ["x", "a:b", "::1:80", "host:0"])
def test_a_target_that_makes_no_sense_is_one_line(target):
    done = run("dial", target)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
