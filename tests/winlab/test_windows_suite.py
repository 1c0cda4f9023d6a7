"""Run the Windows tests with Windows Python, under Wine, in a network namespace of their own.

The laboratory is made by ``tests/winlab/setup.sh``; README.md there says what it can show and what it cannot.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components import need
from tests.test_dialing import MADE_BEFORE, make_certificate

ROOT = Path(__file__).parents[2]
LAB = Path(os.environ.get("PORTBOOK_WINLAB") or ROOT / ".winlab")
# The pure halves too: what is parsed must not depend on the platform.
EVERYWHERE = [f"tests/sources/test_{name}.py" for name in ("iphlpapi", "netstat", "psutil_")]
EVERYWHERE += [f"tests/netconfig/windows/test_{name}.py" for name in ("netsh", "httpsys", "portproxy")]
EVERYWHERE += ["tests/scanner/tcp/test_engine.py", "tests/test_dialing.py"]
EVERYWHERE += ["tests/bind/test_choice.py", "tests/bind/test_endpoints.py", "tests/managers/test_relay.py"]
EVERYWHERE += [f"tests/system/test_{name}.py" for name in ("files", "program", "winapi")]
EVERYWHERE += [f"tests/verdict/test_{name}.py" for name in ("judge", "rules")]
LIMIT_S = 240
REPLAYED = ("netstat", "tasklist", "netsh")
# What winrun and winns say when the tests were not run to their end.
TIME_OUT, IN_USE = 124, 75

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Windows needs no Wine")


@pytest.fixture(scope="module")
def lab() -> Path:
    need((LAB / "prefix" / "portbook-ready").exists(), f"a laboratory in {LAB}: run tests/winlab/setup.sh")
    need(os.geteuid() == 0, "root, for a network namespace")
    return LAB


def windows_path(path: Path) -> str:
    return "Z:" + str(path.resolve()).replace("/", "\\")


def run_pytest(lab: Path, *tests: str, **variables: str) -> dict[str, int]:
    """Run tests in Windows Python; return how many came out how. Fails with their output unless all is well."""
    options = ["-q", "-p", "no:cacheprovider", "-c", windows_path(ROOT / "pyproject.toml"), "-o", "pythonpath=src"]
    options += ["--rootdir", windows_path(ROOT), "--confcutdir", windows_path(ROOT / "tests" / "windows")]
    python = [str(lab / "winns"), str(lab / "winpy"), "-t", str(LIMIT_S), "-X", "utf8"]
    done = subprocess.run(
        [*python, "-m", "pytest", *options, *(windows_path(ROOT / test) for test in tests)],
        env=os.environ | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=3 * LIMIT_S,  # another run may have to end first: winns waits for it
        check=False,
    )
    output = done.stdout.decode("utf-8", "replace").replace("\r", "")
    print(output)
    assert done.returncode == 0, f"Windows pytest ended with {done.returncode}"
    return {what: int(number) for number, what in re.findall(r"(\d+) (\w+)", output.splitlines()[-1])}


def show(capsys: pytest.CaptureFixture[str], counts: dict[str, int]) -> None:
    """Put the numbers into the report: a suite inside one test would look like one test."""
    with capsys.disabled():
        print("\n  Windows Python:", ", ".join(f"{number} {what}" for what, number in counts.items() if what != "in"))


def test_the_windows_suite(lab, capsys, tmp_path):
    make_certificate(tmp_path)  # there is no openssl in the laboratory
    counts = run_pytest(lab, "tests/windows", *EVERYWHERE, **{MADE_BEFORE: windows_path(tmp_path)})
    show(capsys, counts)
    assert counts["passed"] > 350
    assert counts["xfailed"] == 8  # each with its reason: grep for lacks( in tests/windows


@pytest.fixture
def replaying(lab) -> Iterator[dict[str, str]]:
    """Put programs that replay files in the place of commands, and the commands back in the end."""
    system32 = lab / "prefix" / "drive_c" / "windows" / "system32"
    try:
        for name in REPLAYED:
            kept, program = lab / f"{name}.exe.wine", system32 / f"{name}.exe"
            if not kept.exists():
                shutil.copy2(program, kept)
            script = str(ROOT / "tests" / "winlab" / "replay.py")
            subprocess.run([sys.executable, str(lab / "mkfake"), str(program), script], check=True, timeout=60)
        overrides = ",".join(f"{name}.exe" for name in REPLAYED) + "=n"  # else Wine runs its own
        yield {"PORTBOOK_REPLAY": "1", "WINLAB_OVERRIDES": overrides}
    finally:
        for name in REPLAYED:
            shutil.copy2(lab / f"{name}.exe.wine", system32 / f"{name}.exe")


def test_commands_are_run_and_their_answers_read(lab, replaying, capsys):
    counts = run_pytest(lab, "tests/windows/test_netstat.py", **replaying)
    show(capsys, counts)
    assert counts["passed"] >= 20
    assert counts["skipped"] == 2  # netstat of Wine, netstat of Windows


def test_netsh_is_run_and_its_answers_read(lab, replaying, capsys):
    counts = run_pytest(lab, "tests/windows/test_netsh.py", **replaying)
    show(capsys, counts)
    assert counts["passed"] >= 35
    assert counts["skipped"] == 2  # netsh of Wine, netsh of Windows


def test_an_excluded_port_is_told_from_one_that_is_held(lab, capsys):
    """The laboratory refuses ports below WINLAB_MINPORT as Windows refuses excluded ones: 10013, and nothing to see."""
    counts = run_pytest(lab, "tests/windows/test_why.py", WINLAB_MINPORT="4700", PORTBOOK_EXCLUDED="4000-4699")
    show(capsys, counts)
    assert counts["passed"] >= 11
    assert "skipped" not in counts


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["-c", "raise SystemExit(3)"], 3), (["-t", "3", "-c", "import time; time.sleep(60)"], TIME_OUT)],
)
def test_the_laboratory_tells_how_a_program_ended(lab, arguments, code):
    done = subprocess.run(
        [str(lab / "winns"), str(lab / "winpy"), *arguments], timeout=120, check=False, capture_output=True
    )
    assert done.returncode == code


def test_the_laboratory_is_used_by_one_at_a_time(lab):
    holder = subprocess.Popen([str(lab / "winns"), "sleep", "3"], stdin=subprocess.DEVNULL)
    try:
        assert_locked(lab)
    finally:
        assert holder.wait(60) == 0


def assert_locked(lab: Path) -> None:
    lock = str(lab / "lock")
    for _ in range(50):
        if subprocess.run(["flock", "-n", lock, "true"], check=False).returncode != 0:
            break
        subprocess.run(["sleep", "0.1"], check=True)
    command = [str(lab / "winns"), "true"]
    waited = subprocess.run(
        command, env=os.environ | {"WINLAB_LOCK_S": "0"}, check=False, capture_output=True, timeout=60
    )
    assert waited.returncode == IN_USE
    assert b"is in use" in waited.stderr
