"""The sink ``webhook``: events as JSON to a receiver that is reached by HTTPS, in order, at least once.

Every event is on disk before it is sent (``spool``). A request has some of them:

    POST /path
    Idempotency-Key: "5d0e21c1a85b4f4e-18-21"        the same when a request is repeated
    Portbook-Signature: t=1795869000,v1=…            HMAC-SHA-256 (RFC 2104) of "1795869000." and the body
    {"schema": 1, "spool": "5d0e21c1a85b4f4e", "first": 18, "events": [{…}, …]}

An answer of 200 to 299 is the receipt. Everything else, redirects included, is a failure: the same request is sent
again after pauses that grow, or when the receiver wants it (Retry-After). What a receiver refuses as invalid is sent
event by event, and after some attempts counted as lost.

Facts: draft-ietf-httpapi-idempotency-key-header-06; RFC 9110 sections 10.2.3 (Retry-After) and 15 (status codes).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ssl import SSLContext, create_default_context
from time import monotonic, time
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from portbook.addresses import format_endpoint, parse_host, reach_of
from portbook.errors import StoreError, UsageError
from portbook.numerals import UINT16, counted, number_or_none
from portbook.resilience import BreakerSettings
from portbook.store import path as store_path
from portbook.watching.sinks import secret
from portbook.watching.sinks.base import (
    DeliveryError,
    EncodedEvent,
    Loss,
    PlainSink,
    Sink,
    SinkKind,
    SinkOption,
    SinkSettings,
)
from portbook.watching.sinks.post import PostAnswer, Poster, PostError
from portbook.watching.sinks.spool import Spool, SpoolRecord
from portbook.watching.sinks.worker import NOTE_S, Pauses

SCHEMA = 1
MOST_BODY = 1 << 18  # bytes of events in one request
MOST_DATE = 40  # characters of a date in a header
MOST_PAUSE_S = 3600.0  # that Retry-After may ask for
# The receiver does not take this content, whatever is done (RFC 9110 sections 15.5.1, 15.5.14, 15.5.16, 15.5.21).
REFUSALS = frozenset((400, 413, 415, 422))
MOST_REFUSALS = 3  # of one event before it counts as lost
# An outage may last: attempts become rare, and the first success ends that.
PATIENT = BreakerSettings(failures=5, pause_s=10.0, most_pause_s=300.0)
SCHEMES = {"https": 443, "http": 80}

OPTIONS = {
    **secret.options("target", "the URL, if it is a secret itself"),
    **secret.options("secret", "the secret of the signature", "PORTBOOK_WEBHOOK_SECRET"),
    **secret.options("token", "a token that is sent as Authorization: Bearer", "PORTBOOK_WEBHOOK_TOKEN"),
    "ca_file": SinkOption("text", None, "certificates to trust, in PEM; default: those of the system"),
    "insecure": SinkOption("flag", False, "http:// also to other machines: everybody on the way reads the events"),
    "timeout_s": SinkOption("number", 10, "seconds for one request", 1, 300),
    "batch": SinkOption("number", 100, "how many events one request may have", 1, 1000),
    "spool": SinkOption("text", None, "directory for what is not delivered; default: beside the history"),
    "spool_bytes": SinkOption("number", 64 << 20, "of the spool; the oldest events are lost beyond it", 1 << 20),
}


class WebhookTarget(NamedTuple):
    """Where the requests go."""

    url: str  # may be a secret
    scheme: str
    host: str
    port: int
    path: str  # with the query

    def __repr__(self) -> str:
        return f"WebhookTarget({self.shown!r})"

    @property
    def shown(self) -> str:
        """The target for messages: without path and query, which may have a token."""
        return f"{self.scheme}://{format_endpoint(self.host, self.port)}"


def parse_target(url: str, place: str, *, insecure: bool = False) -> WebhookTarget:
    """Check a URL. No part of it that may be a secret is in a message.

    :raises UsageError: it is none, has a password in it, or is not encrypted
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(
            f"{place}: the target of webhook is not a URL", "write webhook:https://example.org/path"
        ) from error
    if parts.scheme not in SCHEMES or not parts.hostname or not url.isascii() or not url.isprintable() or " " in url:
        raise UsageError(f"{place}: the target of webhook is not a URL", "write webhook:https://example.org/path")
    if "@" in parts.netloc:
        hint = "give a token with token_file or token_env"
        raise UsageError(f"{place}: a user or a password in a URL is not used", hint)
    if parts.fragment:
        raise UsageError(f"{place}: the part after # of a URL is not sent", "omit it")
    try:
        host = parse_host(parts.hostname).name
    except UsageError as error:
        raise UsageError(f"{place}: {error}") from error
    number = SCHEMES[parts.scheme] if port is None else number_or_none(str(port), UINT16, 1)
    if number is None:
        raise UsageError(f"{place}: {port} is not a port", "write a number from 1 to 65535")
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        hint = "use https://, or set insecure = true in the configuration"
        raise UsageError(f"{place}: http:// to another machine is not encrypted", hint)
    return WebhookTarget(url, parts.scheme, host, number, _path_of(parts))


