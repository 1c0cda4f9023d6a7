"""Files written whole: what is kept of the old file, what happens when writing fails, and links of others."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from portbook.errors import StoreError
from portbook.system.files import new_file, open_directory_of
from tests.components import need

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")
NOBODY = 65534


def write(path: object, text: bytes = b"new", **options: object) -> None:
    with new_file(str(path), **options) as file:
        file.write(text)


def mode_of(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


# --- whole or not at all -------------------------------------------------------------------------------------------


def test_a_new_file(tmp_path):
    write(tmp_path / "file", b"a\r\n\0\xff")
    assert (tmp_path / "file").read_bytes() == b"a\r\n\0\xff"
    assert os.listdir(tmp_path) == ["file"]


def test_until_the_end_the_old_file_is_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with new_file(str(path)) as file:
        file.write(b"n" * 100_000)
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"n" * 100_000


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), new_file(str(path)) as file:
        file.write("text is not bytes")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


FILL = """
import sys
from portbook.errors import StoreError
from portbook.system.files import new_file
try:
    with new_file(sys.argv[1]) as file:
        for _ in range(int(sys.argv[2])):
            file.write(b"n" * 1000)
except StoreError as error:
    print(error)
"""


@on_posix
@pytest.mark.root
@pytest.mark.parametrize("thousands", [1000, 63])  # 63: the file system is full when the last buffer is written
def test_a_full_disk_leaves_the_old_file(tmp_path, thousands):
    need(os.geteuid() == 0 and sys.platform == "linux", "root, to mount a small file system")
    mount = f"mount -t tmpfs -o size=64k none {tmp_path} && echo old >{tmp_path}/file"
    script = f'{mount} && "$0" -c "$1" {tmp_path}/file {thousands} && cat {tmp_path}/file && ls {tmp_path}'
    command = ["unshare", "-m", "sh", "-c", script, sys.executable, FILL]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    message, *rest = done.stdout.splitlines()
    assert message == f"'{tmp_path}/file' could not be written: No space left on device"
    assert rest == ["old", "file"]


def test_concurrent_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "file"
    start = threading.Barrier(8)
    failures: list[Exception] = []

    def write_one(number: int) -> None:
        start.wait(10)
        for _ in range(20):
            try:
                write(path, b"%d" % number * 50_000)
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=write_one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if sys.platform == "win32":  # a file cannot be replaced there in the instant in which another one replaces it
        failures = [error for error in failures if not isinstance(error, StoreError)]
    assert failures == []
    text = path.read_bytes()
    assert text == text[:1] * 50_000
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_left_over_by_a_killed_writer_is_no_obstacle(tmp_path):
    (tmp_path / f"file.{os.getpid()}.part").write_bytes(b"left over")
    write(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize("path", ["nonesuch/file", ".", "..", ""])
def test_what_is_no_file_is_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"is not a file|could not be written"):
        write(path)
    assert os.listdir(tmp_path) == []


@on_posix
@pytest.mark.parametrize("path", ["/", "/dev/null", "/etc/passwd/file", "/etc/passwd/../file", "/" + "x" * 300])
def test_paths_that_lead_to_no_file(path):
    with pytest.raises(StoreError, match=r"is not a file|could not be written"):
        write(path)


# --- permissions ---------------------------------------------------------------------------------------------------


@on_posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(tmp_path, umask, mask, mode):
    umask(mask)
    write(tmp_path / "file")
    assert mode_of(tmp_path / "file") == mode


@on_posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755, 0o400])
def test_the_mode_of_the_old_file_is_kept(tmp_path, umask, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write(path)
    assert (path.read_bytes(), mode_of(path)) == (b"new", mode)


@on_posix
def test_while_it_is_written_other_users_cannot_read_it(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    with new_file(str(path)) as file:
        file.write(b"secret")
        (part,) = [other for other in tmp_path.iterdir() if other != path]
        assert mode_of(part) == 0o600


@on_posix
def test_a_set_user_id_bit_is_not_kept(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o4755)
    write(path)
    assert mode_of(path) == 0o755


@on_posix
@pytest.mark.root
def test_root_keeps_the_owner_of_the_old_file(tmp_path):
    need(os.geteuid() == 0, "root")
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    os.chown(path, NOBODY, 12345)
    write(path)
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode_of(path)) == (NOBODY, 12345, 0o640)


@on_posix
@pytest.mark.root
def test_a_group_that_cannot_be_kept_does_not_become_another():
    need(os.geteuid() == 0, "root, to become an ordinary user")
    with TemporaryDirectory() as directory:  # in the directories of pytest, only root may look
        os.chown(directory, NOBODY, NOBODY)
        check_as_nobody(Path(directory) / "file")


def check_as_nobody(path: Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o664)
    os.chown(path, NOBODY, 12345)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            write(path)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    status = path.stat()
    assert (status.st_uid, status.st_gid, mode_of(path)) == (NOBODY, NOBODY, 0o604)


@on_posix
def test_a_mode_of_its_own(tmp_path, umask):
    umask(0o077)
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o666)
    write(path, mode=0o644)
    assert mode_of(path) == 0o644


# --- links ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shared(tmp_path):
    """A directory that everybody can write, as /tmp."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def make_writable_by_all(directory) -> None:
    directory.chmod(0o1777)


