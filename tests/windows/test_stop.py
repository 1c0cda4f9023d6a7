"""Ending the holder of a port by its process handle."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from msgspec.structs import replace

from portbook.enrich import process
from portbook.managers import control, supervisor
from portbook.records import Owner
from portbook.stop.handle import is_same, open_handle, windows
from portbook.stop.run import carry_out, plan_stop
from portbook.system import program
from tests.windows.conftest import WINE, lacks
from tests.windows.test_process import DENYING

LISTEN = """
import json, os, socket, sys, time
one = socket.create_server(("127.0.0.1", 0))
one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
print(json.dumps([os.getpid(), one.getsockname()[1]]), flush=True)
time.sleep(120)
"""


@pytest.fixture
def start():
    started = []

    def begin(script=LISTEN, flags=0):
        command = [sys.executable, "-c", script]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, creationflags=flags)
        started.append(child)
        pid, port = json.loads(child.stdout.readline())
        return child, pid, port

    yield begin
    for child in started:
        child.kill()
        child.wait(10)
        child.stdout.close()


def can_be_bound(port):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


NEW_CONSOLE, NEW_GROUP, DETACHED = 0x10, 0x200, 0x8  # CreateProcess, dwCreationFlags
STUBBORN = "import signal; [signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGBREAK)]" + LISTEN


NO_BREAK = lacks("answers ERROR_INVALID_HANDLE when Ctrl+Break is to be sent")


@pytest.mark.parametrize(
    ("flags", "asked_by"),
    [(NEW_CONSOLE, "Ctrl+C"), pytest.param(NEW_CONSOLE | NEW_GROUP, "Ctrl+Break", marks=NO_BREAK)],
)
def test_a_program_with_its_own_console_gets_the_request_there(start, flags, asked_by):
    """In a group of its own Ctrl+C is switched off (learn.microsoft.com, CreateProcess)."""
    child, pid, port = start(flags=flags)
    answer = carry_out(plan_stop(port))
    assert (answer.result, [(e.pid, e.fate, e.by) for e in answer.ended]) == ("stopped", [(pid, "ended", (asked_by,))])
    assert child.wait(10) != 1  # not terminated: Python had its say
    assert can_be_bound(port)


@pytest.mark.parametrize("flags", [0, DETACHED])
def test_a_program_that_cannot_be_asked_to_end_is_left_alone_without_force(start, flags):
    child, _, port = start(flags=flags)
    answer = carry_out(plan_stop(port), timeout_s=1)
    assert (answer.result, answer.ended[0].fate, answer.ended[0].by) == ("still-held", "untouched", ())
    assert "--force" in answer.note
    assert (child.poll(), can_be_bound(port)) == (None, False)
    answer = carry_out(plan_stop(port), timeout_s=1, force=True)
    assert (answer.result, answer.ended[0].fate, answer.ended[0].by) == ("stopped", "ended", ("TerminateProcess",))
    assert (child.wait(10), can_be_bound(port)) == (windows.ENDED_BY_US, True)


SHARED = """
import subprocess, sys, time
server = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(120)
"""


def test_a_shared_console_is_not_touched(start):
    """The other program in it would get the event too."""
    command = f"import sys; sys.argv.append({LISTEN!r}); exec({SHARED!r})"
    shell, pid, port = start(command, flags=NEW_CONSOLE)
    assert pid != shell.pid
    answer = carry_out(plan_stop(port), timeout_s=1)
    assert (answer.result, answer.ended[0].fate) == ("still-held", "untouched")
    assert (shell.poll(), can_be_bound(port)) == (None, False)
    assert carry_out(plan_stop(port), timeout_s=1, force=True).result == "stopped"
    assert shell.poll() is None


@lacks("ends a program that ignores Ctrl+C when its console is used", since=10)
def test_a_stubborn_program_ends_by_force(start):
    child, _, port = start(STUBBORN, flags=NEW_CONSOLE)
    answer = carry_out(plan_stop(port), timeout_s=1, force=True)
    asked_by, ended_by = answer.ended[0].by
    assert (answer.result, ended_by) == ("stopped", "TerminateProcess")
    assert asked_by == ("Ctrl+C" if WINE else "Ctrl+Break")
    assert child.wait(10) == windows.ENDED_BY_US


WINDOW = """
import ctypes, threading
user = ctypes.WinDLL("user32")
user.CreateWindowExW.restype = ctypes.c_void_p
user.CreateWindowExW.argtypes = [ctypes.c_uint, ctypes.c_wchar_p, ctypes.c_wchar_p, ctypes.c_uint, *[ctypes.c_int] * 4,
                                 *[ctypes.c_void_p] * 4]
