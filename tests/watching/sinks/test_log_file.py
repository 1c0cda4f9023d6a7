"""Files that lines are appended to: rotation, reopening, links of others, a full disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys

import pytest

from portbook.errors import StoreError
from portbook.watching.sinks import log_file
from portbook.watching.sinks.base import DeliveryError
from portbook.watching.sinks.dispatch import open_sinks
from portbook.watching.sinks.log_file import LogFile
from tests.components import need
from tests.conftest import NOBODY, ROOT
from tests.limits import largest_file
from tests.watching.sinks.events import LIMIT_S, encoded, event, settings

DAY_S = 86_400


@pytest.fixture
def path(tmp_path):
    return tmp_path / "watch.log"


@pytest.fixture
def open_log(path):
    opened = []

    def open_it(where=path, **options):
        opened.append(LogFile(str(where), **options))
        return opened[-1]

    yield open_it
    for log in opened:
        log.close()


def names(path):
    return sorted(os.listdir(path.parent))


# --- one file ------------------------------------------------------------------------------------------------------


def test_lines_are_appended_to_what_is_there(path, open_log):
    path.write_bytes(b"old\n")
    open_log().append(b"one\ntwo\n")
    open_log().append(b"three\n")
    assert path.read_bytes() == b"old\none\ntwo\nthree\n"


def test_a_new_file_is_not_for_everyone(path, open_log):
    before = os.umask(0)
    try:
        open_log()
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_file_that_another_program_renamed_is_made_again_by_reopening(path, open_log):
    log = open_log()
    log.append(b"one\n")
    path.rename(path.with_suffix(".1"))
    log.append(b"two\n")
    log.reopen()
    log.append(b"three\n")
    assert path.with_suffix(".1").read_bytes() == b"one\ntwo\n"
    assert path.read_bytes() == b"three\n"


def test_a_file_that_cannot_be_reopened_remains_in_use(path, open_log):
    log = open_log()
    path.rename(path.with_suffix(".1"))
    path.mkdir()
    with pytest.raises(StoreError, match="is not a file"):
        log.reopen()
    log.append(b"one\n")
    assert path.with_suffix(".1").read_bytes() == b"one\n"


def test_reopening_leaves_no_descriptor(path, open_log):
    log = open_log()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        log.reopen()
    assert len(os.listdir("/proc/self/fd")) == before


# --- rotation ------------------------------------------------------------------------------------------------------


def test_rotation_by_size(path, open_log):
    log = open_log(rotate_bytes=10, keep=2)
    for n in range(7):
        log.append(b"%04d\n" % n)
    assert names(path) == ["watch.log", "watch.log.1", "watch.log.2"]
    assert path.read_bytes() == b"0006\n"
    assert path.with_name("watch.log.1").read_bytes() == b"0004\n0005\n"
    assert path.with_name("watch.log.2").read_bytes() == b"0002\n0003\n"


def test_what_is_larger_than_a_file_may_be_has_a_file_of_its_own(path, open_log):
    log = open_log(rotate_bytes=10)
    log.append(b"x" * 50 + b"\n")
    log.append(b"y\n")
    assert path.read_bytes() == b"y\n"
    assert len(path.with_name("watch.log.1").read_bytes()) == 51


def test_rotation_by_days_is_at_midnight_also_after_a_restart(path, open_log):
    now = [20_000 * DAY_S + 100.0]
    log = open_log(rotate_days=1, clock=lambda: now[0])
    log.append(b"one\n")
    now[0] += DAY_S / 2
    log.append(b"two\n")
    now[0] += DAY_S
    log.append(b"three\n")
    assert path.with_name("watch.log.1").read_bytes() == b"one\ntwo\n"
    os.utime(path, (now[0], now[0]))
    now[0] += DAY_S
    open_log(rotate_days=1, clock=lambda: now[0]).append(b"four\n")
    assert [path.with_name(name).read_bytes() for name in names(path)] == [b"four\n", b"three\n", b"one\ntwo\n"]


def test_where_files_cannot_be_renamed_the_lines_go_on(path, open_log, monkeypatch):
    log = open_log(rotate_bytes=10)
    log.append(b"0000\n1111\n")

    def refuse(*args, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(log_file.os, "replace", refuse)
    log.append(b"2222\n")
    log.append(b"3333\n")
    assert path.read_bytes() == b"0000\n1111\n2222\n3333\n"


def test_a_process_that_is_killed_leaves_whole_lines(path):
    script = (
        "import sys; from portbook.watching.sinks.log_file import LogFile\n"
        "log = LogFile(sys.argv[1], rotate_bytes=40_000); n = 0\n"
        "print('go', flush=True)\n"
        "while True:\n    log.append(b''.join(b'%07d\\n' % i for i in range(n, n + 500))); n += 500\n"
    )
    for delay_us in (1, 3_000, 9_000):
        with subprocess.Popen([sys.executable, "-c", script, path], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            subprocess.run(["sleep", str(delay_us / 1e6)], check=True)
            process.kill()
        for name in names(path):
            lines = path.with_name(name).read_bytes().splitlines(keepends=True)
            numbers = [int(line) for line in lines]
            assert all(len(line) == 8 for line in lines)
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
            path.with_name(name).unlink()


# --- places where others may write ---------------------------------------------------------------------------------


def test_a_link_is_followed_only_where_nobody_else_could_have_made_it(path, open_log, tmp_path):
    (tmp_path / "target").write_bytes(b"")
    path.symlink_to(tmp_path / "target")
    open_log().append(b"one\n")
    assert (tmp_path / "target").read_bytes() == b"one\n"
    os.chmod(tmp_path, 0o1777)
    with pytest.raises(StoreError, match=r"the link 'watch\.log', which another user may have made"):
        open_log()


def test_a_hard_link_is_refused(path, open_log, tmp_path):
    (tmp_path / "secret").write_bytes(b"")
    path.hardlink_to(tmp_path / "secret")
    with pytest.raises(StoreError, match="hard link"):
        open_log()


def test_what_is_no_file_is_refused_at_once(path, open_log):
    os.mkfifo(path)
    with pytest.raises(StoreError, match="not a file"):
        open_log()
    with pytest.raises(StoreError, match="not a file"):
        open_log("/dev/null")


def test_a_file_of_another_user_is_refused(path, open_log):
    need(ROOT, "root, to give a file away")
    path.write_bytes(b"")
    os.chown(path, NOBODY, NOBODY)
    with pytest.raises(StoreError, match="another user"):
        open_log()


def test_a_directory_that_leads_through_a_link_of_others_is_refused(open_log, shared_path):
    need(ROOT, "root, to give a directory away")
    (shared_path / "etc").mkdir()
    (shared_path / "log").symlink_to(shared_path / "etc")
    os.chown(shared_path, NOBODY, NOBODY)
    with pytest.raises(StoreError, match="another user may have made"):
        open_log(shared_path / "log" / "watch.log")
    assert os.listdir(shared_path / "etc") == []


# --- a full disk ---------------------------------------------------------------------------------------------------


def test_lines_that_have_no_room_are_counted_and_none_is_cut(path, open_log):
    log = open_log()
    with largest_file(12):
        with pytest.raises(DeliveryError, match="File too large") as failed:
            log.append(b"1111\n2222\n3333\n4444\n")
        assert failed.value.delivered == 2
        assert path.read_bytes() == b"1111\n2222\n"
        with pytest.raises(DeliveryError) as failed:
            log.append(b"3333\n4444\n")
        assert failed.value.delivered == 0
    log.append(b"3333\n4444\n")
    assert path.read_bytes() == b"1111\n2222\n3333\n4444\n"


def test_a_part_of_a_line_that_cannot_be_removed_ends_with_a_line_end(path, open_log, monkeypatch):
    log = open_log()

    def refuse(*args):
        raise PermissionError(1, "an append-only file")

    monkeypatch.setattr(log_file.os, "ftruncate", refuse)
    with largest_file(7), pytest.raises(DeliveryError):
        log.append(b"1111\n2222\n")
    log.append(b"2222\n")
    assert path.read_bytes() == b"1111\n22\n2222\n"


FULL = r"""
set -e
mount --make-rprivate /
mount -t tmpfs -o size=64k tmpfs "$1"
shift
exec "$@"
"""
ON_A_FULL_DISK = """
import json, os, sys
from portbook.watching.sinks.dispatch import open_sinks
from tests.watching.sinks.events import event, settings, wait_until
place = sys.argv[1]
kinds = [settings(kind, f"{place}/{kind}") for kind in ("text", "jsonl")]
sinks = open_sinks(kinds, most_bytes=100_000)
for at in range(0, 1000, 10):
    sinks.write([event(n) for n in range(at, at + 10)])
