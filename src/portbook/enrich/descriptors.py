"""Linux: which processes have a socket open, by reading the descriptors of every process.

``/proc/PID/fd/N`` of a socket is a link to ``socket:[INODE]`` (proc_pid_fd(5)). Several processes may have the same
socket (fork(2), SCM_RIGHTS in unix(7)), so every process is read. What no process's own table shows may be open in a
thread that has a table of its own (unshare(2) CLONE_FILES), or in the threads of a process whose leader has exited:
``/proc/PID/task/TID/fd``, read only when inodes are still missing.
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

PidsByInode = dict[int, tuple[int, ...]]

# Reading a link costs about 3 µs, most of it in the kernel, and one interpreter does not read two at once: from this
# many descriptors on, a forked child reads too. Starting it and reading its answer costs 2 ms.
FORK_FROM = 2_000
LINK = "socket:["
RING = "anon_inode:[io_uring]"
MOST_RING_BYTES = 16 << 20  # about 500,000 registered files
# Why processes are not seen.
HIDEPID = "/proc is mounted with hidepid"
NOT_MOUNTED = "/proc is not mounted"
OTHER_PIDS = "/proc shows another pid namespace"


class OwnerPids(NamedTuple):
    """Which processes have the wanted inodes open, and what could not be read."""

    pids_by_inode: PidsByInode
    by_thread: frozenset[int]  # inodes found in a thread's own table only
    denied: int  # processes whose descriptors may not be read
    hidden: str = ""  # why /proc does not show every process; empty if it does


class WalkedTables(NamedTuple):
    """What the tables of some processes showed."""

    pids_by_inode: PidsByInode
    denied: int


def find_owners(inodes: Collection[int], pids: Iterable[int] | None = None) -> OwnerPids:
    """Find the processes that have any of ``inodes`` open; nothing is read when there are none.

    A process that ends while we look has nothing open.

    :param pids: read these processes only
    :raises SourceDenied: this process has no descriptor left to read with
    """
    wanted = frozenset(inodes) - {0}
    if not wanted:
        return NO_OWNERS
    with Search(pids, wanted) as search:
        return search.finish(wanted)


def process_ids() -> list[int]:
    """The processes that /proc shows."""
    try:
        return [int(name) for name in os.listdir("/proc") if name[0] in "123456789"]
    except FileNotFoundError:
        return []  # hides_processes() then says why


NO_OWNERS = OwnerPids({}, frozenset(), 0)


class Search:
    """Reads the descriptors of many processes, with a child process where that is quicker.

    It may begin before it is known which inodes are wanted: the child then reads while the caller still queries the
    kernel for the sockets.
    """

    def __init__(self, pids: Iterable[int] | None = None, wanted: frozenset[int] | None = None) -> None:
        self.all_pids = process_ids() if pids is None else list(pids)
        self.pids = self.all_pids
        self.child: ForkedReader | None = None
        counts = _descriptor_counts(self.all_pids)
        if counts:
            # The table of a leader that has exited is empty. Those of its threads are read for all_pids.
            with_descriptors = [pid for pid, count in counts.items() if count]
            self.pids = sorted(with_descriptors, key=lambda pid: -counts[pid])
        if len(self.pids) > 1 and sum(counts.values()) >= FORK_FROM and _may_fork():
            self.child = ForkedReader.start(self.pids, wanted)

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child is not None:
            self.child.end()

    def finish(self, inodes: Collection[int]) -> OwnerPids:
        """Read what the child has not read yet, and return which processes have ``inodes`` open."""
        wanted = frozenset(inodes) - {0}
        if not wanted:
            return NO_OWNERS
        pids_by_inode, denied = self._read(wanted)
        missing = wanted - pids_by_inode.keys()
        if not missing:
            return OwnerPids(pids_by_inode, frozenset(), denied)
        in_threads = _walk_threads(self.all_pids, missing)
        pids_by_inode.update(in_threads)
        return OwnerPids(pids_by_inode, frozenset(in_threads), denied, hides_processes())

    def _read(self, wanted: frozenset[int]) -> WalkedTables:
        if self.child is None:
            return walk(self.pids, wanted)
        pids_by_inode, denied = walk(self.child.queue(), wanted)
        answer = self.child.answer()
        if answer is None:  # the child failed, and what it had taken from the queue is lost
            return walk(self.pids, wanted)
        for inode in answer.pids_by_inode.keys() & wanted:
            pids = pids_by_inode.get(inode, ()) + answer.pids_by_inode[inode]
            pids_by_inode[inode] = tuple(sorted(pids))
        return WalkedTables(pids_by_inode, denied + answer.denied)


# --- tables --------------------------------------------------------------------------------------------------------


def walk(pids: Iterable[int], wanted: Collection[int] | None) -> WalkedTables:
    """Read the tables of processes; ``wanted`` None keeps every socket."""
    pids_by_inode: PidsByInode = {}
    denied = 0
    links = None if wanted is None else {f"{LINK}{inode}]" for inode in wanted}
    for pid in pids:
        try:
            inodes = read_table(f"/proc/{pid}/fd", links)
        except PermissionError:
            denied += 1
            continue
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # otherwise no process would seem to have a socket
                remedy = "raise ulimit -n" if error.errno == errno.EMFILE else "raise fs.file-max: sysctl(8)"
                raise SourceDenied(f"descriptors: /proc/{pid}/fd: {error.strerror}", remedy) from error
            continue
        this_pid = (pid,)
        for inode in inodes:
            pids_by_inode[inode] = pids_by_inode.get(inode, ()) + this_pid
    return WalkedTables(pids_by_inode, denied)


def read_table(path: str, links: Collection[str] | None) -> list[int]:
    """The inodes of the sockets in one table that are among ``links``; raise OSError when it may not be read."""
    sockets: set[str] = set()
    readlink = os.readlink
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _names(directory):
            try:
                link = readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # not open, or closed meanwhile
            if links is None:
                if link[:8] == LINK:
                    sockets.add(link)
            elif link in links:
                sockets.add(link)
                if len(sockets) == len(links):
                    break  # it has all of them
    except ProcessLookupError:
        pass  # the process has ended: what was read until then counts
    finally:
        os.close(directory)
    return [int(link[8:-1]) for link in sockets]


def _names(directory: int) -> Iterator[str]:
    """Every descriptor of an open /proc/PID/fd, listing as little as possible: that costs a fifth of reading.

    As many numbers from 0 on as there are open descriptors are tried unlisted, because most tables have no holes;
    only those above are listed. The position in the directory is the number plus 2, for "." and ".."
    (proc_readfd_common in fs/proc/fd.c). Before Linux 6.2 the count is 0, and everything is listed.
    """
    count = os.fstat(directory).st_size
    yield from map(str, range(count))
    if count:
        os.lseek(directory, count + 2, os.SEEK_SET)
    yield from os.listdir(directory)


def _descriptor_counts(pids: Iterable[int]) -> dict[int, int]:
    """How many descriptors each process has: the size of /proc/PID/fd. Empty before Linux 6.2, where it is 0.

    Most processes of a small machine are kernel threads, which have none and need not be read.
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
MOST_TOKENS = 8_000  # a pipe takes 64 KiB without a reader (pipe(7))