def _path_of(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def _is_loopback(host: str) -> bool:
    named = parse_host(host)
    return named.is_local_name or (named.is_address and reach_of(host) == "loopback")


class Credentials(NamedTuple):
    """The secrets of a receiver, as they were when they were read."""

    secret: secret.Secret | None
    token: secret.Secret | None

    def headers(self, body: bytes, now: float) -> dict[str, str]:
        """The headers that prove who sends the body."""
        headers: dict[str, str] = {}
        if self.secret is not None:
            at = int(now)
            digest = hmac.new(self.secret.reveal(), b"%d." % at + body, hashlib.sha256).hexdigest()
            headers["Portbook-Signature"] = f"t={at},v1={digest}"
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token.reveal().decode('ascii')}"
        return headers


def read_credentials(settings: SinkSettings) -> Credentials:
    """Read the secrets; raise UsageError or StoreError."""
    token = secret.read(settings, "token")
    if token is not None and not all(0x21 <= byte <= 0x7E for byte in token.reveal()):  # RFC 6750 section 2.1
        raise UsageError(f"{settings.place}: the token has characters that a header cannot have")
    return Credentials(secret.read(settings, "secret"), token)


class WebhookSink(PlainSink):
    """A receiver, its spool, and the thread that sends what is in the spool."""

    def __init__(self, settings: SinkSettings) -> None:
        options = settings.options
        url = secret.read(settings, "target")
        text = settings.target if url is None else url.reveal().decode("utf-8", "replace")
        if url is not None and settings.target:
            raise UsageError(f"{settings.place}: the webhook has a target twice", "omit one of them")
        self.target = parse_target(text, settings.place, insecure=options["insecure"])
        self.name = f"webhook:{self.target.shown}"
        self._settings = settings
        self._credentials = read_credentials(settings)
        self._poster = Poster(
            parse_host(self.target.host), self.target.port, self.target.path, options["timeout_s"], self._tls()
        )
        self._spool: Spool | None = None
        self._courier: _Courier | None = None

    def _tls(self) -> SSLContext | None:
        """The trusted certificates; None: HTTP without TLS."""
        if self.target.scheme != "https":
            return None
        path = self._settings.text("ca_file")
        try:
            return create_default_context(cafile=path)
        except OSError as error:  # an SSLError is one
            reason = f"{self._settings.place}: {path!r} has no certificates that can be read: {error.strerror or error}"
            raise UsageError(reason, "name a file in PEM") from error

    def start(self) -> None:
        """Open the spool; raise StoreError. What is in it from before is sent first: the thread starts later."""
        path = os.path.abspath(self._settings.text("spool") or _default_spool(self.target.url))
        self._spool = Spool(path, self._settings.options["spool_bytes"])
        self._courier = _Courier(self._spool, self, self._settings.options["batch"])

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Put the events into the spool."""
        if self._spool is None or self._courier is None:
            raise DeliveryError("it was not started")
        self._spool.append([event.json for event in events])
        self._courier.wake()

    def test(self, event: EncodedEvent) -> str | None:
        """Send the event past the spool; raise DeliveryError."""
        answer = self.post("test", [SpoolRecord(0, event.json)])
        if not _is_receipt(answer):
            raise DeliveryError(_refusal(answer))
        if self._credentials.secret is None:
            return "it is not signed: no secret is configured"
        return None

    def post(self, spool: str, records: Sequence[SpoolRecord]) -> PostAnswer:
        """Send one request; raise DeliveryError if there is no answer."""
        first, last = records[0].number, records[-1].number
        events = b",\n".join(record.json for record in records)
        head = f'{{"schema":{SCHEMA},"spool":"{spool}","first":{first},"events":[\n'.encode()
        body = head + events + b"\n]}\n"
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "portbook",
            "Idempotency-Key": f'"{spool}-{first}-{last}"',
            **self._credentials.headers(body, time()),
        }
        try:
            return self._poster.post(body, headers)
        except PostError as error:
            raise DeliveryError(str(error)) from error

    def reopen(self) -> None:
        """Read the secrets again, and try at once; raise DeliveryError."""
        try:
            self._credentials = read_credentials(self._settings)
        except (StoreError, UsageError) as error:
            raise DeliveryError(str(error)) from error
        finally:
            if self._courier is not None:
                self._courier.retry_now()

    def waiting(self) -> int:
        """How many events are in the spool."""
        return 0 if self._spool is None else self._spool.waiting()

    def reports(self) -> tuple[list[Loss], list[str]]:
        """What was lost, and messages."""
        if self._spool is None or self._courier is None:
            return [], []
        if self._spool.waiting():
            self._courier.wake()
        losses, notes = self._courier.take_reports()
        return self._spool.take_losses() + losses, notes

    def interrupt(self) -> None:
        """End the request that is being sent."""
        self._poster.interrupt()

    def close(self, limit_s: float) -> None:
        """Send what can be sent in this time. The rest is in the spool for the next start."""
        if self._courier is not None:
            self._courier.close(limit_s)
        self._poster.close()
        if self._spool is not None:
            self._spool.close()


class _Courier:
    """The thread that takes events from the spool and sends them."""

    def __init__(self, spool: Spool, sink: WebhookSink, most_records: int) -> None:
        self._spool, self._sink = spool, sink
        self._most_records = most_records
        self._singly_until = 0  # what a receiver refused is sent event by event, up to this number
        self._refusals = 0
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._end_at: float | None = None
        self._pauses = Pauses(PATIENT)
        self._losses: list[Loss] = []
        self._notes: list[str] = []
        self._note_at = 0.0
        self._noted = False

    # --- for other threads -----------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Say that there is something to send."""
        with self._changed:
            if self._thread is None and self._end_at is None:
                self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def retry_now(self) -> None:
        """End the pause."""
        with self._changed:
            self._pauses = Pauses(PATIENT)
            self._changed.notify_all()

    def take_reports(self) -> tuple[list[Loss], list[str]]:
        """What was lost since the last call, and messages."""
        with self._changed:
            losses, notes = self._losses, self._notes
            self._losses, self._notes = [], []
        return losses, notes

    def close(self, limit_s: float) -> None:
        """Send what can be sent within the limit, then end."""
        with self._changed:
            self._end_at = monotonic() + limit_s
            self._pauses = Pauses(PATIENT)  # one more attempt, at once
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(limit_s)
            if self._thread.is_alive():
                self._sink.interrupt()
                self._thread.join(1.0)

    # --- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            try:
                self._send()
            except Exception as error:  # noqa: BLE001  a defect must not end the thread
                self._fail(f"unexpected error: {error.__class__.__name__}", None)

    def _wait(self) -> bool:
        """Wait until there is something to send and it is time; return False at the end."""
        with self._changed:
            while True:
                now = monotonic()
                waiting = self._spool.waiting()
                if self._end_at is not None and (now >= self._end_at or not waiting):
                    return False
                if waiting and self._pauses.may_try(now):
                    return True
                until = self._end_at if self._end_at is not None else now + NOTE_S
                if waiting:
                    until = min(until, self._pauses.next_at)
                self._changed.wait(max(0.001, until - now))

    def _send(self) -> None:
        records = self._spool.take(self._most_records, MOST_BODY)
        if not records:
            return
        if records[0].number <= self._singly_until:
            self._spool.give_back()
            records = self._spool.take(1, MOST_BODY)
        try:
            answer = self._sink.post(self._spool.id, records)
        except DeliveryError as failure:
            self._fail(failure.reason, None)
            return
        if _is_receipt(answer):
            self._spool.delivered(records[-1].number)
            self._succeed()
        elif answer.status in REFUSALS:
            self._refuse(records, answer)
        else:
            self._fail(_refusal(answer), _pause_s(answer.retry_after))

    def _refuse(self, records: Sequence[SpoolRecord], answer: PostAnswer) -> None:
        """The receiver does not take the content: perhaps only one of the events."""
        if len(records) > 1:
            self._singly_until = records[-1].number
            self._spool.give_back()
            self._pauses.succeeded()
            return
        self._refusals += 1
        if self._refusals < MOST_REFUSALS:
            self._fail(_refusal(answer), _pause_s(answer.retry_after))
            return
        self._refusals = 0
        self._spool.delivered(records[-1].number)
        self._pauses.succeeded()
        with self._changed:
            self._losses.append(Loss(1, f"the receiver refused it: {answer.meaning}"))

    def _succeed(self) -> None:
        self._refusals = 0
        self._pauses.succeeded()
        with self._changed:
            if self._noted:
                self._notes.append(f"works again; {counted(self._spool.waiting(), 'event')} to be sent")
                self._noted = False

    def _fail(self, reason: str, pause_s: float | None) -> None:
        now = monotonic()
        self._pauses.failed(now, pause_s)
        with self._changed:
            if now >= self._note_at:
                self._notes.append(f"{reason}; {counted(self._spool.waiting(), 'event')} waiting in {self._spool.path}")
                self._note_at = now + 6 * NOTE_S
                self._noted = True
            if self._end_at is not None:  # what does not work now will not for the rest of the time
                self._end_at = now


