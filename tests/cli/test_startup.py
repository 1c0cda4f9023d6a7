"""What a start of the command imports, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from portbook import cli
from tests.listeners import SOURCE

ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE}
# The base install does not bring typing_extensions: where it is installed, msgspec imports it, and it imports inspect.
RUN = """
import sys
sys.modules["typing_extensions"] = None
from portbook.__main__ import main
sys.argv[1:] = {arguments!r}
code = main()
"""
LIST = ["list", "--port", "1", "--json", *(["--source", "procfs"] if sys.platform == "linux" else [])]
COMPLETE = {"_PORTBOOK_COMPLETE": "bash_complete"}


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "module", ["inspect", "platform", "gettext", "locale", "textwrap", "rich", "asyncio", "dataclasses"]
)
def test_a_listing_does_not_load(module):
    looking = f"found = sys.modules.get({module!r}); sys.stderr.write(str(getattr(found, '__file__', None)))"
    done = python(RUN.format(arguments=LIST) + looking)
    assert done.stderr == "None"


@pytest.mark.parametrize("module", ["msgspec", "socket", "inspect", "portbook.inventory", "portbook.cli.scan"])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("portbook --al", "plain,--all"),
        ("portbook sto", "plain,stop"),
        ("portbook list --state listeni", "plain,listening"),
        ("portbook list --source lso", "plain,lsof"),
        ("portbook list remote-p", "nospace,remote-port:"),
        ("portbook list fin_wait1", "plain,fin_wait1"),
        ("portbook free --avoid", "plain,--avoid-ephemeral"),
        ("portbook lease --number", "plain,--number-only"),
    ],
)
def test_completion_does_not_load(module, line, offered):
    looking = f"found = sys.modules.get({module!r}); sys.stderr.write(str(getattr(found, '__file__', None)))"
    done = python(RUN.format(arguments=[]) + looking, **COMPLETE, COMP_LINE=line)
    assert done.stdout.split() == offered.split()
    assert done.stderr == "None"


@pytest.mark.parametrize("module", ["msgspec", "inspect", "portbook.records", "portbook.probe.outcome"])
@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("portbook scan -p @mai", "plain,@mail"),
        ("portbook probe -p @mai", ""),
        ("portbook scan --ban", "plain,--banner"),
    ],
)
def test_completion_of_a_scan_does_not_load(module, line, offered):
    looking = f"found = sys.modules.get({module!r}); sys.stderr.write(str(getattr(found, '__file__', None)))"
    done = python(RUN.format(arguments=[]) + looking, **COMPLETE, COMP_LINE=line)
    assert done.stdout.split() == offered.split()
    assert done.stderr == "None"


def test_a_deferred_module_is_the_real_one_when_it_is_used():
    code = (
        "import sys; from portbook.cli import startup; startup.prepare();"
        "before = sys.modules['inspect'].__dict__.copy();"
        "import inspect; from inspect import cleandoc; import dataclasses, msgspec, msgspec.json;"
        "print('cleandoc' in before, cleandoc('  a'), inspect.signature(lambda x: 0), sys.modules['inspect'].__name__,"
        "msgspec.inspect.type_info(int).__class__.__name__, msgspec.json.schema(int), msgspec.json.schema(str))"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("False a (x) inspect IntType {'type': 'integer'} {'type': 'string'}\n", "")


def test_what_is_answered_for_a_deferred_module_is_what_it_would_answer():
    code = (
        "from portbook.cli import startup; startup.prepare(); import platform, gettext; from gettext import ngettext;"
        "mine = platform.system(); print(platform.machine() != '', mine == platform.system(), gettext.gettext('a'),"
        "ngettext('a', 'b', 2), gettext.find('nothing'), gettext.gettext('c'))"
    )
    done = python(code)
    assert (done.stdout, done.stderr) == ("True True a b None c\n", "")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_explains_itself(command):
    done = python(RUN.format(arguments=[command, "-h"]) + "sys.exit(code)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: portbook {command}")
    assert "-h, --help" in done.stdout


def test_the_command_ends_with_its_exit_code_and_all_of_its_output():
    """It ends without the interpreter's clean-up: what is written has to be out by then."""
    done = subprocess.run(
        [sys.executable, "-m", "portbook", "man"], env=ENVIRONMENT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert done.stdout == python(RUN.format(arguments=["man"])).stdout.encode()
    done = subprocess.run(
        [sys.executable, "-m", "portbook", "who", "x"], env=ENVIRONMENT, capture_output=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
