"""Banners: what services say on a new connection before anything is asked.

Nothing is sent. Services that speak first are those of RFC 4253 (SSH), RFC 5321 (SMTP), RFC 959 (FTP), RFC 1939 (POP3),
RFC 9051 (IMAP), RFC 6143 (RFB), rsync and MySQL (dev.mysql.com, Protocol::HandshakeV10); others stay silent.
"""

from __future__ import annotations

import re
import socket
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

from msgspec.structs import replace

from portbook.addresses import family_of, socket_address
from portbook.probe.outcome import Answer

MOST_READERS = 16  # connections at the same time; a scan must work with 64 descriptors
MOST_WAITING = 256  # open ports whose banner is not read yet: beyond that the scan waits
MOST_BYTES = 1024
MOST_CHARACTERS = 160  # of a banner in an answer
PATIENCE_S = 2.0  # for the connection and the first bytes together

# The first that matches counts. The name is that of the IANA registry, where it has one.
BANNERS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"SSH-\d"), "ssh"),
    (re.compile(rb"220[ -][^\r\n]*\bE?SMTP\b"), "smtp"),
    (re.compile(rb"220[ -][^\r\n]*FTP", re.IGNORECASE), "ftp"),
    (re.compile(rb"\+OK\b"), "pop3"),
    (re.compile(rb"\* (OK|PREAUTH|BYE)\b"), "imap"),
    (re.compile(rb"RFB \d{3}\.\d{3}\n"), "rfb"),
    (re.compile(rb"@RSYNCD: "), "rsync"),
    (re.compile(rb".{3}\x00[\x09\x0a]\d+\.\d+[^\x00]*\x00", re.DOTALL), "mysql"),
    (re.compile(rb"20[01] [^\r\n]*\b(NNTP|news)", re.IGNORECASE), "nntp"),
    (re.compile(rb"\xff[\xfb-\xfe]"), "telnet"),
    (re.compile(rb"HTTP/\d"), "http"),
)


def recognise(data: bytes) -> str | None:
    """The service that begins a connection with these bytes; None if it is not known."""
    return next((service for pattern, service in BANNERS if pattern.match(data)), None)


def text_of(data: bytes) -> str | None:
    """The readable beginning of a banner, on one line; None if nothing in it can be read."""
    text = "".join(character if character.isprintable() else " " for character in data.decode("utf-8", "replace"))
    return " ".join(text.replace("\ufffd", " ").split())[:MOST_CHARACTERS] or None


def read(answer: Answer, limit_s: float) -> bytes:
    """Connect to an open port and read what comes within the limit; empty if nothing does.

    :param limit_s: for the connection and the first bytes, seconds
    """
    deadline = monotonic() + limit_s
    address = answer.address or ""
    try:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as connection:
            connection.settimeout(limit_s)
            connection.connect(socket_address(address, answer.port, answer.zone))
            connection.settimeout(max(0.001, deadline - monotonic()))
            return connection.recv(MOST_BYTES)
    except (OSError, ValueError):
        return b""


def with_banners(answers: Iterable[Answer], limit_s: float | None) -> Iterator[Answer]:
    """Yield the answers, those of open ports with their banner, which is read while the others go on.

    :param limit_s: of each connection, seconds; None: 2 seconds
    """
    patience_s = min(limit_s or PATIENCE_S, PATIENCE_S)
    pending: deque[Future[Answer]] = deque()
    readers = ThreadPoolExecutor(MOST_READERS, "portbook-banner")
    try:
        for answer in answers:
            if answer.outcome != "open":
                yield answer
                continue
            pending.append(readers.submit(_with_banner, answer, patience_s))
            while pending and (pending[0].done() or len(pending) > MOST_WAITING):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        readers.shutdown(wait=False, cancel_futures=True)


def _with_banner(answer: Answer, limit_s: float) -> Answer:
    data = read(answer, limit_s)
    service = recognise(data)
    if service is None:
        return replace(answer, banner=text_of(data))
    return replace(answer, banner=text_of(data), service=service, service_origin="banner")