def _is_receipt(answer: PostAnswer) -> bool:
    return 200 <= answer.status < 300


def _refusal(answer: PostAnswer) -> str:
    if 300 <= answer.status < 400:
        return f"the receiver answered {answer.meaning}: a redirect, which is not followed"
    return f"the receiver answered {answer.meaning}"


def _pause_s(retry_after: str | None) -> float | None:
    """Seconds, or the time until a date; None: there is neither. Bounded."""
    if retry_after is None:
        return None
    seconds = number_or_none(retry_after.strip())
    if seconds is not None:
        return min(float(seconds), MOST_PAUSE_S)
    try:
        until = parsedate_to_datetime(retry_after[:MOST_DATE])
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    return min(max(0.0, (until - datetime.now(UTC)).total_seconds()), MOST_PAUSE_S)


def _default_spool(url: str) -> str:
    """A directory for this receiver: its name has nothing of the URL, which may be a secret."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return os.path.join(os.path.dirname(store_path()), "spool", name)


def open_sink(settings: SinkSettings) -> Sink:
    """A sink for the receiver; raise UsageError or StoreError."""
    return WebhookSink(settings)


SINK = SinkKind(
    name="webhook",
    targets=("https://example.org/path",),
    meaning="JSON to a receiver by HTTPS: signed, in order, kept on disk until it is delivered",
    severity="info",
    options=OPTIONS,
    open=open_sink,
)
