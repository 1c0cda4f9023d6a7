"""Where a process was started: its directory, the project, its terminal; also in places that others control."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("Linux's /proc", allow_module_level=True)

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from portbook.enrich import process
from portbook.enrich.process import origin
from portbook.enrich.process.state import explain_state
from portbook.records import Owner
from portbook.testing import child
from tests.components import need
from tests.conftest import ROOT

PLAIN = "say()\nwait()\n"
IN_DIRECTORY = "os.chdir(sys.argv[1])\nsay()\nwait()\n"


def started_in(directory):
    return child(IN_DIRECTORY, str(directory))


def found(directory):
    with started_in(directory) as one:
        seen = origin.directory_of(one.pid)
        return seen, origin.project_of(one.pid, seen)


@pytest.fixture
def project(tmp_path):
    """A project inside a project, and a directory three levels below."""
    (tmp_path / ".git").mkdir()
    inner = tmp_path / "größer shop"
    below = inner / "src" / "a" / "b"
    below.mkdir(parents=True)
    (inner / "package.json").write_text("{")
    return inner


@pytest.mark.parametrize("level", ["", "src", "src/a/b"])
def test_the_nearest_project_upwards(project, level):
    assert found(project / level) == (str(project / level), str(project))


@pytest.mark.parametrize("marker", origin.MARKERS)
def test_each_marker(tmp_path, marker):
    (tmp_path / marker).write_text("")
    assert found(tmp_path)[1] == str(tmp_path)


def test_no_project():
    assert found("/") == ("/", None)


def test_a_directory_that_is_too_far_below(tmp_path):
    below = tmp_path.joinpath(*["d"] * (origin.MOST_LEVELS + 1))
    below.mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    assert found(below)[1] is None


def test_a_removed_directory_is_no_project(tmp_path):
    place = tmp_path / "gone"
    place.mkdir()
    (tmp_path / ".git").mkdir()
    with started_in(place) as one:
        place.rmdir()
        seen = origin.directory_of(one.pid)
        assert seen == f"{place} (deleted)"
        assert origin.project_of(one.pid, seen) is None


def test_links_are_not_followed_and_files_are_not_opened(tmp_path):
    """A marker may be a link to a FIFO or to nothing: its name counts, and nothing blocks."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "package.json").symlink_to(tmp_path / "fifo")
    (tmp_path / ".git").symlink_to("/nonexistent")
    assert found(tmp_path)[1] == str(tmp_path)


def test_names_that_are_not_utf8(tmp_path):
    place = os.path.join(os.fsencode(tmp_path), b"\xff\n")
    os.mkdir(place)
    (tmp_path / ".git").mkdir()
    with started_in(os.fsdecode(place)) as one:
        seen = origin.directory_of(one.pid)
        assert seen == f"{tmp_path}/\ufffd\n"
        assert origin.project_of(one.pid, seen) == str(tmp_path)


def test_what_an_ordinary_user_may_not_see(as_nobody):
    script = f"from portbook.enrich.process import origin as o; print(o.directory_of({os.getpid()}), o.tracer_of(1))"
    done = as_nobody(sys.executable, "-c", script)
    assert (done.stdout, done.stderr) == ("None None\n", "")


def test_a_process_that_has_ended():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert origin.directory_of(ended.pid) is None
    assert origin.project_of(ended.pid, "/tmp") is None
    assert origin.is_orphaned(ended.pid) is None
    assert origin.tracer_of(ended.pid) is None


# --- file systems that can keep a reader waiting -------------------------------------------------------------------


def test_another_user_namespace_is_not_looked_into(tmp_path):
    """There, any user may mount FUSE, or an overlay of it."""
    (tmp_path / ".git").mkdir()
    script = "os.unshare(0x10000000)\n" if hasattr(os, "unshare") else UNSHARE
    with child(script + IN_DIRECTORY, str(tmp_path)) as one:
        assert origin.directory_of(one.pid) == str(tmp_path)
        assert origin.project_of(one.pid, str(tmp_path)) is None


