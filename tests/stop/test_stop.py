"""Ending the holders of a port: real processes, asserted by the kernel and by a bind of the test's own."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time

import pytest
from msgspec.structs import replace

from portbook import take
from portbook.errors import SourceDenied, SourceError, UsageError
from portbook.stop import handle, run
from portbook.stop.run import carry_out, plan_stop
from portbook.testing import FakeSource, only_sources
from tests.components import need
from tests.conftest import NOBODY, ROOT, as_user, unheld_port
from tests.rounds import until
from tests.stop.conftest import PRELUDE, answers, can_be_bound, portbook, runs

pytestmark = [
    pytest.mark.usefixtures("own_network"),
    pytest.mark.skipif(sys.platform == "win32", reason="signals and forks; tests/windows/test_stop.py is for Windows"),
]
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, namespaces")

LISTEN = "one = listen(*sys.argv[1:]); say(port_of(one)); sleep()"
BOUND = 'one = socket.socket(); one.bind(("127.0.0.1", 0)); say(port_of(one)); sleep()'
UDP = """
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("127.0.0.1", 0))
say(port_of(one))
sleep()
"""
SIX = """
one = socket.socket(socket.AF_INET6)
one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
one.bind(("::", 0))
one.listen()
say(port_of(one))
sleep()
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + LISTEN
CONNECT = 'one = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); say(); sleep()'


@pytest.mark.parametrize(
    ("script", "suffix", "address", "kind"),
    [
        (LISTEN, "", "127.0.0.1", socket.SOCK_STREAM),
        (LISTEN, "/tcp", "127.0.0.1", socket.SOCK_STREAM),
        (BOUND, "", "127.0.0.1", socket.SOCK_STREAM),
        (UDP, "/udp", "127.0.0.1", socket.SOCK_DGRAM),
        (SIX, "", "::", socket.SOCK_STREAM),
    ],
)
def test_the_holder_ends_and_the_port_can_be_bound(start, script, suffix, address, kind):
    server = start(script)
    assert not can_be_bound(server.said, address, kind)
    done = portbook(f"{server.said}{suffix}", "--yes")
    assert done.returncode == 0, done
    assert server.process.wait(5) == -signal.SIGTERM
    assert can_be_bound(server.said, address, kind)
    assert f"(pid {server.pid}) ended (SIGTERM)" in done.stdout


def test_a_free_port_is_free():
    port = unheld_port()
    done = portbook(port)
    assert (done.returncode, done.stdout) == (0, f"nobody holds port {port}/tcp\n")


def test_a_port_held_over_the_other_protocol_is_free_and_mentioned(start):
    server = start(UDP)
    done = portbook(server.said, "--yes")
    assert (done.returncode, server.alive) == (0, True)
    assert f"{server.said}/udp" in done.stderr


BOTH = """
one = listen()
two = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
two.bind(("127.0.0.1", port_of(one)))
say(port_of(one))
sleep()
"""


def test_the_same_number_over_the_other_protocol_is_said_before_and_after(start):
    """As a DNS server, which has 53/tcp and 53/udp: a port is a number and a protocol."""
    server = start(BOTH)
    port = server.said
    done = portbook(port, "--dry-run")
    assert f"also ends   {port}/udp, which the same process holds" in done.stdout
    (answer,) = answers(portbook(port, "--yes", "--json"))
    assert (answer["result"], answer["note"]) == ("stopped", f"{port}/udp was held by the same process, too")
    assert can_be_bound(port, kind=socket.SOCK_DGRAM)


def test_the_question_names_the_other_protocol_unless_it_was_asked_for(start):
    from portbook.render.stop import question

    server = start(BOTH)
    tcp, udp = plan_stop(server.said), plan_stop(server.said, "udp")
    assert question([tcp], []).endswith(f"(pid {server.pid}), with {server.said}/udp? [y/N] ")
    assert question([udp], []).endswith(f"(pid {server.pid}), with {server.said}/tcp? [y/N] ")
    assert question([tcp, udp], []).endswith(f"(pid {server.pid})? [y/N] ")


# --- who is left alone ---------------------------------------------------------------------------------------------

SERVE = """
one = listen()
say(port_of(one))
kept = [one.accept()[0] for _ in range(int(sys.argv[1]))]
sleep()
"""
HAND_OVER = """
one = listen()
say(port_of(one))
accepted, _ = one.accept()
script = "import time; time.sleep(600)"
worker = subprocess.Popen([sys.executable, "-I", "-S", "-c", script], pass_fds=[accepted.fileno()])
accepted.close()
say(worker.pid)
sleep()
"""


