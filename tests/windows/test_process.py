"""Processes: this one, its children, one that denies access, one that is gone."""

from __future__ import annotations

import ctypes
import getpass
import os
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from portbook.enrich import process
from portbook.enrich.process import portable, windows
from portbook.records import Owner
from tests.windows.conftest import WINE, lacks

WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def child(script: str = WAIT, *arguments: str):
    """A Python process that runs ``script`` and waits; ended with the block."""
    command = [sys.executable, "-c", script, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout.readline().strip() == b"ready"
        yield started
        started.communicate(timeout=20)


def enrich_one(pid: int) -> Owner:
    (owner,), gaps = windows.enrich([Owner(pid, how="iphlpapi")])
    assert gaps == []
    return owner


def test_this_process():
    owner = enrich_one(os.getpid())
    assert owner.name.lower() == "python.exe"
    assert os.path.samefile(owner.exe, sys.executable)
    assert owner.user.rpartition("\\")[2].lower() == getpass.getuser().lower()
    assert "\\" in owner.user
    assert owner.ppid == psutil.Process().ppid()  # os.getppid() ends the whole process under Wine 8
    assert owner.how == "iphlpapi"
    assert timedelta(0) <= datetime.now(UTC) - owner.started < timedelta(minutes=30)


def test_a_child_started_after_this_process():
    with child() as started:
        mine, its = enrich_one(os.getpid()), enrich_one(started.pid)
        assert its.ppid == os.getpid()
        assert mine.started < its.started <= datetime.now(UTC) + timedelta(seconds=1)


@lacks("does not know ProcessCommandLineInformation")
def test_a_command_line():
    script = WAIT
    with child(script, "a b", 'say "c"', "") as started:
        assert enrich_one(started.pid).command_line[1:] == ("-c", script, "a b", 'say "c"', "")


def test_a_command_line_as_windows_answers(monkeypatch):
    """The same without the system: the answer is a UNICODE_STRING and its text in one buffer."""
    text = '"C:\\a b.exe" -x'

    def answer(handle, number, buffer, size, needed):
        head = ctypes.sizeof(windows.UNICODE_STRING)
        string = windows.UNICODE_STRING(2 * len(text), 2 * len(text), ctypes.addressof(buffer) + head)
        ctypes.memmove(buffer, bytes(string) + text.encode("utf-16-le"), head + 2 * len(text))
        return 0 if number == 60 else 1

    system = windows._System()
    monkeypatch.setattr(system.call, "NtQueryInformationProcess", answer, raising=False)
    assert system.complete(Owner(os.getpid())).command_line == ("C:\\a b.exe", "-x")


@pytest.mark.skipif(not WINE, reason="Windows reports it")
def test_a_command_line_that_windows_does_not_return_is_none():
    assert enrich_one(os.getpid()).command_line is None


@pytest.mark.parametrize(
    ("line", "arguments"),
    [
        ("", ()),
        ("   ", ()),
        ('"C:\\Program Files\\a.exe" -x "b c"', ("C:\\Program Files\\a.exe", "-x", "b c")),
        ("a.exe ü \U0001f600", ("a.exe", "ü", "\U0001f600")),
    ],
)
def test_a_command_line_is_split_as_windows_does(line, arguments):
    assert windows._System()._arguments(line) == arguments


@pytest.mark.parametrize(("pid", "name"), [(0, "System Idle Process"), (4, "System")])
def test_the_processes_without_an_executable_have_a_name(pid, name, monkeypatch):
    if WINE:  # which has no such processes: put them in the list
        listed = windows._System._list
        extra = {0: windows.Process("System Idle Process", 0, 0), 4: windows.Process("System", 0, 0)}
        monkeypatch.setattr(windows._System, "_list", lambda self: listed(self) | extra)
    (owner,), gaps = windows.enrich([Owner(pid)])
    assert (owner.name, owner.exe, gaps) == (name, None, [])


def test_processes_that_have_ended_are_counted_once():
    with child() as started:
        pid = started.pid
    owners, gaps = windows.enrich([Owner(pid), Owner(os.getpid()), Owner(pid, service_tag=5)])
    assert owners[0] == Owner(pid)
    assert owners[1].name
    (gap,) = gaps
    assert (gap.what, gap.count) == ("process", 1)


# A discretionary access list without entries denies everything to everybody, which is how other users' processes look
# to one that is not elevated (learn.microsoft.com, DACLs and ACEs).
DENYING = """
import ctypes, sys
advapi32, kernel32 = ctypes.WinDLL("advapi32"), ctypes.WinDLL("kernel32")
kernel32.GetCurrentProcess.restype = ctypes.c_void_p
acl, sd = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
assert advapi32.InitializeAcl(acl, 64, 2)
assert advapi32.InitializeSecurityDescriptor(sd, 1)
assert advapi32.SetSecurityDescriptorDacl(sd, 1, acl, 0)
advapi32.SetKernelObjectSecurity.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p]
assert advapi32.SetKernelObjectSecurity(kernel32.GetCurrentProcess(), 4, sd)
print("ready", flush=True); sys.stdin.read()
"""


def test_a_process_that_denies_access_keeps_its_name():
    with child(DENYING) as started:
        (denied, mine), gaps = windows.enrich([Owner(started.pid), Owner(os.getpid())])
    assert denied.name.lower() == "python.exe"
    assert denied.ppid == os.getpid()
    assert denied.started is not None
    assert (denied.exe, denied.user, denied.command_line) == (None, None, None)
    assert mine.exe
    (gap,) = gaps
    assert (gap.what, gap.count, gap.hint) == ("process", 1, "run as administrator")
    assert "denied" in gap.why


# --- parents -------------------------------------------------------------------------------------------------------

PARENTS = """
import os, sys
sys.path.insert(0, sys.argv[1])
from portbook.enrich.process import parents
for owner in parents(os.getpid()): print(owner.pid, owner.name, owner.started.timestamp())
"""


def test_parents():
    source = os.path.dirname(os.path.dirname(os.path.dirname(process.__path__[0])))
    command = [sys.executable, "-c", PARENTS, source]
    printed = subprocess.run(command, capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL).stdout
    chain = [line.split() for line in printed.decode().splitlines()]
    assert int(chain[0][0]) == os.getpid()
    assert chain[0][1].lower() == "python.exe"
    starts = [float(line[2]) for line in chain]
    assert starts == sorted(starts, reverse=True)


def test_parents_of_a_process_that_does_not_exist():
    with child() as started:
        pid = started.pid
    assert windows.parents(pid) == ()


# --- the ways to list processes ------------------------------------------------------------------------------------


def test_both_calls_list_the_same_processes():
    system = windows._System()
    with child() as started:
        kernel, toolhelp = system._from_kernel(), system._from_toolhelp()
        for pid in (started.pid, os.getpid()):
            assert kernel[pid][:2] == toolhelp[pid][:2]
            assert toolhelp[pid].created == 0


@pytest.mark.parametrize("failure", [lambda self: {}, lambda self: (_ for _ in ()).throw(OSError("no"))])
def test_the_second_call_is_used_when_the_first_fails(monkeypatch, failure):
    monkeypatch.setattr(windows._System, "_from_kernel", failure)
    owner = enrich_one(os.getpid())
    assert owner.name.lower() == "python.exe"
    assert timedelta(0) <= datetime.now(UTC) - owner.started < timedelta(minutes=30)  # from GetProcessTimes


def test_without_either_call_owners_stay_as_they_were(monkeypatch):
    def fail(self):
        raise OSError("no")

    monkeypatch.setattr(windows._System, "_list", fail)
    owners, (gap,) = windows.enrich([Owner(1), Owner(2)])
    assert owners == [Owner(1), Owner(2)]
    assert (gap.what, gap.count) == ("process", 2)
    assert windows.parents(1) == ()


def test_a_buffer_that_is_too_small_grows(monkeypatch):
    monkeypatch.setattr(windows, "FIRST_SIZE", 64)
    assert os.getpid() in windows._System()._from_kernel()


def test_an_account_that_cannot_be_looked_up_is_its_number():
    nobody = bytes.fromhex("0105000000000005150000000102030405060708090a0b0c0d0e0f10")
    system = windows._System()
    assert system._account(nobody) is None
    assert system._sid_text(nobody).startswith("S-1-5-21-")


def test_a_known_sid_is_an_account():
    everyone = bytes.fromhex("010100000000000100000000")
    assert windows._System()._account(everyone)


def test_no_handle_is_left_open():
    count = ctypes.c_uint32(0)
    kernel32 = ctypes.WinDLL("kernel32")
    kernel32.GetCurrentProcess.restype = ctypes.c_void_p
    kernel32.GetProcessHandleCount.argtypes = [ctypes.c_void_p, ctypes.c_void_p]

    def handles() -> int:
        assert kernel32.GetProcessHandleCount(kernel32.GetCurrentProcess(), ctypes.byref(count))
        return count.value

    enrich_one(os.getpid())
    before = handles()
    for _ in range(20):
        enrich_one(os.getpid())
    assert handles() <= before + 2


# --- the interface and the portable way ----------------------------------------------------------------------------


def test_the_interface_chooses_this_platform():
    (owner,), _ = process.enrich([Owner(os.getpid())])
    assert owner.user


def test_the_portable_module_survives_what_psutil_cannot_do_here():
    (owner,), gaps = portable.enrich([Owner(os.getpid(), name="known before")])
    assert gaps == []
    assert owner.ppid == psutil.Process().ppid()
    assert owner.command_line
    assert owner.user
    assert owner.name in ("known before", "python.exe")  # under Wine psutil's name() and exe() raise OSError 87
    assert timedelta(0) <= datetime.now(UTC) - owner.started < timedelta(minutes=30)


def test_the_portable_module_counts_processes_that_have_ended():
    with child() as started:
        pid = started.pid
    owners, (gap,) = portable.enrich([Owner(pid)])
    assert owners == [Owner(pid)]
    assert gap.count == 1


def test_the_portable_parents():
    with child() as started:
        assert [o.pid for o in portable.parents(started.pid)][:1] == [os.getpid()]
