"""The sink ``syslog``: messages by RFC 5424 over a local socket, UDP (RFC 5426) or TCP (RFC 6587).

    <28>1 2026-11-28T12:00:00.000000Z host portbook 812 violation [portbook@32473 event="violation" …] sentence

The fields of the event are structured data. No text of others can end an element: control characters were escaped
before, and the three special ones are here.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Sequence
from functools import partial

from portbook.errors import UsageError
from portbook.events import Level
from portbook.watching.sinks.base import (
    DeliveryError,
    EncodedEvent,
    PlainSink,
    Sink,
    SinkKind,
    SinkOption,
    SinkSettings,
)
from portbook.watching.sinks.transports import (
    Datagrams,
    StreamConnection,
    connect_internet,
    connect_unix,
    parse_receiver,
)

# RFC 5424 section 6.2.1, table 1, by the names of syslog(3).
FACILITIES = {
    "kern": 0, "user": 1, "mail": 2, "daemon": 3, "auth": 4, "syslog": 5, "lpr": 6, "news": 7, "uucp": 8, "cron": 9,
    "authpriv": 10, "ftp": 11, "local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21,
    "local6": 22, "local7": 23,
}  # fmt: skip
# Section 6.2.1, table 2: critical, warning, informational, debug.
SEVERITIES: dict[Level, int] = {"critical": 2, "warning": 4, "info": 6, "quiet": 7}
# Section 6.3.2: names of our own need an enterprise number. This one is for documentation (RFC 5612): the project has
# none, and the option "enterprise" sets that of an organisation.
EXAMPLE_ENTERPRISE = 32473
MOST_HOSTNAME = 255  # section 6.2.4
APP_NAME = "portbook"
PORT = 514  # udp: RFC 5426; of tcp it is the port that receivers use, although it is registered for rsh (RFC 6587)
LOCAL_SOCKET = "/dev/log"  # syslog(3)
# Section 6.1: every receiver takes 480, should take 2,048. Over UDP more than that is often cut.
LEAST_BYTES, DEFAULT_BYTES, MOST_BYTES = 480, 8192, 60_000
DEFAULT_UDP_BYTES = 2048
LEAST_MESSAGE = 200  # bytes of the sentence that structured data leaves room for
BOM = b"\xef\xbb\xbf"  # section 6.4: in front of a message that is UTF-8; ASCII needs none
SPECIAL = str.maketrans({'"': '\\"', "\\": "\\\\", "]": "\\]"})  # section 6.3.3
TRUNCATED = ' truncated="true"'

OPTIONS = {
    "facility": SinkOption("text", "daemon", "facility of the messages", words=tuple(FACILITIES)),
    "hostname": SinkOption("text", None, "host name in the messages; default: that of this machine"),
    "enterprise": SinkOption("number", EXAMPLE_ENTERPRISE, "enterprise number in the name of the structured data", 1),
    "max_bytes": SinkOption(
        "number", 0, f"of a message; default: {DEFAULT_BYTES}, over UDP {DEFAULT_UDP_BYTES}", 0, MOST_BYTES
    ),
}


class SyslogEncoder:
    """Events as messages."""

    def __init__(self, facility: str, hostname: str, enterprise: int, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        code = FACILITIES[facility] << 3
        self._priorities = {level: f"<{code | severity}>1 " for level, severity in SEVERITIES.items()}
        self._sender = f" {_header_text(hostname)} {APP_NAME} {os.getpid()} "
        self._element = f"[{APP_NAME}@{enterprise}"

    def encode(self, event: EncodedEvent) -> bytes:
        """One message, at most as long as configured."""
        kind = event.event
        fields = event.fields
        head = f"{self._priorities[kind.severity]}{fields['at']}{self._sender}{kind.event} {self._element}"
        parameters = [f' {name}="{text}"' for name, text in fields.items()]
        data = "".join(parameters)
        if data.count('"') != 2 * len(fields) or "\\" in data or "]" in data:
            parameters = [f' {name}="{text.translate(SPECIAL)}"' for name, text in fields.items()]
            data = "".join(parameters)
        sentence = event.sentence.encode()
        bom = b"" if len(sentence) == len(event.sentence) else BOM
        message = b"%s%s%s" % (f"{head}{data}] ".encode(), bom, sentence)
        if len(message) > self._most_bytes:
            return self._shortened(head, parameters, bom, sentence)
        return message

    def _shortened(self, head: str, parameters: Sequence[str], bom: bytes, sentence: bytes) -> bytes:
        """Without the parameters that have no room, and the end of the sentence; marked."""
        room = self._most_bytes - len(bom) - min(len(sentence), LEAST_MESSAGE) - len(f"{TRUNCATED}] ")
        data = head.encode()
        for parameter in parameters:
            more = parameter.encode()
            if len(data) + len(more) <= room:
                data += more
        data += f"{TRUNCATED}] ".encode() + bom
        rest = sentence[: self._most_bytes - len(data)]
        return data + rest.decode("utf-8", "ignore").encode()  # no part of a character (section 6.1)


def _header_text(text: str) -> str:
    """Printable ASCII without blanks (section 6, PRINTUSASCII); "-" if nothing is left."""
    kept = "".join(c for c in text if "!" <= c <= "~")
    return kept[:MOST_HOSTNAME] or "-"


def frame_by_count(message: bytes) -> bytes:
    """Octet counting (RFC 6587 section 3.4.1)."""
    return b"%d %s" % (len(message), message)


def frame_by_nul(message: bytes) -> bytes:
    """What syslog(3) of the C libraries sends over a local stream socket: a NUL at the end."""
    return message + b"\0"


class LocalTransport:
    """The socket of the local syslog server: datagrams, or a stream if it takes no datagrams."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stream = StreamConnection(partial(connect_unix, path, socket.SOCK_STREAM), frame_by_nul)
        self._datagrams = Datagrams(self._connect)

    def _connect(self) -> socket.socket:
        return connect_unix(self._path, socket.SOCK_DGRAM)

    def send(self, messages: Sequence[bytes]) -> None:
        """Send the messages; raise DeliveryError."""
        try:
            self._datagrams.send(messages)
        except DeliveryError as failure:
            cause = failure.__cause__
            if not isinstance(cause, OSError) or cause.errno != errno.EPROTOTYPE:  # connect(2): the other type
                raise
            self._stream.send(messages)

    def close(self) -> None:
        """Close the socket."""
        self._datagrams.close()
        self._stream.close()