def test_clients_survive(start):
    server = start(SERVE, 2)
    clients = [start(CONNECT, server.said) for _ in range(2)]
    done = portbook(server.said, "--yes")
    assert done.returncode == 0, done
    assert server.process.wait(5) == -signal.SIGTERM
    assert [client.alive for client in clients] == [True, True]


@on_linux
def test_who_has_only_an_accepted_connection_survives(start):
    server = start(HAND_OVER)
    client = start(CONNECT, server.said)
    worker = int(server.process.stdout.readline().strip(b"[]\n").split(b",")[1])
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert (answer["result"], [e["pid"] for e in answer["ended"]]) == ("stopped", [server.pid])
    assert runs(worker)
    assert client.alive


REFUSE_TO_SHARE = """
one = socket.socket()
one.bind(("127.0.0.1", 0))
one.listen()
say(port_of(one))
accepted, _ = one.accept()
one.close()
sleep()
"""


@on_linux
def test_connections_that_block_a_bind_are_shown_without_a_listener(start):
    """Without SO_REUSEADDR on the closed listener, its connections keep the port: socket(7)."""
    server = start(REFUSE_TO_SHARE)
    client = start(CONNECT, server.said)
    until(lambda: [s.state for s in take(f"port:{server.said}").sockets] == ["ESTABLISHED"], "the listener's end")
    assert not can_be_bound(server.said)
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert ([r["code"] for r in answer["refusals"]], server.alive) == (["connected"], True)
    (answer,) = answers(portbook(server.said, "--yes", "--override", "--timeout", 0.3, "--json"))
    assert [e["pid"] for e in answer["ended"]] == [server.pid]
    assert server.process.wait(5) == -signal.SIGTERM
    assert client.alive
    # Its end of the connection outlives it: the client has not closed its own.
    assert (answer["result"], can_be_bound(server.said)) == ("still-held", False)
    assert "FIN_WAIT2" in answer["note"]


@on_linux
def test_a_client_whose_own_port_it_is_survives(start):
    """The kernel gave it the port; a user who names the port does not mean the client."""
    client = start('one = socket.create_connection(("127.0.0.1", int(sys.argv[1]))); say(port_of(one)); sleep()',
                   start(SERVE, 1).said)  # fmt: skip
    assert not can_be_bound(client.said)
    done = portbook(client.said, "--yes", "--force", "--json")
    (answer,) = answers(done)
    assert (done.returncode, [r["code"] for r in answer["refusals"]], client.alive) == (1, ["connected"], True)


@on_linux
def test_connections_that_block_no_bind_are_left_alone(start):
    server = start("one = listen(); say(port_of(one)); kept, _ = one.accept(); one.close(); sleep()")
    client = start(CONNECT, server.said)
    until(lambda: can_be_bound(server.said), "the listener's end")
    assert portbook(server.said, "--yes").returncode == 0
    assert (server.alive, client.alive) == (True, True)


CLOSE_FIRST = """
one = listen()
client = socket.create_connection(one.getsockname())
accepted, _ = one.accept()
accepted.close()
client.recv(1)
client.close()
say(port_of(one))
sleep()
"""


@on_linux
def test_time_wait_does_not_count(start):
    server = start(CLOSE_FIRST)
    (answer,) = answers(portbook(server.said, "--yes", "--json"))
    assert answer["result"] == "stopped"
    assert any(s.state == "TIME_WAIT" for s in take(f"port:{server.said}").sockets)


# --- stubborn, graceful, restarted ---------------------------------------------------------------------------------


def test_a_stubborn_process_is_left_running_without_force_and_ended_with_it(start):
    server = start(STUBBORN)
    done = portbook(server.said, "--yes", "--timeout", 0.3)
    assert (done.returncode, server.alive, can_be_bound(server.said)) == (1, True, False)
    assert "--force" in done.stdout
    (answer,) = answers(portbook(server.said, "--yes", "--timeout", 0.3, "--force", "--json"))
    assert answer["ended"][0]["by"] == ["SIGTERM", "SIGKILL"]
    assert server.process.wait(5) == -signal.SIGKILL
    assert can_be_bound(server.said)


