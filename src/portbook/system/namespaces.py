"""Linux: other network namespaces: how they can be entered, their names, and work done inside them.

The number of a namespace is the inode of ``/proc/PID/ns/net`` of the processes in it; ip-netns(8) gives some a name.
A bind mount, a descriptor or a socket of a process elsewhere keeps a namespace that has neither.

Facts: namespaces(7), network_namespaces(7), setns(2), proc_pid_ns(5), proc_pid_mountinfo(5), ip-netns(8).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import TypeVar

from portbook.errors import SourceError, SourceTimeout
from portbook.numerals import is_number, number_or_none

Result = TypeVar("Result")

NAMED = "/run/netns"
CLONE_NEWNET = 0x40000000
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO in include/linux/proc_ns.h
MOST_NAMES = 100_000
MOST_BYTES = 16 << 20  # of mountinfo: about 100,000 mounts
# Of the mount namespaces of others together: users can make thousands, each with 100,000 mounts (fs.mount-max in
# Documentation/admin-guide/sysctl/fs.rst).
MOST_BYTES_ELSEWHERE = 4 * MOST_BYTES
MOUNTS_LIMIT_S = 2.0
LINK = "net:["  # what the link of a descriptor of a namespace begins with, and the root of a bind mount
SYS_PIDFD_GETFD = 438  # on every architecture: include/uapi/asm-generic/unistd.h and others
SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
VISIT_LIMIT_S = 20.0  # of all namespaces together: users can make thousands, each with as many sockets as they may open

Entrance = str | tuple[int, int]  # a path, or a process and its descriptor of a socket in the namespace


def own() -> int | None:
    """The namespace of the calling thread; None where /proc does not show it."""
    try:
        return os.stat("/proc/thread-self/ns/net").st_ino
    except OSError:
        return None


def sees_every_process() -> bool:
    """Whether this is the initial pid namespace, from which the processes of all others can be seen."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE
    except OSError:
        return False


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


def inhabited() -> dict[int, Entrance]:
    """Every namespace that has a process or a name, with a path through which it can be entered."""
    paths: dict[int, Entrance] = {netns: f"{NAMED}/{name}" for netns, name in names().items()}
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


def kept_by_mounts(wanted: Collection[int]) -> dict[int, Entrance]:
    """Those of the wanted namespaces that are mounted anywhere in our mount namespace, with the path."""
    return {netns: _unescape(path) for netns, path in _parse_mounts(_read_mounts("self")) if netns in wanted}


def mounted_elsewhere(wanted: Collection[int], limit_s: float = MOUNTS_LIMIT_S) -> tuple[dict[int, int], bool]:
    """Those of the wanted namespaces that are mounted in another mount namespace, with a process that is in it.

    :param limit_s: seconds
    :returns: also whether the search was whole: who has many mount namespaces, or many mounts, ends it
    """
    pids: dict[int, int] = {}
    seen: set[int] = set()
    last_at = monotonic() + limit_s
    left = MOST_BYTES_ELSEWHERE
    for name in os.listdir("/proc") if wanted else ():
        if len(pids) == len(wanted):
            break
        if monotonic() > last_at or left <= 0:
            return pids, False
        if is_number(name):
            with suppress(OSError):  # it has ended, or reading it is not permitted
                mount_namespace = os.stat(f"/proc/{name}/ns/mnt").st_ino
                if mount_namespace not in seen:
                    seen.add(mount_namespace)
                    table = _read_mounts(name, min(left, MOST_BYTES))
                    left -= len(table)
                    pids.update((netns, int(name)) for netns, _ in _parse_mounts(table) if netns in wanted)
                    if len(table) == MOST_BYTES:
                        left = 0  # this one was cut short
    return pids, left > 0


def _read_mounts(process: str, most: int = MOST_BYTES) -> bytes:
    """The table of mounts where a process is; empty if it cannot be read."""
    try:
        with open(f"/proc/{process}/mountinfo", "rb") as file:
            return file.read(most)
    except OSError:
        return b""


def _parse_mounts(table: bytes) -> Iterator[tuple[int, bytes]]:
    """The network namespaces that are mounted, with the escaped paths. Pure."""
    for line in table.splitlines():
        if b" - nsfs " in line:
            _, _, _, root, mount_point, *_ = line.split(b" ")
            yield _number_in(root.decode("ascii", "replace")), mount_point


def _unescape(text: bytes) -> str:
    """A path without the octal escapes of blanks and backslashes (proc_pid_mountinfo(5), mangle_path())."""
    first, *others = text.split(b"\\")
    return os.fsdecode(first + b"".join(bytes((int(part[:3], 8) & 0xFF,)) + part[3:] for part in others))


