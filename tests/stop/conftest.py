"""Real processes that hold real ports, each in a session of its own, so that all it forks ends with the test."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import pytest

from tests.components import need

PRELUDE = """
import json, os, signal, socket, subprocess, sys, time
def say(something=None):
    print(json.dumps([os.getpid(), something]), flush=True)
def listen(port=0, address="127.0.0.1"):
    return socket.create_server((address, int(port)))
def port_of(one):
    return one.getsockname()[1]
def sleep():
    while True:
        time.sleep(60)
"""
COMMAND = [sys.executable, "-m", "portbook"]


class Started(NamedTuple):
    """A program that runs, and what it said when it was ready."""

    pid: int
    said: Any
    process: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


@pytest.fixture
def start() -> Iterator[Callable[..., Started]]:
    """Run a Python script; whatever it has started is gone after the test."""
    if sys.platform != "win32":
        started: list[subprocess.Popen[bytes]] = []

        def begin(script: str, *arguments: object, **more: Any) -> Started:
            command = [more.pop("python", sys.executable), "-I", "-S", "-c", PRELUDE + script, *map(str, arguments)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **more)
            started.append(process)
            line = process.stdout.readline()
            assert line, f"the program ended early with {process.wait(10)}"
            pid, said = json.loads(line)
            return Started(pid, said, process)

        try:
            yield begin
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
                process.stdout.close()


def portbook(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    """``portbook stop`` as a script would run it."""
    more.setdefault("stdin", subprocess.DEVNULL)
    return subprocess.run(
        [*COMMAND, "stop", *map(str, arguments)], capture_output=True, encoding="utf-8", timeout=60, check=False, **more
    )


def answers(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """What ``--json`` wrote."""
    assert "Traceback" not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def can_be_bound(port: int, address: str = "127.0.0.1", kind: int = socket.SOCK_STREAM) -> bool:
    """As a server would, without any of portbook's code."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind) as one:
        if kind == socket.SOCK_STREAM:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, port))
            if kind == socket.SOCK_STREAM:
                one.listen()
        except OSError:
            return False
    return True


def runs(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def needs_linux() -> None:
    need(sys.platform == "linux", "Linux")
