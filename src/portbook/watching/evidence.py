"""What rules need to know beyond the sockets and their owners: whether a process runs the file of its path, the
SHA-256 of that file, the image of a container. Read only if a rule about the port asks for it, within limits.

The file is opened through /proc/PID/exe, which leads to what the process runs, whatever its path leads to by now, and
also inside a container (proc_pid_exe(5)). Only the path that the kernel reports is followed outside. A user's own FUSE
mount cannot hold up root: the kernel refuses others access to it (mount.fuse(8), allow_other).
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from portbook.numerals import counted
from portbook.records import Gap, Owner, Socket
from portbook.sources import PLATFORM
from portbook.watching.policy.glob import Pattern
from portbook.watching.policy.keys import image_name
from portbook.watching.policy.matching import PolicyEvidence, ProgramFile, ProgramState, windows_path
from portbook.watching.policy.records import Policy

FRESH_S = 1.0  # a process that was looked at is not looked at again
IMAGES_FRESH_S = 5.0
IMAGES_PAUSE_S = 1.0  # between two queries for containers that the answer lacks
LINKS_FRESH_S = 10.0
MOST_KEPT = 10_000  # of everything that is kept
MOST_HASHED_BYTES = 1 << 30
HASH_LIMIT_S = 5.0  # for one file
HASH_SHARE = 0.1  # of the time may go into checksums in the long run
MOST_SPENT_S = 10.0
CHUNK = 1 << 20
DELETED = " (deleted)"

FileVersion = tuple[int, int, int, int, int]  # device, inode, mtime, ctime, size: a user may set mtime, not ctime
K = TypeVar("K")
V = TypeVar("V")


class _Kept(dict[K, V]):
    """Values of limited number: when there are too many, all are forgotten."""

    def keep(self, key: K, value: V) -> V:
        if len(self) >= MOST_KEPT:
            self.clear()
        self[key] = value
        return value


class Collector:
    """Finds out what a policy needs to know about sockets, and keeps it for a while. For one thread."""

    def __init__(self, policy: Policy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self.gaps: list[Gap] = []  # of the last ``collect``
        self._clock = clock
        self._own_netns = _own_netns()
        self._programs: _Kept[tuple[int, object, str, bool], tuple[float, ProgramFile | None]] = _Kept()
        self._hashes: _Kept[FileVersion, str] = _Kept()
        self._paths: _Kept[str, tuple[float, tuple[int, int] | None]] = _Kept()
        self._links: _Kept[str, tuple[float, str]] = _Kept()
        self._images: dict[str, tuple[str, ...]] = {}
        self._image_gaps: list[Gap] = []
        self._images_at = float("-inf")
        self._unreadable = 0
        self._unhashed: list[str] = []
        self._spent_s = 0.0  # on checksums, as far as it is not forgotten yet
        self._spent_at = 0.0

    def collect(self, sockets: Iterable[Socket]) -> PolicyEvidence:
        """Return what the rules about these sockets need; what could not be known is missing there, and in ``gaps``."""
        self._unreadable, self._unhashed = 0, []
        programs: dict[int, ProgramFile] = {}
        images: dict[str, tuple[str, ...]] = {}
        links: dict[str, str] = {}
        image_gaps: list[Gap] = []
        for socket in sockets:
            needs = self.policy.index.needs(socket.protocol, socket.local_port)
            if needs.programs:
                links.update(self._links_of(needs.paths))
                programs.update(self._programs_of(socket, needs.hashed, links))
            if needs.images:
                images.update(self._images_of(socket))
                image_gaps = self._image_gaps
        self.gaps = [*self._gaps(), *image_gaps]
        return PolicyEvidence(programs, images, links, self._own_netns)

    def _gaps(self) -> Iterator[Gap]:
        if self._unreadable:
            what = counted(self._unreadable, "process", "processes")
            yield Gap("process", self._unreadable, f"the executables of {what} may not be read", _more_privilege())
        for why in self._unhashed[:5]:
            yield Gap("process", 1, why)

    # --- executables -----------------------------------------------------------------------------------------------

    def _programs_of(
        self, socket: Socket, hashed: Iterable[Pattern], links: Mapping[str, str]
    ) -> Iterator[tuple[int, ProgramFile]]:
        for owner in socket.owners:
            if owner.exe is None:
                continue
            path = windows_path(owner.exe) or owner.exe
            with_hash = any(each.matches(path) or links.get(each.text) == owner.exe for each in hashed)
            program = self._program(owner, with_hash)
            if program is not None:
                yield owner.pid, program

    def _program(self, owner: Owner, with_hash: bool) -> ProgramFile | None:
        key = owner.pid, owner.started, owner.exe or "", with_hash
        kept = self._programs.get(key)
        now = self._clock()
        if kept is not None and now - kept[0] < FRESH_S:
            return kept[1]
        return self._programs.keep(key, (now, self._look_at(owner, with_hash)))[1]

    def _look_at(self, owner: Owner, with_hash: bool) -> ProgramFile | None:
        """The program of a process; None if it has ended."""
        path = owner.exe or ""
        if PLATFORM != "linux":  # a file that runs cannot be replaced on Windows
            return ProgramFile("same", self._hash(path, path) if with_hash else None)
        try:
            state = self._state(owner.pid, path)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except OSError:
            self._unreadable += 1
            return ProgramFile("unknown")
        return ProgramFile(state, self._hash(f"/proc/{owner.pid}/exe", path) if with_hash else None)

    def _state(self, pid: int, path: str) -> ProgramState:
        """What the file that the process runs is, by now; raise OSError."""
        link = os.readlink(b"/proc/%d/exe" % pid).decode("utf-8", "replace")
        if link.removesuffix(DELETED) != path:
            return "unknown"  # the pid is another process's by now, or the process has run another program
        status = os.stat(f"/proc/{pid}/exe")
        if self._file_of(path) == (status.st_dev, status.st_ino):
            return "same"
        if link != path:
            return "deleted"
        return "replaced" if _is_in_our_mounts(pid) else "elsewhere"

    def _file_of(self, path: str) -> tuple[int, int] | None:
        """The file that a path leads to outside of containers; None: there is none."""
        kept, now = self._paths.get(path), self._clock()
        if kept is not None and now - kept[0] < FRESH_S:
            return kept[1]
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return self._paths.keep(path, (now, None))[1]
        return self._paths.keep(path, (now, (status.st_dev, status.st_ino)))[1]

    def _links_of(self, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Paths in rules that lead through links, as ``/bin/sh``, and where they lead: the kernel reports that."""
        now = self._clock()
        for path in paths:
            kept = self._links.get(path)
            if kept is None or now - kept[0] >= LINKS_FRESH_S:
                kept = self._links.keep(path, (now, os.path.realpath(path)))
            if kept[1] != path:
                yield path, kept[1]

    # --- checksums -------------------------------------------------------------------------------------------------

    def _hash(self, place: str, path: str) -> str | None:
        """The SHA-256 of a file, as hexadecimal digits; None, and a gap, if it could not be read within the limits."""
        try:
            return self._read_hash(place)
        except (FileNotFoundError, ProcessLookupError):
            return None
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or str(error)
            self._unhashed.append(f"the SHA-256 of {path} could not be computed: {why}")
            return None

    def _read_hash(self, place: str) -> str:
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb", buffering=0) as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise ValueError("it is not a regular file")
            if status.st_size > MOST_HASHED_BYTES:
                raise ValueError(f"it is larger than {MOST_HASHED_BYTES >> 30} GiB")
            version = _version(status)
            known = self._hashes.get(version)
            if known is not None:
                return known
            digest = self._spend(lambda: _digest(file.read, self._clock))
            if _version(os.fstat(descriptor)) != version:
                raise ValueError("it changed while it was read")
            return self._hashes.keep(version, digest)

    def _spend(self, work: Callable[[], str]) -> str:
        """Do work that takes long, unless too much time has gone into it lately: users choose what they run."""
        began = self._clock()
        self._spent_s = max(0.0, self._spent_s - (began - self._spent_at) * HASH_SHARE)
        self._spent_at = began
        if self._spent_s > MOST_SPENT_S:
            raise ValueError(f"more than {HASH_SHARE:.0%} of the time has gone into checksums")
        try:
            return work()
        finally:
            self._spent_s += self._clock() - began

    # --- images ----------------------------------------------------------------------------------------------------

    def _images_of(self, socket: Socket) -> Iterator[tuple[str, tuple[str, ...]]]:
        for container in {socket.container, *(owner.container for owner in socket.owners)} - {None}:
            names = self._image_names(str(container))
            if names is not None:
                yield str(container), names

    def _image_names(self, container: str) -> tuple[str, ...] | None:
        age = self._clock() - self._images_at
        if age > IMAGES_FRESH_S or (container not in self._images and age > IMAGES_PAUSE_S):
            from portbook.managers import runtimes

            images, self._image_gaps = runtimes.images()
            self._images = {label: tuple(_spellings(names)) for label, names in images.items()}
            self._images_at = self._clock()
        return self._images.get(container)


