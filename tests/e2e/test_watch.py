"""``portbook watch`` as a command: what it says of real sockets, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from portbook.events import ALWAYS
from portbook.system import capabilities
from portbook.watching import privileges
from tests.components import need
from tests.conftest import NOBODY, ROOT, unheld_port
from tests.e2e.terminal import ENVIRONMENT, assert_complaint
from tests.e2e.watching import COMMAND, LIMIT_S, capabilities_of, watch
from tests.listeners import SOURCE

if sys.platform == "win32":
    pytest.skip("signals and pipes of Unix; Windows: tests/windows", allow_module_level=True)

RUN = {"env": {**ENVIRONMENT, "PYTHONPATH": SOURCE}, "capture_output": True, "text": True, "timeout": 60}
DENY = 'version = 1\ndefault = "deny"\n'


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, arguments)], check=False, **RUN)


@pytest.fixture
def port() -> int:
    return unheld_port()


# --- lines ---------------------------------------------------------------------------------------------------------


def test_events_are_lines_with_the_names_of_their_fields(port, own_network):
    with socket.create_server(("127.0.0.1", port)), watch("--jsonl", "--no-store", "--grace", 0.1) as running:
        running.wait_for("started")
        present = running.wait_for("present", local_port=port)
        assert (present["pid"], present["protocol"]) == (os.getpid(), "tcp")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", port))
            opened = running.wait_for("opened", local_port=port, protocol="udp")
        assert set(ALWAYS) <= opened.keys()
        assert running.end() == 0
        assert running.complaints() == ""
    kinds = [event["event"] for event in running.events]
    assert (kinds[0], kinds[-1]) == ("started", "stopped")
    assert all(event["at"].endswith("Z") for event in running.events)


def test_lines_for_people_have_the_local_time_with_its_offset(port, own_network):
    with watch("--no-store", env={"TZ": "Asia/Kolkata"}) as running:
        running.wait_for_line(lambda line: b"the watch began" in line)
        with socket.create_server(("127.0.0.1", port)):
            line = running.wait_for_line(lambda line: b"127.0.0.1:%d" % port in line).decode()
        assert running.end() == 0
    assert line[19:28] == " +05:30  "
    assert f"(pid {os.getpid()})" in line


def test_a_query_selects_and_negated_terms_are_no_options(port, own_network):
    with watch("--jsonl", "--no-store", "tcp", f"-{port}") as running:
        running.wait_for("started")
        with socket.create_server(("127.0.0.1", port)), socket.create_server(("127.0.0.1", 0)) as other:
            running.wait_for("opened", local_port=other.getsockname()[1])
        assert running.end() == 0
    assert port not in {event.get("local_port") for event in running.events}


# --- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_signal_ends_it_with_what_was_withheld(name, code, port, own_network):
    with watch("--jsonl", "--no-store") as running:
        running.wait_for("started")
        with socket.create_server(("127.0.0.1", port)):
            running.wait_for("opened", local_port=port)
        assert running.end(getattr(signal, name)) == code
        assert running.complaints() == ""
    last = [event["event"] for event in running.events if event.get("local_port") == port][-1]
    assert last in ("closed", "short_lived")
    assert running.events[-1]["event"] == "stopped"


def test_as_the_first_process_of_a_container():
    need(ROOT, "root, for a pid namespace")
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    with watch("--jsonl", "--no-store", "--feed", "poll", prefix=prefix) as running:
        running.wait_for("started")
        with open(f"/proc/{running.process.pid}/task/{running.process.pid}/children", encoding="ascii") as file:
            os.kill(int(file.read()), signal.SIGTERM)
        running.wait_for("stopped")
        assert running.process.wait(LIMIT_S) == 0


def test_a_hangup_reads_the_policy_again_and_a_broken_one_is_refused(port, own_network, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(f"{DENY}[[allow]]\nport = {port}\n")
    with (
        socket.create_server(("127.0.0.1", port)),
        watch("--jsonl", "--no-store", "--policy", policy) as running,
    ):
        running.wait_for("present", local_port=port)
        policy.write_text(f"{DENY}[[allow]]\nport = 'no port'\n")
        running.process.send_signal(signal.SIGHUP)
        refused = running.wait_for("policy_refused")
        assert f"{policy}:4" in refused["reason"]
        assert not [e for e in running.events if e["event"] == "violation" and e["local_port"] == port]
        policy.write_text(DENY)
        running.process.send_signal(signal.SIGHUP)
        assert running.wait_for("violation", local_port=port)["pid"] == os.getpid()
        policy.write_text(f"{DENY}[[allow]]\nport = {port}\n")
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("recovered", local_port=port)
        assert running.end() == 0
        assert f"{policy}:4" in running.complaints()


# --- the reader of its output --------------------------------------------------------------------------------------


def test_a_reader_that_goes_ends_it_although_nothing_happens(port):
    command = f"{' '.join(COMMAND)} --jsonl --no-store --feed poll {port} | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], check=False, **RUN)
    first, code = done.stdout.splitlines()
    assert json.loads(first)["event"] == "started"
    assert (code, done.stderr) == ("0", "")


def test_without_standard_output_it_is_refused_unless_the_events_go_elsewhere(own_network, tmp_path):
    closed = ("sh", "-c", 'exec "$@" >&-', "sh")
    with watch("--jsonl", "--no-store", "--feed", "poll", prefix=closed) as running:
        assert running.process.wait(LIMIT_S) == 5
        assert running.complaints().startswith("portbook: the output cannot be written")
    log = tmp_path / "log"
    with watch("--no-store", "--feed", "poll", "--sink", f"jsonl:{log}", prefix=closed) as running:
        for _ in range(3000):
            if log.exists() and b"started" in log.read_bytes():
                break
            time.sleep(0.01)
        assert running.end() == 0


def test_a_reader_that_is_too_slow_is_told_what_it_missed():
    code = """
