"""Commands of service managers: found where the system has them, run within limits, never led elsewhere."""

from __future__ import annotations

import os
import sys
import time

import pytest

from portbook.managers import control
from portbook.managers.supervisor import Supervisor
from portbook.system import program
from tests.components import need

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="tests/windows/test_stop.py is for Windows")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory of the system's that holds what a test puts there."""
    tmp_path.chmod(0o755)
    monkeypatch.setattr(program, "DIRECTORIES", (str(tmp_path),))

    def put(script: str, mode: int = 0o755) -> str:
        path = tmp_path / "tool"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(mode)
        return str(path)

    return put


def test_a_command_is_run_by_its_whole_path_with_arguments_as_they_are(place):
    place('printf "%s|" "$0" "$@"')
    done = control.run_command(("tool", "a b", "$(id)", ";", "*"), 10)
    assert (done.code, done.text.split("|")[1:5]) == (0, ["a b", "$(id)", ";", "*"])
    assert os.path.isabs(done.text.split("|")[0])


def test_an_error_of_a_command_is_reported_in_its_words(place):
    place("echo nothing to see; echo it is broken >&2; exit 3")
    assert control.run_command(("tool",), 10) == (3, "it is broken")


def test_a_command_that_hangs_is_ended(place):
    place("exec sleep 60")
    began = time.monotonic()
    done = control.run_command(("tool",), 0.3)
    assert (done.code, time.monotonic() - began < 30) == (None, True)
    assert "0.3 s" in done.text


@pytest.mark.parametrize("script", ["exec yes", "exec yes >&2"])
def test_a_command_that_does_not_stop_printing_is_ended(place, script):
    place(script)
    assert control.run_command(("tool",), 30) == (None, "tool printed more than 1,048,576 bytes")


def test_both_its_outputs_are_read(place):
    """Neither pipe may fill while the other one is waited for."""
    place("head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; echo end")
    assert control.run_command(("tool",), 30).text.endswith("end")


def test_a_command_that_is_not_there_is_an_answer(place):
    done = control.run_command(("nonesuch",), 1)
    assert done.code is None
    assert "not installed" in done.text


@pytest.mark.parametrize("mode", [0o757, 0o775])
def test_root_runs_nothing_that_others_could_have_written(place, mode):
    need(os.geteuid() == 0, "root")
    place("touch ran", mode)
    assert program.find("tool") is None
    path = place("true", 0o755)
    assert program.find("tool") == path
    os.chown(path, 65534, 65534)
    assert program.find("tool") is None
    os.chown(path, 0, 0)
    os.chmod(os.path.dirname(path), 0o777)
    assert program.find("tool") is None


def test_the_environment_leads_nowhere_else(place, monkeypatch):
    names = ("DOCKER_HOST", "CONTAINER_HOST", "SYSTEMD_HOST", "LD_PRELOAD", "PYTHONPATH", "PAGER", "BASH_ENV")
    for name in names:
        monkeypatch.setenv(name, "elsewhere")
    place("env")
    lines = control.run_command(("tool",), 10).text.splitlines()
    assert not [line for line in lines if "elsewhere" in line]
    assert f"PATH={program.PATH}" in lines


NONSENSE = ("exit 1", "echo nonsense", "echo 'web|'; exit 2", "echo 'web|never'", "exec sleep 60", "echo '--all|no'")


@pytest.mark.parametrize("script", [*NONSENSE, "echo 'a b|no'", "head -c 100 /dev/urandom"])
def test_a_container_stays_the_same_after_any_output_of_its_runtime(place, monkeypatch, script):
    """Nothing of it is believed to be harmless: without a policy that says so, it may be started again."""
    monkeypatch.setattr(control, "QUERY_LIMIT_S", 0.3)
    os.rename(place(script), os.path.join(program.DIRECTORIES[0], "podman"))
    found = Supervisor("podman", "0123", ("podman", "stop", "0123"))
    assert control.query_manager(found, 80, "tcp") == found
