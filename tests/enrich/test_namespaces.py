"""What a network namespace is called."""

from __future__ import annotations

import os
import sys

import pytest

from portbook.enrich import namespaces
from portbook.records import Owner, Socket
from portbook.system import namespaces as system
from tests.components import need

OURS, WEB, POD, BARE = 4026531833, 4026532000, 4026532001, 4026532002
ON_THE_HOST = (Owner(10), Owner(11, container="podman:on-host-network"))
IN_WEB = (Owner(40, container="podman:web"),)
IN_POD = (Owner(50, container="kubernetes:pod1/pause"), Owner(60, container="kubernetes:pod1/app"))


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    monkeypatch.setattr(system, "names", lambda: {WEB + 100: "unused"})
    monkeypatch.setattr(namespaces, "_machines", lambda: {OURS})


def names(*several):
    sockets = [Socket("tcp", "ipv4", "127.0.0.1", i, netns=netns) for i, (netns, _) in enumerate(several, 1)]
    return namespaces.names(sockets, [owners for _, owners in several])


def test_the_container_in_it():
    assert names((OURS, ON_THE_HOST), (WEB, IN_WEB), (WEB, ()), (BARE, (Owner(70),))) == {WEB: "podman:web"}


def test_of_several_the_one_that_is_there_longest():
    assert names((POD, IN_POD[1:]), (POD, IN_POD)) == {POD: "kubernetes:pod1/pause"}


def test_a_given_name_goes_before_a_container(monkeypatch):
    monkeypatch.setattr(system, "names", lambda: {WEB: "blue", OURS: "home"})
    assert names((WEB, IN_WEB), (OURS, ON_THE_HOST)) == {WEB: "blue", OURS: "home"}


def test_where_there_are_none_nothing_is_looked_up(monkeypatch):
    monkeypatch.setattr(system, "names", lambda: pytest.fail("it was"))
    assert names() == {}
    assert names((None, IN_WEB)) == {}


def test_ours_and_inits_are_the_machines(monkeypatch):
    need(sys.platform == "linux", "Linux, which has namespaces")
    monkeypatch.undo()
    assert os.stat("/proc/self/ns/net").st_ino in namespaces._machines()