import sys
from datetime import UTC, datetime
from portbook.cli import outlet
outlet.Outlet.__init__.__defaults__ = (100_000,)
from portbook.cli.watch_output import JsonLines
from portbook.events import Event
lines = JsonLines()
at = datetime(2026, 1, 1, tzinfo=UTC)
lines.write([Event(at=at, event="opened", count=i) for i in range(10_000)])
print(len(lines.take_gaps()), file=sys.stderr, flush=True)
sys.stdin.read(1)
lines.outlet.drain(30)
gaps = lines.take_gaps()
lines.write(gaps)
print(lines.close(), gaps[0].count, gaps[0].since == at, file=sys.stderr, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=RUN["env"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stderr.readline() == b"0\n"
        out, err = process.communicate(b"x", timeout=60)
    whole, lost, is_since = err.decode().split()
    events = [json.loads(line) for line in out.splitlines()]
    assert (whole, is_since) == ("True", "True")
    assert (events[-1]["event"], events[-1]["count"]) == ("gap", int(lost))
    assert len(events) - 1 + int(lost) == 10_000


# --- other ways to run it ------------------------------------------------------------------------------------------


def test_once_shows_what_is_there_and_its_exit_code_is_that_of_the_policy(port, own_network, tmp_path):
    policy = tmp_path / "policy.toml"
    policy.write_text(DENY)
    with socket.create_server(("127.0.0.1", port)):
        done = run("--once", "--jsonl", "--policy", policy, f"{port}/tcp")
        assert done.returncode == 4, done
        kinds = [json.loads(line)["event"] for line in done.stdout.splitlines()]
        assert {"started", "present", "violation", "stopped"} <= set(kinds)
        policy.write_text(f"{DENY}[[allow]]\nport = {port}\n")
        assert run("--once", "--policy", policy, f"{port}/tcp").returncode == 0
        policy.write_text(f"{DENY}[[allow]]\nport = {port}\n[[require]]\nport = 1\n")
        assert run("--once", "--policy", policy, f"{port}/tcp").returncode == 4


def test_explain_and_self_test_name_the_feed_that_is_used(own_network):
    explained = run("--explain")
    assert (explained.returncode, explained.stderr) == (0, "")
    (used,) = [line.split(":")[0] for line in explained.stdout.splitlines() if line.endswith(": used here")]
    assert all(f"  {name} " in explained.stdout for name in privileges.KEPT)
    tested = run("--self-test")
    assert tested.returncode == 0, tested
    assert tested.stdout.startswith(f"feed {used}: sees\n")


def test_a_test_of_the_sinks_says_what_became_of_it(tmp_path):
    done = run("--test", "--sink", f"jsonl:{tmp_path}/log")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(": delivered\n")
    assert json.loads((tmp_path / "log").read_text())["event"] == "test"
    assert_complaint(run("--test"), "no sink", "--sink")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inteval = 1", (":1:", "unknown key 'inteval'", "did you mean interval?")),
        ("feed = 'poll'\ninterval = '1'", (":2:", "not a number of seconds")),
        ("interval = nan", (":1:", "not a number of seconds")),
        ("canary = true", (":1:", "not a number of seconds")),
        ("jsonl = 1", (":1:", "neither true nor false")),
        ("store = true", (":1:", "neither a file nor false")),
        ("keep = '90'", ("'90'", "90d")),
        ("sink = 5", (":1:", "[[sink]]")),
        ("policy = ", ("no TOML",)),
        ("feed = 'none'", ("no feed 'none'", "poll")),
    ],
)
def test_a_mistake_in_the_configuration_is_one_line_with_its_place(text, words, tmp_path):
    config = tmp_path / "watch.toml"
    config.write_text(f"{text}\n")
    assert_complaint(run("--once", "--config", config), *words)


