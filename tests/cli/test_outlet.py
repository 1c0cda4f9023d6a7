"""An output that does not wait for its reader: real pipes, whose reader is slow, stands still, or goes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.listeners import SOURCE

ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE}
BEGIN = "import sys, time; from portbook.cli.outlet import Outlet; outlet = Outlet({most});\n"


def start(code: str, most: int = 1 << 20, **streams: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", BEGIN.format(most=most) + code]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.PIPE, **streams}
    return subprocess.Popen(command, env=ENVIRONMENT, **streams)


def test_everything_is_written_in_its_order():
    code = "print([outlet.put(b'%d\\n' % i) for i in range(50_000)].count(True), outlet.close(30), file=sys.stderr)"
    with start(code, most=1 << 30) as process:
        out, err = process.communicate(timeout=60)
    assert out == b"".join(b"%d\n" % number for number in range(50_000))
    assert err.split() == [b"50000", b"True"]


def test_a_reader_that_stands_still_holds_up_nothing_and_what_found_no_room_is_known():
    """A pipe takes 64 KiB, the queue 100 kB more: the rest is refused, and what was taken arrives when it is read."""
    code = (
        "taken = [outlet.put(b'%09d\\n' % i) for i in range(40_000)]\n"
        "print(taken.count(True), outlet.idle, outlet.drain(0.01), file=sys.stderr, flush=True)\n"
        "sys.stdin.read(1); print(outlet.close(30), file=sys.stderr)"
    )
    with start(code, most=100_000) as process:
        count, *rest = process.stderr.readline().split()
        assert rest == [b"False", b"False"]
        assert 10_000 <= int(count) < 40_000
        out, err = process.communicate(b"x", timeout=60)
    numbers = [int(line) for line in out.split()]
    assert len(numbers) == int(count)
    assert numbers == sorted(set(numbers))
    assert err == b"True\n"


def test_the_end_does_not_wait_for_a_reader_that_stands_still():
    code = (
        "from portbook.__main__ import ended\n"
        "def command():\n"
        "    outlet.put(b'x' * 1_000_000); print(outlet.close(0.05), file=sys.stderr); return 7\n"
        "import os; os._exit(ended(command))"
    )
    with start(code) as process:
        assert process.wait(30) == 7
        assert process.stderr.read() == b"False\n"


@pytest.mark.skipif(sys.platform == "win32", reason="poll(2)")
def test_a_reader_that_goes_is_noticed_although_nothing_is_written():
    code = (
        "print(outlet.reader_is_gone, file=sys.stderr, flush=True); sys.stdin.read(1)\n"
        "print(outlet.reader_is_gone, outlet.failure, file=sys.stderr)\n"
        "outlet.put(b'x'); outlet.drain(5); print(type(outlet.failure).__name__, outlet.put(b'y'), file=sys.stderr)"
    )
    with start(code) as process:
        assert process.stderr.readline() == b"False\n"
        process.stdout.close()
        process.stdin.write(b"x")
        process.stdin.close()
        assert process.stderr.read().split() == [b"True", b"None", b"BrokenPipeError", b"False"]
        assert process.wait(30) == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full")
def test_a_full_disk_is_a_failure_that_can_be_read():
    code = "outlet.put(b'x'); outlet.drain(5); print(outlet.failure.errno, outlet.reader_is_gone, file=sys.stderr)"
    with open("/dev/full", "wb") as full, start(code, stdout=full) as process:
        assert process.communicate(timeout=30)[1].split() == [b"28", b"False"]