def _may_fork() -> bool:
    """Whether a fork is safe and useful: in the copy of a process with threads, a lock may never be released."""
    try:
        has_one_thread = os.stat("/proc/self/task").st_nlink == 3  # ".", ".." and the thread
        return has_one_thread and len(os.sched_getaffinity(0)) > 1
    except OSError:
        return False


class ForkedReader:
    """A forked reader. It and its parent take processes from one queue, a pipe, so that both end together."""

    @classmethod
    def start(cls, pids: list[int], wanted: frozenset[int] | None) -> ForkedReader | None:
        """Fork one; None where the limits allow no further process or descriptor (setrlimit(2))."""
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
        """Pids that neither reader has taken yet. A read takes a whole token, also when both read at once (pipe(7))."""
        while token := os.read(self._queue, TOKEN):
            start = int.from_bytes(token, "big")
            yield from self.pids[start : start + self.batch]

    def _be_the_child(self, sender: int, wanted: frozenset[int] | None) -> NoReturn:
        """Answer through the pipe and leave without running anything of the parent's (os._exit)."""
        import marshal

        status = 1
        try:
            self._close_inherited(sender)
            with open(sender, "wb") as pipe:
                pipe.write(marshal.dumps(tuple(walk(self.queue(), wanted))))
            status = 0
        finally:
            os._exit(status)

    def _close_inherited(self, sender: int) -> None:
        """Close what came from the parent, so that the child does not appear as an owner of the parent's sockets."""
        for name in os.listdir("/proc/self/fd"):  # not every number up to the limit, which may be a thousand million
            if int(name) not in (0, 1, 2, self._queue, sender):
                with suppress(OSError):
                    os.close(int(name))

    def answer(self) -> WalkedTables | None:
        """What the child read; None when it failed."""
        import marshal

        with open(self._answer, "rb", closefd=False) as pipe:
            data = pipe.read()
        self._reap()
        try:
            return WalkedTables(*marshal.loads(data))  # noqa: S302  from our own child
        except (EOFError, ValueError, TypeError):
            return None  # the child ended before the end of its answer

    def end(self) -> None:
        """End the child, also in the middle of its work."""
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


