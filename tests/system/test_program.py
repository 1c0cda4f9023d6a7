"""The runner of programs against real processes, on Linux and Windows: its limits, and what it leaves behind.

The programs are Python scripts, because they run on both systems.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import ExitStack, suppress

import psutil
import pytest

from portbook.errors import SourceDenied, SourceGarbled, SourceMissing, SourceTimeout
from portbook.system import program
from tests.components import need

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and modes of POSIX")
START_S = 20.0  # Python starts in less, also under load and under Wine
LIMIT_S = 1.0
MARGIN_S = 4.0  # for a machine under load; a limit that is not kept would be missed by more
SLEEP_S = 30  # of programs that must be killed; they end by themselves if they are not
SLEEP = f"import time; time.sleep({SLEEP_S})"
ENVIRONMENT = dict(os.environ)


def python(script: str) -> list[str]:
    # sys.executable of a virtual environment may be a launcher, which is a process more on Windows.
    return [getattr(sys, "_base_executable", sys.executable), "-I", "-S", "-c", script]


def run(script: str, limit_s: float = START_S, **options: object) -> program.Output:
    return program.run(python(script), limit_s, environment=ENVIRONMENT, **options)


def write_pid(path: object) -> str:
    """A statement that writes the process id of the script into a file, whole or not at all."""
    name = str(path)
    return f"import os; open({name + '.new'!r}, 'w').write(str(os.getpid())); os.rename({name + '.new'!r}, {name!r})"


def wait_for(path: object) -> int:
    """The process id in a file, once it is there."""
    deadline = time.monotonic() + START_S
    while not os.path.exists(str(path)):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    with open(str(path)) as file:
        return int(file.read())


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, f"process {pid} is still running"
        time.sleep(0.02)


def with_descendant(pid_file: object, then: str, descendant: str = SLEEP) -> str:
    """A script whose child inherits its output and runs on, and which goes on with ``then`` when the child runs."""
    child = f"{write_pid(pid_file)}; {descendant}"
    return (
        "import os, subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-I', '-S', '-c', {child!r}], stdin=subprocess.DEVNULL)\n"
        f"while not os.path.exists({str(pid_file)!r}): time.sleep(0.01)\n"
        f"{then}\n"
    )


# --- what it returns -----------------------------------------------------------------------------------------------


def test_both_outputs_and_the_exit_code():
    output = run("import sys; sys.stdout.write('out'); sys.stderr.write('err'); sys.exit(3)")
    assert output[1:] == (3, b"out", b"err")


def test_standard_error_alone():
    output = run("import sys; sys.stderr.write('it is broken\\nand more\\n'); sys.exit(1)", name="tool")
    assert (output.stdout, output.code) == (b"", 1)
    with pytest.raises(SourceMissing, match=r"^tool ended with exit code 1: it is broken$"):
        output.successful()


def test_the_message_of_a_failure_is_bounded():
    output = run("import sys; sys.stderr.buffer.write(b'\\xff' * 5000); sys.exit(1)", name="tool")
    with pytest.raises(SourceMissing) as raised:
        output.successful()
    assert len(str(raised.value)) < 300


def test_any_bytes_arrive_as_they_are():
    every_byte = "bytes(range(256)) * 1000"
    output = run(f"import sys; sys.stdout.buffer.write({every_byte}); sys.stderr.buffer.write({every_byte})")
    assert output.stdout == output.stderr == bytes(range(256)) * 1000
    assert output.successful() == output.stdout


def test_neither_output_blocks_the_other():
    output = run("import sys; [f.write('x' * 300000) for f in (sys.stderr, sys.stdout, sys.stderr)]")
    assert (len(output.stdout), len(output.stderr)) == (300000, 600000)


def test_standard_input_is_empty():
    assert run("import sys; print(len(sys.stdin.read()))").stdout.split() == [b"0"]


def test_arguments_are_not_interpreted():
    arguments = ["a b", "$(id)", "%PATH%", ";", "*", '"', "\\", ""]
    command = [*python("import sys; print(ascii(sys.argv[1:]))"), *arguments]
    assert program.run(command, START_S, environment=ENVIRONMENT).stdout.decode().strip() == repr(arguments)


@on_posix
def test_the_default_environment_is_the_systems():
    output = program.run(["/usr/bin/env"], START_S)
    assert sorted(output.stdout.decode().split()) == ["LC_ALL=C", f"PATH={program.PATH}"]


@pytest.mark.skipif(sys.platform != "win32", reason="consoles of Windows")
def test_no_console_window_opens():
    script = "import ctypes; k = ctypes.WinDLL('kernel32'); print(k.GetConsoleWindow())"
    assert run(script).stdout.split() == [b"0"]


# --- the limits ----------------------------------------------------------------------------------------------------


def assert_limit_is_kept(script: str) -> None:
    began = time.monotonic()
    with pytest.raises(SourceTimeout, match=f"^tool did not finish within {LIMIT_S:g} s$"):
        run(script, LIMIT_S, name="tool")
    assert LIMIT_S <= time.monotonic() - began <= LIMIT_S + MARGIN_S


def test_a_silent_program():
    assert_limit_is_kept(SLEEP)


def test_a_program_that_closes_its_output_and_runs_on():
    assert_limit_is_kept(f"import os; os.close(1); os.close(2); {SLEEP}")


def test_a_program_that_writes_now_and_then():
    script = f"import time\nfor _ in range({SLEEP_S * 10}): print('x', flush=True); time.sleep(0.1)"
    assert_limit_is_kept(script)


@on_posix
def test_a_program_that_ignores_sigterm():
    assert_limit_is_kept(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_without_end(stream, tmp_path):
    script = f"{write_pid(tmp_path / 'pid')}; import sys\nwhile True: sys.{stream}.write('x' * 10000)"
    with pytest.raises(SourceGarbled, match=r"^tool printed more than 100,000 bytes$"):
        run(script, name="tool", most_bytes=100_000)
    assert_ends(wait_for(tmp_path / "pid"))


def test_output_up_to_the_limit():
    script = "import sys; sys.stdout.write('x' * 50000); sys.stderr.write('x' * 50000)"
    assert len(run(script, most_bytes=100_000).stdout) == 50_000
    with pytest.raises(SourceGarbled):
        run(script, most_bytes=99_999)


# --- descendants ---------------------------------------------------------------------------------------------------


def test_a_descendant_that_keeps_the_output_open(tmp_path):
    """The program prints when its child runs, so that starting Python is not measured."""
    with program.start(
        python(with_descendant(tmp_path / "pid", "print('answer')")), START_S, environment=ENVIRONMENT
    ) as running:
        pid = wait_for(tmp_path / "pid")
        began = time.monotonic()
        output = running.output()
        assert output.stdout.strip() == b"answer"
        assert time.monotonic() - began < SLEEP_S / 3
    if sys.platform == "win32":
        assert_ends(pid)
    else:
        assert is_running(pid)  # the program ended by itself, so what it left is its own affair
        os.kill(pid, 9)


def test_a_descendant_that_keeps_writing(tmp_path):
    endless = "import sys\nwhile True: sys.stdout.write('x'); sys.stdout.flush(); time.sleep(0.01)"
    descendant = f"import time; exec({endless!r})"
    output = run(with_descendant(tmp_path / "pid", "print('answer')", descendant))
    assert b"answer" in output.stdout
    assert_ends(wait_for(tmp_path / "pid"))  # of the broken pipe, or with the job


def test_descendants_are_killed_with_the_program(tmp_path):
    with program.start(
        python(with_descendant(tmp_path / "pid", f"time.sleep({SLEEP_S})")), LIMIT_S, environment=ENVIRONMENT
    ) as running:
        pid = wait_for(tmp_path / "pid")
        with pytest.raises(SourceTimeout):
            running.output()
    assert_ends(pid)


def test_the_end_of_the_block_kills(tmp_path):
    with program.start(
        python(with_descendant(tmp_path / "pid", f"time.sleep({SLEEP_S})")), START_S, environment=ENVIRONMENT
    ):
        pid = wait_for(tmp_path / "pid")
    assert_ends(pid)


def test_nothing_is_kept_open():
    def resources() -> tuple[int, int]:
        process = psutil.Process()
        return process.num_handles() if sys.platform == "win32" else process.num_fds(), threading.active_count()

    run("pass")
    before = resources()
    for script in ("pass", "print('x' * 200000)", SLEEP):
        with suppress(SourceTimeout, SourceGarbled):
            run(script, 0.5, most_bytes=100_000)
    assert resources() == before


def test_several_at_the_same_time(tmp_path):
    """Each waits until all of them run: one after the other, the first would exceed its limit."""
    wait = f"import os, time\nwhile len(os.listdir({str(tmp_path)!r})) < 4: time.sleep(0.01)"
    scripts = [f"open({str(tmp_path / str(number))!r}, 'w').close(); {wait}\nprint({number})" for number in range(4)]
    with ExitStack() as stack:
        running = [
            stack.enter_context(program.start(python(script), START_S, environment=ENVIRONMENT)) for script in scripts
        ]
        assert [each.output().stdout.strip() for each in running] == [b"0", b"1", b"2", b"3"]


# --- what cannot be run --------------------------------------------------------------------------------------------


def test_a_program_that_does_not_exist(tmp_path):
    with pytest.raises(SourceMissing, match=r"^nonesuch cannot be run: "):
        program.run([str(tmp_path / "nonesuch")], 1)


@on_posix
def test_a_file_that_is_not_executable(tmp_path):
    path = tmp_path / "tool"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o644)
    with pytest.raises(SourceDenied, match=r"^tool cannot be run: Permission denied$"):
        program.run([str(path)], 1)


def test_a_file_that_is_no_program(tmp_path):
    path = tmp_path / "tool.exe"
    path.write_bytes(b"\x00\x01not a program")
    path.chmod(0o755)
    with pytest.raises(SourceMissing, match=r"^tool\.exe cannot be run: "):
        program.run([str(path)], 1)


def test_an_argument_with_a_nul():
    with pytest.raises(SourceMissing, match="cannot be run: "):
        program.run([*python("pass"), "a\0b"], 1, environment=ENVIRONMENT)


def test_a_name_that_is_not_installed():
    assert program.find("portbook-nonesuch") is None
    with pytest.raises(SourceMissing, match=r"^portbook-nonesuch is not installed in "):
        program.require("portbook-nonesuch")


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """A program in the only directory of the system."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))
    path = tmp_path / "tool"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@on_posix
def test_a_program_is_a_file_that_can_be_executed(tool, tmp_path):
    assert program.find("tool") == str(tool)
    tool.chmod(0o644)
    assert program.find("tool") is None
    tool.unlink()
    tool.mkdir()
    assert program.find("tool") is None


@on_posix
@pytest.mark.root
@pytest.mark.parametrize("mode", [0o757, 0o775])
def test_root_runs_nothing_that_others_can_change(tool, tmp_path, mode):
    need(os.geteuid() == 0, "root")
    tool.chmod(mode)
    assert program.find("tool") is None
    tool.chmod(0o755)
    tmp_path.chmod(mode)
    assert program.find("tool") is None
    tmp_path.chmod(0o755)
    assert program.find("tool") == str(tool)
    os.chown(tool, 65534, 65534)
    assert program.find("tool") is None
    os.chown(tool, 0, 0)
    os.chown(tmp_path, 65534, 65534)
    assert program.find("tool") is None
