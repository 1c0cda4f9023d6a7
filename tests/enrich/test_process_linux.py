"""Processes as portbook describes them, against psutil, the kernel's files, and what a test knows of its children."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich import process
from portbook.enrich.process.state import explain_state
from portbook.records import Owner
from portbook.testing import child
from tests.components import need
from tests.conftest import NOBODY, ROOT

if sys.platform != "linux":
    pytest.skip("Linux's /proc", allow_module_level=True)

from portbook.enrich.process import linux

TICK = timedelta(seconds=1 / os.sysconf("SC_CLK_TCK"))
PLAIN = "say()\nwait()\n"


def described(pid):
    ((owner,), gaps) = process.enrich([Owner(pid, how="fd", confidence="likely")])
    assert gaps == []
    assert (owner.how, owner.confidence) == ("fd", "likely")
    return owner


def test_psutil_agrees_about_a_child():
    with child(PLAIN, "", "two words") as one:
        owner, told = described(one.pid), psutil.Process(one.pid)
        assert owner.pid == one.pid
        assert owner.name == told.name()
        assert owner.exe == told.exe() == os.path.realpath(sys.executable)
        assert owner.user == told.username()
        assert owner.ppid == told.ppid() == os.getpid()
        assert list(owner.command_line) == told.cmdline()
        assert owner.command_line[-2:] == ("", "two words")


def test_it_started_between_before_and_after():
    before = datetime.now(UTC) - 2 * TICK
    with child(PLAIN) as one:
        after = datetime.now(UTC) + 2 * TICK
        owner = described(one.pid)
    assert before <= owner.started <= after
    assert owner.started.tzinfo is UTC


def test_its_start_does_not_change_from_one_look_to_the_next():
    with child(PLAIN) as one:
        assert len({described(one.pid).started for _ in range(50)}) == 1


def test_parents_are_those_of_psutil():
    nested = (
        "import subprocess\n"
        "script = 'import sys; sys.stdin.read()'\n"
        "inner = subprocess.Popen([sys.executable, '-I', '-S', '-c', script], stdin=subprocess.PIPE)\n"
        "say(inner.pid)\nwait()\ninner.communicate()\n"
    )
    with child(nested) as one:
        chain = process.parents(one.said)
        assert [owner.pid for owner in chain] == [p.pid for p in psutil.Process(one.said).parents()]
        for owner in chain:
            with open(f"/proc/{owner.pid}/comm", "rb") as file:
                assert owner.name.startswith(file.read()[:-1].decode("utf-8", "replace"))
        assert [owner.pid for owner in chain][:2] == [one.pid, os.getpid()]


def test_the_first_process_and_one_that_is_gone_have_no_parents():
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert process.parents(1) == ()
    assert process.parents(ended.pid) == ()


def test_a_process_that_is_gone_comes_back_as_it_was():
    ended = subprocess.Popen(["true"])
    ended.wait()
    owners = [Owner(ended.pid, how="fd"), Owner(os.getpid(), how="fd"), Owner(2**22 + 1)]  # above PID_MAX_LIMIT
    completed, gaps = process.enrich(owners)
    assert (completed[0], completed[2]) == (owners[0], owners[2])
    assert completed[1].pid == os.getpid()
    assert completed[1].name
    assert gaps == []


def test_a_zombie_still_has_a_name_and_a_parent():
    ended = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        owner = described(ended.pid)
        assert (owner.name, owner.ppid, owner.exe) == ("true", os.getpid(), None)
        assert not owner.command_line
    finally:
        ended.wait()


def test_a_kernel_thread_has_a_name_and_no_executable():
    kernel = [p.pid for p in psutil.process_iter() if p.ppid() == 2]
    need(bool(kernel), "kernel threads, which containers do not see")
    owner = described(kernel[0])
    assert owner.name == psutil.Process(kernel[0]).name()
    assert (owner.exe, owner.command_line, owner.ppid, owner.user) == (None, (), 2, "root")


SLEEP = shutil.which("sleep")


@pytest.fixture
def run_as(tmp_path):
    """Run a copy of sleep(1) under another file name."""
    need(SLEEP is not None, "sleep(1)")
    running = []

    def run(name, *arguments):
        path = os.path.join(os.fsencode(tmp_path), name)
        shutil.copy2(SLEEP, path)
        running.append(subprocess.Popen([b"sleep", b"120", *arguments], executable=path))
        return running[-1].pid, path

    yield run
    for one in running:
        one.kill()
        one.wait()


@pytest.mark.parametrize(
    "name",
    [b"short", b"exactly-fifteen", b"longer-than-fifteen-bytes", b"with blanks in its name", b"a) R 1 (b",
     "größer-als-fünfzehn".encode(), b"\xff\xfe-and-more-than-that", b"two\nlines"],
)  # fmt: skip
def test_names_and_executables(run_as, name):
    """The kernel cuts names at fifteen bytes; the executable has the rest, where it begins so."""
    pid, path = run_as(name)
    owner = described(pid)
    assert owner.exe == path.decode("utf-8", "replace")
    whole = name.decode("utf-8", "replace")
    cut = name[:15].decode("utf-8", "replace")
    assert owner.name == (whole if whole.startswith(cut) else cut)
    assert owner.name.encode()[:12] == whole.encode()[:12]


def test_a_name_that_the_process_chose_is_not_replaced_by_its_executables():
    script = "import ctypes\nctypes.CDLL(None).prctl(15, b'fifteen-bytes-x', 0, 0, 0)\nsay()\nwait()\n"
    with child(script) as one:
        assert described(one.pid).name == "fifteen-bytes-x"


@pytest.mark.parametrize("argument", ["", "a b", "two\nlines", "\udcff\udcfe", "日本", "\x1b[31m", "'\"", "x" * 5000])
def test_arguments_of_a_child(argument):
    with child(PLAIN, argument, "last") as one:
        shown = os.fsencode(argument).decode("utf-8", "replace")
        assert described(one.pid).command_line[-2:] == (shown, "last")


def test_a_command_line_is_read_within_bounds():
    """A process may write megabytes where its arguments are, and every reader has to wait for them."""
    with child(PLAIN, *["x" * 100_000] * 10) as one:
        line = described(one.pid).command_line
        assert line[0] == sys.executable
        assert 10_000 <= sum(map(len, line)) <= 200_000


def test_empty_arguments_at_the_end_are_kept():
    with child(PLAIN, "last", "", "") as one:
        assert described(one.pid).command_line[-3:] == ("last", "", "")


# --- other users ---------------------------------------------------------------------------------------------------

AS_NOBODY = f"os.setgid({NOBODY})\nos.setuid({NOBODY})\n"
NOT_DUMPABLE = "import ctypes\nassert ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0\n"
PUBLIC_AGAIN = "import ctypes\nassert ctypes.CDLL(None).prctl(4, 1, 0, 0, 0) == 0\n"


@pytest.mark.parametrize(
    "script",
    [AS_NOBODY, AS_NOBODY + PUBLIC_AGAIN, NOT_DUMPABLE + AS_NOBODY],
    ids=["after-setuid", "dumpable", "not-dumpable"],
)
def test_the_user_is_the_one_that_the_process_runs_as(script):
    """/proc/PID belongs to root when a process is not dumpable: its owner is not the user."""
    need(ROOT, "root, to become another user")
    with child("import ctypes\n" + script + PLAIN) as one:
        assert described(one.pid).user == psutil.Process(one.pid).username() == "nobody"


def test_the_effective_user_counts():
    need(ROOT, "root, to become another user")
    with child(f"os.setresuid(0, {NOBODY}, 0)\n" + PLAIN) as one:
        assert psutil.Process(one.pid).uids().effective == NOBODY
        assert described(one.pid).user == "nobody"


def test_a_user_without_a_name_is_a_number():
    need(ROOT, "root, to become another user")
    with child("os.setuid(54321)\n" + PLAIN) as one:
        assert described(one.pid).user == "54321"


def test_what_another_user_may_not_see_is_none(as_nobody):
    """Name, start, user and command line are public; the executable is not (proc_pid_exe(5))."""
    script = (
        "from portbook.enrich import process; from portbook.records import Owner; "
        f"o = process.enrich([Owner({os.getpid()})])[0][0]; "
        "print(repr((o.name, o.exe, o.user, o.ppid, o.started is None)))"
    )
    run = as_nobody(sys.executable, "-c", script)
    assert run.stderr == ""
    me = described(os.getpid())
    assert run.stdout.strip() == repr((me.name[:15], None, me.user, me.ppid, False))


# --- what it does at the moment ------------------------------------------------------------------------------------


def test_a_suspended_process():
    with child(PLAIN) as one:
        assert described(one.pid).state == "running"
        os.kill(one.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, one.pid, os.WSTOPPED | os.WNOWAIT)
        assert described(one.pid).state == "suspended"
        assert explain_state(described(one.pid)) == (
            "suspended (Ctrl-Z or SIGSTOP): it accepts and does not answer; "
            f"kill -CONT {one.pid} lets it run again, as does fg in its shell"
        )
        os.kill(one.pid, signal.SIGCONT)
        os.waitid(os.P_PID, one.pid, os.WCONTINUED | os.WNOWAIT)
        assert described(one.pid).state == "running"


ATTACH = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
assert libc.ptrace(16, pid, 0, 0) == 0, ctypes.get_errno()  # PTRACE_ATTACH
os.waitpid(pid, 0x40000000)  # __WALL
say()
wait()
"""


