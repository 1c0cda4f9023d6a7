"""Linux: other network namespaces: how they can be entered, their names, and work done inside them.

The number of a namespace is the inode of ``/proc/PID/ns/net`` of the processes in it; ip-netns(8) gives some a name.

Facts: namespaces(7), network_namespaces(7), setns(2), proc_pid_ns(5), ip-netns(8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import TypeVar

from portbook.errors import SourceError, SourceTimeout
from portbook.numerals import is_number

Result = TypeVar("Result")

NAMED = "/run/netns"
CLONE_NEWNET = 0x40000000
MOST_NAMES = 100_000
VISIT_LIMIT_S = 20.0  # of all namespaces together: users can make thousands, each with as many sockets as they may open


def own() -> int | None:
    """The namespace of the calling thread; None where /proc does not show it."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return None


def names() -> dict[int, str]:
    """The namespaces that ``ip netns`` has named, by inode."""
    names_by_inode: dict[int, str] = {}
    try:
        device = os.stat("/proc/self/ns/net").st_dev  # of nsfs: a name left over from a restart is an ordinary file
        with os.scandir(NAMED) as entries:
            for entry in islice(entries, MOST_NAMES):
                with suppress(FileNotFoundError):  # it was removed meanwhile
                    status = entry.stat(follow_symlinks=False)
                    if status.st_dev == device:
                        names_by_inode[status.st_ino] = entry.name
    except OSError:
        pass  # there are no names, or no /proc
    return names_by_inode


def inhabited() -> dict[int, str]:
    """Every namespace that has a process or a name, with a path through which it can be entered."""
    paths = {netns: f"{NAMED}/{name}" for netns, name in names().items()}
    for netns, path in _namespaces_of_processes():
        paths.setdefault(netns, path)
    return paths


def _namespaces_of_processes() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc"):
        if is_number(name):
            path = f"/proc/{name}/ns/net"
            try:
                yield os.stat(path).st_ino, path
            except OSError:
                continue  # it has ended, or reading it is not permitted


def visit(
    paths: Mapping[int, str], work: Callable[[int], Result], limit_s: float = VISIT_LIMIT_S
) -> dict[int, Result | SourceError | OSError]:
    """Call ``work`` in each namespace, with its number, and return the results or errors.

    A separate thread enters the namespaces and then ends: the namespace of the calling thread never changes. Whatever
    goes wrong in one costs that one: who owns it decides what is found there.

    :param paths: namespaces, and the path through which each is entered
    :param limit_s: of all together, in seconds; those that are not entered within it are errors
    """
    from threading import Thread

    answers: dict[int, Result | SourceError | OSError] = {}

    def work_in_each() -> None:
        last_at = monotonic() + limit_s
        for netns, path in paths.items():
            if monotonic() > last_at:
                answers[netns] = SourceTimeout(f"{limit_s:g} s were not enough for {len(paths)} network namespaces")
                continue
            try:
                _enter(path, netns)
                answers[netns] = work(netns)
            except (SourceError, OSError) as error:
                answers[netns] = error
            except Exception as error:  # noqa: BLE001  also MemoryError
                answers[netns] = SourceError(f"{type(error).__name__}: {error}")

    thread = Thread(target=work_in_each, name="portbook-namespaces")
    try:
        thread.start()
    except RuntimeError as error:  # no more threads: setrlimit(2), RLIMIT_NPROC
        return dict.fromkeys(paths, OSError(str(error)))
    thread.join()
    return answers


def _enter(path: str, netns: int) -> None:
    """Move the calling thread; raises OSError."""
    import ctypes

    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if os.fstat(file).st_ino != netns:
            raise ProcessLookupError(0, "the namespace is gone")
        if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(file)
