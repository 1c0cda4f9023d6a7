"""Linux: where a process, or the creator of a socket, stands in the cgroup hierarchy.

Facts: cgroups(7), proc_pid_cgroup(5), proc_pid_mountinfo(5); Documentation/admin-guide/cgroup-v2.rst. The id that
sock_diag reports (INET_DIAG_CGROUP_ID) is the inode of a directory of the cgroup2 file system
(cgroup_id() in include/linux/cgroup.h).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

ROOT = "/"
# The root of the v2 hierarchy is the first inode of its file system. Where only v1 is used, every process stays there.
ROOT_ID = 1

# A path is at most PATH_MAX, 4096 bytes (proc_cgroup_show() answers ENAMETOOLONG beyond), and there are a dozen
# hierarchies at most.
MOST_BYTES = 1 << 16
MOST_MOUNTINFO = 4 << 20
MOST_DIRECTORIES = 50_000  # anyone may have a subtree delegated and fill it
DELETED = b" (deleted)"

# Which v1 hierarchies to believe, best first: systemd's own tree, then those every container runtime uses.
V1_ORDER = (b"name=systemd", b"pids", b"memory", b"cpu,cpuacct", b"cpu")


def of_pid(pid: int) -> str | None:
    """The path of a process's cgroup; None if the process is gone."""
    try:
        file = os.open(f"/proc/{pid}/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return parse(os.read(file, MOST_BYTES))
    except OSError:
        return None
    finally:
        os.close(file)


def parse(text: bytes) -> str | None:
    """Choose the line of /proc/PID/cgroup that says most; None if there is none.

    That is the v2 path, unless it is the root: then v1 is in use, and systemd's tree or any other controller may
    know better.
    """
    paths: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        _, _, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if colon:
            paths[controllers] = path
    if not paths:
        return None
    for controllers in (b"", *V1_ORDER, *paths):
        path = paths.get(controllers, b"/")
        if path != b"/":
            return path.removesuffix(DELETED).decode("utf-8", "replace")
    return ROOT


# --- from id to path -----------------------------------------------------------------------------------------------


def paths_by_id(ids: set[int]) -> dict[int, str]:
    """The paths of cgroups by id; one that is gone, or cannot be seen from here, is left out.

    Breadth first, because what holds sockets mostly lies near the root, and until all are found.
    """
    found = {ROOT_ID: ROOT} if ROOT_ID in ids else {}
    missing = ids - {ROOT_ID}
    for prefix, point in _mounts_to_walk() if missing else ():
        for number, path in _walk(prefix, point, missing):
            found[number] = path
            missing.discard(number)
            if not missing:
                return found
    return found


def _walk(prefix: bytes, point: bytes, wanted: set[int]) -> Iterator[tuple[int, str]]:
    pending = [b""]
    for relative in pending:
        for number, name in _directories(point + relative):
            path = relative + b"/" + name
            if number in wanted:
                yield number, (prefix + path).decode("utf-8", "replace")
            if len(pending) < MOST_DIRECTORIES:
                pending.append(path)


def _directories(path: bytes) -> list[tuple[int, bytes]]:
    try:
        with os.scandir(path) as entries:
            return [(entry.inode(), entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []  # removed meanwhile, or not readable


def _mounts_to_walk() -> Iterator[tuple[bytes, bytes]]:
    """The cgroup2 mounts, those that show most first, and none that lies inside one before it: there is one v2 tree."""
    walked: list[bytes] = []
    for root, point in sorted(mounts(_mountinfo()), key=lambda mount: len(mount[0])):
        prefix = root.rstrip(b"/")
        if not any(prefix == above or prefix.startswith(above + b"/") for above in walked):
            walked.append(prefix)
            yield prefix, point


def _mountinfo() -> bytes:
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return file.read(MOST_MOUNTINFO)
    except OSError:
        return b""


def mounts(mountinfo: bytes) -> list[tuple[bytes, bytes]]:
    """Root within the hierarchy and mount point of every cgroup2 mount."""
    found = []
    for line in mountinfo.split(b"\n"):
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if right.startswith(b"cgroup2 ") and len(fields) > 4:
            found.append((_unescape(fields[3]), _unescape(fields[4])))
    return found


def _unescape(field: bytes) -> bytes:
    """Space, tab, newline and backslash are written as octal numbers (proc_pid_mounts(5)); the backslash comes last."""
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field
