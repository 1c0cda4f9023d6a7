"""``portbook.scan`` is a package and a function, whatever was imported first."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import portbook
from portbook.scan import run

CALL = "print(sorted((a.port, a.outcome) for a in {name}('127.0.0.1', [{port}])), type({name}('::1', '1')).__name__)"
ORDERS = {
    "import portbook": "portbook.scan",
    "from portbook import scan": "scan",
    "import portbook.scan": "portbook.scan",
    "import portbook.scan.run": "portbook.scan",
    "import portbook.scan.targets, portbook": "portbook.scan",
    "from portbook.scan.run import scan": "scan",
    "from portbook.scan.run import Scan; from portbook import scan": "scan",
    "from portbook import scan; import portbook.scan.run": "scan",
    "from portbook import *": "scan",
    "import portbook; portbook.dial": "portbook.scan",
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def closed():
    """A port that nobody else can get meanwhile, and that refuses."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.mark.parametrize("first", ORDERS)
def test_it_is_called_whatever_was_imported_first(first, closed):
    assert python(f"{first}\n{CALL.format(name=ORDERS[first], port=closed)}") == f"[({closed}, 'closed')] Scan"


def test_the_package_is_still_there():
    code = "import portbook; from portbook import scan; from portbook.scan import targets; print(scan.__path__ != [])"
    assert python(code) == "True"
    assert python("import portbook.scan.run as run; print(run.scan.__module__)") == "portbook.scan.run"


def test_the_module_of_dial_async_is_there_as_well():
    code = "import portbook, asyncio; print(asyncio.run(portbook.reach.dial_async('127.0.0.1:1')).port)"
    assert python(code) == "1"


def test_it_says_what_the_function_says():
    ours, theirs = inspect.signature(portbook.scan), inspect.signature(run.scan)
    assert ours == theirs
    assert "allow_public" in (run.scan.__doc__ or "")
    assert portbook.scan.__call__.__doc__ == run.scan.__doc__


def test_importing_portbook_imports_nothing_else_of_ours():
    code = "import sys; before = set(sys.modules); import portbook; print(sorted(set(sys.modules) - before))"
    assert python(code) == "['__future__', 'portbook']"
