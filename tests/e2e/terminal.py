"""The command as a person runs it: in such an environment, writing to a terminal."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Sequence

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "TERM", "PYTHONUTF8")},
    "LC_ALL": "C.UTF-8",
    "TERM": "xterm-256color",
}


def shown(
    command: Sequence[object], columns: int = 80, stream: str = "stdout", env: dict[str, str] | None = None
) -> tuple[str, int]:
    """Run with a terminal of so many columns as one of the outputs; return what it showed, and the exit code."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL) | {stream: theirs}
    process = subprocess.Popen([*map(str, command)], env={**ENVIRONMENT, **(env or {})}, **streams)
    os.close(theirs)
    with open(ours, "rb", buffering=0) as terminal, process:
        parts = []
        try:
            while part := terminal.read(65536):
                parts.append(part)
        except OSError:
            pass  # EIO: Linux says so when the last writer has closed (pty(7))
        code = process.wait(60)
    return b"".join(parts).decode("utf-8").replace("\r\n", "\n"), code


def without_colour(text: str) -> str:
    """What is to be read of it."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def assert_complaint(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """A usage error: one line that names the error and the valid values, and exit code 2."""
    assert (done.returncode, done.stdout) == (2, ""), done
    (said,) = done.stderr.splitlines()
    assert done.stderr.endswith("\n")
    assert said.startswith("portbook: ")
    for word in words:
        assert word in said
