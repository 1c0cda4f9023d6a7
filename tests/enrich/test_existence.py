"""A misspelt user, container or network namespace is a mistake and no empty answer."""

from __future__ import annotations

import glob
import os
import secrets
import socket
import subprocess
from contextlib import contextmanager, suppress

import pytest

import portbook
from portbook.enrich import existence
from portbook.errors import UsageError
from portbook.records import Owner, Socket
from tests.components import need
from tests.conftest import ROOT
from tests.rounds import rounds

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


@pytest.fixture
def known_namespace():
    """The name and the number of a network namespace; no other name resembles this one."""
    need(ROOT and LINUX, "root, for a network namespace")
    name = secrets.token_hex(8)
    with network_namespace(name) as number:
        yield name, number


@contextmanager
def network_namespace(name):
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=20)
    try:
        yield os.stat(f"/run/netns/{name}").st_ino
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=20)


def is_in_use(number):
    """Whether somebody on this machine has a network namespace of this number: the kernel gives a free one anew."""
    found = set()
    for path in (*glob.glob("/proc/[0-9]*/ns/net"), *glob.glob("/run/netns/*")):
        with suppress(OSError):  # it ended
            found.add(os.stat(path).st_ino)
    return number in found


@pytest.mark.root
def test_an_unknown_namespace_is_a_mistake_and_a_known_one_without_sockets_is_not(known_namespace):
    name, number = known_namespace
    assert portbook.take(f"netns:{name}").sockets == ()
    assert portbook.take(f"netns:{number}").sockets == ()
    with pytest.raises(UsageError, match=f"unknown network namespace 'x{name}'; did you mean {name}"):
        portbook.take(f"netns:x{name}")


@pytest.mark.root
def test_the_number_of_a_namespace_that_is_gone_is_unknown():
    need(ROOT and LINUX, "root, for a network namespace")
    errors = []
    for _ in rounds(lambda: errors, most=20):
        with network_namespace(secrets.token_hex(8)) as number:
            assert portbook.take(f"netns:{number}").sockets == ()
        was_in_use = is_in_use(number)
        try:
            portbook.take(f"netns:{number}")
        except UsageError as error:
            errors.append(str(error))
        else:
            assert was_in_use or is_in_use(number), "it was called known though nobody has it"
    assert f"unknown network namespace '{number}'" in errors[0]


@pytest.mark.parametrize("text", ["container:*", "container:docker:*", "-container:docker"])
def test_a_pattern_and_an_exclusion_may_match_nothing(text):
    assert portbook.take(f"{text} port:1").sockets == ()
