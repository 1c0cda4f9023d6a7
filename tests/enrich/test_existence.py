"""A misspelt user, container or network namespace is a mistake and no empty answer."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

import portbook
from portbook.enrich import existence
from portbook.errors import UsageError
from portbook.records import Owner, Socket
from tests.components import need
from tests.conftest import ROOT

pwd = pytest.importorskip("pwd", reason="Windows: only the system's directory knows the users")
LINUX = os.path.exists("/proc/self/ns/net")


def test_an_unknown_user_is_a_mistake():
    with pytest.raises(UsageError, match="unknown user 'no-such-user'"):
        portbook.take("user:no-such-user")
    with pytest.raises(UsageError, match="unknown user 'no-such-user'"):
        portbook.take("-user:no-such-user")
    with pytest.raises(UsageError, match="did you mean root"):
        portbook.take("user:rooot")


def test_one_unknown_user_among_known_ones_is_a_mistake_too():
    with socket.create_server(("127.0.0.1", 0)):
        me = pwd.getpwuid(os.getuid()).pw_name
        assert portbook.take(f"user:{me.upper()}").sockets
        with pytest.raises(UsageError, match="unknown user 'no-such-user'"):
            portbook.take(f"user:{me},no-such-user")


def test_a_number_is_never_an_unknown_user():
    assert portbook.take("user:3999999999").sockets == ()


def test_a_user_that_only_a_socket_has_exists():
    """A directory server may know it that does not list its users."""
    found = Socket("tcp", "ipv4", "127.0.0.1", 80, state="LISTEN", owners=(Owner(1, user="from-directory"),))
    existence.check(portbook.parse("user:from-directory"), [found])


def test_an_unknown_container_is_a_mistake():
    need(LINUX, "Linux")
    with pytest.raises(UsageError, match="unknown container 'no-such-container'"):
        portbook.take("container:no-such-container")


def test_containers_are_those_of_all_processes(monkeypatch):
    path = "/system.slice/docker-" + "ab" * 32 + ".scope"
    monkeypatch.setattr(existence, "_cgroups", lambda: {path})
    monkeypatch.setattr("portbook.managers.container.labels", lambda paths: ({path: "docker:web"}, []))
    existence.check(portbook.parse("container:web container:docker:*"), ())
    existence.check(portbook.parse("netns:web"), ())
    with pytest.raises(UsageError, match=r"unknown container 'wbe'; .*docker:web"):
        existence.check(portbook.parse("container:wbe"), ())


def test_without_proc_no_container_is_called_unknown(monkeypatch):
    monkeypatch.setattr(existence, "_cgroups", set)
    existence.check(portbook.parse("container:x netns:x"), ())


@pytest.mark.root
def test_an_unknown_namespace_is_a_mistake_and_a_known_one_without_sockets_is_not():
    need(ROOT and LINUX, "root, for a network namespace")
    name = f"portbook-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        inode = os.stat(f"/run/netns/{name}").st_ino
        assert portbook.take(f"netns:{name}").sockets == ()
        assert portbook.take(f"netns:{inode}").sockets == ()
        with pytest.raises(UsageError, match=f"unknown network namespace 'x{name}'; did you mean {name}"):
            portbook.take(f"netns:x{name}")
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=20)
    with pytest.raises(UsageError, match=f"unknown network namespace '{inode}'"):
        portbook.take(f"netns:{inode}")


@pytest.mark.parametrize("text", ["container:*", "container:docker:*", "-container:docker"])
def test_a_pattern_and_an_exclusion_may_match_nothing(text):
    assert portbook.take(f"{text} port:1").sockets == ()
