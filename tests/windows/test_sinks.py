"""Sinks under Windows Python: files with rotation, UDP and TCP, webhooks with a spool, programs."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from portbook.errors import StoreError, UsageError
from portbook.events import Event
from portbook.watching.sinks import load
from portbook.watching.sinks.base import SinkSettings
from portbook.watching.sinks.dispatch import open_sinks

LIMIT_S = 30.0


def event(number):
    return Event(at=datetime(2026, 11, 28, tzinfo=UTC), event="opened", name="a\nb", cookie=number, protocol="tcp",
                 local_address="127.0.0.1", local_port=80)  # fmt: skip


def settings(kind, target, **options):
    row = load(kind, "test")
    defaults = {name: option.default for name, option in row.options.items()}
    return SinkSettings(kind, str(target), row.severity, "test", {**defaults, **options})


def wait_until(condition):
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_files_are_written_and_rotated(tmp_path):
    pipeline = open_sinks(
        [settings("jsonl", tmp_path / "x.jsonl", rotate_bytes=2000), settings("text", tmp_path / "x")]
    )
    for n in range(30):
        pipeline.write([event(n)])
        assert pipeline.flush(LIMIT_S)
    pipeline.reopen()
    assert pipeline.close() == []
    files = list(tmp_path.glob("x.jsonl*"))
    cookies = sorted(json.loads(line)["cookie"] for path in files for line in path.read_text().splitlines())
    assert cookies == list(range(30))
    assert len(files) > 2
    lines = (tmp_path / "x").read_bytes().split(b"\n")
    assert len(lines) == 31
    assert all(b"\r" not in line for line in lines)


def test_syslog_over_udp_and_tcp():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("127.0.0.1", 0)) as tcp,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(LIMIT_S)
        tcp.settimeout(LIMIT_S)
        targets = [f"udp://127.0.0.1:{udp.getsockname()[1]}", f"tcp://127.0.0.1:{tcp.getsockname()[1]}"]
        pipeline = open_sinks([settings("syslog", target) for target in targets])
        pipeline.write([event(1)])
        assert b'cookie="1"' in udp.recv(4096)
        with tcp.accept()[0] as peer:
            peer.settimeout(LIMIT_S)
            assert b'cookie="1"' in peer.recv(4096)
            assert pipeline.flush(LIMIT_S)
        assert pipeline.close() == []


def test_there_is_no_local_socket():
    with pytest.raises(UsageError, match="no target of syslog"):
        open_sinks([settings("syslog", "unix")])


def test_a_webhook_with_a_spool(tmp_path):
    cookies, answers = [], [500, 500]

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop() if answers else 204
            if status == 204:
                cookies.extend(one["cookie"] for one in json.loads(body)["events"])
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    one = settings("webhook", f"http://127.0.0.1:{server.server_port}/", spool=str(tmp_path / "spool"))
    pipeline = open_sinks([one])
    pipeline.start()
    second = open_sinks([one])
    with pytest.raises(StoreError, match="another process uses the spool"):
        second.start()
    second.close(0)
    for n in range(20):
        pipeline.write([event(n)])
    wait_until(lambda: len(cookies) == 20)
    assert cookies == list(range(20))
    assert pipeline.close() == []
    pipeline = open_sinks([one])
    pipeline.start()
    pipeline.write([event(20)])
    wait_until(lambda: cookies[-1] == 20)
    assert len(cookies) == 21, "nothing is sent twice after an orderly end"
    pipeline.close()
    server.shutdown()
    server.server_close()


def test_a_program_gets_the_event(tmp_path):
    script = tmp_path / "hook.py"
    script.write_text(
        "import os, sys\n"
        f"open({str(tmp_path / 'out')!r}, 'a').write(sys.stdin.read() + os.environ['PORTBOOK_NAME'] + '\\n')\n"
    )
    command = " ".join(f"'{word}'" for word in (sys.executable, script))
    pipeline = open_sinks([settings("command", command)])
    pipeline.write([event(1), event(2)])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.take_gaps() == []
    pipeline.close()
    first, name, *_ = (tmp_path / "out").read_text().splitlines()
    assert (json.loads(first)["name"], name) == ("a\nb", r"a\nb")
