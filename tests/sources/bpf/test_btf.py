"""The reader of BTF: against an encoder written from the kernel's documentation, a compiler, and the kernel."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.errors import SourceGarbled, SourceMissing
from portbook.sources.bpf import btf
from portbook.sources.bpf.btf import Place
from tests.components import need

INT, PTR, ARRAY, STRUCT, UNION, ENUM = 1, 2, 3, 4, 5, 6
FWD, TYPEDEF, VOLATILE, CONST, FUNC, PROTO = 7, 8, 9, 10, 12, 13


class Encoder:
    """Documentation/bpf/btf.rst: a header, types of three words and a tail, strings that end with zero."""

    def __init__(self):
        self.types, self.strings, self.count = b"", b"\0", 0

    def name(self, text):
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind, name="", size=0, parts=(), flag=0, tail=b""):
        self.types += struct.pack("=III", self.name(name), flag << 31 | kind << 24 | len(parts), size) + tail
        self.types += b"".join(struct.pack("=III", self.name(n), t, o) for n, t, o in parts)
        self.count += 1
        return self.count

    def int(self, name, size):
        return self.add(INT, name, size, tail=struct.pack("=I", 8 * size))

    def data(self):
        lengths = (0, len(self.types), len(self.types), len(self.strings))
        return struct.pack("=HBBI4I", 0xEB9F, 1, 0, 24, *lengths) + self.types + self.strings


def find(data, *paths):
    return btf.layout(data, paths).places


@pytest.fixture
def composed():
    """Noise of every kind before, between and after; the requested structure, with everything that may be in it."""
    e = Encoder()
    char, word = e.int("char", 1), e.int("int", 4)
    e.add(ENUM, "colour", 4, tail=b"")
    e.add(FWD, "thing")  # a declaration of the same name, and a typedef, and a member of another
    e.add(TYPEDEF, "thing", word)
    e.add(PROTO, "", word)
    e.add(STRUCT, "other", 8, [("thing", word, 0), ("first", word, 32)])
    pointer = e.add(PTR, "", e.count)
    array = e.add(ARRAY, tail=struct.pack("=III", word, word, 4))
    alias = e.add(VOLATILE, "", e.add(CONST, "", e.add(TYPEDEF, "u8", char)))
    bits = e.add(STRUCT, "", 4, [("low", word, 4 << 24), ("high", word, 1 << 24 | 4), ("wide", word, 8 << 24 | 8)], 1)
    inner = e.add(STRUCT, "", 8, [("a", word, 0), ("b", word, 32)])
    both = e.add(UNION, "", 8, [("pair", word, 0), ("", inner, 0)])
    named = e.add(STRUCT, "named", 16, [("x", word, 64), ("deep", inner, 0)])
    later = e.count + 3
    parts = [("first", alias, 0), ("", both, 64), ("table", array, 128), ("next", pointer, 256), ("part", named, 320),
             ("", bits, 448), ("end", later, 512)]  # fmt: skip
    e.add(STRUCT, "thing", 128, parts)
    work = e.add(FUNC, "work", word)
    e.add(STRUCT, "late", 4, [("z", word, 0)])
    return e.data(), work


def test_every_way_to_a_member(composed):
    data, _ = composed
    assert find(
        data, "thing.first", "thing.pair", "thing.a", "thing.b", "thing.table", "thing.next", "thing.part.x",
        "thing.part.deep.b", "thing.low", "thing.high", "thing.wide", "thing.end", "thing.end.z", "other.first",
    ) == {
        "thing.first": Place(0, 1),
        "thing.pair": Place(8, 4),
        "thing.a": Place(8, 4),
        "thing.b": Place(12, 4),
        "thing.table": Place(16, 0),
        "thing.next": Place(32, 8),
        "thing.part.x": Place(48, 4),
        "thing.part.deep.b": Place(44, 4),
        "thing.low": Place(56, 1, 0x0F if sys.byteorder == "little" else 0xF0),
        "thing.high": Place(56, 1, 0x10 if sys.byteorder == "little" else 0x08),
        "thing.wide": Place(57, 1, 0xFF),
        "thing.end": Place(64, 4),
        "thing.end.z": Place(64, 4),
        "other.first": Place(4, 4),
    }  # fmt: skip


def test_what_is_not_there(composed):
    missing = ["thing.none", "thing.first.none", "none.first", "named.part", "colour.first", "thing.part.none"]
    assert find(composed[0], *missing) == dict.fromkeys(missing)


def test_a_function_has_the_number_that_the_kernel_counts(composed):
    data, work = composed
    found = btf.layout(data, [], ["work", "thing", "none"])
    assert found.functions == {"work": work, "thing": None, "none": None}


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4, 8]), st.booleans()), min_size=1, max_size=30))
def test_members_lie_where_c_puts_them(layout):
    """ctypes lays structures out as the C compiler does; members may be inside an anonymous one."""
    kinds = {1: ctypes.c_uint8, 2: ctypes.c_uint16, 4: ctypes.c_uint32, 8: ctypes.c_uint64}
    e = Encoder()
    numbers = {size: e.int(f"u{size}", size) for size in kinds}
    fields, parts, expected, at = [], [], {}, 0
    for i, (size, wrapped) in enumerate(layout):
        name = f"m{i}"
        fields.append((name, kinds[size]))
        at = -(-at // size) * size
        number = e.add(STRUCT, "", size, [(name, numbers[size], 0)]) if wrapped else numbers[size]
        parts.append(("" if wrapped else name, number, at * 8))
        at += size
    e.add(STRUCT, "thing", at, parts)
    c = type("Thing", (ctypes.Structure,), {"_fields_": fields})
    for name, _ in fields:
        expected[f"thing.{name}"] = Place(getattr(c, name).offset, getattr(c, name).size)
    assert find(e.data(), *expected) == expected


@given(st.data())
def test_any_bytes_are_read_or_garbled(more):
    e = Encoder()
    word = e.int("int", 4)
    inner = e.add(UNION, "", 4, [("a", word, 0), ("b", word, 0)])
    e.add(STRUCT, "thing", 8, [("first", word, 0), ("", inner, 32)])
    damaged = bytearray(e.data())
    for _ in range(more.draw(st.integers(0, 8))):
        damaged[more.draw(st.integers(0, len(damaged) - 1))] = more.draw(st.integers(0, 255))
    cut = bytes(damaged[: more.draw(st.integers(0, len(damaged)))])
    try:
        places = find(cut, "thing.first", "thing.b", "thing.none")
    except SourceGarbled:
        return
    assert all(place is None or place.offset >= 0 for place in places.values())


def test_an_anonymous_structure_inside_itself_ends():
    e = Encoder()
    word = e.int("int", 4)
    e.add(STRUCT, "", 4, [("", e.count + 1, 0)])
    e.add(STRUCT, "thing", 4, [("", e.count, 0), ("x", word, 0)])
    alias = e.count + 1
    e.add(TYPEDEF, "loop", alias)
    e.add(STRUCT, "round", 4, [("x", alias, 0)])
    assert find(e.data(), "thing.x") == {"thing.x": Place(0, 4)}
    with pytest.raises(SourceGarbled, match="has no end"):
        find(e.data(), "round.x")


# --- a compiler's opinion ------------------------------------------------------------------------------------------

SOURCE = """
#include <stdio.h>
#include <stddef.h>
typedef unsigned short portnumber;
struct inner { char c; volatile const portnumber port; };
struct sock_like {
    union { unsigned long pair; struct { unsigned int to; unsigned int from; }; };
    unsigned char reuse : 4, port : 1, only : 1;
    struct inner in;
    struct sock_like *next;
    union { struct { char pad[3]; struct { int deep; }; }; long wide; } u;
    union { char x; struct { short y; union { long z; }; }; };
    int list[5];
    long last;
} one;
int work(struct sock_like *s) { return s->only; }
#define SHOW(m) printf("sock_like." #m " %zu\\n", offsetof(struct sock_like, m));
int main(void) { SHOW(pair) SHOW(to) SHOW(from) SHOW(in) SHOW(in.port) SHOW(next) SHOW(u.deep) SHOW(u.wide) SHOW(x)
  SHOW(y) SHOW(z) SHOW(list) SHOW(last) return work(&one) != 0; }