def make_writable_by_a_group(directory) -> None:
    need(os.geteuid() == 0, "root, to give a directory away")
    os.chown(directory, 0, 12345)
    directory.chmod(0o775)


def give_away(directory) -> None:
    need(os.geteuid() == 0, "root, to give a directory away")
    os.chown(directory, NOBODY, NOBODY)


@on_posix
@pytest.mark.parametrize("open_up", [make_writable_by_all, make_writable_by_a_group, give_away])
def test_a_link_that_others_can_make_is_not_followed(tmp_path, open_up):
    victim, directory = tmp_path / "victim", tmp_path / "directory"
    victim.write_bytes(b"precious")
    directory.mkdir()
    (directory / "file").symlink_to(victim)
    open_up(directory)
    with pytest.raises(StoreError, match="leads through the link 'file'"):
        write(directory / "file")
    assert victim.read_bytes() == b"precious"
    assert sorted(os.listdir(tmp_path)) == ["directory", "victim"]


@on_posix
def test_nor_is_a_linked_directory(shared, tmp_path):
    (tmp_path / "private").mkdir()
    (shared / "linked").symlink_to(tmp_path / "private")
    (tmp_path / "detour").symlink_to(shared / "linked")
    for path in (shared / "linked" / "file", tmp_path / "detour" / "file"):
        with pytest.raises(StoreError, match="leads through the link 'linked'"):
            write(path)
    assert os.listdir(tmp_path / "private") == []


@on_posix
def test_a_file_in_a_shared_directory_is_replaced(shared):
    (shared / "file").write_bytes(b"old")
    write(shared / "file")
    assert (shared / "file").read_bytes() == b"new"


@on_posix
def test_a_link_that_only_we_can_make_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"old")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "real" / "alias").symlink_to("../linked/file")
    write(tmp_path / "linked" / "alias")
    assert (tmp_path / "real" / "alias").is_symlink()
    assert (tmp_path / "real" / "file").read_bytes() == b"new"


@on_posix
def test_a_link_to_a_file_that_does_not_exist_yet(tmp_path):
    (tmp_path / "linked").symlink_to(tmp_path / "file")
    write(tmp_path / "linked")
    assert (tmp_path / "file").read_bytes() == b"new"


@on_posix
def test_links_in_a_circle_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(StoreError, match="more than 40 links"):
        write(tmp_path / "a")


@on_posix
def test_a_directory_that_becomes_a_link_meanwhile_is_still_the_one_that_was_opened(tmp_path):
    """Between the look at the path and the rename, somebody moves the directory and puts a link in its place."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"precious")
    with new_file(str(tmp_path / "directory" / "file")) as file:
        (tmp_path / "directory").rename(tmp_path / "moved")
        (tmp_path / "directory").symlink_to("elsewhere")
        file.write(b"new")
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"precious"
    assert (tmp_path / "moved" / "file").read_bytes() == b"new"


@on_posix
@pytest.mark.parametrize("path", ["file", "a/file", "./a/../file", "a//b/./file", "/etc/../etc/hosts", "a/../a/file"])
def test_a_path_resolves_as_the_system_resolves_it(path, tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    directory, name = open_directory_of(path)
    try:
        assert os.path.samestat(os.fstat(directory), os.stat(os.path.dirname(os.path.realpath(path))))
        assert name == os.path.basename(path)
    finally:
        os.close(directory)


@on_posix
def test_in_a_directory_that_the_caller_has_opened_a_link_is_replaced(tmp_path):
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "file").symlink_to("victim")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        write("file", directory=directory, mode=0o644)
    finally:
        os.close(directory)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "file").is_symlink()


@on_posix
def test_nothing_is_kept_open(tmp_path):
    before = len(os.listdir("/dev/fd"))
    for path in (tmp_path / "file", tmp_path, tmp_path / "none" / "file"):
        for _ in range(3):
            try:
                write(path)
            except StoreError:
                continue
    assert len(os.listdir("/dev/fd")) == before
