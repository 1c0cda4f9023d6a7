"""Messages by RFC 5424: read back from a real rsyslog, and by a parser of the grammar."""

from __future__ import annotations

import os
import re
import socket
import threading
import time

import pytest

from portbook.errors import UsageError
from portbook.watching.sinks import transports
from portbook.watching.sinks.base import DeliveryError, EncodedEvent
from portbook.watching.sinks.dispatch import open_sinks
from portbook.watching.sinks.syslog import BOM, FACILITIES, SyslogEncoder, frame_by_count
from portbook.watching.sinks.transports import StreamConnection
from tests.watching.sinks.events import LIMIT_S, encoded, event, settings, wait_until
from tests.watching.sinks.receivers import rsyslog

# RFC 5424 section 6: the header, structured data with escaped values, the message.
VALUE = rb'(?:[^"\\\]]|\\["\\\]])*'
MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (\S+) (\S{1,255}) (\S{1,48}) (\S{1,128}) (\S{1,32}) "
    rb'(\[[!-~]+@\d+(?: [!#-<>-\\^-~]{1,32}="' + VALUE + rb'")*\])(?: (.*))?',
    re.DOTALL,
)


def parse(message: bytes) -> tuple[list[bytes], dict[str, str], str]:
    match = MESSAGE.fullmatch(message)
    assert match, message
    parameters = dict(re.findall(rb' (\S+?)="(' + VALUE + rb')"', match[7]))
    values = {name.decode(): re.sub(rb"\\(.)", rb"\1", value).decode() for name, value in parameters.items()}
    return list(match.groups()[:6]), values, (match[8] or b"").removeprefix(BOM).decode()


def encode(one: EncodedEvent, most_bytes: int = 8192, hostname: str = "host.example") -> bytes:
    return SyslogEncoder("daemon", hostname, 32473, most_bytes).encode(one)


# --- the format ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "number"), [("critical", 2), ("warning", 4), ("info", 6), ("quiet", 7)])
def test_the_header(severity, number):
    (one,) = encoded(event(1, severity=severity))
    header, values, message = parse(encode(one))
    assert header == [
        str(3 * 8 + number).encode(), b"2026-11-28T12:00:01.123456Z", b"host.example", b"portbook",
        str(os.getpid()).encode(), b"opened",
    ]  # fmt: skip
    assert (values["severity"], values["local_port"], values["pid"]) == (severity, "8000", "4711")
    assert message == one.sentence


def test_values_are_escaped():
    (one,) = encoded(event(1, name='a"b\\c]d [x@1 y="z"]\n<1>1'))
    assert rb'name="a\"b\\c\]d [x@1 y=\"z\"\]\\n<1>1"' in encode(one)
    assert parse(encode(one))[1]["name"] == 'a"b\\c]d [x@1 y="z"]\\n<1>1'


def test_a_message_that_is_not_ascii_is_marked_as_utf_8():
    (one,) = encoded(event(1, name="漢字"))
    assert b"] " + BOM in encode(one)
    (one,) = encoded(event(1))
    assert BOM not in encode(one)


@pytest.mark.parametrize("most_bytes", [480, 481, 600, 1000, 2048])
@pytest.mark.parametrize("name", ["x" * 5000, "漢" * 5000, '"' * 5000])
def test_a_long_message_is_cut_between_characters_and_says_so(most_bytes, name):
    (one,) = encoded(event(1, name=name, comment=name, identity=name))
    message = encode(one, most_bytes)
    assert len(message) <= most_bytes
    _, values, text = parse(message)
    assert values["truncated"] == "true"
    assert values["event"] == "opened"
    assert one.sentence.startswith(text)
    assert text


def test_what_fits_exactly_is_not_cut():
    (one,) = encoded(event(1))
    size = len(encode(one))
    assert "truncated" not in parse(encode(one, size))[1]
    assert "truncated" in parse(encode(one, size - 1))[1]


@pytest.mark.parametrize(("hostname", "kept"), [("a b\n]", b"ab]"), ("\u6f22", b"-"), ("h" * 300, b"h" * 255)])
def test_a_host_name_is_printable_ascii(hostname, kept):
    (one,) = encoded(event(1))
    assert parse(encode(one, hostname=hostname))[0][2] == kept


# --- a real server -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with rsyslog(tmp_path_factory.mktemp("rsyslog")) as running:
        yield running


@pytest.mark.parametrize("way", ["unix", "udp", "tcp"])
def test_rsyslog_receives_every_field(server, way):
    target = f"unix:{server.socket}" if way == "unix" else getattr(server, way)
    hostile = 'a"]\\ [x@1 b="c"]\n<1>1 \u202e\x1b[31m'
    pipeline = open_sinks([settings("syslog", target, facility="local3", hostname=f"{way}.example")])
    pipeline.write([event(n, name=hostile, comment="漢字", identity=f"{way}/{n}") for n in range(100)])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.close() == []
    server.wait_for(100, hostname=f"{way}.example")
    received = [one for one in server.received() if one["hostname"] == f"{way}.example"]
    assert len(received) == 100
    for n, one in enumerate(received):
        assert (one["app-name"], one["msgid"], one["pri"]) == ("portbook", "opened", str(FACILITIES["local3"] * 8 + 6))
        assert f'identity="{way}/{n}"' in one["structured-data"]
        assert r'name="a\"\]\\ [x@1 b=\"c\"\]\\n<1>1 \\u202e\\x1b[31m"' in one["structured-data"]
        assert 'comment="漢字"' in one["structured-data"]


