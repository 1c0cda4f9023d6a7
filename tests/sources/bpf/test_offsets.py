"""Offsets that are kept in a file: used for their kernel, and never when another user may have written them."""

from __future__ import annotations

import os
import stat
import sys
import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook import take
from portbook.errors import SourceError
from portbook.sources.bpf import btf, offsets
from portbook.sources.bpf.btf import Layout, Place
from tests.components import need
from tests.conftest import NOBODY, ROOT

if sys.platform == "win32":
    pytest.skip("owners and modes of Unix", allow_module_level=True)

KERNEL = offsets.Kernel("6.18.0", 5_000_000, 1234567890)
LAYOUT = Layout({"sock.sk_type": Place(534, 2), "sock.flag": Place(19, 1, 0x20), "sock.none": None}, {"work": 64252})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(offsets, "SYSTEM_DIRECTORY", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(offsets, "_known", {})
    return tmp_path / "portbook"


def test_what_is_kept_is_read_back(cache):
    assert offsets.load(KERNEL) is None
    offsets.keep(KERNEL, LAYOUT)
    assert offsets.load(KERNEL) == LAYOUT
    assert [path.name for path in cache.iterdir()] == ["offsets.json"]
    for path in (cache, cache / "offsets.json"):
        assert path.stat().st_uid == os.geteuid()
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@pytest.mark.parametrize(
    "other",
    [
        offsets.Kernel("6.18.1", 5_000_000, 1234567890),
        offsets.Kernel("6.18.0", 5_000_001, 1234567890),
        offsets.Kernel("6.18.0", 5_000_000, 1),
    ],
)
def test_another_kernels_are_not_used(cache, other):
    offsets.keep(KERNEL, LAYOUT)
    assert offsets.load(other) is None
    offsets.keep(other, LAYOUT)
    assert (offsets.load(other), offsets.load(KERNEL)) == (LAYOUT, None)


def damaged(text):
    """The same bytes and one that is different, or fewer, or none."""
    return (
        st.tuples(st.integers(0, len(text) - 1), st.integers(1, 255)).map(
            lambda change: text[: change[0]] + bytes([text[change[0]] ^ change[1]]) + text[change[0] + 1 :]
        )
        | st.integers(0, len(text) - 1).map(lambda n: text[:n])
        | st.binary(max_size=300)
    )


def written(kernel, layout):
    """The file's contents."""
    parts = (kernel, layout.places, layout.functions)
    return msgspec.json.encode((zlib.crc32(msgspec.json.encode(parts)), *parts))


@given(st.data())
def test_a_damaged_file_is_refused_or_reads_the_same(more):
    text = written(KERNEL, LAYOUT)
    assert offsets.parse(text, KERNEL) == LAYOUT
    try:
        said = offsets.parse(more.draw(damaged(text)), KERNEL)
    except ValueError:
        return
    assert said == LAYOUT


JSON = st.recursive(
    st.none() | st.integers(-(2**40), 2**40) | st.text(max_size=5) | st.booleans(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(st.lists(JSON, min_size=3, max_size=3))
def test_a_file_that_is_whole_and_makes_no_sense_is_refused(parts):
    text = msgspec.json.encode((zlib.crc32(msgspec.json.encode(parts)), *parts))
    with pytest.raises(ValueError, match=r".+"):
        offsets.parse(text, KERNEL)


@pytest.mark.parametrize(
    "place", [Place(-1, 4), Place(40_000, 4), Place(0, 3), Place(0, 1, 999), [1], [1, 2, 3, 4], "a"]
)
def test_numbers_that_no_structure_has_are_refused(place):
    with pytest.raises(ValueError, match=r"impossible place|damaged"):
        offsets.parse(written(KERNEL, Layout({"sock.x": place}, {})), KERNEL)


def test_what_this_kernel_has_is_kept_and_read_again():
    """Whatever the programs look for: otherwise each start reads BTF, which takes as long as all the rest."""
    try:
        take("port:1", source="bpf")
    except SourceError as error:
        pytest.skip(str(error))
    layouts = list(offsets._known.values())
    assert layouts
    for layout in layouts:
        assert offsets.parse(written(KERNEL, layout), KERNEL) == layout


def spoil_with_a_link(cache):
    """Somebody puts a link where the file is."""
    (cache / "offsets.json").rename(cache / "other.json")
    (cache / "offsets.json").symlink_to("other.json")


def spoil_with_a_linked_directory(cache):
    cache.rename(cache.parent / "other")
    cache.symlink_to("other")


def spoil_with_a_directory(cache):
    (cache / "offsets.json").unlink()
    (cache / "offsets.json").mkdir()


def spoil_with_a_pipe(cache):
    """Opening it must not wait for a writer."""
    (cache / "offsets.json").unlink()
    os.mkfifo(cache / "offsets.json")


def spoil_with_another_owner(cache):
    need(ROOT, "root, to give a file away")
    os.chown(cache / "offsets.json", NOBODY, NOBODY)


def spoil_with_another_owners_directory(cache):
    need(ROOT, "root, to give a directory away")
    os.chown(cache, NOBODY, NOBODY)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_with_a_link,
        spoil_with_a_linked_directory,
        spoil_with_a_directory,
        spoil_with_a_pipe,
        spoil_with_another_owner,
        spoil_with_another_owners_directory,
        lambda cache: (cache / "offsets.json").chmod(0o666),
        lambda cache: (cache / "offsets.json").chmod(0o664),
        lambda cache: cache.chmod(0o777),
        lambda cache: cache.chmod(0o1777),
        lambda cache: (cache / "offsets.json").write_bytes(b""),
        lambda cache: (cache / "offsets.json").write_bytes(b"\0" * 100_000),
    ],
)
def test_what_somebody_else_may_have_written_is_not_used(cache, spoil):
    offsets.keep(KERNEL, LAYOUT)
    spoil(cache)
    assert offsets.load(KERNEL) is None


@pytest.mark.parametrize("where", ["a file", "no parent", "no home"])
def test_where_nothing_can_be_written_nothing_is_lost(tmp_path, monkeypatch, where):
    parent = tmp_path / "parent"
    if where == "a file":
        parent.write_text("")
    if where == "no home":
        monkeypatch.setattr(offsets, "directory", lambda: None)
    monkeypatch.setattr(offsets, "SYSTEM_DIRECTORY", str(parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(parent / "deep") if where == "a file" else "/proc/none")
    offsets.keep(KERNEL, LAYOUT)
    assert offsets.load(KERNEL) is None


def test_a_write_that_fails_leaves_the_old_file_and_no_other(cache, monkeypatch):
    offsets.keep(KERNEL, LAYOUT)
    monkeypatch.setattr(os, "replace", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "no space")))
    offsets.keep(offsets.Kernel("7.0", 1, 1), LAYOUT)
    monkeypatch.undo()
    assert sorted(path.name for path in cache.iterdir()) == ["offsets.json"]


