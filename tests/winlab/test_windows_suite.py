"""Run the Windows tests with Windows Python, under Wine, in a network namespace of their own.

The laboratory is made by ``tests/winlab/setup.sh``; README.md there says what it can show and what it cannot. The runs
themselves are in ``runs.py`` and go on in the background while the other tests run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.winlab.runs import LOCK_LIMIT_S, RUN_LIMIT_S

# What winrun and winns say when the tests were not run to their end.
TIME_OUT, IN_USE = 124, 75

LACKING = {8: 13, 10: 11}  # by version of Wine, each with its reason: grep for lacks( in tests/windows

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="Windows needs no Wine"),
    # They wait for the runs in the background, which have limits of their own.
    pytest.mark.timeout(LOCK_LIMIT_S + 2 * RUN_LIMIT_S + 60),
]


def wine_version() -> int:
    run = subprocess.run(["/usr/lib/wine/wine64", "--version"], capture_output=True, text=True, timeout=60, check=True)
    return int(re.match(r"wine-(\d+)", run.stdout)[1])


@pytest.fixture
def counts(background, request, capsys) -> dict[str, int]:
    """How many tests of the run had which outcome. Fails with the output of the run unless it succeeded.

    The numbers go into the report: a suite inside one test would look like one test.
    """
    code, output = background.wait(request.node.get_closest_marker("windows_run").args[0])
    print(output)
    assert code == 0, f"Windows pytest ended with {code}"
    numbers = re.findall(r"(\d+) (\w+)", output.splitlines()[-1])
    outcomes = {outcome: int(number) for number, outcome in numbers if outcome != "in"}
    with capsys.disabled():
        print("\n  Windows Python:", ", ".join(f"{number} {outcome}" for outcome, number in outcomes.items()))
    return outcomes


@pytest.mark.windows_run("suite")
def test_the_windows_suite(counts):
    assert counts["passed"] > 350
    assert counts["xfailed"] == LACKING[wine_version()]


@pytest.mark.windows_run("netstat")
def test_commands_are_run_and_their_answers_read(counts):
    assert counts["passed"] >= 20
    assert counts["skipped"] == 3  # netstat of Wine, twice, and netstat of Windows


@pytest.mark.windows_run("netsh")
def test_netsh_is_run_and_its_answers_read(counts):
    assert counts["passed"] >= 35
    assert counts["skipped"] == 2  # netsh of Wine, netsh of Windows


@pytest.mark.windows_run("excluded")
def test_an_excluded_port_is_told_from_one_that_is_held(counts):
    """Error 10013, and no socket that holds the port."""
    assert counts["passed"] >= 11
    assert "skipped" not in counts


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["-c", "raise SystemExit(3)"], 3), (["-t", "1", "-c", "import time; time.sleep(60)"], TIME_OUT)],
)
def test_the_laboratory_reports_how_a_program_ended(laboratory, arguments, code):
    done = subprocess.run(
        [str(laboratory / "winns"), str(laboratory / "winpy"), *arguments],
        timeout=LOCK_LIMIT_S + 120,
        check=False,
        capture_output=True,
    )
    assert done.returncode == code


def test_the_laboratory_is_used_by_one_at_a_time(laboratory):
    holder = subprocess.Popen([str(laboratory / "winns"), "cat"], stdin=subprocess.PIPE)
    try:
        assert_locked(laboratory)
    finally:
        holder.stdin.close()
        assert holder.wait(LOCK_LIMIT_S + 60) == 0  # others may use the laboratory first


def assert_locked(laboratory: Path) -> None:
    lock = str(laboratory / "lock")
    for _ in range(300):
        if subprocess.run(["flock", "-n", lock, "true"], check=False).returncode != 0:
            break
        time.sleep(0.1)
    command = [str(laboratory / "winns"), "true"]
    waited = subprocess.run(
        command, env=os.environ | {"WINLAB_LOCK_S": "0"}, check=False, capture_output=True, timeout=60
    )
    assert waited.returncode == IN_USE
    assert b"is in use" in waited.stderr
