"""Webhooks to receivers that are down, slow, wrong or hostile: nothing is lost, and the order is kept."""

from __future__ import annotations

import hashlib
import hmac
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus

import pytest

from portbook import resilience
from portbook.errors import StoreError, UsageError
from portbook.resilience import BreakerSettings
from portbook.watching.sinks import webhook, worker
from portbook.watching.sinks.dispatch import open_sinks
from portbook.watching.sinks.spool import Spool
from tests.probe.tls.pki import AUTHORITY, LEAF, Pki
from tests.watching.sinks.events import LIMIT_S, event, settings, wait_until
from tests.watching.sinks.http import OK, answer, receiver

SECRET = "hunter2-of-the-signature"
TOKEN = "hunter2-of-the-token"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Short pauses; they are tested by themselves."""
    monkeypatch.setattr(webhook, "PATIENT", BreakerSettings(failures=5, pause_s=0.02, most_pause_s=0.05))
    monkeypatch.setattr(worker, "waits", lambda: resilience.waits(0.005, 0.02))
    for variable in ("PORTBOOK_WEBHOOK_SECRET", "PORTBOOK_WEBHOOK_TOKEN"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def server():
    with receiver() as running:
        yield running


@pytest.fixture
def started(tmp_path):
    """Start a pipeline with one webhook."""
    pipelines = []

    def start(target, **options):
        pipeline = open_sinks([settings("webhook", target, **{"spool": str(tmp_path / "spool"), **options})])
        pipeline.start()
        pipelines.append(pipeline)
        return pipeline

    yield start
    for pipeline in pipelines:
        pipeline.close(0.2)


def send(pipeline, first, last):
    for n in range(first, last):
        pipeline.write([event(n)])


# --- a receiver that works -----------------------------------------------------------------------------------------


def test_a_request(server, started, monkeypatch):
    monkeypatch.setenv("PORTBOOK_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("PORTBOOK_WEBHOOK_TOKEN", TOKEN)
    pipeline = started(server.url + "?a=b")
    before = int(time.time())
    pipeline.write([event(1), event(2)])
    wait_until(lambda: server.accepted)
    (request,) = server.accepted
    assert (request.method, request.target) == ("POST", "/hook?a=b")
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    stamp, signature = request.headers["portbook-signature"].split(",")
    at = int(stamp.removeprefix("t="))
    expected = hmac.new(SECRET.encode(), f"{at}.".encode() + request.body, hashlib.sha256).hexdigest()
    assert signature == f"v1={expected}"
    assert before <= at <= time.time()
    spool, first = request.json["spool"], request.json["first"]
    assert (request.json["schema"], first) == (1, 1)
    assert request.key == f'"{spool}-1-2"'
    assert request.cookies == [1, 2]


def test_a_connection_is_used_again_and_many_events_share_a_request(server, started):
    pipeline = started(server.url, batch=50)
    for at in range(0, 1000, 100):
        pipeline.write([event(n) for n in range(at, at + 100)])
    wait_until(lambda: len(server.cookies) == 1000)
    assert server.cookies == list(range(1000))
    assert max(len(one.cookies) for one in server.accepted) == 50
    assert server.connections == 1
    assert pipeline.close() == []


def test_what_is_below_the_severity_is_not_sent(server, started):
    pipeline = started(server.url)
    pipeline.write([event(1, severity="quiet"), event(2)])
    wait_until(lambda: server.accepted)
    assert server.cookies == [2]


def test_a_large_event_has_a_request_of_its_own(server, started, monkeypatch):
    monkeypatch.setattr(webhook, "MOST_BODY", 10_000)
    started(server.url).write([event(1), event(2, name="x" * 50_000), event(3)])
    wait_until(lambda: len(server.cookies) == 3)
    assert [one.cookies for one in server.accepted] == [[1], [2], [3]]


# --- receivers that fail -------------------------------------------------------------------------------------------

FAILURES = {
    "down for a while": "reset",
    "an error": answer("500 Internal Server Error"),
    "busy": answer("503 Service Unavailable", "Retry-After: 0"),
    "not authorized": answer("401 Unauthorized"),
    "a redirect": answer("302 Found", "Location: http://127.0.0.1:1/elsewhere"),
    "closed without an answer": "close",
    "garbage": b"\x00\xff\x1b[31m garbage\r\n\r\n" * 10,
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "headers without end": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "a line without end": b"HTTP/1.1 500 " + b"x" * 100_000,
    "only continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    "headers that are cut": (b"HTTP/1.1 200 OK\r\nContent-Le",),
    "an answer that is cut": (b"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\nabc",),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_nothing_is_lost_and_the_order_is_kept(server, started, failure):
    server.behaviours.extend([OK, FAILURES[failure], FAILURES[failure], OK, FAILURES[failure]])
    pipeline = started(server.url, batch=3, timeout_s=5)
    send(pipeline, 0, 20)
    wait_until(lambda: len(server.cookies) >= 20)
    assert server.cookies == list(range(20))
    bodies = {request.key: request.json["events"] for request in server.requests}
    assert all(request.json["events"] == bodies[request.key] for request in server.requests), (
        "the same key, the same events"
    )
    assert pipeline.take_gaps() == []
    assert pipeline.close() == []


def test_a_redirect_is_said_and_not_followed(server, started):
    with receiver() as elsewhere:
        server.behaviours.append(answer("307 Temporary Redirect", f"Location: {elsewhere.url}"))
        pipeline = started(server.url)
        send(pipeline, 0, 1)
        wait_until(lambda: server.accepted)
        pipeline.take_gaps()
        assert "307 Temporary Redirect: a redirect, which is not followed; 1 event waiting" in pipeline.take_notes()[0]
        assert elsewhere.connections == 0


@pytest.mark.parametrize("silence", ["hang", b"HTTP/1.1 200 OK\r\nContent-Len"])
def test_a_receiver_that_does_not_answer_is_given_up_after_the_limit(server, started, silence):
    server.behaviours.append(silence)
    pipeline = started(server.url, timeout_s=0.2)
    send(pipeline, 0, 1)
    wait_until(lambda: server.accepted)
    pipeline.take_gaps()
    assert "no answer within 0.2 s" in pipeline.take_notes()[0]
    assert len(server.requests) == 2


def test_an_answer_that_trickles_does_not_exceed_the_limit(started):
    """Every byte comes in time for a limit that is meant for one call, as that of a socket is."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ended = threading.Event()

        def trickle():
            peer = server.accept()[0]
            with peer:
                peer.recv(65536)
                peer.sendall(b"HTTP/1.1 200 OK\r\n")
                while not ended.wait(0.02):
                    try:
                        peer.sendall(b"X: y\r\n")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        pipeline = started(f"http://127.0.0.1:{server.getsockname()[1]}", timeout_s=0.2)
        send(pipeline, 0, 1)
        notes = []
        wait_until(lambda: pipeline.take_gaps() or notes.extend(pipeline.take_notes()) or notes)
        ended.set()
        thread.join(LIMIT_S)
    assert "no answer within 0.2 s" in notes[0]


