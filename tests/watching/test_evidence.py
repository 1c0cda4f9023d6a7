"""What rules need to know about processes: real ones, whose executables are deleted, replaced and in other mounts."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from msgspec.structs import replace

import portbook
from portbook.records import Socket
from portbook.watching import evidence
from portbook.watching.evidence import Collector
from portbook.watching.judge import judge
from portbook.watching.policy import parse
from portbook.watching.policy.learning import trusts_path
from tests.components import need
from tests.conftest import ROOT
from tests.rounds import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")
SLEEP = os.path.realpath(shutil.which("sleep") or "/bin/sleep")
# In a mount namespace of its own, another file has the path.
ELSEWHERE = 'mount --bind "$0" "$1" && exec "$1" 60'

Start = Callable[..., Socket]


@pytest.fixture
def program(tmp_path: Path) -> str:
    """A copy of a program, to be run and then changed."""
    path = os.path.realpath(tmp_path / "server")
    shutil.copy(SLEEP, path)
    return path


@pytest.fixture
def start() -> Iterator[Start]:
    """Run a command that has a listening socket; return the socket with its owner."""
    running: list[subprocess.Popen[bytes]] = []

    def run(*command: str, exe: str) -> Socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            running.append(subprocess.Popen(command, pass_fds=[listener.fileno()]))
        pid = running[-1].pid
        until(lambda: os.readlink(f"/proc/{pid}/exe") == exe, "the program")
        (found,) = portbook.take(f"port:{port}").sockets
        assert [owner.exe for owner in found.owners] == [exe]
        return found

    try:
        yield run
    finally:
        for process in running:
            process.kill()
            process.wait(10)


def rules(found: Socket, *keys: str):
    return parse("\n".join(["version = 1", "[[allow]]", f"port = {found.local_port}", *keys]))


def allowed(found: Socket, *keys: str) -> bool | None:
    policy = rules(found, *keys)
    return judge(policy, found, datetime.now(UTC), Collector(policy).collect([found])).allowed


def state(found: Socket, *keys: str) -> str:
    programs = Collector(rules(found, 'exe = "*"', *keys)).collect([found]).programs
    return programs[found.owners[0].pid].state


def digest(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_process_that_runs_the_file_of_its_path(start, program):
    found = start(program, "60", exe=program)
    assert state(found) == "same"
    assert allowed(found, f'exe = "{program}"') is True
    assert allowed(found, f'exe = "{program}"', f'sha256 = "{digest(program)}"') is True
    assert allowed(found, f'exe = "{program}"', f'sha256 = "{"0" * 64}"') is False


@pytest.mark.parametrize("replaced", [False, True])
def test_an_executable_that_was_deleted_or_replaced_is_not_its_path_but_still_its_contents(start, program, replaced):
    found, contents = start(program, "60", exe=program), digest(program)
    if replaced:
        shutil.copy(SLEEP, f"{program}.new")
        os.replace(f"{program}.new", program)
    else:
        os.unlink(program)
    found = portbook.take(f"port:{found.local_port}").sockets[0]
    assert found.owners[0].exe == program, "the listing shows the path alone"
    assert state(found) == "deleted"
    assert allowed(found, f'exe = "{program}"') is False
    assert allowed(found, f'exe = "{program}"', f'sha256 = "{contents}"') is True
    collected = Collector(rules(found, 'exe = "*"')).collect([found])
    assert not trusts_path(collected)(found.owners[0]), "policy init does not write the path"


def test_a_path_that_leads_through_links_is_that_of_the_program(start, program, tmp_path):
    (tmp_path / "link").symlink_to(program)
    found = start(program, "60", exe=program)
    assert allowed(found, f'exe = "{tmp_path}/link"') is True
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(SLEEP)
    assert allowed(found, f'exe = "{tmp_path}/link"') is False


@pytest.mark.root
def test_a_file_of_the_same_path_in_another_mount_namespace_is_another_file(start, program, tmp_path):
    need(ROOT, "root, to mount")
    genuine = os.path.realpath(tmp_path / "genuine")
    Path(genuine).write_text("the administrator's program")
    command = ("unshare", "--mount", "sh", "-c", ELSEWHERE, program, genuine)
    found = start(*command, exe=genuine)
    assert state(found) == "elsewhere"
    assert allowed(found, f'exe = "{genuine}"') is False
    assert allowed(found, f'exe = "{genuine}"', f'sha256 = "{digest(program)}"') is True
    assert allowed(found, f'exe = "{genuine}"', 'container = "none"') is True, "such a rule means the path inside"


def test_a_pid_that_belongs_to_another_process_by_now_is_no_evidence(start, program):
    found = start(program, "60", exe=program)
    reused = replace(found, owners=(replace(found.owners[0], exe=SLEEP),))
    assert allowed(reused, f'exe = "{SLEEP}"') is None
    ended = replace(found, owners=(replace(found.owners[0], pid=2**22 + 1),))
    policy = rules(ended, f'exe = "{program}"')
    collector = Collector(policy)
    assert judge(policy, ended, datetime.now(UTC), collector.collect([ended])).allowed is None
    assert collector.gaps == [], "what vanished is no gap"


def test_a_file_is_read_once_and_within_limits(start, program, monkeypatch):
    found = start(program, "60", exe=program)
    now = 0.0
    collector = Collector(rules(found, f'exe = "{program}"', f'sha256 = "{"0" * 64}"'), clock=lambda: now)
    assert collector.collect([found]).programs[found.owners[0].pid].sha256 == digest(program)
    now += 100
    monkeypatch.setattr(evidence, "_digest", lambda *_: pytest.fail("it was read before"))
    assert collector.collect([found]).programs[found.owners[0].pid].sha256 == digest(program)
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "MOST_HASHED_BYTES", 100)
    fresh = Collector(collector.policy)
    assert fresh.collect([found]).programs[found.owners[0].pid].sha256 is None
    assert [gap.why for gap in fresh.gaps] == [
        f"the SHA-256 of {program} could not be computed: it is larger than 0 GiB"
    ]


def test_only_files_that_a_rule_names_are_read_and_only_for_a_share_of_the_time(start, program, monkeypatch):
    found = start(program, "60", exe=program)
    now = 0.0
    digits = f'sha256 = "{"0" * 64}"'

    def slow(*_: object) -> str:
        nonlocal now
        now += 6
        return "0" * 64

    monkeypatch.setattr(evidence, "_digest", slow)
    other = Collector(rules(found, 'exe = "/usr/bin/other"', digits), clock=lambda: now)
    other.collect([found])
    assert now == 0, "its path is in no rule"
    collector = Collector(rules(found, f'exe = "{program}"', digits), clock=lambda: now)
    seen = []
    for _ in range(4):
        collector._hashes.clear()  # as if it were another file each time
        now += 2
        seen.append(collector.collect([found]).programs[found.owners[0].pid].sha256 is not None)
    assert seen == [True, True, False, False]
    assert "10% of the time" in collector.gaps[0].why
    now += 60
    assert collector.collect([found]).programs[found.owners[0].pid].sha256 is not None


def test_reading_ends_although_the_file_does_not():
    times = iter(range(1000))
    with pytest.raises(ValueError, match="takes more than 5 s"):
        evidence._digest(lambda size: b"x" * size, lambda: next(times))


def test_nothing_is_read_that_no_rule_about_the_port_asks_for(start, program, monkeypatch):
    found = start(program, "60", exe=program)
    monkeypatch.setattr(Collector, "_look_at", lambda *_: pytest.fail("no rule asks for it"))
    policy = parse(f'version = 1\n[[allow]]\nport = {found.local_port}\n[[allow]]\nport = 1\nexe = "/x"\nimage = "y"\n')
    collected = Collector(policy).collect([found])
    assert (collected.programs, collected.images) == ({}, {})