def test_a_traced_process():
    need(ROOT, "root, to trace a process that is not a child")
    with child(PLAIN) as one, child(ATTACH, str(one.pid)) as tracer:
        owner = process.add_origin(described(one.pid))
        assert (owner.state, owner.tracer) == ("traced", tracer.pid)
        assert f"stopped by pid {tracer.pid}" in explain_state(owner)


def test_a_zombie():
    ended = subprocess.Popen(["true"])
    try:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert described(ended.pid).state == "zombie"
    finally:
        ended.wait()


SPAWN = """
import os, sys
action = (os.POSIX_SPAWN_OPEN, 0, sys.argv[1], os.O_RDONLY, 0)
os.posix_spawn("/bin/true", ["true"], {}, file_actions=[action])
"""


def _wait_for(is_reached):
    last = time.monotonic() + 60
    while not is_reached():
        assert time.monotonic() < last
        time.sleep(0.01)


def test_an_uninterruptible_process(tmp_path):
    """vfork(2) keeps the parent waiting, uninterruptibly, until its child has called execve(2).

    The child of posix_spawn(3) blocks before that, in open(2) of a FIFO that nobody has opened for writing.
    """
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    parent = subprocess.Popen([sys.executable, "-I", "-S", "-c", SPAWN, str(fifo)])
    try:
        _wait_for(lambda: described(parent.pid).state == "uninterruptible")
        assert "no signal ends it" in explain_state(described(parent.pid))
    finally:
        with open(fifo, "wb"):
            parent.wait(60)