def test_a_receiver_that_is_down_gets_everything_when_it_is_back(started):
    with receiver() as server:
        port = server.port
    pipeline = started(f"http://127.0.0.1:{port}")
    send(pipeline, 0, 100)
    assert pipeline.flush(LIMIT_S)
    notes = []
    wait_until(lambda: pipeline.take_gaps() or notes.extend(pipeline.take_notes()) or notes)
    assert "nothing listens there; " in notes[0]
    assert pipeline.status()[0].waiting == 100
    with receiver() as server:
        server_port = server.port
        pipeline._workers[0].sink._poster._port = server_port  # no program can have its old port back for sure
        wait_until(lambda: len(server.cookies) == 100)
        assert server.cookies == list(range(100))
        wait_until(lambda: pipeline.take_gaps() or "works again" in " ".join(pipeline.take_notes()))


def test_what_the_receiver_wants_to_wait_for_is_waited_for(server, started):
    server.behaviours.append(answer("429 Too Many Requests", "Retry-After: 1"))
    pipeline = started(server.url)
    began = time.monotonic()
    send(pipeline, 0, 1)
    wait_until(lambda: server.accepted)
    assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(None, None), ("7", 7.0), ("99999999", 3600.0), ("-1", None), ("soon", None), ("9" * 99, None), ("", None),
     ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)  # fmt: skip
def test_retry_after(text, seconds):
    assert webhook._pause_s(text) == seconds


