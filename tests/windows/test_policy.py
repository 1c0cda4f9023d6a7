"""Policies on Windows: paths with backslashes and letters of drives, files of other encodings, the default place."""

from __future__ import annotations

import json
import os
import socket

import pytest

import portbook
from portbook.watching.evidence import Collector
from portbook.watching.judge import judge
from portbook.watching.policy import default_path, parse
from tests.listeners import portbook as run
from tests.windows.test_iphlpapi import touch


@pytest.fixture
def listener():
    with socket.create_server(("127.0.0.1", 0)) as opened:
        yield touch(opened)


def test_init_writes_a_policy_that_what_listens_now_passes(listener, tmp_path):
    path = tmp_path / "policy.toml"
    assert run("policy", "init", path).returncode == 0
    text = path.read_text(encoding="utf-8")
    assert f"port = {listener.getsockname()[1]}" in text
    report = json.loads(run("policy", "check", path, "--json").stdout)
    judged = {each["socket"]["local_port"]: each["result"] for each in report["sockets"]}
    assert judged[listener.getsockname()[1]] == "allowed", text
    path.write_text(text, encoding="utf-16")
    assert run("policy", "check", path, "--json").returncode in (0, 4)


def test_a_violation_is_exit_code_4(listener, tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(f'version = 1\ndefault = "allow"\n[[deny]]\nport = {listener.getsockname()[1]}\n')
    done = run("policy", "check", path)
    assert done.returncode == 4
    assert "denies it" in done.stdout


def test_a_path_of_windows_in_a_rule(listener):
    port = listener.getsockname()[1]
    (found,) = portbook.take(f"port:{port}").sockets
    path = found.owners[0].exe
    if path is None:
        pytest.skip("this system does not say the paths of executables")
    for exe, expected in ((path, True), (path.rpartition("\\")[0] + "\\other.exe", False)):
        policy = parse(f"version = 1\n[[allow]]\nport = {port}\nexe = '{exe}'\n")
        evidence = Collector(policy).collect([found])
        assert judge(policy, found, portbook.take(f"port:{port}").taken_at, evidence).allowed is expected


def test_the_default_place():
    assert default_path() == os.path.join(os.environ["PROGRAMDATA"], "portbook", "policy.toml")