UNSHARE = "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0\n"  # CLONE_NEWUSER


@pytest.mark.parametrize("kind", ["fuse.sshfs", "nfs4", "autofs", "cifs"])
def test_slow_file_systems_are_not_touched(tmp_path, kind, monkeypatch):
    """By the table of mounts alone: nothing below the mount point is opened."""
    need(ROOT, "root, whose processes others may not look into")
    (tmp_path / ".git").mkdir()
    table = f"29 1 0:1 / / rw - ext4 /dev/a rw\n77 29 0:2 / {tmp_path} rw - {kind} x rw\n".encode()
    read = origin._read
    monkeypatch.setattr(origin, "_read", lambda path: table if path.endswith("/mountinfo") else read(path))
    with started_in(tmp_path) as one:
        monkeypatch.setattr(os, "open", None)
        assert origin.project_of(one.pid, str(tmp_path)) is None


def test_a_directory_that_changes_after_the_look_at_its_path(tmp_path, monkeypatch):
    """The mount is that of the open directory, not of the path that was read before."""
    (tmp_path / ".git").mkdir()
    with started_in(tmp_path) as one:
        mounts = origin.parse_mounts(origin._read(f"/proc/{one.pid}/mountinfo"))
        number = next(n for n, (_, kind) in mounts.items() if kind == b"proc")
        monkeypatch.setattr(origin, "_mount_of", lambda file: number)
        assert origin.project_of(one.pid, str(tmp_path)) is None


def test_the_table_of_mounts_is_read_once_for_a_mount_namespace(project, monkeypatch):
    paths = []
    read = origin._read
    monkeypatch.setattr(origin, "_read", lambda path: paths.append(path) or read(path))
    known = {}
    with started_in(project) as one, started_in(project / "src") as other:
        for each, place in ((one, project), (other, project / "src")):
            assert origin.project_of(each.pid, str(place), known) == str(project)
    assert sum(path.endswith("/mountinfo") for path in paths) == 1


def test_no_descriptor_stays_open(project):
    before = sorted(os.listdir("/proc/self/fd"))
    for directory in (project, project / "src", "/"):
        found(directory)
    assert sorted(os.listdir("/proc/self/fd")) == before


@given(st.binary(max_size=300))
def test_any_table_of_mounts(text):
    origin.parse_mounts(text)


def test_a_mount_point_with_blanks():
    mounts = origin.parse_mounts(b"30 1 0:1 / /a\\040b\\134 rw shared:1 - ext4 /dev/a rw\n")
    assert mounts == {30: (b"/a b\\", b"ext4")}


# --- terminals -----------------------------------------------------------------------------------------------------