wait_until(lambda: any(one.failure for one in sinks.status()))
gaps = sinks.take_gaps()
for n in range(1000, 1200):
    sinks.write([event(n)])
lost = {one.name: one.lost for one in sinks.status()}
os.remove(f"{place}/text")
sinks.reopen()
names = {kind: [name for name in os.listdir(place) if name.startswith(kind)] for kind in ("text", "jsonl")}
closing = sinks.close(1.0)
print(json.dumps({"gaps": sum(g.count for g in gaps + closing), "lost": lost, "notes": sinks.take_notes(),
    "reasons": sorted({g.reason for g in gaps + closing}),
    "whole": [json.loads(line)["cookie"] for line in open(f"{place}/jsonl")]}))
"""


def test_on_a_full_disk_the_watch_goes_on_and_counts_what_is_lost(tmp_path):
    need(ROOT, "root, to mount a small file system")
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", FULL, "sh", tmp_path, sys.executable, "-c", ON_A_FULL_DISK, tmp_path],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert "No space left on device" in answer["notes"][0]
    assert all("No space left on device" in reason for reason in answer["reasons"])
    whole = answer["whole"]
    assert whole == list(range(len(whole))), "every line is whole, and in order"
    assert answer["gaps"] >= 1200 - len(whole), "of the file with every field all that is missing is counted"


# --- as sinks ------------------------------------------------------------------------------------------------------


def test_a_text_log_and_json_lines_say_the_same(tmp_path):
    pipeline = open_sinks([settings("text", tmp_path / "text"), settings("jsonl", tmp_path / "jsonl")])
    pipeline.write([event(1), event(2, severity="quiet"), event(3, severity="critical", event="violation")])
    assert pipeline.flush(LIMIT_S)
    assert pipeline.close() == []
    records = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    assert [(one["cookie"], one["event"], one["severity"]) for one in records] == [
        (1, "opened", "info"),
        (2, "opened", "quiet"),
        (3, "violation", "critical"),
    ]
    lines = (tmp_path / "text").read_text().splitlines()
    assert [line.split()[1:3] for line in lines] == [["info", "opened"], ["critical", "violation"]]
    assert [line.split()[0][10] for line in lines] == ["T", "T"]


def test_standard_output_is_a_place_too():
    script = (
        "from portbook.watching.sinks.dispatch import open_sinks; from tests.watching.sinks.events import *\n"
        "sinks = open_sinks([settings('jsonl', '-')]); sinks.write([event(1), event(2)]); sinks.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, check=True)
    assert [json.loads(line)["cookie"] for line in done.stdout.splitlines()] == [1, 2]


def test_a_reader_that_went_away_is_a_failure_with_its_reason():
    script = (
        "import os; from portbook.watching.sinks.dispatch import open_sinks\n"
        "from tests.watching.sinks.events import *\n"
        "sinks = open_sinks([settings('jsonl', '-')]); sinks.write([event(1)])\n"
        "(gap,) = sinks.close(0.5); print(gap.count, gap.reason, file=__import__('sys').stderr)\n"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, timeout=60, check=True)
    os.close(write)
    assert done.stderr.decode().strip() == "1 sink jsonl:-: standard output could not be written: Broken pipe"


def test_a_sink_without_a_file_says_what_to_write():
    with pytest.raises(Exception, match=r"text needs a file; write text:/var/log/portbook\.log"):
        open_sinks([settings("text", "")])


def test_encoding_a_sentence_with_a_surrogate():
    from portbook.watching.sinks.text import encode

    assert encode(encoded(event(1, name="a\udcffb"))).count(b"\n") == 1
