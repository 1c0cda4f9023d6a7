"""How the command ends when its streams, its code or its environment fail: one line, and no code that means "no"."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from portbook import cli
from tests.e2e.terminal import ENVIRONMENT
from tests.e2e.test_cli import COMMAND, complaints, on_unix
from tests.listeners import SOURCE

pytestmark = pytest.mark.usefixtures("own_network")


def redirected(redirection, *arguments):
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", *COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=60, check=False)


@on_unix
@pytest.mark.parametrize(
    "arguments", ["", "--json", "who 1", "why 1 --json", "free", "sources", "scan 127.0.0.1 -p 1", "--version", "-h"]
)
def test_without_a_standard_output_nothing_was_answered(arguments, zoo):
    """As a service manager or cron may start it: descriptor 1 is closed."""
    done = redirected(">&- <&-" if arguments == "who 1" else ">&-", *arguments.split())
    said = complaints(done.stderr)
    assert done.returncode == 5
    assert len(said) == 1
    assert os.strerror(errno.EBADF) in said[0]


@on_unix
@pytest.mark.parametrize("arguments", ["who 1", "who", "list user:no-such-user"])
def test_trouble_with_standard_error_does_not_change_the_answer(arguments, zoo):
    expected = redirected("", *arguments.split())
    assert expected.stderr or arguments == "who 1"
    for redirection in ("2>/dev/full", "2>&-", "2>&- <&-"):
        done = redirected(redirection, *arguments.split())
        assert (done.returncode, done.stdout) == (expected.returncode, expected.stdout)


@on_unix
def test_what_could_not_be_written_before_the_end_is_not_success_of_a_command_that_acts():
    """``stop 1 | true`` that prints its plan has ended nothing yet."""
    code = (
        "from portbook import __main__ as m; from portbook.cli import exits, stop\n"
        "def write(*a, **k): sys.stdout.write('x' * 100000)\n"
        "stop.command.callback = write; import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1)\n"
        "os._exit(m.ended(lambda: exits.run(['stop', '1'])))"
    )
    done = python("import sys; " + code)
    assert done.returncode == 5
    assert done.stderr == b"portbook: the reader of the output has gone before the end\n"


# --- the last resort -----------------------------------------------------------------------------------------------


def python(code):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=60, check=False)


ERRORS = [
    *("ValueError('a\x1b[31m\\nb')", "KeyError(5)", "MemoryError()", "RecursionError('deep')", "AssertionError()"),
    *(
        "UnicodeEncodeError('utf-8', '\udcff', 0, 1, 'surrogates')",
        "OSError(2, 'No such file')",
        "Exception(Nameless())",
    ),
    *(
        'RuntimeError("can\'t start new thread")',
        "SystemError()",
        "GeneratorExit()",
        "ExceptionGroup('several', [ValueError()])",
    ),
]


def test_an_error_that_nobody_foresaw_is_one_line_and_5_in_each_command():
    code = f"""
import sys
from portbook import __main__ as m, cli
from portbook.cli import base, exits
import click, os
output = os.dup(1)  # what is left of the output of a command that failed is not written
class Nameless:
    def __str__(self): raise ValueError
for name in cli.COMMANDS:
    for text in {ERRORS!r}:
        def invoke(*_):
            raise eval(text)
        click.Command.invoke = invoke
        sys.stderr.write(name + chr(10))
        arguments = [] if name in ("list", "sources", "man", "free") else ["127.0.0.1:1" if name == "dial" else "1"]
        os.write(output, b"%d " % m.ended(lambda: exits.run([name, *arguments])))
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == {b"5"}
    lines = [line for line in done.stderr.decode().splitlines() if line not in cli.COMMANDS]
    assert len(lines) == len(done.stdout.split())
    assert all(line.startswith("portbook: ") and line.isprintable() for line in lines)


@on_unix
@pytest.mark.parametrize("module", ["portbook.cli", "click", "msgspec", "portbook.cli.list_", "portbook.render.plain"])
def test_ctrl_c_while_modules_are_imported_is_130(module):
    code = f"""
import os, signal, sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["portbook"]
from portbook.__main__ import start
start()
"""
    done = python(code)
    assert (done.returncode, complaints(done.stderr)) == (130, [])


@on_unix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_leaves_no_unfinished_file(name, tmp_path):
    arguments = ["scan", "127.0.0.1", "-p", "1-60000", "--rate", "50", "--nmap-xml", str(tmp_path / "scan.xml")]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as process:
        for _ in range(3000):
            if os.listdir(tmp_path):
                break
            time.sleep(0.01)
        assert os.listdir(tmp_path)[0].endswith(".part")
        process.send_signal(getattr(signal, name))
        assert process.wait(30) == -getattr(signal, name), "its parent sees which signal ended it"
        assert complaints(process.stderr.read()) == []
    assert os.listdir(tmp_path) == []


@on_unix
def test_a_signal_that_was_ignored_stays_ignored(tmp_path):
    """nohup(1)"""
    code = (
        "import _signal, sys; _signal.signal(1, _signal.SIG_IGN); from portbook.__main__ import ended;"
        "ended(lambda: 0); print(_signal.getsignal(1) == _signal.SIG_IGN, _signal.getsignal(15) == _signal.SIG_DFL)"
    )
    assert python(code).stdout == b"True False\n"


LOSING = """
import os, signal, sys, time, weakref
sys.path.insert(0, sys.argv[1])
from portbook.__main__ import ended

class Referent: pass

def command():
    referent = Referent()
    kept = weakref.ref(referent, lambda _: os.kill(os.getpid(), int(sys.argv[2])))
    del referent  # the handler runs in the callback, where an exception is reported and dropped
    time.sleep(50)
    return 0

raise SystemExit(ended(command))
"""


@on_unix
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", -signal.SIGTERM), ("SIGHUP", -signal.SIGHUP), ("SIGINT", 130)])
def test_a_signal_during_a_callback_is_not_lost(name, code):
    command = [sys.executable, "-c", LOSING, SOURCE, str(int(getattr(signal, name)))]
    done = subprocess.run(command, capture_output=True, timeout=40, check=False)
    assert (done.returncode, done.stderr) == (code, b"")


@on_unix
@pytest.mark.parametrize("arguments", ["scan 127.0.0.1 -p 1-50", "probe 127.0.0.1 53"])
@pytest.mark.parametrize("limit", [5, 8])
def test_no_descriptor_is_left(arguments, limit):
    """One line, if it is an error at all: the least with which Python starts is 5."""
    code = f"""
import resource, sys
from portbook import __main__ as m
sys.argv[1:] = {arguments.split()!r}
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
m.start()
"""
    done = python(code)
    text = done.stderr.decode()
    assert done.returncode in (0, 1, 5)
    assert "Traceback" not in text
    assert "report it" not in text
