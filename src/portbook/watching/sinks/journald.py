"""The sink ``journald``: entries of the systemd journal with fields of their own, ``PORTBOOK_…``.

The native protocol: a datagram with a line ``NAME=text`` for each field; what is larger than a datagram may be is
written into a sealed file in memory, whose descriptor is sent instead.

Facts: systemd, "Native Journal Protocol" (systemd.io/JOURNAL_NATIVE_PROTOCOL); systemd.journal-fields(7);
memfd_create(2); unix(7), SCM_RIGHTS.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Sequence

from portbook.errors import UsageError
from portbook.watching.sinks.base import DeliveryError, EncodedEvent, PlainSink, Sink, SinkKind, SinkSettings
from portbook.watching.sinks.syslog import APP_NAME, SEVERITIES
from portbook.watching.sinks.transports import connect_unix, sender_of

SOCKET = "/run/systemd/journal/socket"
PREFIX = "PORTBOOK_"


def encode(event: EncodedEvent) -> bytes:
    """The entry. No text has a line end, so that none begins another field."""
    fields = [f"{PREFIX}{name.upper()}={text}\n" for name, text in event.fields.items()]
    priority = SEVERITIES[event.event.severity]
    return f"MESSAGE={event.sentence}\nPRIORITY={priority}\nSYSLOG_IDENTIFIER={APP_NAME}\n{''.join(fields)}".encode()


class JournaldSink(PlainSink):
    """Entries to the journal of this machine."""

    def __init__(self, path: str) -> None:
        self.name = "journald"
        self._path = path
        self._socket: socket.socket | None = None

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Send an entry for each event; raise DeliveryError."""
        sent = 0
        try:
            if self._socket is None:
                self._socket = connect_unix(self._path, socket.SOCK_DGRAM)
            send = sender_of(self._socket)
            for event in events:
                _send(self._socket, send, encode(event))
                sent += 1
        except OSError as error:
            self.reopen()
            raise DeliveryError(f"{self._path}: {error.strerror or error}", sent) from error

    def test(self, event: EncodedEvent) -> str | None:
        """Send an entry; raise DeliveryError."""
        self.deliver((event,))
        return None

    def reopen(self) -> None:
        """Connect again."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def close(self, limit_s: float) -> None:
        """Close the socket."""
        self.reopen()


def _send(sock: socket.socket, send: Callable[[bytes], object], entry: bytes) -> None:
    try:
        send(entry)
    except OSError as error:
        if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
            raise
        _send_in_memory(sock, entry)


def _send_in_memory(sock: socket.socket, entry: bytes) -> None:
    """Send a descriptor of a file that can no longer be changed: the journal takes no other (fcntl(2), F_ADD_SEALS)."""
    if sys.platform != "linux":
        raise OSError(errno.EMSGSIZE, os.strerror(errno.EMSGSIZE))
    import array
    import fcntl

    file = os.memfd_create("portbook-entry", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    try:
        os.write(file, entry)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        sock.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))])
    finally:
        os.close(file)


def open_sink(settings: SinkSettings) -> Sink:
    """A sink for the journal; raise UsageError."""
    path = settings.target or SOCKET
    if not path.startswith("/"):
        raise UsageError(f"{settings.place}: {path[:40]!r} is not an absolute path", "write journald")
    if not os.path.exists(path):
        raise UsageError(f"{settings.place}: there is no journal here: {path} does not exist", "use syslog or text")
    return JournaldSink(path)


SINK = SinkKind(
    name="journald",
    targets=("",),
    meaning="the systemd journal, with fields PORTBOOK_…",
    severity="info",
    options={},
    open=open_sink,
)