def test_retry_after_as_a_date():
    text = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 90 < webhook._pause_s(text) <= 100


def test_an_event_that_the_receiver_refuses_is_lost_and_no_other(server, started):
    def choose(request):
        return answer("422 Unprocessable Content") if 5 in request.cookies else OK

    server.otherwise = choose
    pipeline = started(server.url, batch=4)
    pipeline.write([event(n) for n in range(12)])
    wait_until(lambda: 11 in server.cookies)
    assert server.cookies == [n for n in range(12) if n != 5]
    gaps = []
    wait_until(lambda: gaps.extend(pipeline.take_gaps()) or gaps)
    assert [(gap.count, gap.reason.partition(": ")[2]) for gap in gaps] == [
        (1, f"the receiver refused it: 422 {HTTPStatus(422).phrase}")
    ]
    assert len([one for one in server.requests if one.cookies == [5]]) == webhook.MOST_REFUSALS


def test_a_hang_up_ends_a_pause_and_reads_the_secrets_again(server, started, tmp_path, monkeypatch):
    monkeypatch.setattr(webhook, "PATIENT", BreakerSettings(failures=1, pause_s=3600.0, most_pause_s=3600.0))
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    server.behaviours.append(answer("500 Oops"))
    pipeline = started(server.url, secret_file=str(path))
    send(pipeline, 0, 1)
    wait_until(lambda: len(server.requests) == 1)
    wait_until(lambda: pipeline.take_gaps() or pipeline.take_notes())
    path.write_text("new\n")
    pipeline.reopen()
    wait_until(lambda: server.accepted)
    at = server.accepted[0].headers["portbook-signature"].partition(",")[0].removeprefix("t=")
    expected = hmac.new(b"new", f"{at}.".encode() + server.accepted[0].body, hashlib.sha256).hexdigest()
    assert server.accepted[0].headers["portbook-signature"] == f"t={at},v1={expected}"


# --- the end, and another start ------------------------------------------------------------------------------------


def test_what_is_not_delivered_at_the_end_is_delivered_after_the_next_start(server, started):
    server.otherwise = answer("500 Oops")
    pipeline = started(server.url)
    send(pipeline, 0, 10)
    assert pipeline.close(0.1) == [], "it is not lost"
    assert not server.accepted
    server.otherwise = OK
    pipeline = started(server.url)
    wait_until(lambda: pipeline.take_gaps() or server.accepted)
    send(pipeline, 10, 20)
    wait_until(lambda: len(server.cookies) == 20)
    assert server.cookies == list(range(20))


def test_a_request_that_hangs_does_not_hold_up_the_end(server, started):
    server.otherwise = "hang"
    pipeline = started(server.url, timeout_s=30)
    send(pipeline, 0, 1)
    wait_until(lambda: server.requests)
    began = time.monotonic()
    assert pipeline.close(0.1) == []
    assert time.monotonic() - began < 5


def test_a_second_process_may_not_use_the_same_spool(server, started):
    started(server.url)
    with pytest.raises(StoreError, match="another process uses the spool"):
        started(server.url)


KILLED = """
import sys
from portbook import resilience
from portbook.watching.sinks import webhook, worker
from portbook.watching.sinks.dispatch import open_sinks
from tests.watching.sinks.events import event, settings
webhook.PATIENT = resilience.BreakerSettings(failures=5, pause_s=0.02, most_pause_s=0.05)
worker.waits = lambda: resilience.waits(0.005, 0.02)
url, spool, first = sys.argv[1:]
pipeline = open_sinks([settings("webhook", url, spool=spool, batch=7)])
pipeline.start()
pipeline.take_gaps()
for n in range(int(first), int(first) + 100_000, 5):
    pipeline.write([event(k) for k in range(n, n + 5)])
    pipeline.flush()
    print(n + 4, flush=True)
"""