def test_a_moment_of_waiting_is_not_a_state(monkeypatch):
    """A process that reads from a disk is seen in that state now and then. That cannot be ordered: hence prepared."""
    lines = iter([b"9 (db) D " + b"0 " * 20, b"9 (db) D " + b"0 " * 20, b"9 (db) S " + b"0 " * 20])
    monkeypatch.setattr(linux, "_read", lambda path: next(lines) if path.endswith("stat") else b"")
    assert process.enrich([Owner(9)])[0][0].state == "running"


@pytest.mark.parametrize("comm", ["MainThread", "node-MainThread"])
def test_the_name_of_a_first_thread_is_not_that_of_the_process(comm):
    """Node.js 24 calls its first thread MainThread: prctl(2), PR_SET_NAME."""
    assert linux._full_name(comm, "/usr/bin/node", ("node", "app.js")) == "node"
    assert linux._full_name(comm, None, ("/opt/node", "app.js")) == "node"
    assert linux._full_name(comm, None, ()) == comm


def test_a_process_whose_first_thread_is_called_main_thread():
    script = "import ctypes\nctypes.CDLL(None).prctl(15, b'MainThread', 0, 0, 0)\nsay()\nwait()\n"
    with child(script) as one:
        assert described(one.pid).name == os.path.basename(os.path.realpath(sys.executable))


def test_parents_are_read_once():
    known = {}
    with child(PLAIN) as one, child(PLAIN) as other:
        first, second = process.parents(one.pid, known), process.parents(other.pid, known)
    assert [owner.pid for owner in first] == [owner.pid for owner in second]
    assert all(owner is again for owner, again in zip(first, second, strict=True))


# --- the line ------------------------------------------------------------------------------------------------------

FIELDS = b"S 123 9 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10"


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_any_name_in_the_stat_line(name):
    """comm is at most fifteen bytes, any but NUL (proc_pid_stat(5)); what follows it has no parenthesis."""
    assert linux._stat(b"42 (" + name + b") " + FIELDS) == (name.decode("utf-8", "replace"), 123, 98765, "running")


def test_a_parent_that_started_after_its_child_is_another_process(monkeypatch):
    """The parent ended and its pid was given away before it was looked at. That cannot be ordered: hence prepared."""
    lines = {
        500: b"500 (child) S 400 " + b"0 " * 17 + b"1000 0",
        400: b"400 (stranger) S 1 " + b"0 " * 17 + b"2000 0",
        1: b"1 (init) S 0 " + b"0 " * 17 + b"1 0",
    }

    def read(path):
        pid, _, name = path.removeprefix("/proc/").partition("/")
        if name == "stat":
            return lines[int(pid)]
        raise FileNotFoundError(path)

    monkeypatch.setattr(linux, "_read", read)
    assert "stranger" not in [owner.name for owner in process.parents(500)]
