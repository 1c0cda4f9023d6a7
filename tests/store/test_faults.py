"""What happens to a file that is written: kill -9, a full disk, strangers, damage, other versions."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path

import pytest

import portbook
from portbook.events import Event
from portbook.store import backlog, migrations, schema
from portbook.store.sqlite import Writer
from tests.conftest import NOBODY, REPOSITORY, ROOT, as_user
from tests.store.samples import NEXT_BOOT, at, event, socket_event

ROUNDS = 200
linux = pytest.mark.skipif(sys.platform != "linux", reason="fork, mounts and users of Linux")
PAGE = 4096


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "portbook" / "history.db")


def some_events(number: int, start: int = 0) -> list[Event]:
    """Servers that open and close, on a few ports."""
    kinds = ("opened", "closed")
    return [
        socket_event(kinds[n % 2], n, 8000 + n // 2 % 50, cookie=n // 2, exe=f"/usr/bin/p{n // 2 % 7}")
        for n in range(start, start + number)
    ]


# --- kill -9 -------------------------------------------------------------------------------------------------------


@linux
def test_what_was_written_is_there_after_a_kill_at_any_instant(path):
    """200 processes, each killed at a random instant; each opens what the one before has left."""
    command = [sys.executable, "-m", "tests.store.kills", path, str(ROUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, cwd=REPOSITORY)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > ROUNDS * 20, "most rounds wrote something"
    with portbook.History(path) as history:
        verified = history.verify()
        assert verified.broken is None
        assert verified.rows == verified.last
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# --- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    if not ROOT or sys.platform != "linux":
        pytest.skip("needs root on Linux, to mount a file system")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", place], check=True, timeout=30)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True, timeout=30)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(PAGE))


def test_a_full_disk_is_a_gap_and_the_intervals_are_right_afterwards(small_disk, monkeypatch):
    monkeypatch.setattr(backlog, "MOST_WAITING", 100)
    clock = [0.0]
    path = str(small_disk / "history.db")
    with Writer(path, clock=lambda: clock[0]) as writer:
        writer.append([event("started", 0), *(socket_event("opened", 1, 100 + n, cookie=n) for n in range(20))])
        ballast = small_disk / "ballast"
        fill(ballast)
        before = Path(path).stat().st_size
        for n in range(100):  # of these ten fit into memory
            clock[0] += 60
            events = [event("reminder", 10 + n) for _ in range(10)]
            if n == 50:
                events += [socket_event("closed", 60, 100, cookie=0), socket_event("opened", 61, 999, cookie=500)]
            returned = writer.append(events)
            assert all(e.sequence is None for e in returned)
        assert "could not be used: database or disk is full" in (writer.problem or "")
        assert len(writer._rows) <= 110, "what waits is bounded"
        assert Path(path).stat().st_size == before
        ballast.unlink()
        clock[0] += 60
        returned = writer.append([event("reminder", 200)])
        assert writer.problem is None
    assert [e.event for e in returned] == ["gap", "reminder"]
    gap = returned[0]
    assert gap.count == 1002 - 100 - 2, "but for what waited, and an end and a beginning that intervals need"
    assert gap.sequence is not None
    with portbook.History(path) as history:
        assert history.verify().broken is None
        open_ports = {i.local_port for i in history.intervals() if i.closed_at is None}
        assert open_ports == {*range(101, 120), 999}
        (closed,) = history.intervals("port:100")
        assert closed.closed_at == at(60)


def test_a_read_only_medium_is_read(small_disk):
    path = str(small_disk / "history.db")
    with Writer(path) as writer:
        writer.append(some_events(10))
    copy = small_disk / "copy.db"  # as after a kill: WAL in the header, and nothing beside it
    copy.write_bytes(Path(path).read_bytes()[:18] + b"\2\2" + Path(path).read_bytes()[20:])
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True, timeout=30)
    for file in (path, str(copy)):
        with portbook.History(file) as history:
            assert len(list(history.events())) == 10
        with pytest.raises(portbook.StoreError, match=r"could not be opened|Read-only"):
            Writer(file)


# --- strangers -----------------------------------------------------------------------------------------------------


@linux
def test_a_directory_that_others_can_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(portbook.StoreError, match=r"other users can write to .*; name a file in a directory that only"):
        Writer(str(tmp_path / "history.db"))
    assert list(tmp_path.iterdir()) == []


@linux
def test_links_and_files_of_others_are_refused(tmp_path):
    place = tmp_path / "own"
    place.mkdir(mode=0o700)
    target = tmp_path / "target"
    target.write_text("precious")
    for name in ("history.db", "history.db-wal", "history.db.lock"):
        link = place / name
        link.symlink_to(target)
        with pytest.raises(portbook.StoreError, match=r"is not a file|could not be opened"):
            Writer(str(place / "history.db"))
        link.unlink()
    assert target.read_text() == "precious"
    if ROOT:
        stranger = place / "history.db"
        stranger.write_text("")
        os.chown(stranger, NOBODY, NOBODY)
        with pytest.raises(portbook.StoreError, match=f"belongs to another user .uid {NOBODY}"):
            Writer(str(stranger))


@linux
def test_only_the_group_may_read(path):
    with Writer(path) as writer:
        writer.append(some_events(2))
        directory = os.path.dirname(path)
        assert os.stat(directory).st_mode & 0o777 == 0o750
        for name in os.listdir(directory):
            assert os.stat(os.path.join(directory, name)).st_mode & 0o777 == 0o640, name


@pytest.mark.root
@pytest.mark.skipif(not ROOT or sys.platform != "linux", reason="needs root on Linux, to be another user")
def test_a_user_who_may_read_reads_while_it_is_written():
    place = Path("/var/tmp") / f"portbook-history-{os.getpid()}"
    path = str(place / "history.db")
    try:
        with Writer(path) as writer:
            writer.append(some_events(5))
            command = [sys.executable, "-m", "portbook", "history", "--events", "--jsonl", "--db", path]
            denied = as_user(NOBODY, *command)
            assert denied.returncode == 5
            assert "Permission denied; run with sudo, or as a user of the group that may read it" in denied.stderr
            for name in ("", *os.listdir(place)):
                os.chown(place / name, -1, NOBODY)
            allowed = as_user(NOBODY, *command)
            assert (allowed.returncode, allowed.stdout.count("\n"), allowed.stderr) == (0, 5, "")
        closed = as_user(NOBODY, *command)
        assert (closed.returncode, closed.stdout.count("\n")) == (0, 5)
    finally:
        for name in os.listdir(place):
            (place / name).unlink()
        place.rmdir()


@linux
def test_a_pipe_does_not_hold_a_reader_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(portbook.StoreError, match="is not a file"):
        portbook.History(str(tmp_path / "pipe"))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM events; END",
        "CREATE VIEW v AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n",
        "ALTER TABLE events ADD COLUMN more",
    ],
)
def test_tables_that_are_not_portbooks_are_refused(path, statement):
    Writer(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(statement)
    for opens in (portbook.History, Writer):
        with pytest.raises(portbook.StoreError, match="its tables are not those of a history"):
            opens(path)


def test_hostile_values_are_damage_in_one_line(path):
    with Writer(path) as writer:
        writer.append(some_events(4))
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE events SET body = 'text' WHERE sequence = 2")
        database.execute("UPDATE intervals SET opened_at = 1 << 62, closed_at = NULL, span = 64 WHERE id = 3")
        database.commit()
    with portbook.History(path) as history:
        for read in (history.events, history.intervals):
            with pytest.raises(portbook.StoreError, match=r"is damaged: .*; portbook history verify says where"):
                list(read())


# --- versions and damage -------------------------------------------------------------------------------------------


def test_a_newer_version_is_refused_with_what_to_do(path):
    Writer(path).close()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version={schema.VERSION + 1}")
    for opens in (portbook.History, Writer):
        with pytest.raises(portbook.StoreError, match=r"is of a newer version .*; use the newer portbook") as refused:
            opens(path)
        assert refused.value.exit_code == 5


def test_an_older_version_is_brought_up_to_date_by_a_writer(path, monkeypatch):
    with Writer(path) as writer:
        writer.append(some_events(2))
    monkeypatch.setattr(schema, "VERSION", 2)
    monkeypatch.setattr(schema, "TABLES", (*schema.TABLES, "CREATE TABLE more (a)"))
    monkeypatch.setattr(migrations, "MIGRATIONS", {1: lambda database: database.execute("CREATE TABLE more (a)")})
    with pytest.raises(portbook.StoreError, match=r"is of an older version .1.; portbook watch brings it up to date"):
        portbook.History(path)
    Writer(path).close()
    with portbook.History(path) as history:
        assert len(list(history.events())) == 2


def test_a_migration_that_fails_leaves_the_old_version(path, monkeypatch):
    Writer(path).close()
    monkeypatch.setattr(schema, "VERSION", 2)

    def fail(database: sqlite3.Connection) -> None:
        database.execute("CREATE TABLE half (a)")
        raise sqlite3.OperationalError("interrupted")

    monkeypatch.setattr(migrations, "MIGRATIONS", {1: fail})
    with pytest.raises(portbook.StoreError, match="interrupted"):
        Writer(path)
    monkeypatch.undo()
    portbook.History(path).close()


@pytest.mark.parametrize("content", [b"", b"text\n" * 2000])
def test_what_is_no_history(tmp_path, content):
    file = tmp_path / "other.db"
    file.write_bytes(content)
    with pytest.raises(portbook.StoreError, match=r"is not a history; move it away|is empty; portbook watch fills it"):
        portbook.History(str(file))
    if content:
        with pytest.raises(portbook.StoreError, match="is not a history; move it away"):
            Writer(str(file))
        assert file.read_bytes() == content


def test_a_database_of_another_program_is_left_alone(tmp_path):
    file = tmp_path / "other.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE precious (a)")
        database.commit()
    before = file.read_bytes()
    for opens in (portbook.History, Writer):
        with pytest.raises(portbook.StoreError, match="is a database of another program"):
            opens(str(file))
    assert file.read_bytes() == before


def is_whole(path: str) -> bool:
    try:
        with portbook.History(path) as history:
            return history.verify().whole
    except portbook.StoreError as error:
        return "is damaged" not in str(error) and "is not a history" not in str(error)


def test_every_damaged_page_is_found(path):
    """Each page of a history is overwritten in turn; what it had is not read as if nothing were missing."""
    with Writer(path) as writer:
        writer.append([event("started", 0), *some_events(120), event("stopped", 500)])
        writer.append([event("started", 600)])
    whole = Path(path).read_bytes()
    for page in range(1, len(whole) // PAGE):
        damaged = bytearray(whole)
        damaged[page * PAGE : (page + 1) * PAGE] = random.Random(page).randbytes(PAGE)
        Path(path).write_bytes(damaged)
        assert not is_whole(path), f"page {page + 1}"


def test_any_damage_is_an_error_in_one_line(path):
    """Bytes anywhere are changed: every reader and a writer answer, or raise a StoreError."""
    with Writer(path) as writer:
        writer.append([event("started", 0), *some_events(150), event("gap", 5, since=at(1))])
    whole = Path(path).read_bytes()
    choose = random.Random(5)

    def write() -> None:
        with Writer(path) as writer:
            writer.append(some_events(5))
            writer.trim(at(10**6), keep_s=5.0)

    def read(use: Callable[[portbook.History], object]) -> None:
        with portbook.History(path) as history:
            use(history)

    uses: list[Callable[[], None]] = [
        lambda: read(lambda h: list(h.events("8001 event:opened"))),
        lambda: read(lambda h: list(h.intervals("8000-8100 process:p1", since=at(50)))),
        lambda: read(lambda h: h.who(8000, at(50))),
        lambda: read(lambda h: h.verify()),
        write,
    ]
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(choose.choice((1, 3, 20))):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        Path(path).write_bytes(damaged)
        for use in uses:
            with suppress(portbook.StoreError):
                use()


def test_a_bit_that_changes_what_is_answered_is_found(path):
    """Each table is compared row by row where verify finds nothing wrong."""
    with Writer(path) as writer:
        writer.append([event("started", 0), *some_events(150), event("gap", 5, since=at(1))])
    whole = Path(path).read_bytes()
    tables = ("events", "intervals", "unwatched", "meta")
    before = [rows_of(path, table) for table in tables]
    choose = random.Random(3)
    for _ in range(150):
        damaged = bytearray(whole)
        place = choose.randrange(len(damaged))
        damaged[place] ^= 1 << choose.randrange(8)
        Path(path).write_bytes(damaged)
        if is_whole(path):
            assert [rows_of(path, table) for table in tables] == before, place


def rows_of(path: str, table: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"SELECT * FROM {table}").fetchall()


def test_a_writer_goes_on_when_its_file_is_damaged(path):
    """Monitoring does not end; what is wrong is said."""
    with Writer(path) as writer:
        writer.append(some_events(50))
        with closing(sqlite3.connect(path)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with open(path, "r+b") as file:
            file.seek(PAGE)
            file.write(bytes(range(256)) * (20 * PAGE // 256))
        returned = writer.append(some_events(400, 50))
        problem = writer.problem
    assert len(returned) == 400
    assert problem is None or "is damaged" in problem


# --- retention -----------------------------------------------------------------------------------------------------


def trim(writer: Writer, seconds: float, **limits: float) -> int:
    steps = 0
    while writer.trim(at(seconds), **limits):  # type: ignore[arg-type]
        steps += 1
        assert steps < 1000
    return steps


def test_retention_keeps_the_chain_and_what_is_still_held(path):
    with Writer(path) as writer:
        writer.append([event("started", 0), socket_event("opened", 1, 22, cookie=7000, exe="/usr/sbin/sshd")])
        for start in range(0, 6000, 500):
            writer.append(some_events(500, start))
        assert trim(writer, 6000, keep_s=1000.0) > 3
        writer.append([socket_event("closed", 6001, 22, cookie=7000, exe="/usr/sbin/sshd")])
    with portbook.History(path) as history:
        kept = list(history.events())
        assert min(e.at for e in kept) == at(5000)
        verified = history.verify()
        assert verified.broken is None
        assert verified.removed == (kept[0].sequence or 0) - 1
        (sshd,) = history.intervals("port:22")
        assert (sshd.exe, sshd.opened_at, sshd.closed_at) == ("/usr/sbin/sshd", at(1), at(6001))
        assert min(i.closed_at for i in history.intervals() if i.closed_at) >= at(5000)
    with Writer(path) as writer:
        assert writer.append([event("started", 7000)])[0].sequence == (verified.last or 0) + 1


def test_retention_over_a_boot_keeps_what_verify_compares(path):
    boot = {"boot_id": NEXT_BOOT, "monotonic_ns": 10**9}
    with Writer(path) as writer:
        writer.append([event("started", 0), *some_events(800)])
        writer.append([event("started", 900, **boot), event("blind", 901, **boot), event("seeing", 903, **boot)])
        writer.append([event("stopped", 950, **boot), event("started", 960, **boot)])
        trim(writer, 1000, keep_s=110.0)
    with portbook.History(path) as history:
        kept = list(history.events())
        assert kept[0].at == at(900)
        assert history.verify().broken is None
        assert [gap.until for gap in history.unwatched()][1:] == [at(900), at(903), at(960), None]
    with Writer(path) as writer:
        trim(writer, 1000, keep_s=98.0)
    with portbook.History(path) as history:
        assert next(history.events()).event == "seeing"
        assert history.verify().broken is None


def test_retention_bounds_the_size(path):
    with Writer(path) as writer:
        for start in range(0, 8000, 1000):
            writer.append(some_events(1000, start))
            trim(writer, start, most_bytes=1_000_000)
    assert os.path.getsize(path) < 2_000_000
    with portbook.History(path) as history:
        assert history.verify().broken is None
        assert list(history.events())[-1].at == at(7999)


def test_a_beginning_that_was_cut_off_otherwise_is_found(path):
    with Writer(path) as writer:
        writer.append(some_events(3000))
        trim(writer, 3000, keep_s=2000.0)
    with closing(sqlite3.connect(path)) as database:
        (first,) = database.execute("SELECT min(sequence) FROM events").fetchone()
        database.execute("DELETE FROM events WHERE sequence = ?", (first,))
        database.commit()
    with portbook.History(path) as history:
        broken = history.verify().broken
        assert broken is not None
        assert broken.sequence == first


# --- the chain -----------------------------------------------------------------------------------------------------

ALTERED = {
    "UPDATE events SET at = at + 1 WHERE sequence = 30": 30,
    "UPDATE events SET kind = 'opened' WHERE sequence = 31": 31,
    "UPDATE events SET port = 1 WHERE sequence = 32": 32,
    "UPDATE events SET interval = 5 WHERE sequence = 33": 33,
    "UPDATE events SET hash = zeroblob(32) WHERE sequence = 34": 34,
    "UPDATE events SET body = (SELECT body FROM events WHERE sequence = 36) WHERE sequence = 35": 35,
    "DELETE FROM events WHERE sequence = 40": 40,
    "DELETE FROM events WHERE sequence BETWEEN 40 AND 60": 40,
    "UPDATE events SET sequence = sequence + 1000 WHERE sequence = 50": 50,
    "INSERT INTO events SELECT 999, at, kind, port, interval, hash, body FROM events WHERE sequence = 9": 205,
    "DELETE FROM intervals WHERE id = 4": 4,
    "UPDATE intervals SET opened_at = opened_at + 1000000 WHERE id = 6": 6,
    "UPDATE intervals SET closed_at = closed_at + 1000000 WHERE id = 8": 8,
    "UPDATE intervals SET closed_at = NULL, closed_by = NULL, span = 64 WHERE id = 10": 11,
    "UPDATE intervals SET port = 1 WHERE id = 12": 12,
    "UPDATE intervals SET kept = zeroblob(9) WHERE id = 12": 12,
    "INSERT INTO intervals VALUES (13, 80, 1, NULL, NULL, 64, 0, NULL)": 13,
    "DELETE FROM unwatched": 203,
    "UPDATE unwatched SET until = until - 1": 203,
    "INSERT INTO unwatched VALUES (4, 0, 1, 'x')": 4,
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("sound") / "history.db"
    with Writer(str(file)) as writer:
        writer.append([event("started", 0), *some_events(200), event("stopped", 300)])
        writer.append([event("started", 400), socket_event("opened", 401, 443, cookie=999)])
    return file.read_bytes()


@pytest.mark.parametrize(("statement", "sequence"), ALTERED.items())
def test_the_first_altered_row_is_named(tmp_path, sound, statement, sequence):
    file = tmp_path / "history.db"
    file.write_bytes(sound)
    with closing(sqlite3.connect(file)) as database:
        assert database.execute(statement).rowcount > 0
        database.commit()
    with portbook.History(str(file)) as history:
        broken = history.verify().broken
    assert broken is not None
    assert broken.sequence == sequence


def test_an_end_that_was_cut_off_is_found_by_an_anchor(tmp_path, sound):
    file = tmp_path / "history.db"
    file.write_bytes(sound)
    with portbook.History(str(file)) as history:
        anchor = history.anchor()
        assert history.verify(anchor).anchored
    with closing(sqlite3.connect(file)) as database:
        database.execute("DELETE FROM events WHERE sequence > 203")
        database.execute("DELETE FROM intervals WHERE id > 203")
        database.commit()
    with portbook.History(str(file)) as history:
        assert history.verify().whole
        verified = history.verify(str(anchor))
        assert verified.broken is not None
        assert (verified.anchored, verified.broken.sequence) == (False, 204)


def test_both_halves_of_a_long_chain_are_checked(path, monkeypatch):
    from portbook.store import verification

    monkeypatch.setattr(verification, "FORK_FROM", 100)
    with Writer(path) as writer:
        writer.append([event("started", 0), *some_events(2000)])
    with portbook.History(path) as history:
        assert history.verify().whole
        for sequence in (1900, 1001, 500):
            with closing(sqlite3.connect(path)) as database:
                database.execute("UPDATE events SET body = body || 'x' WHERE sequence = ?", (sequence,))
                database.commit()
            broken = history.verify().broken
            assert broken is not None
            assert broken.sequence == sequence


# --- the clock -----------------------------------------------------------------------------------------------------


def test_events_keep_their_order_when_the_clock_is_set_back(path):
    events = [event("started", 3600, monotonic_ns=10**9)]
    events += [socket_event("opened", n, cookie=n, port=n + 1, monotonic_ns=(n + 2) * 10**9) for n in range(20)]
    with Writer(path) as writer:
        written = writer.append(events)
    with portbook.History(path) as history:
        assert list(history.events()) == written
        assert history.verify().whole
        assert [e.event for e in history.events(since=at(3000))] == ["started"]
        assert len(list(history.intervals(at=at(20)))) == 20
    assert written[0].at - written[1].at == timedelta(hours=1)
