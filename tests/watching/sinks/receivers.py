"""Real receivers in places of their own: rsyslog, and a systemd-journald with its own /run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.components import need
from tests.conftest import unheld_port
from tests.watching.sinks.events import LIMIT_S, wait_until

JOURNALD = "/lib/systemd/systemd-journald"
RSYSLOG = """
global(workDirectory="{place}" maxMessageSize="64k")
module(load="imuxsock" SysSock.Use="off")
module(load="imudp")
module(load="imtcp")
input(type="imuxsock" Socket="{place}/log" RateLimit.Interval="0" UseSpecialParser="off" UseSysTimeStamp="off")
input(type="imudp" address="127.0.0.1" port="{port}")
input(type="imtcp" address="127.0.0.1" port="{port}")
template(name="json" type="list") {{ property(name="jsonmesg") constant(value="\\n") }}
action(type="omfile" file="{place}/received" template="json")
"""
# Its own /run and /var/log, so that neither the journal of this machine nor its socket is touched.
JOURNAL = r"""
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/log
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nForwardToSyslog=no\nRateLimitIntervalSec=0\n' \
    > /run/systemd/journald.conf.d/test.conf
exec "$1"
"""


class Rsyslog:
    """A running rsyslogd, and what it has received."""

    def __init__(self, place: Path, port: int) -> None:
        self.place, self.port = place, port
        self.socket = place / "log"
        self.udp, self.tcp = f"udp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        (self.place / "config").write_text(RSYSLOG.format(place=self.place, port=self.port))
        command = [shutil.which("rsyslogd"), "-n", "-f", self.place / "config", "-i", self.place / "pid"]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=2)
        wait_until(lambda: self.socket.exists() and self._accepts())

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(LIMIT_S)
            self.process = None

    def received(self) -> list[dict[str, Any]]:
        try:
            text = (self.place / "received").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines() if line.endswith("}")]

    def wait_for(self, count: int, **fields: str) -> list[dict[str, Any]]:
        """The messages with these values, once there are so many."""

        def found() -> list[dict[str, Any]]:
            return [one for one in self.received() if all(one[key] == value for key, value in fields.items())]

        wait_until(lambda: len(found()) >= count)
        return found()


@contextmanager
def rsyslog(place: Path) -> Iterator[Rsyslog]:
    need(shutil.which("rsyslogd") is not None, "rsyslogd")
    running = Rsyslog(place, unheld_port())
    try:
        running.start()
        yield running
    finally:
        running.stop()


class Journal:
    """A running systemd-journald."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.socket = f"/proc/{pid}/root/run/systemd/journal/socket"

    def entries(self, *matches: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            ["journalctl", "-D", f"/proc/{self.pid}/root/run/log/journal", "-o", "json", "--all", *matches],
            capture_output=True, text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for(self, count: int, *matches: str) -> list[dict[str, Any]]:
        wait_until(lambda: len(self.entries(*matches)) >= count)
        return self.entries(*matches)


@contextmanager
def journald() -> Iterator[Journal]:
    need(os.geteuid() == 0 and os.path.exists(JOURNALD), "root and systemd-journald")
    need(shutil.which("journalctl") is not None, "journalctl")
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", JOURNAL, "sh", JOURNALD],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        running = Journal(process.pid)
        # Before its own mounts are made, the path leads to the machine's journal.
        wait_until(lambda: os.path.exists(running.socket) and os.path.samefile(f"/proc/{process.pid}/exe", JOURNALD))
        yield running
    finally:
        process.terminate()
        process.wait(LIMIT_S)
