"""Those who watch in watch.py: portbook with each of its feeds, and what others use, each as a program of its own.

Each is started, says what it has seen of the load when it is stopped: pairs of protocol and port, and of failed binds.
All of them run in the namespace of the load (the ones of the kernel see every namespace).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import NamedTuple

LIMIT_S = 30.0
TRACEFS = "mount -t tracefs tracefs /sys/kernel/tracing && exec "


class Seen(NamedTuple):
    """What a watcher has reported."""

    opened: set[tuple[str, int]]
    failed: set[tuple[str, int]]


class Watcher:
    """A program that reports what opens."""

    def __init__(self, name: str, command: list[str], ready: str, read: Callable[[str], Seen]) -> None:
        self.name = name
        self.command = command
        self.ready = ready  # what its output contains once it watches; empty: it watches at once
        self.read = read
        self.process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  closed with us

    def missing(self) -> bool:
        return shutil.which(self.command[0]) is None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self._output, stderr=subprocess.STDOUT, cwd="/"
        )
        until = time.monotonic() + LIMIT_S
        while self.ready and self.ready not in self.text():
            if time.monotonic() > until or self.process.poll() is not None:
                raise RuntimeError(f"{self.name} does not watch: {self.text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> Seen:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT if "bpftrace" in self.name else signal.SIGTERM)
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        return self.read(self.text())

    def text(self) -> str:
        """All output so far."""
        return os.pread(self._output.fileno(), 1 << 30, 0).decode("utf-8", "replace")

    def cpu_s(self) -> float:
        """Processor time of the program so far: proc_pid_stat(5)."""
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_mb(self) -> float:
        assert self.process is not None
        with open(f"/proc/{self.process.pid}/status") as file:
            peak = next(line for line in file if line.startswith("VmHWM"))
        return int(peak.split()[1]) / 1024


# --- portbook ------------------------------------------------------------------------------------------------------

OPENED = {"present", "opened", "restarted", "flapping"}


def read_portbook(text: str) -> Seen:
    opened, failed = set(), set()
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        place = event.get("protocol"), event.get("local_port")
        if event["event"] in OPENED:
            opened.add(place)
        elif event["event"] == "bind_failed":
            failed.add(place)
    return Seen(opened, failed)


def portbook(program: str, feed: str, *options: str, store: str | None = "--no-store") -> Watcher:
    command = [program, "watch", "--jsonl", "--feed", feed, *options]
    if store is not None:
        command.append(store)
    return Watcher(f"portbook, feed {feed}", command, '"event":"started"', read_portbook)


# --- others --------------------------------------------------------------------------------------------------------


def read_ss(text: str) -> Seen:
    pairs = re.findall(r"^(tcp|udp)\s+(?:LISTEN|UNCONN)\s+\d+\s+\d+\s+\S+:(\d+)\s", text, re.MULTILINE)
    return Seen({(protocol, int(port)) for protocol, port in pairs}, set())


def read_bpftrace(text: str) -> Seen:
    return Seen({("tcp", int(port)) for port in re.findall(r"^listen (\d+) ", text, re.MULTILINE)}, set())


def read_audit(text: str) -> Seen:
    """Pairs of the records SYSCALL and SOCKADDR of one event."""
    opened, failed = set(), set()
    success = dict(re.findall(r"type=SYSCALL msg=audit\(([\d.:]+)\).* success=(yes|no) ", text))
    for event, address in re.findall(r"type=SOCKADDR msg=audit\(([\d.:]+)\).* saddr=([0-9A-F]+)", text):
        if address[:4] == "0200":  # AF_INET; the system call does not say which protocol
            place = "any", int(address[4:8], 16)
            (opened if success.get(event) == "yes" else failed).add(place)
    return Seen(opened, failed)


SS_LOOP = "while :; do ss -tunlpH; sleep 1; done"
BPFTRACE = (
    'tracepoint:sock:inet_sock_set_state /args->newstate == 10/ { printf("listen %d %s\\n", args->sport, comm); } '
    'BEGIN { printf("watching\\n"); }'
)


AUDIT_SETTINGS = """\
log_file = {directory}/log
log_format = RAW
flush = NONE
max_log_file = 100
max_log_file_action = IGNORE
space_left = 75
space_left_action = IGNORE
admin_space_left = 50
admin_space_left_action = IGNORE
disk_full_action = IGNORE
disk_error_action = IGNORE
"""


class Audit(Watcher):
    """auditd with a rule for bind(2), with a configuration and a log of its own."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="portbook-audit-")
        # The audit subsystem is spoken to from the first namespace; in the foreground its records are the output.
        self.outside = ["nsenter", f"--net=/proc/{os.environ.get('OUTSIDE', 'self')}/ns/net"]
        command = [*self.outside, "auditd", "-f", "-c", self.directory]
        super().__init__("auditd, rule for bind(2)", command, "", read_audit)

    def missing(self) -> bool:
        return shutil.which("auditd") is None

    def start(self) -> None:
        with open(f"{self.directory}/auditd.conf", "w") as file:
            file.write(AUDIT_SETTINGS.format(directory=self.directory))
        os.makedirs(f"{self.directory}/rules.d")
        super().start()
        time.sleep(1)
        self._control("-b", "65536")
        self._control("-a", "always,exit", "-F", "arch=b64", "-S", "bind")
        self._control("-e", "1")

    def stop(self) -> Seen:
        time.sleep(1)
        self._control("-D")
        self._control("-e", "0")
        shutil.rmtree(self.directory)
        return super().stop()

    def _control(self, *arguments: str) -> None:
        subprocess.run([*self.outside, "auditctl", *arguments], check=True, capture_output=True)


def others() -> list[Watcher]:
    """Those that this machine has."""
    traced = ["unshare", "-m", "sh", "-c", TRACEFS + 'bpftrace -e "$0"', BPFTRACE]
    ours = [
        Watcher("ss every second", ["sh", "-c", SS_LOOP], "", read_ss),
        Watcher("bpftrace, sock:inet_sock_set_state", traced, "watching", read_bpftrace),
        Audit(),
    ]
    present = [each for each in ours if not each.missing()]
    return [each for each in present if "bpftrace" not in each.name or shutil.which("bpftrace")]
