"""Entries of the journal, read back from a real systemd-journald."""

from __future__ import annotations

import socket
import sys

import pytest

from portbook.errors import UsageError
from portbook.watching.sinks import journald
from portbook.watching.sinks.dispatch import open_sinks
from portbook.watching.sinks.fields import MOST_TEXT
from tests.watching.sinks import receivers
from tests.watching.sinks.events import LIMIT_S, event, settings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="systemd")


@pytest.fixture(scope="module")
def journal():
    with receivers.journald() as running:
        yield running


def test_every_field_arrives_and_none_is_forged(journal):
    pipeline = open_sinks([settings("journald", journal.socket)])
    hostile = "a\nMESSAGE=forged\nPORTBOOK_UID=0\n\0\x1b[31m"
    one = event(1, name=hostile, severity="critical", event="violation", comment="漢字", pids=(1, 2), process_gone=True)
    pipeline.write([one])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.close() == []
    (entry,) = journal.wait_for(1, "PORTBOOK_EVENT=violation")
    given = {name: value for name, value in entry.items() if name.startswith("PORTBOOK_")}
    assert given == {
        "PORTBOOK_AT": "2026-11-28T12:00:01.123456Z",
        "PORTBOOK_EVENT": "violation",
        "PORTBOOK_SEVERITY": "critical",
        "PORTBOOK_PROTOCOL": "tcp",
        "PORTBOOK_FAMILY": "ipv4",
        "PORTBOOK_LOCAL_ADDRESS": "127.0.0.1",
        "PORTBOOK_LOCAL_PORT": "8000",
        "PORTBOOK_STATE": "LISTEN",
        "PORTBOOK_REACH": "loopback",
        "PORTBOOK_PID": "4711",
        "PORTBOOK_NAME": r"a\nMESSAGE=forged\nPORTBOOK_UID=0\n\x00\x1b[31m",
        "PORTBOOK_PIDS": "1 2",
        "PORTBOOK_PROCESS_GONE": "true",
        "PORTBOOK_COOKIE": "1",
        "PORTBOOK_IDENTITY": "tcp/1",
        "PORTBOOK_COMMENT": "漢字",
        "PORTBOOK_FEED": "bpf",
    }
    assert (entry["PRIORITY"], entry["SYSLOG_IDENTIFIER"]) == ("2", "portbook")
    assert "forged" not in entry["MESSAGE"] or "\n" not in entry["MESSAGE"]


def test_an_entry_that_no_datagram_takes_is_sent_in_memory(journal, monkeypatch):
    connect = journald.connect_unix

    def with_a_small_buffer(path, kind):
        sock = connect(path, kind)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return sock

    monkeypatch.setattr(journald, "connect_unix", with_a_small_buffer)
    pipeline = open_sinks([settings("journald", journal.socket)])
    fields = ("name", "exe", "user", "service", "container", "cgroup", "reason", "rule", "comment", "before")
    pipeline.write([event(2, **dict.fromkeys(fields, "漢" * 9000))])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.close() == []
    (entry,) = journal.wait_for(1, "PORTBOOK_COOKIE=2")
    assert entry["PORTBOOK_EXE"] == "漢" * MOST_TEXT + "...", "long texts are cut, and that is marked"


def test_the_order_is_kept(journal):
    pipeline = open_sinks([settings("journald", journal.socket)])
    pipeline.write([event(n, comment="order") for n in range(500)])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.close() == []
    entries = journal.wait_for(500, "PORTBOOK_COMMENT=order")
    assert [entry["PORTBOOK_COOKIE"] for entry in entries] == [str(n) for n in range(500)]


def test_a_test_event_arrives(journal):
    (result,) = open_sinks([settings("journald", journal.socket)]).test()
    assert (result.delivered, result.reason) == (True, None)
    (entry,) = journal.wait_for(1, "PORTBOOK_EVENT=test")
    assert entry["MESSAGE"] == "this is a test of portbook watch: nothing happened"


def test_without_a_journal_it_says_what_to_use(tmp_path):
    with pytest.raises(UsageError, match="there is no journal here"):
        open_sinks([settings("journald", tmp_path / "socket")])
    with pytest.raises(UsageError, match="not an absolute path"):
        open_sinks([settings("journald", "socket")])