@on_linux
@pytest.mark.parametrize("portable", [False, True])
def test_a_suspended_process_can_end(start, monkeypatch, portable):
    """Ctrl-Z: it acts on SIGTERM only after SIGCONT, signal(7)."""
    if portable:
        monkeypatch.setattr(handle, "MODULES", {})
    server = start(LISTEN)
    os.kill(server.pid, signal.SIGSTOP)
    answer = carry_out(plan_stop(server.said))
    assert (answer.result, answer.ended[0].by) == ("stopped", ("SIGTERM",))
    assert server.process.wait(5) == -signal.SIGTERM


def test_a_process_that_closes_the_port_and_works_on_is_not_killed(start):
    script = """
def drain(*_):
    one.close()
signal.signal(signal.SIGTERM, drain)
one = listen()
say(port_of(one))
sleep()
"""
    server = start(script)
    (answer,) = answers(portbook(server.said, "--yes", "--force", "--json"))
    assert (answer["result"], answer["ended"][0]["fate"]) == ("stopped", "let-go")
    assert (server.alive, can_be_bound(server.said)) == (True, True)


SUPERVISOR = """
server = "import socket, sys, time; one = socket.create_server(('127.0.0.1', int(sys.argv[1]))); time.sleep(600)"
port = sys.argv[1]
for turn in range(50):
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", server, port])
    if turn == 0:
        while True:
            try:
                socket.create_connection(("127.0.0.1", int(port))).close()
                break
            except OSError:
                time.sleep(0.01)
        say(child.pid)
    child.wait()
"""


def test_a_restart_is_reported_with_the_process_that_did_it(start):
    port = unheld_port()
    supervisor = start(SUPERVISOR, port)
    done = portbook(port, "--yes", "--json")
    (answer,) = answers(done)
    assert (done.returncode, answer["result"]) == (1, "restarted")
    assert answer["restarted_by"]["pid"] == supervisor.pid
    assert [owner["pid"] for owner in answer["held_by"]] != [supervisor.said]
    assert not runs(supervisor.said)


@on_linux
def test_a_known_supervisor_is_named_before_anything_is_ended(start):
    port = unheld_port()
    supervisor = start('open("/proc/self/comm", "w").write("runsv")\n' + SUPERVISOR, port)
    (answer,) = answers(portbook(port, "--yes", "--json"))
    assert (answer["result"], [r["code"] for r in answer["refusals"]]) == ("refused", ["managed"])
    assert "sv stop" in answer["refusals"][0]["hint"]
    assert runs(supervisor.said)
    (answer,) = answers(portbook(port, "--yes", "--override", "--json"))
    assert answer["result"] == "restarted"


GRAB = """
if os.fork():
    os._exit(0)
os.setsid()
say()
while True:
    try:
        one = listen(sys.argv[1])
        break
    except OSError:
        time.sleep(0.002)
sleep()
"""


@on_linux
def test_somebody_else_who_takes_the_port_is_not_called_a_restart(start):
    server = start(LISTEN)
    # Its parent has ended: nothing connects it with the server but the port.
    thief = start(GRAB, server.said)
    try:
        (answer,) = answers(portbook(server.said, "--yes", "--json"))
        assert (answer["result"], [o["pid"] for o in answer["held_by"]]) == ("taken", [thief.pid])
    finally:
        os.kill(thief.pid, signal.SIGKILL)


# --- several holders -----------------------------------------------------------------------------------------------

TREE = """
one = listen()
mode = sys.argv[1]
def work():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    while True:
        time.sleep(60)
def fork():
    pid = os.fork()
    if pid == 0:
        work()
    return pid
workers = [fork() for _ in range(3)]
def end(*_):
    if mode == "takes them along":
        for pid in workers:
            os.kill(pid, signal.SIGTERM)
    if mode == "forks one more":
        fork()
    os._exit(0)
signal.signal(signal.SIGTERM, end)
say([port_of(one), workers])
while True:
    pid, _ = os.wait()
    workers[workers.index(pid)] = fork()
"""


@on_linux
@pytest.mark.parametrize("mode", ["takes them along", "leaves them", "forks one more"])
def test_a_fork_tree_ends_master_first(start, mode):
    """The master starts a new worker for each that ends: had they been ended first, there would be no end."""
    master = start(TREE, mode)
    port, workers = master.said
    (answer,) = answers(portbook(port, "--yes", "--json"))
    assert answer["result"] == "stopped", answer
    assert [t["wave"] for t in answer["targets"]] == [0, 1, 1, 1]
    assert [e["pid"] for e in answer["ended"]][:4] == [master.pid, *sorted(workers)]
    assert len(answer["ended"]) == (5 if mode == "forks one more" else 4)
    assert {e["fate"] for e in answer["ended"]} == {"ended"}
    assert not any(map(runs, workers))
    assert can_be_bound(port)
    if mode == "takes them along":
        assert [e["by"] for e in answer["ended"]] == [["SIGTERM"], [], [], []]