def show():
    window = user.CreateWindowExW(0, "Static", "a window", 0x10CF0000, 0, 0, 9, 9, None, None, None, None)
    message = ctypes.create_string_buffer(64)
    ready.append(window)
    while user.GetMessageW(message, None, 0, 0) > 0 and user.IsWindow(ctypes.c_void_p(window)):
        user.DispatchMessageW(message)
    import os
    os._exit(17)
ready = []
threading.Thread(target=show, daemon=True).start()
while not ready:
    pass
assert ready[0], ctypes.GetLastError()
"""


@lacks("makes no windows without a display")
def test_a_window_is_closed(start):
    child, _, port = start(WINDOW + LISTEN)
    answer = carry_out(plan_stop(port))
    assert (answer.result, answer.ended[0].by) == ("stopped", ("WM_CLOSE",))
    assert child.wait(10) == 17


# --- who it is -----------------------------------------------------------------------------------------------------


def test_a_handle_knows_when_its_process_started(start):
    child, pid, _ = start()
    (owner,), _ = process.enrich([Owner(pid)])
    handle = open_handle(pid)
    assert is_same(owner.started, handle.started())
    assert not handle.ended()
    handle.force_end()
    child.wait(10)
    assert (handle.ended(), handle.started()) == (True, None)
    handle.close()


def test_there_is_no_handle_on_a_missing_process():
    with pytest.raises(ProcessLookupError):
        open_handle(99999 * 4)


def test_another_process_with_the_same_pid_is_not_ended(start):
    child, _, port = start()
    time.sleep(0.05)
    other, other_pid, _ = start()
    plan = plan_stop(port)
    (target,) = plan.targets
    wrong = replace(target, holder=replace(target.holder, owner=replace(target.holder.owner, pid=other_pid)))
    answer = carry_out(replace(plan, targets=(wrong,)), force=True, timeout_s=0.2)
    assert [e.fate for e in answer.ended] == ["replaced"]
    assert (child.poll(), other.poll()) == (None, None)


def test_who_has_ended_meanwhile_is_no_failure(start):
    child, _, port = start()
    plan = plan_stop(port)
    child.kill()
    child.wait(10)
    answer = carry_out(plan)
    assert (answer.result, [e.fate for e in answer.ended]) == ("stopped", ["gone"])


@pytest.fixture
def denying():
    """What test_process.py has a process do to itself, without its end."""
    return DENYING.partition("print(")[0]


def test_a_process_that_may_not_be_opened_is_refused(start, denying):
    child, _, port = start(denying + LISTEN)
    plan = plan_stop(port)
    (refusal,) = plan.forbidden(("override",))
    assert (refusal.code, refusal.hint) == ("not-permitted", "run as administrator")
    assert carry_out(plan, force=True, overrides=("override",)).result == "refused"
    assert child.poll() is None


def test_this_process_is_never_ended():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        plan = plan_stop(ours.getsockname()[1])
        assert [r.code for r in plan.forbidden(("override", "via-manager"))] == ["self"]


# --- the command ---------------------------------------------------------------------------------------------------

START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from portbook.__main__ import main; sys.exit(main())"


def portbook(*arguments):
    source = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", "src"))
    command = [sys.executable, "-c", START, source, "stop", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60)


def test_the_command_asks_first_and_ends_with_yes(start):
    child, _, port = start()
    done = portbook(port)
    assert (done.returncode, child.poll()) == (1, None)
    assert b"--yes" in done.stdout
    done = portbook(port, "--yes", "--force", "--timeout", "0.2", "--json")
    assert (done.returncode, json.loads(done.stdout)["result"]) == (0, "stopped")


def test_an_ancestor_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        ours.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        done = portbook(ours.getsockname()[1], "--yes", "--force", "--json")
    (refusal,) = json.loads(done.stdout)["refusals"]
    assert (done.returncode, refusal["code"]) == (1, "ancestor")


def test_the_service_control_manager_is_called_by_the_systems_own_program():
    path = program.find("sc.exe")
    assert path.lower().startswith(os.environ["SYSTEMROOT"].lower() + "\\system32")
    assert control.run_command(("sc.exe", "query", "eventlog"), 20).code == 0
    nobody = supervisor.Supervisor("windows-service", "portbook-test-nobody", ("Stop-Service",))
    assert control.stop_by_manager(nobody, 20).code not in (0, None)