def test_the_command_line_wins_over_the_configuration(port, own_network, tmp_path):
    config = tmp_path / "watch.toml"
    sink = f'[[sink]]\ntype = "jsonl"\ntarget = "{tmp_path}/log"\n'
    config.write_text(f'query = "1"\nfeed = "none"\nstore = false\njsonl = true\n{sink}')
    with socket.create_server(("127.0.0.1", port)):
        done = run("--once", "--config", config, "--feed", "poll", f"{port}/tcp")
    assert done.returncode == 0, done
    assert [json.loads(line)["event"] for line in done.stdout.splitlines()] == ["started", "present", "stopped"]


def test_a_configuration_that_others_could_have_written_is_refused(shared_path):
    need(ROOT, "root")
    config = shared_path / "watch.toml"
    config.write_text("feed = 'poll'\n")
    os.chmod(config, 0o666)
    done = run("--once", "--config", config)
    assert (done.returncode, done.stdout) == (5, "")
    assert "can be written by other users" in done.stderr


# --- privileges ----------------------------------------------------------------------------------------------------


def test_every_thread_has_the_capabilities_that_are_kept_and_no_more(own_network, tmp_path):
    need(ROOT and sys.platform == "linux", "root, to have capabilities")
    kept = sum(1 << capabilities.NUMBERS[name] for name in privileges.KEPT)
    with watch("--jsonl", "--no-store", "--canary", 0.2, "--sink", f"text:{tmp_path}/log") as running:
        running.wait_for("started")
        for _ in range(20):
            found = capabilities_of(running.process.pid)
            assert all(int(text, 16) & ~kept == 0 for text in found), found
            time.sleep(0.02)
        assert {int(text, 16) for text in found} == {kept}
        assert running.end() == 0


def test_an_ordinary_user_watches_what_the_system_shows(port, as_nobody, shared_path):
    script = (
        f"{' '.join(COMMAND)} --jsonl --no-store --grace 0.1 --interval 0.2 {port}/tcp > {shared_path}/out & pid=$!; "
        f"for i in $(seq 500); do grep -q started {shared_path}/out && break; sleep 0.02; done; "
        f"{sys.executable} -c \"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(1)\"; "
        "sleep 0.5; kill $pid; wait $pid; echo $?"
    )
    os.chmod(shared_path, 0o777)
    done = as_nobody("sh", "-c", script, env={"PYTHONPATH": SOURCE})
    assert (done.stdout, done.stderr) == ("0\n", "")
    events = [json.loads(line) for line in (shared_path / "out").read_text().splitlines()]
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("started", "stopped")
    (opened,) = [event for event in events if event["event"] == "opened"]
    assert (opened["local_port"], opened["uid"]) == (port, NOBODY)


def test_a_history_that_cannot_be_kept_is_refused_with_what_to_do(as_nobody):
    done = as_nobody(*COMMAND, "--jsonl", "--feed", "poll", env={"PYTHONPATH": SOURCE, "HOME": "/nonexistent"})
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.count("\n") == 1
    assert "--no-store" in done.stderr
