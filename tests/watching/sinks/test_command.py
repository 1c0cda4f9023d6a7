"""Command hooks: what they get, and hooks that hang, fail, ignore signals, print without end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import psutil
import pytest

from portbook.errors import SourceMissing, UsageError
from portbook.watching.sinks import command
from portbook.watching.sinks.dispatch import open_sinks
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.watching.sinks.events import LIMIT_S, event, settings, wait_until


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory that counts as ours alone: those above it may be written by all, as /tmp."""
    upwards = command._upwards
    monkeypatch.setattr(
        command, "_upwards", lambda path: [one for one in upwards(path) if one.startswith(str(tmp_path))]
    )
    return tmp_path


@pytest.fixture
def hook(place):
    """A program with this script, which finds its directory in $PLACE."""

    def write(script, interpreter="/bin/sh"):
        path = place / "hook"
        path.write_text(f"#!{interpreter}\nPLACE={place}\n{script}\n")
        path.chmod(0o700)
        return path

    return write


@pytest.fixture
def run(hook):
    pipelines = []

    def start(script, arguments="", **options):
        pipeline = open_sinks([settings("command", f"{hook(script)} {arguments}", **options)])
        pipelines.append(pipeline)
        return pipeline

    yield start
    for pipeline in pipelines:
        pipeline.close(0.1)


def reasons(pipeline):
    return [(gap.count, gap.reason.partition("hook: ")[2]) for gap in pipeline.take_gaps()]


def test_it_gets_the_event_on_stdin_and_in_the_environment(run, place, monkeypatch):
    monkeypatch.setenv("PORTBOOK_WEBHOOK_SECRET", "hunter2")
    monkeypatch.setenv("WANTED", "yes")
    pipeline = run(
        'cat >$PLACE/stdin; env -0 >$PLACE/env; for a in "$@"; do echo "$a"; done >$PLACE/arguments',
        "one 'two words' \"\" '$(id)' ';id'",
        environment=("WANTED", "MISSING"),
    )
    hostile = "a\nPORTBOOK_UID=0\nLD_PRELOAD=/x\0\x1b[31m$(touch /tmp/x)`id`"
    one = event(1, name=hostile, service="漢字")
    pipeline.write([one])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.take_gaps() == []
    assert (place / "arguments").read_text().splitlines() == ["one", "two words", "", "$(id)", ";id"]
    record = json.loads((place / "stdin").read_bytes())
    assert (record["name"], record["service"]) == (hostile, "漢字"), "JSON has the exact text"
    variables = dict(entry.partition("=")[::2] for entry in (place / "env").read_text().split("\0") if entry)
    assert variables["PORTBOOK_NAME"] == r"a\nPORTBOOK_UID=0\nLD_PRELOAD=/x\x00\x1b[31m$(touch /tmp/x)`id`"
    assert (variables["PORTBOOK_EVENT"], variables["PORTBOOK_LOCAL_PORT"]) == ("opened", "8000")
    assert "now listens on" in variables["PORTBOOK_MESSAGE"]
    assert variables["WANTED"] == "yes"
    others = {name for name in variables if not name.startswith("PORTBOOK_")}
    assert others <= {"LC_ALL", "PATH", "WANTED", "PWD", "OLDPWD", "SHLVL", "_"}
    assert "PORTBOOK_UID" not in variables
    assert "hunter2" not in str(variables)


def test_one_at_a_time_and_in_order(run, place):
    pipeline = run(
        "mkdir $PLACE/running || echo twice >>$PLACE/log\necho $PORTBOOK_COOKIE >>$PLACE/log\nrmdir $PLACE/running"
    )
    pipeline.write([event(n) for n in range(20)])
    assert pipeline.flush(LIMIT_S)
    assert (place / "log").read_text().split() == [str(n) for n in range(20)]


def test_a_hook_that_fails_is_counted_with_its_words_and_the_others_follow(run, place):
    pipeline = run('[ $PORTBOOK_COOKIE = 2 ] && { printf "no\\033[31m way\\nmore" >&2; exit 3; }; echo >>$PLACE/log')
    pipeline.write([event(n) for n in range(5)])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == [(1, r"hook ended with exit code 3: no\x1b[31m way")]
    assert len((place / "log").read_text()) == 4


def test_a_temporary_failure_is_tried_again(run, place):
    pipeline = run("[ -e $PLACE/later ] || { touch $PLACE/later; exit 75; }; echo $PORTBOOK_COOKIE >>$PLACE/log")
    pipeline.write([event(n) for n in range(3)])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == []
    assert (place / "log").read_text().split() == ["0", "1", "2"]


