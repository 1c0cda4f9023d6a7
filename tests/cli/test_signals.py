"""Signals as flags, sent by a real parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

import pytest

if sys.platform == "win32":
    pytest.skip("Windows has other signals: tests/windows", allow_module_level=True)

from portbook.cli.signals import Signals
from tests.listeners import SOURCE

ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE}


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


def is_readable(signals: Signals) -> bool:
    return bool(select.select([signals.fileno()], [], [], 0)[0])


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGQUIT"])
def test_a_signal_that_ends_sets_a_flag_and_a_second_one_ends_at_once(name):
    with Signals() as signals:
        assert (signals.ended_by, is_readable(signals)) == (None, False)
        send(name)
        assert (signals.ended_by, is_readable(signals)) == (getattr(signal, name), True)
        with pytest.raises(KeyboardInterrupt if name == "SIGINT" else SystemExit) as second:
            send(name)
        if name != "SIGINT":
            assert second.value.code == 128 + getattr(signal, name)


def test_a_hangup_asks_for_a_reload_each_time():
    with Signals() as signals:
        for _ in range(2):
            send("SIGHUP")
            assert signals.reload
            signals.reload = False
            signals.drain()
            assert not is_readable(signals)
            signals.drain()
        assert signals.ended_by is None


def test_handlers_are_those_of_before_afterwards():
    names = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGTSTP")
    before = [signal.getsignal(getattr(signal, name)) for name in names]
    with Signals(suspends=True):
        assert all(signal.getsignal(getattr(signal, name)) not in before for name in names)
    assert [signal.getsignal(getattr(signal, name)) for name in names] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_a_shell_has_ignored_for_the_background_stays_ignored_but_nohup_does_not_forbid_a_reload():
    code = (
        "import os, signal; from portbook.cli.signals import Signals\n"
        "with Signals() as s:\n"
        "    os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGHUP); print(s.ended_by, s.reload)"
    )
    shell = "trap '' INT HUP; exec \"$@\""
    done = subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", code],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("None True\n", "")