def _spellings(names: Iterable[str]) -> Iterator[str]:
    """What a rule may call an image: with its tag, and without."""
    for name in map(image_name, names):
        yield name
        repository, _, tag = name.rpartition(":")
        if name.startswith("sha256:") or "/" in tag or not repository:
            continue  # no tag, but the port of a registry, or nothing
        yield repository


def _digest(read: Callable[[int], bytes], clock: Callable[[], float]) -> str:
    """The SHA-256 of what is read; raise ValueError when it takes too long, or does not end."""
    from hashlib import sha256

    hashed = sha256()
    size, deadline = 0, clock() + HASH_LIMIT_S
    while part := read(CHUNK):
        hashed.update(part)
        size += len(part)
        if clock() > deadline:
            raise ValueError(f"it takes more than {HASH_LIMIT_S:g} s")
        if size > MOST_HASHED_BYTES:
            raise ValueError(f"it is larger than {MOST_HASHED_BYTES >> 30} GiB")
    return hashed.hexdigest()


def _version(status: os.stat_result) -> FileVersion:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _is_in_our_mounts(pid: int) -> bool:
    """Whether the process has the mount namespace of this one; True if that is not known."""
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")
    except OSError:
        return True


def _own_netns() -> int | None:
    if PLATFORM != "linux":
        return None
    from portbook.system import namespaces

    return namespaces.own()


def _more_privilege() -> str | None:
    if PLATFORM != "linux":
        return None
    from portbook.system import privilege

    return privilege.remedy("CAP_SYS_PTRACE")