@on_linux
def test_a_stubborn_master_keeps_its_workers(start):
    """Nothing is half ended: while the master runs, its workers would only be started again."""
    master = start(
        TREE.replace("signal.signal(signal.SIGTERM, end)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"), ""
    )
    port, workers = master.said
    (answer,) = answers(portbook(port, "--yes", "--timeout", 0.3, "--json"))
    assert answer["result"] == "still-held"
    assert [e["fate"] for e in answer["ended"]] == ["still-running", "untouched", "untouched", "untouched"]
    assert all(map(runs, workers))
    (answer,) = answers(portbook(port, "--yes", "--timeout", 0.3, "--force", "--json"))
    assert answer["result"] == "stopped"
    assert not any(map(runs, [master.pid, *workers]))


MATE = """
one = socket.socket()
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
one.bind(("127.0.0.1", int(sys.argv[1])))
one.listen()
say(port_of(one))
sleep()
"""


@on_linux
def test_all_of_a_reuseport_group_end(start):
    first = start(MATE, 0)
    group = [first, *(start(MATE, first.said) for _ in range(3))]
    (answer,) = answers(portbook(first.said, "--yes", "--json"))
    assert answer["result"] == "stopped"
    assert {e["pid"] for e in answer["ended"]} == {mate.pid for mate in group}
    assert [mate.process.wait(5) for mate in group] == [-signal.SIGTERM] * 4


def test_several_ports_of_one_process(start):
    server = start("both = [listen(), listen()]; say([port_of(one) for one in both]); sleep()")
    first, second = server.said
    assert f"other ports {second}/tcp" in portbook(first, "--dry-run").stdout
    done = portbook(first, second, "--yes", "--json")
    assert (done.returncode, [a["result"] for a in answers(done)]) == (0, ["stopped", "stopped"])


def test_nothing_is_ended_unless_all_can_be(start):
    server = start(LISTEN)
    with socket.create_server(("127.0.0.1", 0)) as ours:  # of an ancestor of the command
        done = portbook(server.said, ours.getsockname()[1], "--yes", "--json")
    assert (done.returncode, [a["result"] for a in answers(done)]) == (1, ["refused", "refused"])
    assert server.alive


# --- refusals ------------------------------------------------------------------------------------------------------


def test_without_a_terminal_and_yes_nothing_is_ended(start):
    server = start(LISTEN)
    done = portbook(server.said)
    assert (done.returncode, server.alive) == (1, True)
    assert "--yes" in done.stdout
    assert f"pid {server.pid}" in done.stdout


def test_a_dry_run_shows_and_ends_nothing(start):
    server = start(LISTEN)
    done = portbook(server.said, "--dry-run", "--yes", "--force")
    assert (done.returncode, server.alive) == (0, True)
    assert f"pid {server.pid}" in done.stdout
    (answer,) = answers(portbook(server.said, "--dry-run", "--json"))
    assert (answer["result"], answer["ended"]) == ("would-stop", [])


def test_a_dry_run_of_what_would_be_refused_is_a_no():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        assert portbook(ours.getsockname()[1], "--dry-run").returncode == 1


def test_an_ancestor_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        done = portbook(ours.getsockname()[1], "--yes", "--json")
    (answer,) = answers(done)
    (refusal,) = answer["refusals"]
    assert (done.returncode, refusal["code"], refusal["overridden_by"]) == (1, "ancestor", ["override"])


BELOW = """
ended = []
def end(*_):
    one.close()
    ended.append(True)
signal.signal(signal.SIGTERM, end)
one = listen()
done = subprocess.run([*sys.argv[1:], str(port_of(one)), "--yes", "--override", "--json"], capture_output=True)
say([ended, done.returncode, done.stdout.decode()])
sleep()
"""


def test_an_ancestor_that_is_known_to_be_one_is_ended(start):
    environment = {**os.environ, "PYTHONPATH": os.path.join(os.path.dirname(run.__file__), "..", "..")}
    server = start(BELOW, sys.executable, "-m", "portbook", "stop", env=environment)
    ended, code, _ = server.said
    assert (ended, code) == ([True], 0)