"""


def test_gcc_lays_it_out_alike(tmp_path):
    need(shutil.which("gcc") is not None and shutil.which("objcopy") is not None, "gcc 12 or later and objcopy")
    (tmp_path / "x.c").write_text(SOURCE)
    subprocess.run(["gcc", "-gbtf", "-o", "x", "x.c"], cwd=tmp_path, check=True)
    subprocess.run(["objcopy", "--dump-section", ".BTF=types", "x"], cwd=tmp_path, check=True)
    run = subprocess.run([tmp_path / "x"], capture_output=True, text=True, check=True)
    said = dict(re.findall(r"(\S+) (\d+)", run.stdout))
    data = (tmp_path / "types").read_bytes()
    found = find(data, *said, "sock_like.only", "sock_like.reuse")
    masks = [found.pop("sock_like.only"), found.pop("sock_like.reuse")]
    assert {path: place.offset for path, place in found.items()} == {path: int(at) for path, at in said.items()}
    assert len(said) == 13
    assert [(place.offset, place.mask.bit_count()) for place in masks] == [(8, 1), (8, 4)]
    assert found["sock_like.in.port"].size == 2
    assert found["sock_like.next"].size == struct.calcsize("P")


# --- the kernel ----------------------------------------------------------------------------------------------------


def test_the_running_kernels():
    """What the UAPI fixes: include/uapi/linux/tcp.h and in6.h; what every program gets: bpf_iter__task_file."""
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    data = btf.read()
    assert (len(data), len(data)) == (btf.fingerprint()[0], os.stat(btf.PATH).st_size)
    found = btf.layout(data, ["tcp_info.tcpi_state", "tcp_info.tcpi_rto", "sockaddr_in6.sin6_addr", "nosuch.a"])
    assert found.places == {
        "tcp_info.tcpi_state": Place(0, 1),
        "tcp_info.tcpi_rto": Place(8, 4),
        "sockaddr_in6.sin6_addr": Place(8, 16),
        "nosuch.a": None,
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_kernels_btf_cut_short(share):
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    data = btf.read()
    with pytest.raises(SourceGarbled, match="cannot be read"):
        find(data[: int(len(data) * share)], "sock.sk_protocol")


def test_a_kernel_is_identified_by_its_build_id_and_without_one_by_its_btf(monkeypatch, tmp_path):
    need(os.path.exists(btf.PATH), "a kernel with BTF")
    notes = tmp_path / "notes"
    monkeypatch.setattr(btf, "NOTES", str(notes))
    size = os.stat(btf.PATH).st_size
    of_btf = (size, zlib.crc32(btf.read()))
    assert btf.fingerprint() == of_btf
    notes.write_bytes(b"no build id")
    assert btf.fingerprint() == of_btf
    note = bytes.fromhex("04000000 14000000 03000000 474e5500") + bytes(range(20))
    notes.write_bytes(note)
    assert btf.fingerprint() == (size, zlib.crc32(note))
    notes.write_bytes(note[:-1] + b"!")
    assert btf.fingerprint() != (size, zlib.crc32(note))


def test_the_running_kernel_has_a_build_id():
    need(os.path.exists(btf.NOTES), "/sys/kernel/notes")
    build_id = re.search(rb"(?s)\x14\0\0\0\x03\0\0\0GNU\0(.{20})", Path(btf.NOTES).read_bytes())
    assert build_id is not None
    assert len(set(build_id[1])) > 1


def test_no_btf(monkeypatch, tmp_path):
    monkeypatch.setattr(btf, "PATH", str(tmp_path / "vmlinux"))
    for act in (btf.read, btf.fingerprint):
        with pytest.raises(SourceMissing, match=r"does not describe its structures .*vmlinux.*CONFIG_DEBUG_INFO_BTF"):
            act()
