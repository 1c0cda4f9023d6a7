"""Linux: where a process was started: its directory, the project there, its terminal; and what keeps it from running.

Read for few processes, on request. The directory is one that a stranger may have chosen: no link in it is followed, no
file in it is opened, and file systems that can keep a reader waiting (FUSE, NFS) are not looked at.

Facts: proc_pid_cwd(5), proc_pid_stat(5), proc_pid_status(5), proc_pid_mountinfo(5), path_resolution(7),
credentials(7) about sessions, openat(2) about O_PATH.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from portbook.numerals import number_or_none, parse_number

# What marks the directory of a project; the names only.
MARKERS = (
    ".git",
    "package.json",
    "pyproject.toml",
    "Cargo.toml",
    "go.mod",
    "pom.xml",
    "build.gradle",
    "build.gradle.kts",
    "composer.json",
    "Gemfile",
    "mix.exs",
    "deno.json",
)
MOST_LEVELS = 16
MOST_BYTES = 1 << 20  # of the table of mounts
# Mounted by root, from a disk, from memory or by the host of a virtual machine: looking at a name takes no time.
LOCAL = frozenset(
    b"9p bcachefs btrfs erofs exfat ext2 ext3 ext4 f2fs iso9660 jfs ntfs3 overlay ramfs rootfs squashfs tmpfs "
    b"vfat virtiofs xfs zfs".split()
)
DELETED = " (deleted)"
TERMINALS = ("/dev/pts/", "/dev/tty")
SESSION, GROUP, TERMINAL = 3, 2, 4  # fields of /proc/PID/stat behind the name

Mounts = dict[int, tuple[bytes, bytes]]  # by number: where, and the kind of file system


def directory_of(pid: int) -> str | None:
    """The working directory, with " (deleted)" behind it when it was removed; None where it is not visible."""
    try:
        return os.readlink(b"/proc/%d/cwd" % pid).decode("utf-8", "replace")
    except OSError:
        return None


# --- the project ---------------------------------------------------------------------------------------------------


def project_of(pid: int, directory: str, known: dict[int, Mounts] | None = None) -> str | None:
    """The nearest directory, from the working directory upwards, that has one of ``MARKERS``; None for none.

    :param known: tables of mounts that were read before, by mount namespace; what is read now is added
    """
    if directory.endswith(DELETED) or not directory.startswith("/"):
        return None
    try:
        if not _is_same(pid, "user"):
            return None  # in a user namespace of its own any user may mount what keeps a reader waiting
        mounts = _mounts_of(pid, {} if known is None else known)
        if not _is_local(mounts, directory.encode("utf-8", "replace")):
            return None
        file = os.open(b"/proc/%d/cwd" % pid, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    level = _climb(file, mounts)
    if level is None:
        return None
    parts = directory.rstrip("/").split("/")
    return "/".join(parts[: len(parts) - level]) or None


def _mounts_of(pid: int, known: dict[int, Mounts]) -> Mounts:
    """The mounts that the process sees. A node of containers has thousands, and workers see the same."""
    namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
    if namespace not in known:
        known[namespace] = parse_mounts(_read(f"/proc/{pid}/mountinfo"))
    return known[namespace]


def _climb(file: int, mounts: Mounts) -> int | None:
    """How many levels above an open directory the project is; the descriptor is closed."""
    before = None
    try:
        for level in range(MOST_LEVELS):
            if mounts.get(_mount_of(file), (b"", b""))[1] not in LOCAL:
                return None
            here = os.fstat(file)
            if before is not None and (here.st_ino, here.st_dev) == (before.st_ino, before.st_dev):
                return None  # the root: it is its own parent
            if any(_has(file, name) for name in MARKERS):
                return level
            before = here
            above = os.open("..", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=file)
            os.close(file)
            file = above
    except OSError:
        return None
    finally:
        os.close(file)
    return None


def _has(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _mount_of(file: int) -> int:
    for line in _read(f"/proc/self/fdinfo/{file}").split(b"\n"):
        key, _, value = line.partition(b":")
        if key == b"mnt_id":
            return number_or_none(value.strip()) or 0
    return 0


def _is_local(mounts: Mounts, directory: bytes) -> bool:
    """Whether the mount that a path is in, by its text, has a local file system."""
    best, kind = b"", b""
    for point, fs in mounts.values():
        inside = directory == point or directory.startswith(point.rstrip(b"/") + b"/")
        if inside and len(point) >= len(best):
            best, kind = point, fs
    return kind in LOCAL


def parse_mounts(text: bytes) -> Mounts:
    """The mounts in /proc/PID/mountinfo by their numbers. Pure."""
    mounts: Mounts = {}
    for line in text.split(b"\n"):
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        number = number_or_none(fields[0])
        if number is not None and len(fields) > 4:
            mounts[number] = _unescaped(fields[4]), right.partition(b" ")[0]
    return mounts


def _unescaped(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field


def _is_same(pid: int, kind: str) -> bool:
    """Whether the process is in the caller's namespace of a kind: namespaces(7)."""
    return os.stat(f"/proc/{pid}/ns/{kind}").st_ino == os.stat(f"/proc/self/ns/{kind}").st_ino


