from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich import cgroup
from portbook.managers.systemd import unit_of
from portbook.sources import sockdiag
from portbook.sources.base import Wanted
from tests.cgroups import leave_v1_groups
from tests.components import need
from tests.rounds import until

# --- /proc/PID/cgroup ----------------------------------------------------------------------------------------------

V1 = b"""12:net_cls,net_prio:/docker/2403ccfe
11:freezer:/docker/2403ccfe
1:name=systemd:/docker/2403ccfe
0::/system.slice/containerd.service
"""  # https://github.com/ctrsploit/ctrsploit/issues/280, ids shortened
CONMON = b"9:name=systemd:/\n8:pids:/libpod_parent/conmon\n4:memory:/libpod_parent/conmon\n0::/\n"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"0::/system.slice/ssh.service\n", "/system.slice/ssh.service"),
        (b"0::/\n", "/"),
        (V1, "/docker/2403ccfe"),
        (CONMON, "/libpod_parent/conmon"),
        (b"2:cpu,cpuacct:/a\n1:name=systemd:/\n0::/\n", "/a"),
        (b"3:pids:/\n2:name=systemd:/\n1:cpu:/\n0::/b\n", "/b"),
        (b"5:rdma:/only\n0::/\n", "/only"),
        (b"1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n", "/system.slice/a.service"),
        (b"0::/gone.service (deleted)\n", "/gone.service"),
        (b"0::/with:colons:and spaces\n", "/with:colons:and spaces"),
        (b"0::/\xff\n", "/\N{REPLACEMENT CHARACTER}"),
        (b"0::/../../other\n", "/../../other"),
        (b"", None),
        (b"nonsense", None),
    ],
)
def test_the_most_specific_line_is_chosen(text, path):
    assert cgroup.parse(text) == path


@given(st.binary())
def test_any_bytes_are_understood_or_none(text):
    assert cgroup.parse(text) is None or isinstance(cgroup.parse(text), str)


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_of_this_process_and_of_none():
    assert cgroup.of_pid(os.getpid()).startswith("/")
    assert cgroup.of_pid(2**22 + 1) is None  # beyond PID_MAX_LIMIT


# --- ids: pure -----------------------------------------------------------------------------------------------------

# proc_pid_mountinfo(5); a hybrid layout as systemd makes it, and a mount point with a space in it
MOUNTINFO = rb"""31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime shared:9 - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:10 master:2 - cgroup2 cgroup2 rw
42 31 0:38 /user.slice /mnt/a\040b\134c rw - cgroup2 none rw
garbage - cgroup2
"""


def test_cgroup2_mounts_are_found_in_mountinfo():
    assert cgroup.mounts(MOUNTINFO) == [(b"/", b"/sys/fs/cgroup/unified"), (b"/user.slice", rb"/mnt/a b\c")]
    assert cgroup.beside_v1(MOUNTINFO)
    assert not cgroup.beside_v1(b"31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")


@given(st.binary())
def test_any_mountinfo_is_understood(text):
    cgroup.mounts(text)


def test_the_root_id_names_no_service(monkeypatch):
    monkeypatch.setattr(cgroup, "_mountinfo", lambda: pytest.fail("nothing is to be searched"))
    assert cgroup.paths_by_id({1}) == {1: "/"}
    assert unit_of("/") is None


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A directory tree in the place of a cgroup2 mount."""
    for path in ("system.slice/ssh.service", "system.slice/containerd.service", "user.slice/user-1000.slice"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "system.slice/cgroup.procs").touch()
    (tmp_path / "loop").symlink_to(tmp_path)
    line = b"41 31 0:38 / %s rw - cgroup2 none rw\n" % os.fsencode(tmp_path)
    monkeypatch.setattr(cgroup, "_mountinfo", lambda: line)
    return tmp_path


def test_ids_are_inodes_of_directories(tree):
    ssh = (tree / "system.slice/ssh.service").stat().st_ino
    user = (tree / "user.slice").stat().st_ino
    assert cgroup.paths_by_id({ssh, user, 1, 2**60}) == {ssh: "/system.slice/ssh.service", user: "/user.slice", 1: "/"}


@pytest.fixture
def listed(monkeypatch):
    """The directories that were looked into."""
    seen = []
    original = cgroup._directories
    monkeypatch.setattr(cgroup, "_directories", lambda path: seen.append(path) or original(path))
    return seen


def test_the_search_ends_when_all_are_found(tree, listed):
    cgroup.paths_by_id({(tree / "user.slice").stat().st_ino})
    assert len(listed) == 1


def test_the_search_is_bounded(tree, listed, monkeypatch):
    monkeypatch.setattr(cgroup, "MOST_DIRECTORIES", 3)
    assert cgroup.paths_by_id({2**60}) == {}
    assert len(listed) == 3


def test_a_runtimes_own_unit_is_not_believed_beside_v1(tree, monkeypatch):
    containerd = (tree / "system.slice/containerd.service").stat().st_ino
    assert cgroup.paths_by_id({containerd}) == {containerd: "/system.slice/containerd.service"}
    alone = cgroup._mountinfo()
    monkeypatch.setattr(cgroup, "_mountinfo", lambda: alone + MOUNTINFO.splitlines(keepends=True)[1])
    assert cgroup.paths_by_id({containerd}) == {}


# --- ids: the real thing -------------------------------------------------------------------------------------------

CHILD = """
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write(str(os.getpid()))
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def cgroup2(point: str) -> Iterator[str]:
    """A cgroup2 mount of our own with one child cgroup in it; all is gone afterwards."""
    os.mkdir(point)
    mounted = subprocess.run(["mount", "-t", "cgroup2", "none", point], capture_output=True, text=True, check=False)
    need(mounted.returncode == 0, f"a cgroup2 mount: {mounted.stderr.strip()}")
    child = f"{point}/portbook-test-{os.getpid()}.service"
    try:
        os.mkdir(child)
        try:
            yield child
        finally:
            _remove(child)
    finally:
        subprocess.run(["umount", point], check=True)


def _remove(path: str) -> None:
    """A cgroup stays busy until its last process is reaped."""

    def is_removed() -> bool:
        with contextlib.suppress(OSError):
            os.rmdir(path)
        return not os.path.exists(path)

    until(is_removed, f"the removal of {path}")


@contextlib.contextmanager
def listener_in(path: str) -> Iterator[tuple[int, int]]:
    """A process in a cgroup that listens: its pid and the port."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        try:
            port = int(process.stdout.readline())
            leave_v1_groups(process.pid)
            yield process.pid, port
        finally:
            process.kill()


@pytest.mark.root
@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_the_kernels_id_of_a_socket_leads_to_its_creators_cgroup(tmp_path):
    need(os.geteuid() == 0, "root, to mount cgroup2")
    with cgroup2(str(tmp_path / "cgroup")) as path, listener_in(path) as (pid, port):
        raw = sockdiag.read(Wanted(("tcp",), ("ipv4",), frozenset(("LISTEN",)), ((port, port),)))
        (found,) = [s for s in sockdiag.parse(raw).sockets if s.local_port == port]
        need(found.cgroup_id is not None, "a kernel that reports INET_DIAG_CGROUP_ID (5.8)")
        assert found.cgroup_id == os.stat(path).st_ino
        named = cgroup.paths_by_id({found.cgroup_id, 2**60})
        assert named == {found.cgroup_id: "/" + os.path.basename(path)}
        assert cgroup.of_pid(pid) == "/" + os.path.basename(path)
        assert unit_of(named[found.cgroup_id]) == os.path.basename(path)
    assert not os.path.ismount(tmp_path / "cgroup")