@pytest.mark.parametrize(
    "script", ["sleep 60", "trap '' TERM HUP INT; sleep 60 & wait", "sleep 60 & echo $! >$PLACE/child; wait"]
)
def test_a_hook_that_hangs_is_killed_with_what_it_started(run, place, script):
    pipeline = run(f"echo $$ >>$PLACE/pids\n[ $PORTBOOK_COOKIE = 0 ] || exit 0\n{script}", timeout_s=0.2)
    pipeline.write([event(0), event(1)])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == [(1, "hook did not finish within 0.2 s")]
    pids = [int(pid) for path in place.glob("[cp]*") for pid in path.read_text().split()]
    assert len(pids) >= 2, "the next event has its own"
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_output_without_end_is_dropped(run):
    pipeline = run("yes | head -c 3000000; yes | head -c 3000000 >&2; exit 1")
    pipeline.write([event(0)])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == [(1, "hook ended with exit code 1")] or "exit code 1" in str(reasons(pipeline))


def test_a_hook_that_does_not_read_gets_a_large_event_all_the_same(run):
    pipeline = run("exit 0")
    pipeline.write([event(0, command_line=("x" * 1_000_000,))])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == []


def test_a_hook_that_is_killed_is_a_failure(run):
    pipeline = run("kill -9 $$")
    pipeline.write([event(0)])
    assert pipeline.flush(LIMIT_S)
    assert reasons(pipeline) == [(1, f"hook was ended by signal {signal.SIGKILL}")]


def test_the_end_kills_a_hook_that_runs(run, place):
    pipeline = run("echo $$ >$PLACE/pid; sleep 60")
    pipeline.write([event(0), event(1)])
    wait_until(lambda: (place / "pid").exists() and (place / "pid").read_text())
    began = time.monotonic()
    gaps = pipeline.close(0.1)
    assert time.monotonic() - began < 5
    assert sum(gap.count for gap in gaps) == 2
    wait_until(lambda: not psutil.pid_exists(int((place / "pid").read_text())))


def test_a_hook_that_is_being_replaced_is_waited_for(run, hook, place):
    pipeline = run("echo $PORTBOOK_COOKIE >>$PLACE/log")
    os.rename(place / "hook", place / "old")
    pipeline.write([event(0)])
    wait_until(lambda: pipeline.status()[0].failure)
    os.rename(place / "old", place / "hook")
    assert pipeline.flush(LIMIT_S)
    assert (place / "log").read_text() == "0\n"


def test_each_hook_can_be_tested(run):
    assert run("exit 0").test()[0].delivered
    assert run("echo broken >&2; exit 1").test()[0].reason == "hook ended with exit code 1: broken"


# --- who may change it ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["file", "directory", "owner"])
def test_a_program_that_others_may_change_is_never_run(hook, place, change):
    path = hook("touch $PLACE/ran")
    if change == "file":
        path.chmod(0o777)
    elif change == "directory":
        place.chmod(0o777)
    else:
        need(ROOT, "root, to give a file away")
        os.chown(path, NOBODY, NOBODY)
    with pytest.raises(UsageError, match="others may change"):
        open_sinks([settings("command", path)])


def test_a_program_that_others_may_change_later_is_not_run_then(run, hook, place):
    pipeline = run("touch $PLACE/ran")
    (place / "hook").chmod(0o777)
    pipeline.write([event(0)])
    assert pipeline.flush(LIMIT_S)
    ((count, reason),) = reasons(pipeline)
    assert count == 1
    assert "others may change" in str(pipeline.take_notes()) or "others may change" in reason
    assert not (place / "ran").exists()


def test_a_link_to_a_program_that_others_may_change_is_refused(hook, place):
    path = hook("exit 0")
    (place / "link").symlink_to(path)
    open_sinks([settings("command", place / "link")]).close(0)
    path.chmod(0o777)
    with pytest.raises(UsageError, match="others may change"):
        open_sinks([settings("command", place / "link")])


def test_a_program_in_tmp_is_refused(shared_path):
    """Whoever owns the file: in a directory for all, another may have made the directories."""
    path = shared_path / "hook"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    with pytest.raises(UsageError, match="others may change"):
        open_sinks([settings("command", path)])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "the whole path"),
        ("hook", "the whole path"),
        ("/nonexistent/hook", "cannot be run: No such file"),
        ("'/bin/true", "No closing quotation"),
        ("/etc/passwd", "not a program"),
        ("/bin", "not a program"),
    ],
)
def test_a_target_that_is_none_is_refused(target, words):
    with pytest.raises(UsageError, match=words):
        open_sinks([settings("command", target)])


def test_programs_of_the_system_are_trusted():
    command.check("/bin/true")
    with pytest.raises(SourceMissing):
        command.check("/nonexistent")
    assert subprocess.run(["/bin/true"], check=False).returncode == 0