def kept_by_descriptors(wanted: Collection[int]) -> dict[int, Entrance]:
    """Those of the wanted namespaces of which any process has a descriptor; reads every descriptor until it has all."""
    paths: dict[int, Entrance] = {}
    for name in os.listdir("/proc"):
        if len(paths) == len(wanted):
            break
        if is_number(name):
            with suppress(OSError):  # it has ended, or reading it is not permitted
                paths.update(_descriptors_of_namespaces(f"/proc/{name}/fd", wanted))
    return paths


def _descriptors_of_namespaces(directory: str, wanted: Collection[int]) -> Iterator[tuple[int, Entrance]]:
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # closed meanwhile
            netns = _number_in(os.readlink(f"{directory}/{name}"))
            if netns in wanted:
                yield netns, f"{directory}/{name}"


def _number_in(link: str) -> int:
    """The namespace that ``net:[4026531833]`` means; 0 for the link of anything else."""
    if not link.startswith(LINK):
        return 0
    return number_or_none(link[len(LINK) : -1]) or 0


def visit(
    entrances: Mapping[int, Entrance], work: Callable[[int], Result], limit_s: float = VISIT_LIMIT_S
) -> dict[int, Result | SourceError | OSError]:
    """Call ``work`` in each namespace, with its number, and return the results or errors.

    A separate thread enters the namespaces and then ends: the namespace of the calling thread never changes. Whatever
    goes wrong in one costs that one: who owns it decides what is found there.

    :param entrances: namespaces, and how each is entered
    :param limit_s: of all together, in seconds; those that are not entered within it are errors
    """
    from threading import Thread

    answers: dict[int, Result | SourceError | OSError] = {}

    def work_in_each() -> None:
        last_at = monotonic() + limit_s
        for netns, entrance in entrances.items():
            if monotonic() > last_at:
                answers[netns] = SourceTimeout(f"{limit_s:g} s were not enough for {len(entrances)} network namespaces")
                continue
            try:
                _enter(entrance, netns)
                answers[netns] = work(netns)
            except (SourceError, OSError) as error:
                answers[netns] = error
            except Exception as error:  # noqa: BLE001  also MemoryError
                answers[netns] = SourceError(f"{type(error).__name__}: {error}")

    thread = Thread(target=work_in_each, name="portbook-namespaces")
    try:
        thread.start()
    except RuntimeError as error:  # no more threads: setrlimit(2), RLIMIT_NPROC
        return dict.fromkeys(entrances, OSError(str(error)))
    thread.join()
    return answers


def _enter(entrance: Entrance, netns: int) -> None:
    """Move the calling thread; raises OSError."""
    import ctypes

    file = _open(entrance, netns) if isinstance(entrance, str) else _open_by_socket(*entrance)
    try:
        _check_is(file, netns)
        if ctypes.CDLL(None, use_errno=True).setns(file, CLONE_NEWNET):
            raise _last_error()
    finally:
        os.close(file)


def _open(path: str, netns: int) -> int:
    """Open a namespace. Others may put another file in its place meanwhile: that one is not opened (O_PATH)."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except PermissionError as error:  # also if the process has ended: proc_ns_get_link() in fs/proc/namespaces.c
        process, _, _ = path.partition("/ns/")
        if not os.path.exists(process):
            raise ProcessLookupError(0, "the process has ended") from error
        raise
    try:
        _check_is(place, netns)
        return os.open(f"/proc/thread-self/fd/{place}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    finally:
        os.close(place)


def _open_by_socket(pid: int, descriptor: int) -> int:
    """The namespace of a socket that another process has open: pidfd_getfd(2), SIOCGSKNS of sockios.h.

    :raises ProcessLookupError: it has been closed; the number may be that of another file by now
    :raises OSError: the process may not be traced
    """
    import ctypes
    from fcntl import ioctl

    process = os.pidfd_open(pid)
    try:
        copy = ctypes.CDLL(None, use_errno=True).syscall(SYS_PIDFD_GETFD, process, descriptor, 0)
        if copy < 0:
            raise _last_error()
    finally:
        os.close(process)
    try:
        return ioctl(copy, SIOCGSKNS)
    except OSError as error:
        raise ProcessLookupError(0, "the socket is gone") from error
    finally:
        os.close(copy)


def _check_is(file: int, netns: int) -> None:
    """Raise ProcessLookupError if an open file is not this namespace."""
    status = os.fstat(file)
    if (status.st_ino, status.st_dev) != (netns, os.stat("/proc/self/ns/net").st_dev):
        raise ProcessLookupError(0, "the namespace is gone")


def _last_error() -> OSError:
    import ctypes

    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))
