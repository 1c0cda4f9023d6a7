"""Run the Windows tests in Windows Python, one run after the other, beside the tests of this system.

    python -m tests.winlab.runs LABORATORY DIRECTORY NAME...

Half of the time of these runs nothing computes, so tests/winlab/conftest.py starts this program as soon as the tests
are collected. Each run leaves two files in DIRECTORY: ``NAME.output``, and at its end ``NAME.code`` with its exit code.
SIGTERM ends the current run and puts the laboratory in order.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.test_dialing import MADE_BEFORE, make_certificate

ROOT = Path(__file__).parents[2]
# The parts that are the same on every system: what is parsed must not depend on the platform.
EVERYWHERE = [f"tests/sources/test_{name}.py" for name in ("iphlpapi", "netstat", "psutil_")]
EVERYWHERE += [f"tests/netconfig/windows/test_{name}.py" for name in ("netsh", "httpsys", "portproxy")]
EVERYWHERE += ["tests/scanner/tcp/test_engine.py", "tests/test_dialing.py", "tests/test_waiting.py"]
EVERYWHERE += [f"tests/test_{name}.py" for name in ("addresses", "numerals", "ports", "query")]
EVERYWHERE += ["tests/bind/test_choice.py", "tests/bind/test_endpoints.py", "tests/managers/test_relay.py"]
EVERYWHERE += [f"tests/system/test_{name}.py" for name in ("files", "program", "winapi")]
EVERYWHERE += [f"tests/verdict/test_{name}.py" for name in ("judge", "rules")]
EVERYWHERE += [f"tests/watching/test_{name}.py" for name in ("description", "identity", "invariants", "stream")]
RUN_LIMIT_S = 600  # of one run; the longest takes 110 s on an idle machine
LOCK_LIMIT_S = 600  # winns waits as long for another run in the same laboratory
REPLAYED = ("netstat", "tasklist", "netsh")


class Run(NamedTuple):
    """A run of pytest in Windows Python."""

    tests: list[str]
    variables: dict[str, str]
    replays: bool = False  # with programs that replay files in the place of Windows commands


RUNS = {
    "suite": Run(["tests/windows", *EVERYWHERE], {}),
    "netstat": Run(["tests/windows/test_netstat.py", "tests/windows/test_watching_poll.py"], {}, replays=True),
    "netsh": Run(["tests/windows/test_netsh.py"], {}, replays=True),
    # The laboratory refuses ports below WINLAB_MINPORT as Windows refuses excluded ports: with error 10013.
    "excluded": Run(["tests/windows/test_why.py"], {"WINLAB_MINPORT": "4700", "PORTBOOK_EXCLUDED": "4000-4699"}),
}


def windows_path(path: Path) -> str:
    return "Z:" + str(path.resolve()).replace("/", "\\")


def run_pytest(laboratory: Path, directory: Path, name: str) -> None:
    """Run pytest in Windows Python and leave its output and its exit code in the directory."""
    run = RUNS[name]
    environment = {**os.environ, **run.variables, "WINLAB_LOCK_S": str(LOCK_LIMIT_S)}
    certificates = directory / name
    certificates.mkdir()
    make_certificate(certificates)  # there is no openssl in the laboratory
    environment[MADE_BEFORE] = windows_path(certificates)
    command = [
        str(laboratory / "winns"),
        str(laboratory / "winpy"),
        "-t",
        str(RUN_LIMIT_S),
        "-X",
        "utf8",
        "-m",
        "pytest",
    ]
    command += ["-q", "-p", "no:cacheprovider", "-c", windows_path(ROOT / "pyproject.toml"), "-o", "pythonpath=src"]
    command += ["--rootdir", windows_path(ROOT), "--confcutdir", windows_path(ROOT / "tests" / "windows")]
    command += [windows_path(ROOT / test) for test in run.tests]
    with open(directory / f"{name}.output", "wb") as output:
        if run.replays:
            with replaying(laboratory) as variables:
                code = run_to_its_end(laboratory, command, environment | variables, output)
        else:
            code = run_to_its_end(laboratory, command, environment, output)
    unfinished = directory / f"{name}.unfinished"
    unfinished.write_text(str(code))
    unfinished.rename(directory / f"{name}.code")


def run_to_its_end(laboratory: Path, command: list[str], environment: dict[str, str], output) -> int:
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(LOCK_LIMIT_S + RUN_LIMIT_S + 60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)
            # The wineserver is in a session of its own. Somebody else's run is left alone: it holds the lock.
            stop = ["flock", "-n", str(laboratory / "lock"), str(laboratory / "stop")]
            subprocess.run(stop, check=False, timeout=60)


@contextmanager
def replaying(laboratory: Path) -> Iterator[dict[str, str]]:
    """Put programs that replay files in the place of commands, and the commands back in the end."""
    system32 = laboratory / "prefix" / "drive_c" / "windows" / "system32"
    try:
        for name in REPLAYED:
            original, program = laboratory / f"{name}.exe.wine", system32 / f"{name}.exe"
            if not original.exists():
                shutil.copy2(program, original)
            script = str(ROOT / "tests" / "winlab" / "replay.py")
            subprocess.run([sys.executable, str(laboratory / "mkfake"), str(program), script], check=True, timeout=60)
        overrides = ",".join(f"{name}.exe" for name in REPLAYED) + "=n"  # else Wine runs its own
        yield {"PORTBOOK_REPLAY": "1", "WINLAB_OVERRIDES": overrides}
    finally:
        for name in REPLAYED:
            shutil.copy2(laboratory / f"{name}.exe.wine", system32 / f"{name}.exe")


class Background:
    """This program, started beside the tests; ``wait`` returns what a run of it printed."""

    def __init__(self, laboratory: Path, directory: Path, names: list[str]) -> None:
        self._directory = directory
        command = [sys.executable, "-m", "tests.winlab.runs", str(laboratory), str(directory), *names]
        with open(directory / "log", "wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which ends this in its own order
            )

    def wait(self, name: str) -> tuple[int, str]:
        """The exit code of a run and its output, when it has ended. Raises AssertionError when that takes too long."""
        end = time.monotonic() + LOCK_LIMIT_S + 2 * RUN_LIMIT_S
        code = self._directory / f"{name}.code"
        while not code.exists():
            is_over = self._process.poll() is not None and not code.exists()
            assert not is_over, f"the Windows runs ended with {self._process.returncode}: {self._read('log')}"
            assert time.monotonic() < end, f"the Windows run {name} did not end: {self._read(name + '.output')}"
            time.sleep(0.2)
        return int(code.read_text()), self._read(f"{name}.output")

    def wait_for_all(self) -> None:
        """Return when the laboratory is no longer used by these runs."""
        self._process.wait(LOCK_LIMIT_S + 2 * RUN_LIMIT_S)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(120)

    def _read(self, name: str) -> str:
        path = self._directory / name
        return path.read_bytes().decode("utf-8", "replace").replace("\r", "") if path.exists() else ""


def exit_on_sigterm(*_: object) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def main(laboratory: str, directory: str, *names: str) -> None:
    signal.signal(signal.SIGTERM, exit_on_sigterm)
    for name in names:
        run_pytest(Path(laboratory), Path(directory), name)


if __name__ == "__main__":
    main(*sys.argv[1:])