def test_this_process_is_never_ended():
    with socket.create_server(("127.0.0.1", 0)) as ours:
        plan = plan_stop(ours.getsockname()[1])
        assert [(r.code, r.overridden_by) for r in plan.targets[0].refusals] == [("self", ())]
        answer = carry_out(plan, overrides=("override", "via-manager"))
    assert (answer.result, answer.ended) == ("refused", ())


@on_linux
def test_a_protected_name_is_refused_until_it_is_known(start):
    server = start('open("/proc/self/comm", "w").write("sshd")\n' + LISTEN)
    (answer,) = answers(portbook(server.said, "--yes", "--force", "--json"))
    assert ([r["code"] for r in answer["refusals"]], server.alive) == (["protected"], True)
    assert "reachable" in answer["refusals"][0]["why"]
    assert portbook(server.said, "--yes", "--override").returncode == 0
    assert server.process.wait(5) == -signal.SIGTERM


@on_linux
@pytest.mark.root
def test_another_users_process_is_not_visible_and_nothing_is_ended(start):
    need(ROOT, "root, to be somebody else")
    server = start(LISTEN)
    done = as_user(NOBODY, sys.executable, "-m", "portbook", "stop", str(server.said), "--yes", "--force")
    assert (done.returncode, server.alive) == (1, True), done
    assert "sudo" in done.stdout


OWN = """
import json, subprocess, sys
server = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE)
port = str(json.loads(server.stdout.readline())[1])
done = subprocess.run([sys.executable, "-m", "portbook", "stop", port, "--yes", "--json"], capture_output=True)
print(json.dumps([done.returncode, json.loads(done.stdout)["result"], server.wait(10)]))
"""


@on_linux
@pytest.mark.root
def test_no_privilege_is_needed_for_ones_own():
    need(ROOT, "root, to be somebody else")
    done = as_user(NOBODY, sys.executable, "-c", OWN, PRELUDE + LISTEN)
    assert json.loads(done.stdout) == [0, "stopped", -signal.SIGTERM], done


@on_linux
@pytest.mark.root
def test_another_users_process_that_is_visible_may_still_not_be_ended(start):
    """Two capabilities show every process's descriptors; CAP_KILL would be needed to signal one: capabilities(7)."""
    need(ROOT, "root, to be somebody else")
    server = start(LISTEN)
    may = "+sys_ptrace,+dac_read_search"
    ptrace = ("setpriv", f"--reuid={NOBODY}", "--clear-groups", f"--inh-caps={may}", f"--ambient-caps={may}")
    done = as_user(0, *ptrace, sys.executable, "-m", "portbook", "stop", str(server.said), "--yes", "--force", "--json")
    (answer,) = answers(done)
    (refusal,) = answer["refusals"]
    assert (done.returncode, refusal["code"], refusal["hint"], server.alive) == (
        1,
        "not-permitted",
        "run with sudo",
        True,
    )
    assert "root" in refusal["why"]


# --- between the look and the act ----------------------------------------------------------------------------------


def test_who_has_ended_meanwhile_is_no_failure(start):
    server = start(LISTEN)
    plan = plan_stop(server.said)
    server.process.kill()
    server.process.wait()
    answer = carry_out(plan)
    assert (answer.result, [e.fate for e in answer.ended]) == ("stopped", ["gone"])


def test_a_process_that_closed_the_port_meanwhile_is_not_ended(start):
    server = start("one = listen(); signal.signal(10, lambda *_: one.close()); say(port_of(one)); sleep()")
    plan = plan_stop(server.said)
    os.kill(server.pid, signal.SIGUSR1)
    until(lambda: can_be_bound(server.said), "the listener's end")
    answer = carry_out(plan, force=True)
    assert (answer.result, [e.fate for e in answer.ended]) == ("stopped", ["not-holding"])
    assert server.alive


def test_another_process_with_the_same_pid_is_not_ended(start):
    """As after a reuse: what was looked up says another start time than the process that has the pid now."""
    server = start(MATE, 0)
    time.sleep(0.05)  # start times have ticks of 10 ms
    other = start(MATE, server.said)
    plan = plan_stop(server.said)
    (target,) = [t for t in plan.targets if t.holder.owner.pid == server.pid]
    mine = replace(target.holder, owner=replace(target.holder.owner, pid=other.pid))
    server.process.kill()
    server.process.wait()
    answer = carry_out(replace(plan, targets=(replace(target, holder=mine),)), force=True, timeout_s=0.2)
    assert [e.fate for e in answer.ended] == ["replaced"]
    assert answer.result != "stopped"
    assert other.alive


