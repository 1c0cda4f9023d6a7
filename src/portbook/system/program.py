"""Programs of the system: run from places that are root's, without a shell, within a time and a size."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from subprocess import Popen

# Unlike what $PATH may name. The last two are root's on some systems only: see _is_trusted.
PLACES = ("/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/opt/homebrew/bin")
PATH = "/usr/bin:/bin:/usr/sbin:/sbin"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
MOST_BYTES = 1 << 20
CHUNK = 1 << 16


class Output(NamedTuple):
    """What a program said, and how it ended."""

    code: int
    stdout: bytes
    stderr: bytes


def find(name: str) -> str | None:
    """The absolute path of a program of the system; as root only one that nobody else can change."""
    paths = (os.path.join(place, name) for place in places())
    return next((path for path in paths if _is_trusted(path)), None)


def places() -> tuple[str, ...]:
    """Where programs of the system are; raises SourceMissing where Windows does not say it."""
    if sys.platform != "win32":
        return PLACES
    from portbook.system import console

    return (console.console().directory,)


def _is_trusted(path: str) -> bool:
    """Of a file and its directory; where a link leads to, others could only have put it with root's help."""
    try:
        found = os.stat(path)
        above = os.stat(os.path.dirname(path))
    except OSError:
        return False
    if sys.platform == "win32" or os.geteuid() != 0:
        return stat.S_ISREG(found.st_mode)
    return stat.S_ISREG(found.st_mode) and all(s.st_uid == 0 and not s.st_mode & OTHERS_WRITE for s in (found, above))


def run(command: Sequence[str], environment: Mapping[str, str], limit_s: float, most_bytes: int = MOST_BYTES) -> Output:
    """Run a program, given by its absolute path, to its end.

    :raises OSError: it could not be run; TimeoutError: it did not end in time, and was killed
    :raises ValueError: it printed more than ``most_bytes``, and was killed
    """
    import subprocess

    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    where = None if sys.platform == "win32" else "/"
    with subprocess.Popen(
        command, stdin=null, stdout=pipe, stderr=pipe, env=dict(environment), cwd=where, bufsize=0
    ) as process:
        try:
            texts = _collected(process, monotonic() + limit_s, most_bytes)
            process.wait(max(0.1, limit_s))
        except (TimeoutError, subprocess.TimeoutExpired) as error:
            process.kill()
            raise TimeoutError(f"no answer within {limit_s:g} s") from error
        except BaseException:
            process.kill()
            raise
    return Output(process.returncode, *texts)


def _collected(process: Popen[bytes], deadline: float, most_bytes: int) -> tuple[bytes, bytes]:
    if sys.platform == "win32":  # pipes cannot be waited for there; communicate() has a thread for each
        stdout, stderr = process.communicate(timeout=max(0.0, deadline - monotonic()))
        return stdout, stderr
    pipes = [pipe for pipe in (process.stdout, process.stderr) if pipe is not None]
    stdout, stderr = _read([pipe.fileno() for pipe in pipes], deadline, most_bytes)
    return stdout, stderr


def _read(pipes: Iterable[int], deadline: float, most_bytes: int) -> tuple[bytes, ...]:
    """Everything from some pipes until each is at its end."""
    from selectors import EVENT_READ, DefaultSelector

    texts = {pipe: bytearray() for pipe in pipes}
    with DefaultSelector() as selector:
        for pipe in texts:
            selector.register(pipe, EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - monotonic()))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                part = os.read(key.fd, CHUNK)
                texts[key.fd] += part
                if not part:
                    selector.unregister(key.fd)
            if sum(map(len, texts.values())) > most_bytes:
                raise ValueError(f"its answer is longer than {most_bytes >> 20} MiB")
    return tuple(map(bytes, texts.values()))
