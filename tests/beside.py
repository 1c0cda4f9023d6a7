"""Tests that wait more than they compute run in a second process, beside the others.

The tests of the scanner take minutes in which they wait for answers that do not come, those of stop for a restart that
does not come. When they are selected together with others, as in a run of all tests, root on Linux runs them in a
second pytest, in a network namespace of its own: neither process sees a socket of the other there. Their reports are
shown here as of any other test, at the end, in the order of the tests. Alone, as in ``pytest tests/scanner``, they run
as every test does.

No process runs two tests at once, and what reads the whole machine stays in the first one.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

BESIDE = (
    "tests/scanner/",
    "tests/e2e/test_peers.py",
    "tests/e2e/test_reach.py",
    "tests/e2e/test_scan_cli.py",
    "tests/netconfig/windows/test_netsh_run.py",
    "tests/stop/test_dialogue.py",
    "tests/stop/test_handover.py",
    "tests/stop/test_stop.py",
    "tests/system/test_program.py",
    "tests/test_dialing.py",
    "tests/test_waiting.py",
)
SECOND = "PORTBOOK_TEST_BESIDE"  # in the environment of the second process: the directory for both files
SELECTED, REPORTS, OUTPUT = "selected", "reports", "output"
COMMAND = 'ip link set lo up && exec "$@"'
END_S = 60


def is_beside(item: pytest.Item) -> bool:
    return item.nodeid.startswith(BESIDE)


class First:
    """The part of the process that shows all reports."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._awaited: set[str] = set()
        self._arrived: dict[str, list[pytest.TestReport]] = {}
        self._directory = Path()
        self._reports: Iterator[pytest.TestReport | None] = iter(())
        self._process: subprocess.Popen[bytes] | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put them at the end: then most of their reports are there."""
        there, here = [i for i in items if is_beside(i)], [i for i in items if not is_beside(i)]
        if there and here and can_be_beside(self._config):
            items[:] = here + there
            self._awaited = {item.nodeid for item in there}

    def pytest_report_collectionfinish(self) -> list[str]:
        return [f"{len(self._awaited)} of them run beside the others: tests/beside.py"] if self._awaited else []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Start the second process."""
        if not self._awaited:
            return
        self._directory = Path(tempfile.mkdtemp(prefix="portbook-beside-"))
        files = dict.fromkeys(str(item.path) for item in session.items if item.nodeid in self._awaited)
        (self._directory / SELECTED).write_text("\0".join(self._awaited), encoding="utf-8")
        (self._directory / REPORTS).touch()
        self._reports = read_reports(self._config, self._directory / REPORTS)
        command = ["setpriv", "--pdeathsig", "INT", "unshare", "--net", "sh", "-c", COMMAND, "sh"]
        command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
        with open(self._directory / OUTPUT, "wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._config.rootpath,
                env={**os.environ, SECOND: str(self._directory)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the first process, which ends this one
            )

    @pytest.hookimpl(tryfirst=True, optionalhook=True)
    def pytest_timeout_set_timer(self, item: pytest.Item) -> bool | None:
        """No limit here: the process that runs the test has one."""
        return True if item.nodeid in self._awaited else None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Show the reports of a test that ran in the second process."""
        if item.nodeid not in self._awaited:
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._wait_for(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        self._awaited.remove(item.nodeid)
        return True

    def _wait_for(self, item: pytest.Item) -> list[pytest.TestReport]:
        """The reports of a test: of its setup, of its call if there was one, and at last of its teardown."""
        found = self._arrived.setdefault(item.nodeid, [])
        assert self._process is not None
        while not (found and found[-1].when == "teardown"):
            has_ended = self._process.poll() is not None
            report = next(self._reports)
            if report is not None:
                self._arrived.setdefault(report.nodeid, []).append(report)
            elif has_ended:
                output = (self._directory / OUTPUT).read_text(encoding="utf-8", errors="replace")
                return [*found, lost(item, f"the second process ended with {self._process.returncode}:\n{output}")]
            else:
                time.sleep(0.05)
        return self._arrived.pop(item.nodeid)

    def pytest_sessionfinish(self) -> None:
        """End the second process, also after Ctrl-C and after the first failure of ``-x``."""
        if self._process is None:
            return
        if self._awaited:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(END_S)
        shutil.rmtree(self._directory, ignore_errors=True)


class Second:
    """The part of the process that runs them: it hands over its reports."""

    def __init__(self, config: pytest.Config, directory: Path) -> None:
        self._config = config
        self._selected = set((directory / SELECTED).read_text(encoding="utf-8").split("\0"))
        self._reports = directory / REPORTS

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.nodeid in self._selected]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._reports, "ab") as file:
            pickle.dump(data, file)


def can_be_beside(config: pytest.Config) -> bool:
    """Not where somebody looks on, where another plugin shares out the tests, or without the right to a namespace."""
    option = config.option
    if option.collectonly or option.usepdb or option.capture == "no" or hasattr(config, "workerinput"):
        return False
    tools = ("ip", "setpriv", "unshare")
    return sys.platform == "linux" and os.geteuid() == 0 and all(map(shutil.which, tools))


def read_reports(config: pytest.Config, path: Path) -> Iterator[pytest.TestReport | None]:
    """Each report as it comes; None while there is no further one."""
    with open(path, "rb") as file:
        while True:
            place = file.tell()
            data = load(file)
            if data is None:
                file.seek(place)
                yield None
            else:
                yield config.hook.pytest_report_from_serializable(config=config, data=data)


def load(file: BinaryIO) -> dict[str, object] | None:
    """The next report; None if it is not there, or not yet whole."""
    try:
        return pickle.load(file)
    except (EOFError, pickle.UnpicklingError):
        return None


def lost(item: pytest.Item, why: str) -> pytest.TestReport:
    return pytest.TestReport(
        nodeid=item.nodeid, location=item.location, keywords={}, outcome="failed", longrepr=why, when="setup"
    )


def register(config: pytest.Config) -> None:
    directory = os.environ.pop(SECOND, None)
    if directory is None:
        config.pluginmanager.register(First(config), "portbook-beside")
    else:
        config.pluginmanager.register(Second(config, Path(directory)), "portbook-beside")
