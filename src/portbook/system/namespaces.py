"""Linux: other network namespaces: finding a way into them, their names, and doing something inside.

A namespace is a number, the inode of ``/proc/PID/ns/net`` of the processes in it; ip-netns(8) keeps some under names.

Facts: namespaces(7), network_namespaces(7), setns(2), proc_pid_ns(5), ip-netns(8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from portbook.errors import SourceError
from portbook.numerals import is_number

Result = TypeVar("Result")

NAMED = "/run/netns"
CLONE_NEWNET = 0x40000000
MOST_NAMES = 100_000


def own() -> int | None:
    """The namespace of the calling thread; None where /proc does not tell."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return None


def names() -> dict[int, str]:
    """The namespaces that ``ip netns`` knows, by inode."""
    found: dict[int, str] = {}
    try:
        device = os.stat("/proc/self/ns/net").st_dev  # of nsfs: a name left over from a restart is an ordinary file
        with os.scandir(NAMED) as entries:
            for entry, _ in zip(entries, range(MOST_NAMES), strict=False):
                status = entry.stat(follow_symlinks=False)
                if status.st_dev == device:
                    found[status.st_ino] = entry.name
    except OSError:
        pass  # there is none, or it went meanwhile: then it has no name
    return found


def inhabited() -> dict[int, str]:
    """Every namespace that has a process or a name, and a path through which it can be entered."""
    found = {netns: f"{NAMED}/{name}" for netns, name in names().items()}
    for netns, path in _processes():
        found.setdefault(netns, path)
    return found


def _processes() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if is_number(name):
            try:
                yield os.stat(f"/proc/{name}/ns/net").st_ino, f"/proc/{name}/ns/net"
            except OSError:
                continue  # it ended meanwhile, or we may not look


def visit(paths: Mapping[int, str], work: Callable[[int], Result]) -> dict[int, Result | SourceError | OSError]:
    """Do something in each namespace, and return what came of it.

    A thread of its own goes there and ends there: the namespace of the calling thread never changes.
    """
    from threading import Thread

    answers: dict[int, Result | SourceError | OSError] = {}

    def go() -> None:
        for netns, path in paths.items():
            try:
                _enter(path, netns)
                answers[netns] = work(netns)
            except (SourceError, OSError) as error:
                answers[netns] = error

    thread = Thread(target=go, name="portbook-namespaces")
    try:
        thread.start()
    except RuntimeError as error:  # no further thread is to be had: setrlimit(2), RLIMIT_NPROC
        return dict.fromkeys(paths, OSError(str(error)))
    thread.join()
    return answers


def _enter(path: str, netns: int) -> None:
    """Move the calling thread; raises OSError."""
    import ctypes

    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.fstat(file).st_ino != netns:
            raise ProcessLookupError(0, "it is gone")
        if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(file)