SyslogTransport = LocalTransport | Datagrams | StreamConnection


class SyslogSink(PlainSink):
    """Messages to one syslog server."""

    def __init__(
        self,
        name: str,
        encoder: SyslogEncoder,
        transport: SyslogTransport,
        remark: str | None,
    ) -> None:
        self.name = name
        self._encoder = encoder
        self._transport = transport
        self._remark = remark

    def deliver(self, events: Sequence[EncodedEvent]) -> None:
        """Send a message for each event; raise DeliveryError."""
        self._transport.send([self._encoder.encode(event) for event in events])

    def test(self, event: EncodedEvent) -> str | None:
        """Send a message; raise DeliveryError."""
        self.deliver((event,))
        return self._remark

    def reopen(self) -> None:
        """Connect again, with the address that the host has now."""
        self._transport.close()

    def close(self, limit_s: float) -> None:
        """Close the connection."""
        self._transport.close()


def open_sink(settings: SinkSettings) -> Sink:
    """A sink for the target; raise UsageError."""
    options, place = settings.options, settings.place
    scheme, separator, rest = settings.target.partition("://" if "://" in settings.target else ":")
    most_bytes = options["max_bytes"] or DEFAULT_BYTES
    remark = None
    transport: SyslogTransport
    if scheme == "unix" and separator != "://" and sys.platform != "win32":
        path = rest or LOCAL_SOCKET
        if not path.startswith("/"):
            raise UsageError(f"{place}: {path[:40]!r} is not an absolute path", f"write syslog:unix:{LOCAL_SOCKET}")
        transport = LocalTransport(path)
    elif scheme == "udp" and separator == "://":
        host, port = parse_receiver(rest, PORT, place)
        transport = Datagrams(partial(connect_internet, host, port, socket.SOCK_DGRAM))
        most_bytes = options["max_bytes"] or DEFAULT_UDP_BYTES
        remark = "sent; UDP does not say whether it arrived"
    elif scheme == "tcp" and separator == "://":
        host, port = parse_receiver(rest, PORT, place)
        connect = partial(connect_internet, host, port, socket.SOCK_STREAM)
        transport = StreamConnection(connect, frame_by_count)
    else:
        hint = "write syslog:unix, syslog:unix:/dev/log, syslog:udp://127.0.0.1:514 or syslog:tcp://127.0.0.1:514"
        raise UsageError(f"{place}: {settings.target[:40]!r} is no target of syslog", hint)
    if most_bytes < LEAST_BYTES:
        raise UsageError(f"{place}: max_bytes = {most_bytes} is too few", f"every receiver takes {LEAST_BYTES}")
    hostname = options["hostname"] or socket.gethostname()
    encoder = SyslogEncoder(options["facility"], hostname, options["enterprise"], most_bytes)
    return SyslogSink(f"syslog:{settings.target}", encoder, transport, remark)


SINK = SinkKind(
    name="syslog",
    targets=("unix", "unix:/dev/log", "udp://127.0.0.1:514", "tcp://127.0.0.1:514"),
    meaning="messages to a syslog server (RFC 5424), with the fields as structured data",
    severity="info",
    options=OPTIONS,
    open=open_sink,
)