class Terminal:
    """A shell that leads a session on a terminal of its own, with one job in the background, in its own group."""

    def __init__(self, redirected: bool) -> None:
        self.ours, theirs = os.openpty()
        streams = "</dev/null >/dev/null 2>&1" if redirected else ""
        script = f"set -m; trap '' HUP; sleep 300 {streams} & echo pid $!; trap - HUP; read line"
        self.shell = subprocess.Popen(
            ["setsid", "--ctty", "--wait", "bash", "-c", script], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        text = b""
        while b"\n" not in text.partition(b"pid ")[2]:
            text += os.read(self.ours, 1000)
        self.pid = int(text.partition(b"pid ")[2].split()[0])

    def close(self) -> None:
        os.close(self.ours)
        self.shell.wait(60)


@pytest.fixture
def terminal():
    opened = []

    def make(**options):
        opened.append(Terminal(**options))
        return opened[-1]

    yield make
    for one in opened:
        if one.shell.poll() is None:
            one.close()
        with suppress(ProcessLookupError):
            os.kill(one.pid, 9)


def wait_for(is_reached):
    last = time.monotonic() + 60
    while not is_reached():
        assert time.monotonic() < last
        time.sleep(0.01)


@pytest.mark.parametrize("redirected", [True, False])
def test_a_job_outlives_its_terminal(terminal, redirected):
    one = terminal(redirected=redirected)
    assert origin.is_orphaned(one.pid) is False
    one.close()
    wait_for(lambda: origin.is_orphaned(one.pid))


def test_daemons_are_no_orphans():
    """One that leads a session of its own, and one that has forked once more (daemon(7), steps 6 and 7)."""
    once = subprocess.Popen(["setsid", "sleep", "300"])
    try:
        wait_for(lambda: os.getsid(once.pid) == once.pid)
        assert origin.is_orphaned(once.pid) is False
    finally:
        once.kill()
        once.wait()
    code = "import os, time\nos.setsid()\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\ntime.sleep(300)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as leader:
        twice = int(leader.stdout.readline())
        try:
            leader.wait(60)
            assert origin.is_orphaned(twice) is False
        finally:
            os.kill(twice, 9)


# --- frozen ----------------------------------------------------------------------------------------------------------


def remove(path):
    """A cgroup stays busy until its last process is reaped."""
    last = time.monotonic() + 60
    while True:
        try:
            return os.rmdir(path)
        except OSError:
            assert time.monotonic() < last
            time.sleep(0.01)


def frozen_by(place, pid, file, freeze, thaw, monkeypatch, freezer):
    """What is seen before, while and after the cgroup is frozen."""
    monkeypatch.setattr(origin, "FREEZERS", (freezer,))
    (place / "cgroup.procs").write_text(str(pid))
    seen = [origin.is_frozen(pid)]
    (place / file).write_text(freeze)
    try:
        wait_for(lambda: origin.is_frozen(pid))
        (owner,), _ = process.enrich([Owner(pid)])
        seen.append(process.add_origin(owner).state)
    finally:
        (place / file).write_text(thaw)
    wait_for(lambda: not origin.is_frozen(pid))
    return seen


@pytest.fixture
def cgroups(tmp_path):
    """Makes a cgroup below a mount point."""
    made, mounted = [], []

    def make(point, kind=None):
        if kind:
            point = tmp_path / "cgroup2"
            point.mkdir()
            done = subprocess.run(["mount", "-t", kind, "none", point], capture_output=True, text=True, check=False)
            need(done.returncode == 0, f"a {kind} mount: {done.stderr.strip()}")
            mounted.append(point)
        made.append(point / f"portbook-test-{os.getpid()}")
        made[-1].mkdir()
        return point, made[-1]

    yield make
    for path in made:
        remove(path)
    for point in mounted:
        subprocess.run(["umount", point], check=True)


def test_a_frozen_cgroup_of_version_2(cgroups, monkeypatch):
    need(ROOT, "root, to mount cgroup2")
    point, place = cgroups(None, "cgroup2")
    freezer = (b"", os.fsencode(point), b"cgroup.events", b"frozen 1")
    with child(PLAIN) as one:
        assert frozen_by(place, one.pid, "cgroup.freeze", "1", "0", monkeypatch, freezer) == [False, "frozen"]


def test_a_frozen_cgroup_of_version_1(cgroups, monkeypatch):
    root = Path("/sys/fs/cgroup/freezer")
    need(ROOT and root.is_dir(), "root, and the freezer of cgroup version 1")
    _, place = cgroups(root)
    with child(PLAIN) as one:
        seen = frozen_by(place, one.pid, "freezer.state", "FROZEN", "THAWED", monkeypatch, origin.FREEZERS[2])
    assert seen == [False, "frozen"]


@pytest.mark.parametrize(
    ("owner", "command"),
    [
        (Owner(1, container="docker:web", service="docker.service"), "docker unpause web"),
        (Owner(1, container="podman:web"), "podman unpause web"),
        (Owner(1, service="web.service"), "systemctl thaw web.service"),
        (Owner(1), "what froze it"),
    ],
)
def test_what_thaws_it(owner, command):
    assert f"; {command} lets it run again" in explain_state(replace(owner, state="frozen"))
