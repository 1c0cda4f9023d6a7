"""Events on disk: order, numbers, limits, damage, a full disk."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest

from portbook.errors import StoreError
from portbook.watching.sinks import spool as module
from portbook.watching.sinks.spool import Spool
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.limits import largest_file

MOST = 1 << 20


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "spool")


@pytest.fixture
def open_spool(path):
    opened = []

    def open_it(most_bytes=MOST, where=path):
        while opened:
            opened.pop().close()
        opened.append(Spool(where, most_bytes))
        return opened[0]

    yield open_it
    for one in opened:
        one.close()


def events(first, last):
    return [b'{"n":%d}' % n for n in range(first, last)]


def take_all(spool, portion=7):
    taken = []
    while records := spool.take(portion, 1 << 20):
        taken += records
        spool.delivered(records[-1].number)
    return taken


def test_in_order_with_numbers(open_spool):
    spool = open_spool()
    spool.append(events(0, 10))
    spool.append(events(10, 20))
    assert spool.waiting() == 20
    taken = take_all(spool)
    assert [one.json for one in taken] == events(0, 20)
    assert [one.number for one in taken] == list(range(1, 21))
    assert spool.waiting() == 0
    assert spool.take(7, MOST) == []


def test_an_attempt_that_failed_is_repeated_with_the_same_portion(open_spool):
    spool = open_spool()
    spool.append(events(0, 3))
    first = spool.take(10, MOST)
    spool.append(events(3, 6))
    assert spool.take(10, MOST) == first
    assert spool.take(1, MOST) == first, "also if portions are smaller now"
    spool.give_back()
    assert spool.take(1, MOST) == first[:1]


def test_after_a_restart_the_portion_is_the_same_and_numbers_go_on(open_spool):
    spool = open_spool()
    spool.append(events(0, 10))
    spool.delivered(spool.take(2, MOST)[-1].number)
    portion = spool.take(3, MOST)
    name = spool.id
    spool = open_spool()
    assert spool.id == name
    assert spool.waiting() == 8
    assert spool.take(100, MOST) == portion
    spool.append(events(10, 12))
    assert [one.number for one in take_all(spool)] == list(range(3, 13))
    spool = open_spool()
    spool.append(events(0, 1))
    assert [one.number for one in take_all(spool)] == [13], "no number is used twice, although all files are gone"


def test_delivered_records_are_removed_from_the_disk(open_spool, path):
    spool = open_spool()
    for at in range(0, 5000, 100):
        spool.append(events(at, at + 100))
    assert len(os.listdir(path)) > 2
    take_all(spool, 100)
    assert sorted(os.listdir(path)) == ["lock", "position"]


def test_what_exceeds_the_limit_is_lost_from_the_oldest_on_and_counted(open_spool, path):
    spool = open_spool(200_000)
    for at in range(0, 20_000, 100):
        spool.append(events(at, at + 100))
    size = sum(os.stat(os.path.join(path, name)).st_size for name in os.listdir(path))
    assert size <= 200_000 + module.POSITION_BYTES
    losses = spool.take_losses()
    lost = sum(loss.count for loss in losses)
    assert {loss.reason for loss in losses} == {"the spool is full (200,000 bytes)"}
    assert [one.json for one in take_all(spool, 1000)] == events(lost, 20_000)
    assert spool.take_losses() == []


@pytest.mark.parametrize("cut", [1, 5, 18])
def test_a_line_that_was_not_written_completely_is_cut_off(open_spool, path, cut):
    spool = open_spool()
    spool.append(events(0, 5))
    (name,) = (name for name in os.listdir(path) if name.endswith(".spool"))
    spool = open_spool()
    with open(os.path.join(path, name), "r+b") as file:
        file.truncate(os.fstat(file.fileno()).st_size - cut)
    spool = open_spool()
    spool.append(events(5, 6))
    assert [one.json for one in take_all(spool)] == [*events(0, 4), *events(5, 6)]


def test_damage_is_counted_and_the_rest_is_delivered(open_spool, path):
    spool = open_spool()
    spool.append(events(0, 50))
    (name,) = (name for name in os.listdir(path) if name.endswith(".spool"))
    with open(os.path.join(path, name), "r+b") as file:
        lines = file.read().splitlines(keepends=True)
        lines[10] = lines[10].replace(b'"n"', b'"x"')
        lines[20] = b"\0" * 30 + b"\n"
        file.seek(0)
        file.write(b"".join(lines))
        file.truncate()
    spool = open_spool()
    assert [(loss.count, loss.reason) for loss in spool.take_losses()] == [(2, f"{name} of the spool is damaged")]
    assert [one.json for one in take_all(spool)] == [one for n, one in enumerate(events(0, 50)) if n not in (10, 20)]
    assert spool.waiting() == 0


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\0" * 80, b"a 1 2 00000000\n"])
def test_a_damaged_position_delivers_everything_once_more(open_spool, path, content):
    spool = open_spool()
    spool.append(events(0, 10))
    spool.delivered(5)
    spool.close()
    with open(os.path.join(path, "position"), "wb") as file:
        file.write(content)
    assert [one.json for one in take_all(open_spool())] == events(0, 10)


def test_every_cut_of_every_file_is_opened_again(open_spool, path):
    """As a machine that lost power may leave them: nothing raises, and what is delivered is in order."""
    chance = random.Random(3)
    spool = open_spool()
    spool.append(events(0, 200))
    spool.delivered(spool.take(20, MOST)[-1].number)
    spool.take(20, MOST)
    spool.close()
    kept = {file.name: file.read_bytes() for file in Path(path).iterdir()}
    for _ in range(50):
        for name, data in kept.items():
            with open(os.path.join(path, name), "wb") as file:
                file.write(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])])
        numbers = [one.number for one in take_all(open_spool())]
        assert numbers == sorted(set(numbers))


def test_on_a_full_disk_events_wait_in_memory_and_are_written_later(open_spool):
    spool = open_spool()
    spool.append(events(0, 3))
    with largest_file(100):
        spool.append(events(3, 50))
        assert "could not be written: File too large" in spool.failure
        assert spool.waiting() == 50
        spool.delivered(spool.take(10, MOST)[-1].number)
    spool.append(events(50, 60))
    assert spool.failure is None
    spool = open_spool()
    assert [one.json for one in take_all(spool)] == events(10, 60)


def test_memory_is_bounded_too(open_spool, monkeypatch):
    monkeypatch.setattr(module, "MOST_MEMORY_BYTES", 1000)
    spool = open_spool()
    with largest_file(100):
        spool.append(events(0, 1000))
        lost = sum(loss.count for loss in spool.take_losses())
        assert 800 < lost < 1000
        assert [one.json for one in take_all(spool)] == events(lost, 1000)


def test_what_is_only_in_memory_at_the_end_is_counted(open_spool):
    spool = open_spool()
    with largest_file(0):
        spool.append(events(0, 9))
        spool.close()
    (loss,) = spool.take_losses()
    assert loss.count == 9
    assert "File too large" in loss.reason


# --- who may use it ------------------------------------------------------------------------------------------------


def test_it_is_for_us_alone(open_spool, path, tmp_path):
    open_spool().append(events(0, 1))
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert {os.stat(os.path.join(path, name)).st_mode & 0o777 for name in os.listdir(path)} == {0o600}


def test_a_directory_that_others_may_write_is_refused(open_spool, tmp_path):
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    with pytest.raises(StoreError, match="others may write"):
        open_spool()
    if ROOT:
        (tmp_path / "spool").chmod(0o700)
        os.chown(tmp_path / "spool", NOBODY, NOBODY)
        with pytest.raises(StoreError, match="others may write"):
            open_spool()


def test_a_link_that_others_may_have_made_is_not_followed(open_spool, shared_path):
    need(ROOT, "root, to give a directory away")
    (shared_path / "real").mkdir(mode=0o700)
    (shared_path / "spool").symlink_to(shared_path / "real")
    os.chown(shared_path, NOBODY, NOBODY)
    with pytest.raises(StoreError, match="another user may have made"):
        open_spool(where=str(shared_path / "spool"))
    assert os.listdir(shared_path / "real") == []


def test_two_processes_may_not_use_it(open_spool, path):
    open_spool()
    with pytest.raises(StoreError, match="another process uses the spool"):
        Spool(path, MOST)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_nothing_stays_open(path):
    before = len(os.listdir("/proc/self/fd"))
    spool = Spool(path, MOST)
    spool.append(events(0, 3))
    spool.take(1, MOST)
    spool.close()
    with pytest.raises(StoreError):
        Spool("/proc/nothing", MOST)
    assert len(os.listdir("/proc/self/fd")) == before
