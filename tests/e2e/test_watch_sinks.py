"""Sinks of a running ``portbook watch``: standard output, and what SIGHUP does to files."""

from __future__ import annotations

import json
import os
import re
import signal
import sys

import pytest

from tests.e2e.watching import watch
from tests.watching.sinks.events import wait_until

if sys.platform == "win32":
    pytest.skip("signals of Unix; Windows: tests/windows", allow_module_level=True)


def test_standard_output_belongs_to_the_sink_that_writes_there(own_network):
    with watch("--no-store", "--sink", "jsonl:-", "port:1") as running:
        running.wait_for("started")
        assert running.end() == 0
    assert [event["event"] for event in running.events] == ["started", "stopped"]
    with watch("--no-store", "--sink", "text:-", "port:1") as running:
        running.wait_for_line(lambda line: b" started " in line)
        assert running.end() == 0
    assert [re.split(rb" +", line)[2] for line in running.lines] == [b"started", b"stopped"]


def test_a_file_that_was_renamed_is_opened_again_after_a_hangup(own_network, tmp_path):
    path = tmp_path / "watch.jsonl"
    with watch("--no-store", "--sink", f"jsonl:{path}", "port:1") as running:
        wait_until(lambda: path.exists() and b"started" in path.read_bytes())
        os.rename(path, tmp_path / "old")
        running.process.send_signal(signal.SIGHUP)
        wait_until(path.exists)
        assert running.end() == 0
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["stopped"]
    assert [json.loads(line)["event"] for line in (tmp_path / "old").read_text().splitlines()] == ["started"]