def test_each_way_can_be_tested(server):
    targets = [f"unix:{server.socket}", server.udp, server.tcp, "unix:/nonexistent", "tcp://127.0.0.1:1"]
    results = open_sinks([settings("syslog", target) for target in targets]).test()
    assert [one.delivered for one in results] == [True, True, True, False, False]
    assert [one.reason for one in results] == [
        None,
        "sent; UDP does not say whether it arrived",
        None,
        "No such file or directory",
        "Connection refused",
    ]
    assert len(server.wait_for(3, msgid="test")) >= 3


def test_a_server_that_restarts_gets_everything(tmp_path):
    with rsyslog(tmp_path) as server:
        pipeline = open_sinks([settings("syslog", f"unix:{server.socket}"), settings("syslog", server.tcp)])
        pipeline.write([event(n) for n in range(50)])
        assert pipeline.flush(LIMIT_S)
        server.wait_for(100)
        server.stop()
        pipeline.write([event(n) for n in range(50, 100)])
        wait_until(lambda: all(one.failure for one in pipeline.status()))
        server.start()
        pipeline.reopen()
        assert pipeline.flush(LIMIT_S)
        received = server.wait_for(200)
        for way in ("imuxsock", "imtcp"):
            cookies = [
                re.search(r'cookie="(\d+)"', one["structured-data"])[1] for one in received if one["inputname"] == way
            ]
            assert cookies == [str(n) for n in range(100)]
        assert pipeline.close() == []


# --- what servers do -----------------------------------------------------------------------------------------------


def listening(kind=socket.SOCK_STREAM, path=None):
    server = socket.socket(socket.AF_UNIX if path else socket.AF_INET, kind)
    server.settimeout(LIMIT_S)
    server.bind(str(path) if path else ("127.0.0.1", 0))
    if kind == socket.SOCK_STREAM:
        server.listen()
    return server


def test_a_local_stream_socket_gets_messages_that_end_with_nul(tmp_path):
    with listening(path=tmp_path / "log") as server:
        pipeline = open_sinks([settings("syslog", f"unix:{tmp_path}/log")])
        pipeline.write([event(1), event(2)])
        peer = server.accept()[0]
        assert pipeline.flush(LIMIT_S)
        pipeline.close()
        with peer, peer.makefile("rb") as stream:
            messages = stream.read().split(b"\0")
    assert [parse(one)[1]["cookie"] for one in messages[:-1]] == ["1", "2"]
    assert messages[-1] == b""


def test_octets_are_counted_over_tcp():
    with listening() as server:
        pipeline = open_sinks([settings("syslog", f"tcp://127.0.0.1:{server.getsockname()[1]}")])
        pipeline.write([event(1, identity="漢字"), event(2)])
        peer = server.accept()[0]
        assert pipeline.flush(LIMIT_S)
        pipeline.close()
        with peer, peer.makefile("rb") as stream:
            data = stream.read()
    cookies = []
    while data:
        count, _, data = data.partition(b" ")
        cookies.append(parse(data[: int(count)])[1]["cookie"])
        data = data[int(count) :]
    assert cookies == ["1", "2"]


def test_a_peer_that_closes_gets_the_next_messages_over_another_connection():
    with listening() as server:
        stream = StreamConnection(lambda: socket.create_connection(server.getsockname()), frame_by_count)
        stream.send([b"one"])
        server.accept()[0].close()
        time.sleep(0.01)
        stream.send([b"two"])
        with server.accept()[0] as peer:
            assert peer.recv(100) == b"3 two"
        stream.close()


def test_a_peer_that_does_not_read_is_a_failure_after_the_limit(monkeypatch):
    monkeypatch.setattr(transports, "LIMIT_S", 0.2)
    with listening() as server:
        stream = StreamConnection(lambda: socket.create_connection(server.getsockname()), frame_by_count)
        with pytest.raises(DeliveryError, match="no answer within the time limit") as failure:
            stream.send([b"x" * 60_000] * 300)
        assert failure.value.delivered == 0
        stream.close()


def test_a_datagram_socket_that_is_full_is_waited_for(tmp_path, monkeypatch):
    """Its queue takes net.unix.max_dgram_qlen datagrams (unix(7))."""
    monkeypatch.setattr(transports, "LIMIT_S", LIMIT_S)
    received = []
    with listening(socket.SOCK_DGRAM, tmp_path / "log") as server:
        pipeline = open_sinks([settings("syslog", f"unix:{tmp_path}/log")])
        pipeline.write([event(n) for n in range(2000)])

        def read():
            while len(received) < 2000:
                received.append(parse(server.recv(65536))[1]["cookie"])

        reader = threading.Thread(target=read)
        reader.start()
        assert pipeline.flush(LIMIT_S)
        reader.join(LIMIT_S)
        assert pipeline.close() == []
    assert received == [str(n) for n in range(2000)]


def test_a_closed_port_of_udp_is_a_failure_where_the_system_says_so():
    with listening(socket.SOCK_DGRAM) as server:
        target = f"udp://127.0.0.1:{server.getsockname()[1]}"
    (result,) = open_sinks([settings("syslog", target)]).test()
    assert not result.delivered
    assert "Connection refused" in result.reason


# --- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "write syslog:unix"),
        ("http://127.0.0.1", "no target of syslog"),
        ("unix:log", "not an absolute path"),
        ("udp://127.0.0.1:0", "not a port"),
        ("tcp://user:hunter2@127.0.0.1:514", "a user or a password"),
        ("tcp://::1:514", r"write 127.0.0.1:514 or \[::1\]:514"),
        ("udp://127.1:514", "write 127.0.0.1"),
    ],
)
def test_a_target_that_is_none_is_refused(target, words):
    with pytest.raises(UsageError, match=words) as refused:
        open_sinks([settings("syslog", target)])
    assert "hunter2" not in str(refused.value)


def test_too_few_bytes_are_refused():
    with pytest.raises(UsageError, match="every receiver takes 480"):
        open_sinks([settings("syslog", "unix", max_bytes=479)])
