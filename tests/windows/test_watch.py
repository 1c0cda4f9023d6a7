"""The watch on Windows: by polling, ended by Ctrl-Break, and as a service that the service control manager starts."""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from portbook.system import windows_service
from tests.listeners import COMMAND, SOURCE, portbook
from tests.windows.conftest import lacks
from tests.windows.test_iphlpapi import touch

LIMIT_S = 30.0
SERVICE = "portbook-test"
README = os.path.join(os.path.dirname(__file__), "..", "..", "packaging", "windows", "README.md")
# The embeddable Python of the laboratory does not read PYTHONPATH.
START = f"import sys; sys.path[:0] = [{SOURCE!r}, *{[path for path in sys.path if 'site-packages' in path]!r}]; "


class Reading:
    """The lines of a child, read all the time: a pipe of Windows cannot be waited for."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.append(json.loads(line))

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        return wait_until(lambda: find(self.events, event, **fields))


def find(events: list[dict[str, Any]], kind: str, **fields: object) -> dict[str, Any] | None:
    for event in list(events):
        if event["event"] == kind and all(event.get(name) == value for name, value in fields.items()):
            return event
    return None


def wait_until(fits: Callable[[], Any]) -> Any:
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        if found := fits():
            return found
        time.sleep(0.05)
    raise AssertionError("it did not happen")


@contextmanager
def watch(*arguments: str) -> Iterator[Reading]:
    process = subprocess.Popen(
        [*COMMAND, "watch", "--jsonl", "--interval", "0.1", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,
    )  # fmt: skip
    reading = Reading(process)
    try:
        yield reading
    finally:
        process.kill()
        process.wait(LIMIT_S)
        reading.thread.join(LIMIT_S)
        process.stdout.close()


def test_it_sees_by_polling_who_listens_and_keeps_a_history(tmp_path):
    history = tmp_path / "history.db"
    with watch("--store", str(history), "--grace", "0.1") as running:
        assert running.wait_for("started")["feed"] == "poll"
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = touch(server).getsockname()[1]
            opened = running.wait_for("opened", local_port=port, protocol="tcp")
            assert (opened["pid"], opened["local_address"], opened["netns"]) == (os.getpid(), "127.0.0.1", None)
        wait_until(lambda: find(running.events, "closed", local_port=port) or find(running.events, "short_lived"))
    done = portbook("history", f"{port}/tcp", "--events", "--jsonl", "--db", history)
    kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert kinds[0] == "opened", done


def test_a_policy_is_read_again_when_its_file_changes(tmp_path):
    """There is no SIGHUP here."""
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\ndefault = 'allow'\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = touch(server).getsockname()[1]
        with watch("--no-store", "--policy", str(policy)) as running:
            running.wait_for("present", local_port=port)
            policy.write_text(f"version = 1\ndefault = 'allow'\n[[deny]]\nport = {port}\n")
            running.wait_for("violation", local_port=port)
            policy.write_text("version = 1\n[[alow]]\n")
            assert ":2" in running.wait_for("policy_refused")["reason"]


@lacks("has no console where the streams are pipes")
def test_ctrl_break_ends_it():
    """Ctrl-C cannot be sent to one process group: GenerateConsoleCtrlEvent on learn.microsoft.com."""
    with watch("--no-store") as running:
        running.wait_for("started")
        running.process.send_signal(signal.CTRL_BREAK_EVENT)
        assert running.process.wait(LIMIT_S) == 130
        running.thread.join(LIMIT_S)
        assert running.events[-1]["event"] == "stopped"


def test_explain_and_self_test():
    explained = portbook("watch", "--explain")
    assert explained.returncode == 0, explained
    assert re.search("^poll: used here$", explained.stdout, re.MULTILINE)
    assert "bpf: does not work here" in explained.stdout
    tested = portbook("watch", "--self-test", "--interval", "0.1")
    assert (tested.returncode, tested.stdout.splitlines()[0]) == (0, "feed poll: sees"), tested


# --- the service ---------------------------------------------------------------------------------------------------


def sc(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(["sc", *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert not check or done.returncode == 0, (arguments, done)
    return done.stdout


def state() -> str:
    found = re.search(r"STATE\s*:\s*\d+\s+(\w+)", sc("query", SERVICE))
    return found[1] if found else ""


def order(control: int) -> None:
    """Send a control: ``sc control`` does it on Windows, and is missing in Wine's."""
    advapi32 = ctypes.WinDLL("advapi32", use_last_error=True)
    for name in ("OpenSCManagerW", "OpenServiceW"):
        getattr(advapi32, name).restype = ctypes.c_void_p
    manager = ctypes.c_void_p(advapi32.OpenSCManagerW(None, None, 1))
    service = ctypes.c_void_p(advapi32.OpenServiceW(manager, SERVICE, 0xF01FF))
    status = windows_service.ServiceState()
    assert advapi32.ControlService(service, control, ctypes.byref(status)), ctypes.get_last_error()
    for handle in (service, manager):
        advapi32.CloseServiceHandle(handle)


@pytest.fixture
def service(tmp_path) -> Iterator[Any]:
    """The service as the recipe makes it, with this Python and this portbook."""
    config = tmp_path / "watch.toml"
    log = tmp_path / "events.jsonl"
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\ndefault = 'allow'\n")
    config.write_text(
        f"policy = {str(policy)!r}\nstore = {str(tmp_path / 'history.db')!r}\ninterval = 0.1\n"
        f"[[sink]]\ntype = 'jsonl'\ntarget = {str(log)!r}\nseverity = 'quiet'\n"
    )
    script = tmp_path / "start.py"
    script.write_text(f"{START}sys.argv[0] = 'portbook'\nfrom portbook.__main__ import start\nstart()\n")
    program = f'"{sys.executable}" -I "{script}" watch --service --config "{config}"'
    sc("create", SERVICE, "binPath=", program, "start=", "demand")
    try:
        yield log, policy
    finally:
        sc("stop", SERVICE, check=False)
        sc("delete", SERVICE, check=False)


def events(log: Any) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_bytes().splitlines() if line.endswith(b"}")]


def test_the_service_manager_starts_it_orders_a_reload_and_stops_it(service):
    log, policy = service
    sc("start", SERVICE)
    wait_until(lambda: state() == "RUNNING")
    wait_until(lambda: find(events(log), "started"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = touch(server).getsockname()[1]
        wait_until(lambda: find(events(log), "opened", local_port=port))
    policy.write_text("version = 1\n[[alow]]\n")
    order(windows_service.CONTROL_PARAMCHANGE)
    wait_until(lambda: find(events(log), "policy_refused"))
    assert state() == "RUNNING"
    sc("stop", SERVICE)
    wait_until(lambda: state() == "STOPPED")
    assert events(log)[-1]["event"] == "stopped"


def test_what_nobody_started_as_a_service_is_refused():
    done = portbook("watch", "--service", "--no-store")
    assert (done.returncode, done.stdout) == (2, "")
    assert "service control manager" in done.stderr


def test_the_recipe_names_what_the_test_does():
    with open(README, encoding="utf-8") as file:
        text = file.read()
    assert "-I -m portbook watch --service --config" in text
    assert all(f"sc.exe {verb} portbook-watch" in text for verb in ("create", "start", "stop", "delete"))
