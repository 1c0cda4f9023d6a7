"""``portbook.scan`` is one function, whatever was imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest

import portbook
from portbook.scanner import run

CALL = "print(sorted((a.port, a.outcome) for a in {name}('127.0.0.1', [{port}])), type({name}('::1', '1')).__name__)"
ORDERS = {
    "import portbook": "portbook.scan",
    "from portbook import scan": "scan",
    "import portbook.scanner": "portbook.scan",
    "import portbook.scanner.run": "portbook.scan",
    "import portbook.scanner.targets, portbook": "portbook.scan",
    "from portbook.scanner.run import scan": "scan",
    "from portbook.scanner.run import Scan; from portbook import scan": "scan",
    "from portbook import scan; import portbook.scanner.run": "scan",
    "from portbook import *": "scan",
    "import portbook; portbook.dial": "portbook.scan",
}


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def closed():
    """A port that refuses, and that no other process can get meanwhile."""
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


@pytest.mark.parametrize("first", ORDERS)
def test_it_is_called_whatever_was_imported_first(first, closed):
    assert python(f"{first}\n{CALL.format(name=ORDERS[first], port=closed)}") == f"[({closed}, 'closed')] Scan"


def test_it_is_the_function_that_the_module_has():
    assert portbook.scan is run.scan
    assert "allow_public" in (portbook.scan.__doc__ or "")


def test_importing_portbook_imports_nothing_else_of_ours():
    code = "import sys; before = set(sys.modules); import portbook; print(sorted(set(sys.modules) - before))"
    assert python(code) == "['__future__', 'portbook']"
