"""Linux: which processes hold a socket, by reading the descriptors of every process.

``/proc/PID/fd/N`` of a socket is a link to ``socket:[INODE]`` (proc_pid_fd(5)). A process may hold what others hold
too (fork(2), SCM_RIGHTS in unix(7)), so every process is read. What no process's own table shows may be held
by a thread that has a table of its own (unshare(2) CLONE_FILES), or by the threads of a process whose leader has
exited: ``/proc/PID/task/TID/fd``, read only when inodes are still missing.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple, NoReturn

from portbook.errors import SourceDenied

Holds = dict[int, tuple[int, ...]]  # inode to pids
Tables = Iterable[int]  # pids whose tables are read

# Reading a link costs about 3 µs, most of it in the kernel, and one interpreter does not read two at once: from this
# many descriptors on, a forked child reads too. Starting it and taking its answer cost 2 ms.
FORK_FROM = 2_000
LINK = "socket:["


class Holders(NamedTuple):
    """Who holds the wanted inodes, and what could not be looked at."""

    by_inode: Holds
    by_thread: frozenset[int]  # inodes found in a thread's own table only
    denied: int  # processes whose descriptors may not be read
    hidden: bool  # /proc hides other users' processes (hidepid)


class Found(NamedTuple):
    """What the tables of some processes showed."""

    holds: Holds
    denied: int


def holders(inodes: Collection[int], pids: Iterable[int] | None = None) -> Holders:
    """Find the processes that hold any of ``inodes``; nothing is read when there are none.

    ``pids`` narrows the search to these processes. A process that vanishes meanwhile holds nothing.
    """
    wanted = frozenset(inodes) - {0}
    if not wanted:
        return NOBODY
    with Search(pids, wanted) as search:
        return search.finish(wanted)


def process_ids() -> list[int]:
    """The processes that /proc shows."""
    return [int(name) for name in os.listdir("/proc") if name[0] in "123456789"]


NOBODY = Holders({}, frozenset(), 0, False)


class Search:
    """Reading the descriptors of many processes, with a child when that pays.

    It may be begun before it is known which inodes are wanted: the child then reads while the caller still asks the
    kernel for the sockets.
    """

    def __init__(self, pids: Iterable[int] | None = None, wanted: frozenset[int] | None = None) -> None:
        self.every = list(pids) if pids is not None else process_ids()
        counts = _descriptors(self.every)
        # Where the leader has exited its table is empty, but not those of the other threads: they are read from every.
        holding = (pid for pid, count in counts.items() if count)
        self.pids = sorted(holding, key=lambda pid: -counts[pid]) if counts else self.every
        many = len(self.pids) > 1 and sum(counts.values()) >= FORK_FROM and _may_fork()
        self.child = Child.start(self.pids, wanted) if many else None

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.end()

    def finish(self, inodes: Collection[int]) -> Holders:
        """Read what the child has not read yet and say who holds ``inodes``."""
        wanted = frozenset(inodes) - {0}
        if not wanted:
            return NOBODY
        found, denied = self._read(wanted)
        left = wanted - found.keys()
        threads = _in_threads(self.every, left) if left else {}
        found.update(threads)
        return Holders(found, frozenset(threads), denied, bool(left) and _hides_processes())

    def _read(self, wanted: frozenset[int]) -> Found:
        if self.child is None:
            return walk(self.pids, wanted)
        mine = walk(self.child.queue(), wanted)
        its = self.child.answer()
        if its is None:  # it failed, and with it what it had taken from the queue
            return walk(self.pids, wanted)
        for inode in its.holds.keys() & wanted:
            mine.holds[inode] = tuple(sorted(mine.holds.get(inode, ()) + its.holds[inode]))
        return Found(mine.holds, mine.denied + its.denied)


# --- tables --------------------------------------------------------------------------------------------------------


def walk(pids: Tables, wanted: Collection[int] | None) -> Found:
    """Read the tables of processes; ``wanted`` None keeps every socket."""
    holds: Holds = {}
    denied = 0
    links = None if wanted is None else {f"{LINK}{inode}]" for inode in wanted}
    for pid in pids:
        try:
            held = table(f"/proc/{pid}/fd", links)
        except PermissionError:
            denied += 1
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # else every process would seem to hold nothing
                raise SourceDenied(f"descriptors: /proc/{pid}/fd: {error.strerror}", "raise ulimit -n") from error
            continue
        holder = (pid,)
        for inode in held:
            holds[inode] = holds.get(inode, ()) + holder
    return Found(holds, denied)


def table(path: str, links: Collection[str] | None) -> list[int]:
    """The inodes of the sockets in one table that are among ``links``; raises OSError when it may not be read."""
    held: set[str] = set()
    readlink = os.readlink
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _names(directory):
            try:
                link = readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # not open, or closed meanwhile
            if link in links if links is not None else link[:8] == LINK:
                held.add(link)
                if links is not None and len(held) == len(links):
                    break  # it has them all
    except ProcessLookupError:
        pass  # the process ended: what it held until then counts
    finally:
        os.close(directory)
    return [int(link[8:-1]) for link in held]


def _names(directory: int) -> Iterator[str]:
    """Every descriptor of an open /proc/PID/fd, with as little listing as can be: that costs a fifth of reading.

    As many numbers from 0 on as there are open descriptors are tried without asking, for most tables have no holes;
    only what lies above is listed. The position in the directory is the number plus 2, for "." and ".."
    (proc_readfd_common in fs/proc/fd.c). Before Linux 6.2 the count is 0 and everything is listed.
    """
    count = os.fstat(directory).st_size
    yield from map(str, range(count))
    if count:
        os.lseek(directory, count + 2, os.SEEK_SET)
    yield from os.listdir(directory)


def _descriptors(pids: Tables) -> dict[int, int]:
    """How many descriptors each process has: the size of /proc/PID/fd. Empty before Linux 6.2, which does not tell.

    Most processes of a small machine are kernel threads, which have none and need not be looked at.
    """
    counts: dict[int, int] = {}
    try:
        if not os.stat("/proc/self/fd").st_size:
            return {}
    except OSError:
        return {}
    for pid in pids:
        try:
            counts[pid] = os.stat(f"/proc/{pid}/fd").st_size
        except OSError:
            continue
    return counts


# --- a second reader -----------------------------------------------------------------------------------------------

TOKEN = 4  # bytes of a queue entry: where a batch begins
MOST_TOKENS = 8_000  # a pipe takes 64 KiB without anybody reading (pipe(7))


def _may_fork() -> bool:
    """Whether a fork is safe and useful: a copy of a process with threads may hold somebody's lock for ever."""
    try:
        alone = os.stat("/proc/self/task").st_nlink == 3  # ".", ".." and one thread
        return alone and len(os.sched_getaffinity(0)) > 1
    except OSError:
        return False