def _walk_threads(pids: Iterable[int], wanted: frozenset[int]) -> PidsByInode:
    pids_by_inode: PidsByInode = {}
    links = {f"{LINK}{inode}]" for inode in wanted}
    same_table = _table_comparer()
    for pid in pids:
        for thread in _other_threads(pid):
            if same_table(pid, thread):
                continue
            try:
                inodes = read_table(f"/proc/{pid}/task/{thread}/fd", links)
            except OSError:
                continue
            for inode in inodes:
                pids_so_far = pids_by_inode.get(inode, ())
                if pid not in pids_so_far:
                    pids_by_inode[inode] = (*pids_so_far, pid)
    return pids_by_inode


def _other_threads(pid: int) -> list[int]:
    """The threads besides the leader; the link count shows without reading when there are none (proc(5))."""
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
    """Whether two tasks share one descriptor table; False where that is not known, so that the thread is read."""
    number = SYS_KCMP.get(os.uname().machine)
    if number is None or sys.maxsize < 2**32:
        return lambda _a, _b: False
    import ctypes

    syscall = ctypes.CDLL(None).syscall
    syscall.argtypes = [ctypes.c_long] * 6
    return lambda a, b: syscall(number, a, b, KCMP_FILES, 0, 0) == 0


def hides_processes() -> str:
    """Why /proc does not show every process of this pid namespace; empty if it does."""
    try:
        shown = os.readlink("/proc/self")
    except OSError:
        shown = ""
    if shown != str(os.getpid()):
        return OTHER_PIDS if os.path.exists("/proc/uptime") else NOT_MOUNTED
    try:
        os.stat("/proc/1/stat")
    except OSError:
        return HIDEPID
    return ""


# --- io_uring ------------------------------------------------------------------------------------------------------


def find_in_rings(inodes: Collection[int], pids: Iterable[int] | None = None) -> PidsByInode:
    """The processes that have registered any of these sockets with io_uring, and closed the descriptor.

    ``/proc/PID/fdinfo/N`` of a ring lists its registered files: io_uring_show_fdinfo() in io_uring/fdinfo.c. Before
    Linux 6.8 it does not name sockets.

    :param pids: read these processes only
    """
    wanted = {b"socket:[%d]" % inode: inode for inode in inodes}
    pids_by_inode: PidsByInode = {}
    if not wanted:
        return pids_by_inode
    for pid in process_ids() if pids is None else pids:
        for file in {file for ring in _rings(pid) for file in _registered(pid, ring)} & wanted.keys():
            inode = wanted[file]
            pids_by_inode[inode] = (*pids_by_inode.get(inode, ()), pid)
    return pids_by_inode


def _rings(pid: int) -> Iterator[str]:
    """The descriptors of a process that are rings; none where they may not be read."""
    directory = f"/proc/{pid}/fd"
    try:
        for name in os.listdir(directory):
            with suppress(FileNotFoundError):  # closed meanwhile
                if os.readlink(f"{directory}/{name}") == RING:
                    yield name
    except OSError:
        return


def _registered(pid: int, ring: str) -> Iterator[bytes]:
    """The paths of the files of a ring: the lines ``    0: socket:[4711]`` behind ``UserFiles:``."""
    try:
        with open(f"/proc/{pid}/fdinfo/{ring}", "rb") as file:
            text = file.read(MOST_RING_BYTES)
    except OSError:
        return
    _, _, listed = text.partition(b"\nUserFiles:")
    for line in listed.split(b"\n")[1:]:
        number, colon, path = line.strip().partition(b": ")
        if not colon or not number.isdigit():
            return  # the next heading
        yield path
