"""Processes as portbook describes them, against psutil, the kernel's files, and what a test knows of its children."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich import process
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


# --- the line ------------------------------------------------------------------------------------------------------

FIELDS = b"S 123 9 9 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 10"


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_any_name_in_the_stat_line(name):
    """comm is at most fifteen bytes, any but NUL (proc_pid_stat(5)); what follows it has no parenthesis."""
    assert linux._stat(b"42 (" + name + b") " + FIELDS) == (name.decode("utf-8", "replace"), 123, 98765)


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
