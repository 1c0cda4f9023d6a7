"""Linux: the place of a process, or of the creator of a socket, in the cgroup hierarchy.

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
MOST_DIRECTORIES = 50_000  # any user may have a subtree delegated, and fill it
DELETED = b" (deleted)"

# The hierarchies to trust, best first: systemd's v1 tree, v2, the v1 controllers that every container runtime uses.
ORDER = (b"name=systemd", b"", b"pids", b"memory", b"cpu,cpuacct", b"cpu")
# Where v1 is in use beside v2, the creator of a socket may only appear to be in one of these; see parse().
RUNTIMES = (
    "/containerd.service",
    "/docker.service",
    "/snap.docker.dockerd.service",
    "/kubelet.service",
    "/k3s.service",
)


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
    """Choose the most specific line of /proc/PID/cgroup; None if there is none.

    Usually there is only v2. Where both are in use, systemd keeps its v1 tree and v2 the same, but a container runtime
    that uses v1 leaves its containers in the v2 cgroup from which it was started, ``containerd.service``. Without
    systemd, any controller may know a better path than the root.
    """
    paths: dict[bytes, bytes] = {}
    for line in text.split(b"\n"):
        _, _, rest = line.partition(b":")
        controllers, colon, path = rest.partition(b":")
        if colon:
            paths[controllers] = path
    if not paths:
        return None
    for controllers in (*ORDER, *paths):
        path = paths.get(controllers, b"/")
        if path != b"/":
            return path.removesuffix(DELETED).decode("utf-8", "replace")
    return ROOT


# --- from id to path -----------------------------------------------------------------------------------------------


def paths_by_id(ids: set[int]) -> dict[int, str]:
    """The paths of cgroups by id, without those that are gone, not visible from here, or not to be trusted."""
    paths = {ROOT_ID: ROOT} if ROOT_ID in ids else {}
    if ids <= paths.keys():
        return paths
    mountinfo = _mountinfo()
    paths.update(_search(ids - {ROOT_ID}, mounts(mountinfo)))
    if beside_v1(mountinfo):
        return {number: path for number, path in paths.items() if not path.endswith(RUNTIMES)}
    return paths


def _search(missing: set[int], trees: list[tuple[bytes, bytes]]) -> Iterator[tuple[int, str]]:
    """Search breadth first, because what has sockets is usually near the root, and stop when all are found."""
    for prefix, point in _distinct(trees):
        for number, path in _walk(prefix, point, missing):
            yield number, path
            missing.discard(number)
            if not missing:
                return


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
        return []  # removed, or not readable


def _distinct(trees: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The widest first, and none that is inside an earlier one: there is one v2 tree, mounted many times."""
    walked: list[bytes] = []
    for root, point in sorted(trees, key=lambda tree: len(tree[0])):
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
    trees = []
    for line in mountinfo.split(b"\n"):
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if right.startswith(b"cgroup2 ") and len(fields) > 4:
            trees.append((_unescape(fields[3]), _unescape(fields[4])))
    return trees


def beside_v1(mountinfo: bytes) -> bool:
    """Whether systemd's v1 tree is mounted, and so in use."""
    return any(b" - cgroup " in line and line.endswith(b"name=systemd") for line in mountinfo.split(b"\n"))


def _unescape(field: bytes) -> bytes:
    """Replace the octal numbers of space, tab, newline and, last, backslash (proc_pid_mounts(5))."""
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field
