"""The question, on a terminal; and names that want to be more than text."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import pytest

from portbook.render.text import cell_count
from tests.rounds import until
from tests.stop.conftest import COMMAND, answers, portbook
from tests.stop.test_stop import LISTEN

pytestmark = [
    pytest.mark.usefixtures("own_network"),
    pytest.mark.skipif(sys.platform == "win32", reason="terminals of Unix"),
]


class Said(NamedTuple):
    code: int
    text: str


def dialogue(*arguments: object, answer: bytes, columns: int = 80) -> Said:
    """Run on a terminal of its own, answer when it asks, and return all that it showed."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def control() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl+C is a signal

    process = subprocess.Popen(
        [*COMMAND, "stop", *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
        preexec_fn=control,  # noqa: PLW1509  no threads here
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline and select.select([ours], [], [], 30)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break  # EIO: the last writer has closed (pty(7))
            shown += part
            if answer and b"[y/N]" in shown:
                os.write(ours, answer)
                answer = b""
        return Said(process.wait(30), shown.decode("utf-8", "replace"))
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("answer", [b"y\n", b"yes\n", b"Y\n"])
def test_yes_ends_it(start, answer):
    server = start(LISTEN)
    said = dialogue(server.said, answer=answer)
    assert said.code == 0, said
    assert server.process.wait(5) == -signal.SIGTERM
    assert f"(pid {server.pid})? [y/N]" in said.text
    assert f"port {server.said}/tcp is free" in said.text


@pytest.mark.parametrize("answer", [b"\n", b"n\n", b"yep\n", b"\x04"])
def test_anything_else_leaves_it(start, answer):
    server = start(LISTEN)
    said = dialogue(server.said, answer=answer)
    assert (said.code, server.alive) == (1, True), said
    assert f"port {server.said}/tcp: nothing was ended" in said.text.splitlines()


def test_ctrl_c_leaves_it_and_is_130(start):
    server = start(LISTEN)
    said = dialogue(server.said, answer=b"\x03")
    assert (said.code, server.alive) == (130, True), said
    assert "Traceback" not in said.text


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_ctrl_c_while_it_waits_is_130(start):
    """Who was asked by then has been asked; nothing more is done."""
    server = start("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n" + LISTEN)
    command = [*COMMAND, "stop", str(server.said), "--yes", "--force", "--timeout", "60"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while b"listens on" not in process.stdout.readline():
            pass
        until(lambda: is_pending(server.pid), "the signal")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert b"Traceback" not in process.stderr.read()
    assert server.alive


def is_pending(pid: int) -> bool:
    """Blocked, the signal stays pending: proc_pid_status(5), ShdPnd."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        pending = next(line for line in file if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def test_yes_on_the_command_line_skips_the_question(start):
    server = start(LISTEN)
    said = dialogue(server.said, "--yes", answer=b"")
    assert said.code == 0
    assert "[y/N]" not in said.text


def test_the_question_shows_the_command_of_the_manager(start):
    """The question contains the command that would be run."""
    from msgspec.structs import replace

    from portbook.managers.supervisor import Supervisor
    from portbook.render.stop import question
    from portbook.stop.run import plan_stop

    server = start(LISTEN)
    plan = plan_stop(server.said)
    managed = replace(
        plan.targets[0], supervisor=Supervisor("systemd", "a.service", ("systemctl", "stop", "a.service"))
    )
    plan = replace(plan, targets=(managed,))
    assert question([plan], ["via-manager"]) == "Run systemctl stop a.service? [y/N] "
    assert question([plan], []).startswith("End ")


# 64 KiB are all that is read of a command line.
FLOODS = {
    "one-word": "x" * 65_536,
    "wide": "日本語" * 20_000,
    "newlines": "\n" * 40_000,
    "blanks": "a b " * 16_000,
    "combining": "\u0301" * 30_000,
}


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/PID/cmdline")
@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)  # pytest puts the id into a variable of the environment
def test_a_long_command_line_leaves_the_question_on_the_screen(start, flood):
    """What is shown of a process stays near the question, whatever the process has chosen."""
    words = [flood[at : at + 30_000] for at in range(0, len(flood), 30_000)]
    server = start(LISTEN.replace("*sys.argv[1:]", ""), *words)
    said = dialogue(server.said, answer=b"n\n")
    assert (said.code, server.alive) == (1, True)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", said.text).replace("\r", "").partition("[y/N]")[0].split("\n")
    rows = sum(-(-max(cell_count(line), 1) // 80) for line in lines)
    assert rows <= 40, rows
    assert "listens on" in said.text
    assert f"(pid {server.pid})" in said.text.rpartition("End ")[2]


def test_any_number_of_addresses_and_processes_leaves_the_question_on_the_screen(start):
    script = """
first = listen()
port = port_of(first)
kept = [listen(port, f"127.0.0.{n}") for n in range(2, 60)]
for n in range(8):
    if os.fork() == 0:
        os.setsid()
        break
say(port)
sleep()
"""
    server = start(script.replace("os.setsid()", "sleep()"))
    said = dialogue(server.said, answer=b"n\n")
    assert said.code == 1
    assert len(said.text.partition("[y/N]")[0].split("\n")) <= 40
    assert "56 more" in said.text


def test_short_options(start):
    server = start(LISTEN)
    assert portbook(server.said, "-n").returncode == 0
    assert server.alive
    stubborn = start("signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LISTEN)
    done = portbook(server.said, stubborn.said, "-y", "-f", "--timeout", 0.2)
    assert done.returncode == 0
    assert (server.process.wait(5), stubborn.process.wait(5)) == (-signal.SIGTERM, -signal.SIGKILL)


HOSTILE = """
import ctypes
name = sys.argv[1].encode()
ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
one = listen()
say(port_of(one))
sleep()
"""
NAMES = ["\x1b[2Jgone", "\x1b]0;t\x07x", "a\rport 1 free", "a\nb", "\u202egnp.exe", "y\n", "kill -9 1;", "日本語サーバ"]


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2)")
@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_text(start, name):
    server = start(HOSTILE, name)
    said = dialogue(server.said, answer=b"\n")
    assert (said.code, server.alive) == (1, True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", said.text.replace("\r\n", "\n"))
    for bad in ("\x1b", "\x07", "\r", "\u202e"):
        assert bad not in plain
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert answer["result"] == "stopped"
    assert "\x1b" not in portbook(server.said, "--yes").stdout
