"""Going into other network namespaces and coming back: the kernel's own opinion of where we are."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from portbook.errors import SourceError, SourceMissing, SourceTimeout
from portbook.testing import child
from tests.components import need
from tests.conftest import ROOT

if sys.platform != "linux":
    pytest.skip("namespaces are a part of Linux", allow_module_level=True)

from portbook.system import namespaces

AWAY = """
import ctypes
if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
    raise SystemExit("unshare")
say(os.stat("/proc/self/ns/net").st_ino)
wait()
"""


def here():
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.fixture
def away():
    """A process in a namespace of its own: its inode and the door to it."""
    need(ROOT, "root, to make network namespaces")
    with child(AWAY) as one:
        yield one.said, f"/proc/{one.pid}/ns/net"


def test_work_is_done_there_and_we_stay_here(away):
    netns, door = away
    before = here()
    assert namespaces.own() == before != netns
    assert namespaces.visit({netns: door, before: "/proc/self/ns/net"}, lambda asked: (asked, here())) == {
        netns: (netns, netns),
        before: (before, before),
    }
    assert here() == before
    assert "portbook-namespaces" not in {thread.name for thread in threading.enumerate()}


def test_one_that_fails_does_not_keep_from_the_others(away):
    netns, door = away

    def work(asked):
        if asked == netns:
            raise SourceMissing("nothing there")
        return asked

    answers = namespaces.visit({1: "/proc/none/ns/net", 2: door, netns: door, here(): "/proc/self/ns/net"}, work)
    assert isinstance(answers[1], FileNotFoundError)
    assert isinstance(answers[2], ProcessLookupError), "the door leads to another namespace by now"
    assert isinstance(answers[netns], SourceMissing)
    assert answers[here()] == here()


@pytest.mark.parametrize("error", [ValueError("4 is no number"), MemoryError(), RecursionError("deep")])
def test_whatever_goes_wrong_in_one_costs_that_one(away, error, capfd):
    netns, door = away

    def work(asked):
        if asked == netns:
            raise error
        return asked

    answers = namespaces.visit({netns: door, here(): "/proc/self/ns/net"}, work)
    assert isinstance(answers[netns], SourceError)
    assert type(error).__name__ in str(answers[netns])
    assert answers[here()] == here()
    assert capfd.readouterr().err == "", "the thread has died"


def test_all_of_them_have_one_time_limit(away):
    netns, door = away
    paths = {netns: door, here(): "/proc/self/ns/net"}
    answers = namespaces.visit(paths, lambda _: time.sleep(0.05), limit_s=0.01)
    assert answers[netns] is None
    assert isinstance(answers[here()], SourceTimeout)
    assert "2 network namespaces" in str(answers[here()])


def test_what_is_no_namespace_is_not_entered(away, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    inode = file.stat().st_ino
    answers = namespaces.visit({inode: str(file)}, lambda _: pytest.fail("it was entered"))
    assert isinstance(answers[inode], OSError)


def test_without_a_further_thread_every_answer_is_an_error(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    answers = namespaces.visit({1: "/a", 2: "/b"}, lambda _: None)
    assert {n: str(error) for n, error in answers.items()} == dict.fromkeys((1, 2), "can't start new thread")


def test_namespaces_with_a_process_or_a_name_are_found(away):
    netns, door = away
    found = namespaces.inhabited()
    assert found[netns] == door
    assert here() in found
    name = f"portbook-names-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=30)
    try:
        inode = os.stat(f"/run/netns/{name}").st_ino
        assert namespaces.names()[inode] == name
        assert namespaces.inhabited()[inode] == f"/run/netns/{name}"
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=30)


def test_a_name_that_is_an_ordinary_file_is_none(monkeypatch, tmp_path):
    (tmp_path / "left-over").write_text("")
    (tmp_path / "link").symlink_to("/proc/self/ns/net")
    monkeypatch.setattr(namespaces, "NAMED", str(tmp_path))
    assert namespaces.names() == {}
    monkeypatch.setattr(namespaces, "NAMED", str(tmp_path / "none"))
    assert namespaces.names() == {}
