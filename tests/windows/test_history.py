"""The history under Windows Python: its lock, its file, its place, and the command."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest

import portbook
from portbook import store
from portbook.cli import exits
from portbook.store.sqlite import Writer
from tests.store.samples import at, event, socket_event


@pytest.fixture
def path(tmp_path):
    file = str(tmp_path / "portbook" / "history.db")
    plain = {"cookie": None, "boot_id": None}
    with Writer(file) as writer:
        writer.append([event("started", 0), socket_event("opened", 1, **plain), socket_event("closed", 9, **plain)])
    return file


def test_what_was_written_is_read(path):
    with portbook.History(path) as history:
        (interval,) = history.intervals("port:8080", at=at(5))
        assert (interval.opened_at, interval.closed_at) == (at(1), at(9))
        assert history.verify().whole


def test_a_second_process_is_refused_and_the_first_named(path):
    code = f"import sys; sys.path[:] = {sys.path!r}; from portbook.store.sqlite import Writer; Writer(sys.argv[1])"
    with Writer(path):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert f"is written by the process with pid {os.getpid()}" in done.stderr
    Writer(path).close()


def test_it_is_read_while_it_is_written(path):
    with Writer(path) as writer, portbook.History(path) as history:
        writer.append([socket_event("opened", 20, 81, cookie=5)])
        assert [i.local_port for i in history.intervals()] == [8080, 81]


def test_damage_is_said_in_one_line(path, capfd):
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE events SET port = 1 WHERE sequence = 2")
        database.commit()
    assert exits.run(["history", "verify", "--db", path]) == 1
    assert "event 2 (" in capfd.readouterr().out


def test_the_place_is_that_of_the_user():
    place = store.path()
    assert place.endswith("\\portbook\\history.db")
    directory = os.path.dirname(os.path.dirname(place))
    assert directory in (os.environ.get("PROGRAMDATA", r"C:\ProgramData"), os.environ.get("LOCALAPPDATA"))