# --- the terminal --------------------------------------------------------------------------------------------------


def is_orphaned(pid: int) -> bool | None:
    """Whether the terminal that the process was started from has been closed; None where that is not visible.

    A shell with job control gives each job a process group of its own and stays the leader of the session. A daemon
    that has forked twice is in an ended session too, but in the group of that session's leader.
    """
    try:
        fields = _fields(pid)
        group, session = parse_number(fields[GROUP]), parse_number(fields[SESSION])
    except (OSError, ValueError, IndexError):
        return None
    if any(name.startswith(TERMINALS) and name.endswith(DELETED) for name in _standard_streams(pid)):
        return True
    if not session:
        return None  # it was made in another PID namespace
    return group != session and _has_ended(session)


def terminal_of(pid: int) -> int | None:
    """The number of the controlling terminal of a process; 0 for none, None if the process is not visible."""
    try:
        return parse_number(_fields(pid)[TERMINAL])
    except (OSError, ValueError, IndexError):
        return None


def _standard_streams(pid: int) -> Iterator[str]:
    for number in range(3):
        try:
            yield os.readlink(f"/proc/{pid}/fd/{number}")
        except OSError:
            continue


def _has_ended(pid: int) -> bool:
    """Whether there is no such process, or only what its parent has not read yet."""
    try:
        os.kill(pid, 0)  # hidepid hides directories, not the answer to this
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        return _fields(pid)[0] == b"Z"
    except (OSError, ValueError, IndexError):
        return False


# --- frozen ----------------------------------------------------------------------------------------------------------

# Where the hierarchies are mounted, by the controllers in /proc/PID/cgroup; the file there, and how it says frozen:
# Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
FREEZERS = (
    (b"", b"/sys/fs/cgroup", b"cgroup.events", b"frozen 1"),
    (b"", b"/sys/fs/cgroup/unified", b"cgroup.events", b"frozen 1"),
    (b"freezer", b"/sys/fs/cgroup/freezer", b"freezer.state", b"FROZEN"),
)


def is_frozen(pid: int) -> bool:
    """Whether the cgroup of the process is frozen: ``docker pause``, ``systemctl freeze``."""
    try:
        lines = _read(f"/proc/{pid}/cgroup").split(b"\n")
    except OSError:
        return False
    paths: dict[bytes, bytes] = {}
    for line in lines:
        _, _, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if colon:
            paths[controllers] = path.rstrip(b"/")
    for controllers, root, file, word in FREEZERS:
        path = paths.get(controllers, b"")
        if path and not path.startswith(b"/.."):  # outside of the caller's cgroup namespace: cgroup_namespaces(7)
            try:
                text = _read(os.path.join(root + path, file))
            except OSError:
                continue
            if word in text.split(b"\n"):
                return True
    return False


# --- who traces it -------------------------------------------------------------------------------------------------


def tracer_of(pid: int) -> int | None:
    """The pid of the process that traces it, a debugger or strace(1); None for none."""
    try:
        status = _read(f"/proc/{pid}/status")
    except OSError:
        return None
    _, _, rest = status.partition(b"\nTracerPid:")
    return number_or_none(rest.partition(b"\n")[0].strip()) or None


def _fields(pid: int) -> list[bytes]:
    """What stands behind the name in /proc/PID/stat: state, parent, group, session and more."""
    line = _read(f"/proc/{pid}/stat")
    return line[line.rindex(b")") + 2 :].split()


def _read(path: str | bytes) -> bytes:
    """A file of /proc, which gives out no more than a page or two at once."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = bytearray()
        while len(parts) < MOST_BYTES and (part := os.read(file, 1 << 16)):
            parts += part
        return bytes(parts)
    finally:
        os.close(file)
