"""Tests that run in the second process are reported as all others, whatever becomes of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.components import need
from tests.conftest import REPOSITORY, ROOT

if sys.platform != "linux":
    pytest.skip("a network namespace of Linux", allow_module_level=True)

CONFTEST = f"""
import sys
sys.path.insert(0, {REPOSITORY!r})
from tests import beside
beside.BESIDE = ("there/",)
def pytest_configure(config):
    beside.register(config)
"""
HERE = "import os\ndef test_here(): print('pid', os.getpid())\n"
THERE = """
import os, socket, pytest
def test_it_passes(): print('pid', os.getpid())
def test_it_has_a_network_of_its_own():
    with open('/proc/net/tcp') as table: assert len(table.readlines()) == 1
    with socket.create_server(('127.0.0.1', 0)): pass
def test_it_fails(): assert 1 == 2, 'for a reason'
def test_it_is_skipped(): pytest.skip('it lacks something')
@pytest.mark.xfail(strict=True)
def test_it_is_expected_to_fail(): raise ZeroDivisionError
@pytest.fixture
def broken(): raise RuntimeError('in its fixture')
def test_its_setup_fails(broken): pass
def test_a_parameter(): pass
"""


@pytest.fixture
def run(tmp_path):
    need(ROOT, "root, for a network namespace")

    def with_tests(there, *options):
        (tmp_path / "there").mkdir()
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_here.py").write_text(HERE)
        (tmp_path / "there" / "test_there.py").write_text(there)
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout

    return with_tests


def test_every_outcome_is_reported_as_of_a_test_that_ran_here(run):
    code, text = run(THERE)
    assert code == 1
    assert "7 of them run beside the others" in text
    assert text.splitlines()[-1].startswith("=")
    for counted in ("4 passed", "1 failed", "1 skipped", "1 xfailed", "1 error"):
        assert counted in text.splitlines()[-1]
    assert "AssertionError: for a reason" in text
    assert "it lacks something" in text
    assert "RuntimeError: in its fixture" in text
    here, there = [line for line in text.splitlines() if line.startswith("pid ")]
    assert here != there


def test_tests_whose_process_ended_have_failed(run):
    code, text = run("import os\ndef test_one(): pass\ndef test_two(): os._exit(7)\ndef test_three(): pass\n")
    assert code == 1
    assert "2 passed" in text.splitlines()[-1]
    assert "2 errors" in text.splitlines()[-1]
    assert "the second process ended with 7" in text


def test_the_second_process_ends_with_the_first_failure_of_x(run):
    code, text = run("import time\ndef test_one(): assert 0\ndef test_two(): time.sleep(600)\n", "-x")
    assert (code, "1 failed" in text.splitlines()[-1]) == (1, True)
