"""A listener handed to a process that nobody was shown: unix(7), SCM_RIGHTS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from portbook.stop.run import carry_out, plan_stop
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.rounds import until
from tests.stop.conftest import answers, portbook

pytestmark = [
    pytest.mark.root,
    pytest.mark.usefixtures("own_network"),
    pytest.mark.skipif(sys.platform != "linux", reason="SCM_RIGHTS, users"),
]

DAEMON = """
at = socket.socket(socket.AF_UNIX)
at.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
at.listen()
say()
kept = []
while True:
    connection, _ = at.accept()
    kept.append(socket.recv_fds(connection, 10, 4))
    connection.sendall(b"x")
"""
BECOME = f"""
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
"""
HAND_OVER = """
def hand_over(*_):
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(sys.argv[1])
        socket.send_fds(to, [b"x"], [one.fileno()])
        to.recv(1)
    if sys.argv[2] == "and end":
        os._exit(0)
one = listen()
signal.signal(signal.SIGTERM, lambda *_: (hand_over(), os._exit(0)))
if sys.argv[2] != "when asked":
    hand_over()
say(port_of(one))
sleep()
"""


@pytest.fixture
def daemon(start, shared_path):
    """A daemon of root that accepts descriptors from anybody, as many do."""
    need(ROOT, "root, to be two users")
    path = str(shared_path / "socket")
    running = start(DAEMON, path)
    return running, path


def test_a_daemon_that_was_given_the_socket_meanwhile_is_reported_and_not_touched(start, daemon):
    running, path = daemon
    attacker = start(BECOME + HAND_OVER, path, "when asked")
    done = portbook(attacker.said, "--yes", "--force", "--timeout", 2, "--json")
    (answer,) = answers(done)
    assert running.alive
    assert [e["pid"] for e in answer["ended"]] == [attacker.pid]
    assert (done.returncode, answer["result"]) == (1, "still-held")
    assert [o["pid"] for o in answer["held_by"]] == [running.pid]
    assert f"(pid {running.pid}), which was not touched" in answer["note"]


def test_a_daemon_that_was_given_the_socket_before_is_refused(start, daemon):
    """Among the holders that are shown, but --yes shows them to nobody."""
    running, path = daemon
    attacker = start(BECOME + HAND_OVER, path, "before")
    (answer,) = answers(portbook(attacker.said, "--yes", "--json"))
    assert (running.alive, attacker.alive, answer["ended"]) == (True, True, [])
    by_pid = {t["holder"]["owner"]["pid"]: [r["code"] for r in t["refusals"]] for t in answer["targets"]}
    assert by_pid == {running.pid: ["handed-over"], attacker.pid: []}
    assert "nobody" in answer["refusals"][0]["why"]


def test_a_daemon_that_alone_has_the_socket_of_a_user_is_refused(start, daemon):
    running, path = daemon
    script = HAND_OVER.replace("say(port_of(one))", "").replace(
        "    hand_over()\n", "    say(port_of(one)); hand_over()\n"
    )
    attacker = start(BECOME + script, path, "and end")
    attacker.process.wait(10)
    (answer,) = answers(portbook(attacker.said, "--yes", "--json"))
    assert (running.alive, [r["code"] for r in answer["refusals"]]) == (True, ["handed-over"])


def test_a_users_own_process_that_is_older_than_the_plan_is_no_heir(start, tmp_path):
    """Of the same user: it could have been forked, had it started after the plan."""
    path = str(tmp_path / "socket")
    running = start(DAEMON, path)
    server = start(HAND_OVER, path, "when asked")
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert (running.alive, answer["result"]) == (True, "still-held")
    assert f"(pid {running.pid}), which was not touched" in answer["note"]


def test_a_child_that_was_forked_after_the_plan_is_an_heir(start):
    """Between the plan and the signal, while the user reads the question; its parent is gone when it is found."""
    server = start(
        """
one = listen()
def fork(*_):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sleep()
signal.signal(signal.SIGUSR1, fork)
say(port_of(one))
sleep()
"""
    )
    plan = plan_stop(server.said)
    os.kill(server.pid, 10)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    until(children.read_text, "the fork")
    answer = carry_out(plan)
    assert (answer.result, len(answer.ended)) == ("stopped", 2)
    assert carry_out(replace(plan, made_at=None)).result == "stopped"


DROP = """
one = listen(sys.argv[1])
if os.fork() == 0:
    os.setgid(65534)
    os.setuid(65534)
    sleep()
say(port_of(one))
sleep()
"""


@pytest.mark.parametrize("script", ["one = listen()\n" + BECOME + "say(port_of(one)); sleep()", DROP])
def test_a_server_that_gives_up_root_is_ended_as_any_other(start, script):
    need(ROOT, "root, to be another user")
    server = start(script, 0)
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert (answer["result"], answer["refusals"]) == ("stopped", [])