def test_a_process_that_is_killed_at_any_instant_loses_nothing(server, tmp_path, started):
    """What was in the spool when it was killed is delivered, in order; what arrives twice has the same key."""
    chance = random.Random(7)
    server.otherwise = lambda request: OK if chance.random() < 0.7 else answer("500 Oops")
    first = last = 0
    written = []
    for _ in range(5):
        command = [sys.executable, "-c", KILLED, server.url, tmp_path / "spool", str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            line = process.stdout.readline()
            time.sleep(chance.random() * 0.1)
            process.kill()
            rest = [line, *process.stdout.read().splitlines()]
        last = int([line for line in rest if line.strip()][-1])
        written.append((first, last))
        first = last + 1000
    server.otherwise = OK
    pipeline = started(server.url)
    pipeline.write([event(10**9)])
    gaps = []
    wait_until(lambda: gaps.extend(pipeline.take_gaps()) or gaps or 10**9 in server.cookies)
    assert gaps == []
    assert set(server.cookies) >= {n for low, high in written for n in range(low, high + 1)}
    wait_until(lambda: pipeline.status()[0].waiting == 0)
    once = list(dict.fromkeys(server.cookies))
    assert once == sorted(once), "the order is kept"
    events = {}
    for request in server.requests:
        assert events.setdefault(request.key, request.json["events"]) == request.json["events"]
    numbers = {}
    for request in server.accepted:
        for at, one in enumerate(request.json["events"], request.json["first"]):
            assert numbers.setdefault(at, one["cookie"]) == one["cookie"], "a number belongs to one event"


# --- TLS -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    made = Pki(tmp_path_factory.mktemp("pki"))
    made.make("root", AUTHORITY)
    made.make("good", LEAF.format(names="IP:127.0.0.1"), issuer="root")
    made.make("other", LEAF.format(names="DNS:other.example"), issuer="root")
    made.make("old", LEAF.format(names="IP:127.0.0.1"), issuer="root", ends="20210101000000Z")
    return made


def tls(pki, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki.path(name), pki.path(name, "key"))
    return context


def test_a_trusted_receiver(pki, started):
    with receiver(tls(pki, "good")) as server:
        pipeline = started(server.url, ca_file=str(pki.path("root")))
        send(pipeline, 0, 10)
        wait_until(lambda: len(server.cookies) == 10)
        assert server.cookies == list(range(10))


@pytest.mark.parametrize(
    ("name", "trusted", "words"),
    [
        ("good", False, "unable to get local issuer certificate"),
        ("other", True, "IP address mismatch"),
        ("old", True, "certificate has expired"),
    ],
)
def test_a_receiver_that_cannot_be_trusted_gets_nothing(pki, name, trusted, words, tmp_path):
    with receiver(tls(pki, name)) as server:
        options = {"ca_file": str(pki.path("root"))} if trusted else {}
        (result,) = open_sinks([settings("webhook", server.url, **options)]).test()
        assert not result.delivered
        assert "its certificate is not trusted" in result.reason
        assert words in result.reason
        assert server.requests == []


def test_a_receiver_without_tls_is_said():
    with receiver() as server:
        (result,) = open_sinks([settings("webhook", server.url.replace("http:", "https:"), timeout_s=0.3)]).test()
    assert not result.delivered
    assert "TLS failed" in result.reason or "no answer" in result.reason or "closed" in result.reason


# --- tests and refusals --------------------------------------------------------------------------------------------


def test_a_test_event_goes_past_the_spool(server, started):
    server.otherwise = answer("500 Oops")
    send(started(server.url), 0, 1)
    wait_until(lambda: server.requests)
    server.otherwise = OK
    (result,) = open_sinks([settings("webhook", server.url)]).test()
    assert (result.delivered, result.reason) == (True, "it is not signed: no secret is configured")
    assert any(one["event"] == "test" for request in server.accepted for one in request.json["events"])


def test_a_test_event_that_is_refused_says_why(server):
    server.otherwise = answer("403 \x1b[31mForbidden hunter2")
    (result,) = open_sinks([settings("webhook", server.url)]).test()
    assert (result.delivered, result.reason) == (False, "the receiver answered 403 Forbidden")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "not a URL"),
        ("example.org", "not a URL"),
        ("ftp://127.0.0.1/", "not a URL"),
        ("https://", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://127.0.0.1:99999/hunter2", "not a URL"),
        ("https://127.0.0.1:0/hunter2", "not a port"),
        ("https://user:hunter2@127.0.0.1/", "a user or a password"),
        ("https://hunter2@127.0.0.1/", "a user or a password"),
        ("https://127.0.0.1/x#hunter2", "the part after #"),
        ("https://127.0.0.1/a b hunter2", "not a URL"),
        ("https://127.0.0.1/\r\nX: hunter2", "not a URL"),
        ("https://127.1/hunter2", "127.1"),
        ("http://192.0.2.1/hunter2", "is not encrypted"),
        ("http://example.org/hunter2", "is not encrypted"),
        ("http://localhost.example.org/hunter2", "is not encrypted"),
    ],
)
def test_a_target_that_is_refused_is_not_repeated_in_the_message(url, words):
    with pytest.raises(UsageError, match=words) as refused:
        open_sinks([settings("webhook", url)])
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://localhost:8080/x", "http://127.9.9.9/", "http://[::1]:80/", "https://192.0.2.1/"]
)
def test_a_target_that_is_taken(url):
    open_sinks([settings("webhook", url)]).close(0)