class Child:
    """A forked reader. It and its parent take processes from one queue, a pipe, so that both end together."""

    @classmethod
    def start(cls, pids: list[int], wanted: frozenset[int] | None) -> Child | None:
        """Fork one; None where no further process or descriptor is to be had (setrlimit(2))."""
        try:
            return cls(pids, wanted)
        except OSError:
            return None

    def __init__(self, pids: list[int], wanted: frozenset[int] | None) -> None:
        self.pids = pids
        self.batch = -(-len(pids) // MOST_TOKENS)
        with ExitStack() as opened:
            self._queue = self._fill()
            opened.callback(os.close, self._queue)
            self._answer, sender = os.pipe()
            opened.callback(os.close, self._answer)
            try:
                self.pid = os.fork()
                if self.pid == 0:
                    self._be_the_child(sender, wanted)
            finally:
                os.close(sender)
            opened.pop_all()

    def _fill(self) -> int:
        receiver, sender = os.pipe()
        starts = range(0, len(self.pids), self.batch)
        os.write(sender, b"".join(start.to_bytes(TOKEN, "big") for start in starts))
        os.close(sender)
        return receiver

    def queue(self) -> Iterator[int]:
        """Pids that nobody has taken yet. A read takes one token whole, whoever else reads (pipe(7))."""
        while token := os.read(self._queue, TOKEN):
            start = int.from_bytes(token, "big")
            yield from self.pids[start : start + self.batch]

    def _be_the_child(self, sender: int, wanted: frozenset[int] | None) -> NoReturn:
        """Answer through the pipe and leave without running anything of the parent's (os._exit)."""
        import marshal

        status = 1
        try:
            self._let_go(sender)
            with open(sender, "wb") as pipe:
                pipe.write(marshal.dumps(tuple(walk(self.queue(), wanted))))
            status = 0
        finally:
            os._exit(status)

    def _let_go(self, sender: int) -> None:
        """Close what came from the parent: nobody shall see the child as a holder of the parent's sockets."""
        for name in os.listdir("/proc/self/fd"):  # not up to the limit, which may be a thousand million
            if int(name) not in (0, 1, 2, self._queue, sender):
                with suppress(OSError):
                    os.close(int(name))

    def answer(self) -> Found | None:
        """What the child found; None when it failed."""
        import marshal

        with open(self._answer, "rb", closefd=False) as pipe:
            data = pipe.read()
        self._reap()
        try:
            return Found(*marshal.loads(data))  # noqa: S302  from our own child
        except (EOFError, ValueError, TypeError):
            return None  # it ended in the middle

    def end(self) -> None:
        """Let go of the child, also in the middle of its work."""
        os.close(self._queue)
        os.close(self._answer)
        if self.pid:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> None:
        with suppress(ChildProcessError):  # the program ignores SIGCHLD, or waits for any child (wait(2))
            os.waitpid(self.pid, 0)
        self.pid = 0


# --- threads -------------------------------------------------------------------------------------------------------


def _in_threads(pids: Iterable[int], wanted: frozenset[int]) -> Holds:
    found: Holds = {}
    links = {f"{LINK}{inode}]" for inode in wanted}
    same_table = _table_comparer()
    for pid in pids:
        for thread in _other_threads(pid):
            if same_table(pid, thread):
                continue
            try:
                held = table(f"/proc/{pid}/task/{thread}/fd", links)
            except OSError:
                continue
            for inode in held:
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