REUSE = """
import portbook.stop.run as stop
server = subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1], "0"], stdout=subprocess.PIPE)
pid, port = json.loads(server.stdout.readline())
plan = stop.plan_stop(port)
server.kill()
server.wait()
time.sleep(0.1)
for _ in range(200):
    with open("/proc/sys/kernel/ns_last_pid", "w") as last:
        last.write(str(pid - 1))
    bystander = subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1], str(port)], stdout=subprocess.PIPE)
    if bystander.pid == pid:
        break
    bystander.kill()
    bystander.wait()
bystander.stdout.readline()
answer = stop.carry_out(plan, force=True, timeout_s=0.2)
say([pid, bystander.pid, [e.fate for e in answer.ended], answer.result, bystander.poll()])
"""


@on_linux
@pytest.mark.root
def test_a_pid_that_is_really_used_again_is_not_hit(start):
    """In a pid namespace of its own the next pid can be chosen (pid_namespaces(7)). The new one even has the port."""
    need(ROOT, "root, for a pid namespace")
    source = os.path.abspath(os.path.join(os.path.dirname(run.__file__), "..", ".."))
    sites = [path for path in sys.path if path.endswith("site-packages")]
    script = f"import sys; sys.path[:0] = {[source, *sites]!r}\n" + PRELUDE + REUSE
    launch = "import os, sys; os.execvp('unshare', ['unshare', '--pid', '--fork', '--mount-proc', '--kill-child', "
    launch += "sys.executable, '-I', '-S', '-c', *sys.argv[1:]])"
    done = start(launch, script, PRELUDE + LISTEN)
    before, after, fates, result, ended = done.said
    assert (before, fates, ended) == (after, ["replaced"], None)
    assert result in ("restarted", "taken")


@on_linux
def test_only_the_planned_processes_are_ended(start, monkeypatch):
    """Holders come and go between look and act; one that came later shares the port and survives, every time."""
    monkeypatch.setattr(run, "WATCH_S", 0.0)
    chance = random.Random(7)
    for _ in range(15):
        first = start(MATE, 0)
        group = [first, *(start(MATE, first.said) for _ in range(2))]
        plan = plan_stop(first.said)
        leaving = chance.sample(group, chance.randint(0, 2))
        for mate in leaving:
            mate.process.kill()
        late = [start(MATE, first.said) for _ in range(2)]
        answer = carry_out(plan)
        assert {e.pid for e in answer.ended} == {mate.pid for mate in group}
        assert {e.fate for e in answer.ended} <= {"ended", "gone"}
        assert [mate.alive for mate in late] == [True, True]
        assert all(mate.process.wait(5) for mate in group)
        assert {owner.pid for owner in answer.held_by} == {mate.pid for mate in late}


def test_where_no_handle_is_to_be_had_it_works_by_start_times(start, monkeypatch):
    """As on macOS: the module for any other system, here on this one."""
    monkeypatch.setattr(handle, "MODULES", {})
    server, stubborn = start(LISTEN), start(STUBBORN)
    assert carry_out(plan_stop(server.said)).result == "stopped"
    answer = carry_out(plan_stop(stubborn.said), timeout_s=0.2, force=True)
    assert (answer.result, answer.ended[0].by) == ("stopped", ("SIGTERM", "SIGKILL"))
    assert (server.process.wait(5), stubborn.process.wait(5)) == (-signal.SIGTERM, -signal.SIGKILL)


def test_a_machine_that_cannot_be_read_is_an_error():
    with only_sources(FakeSource(fails=SourceDenied("no"))), pytest.raises(SourceError):
        plan_stop(80)


# --- usage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        (["0"], "1 to 65535"),
        (["90-80"], "90-80"),
        (["80/sctp"], "tcp, udp"),
        ([], "--help"),
        (["80", "--timeout", "-1"], ""),
    ],
)
def test_a_mistake_is_exit_code_2(arguments, valid):
    done = portbook(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert valid in done.stderr


def test_an_unknown_protocol_is_a_usage_error():
    with pytest.raises(UsageError, match="tcp, udp"):
        plan_stop(80, "sctp")