def test_http_to_another_machine_must_be_wanted():
    open_sinks([settings("webhook", "http://192.0.2.1/", insecure=True)]).close(0)


def test_a_url_may_be_a_secret(tmp_path, server):
    path = tmp_path / "url"
    path.write_text(server.url + "/T0/hunter2\n")
    path.chmod(0o600)
    pipeline = open_sinks([settings("webhook", target_file=str(path))])
    assert pipeline.status()[0].name == f"webhook:http://127.0.0.1:{server.port}"
    assert "hunter2" not in repr(pipeline._workers[0].sink.target)
    assert pipeline.test()[0].delivered
    assert server.accepted[0].target == "/hook/T0/hunter2"


def test_secrets_are_in_no_message_and_no_repr(server, tmp_path, monkeypatch, started):
    """The receiver has seen them, and sends them back wherever it can."""
    monkeypatch.setenv("PORTBOOK_WEBHOOK_SECRET", SECRET)
    monkeypatch.setenv("PORTBOOK_WEBHOOK_TOKEN", TOKEN)
    echoes = [
        answer(f"500 {TOKEN}", f"X: {TOKEN}", body=TOKEN.encode()),
        answer(f"302 {TOKEN}", f"Location: https://{TOKEN}/"),
        answer(f"403 {TOKEN}", f"Retry-After: {TOKEN}"),
        f"{TOKEN}\r\n\r\n".encode(),
    ]
    for echo in echoes:
        server.otherwise = echo
        (result,) = open_sinks([settings("webhook", server.url)]).test()
        assert not result.delivered
        assert TOKEN not in repr(result)
    pipeline = started(server.url)
    send(pipeline, 0, 3)
    wait_until(lambda: len(server.requests) > 6)
    sink = pipeline._workers[0].sink
    said = [*pipeline.take_gaps(), *pipeline.take_notes(), *pipeline.status(), *pipeline.close(0.1)]
    text = repr((said, sink._credentials, sink._settings, sink.target))
    assert SECRET not in text
    assert TOKEN not in text
    for name in os.listdir(tmp_path / "spool"):
        assert TOKEN.encode() not in (tmp_path / "spool" / name).read_bytes()


@pytest.mark.parametrize("token", ["a b", "a\x00b", "a\rb", "é", "a\nX: y"])
def test_a_token_that_would_add_a_header_is_refused(server, tmp_path, token):
    path = tmp_path / "token"
    path.write_text(token)
    path.chmod(0o600)
    with pytest.raises(UsageError, match="characters that a header cannot have"):
        open_sinks([settings("webhook", server.url, token_file=str(path))])


def test_certificates_that_are_none_are_refused(tmp_path):
    (tmp_path / "ca").write_text("nothing")
    for path in ("/nonexistent", tmp_path / "ca"):
        with pytest.raises(UsageError, match="has no certificates that can be read"):
            open_sinks([settings("webhook", "https://127.0.0.1/", ca_file=str(path))])


def test_the_default_spool_is_beside_the_history_and_names_nobody(monkeypatch, tmp_path):
    monkeypatch.setattr(webhook, "store_path", lambda: str(tmp_path / "portbook" / "history.db"))
    first, second = webhook._default_spool("https://127.0.0.1/hunter2"), webhook._default_spool("https://127.0.0.1/x")
    assert first != second
    assert first.startswith(str(tmp_path / "portbook" / "spool"))
    assert "hunter2" not in first
    Spool(first, 1 << 20).close()
    assert (tmp_path / "portbook" / "spool").stat().st_mode & 0o777 == 0o700
