"""Linux: which processes hold a socket, by reading the descriptors of every process.

``/proc/PID/fd/N`` of a socket is a link to ``socket:[INODE]`` (proc_pid_fd(5)). A process may hold what others hold
too (fork(2), SCM_RIGHTS in unix(7)), so every process is read. What no process's own table shows may be held
by a thread that has a table of its own (unshare(2) CLONE_FILES), or by the threads of a process whose leader has
exited: ``/proc/PID/task/TID/fd``, read only when inodes are still missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

Holds = dict[int, tuple[int, ...]]  # inode to pids

LINK = "socket:["
# Reading a link costs about 3 µs, most of it in the kernel, and the interpreter cannot read two at once: from this
# many descriptors on, a forked child reads half of them. Starting it costs 1 to 5 ms.
FORK_FROM = 2_000


class Holders(NamedTuple):
    """Who holds the wanted inodes, and what could not be looked at."""

    by_inode: Holds
    by_thread: frozenset[int]  # inodes found in a thread's own table only
    denied: int  # processes whose descriptors may not be read
    hidden: bool  # /proc hides other users' processes (hidepid)


def holders(inodes: Collection[int], pids: Iterable[int] | None = None) -> Holders:
    """Find the processes that hold any of ``inodes``; nothing is read when there are none.

    ``pids`` narrows the search to these processes. A process that vanishes meanwhile holds nothing.
    """
    wanted = frozenset(inodes) - {0}
    if not wanted:
        return Holders({}, frozenset(), 0, False)
    every = list(pids) if pids is not None else process_ids()
    found, denied = _in_processes(every, wanted)
    left = wanted - found.keys()
    threads = _in_threads(every, left) if left else {}
    found.update(threads)
    return Holders(found, frozenset(threads), denied, bool(left) and _hides_processes())


def process_ids() -> list[int]:
    """The processes that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name[0] in "123456789"]


# --- processes -----------------------------------------------------------------------------------------------------


def _in_processes(pids: list[int], wanted: frozenset[int]) -> tuple[Holds, int]:
    if len(pids) > 1 and _descriptors(pids) >= FORK_FROM and _may_fork():
        return _with_a_child(pids, wanted)
    return _walk(pids, wanted)


def _walk(pids: Iterable[int], wanted: Collection[int]) -> tuple[Holds, int]:
    found: Holds = {}
    denied = 0
    for pid in pids:
        try:
            held = table(f"/proc/{pid}/fd")
        except PermissionError:
            denied += 1
            continue
        except OSError:
            continue
        holder = (pid,)
        for inode in held:
            if inode in wanted:
                found[inode] = found.get(inode, ()) + holder
    return found, denied


def table(path: str) -> set[int]:
    """The inodes of the sockets in one descriptor table; raises OSError when it may not be read."""
    held: set[str] = set()
    readlink = os.readlink
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):
            try:
                link = readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # closed meanwhile
            if link[:8] == LINK:
                held.add(link)
    except ProcessLookupError:
        pass  # the process ended: what it held until then counts
    finally:
        os.close(directory)
    return {int(link[8:-1]) for link in held}


def _descriptors(pids: Iterable[int]) -> int:
    """How many descriptors are open: the size of /proc/PID/fd since Linux 6.2, 0 before."""
    total = 0
    for pid in pids:
        try:
            total += os.stat(f"/proc/{pid}/fd").st_size
        except OSError:
            continue
    return total


def _may_fork() -> bool:
    """Whether a fork is safe and useful: a copy of a process with threads may hold somebody's lock for ever."""
    try:
        alone = os.stat("/proc/self/task").st_nlink == 3  # ".", ".." and one thread
        return alone and len(os.sched_getaffinity(0)) > 1
    except OSError:
        return False


def _with_a_child(pids: list[int], wanted: frozenset[int]) -> tuple[Holds, int]:
    """Read half of the processes in a forked child, which answers through a pipe and leaves by os._exit."""
    import marshal

    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(receiver)
            with open(sender, "wb") as pipe:
                pipe.write(marshal.dumps(_walk(pids[1::2], wanted)))
            status = 0
        finally:
            os._exit(status)
    os.close(sender)
    with open(receiver, "rb") as pipe:
        found, denied = _walk(pids[::2], wanted)
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    more, more_denied = marshal.loads(answer) if status == 0 else _walk(pids[1::2], wanted)  # noqa: S302  our own child
    for inode, holding in more.items():
        found[inode] = tuple(sorted(found.get(inode, ()) + holding))
    return found, denied + more_denied


# --- threads -------------------------------------------------------------------------------------------------------


def _in_threads(pids: Iterable[int], wanted: frozenset[int]) -> Holds:
    found: Holds = {}
    same_table = _table_comparer()
    for pid in pids:
        for thread in _other_threads(pid):
            if same_table(pid, thread):
                continue
            try:
                held = table(f"/proc/{pid}/task/{thread}/fd")
            except OSError:
                continue
            for inode in held & wanted:
                if pid not in found.get(inode, ()):
                    found[inode] = (*found.get(inode, ()), pid)
    return found


def _other_threads(pid: int) -> list[int]:
    """The threads besides the leader; the link count tells without reading when there are none (proc(5))."""
    path = f"/proc/{pid}/task"
    try:
        if os.stat(path).st_nlink <= 3:
            return []
        return [int(name) for name in os.listdir(path) if int(name) != pid]
    except OSError:
        return []


# kcmp(2) has no wrapper in the C library. Numbers: arch/x86/entry/syscalls/syscall_64.tbl,
# include/uapi/asm-generic/unistd.h.
SYS_KCMP = {"x86_64": 312, "aarch64": 272, "riscv64": 272, "loongarch64": 272}
KCMP_FILES = 2


def _table_comparer() -> Callable[[int, int], bool]:
    """Whether two tasks share one descriptor table; "no" when it cannot be told, so that the thread is read."""
    number = SYS_KCMP.get(os.uname().machine)
    if number is None or sys.maxsize < 2**32:
        return lambda _a, _b: False
    import ctypes

    syscall = ctypes.CDLL(None).syscall
    syscall.argtypes = [ctypes.c_long] * 6
    return lambda a, b: syscall(number, a, b, KCMP_FILES, 0, 0) == 0


def _hides_processes() -> bool:
    """Whether /proc is mounted so that other users' processes are not even listed (proc(5), hidepid)."""
    try:
        os.stat("/proc/1/stat")
    except OSError:
        return True
    return False