def test_whose_directory(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert offsets.directory() == "/var/cache"  # whatever a user's environment says
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert offsets.directory() == str(tmp_path)
    for odd in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", odd)
        monkeypatch.setenv("HOME", "/home/anna")
        assert offsets.directory() == "/home/anna/.cache"
        monkeypatch.setenv("HOME", odd)
        assert offsets.directory() is None


def test_btf_is_read_once_and_then_not_again(cache, monkeypatch):
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    paths = ["sock.sk_type", "sock.nosuch"]
    first = offsets.offsets(paths, ["bpf_iter_task_file"])
    assert first.places["sock.nosuch"] is None
    monkeypatch.setattr(btf, "read", lambda: pytest.fail("BTF was read again"))
    assert offsets.offsets(paths, ["bpf_iter_task_file"]) == first  # this process remembers
    offsets._known.clear()
    assert offsets.offsets(paths, ["bpf_iter_task_file"]) == first  # the file does


def test_everything_that_the_programs_ask_for_is_kept(cache, monkeypatch):
    """A member that the file cannot have would mean that BTF is read each time: a tenth of a second."""
    need(ROOT and os.path.exists(btf.PATH), "root, and a kernel with BTF")
    from portbook.sources import bpf

    first = bpf._layout()
    monkeypatch.setattr(offsets, "_known", {})
    monkeypatch.setattr(btf, "read", lambda: pytest.fail("BTF was read again"))
    assert bpf._layout() == first


def test_a_member_that_was_not_kept_is_looked_up(cache):
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    offsets.offsets(["sock.sk_type"], [])
    found = offsets.offsets(["sock.sk_type", "sock.sk_protocol"], [])
    assert found.places["sock.sk_protocol"] is not None


def test_what_another_part_has_looked_up_stays_in_the_file(cache, monkeypatch):
    """The source and the watch need different members: they must not make each other read BTF again and again."""
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    trace_point = "btf_trace_inet_sock_set_state"
    offsets.offsets(["sock.sk_type"], ["bpf_iter_task_file"])
    found = offsets.offsets(["sock.sk_protocol"], [trace_point])
    assert found.functions[trace_point]
    monkeypatch.setattr(offsets, "_known", {})
    monkeypatch.setattr(btf, "read", lambda: pytest.fail("BTF was read again"))
    assert offsets.offsets(["sock.sk_type"], ["bpf_iter_task_file"]).places["sock.sk_type"] is not None
    assert offsets.offsets(["sock.sk_protocol"], [trace_point]).functions[trace_point] == found.functions[trace_point]
