"""A process that stays the one it was."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest

from portbook.enrich import process
from portbook.records import Owner
from portbook.stop.handle import is_same, linux, open_handle, portable
from tests.conftest import NOBODY
from tests.rounds import until
from tests.stop.test_stop import LISTEN, STUBBORN

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="tests/windows/test_stop.py is for Windows")
WAYS = [portable] + ([linux] if sys.platform == "linux" else [])


def gone_pid() -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


@pytest.mark.parametrize("way", WAYS)
def test_a_handle_opens_terminates_and_sees_the_end(start, way):
    server = start(LISTEN)
    handle = way.open_handle(server.pid)
    (owner,), _ = process.enrich([Owner(server.pid)])
    assert (handle.pid, is_same(owner.started, handle.started()), handle.ended()) == (server.pid, True, False)
    assert handle.request_end() == "SIGTERM"
    until(handle.ended, "its end")
    assert (server.process.wait(5), handle.started()) == (-signal.SIGTERM, None)
    with pytest.raises(ProcessLookupError):
        handle.request_end()
    handle.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_zombie_has_ended(start, way):
    """Nobody has waited for it yet: it keeps its pid and nothing else."""
    server = start(STUBBORN)
    handle = way.open_handle(server.pid)
    assert handle.force_end() == "SIGKILL"
    until(handle.ended, "its end")
    assert server.process.returncode is None
    handle.close()


@pytest.mark.parametrize("way", WAYS)
def test_there_is_no_handle_on_a_missing_process(way):
    with pytest.raises(ProcessLookupError):
        way.open_handle(gone_pid())


@pytest.mark.root
@pytest.mark.parametrize("way", WAYS)
def test_another_users_process_is_refused(way):
    from tests.components import need

    need(os.geteuid() == 0, "root, to be somebody else")
    child = os.fork()
    if child == 0:
        os.setuid(NOBODY)
        try:
            way.open_handle(os.getppid())
        except PermissionError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open(2)")
@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_a_kernel_without_pidfd_is_any_other_unix(start, monkeypatch, number):
    def fail(pid: int) -> int:
        raise OSError(number, os.strerror(number))

    server = start(LISTEN)
    monkeypatch.setattr(os, "pidfd_open", fail)
    handle = open_handle(server.pid)
    assert isinstance(handle, portable.PidHandle)
    handle.request_end()
    assert server.process.wait(5) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd_open(2)")
def test_a_handle_is_closed_when_nothing_may_be_sent(monkeypatch, start):
    def refuse(descriptor: int, number: int) -> None:
        raise PermissionError(errno.EPERM, "no")

    server = start(LISTEN)
    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    with pytest.raises(PermissionError):
        open_handle(server.pid)
    assert os.listdir("/proc/self/fd") == before
