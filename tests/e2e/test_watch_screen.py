"""The live view of ``portbook watch``: a real terminal shows it, and is afterwards what it was."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.conftest import unheld_port
from tests.e2e.terminal import ENVIRONMENT
from tests.e2e.watching import COMMAND
from tests.listeners import SOURCE

if sys.platform == "win32":
    pytest.skip("terminals of Unix", allow_module_level=True)

import fcntl
import termios

LIMIT_S = 30.0
SETSID = ("setsid", "--ctty")  # util-linux: a session of its own, with the terminal of its standard input
ENTER, LEAVE = "\x1b[?1049h", "\x1b[?25h\x1b[?1049l"
HOME = "\x1b[H"
NAMED = """
import socket, sys
with open("/proc/self/comm", "w") as file:
    file.write(sys.argv[1])
server = socket.create_server(("127.0.0.1", int(sys.argv[2])))
print(flush=True)
sys.stdin.read()
"""


class Terminal:
    """A terminal with a running watch, and what the watch has written to it."""

    def __init__(self, ours: int, theirs: int, process: subprocess.Popen[bytes]) -> None:
        self.ours, self.theirs, self.process = ours, theirs, process
        self.written = ""

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    @property
    def screen(self) -> list[str]:
        """The lines of the last whole picture, without colours."""
        pictures = self.written.replace("\r\r", "\r").split(HOME)[1:]
        whole = [picture for picture in pictures[-2:] if "quit" in picture or picture is not pictures[-1]]
        return re.sub(r"\x1b\[[0-9;]*[mK]", "", whole[-1] if whole else "").split("\r\n")

    def read_until(self, fits: Callable[[], Any]) -> Any:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if found := fits():
                return found
            self.read_some()
        raise AssertionError(self.written[-3000:])

    def read_some(self) -> None:
        if select.select([self.ours], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # EIO: the last writer has closed
                self.written += os.read(self.ours, 1 << 16).decode()

    def shows(self, text: str) -> bool:
        return any(text in line for line in self.screen)

    def ended(self) -> int | None:
        return self.process.poll()


@contextlib.contextmanager
def terminal(
    *arguments: object, columns: int = 80, rows: int = 24, prefix: Sequence[str] = (), **env: str
) -> Iterator[Terminal]:
    import pty

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*SETSID, *prefix, *COMMAND, "--no-store", "--feed", "poll", "--interval", "0.1", *map(str, arguments)],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, "PYTHONPATH": SOURCE, **env},
    )  # fmt: skip
    try:
        yield Terminal(ours, theirs, process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(LIMIT_S)
        os.close(ours)
        os.close(theirs)


def assert_restored(shown: Terminal, before: list[Any]) -> None:
    assert termios.tcgetattr(shown.theirs) == before
    assert shown.written.rstrip().endswith(LEAVE), shown.written[-200:]


@pytest.fixture
def port() -> int:
    """The watch is told to look at this one only: root sees the sockets of every network namespace."""
    return unheld_port()


def test_it_shows_who_listens_what_happened_and_the_keys(port):
    with terminal(port) as shown:
        before = termios.tcgetattr(shown.theirs)
        shown.read_until(lambda: shown.shows("portbook watch: poll"))
        with socket.create_server(("127.0.0.1", port)):
            shown.read_until(lambda: shown.shows("recent events") and shown.shows(f"now listens on 127.0.0.1:{port}"))
            (row,) = [line for line in shown.screen if re.match(rf"tcp +127\.0\.0\.1 +{port} ", line)]
            assert str(os.getpid()) in row
        shown.read_until(lambda: not [line for line in shown.screen if re.match(rf"tcp +127\.0\.0\.1 +{port} ", line)])
        assert "q quit" in shown.screen[-1]
        assert len(shown.screen) == 24
        shown.press("q")
        assert shown.read_until(lambda: shown.ended() is not None)
        shown.read_until(lambda: LEAVE in shown.written)
        assert shown.process.returncode == 0
        assert_restored(shown, before)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_the_terminal_is_restored_whatever_signal_ends_it(name, code, port):
    with terminal(port) as shown:
        before = termios.tcgetattr(shown.theirs)
        shown.read_until(lambda: shown.shows("portbook watch: poll"))
        shown.process.send_signal(getattr(signal, name))
        shown.read_until(lambda: LEAVE in shown.written)
        assert shown.process.wait(LIMIT_S) == code
        assert_restored(shown, before)


def test_the_terminal_is_restored_after_an_error_in_the_loop(port):
    code = (
        "from portbook.watching.loop import Loop\n"
        "def fail(self, timeout_s): raise ValueError('composed')\n"
        "Loop.wait = fail\n"
        "import sys; from portbook.__main__ import main\n"
        "sys.argv = ['portbook', 'watch', '--no-store', '--feed', 'poll']\n"
        "raise SystemExit(main())"
    )
    with terminal(port) as shown:
        before = termios.tcgetattr(shown.theirs)
        process = subprocess.run(
            [sys.executable, "-c", code], stdin=shown.theirs, stdout=shown.theirs, stderr=subprocess.PIPE,
            env={**ENVIRONMENT, "PYTHONPATH": SOURCE}, timeout=60, check=False,
        )  # fmt: skip
        assert process.returncode == 5
        assert b"composed" in process.stderr
        assert termios.tcgetattr(shown.theirs) != []
        shown.read_until(lambda: LEAVE in shown.written)
        assert before is not None


def test_a_frozen_picture_stays_and_what_happened_meanwhile_is_there_afterwards(port):
    with terminal(port) as shown:
        shown.read_until(lambda: shown.shows("portbook watch: poll"))
        shown.press("p")
        shown.read_until(lambda: shown.shows("frozen"))
        with socket.create_server(("127.0.0.1", port)):
            pictures = shown.written.count(HOME)
            shown.read_until(lambda: shown.written.count(HOME) >= pictures + 3)
            assert not shown.shows(str(port))
            shown.press("p")
            shown.read_until(lambda: shown.shows(f"127.0.0.1:{port}"))
            assert not shown.shows("frozen")
        shown.press("q")
        assert shown.process.wait(LIMIT_S) == 0


def test_each_picture_fits_the_window_also_after_a_change_of_its_size(port):
    with socket.create_server(("127.0.0.1", port)), terminal(port, columns=200, rows=50) as shown:
        for columns, rows in ((200, 50), (30, 8), (1, 1)):
            shown.resize(columns, rows)
            shown.read_until(lambda rows=rows: len(shown.screen) == rows)
            assert all(len(line) <= max(columns, 1) for line in shown.screen), (columns, shown.screen)
        shown.press("q")
        assert shown.process.wait(LIMIT_S) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/comm")
def test_hostile_names_do_nothing_to_the_terminal(port):
    name = "\x1b[2J\x1b]0;"
    command = [sys.executable, "-c", NAMED, name, str(port)]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
        terminal(port, columns=120) as shown,
    ):
        process.stdout.readline()
        shown.read_until(lambda: shown.shows(r"\x1b[2J\x1b]0;"))
        written = shown.written.partition(ENTER)[2]
        assert set(re.findall(r"\x1b(?:\[[?0-9;]*[A-Za-z])?", written)) <= {
            *("\x1b[?25l", "\x1b[H", "\x1b[2J", "\x1b[K", "\x1b[0m", "\x1b[1m", "\x1b[2m", "\x1b[33m", "\x1b[31m"),
        }  # fmt: skip
        assert written.count("\x1b[2J") == 1, "that of the start"
        shown.press("q")
        assert shown.process.wait(LIMIT_S) == 0
        process.stdin.close()


def test_without_colour_and_on_a_dumb_terminal(port):
    with terminal(port, NO_COLOR="1") as shown:
        shown.read_until(lambda: shown.shows("portbook watch: poll"))
        shown.press("q")
        assert shown.process.wait(LIMIT_S) == 0
        assert not re.search(r"\x1b\[[1-9][0-9;]*m", shown.written)
    with terminal(port, TERM="dumb") as shown:
        shown.read_until(lambda: "the watch began" in shown.written)
        shown.process.send_signal(signal.SIGTERM)
        shown.read_until(lambda: "the watch ended" in shown.written)
        assert "\x1b" not in shown.written


def test_ctrl_z_gives_the_terminal_back_and_fg_the_picture(port):
    """By a shell with job control: the kernel stops no process whose group has nobody to continue it."""
    shell = ("bash", "-m", "-c", '"$@"; echo stopped; read line; fg; echo ended $?', "bash")
    with terminal(port, prefix=shell) as shown:
        before = termios.tcgetattr(shown.theirs)
        shown.read_until(lambda: shown.shows("portbook watch: poll"))
        shown.press("\x1a")
        shown.read_until(lambda: "stopped\r\n" in shown.written)
        assert LEAVE in shown.written.partition(ENTER)[2]
        assert termios.tcgetattr(shown.theirs) == before
        shown.press("\n")
        shown.read_until(lambda: shown.written.count(ENTER) == 2)
        shown.press("q")
        shown.read_until(lambda: "ended 0\r\n" in shown.written)
        assert shown.written.count(LEAVE) == 2
        assert termios.tcgetattr(shown.theirs) == before


def test_a_terminal_that_goes_ends_it(port):
    """A window is closed: the kernel sends SIGHUP, which elsewhere reads the policy again."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*SETSID, *COMMAND, "--no-store", "--feed", "poll"], stdin=theirs, stdout=theirs, stderr=theirs,
        env={**ENVIRONMENT, "PYTHONPATH": SOURCE},
    )  # fmt: skip
    try:
        os.close(theirs)
        written = b""
        while b"portbook watch" not in written:
            written += os.read(ours, 1 << 16)
        os.close(ours)
        assert process.wait(LIMIT_S) in (0, 5)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
