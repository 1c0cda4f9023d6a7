"""Processes through psutil, asked of this machine."""

from __future__ import annotations

import getpass
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import psutil
import pytest

from portbook.enrich import process
from portbook.enrich.process import portable
from portbook.records import Owner


def test_this_process():
    (owner,), gaps = portable.enrich([Owner(os.getpid(), how="psutil")])
    assert gaps == []
    assert owner.name
    assert os.path.samefile(owner.exe, os.path.realpath(sys.executable))
    assert owner.user == getpass.getuser()
    assert owner.command_line
    assert owner.ppid == os.getppid()
    assert owner.how == "psutil"
    assert timedelta(0) <= datetime.now(UTC) - owner.started < timedelta(hours=12)


def test_a_process_that_has_ended_stays_as_it_was_and_is_counted():
    gone = subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.DEVNULL)
    gone.wait(60)
    owners, (gap,) = portable.enrich([Owner(gone.pid, service_tag=5), Owner(os.getpid())])
    assert owners[0] == Owner(gone.pid, service_tag=5)
    assert owners[1].name
    assert (gap.what, gap.count) == ("process", 1)


@pytest.mark.parametrize(
    "error", [OSError(87, "The parameter is incorrect"), psutil.AccessDenied(1), psutil.ZombieProcess(1)]
)
@pytest.mark.parametrize("field", ["name", "exe", "username", "create_time", "cmdline", "ppid"])
def test_each_field_may_be_refused_by_itself(monkeypatch, error, field):
    def fail(self):
        raise error

    monkeypatch.setattr(psutil.Process, field, fail)
    (owner,), gaps = portable.enrich([Owner(os.getpid(), name="known")])
    values = {"exe": owner.exe, "username": owner.user, "create_time": owner.started}
    values |= {"cmdline": owner.command_line, "ppid": owner.ppid}
    assert gaps == []
    assert owner.name
    assert [name for name, value in values.items() if value is None] == [name for name in values if name == field]


REFUSED_START = """
import os, psutil
from psutil import _psplatform
from portbook.enrich.process import portable
from portbook.records import Owner
def fail(self, *_, **__):
    raise OSError(87, "The parameter is incorrect")
_psplatform.Process.create_time = fail
(owner,), gaps = portable.enrich([Owner(os.getpid())])
print(bool(owner.name and owner.exe and owner.user and owner.command_line and owner.ppid), owner.started, gaps)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="replaces a method of the platform's own class")
def test_a_start_time_that_the_system_refuses_costs_only_the_start_time():
    """In every version of psutil the constructor reads it."""
    run = subprocess.run([sys.executable, "-c", REFUSED_START], capture_output=True, text=True, timeout=60, check=False)
    assert run.stdout == "True None []\n", run.stderr


def test_without_a_name_the_executable_is_the_name(monkeypatch):
    monkeypatch.setattr(psutil.Process, "name", lambda self: "")
    monkeypatch.setattr(psutil.Process, "exe", lambda self: "C:\\Program Files\\acme.exe")
    (owner,), _ = portable.enrich([Owner(os.getpid())])
    assert owner.name == "acme.exe"


def test_parents():
    chain = portable.parents(os.getpid())
    assert chain[0].pid == os.getppid()
    assert len({o.pid for o in chain}) == len(chain)


def test_parents_that_started_later_are_no_parents(monkeypatch):
    def complete(owner):
        return Owner(owner.pid, ppid=owner.pid + 1, started=datetime(2000 + owner.pid, 1, 1, tzinfo=UTC))

    monkeypatch.setattr(portable, "_complete", complete)
    assert portable.parents(1) == ()


def test_parents_are_bounded_and_do_not_go_in_circles(monkeypatch):
    monkeypatch.setattr(portable, "_complete", lambda owner: Owner(owner.pid, ppid=owner.pid % 3 + 1))
    assert [o.pid for o in portable.parents(1)] == [2, 3]
    monkeypatch.setattr(portable, "_complete", lambda owner: Owner(owner.pid, ppid=owner.pid + 1))
    assert len(portable.parents(1)) == portable.MOST_PARENTS


def test_parents_of_a_process_that_does_not_exist():
    assert portable.parents(2**22 + 1) == ()


@pytest.mark.parametrize(("platform", "module"), [("linux", "linux"), ("windows", "windows"), ("macos", "portable")])
def test_the_interface_chooses_by_platform(monkeypatch, platform, module):
    monkeypatch.setattr(process, "PLATFORM", platform)
    assert process._module().__name__ == f"portbook.enrich.process.{module}"
