"""Linux: where the members of the kernel's structures lie, from its own type information, BTF.

A kernel's structures change from version to version and from configuration to configuration. The running kernel
describes them itself in /sys/kernel/btf/vmlinux: 100,000 types in 5 MB. This reader goes from header to header,
stops when it has met every structure that is asked for, and looks only into those.

Facts: Documentation/bpf/btf.rst ("2. BTF Type and String Encoding"), include/uapi/linux/btf.h. A path such as
``sock.__sk_common.skc_num`` names a structure and the members to go through; members of anonymous structures and
unions count as members of what they lie in, as in C.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from zlib import crc32

from msgspec import Struct
from msgspec.structs import replace

from portbook.errors import SourceGarbled, SourceMissing

PATH = "/sys/kernel/btf/vmlinux"
NOTES = "/sys/kernel/notes"
BUILD_ID = struct.pack("=II4s", 20, 3, b"GNU")  # length of a SHA-1, NT_GNU_BUILD_ID, owner: include/uapi/linux/elf.h
PAGE = 4096  # sysfs gives no more at once: kernfs_file_read_iter
MOST_PAGES = 1 << 14  # 64 MB, ten times what a kernel has

MAGIC = 0xEB9F
HEADER = struct.Struct(
    "=HBBIIIII"
)  # magic, version, flags, header length, type offset and length, string offset, length
WORD = 4

# BTF_KIND_*
INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 6, 8, 9, 10
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, DECL_TAG, TYPE_TAG, ENUM64 = 11, 12, 13, 14, 15, 17, 18, 19
# Every type begins with three words: name, info (kind, how many parts), size or type. Then come, in words, what a kind
# always has and what it has for each part.
HEAD_WORDS = 3
MORE_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
PART_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
STEP = [HEAD_WORDS + MORE_WORDS.get(kind, 0) for kind in range(32)]
PARTS = [PART_WORDS.get(kind, 0) for kind in range(32)]
BATCH = 4096  # headers that are read before looking whether all is found
ALIASES = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
COMPOUND = frozenset((STRUCT, UNION))
SIZED = frozenset((INT, ENUM, ENUM64, STRUCT, UNION))
POINTER_SIZE = 8
DEEPEST = 32  # of aliases, and of anonymous structures in one another


class Place(Struct, frozen=True, array_like=True):
    """Where a member lies in its structure."""

    offset: int  # bytes
    size: int  # bytes; 0: an array or a function
    mask: int = 0  # of a bit field inside one byte; 0: it is none


def read() -> bytes:
    """The running kernel's BTF; raises SourceMissing."""
    return b"".join(_parts())


def fingerprint() -> tuple[int, int]:
    """The size of the running kernel's BTF, and a CRC-32 that tells kernels apart; raises SourceMissing.

    The checksum is that of the kernel's ELF notes if they have a build id: ld(1), --build-id, makes it from the whole
    kernel, BTF included. Otherwise it is that of BTF itself, which takes 4 ms to read.
    """
    notes = _notes()
    if BUILD_ID in notes:
        with suppress(OSError):  # then _parts() says what is wrong
            return os.stat(PATH).st_size, crc32(notes)
    size = checksum = 0
    for part in _parts():
        size += len(part)
        checksum = crc32(part, checksum)
    return size, checksum


def _notes() -> bytes:
    try:
        with open(NOTES, "rb") as file:
            return file.read(PAGE)
    except OSError:
        return b""


def _parts() -> Iterator[bytes]:
    try:
        file = os.open(PATH, os.O_RDONLY | os.O_CLOEXEC)
        try:
            for _ in range(MOST_PAGES):
                if not (part := os.read(file, PAGE)):
                    break
                yield part
        finally:
            os.close(file)
    except OSError as error:
        why = f"this kernel does not describe its structures ({PATH}: {error.strerror})"
        raise SourceMissing(why, "CONFIG_DEBUG_INFO_BTF") from error


class Layout(Struct, frozen=True):
    """What a kernel says of the members and functions that were asked for; None: it has no such thing."""

    places: dict[str, Place | None]
    functions: dict[str, int | None]  # type numbers, by which programs are attached


def layout(data: bytes, paths: Iterable[str], functions: Iterable[str] = ()) -> Layout:
    """Look up members by their paths and functions by their names; raises SourceGarbled."""
    wanted = {path: path.partition(".")[0] for path in paths}
    names = tuple(functions)
    try:
        types = Types(data)
        found = types.find({**dict.fromkeys(wanted.values(), STRUCT), **dict.fromkeys(names, FUNC)})
        places = {path: _resolve(types, found.get(first), path) for path, first in wanted.items()}
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise SourceGarbled(f"BTF of {len(data)} bytes cannot be read: {error}") from error
    return Layout(places, {name: found.get(name) for name in names})


def _resolve(types: Types, number: int | None, path: str) -> Place | None:
    place = Place(0, 0)
    for name in path.split(".")[1:]:
        step = None if number is None else types.member(number, name)
        if step is None:
            return None
        number, member = step
        place = Place(place.offset + member.offset, member.size, member.mask)
    return place


class Types:
    """The type section as words, and how far it has been walked: the position of every type met so far."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, type_offset, type_length, string_offset, string_length = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError(f"it begins with {magic:#x}")
        types, strings = header + type_offset, header + string_offset
        if max(types + type_length, strings + string_length) > len(data):
            raise ValueError("it is cut short")
        self.words = memoryview(data)[types : types + type_length // WORD * WORD].cast("I")
        self.strings = data[strings : strings + string_length]
        self.positions = [0]  # of type 0, void, which is not written
        self._next = 0

    def _walk(self, names: frozenset[int] | dict[int, str] = frozenset()) -> list[int]:
        """Go over a batch of headers and keep their positions; gives the numbers of those with such a name."""
        words, positions = self.words, self.positions
        at, end, add = self._next, len(words), positions.append
        hits: list[int] = []
        for _ in range(BATCH):
            if at >= end:
                break
            if words[at] in names:
                hits.append(len(positions))
            add(at)
            info = words[at + 1]
            kind = info >> 24 & 31
            at += STEP[kind] + PARTS[kind] * (info & 0xFFFF)
        self._next = at
        return hits

    def find(self, wanted: dict[str, int]) -> dict[str, int]:
        """The numbers of named types of a kind, the first of each name."""
        names = {offset: name for name in wanted for offset in self._offsets(name)}
        found: dict[str, int] = {}
        while len(found) < len(set(names.values())) and self._next < len(self.words):
            for number in self._walk(names):
                name = names[self.words[self.positions[number]]]
                if self.kind(number) == wanted[name]:
                    found.setdefault(name, number)
        return found

    def _offsets(self, name: str) -> Iterator[int]:
        """Where a name stands among the strings, each of which ends with a zero byte and follows one."""
        text = b"\0" + name.encode() + b"\0"
        at = self.strings.find(text)
        while at >= 0:
            yield at + 1
            at = self.strings.find(text, at + 1)

    def _position(self, number: int) -> int:
        while number >= len(self.positions):
            if self._next >= len(self.words):
                raise ValueError(f"type {number} is not there")
            self._walk()
        return self.positions[number]

    def _name(self, offset: int) -> bytes:
        return self.strings[offset : self.strings.index(b"\0", offset)]

    def kind(self, number: int) -> int:
        """What kind of type it is, 0 for void."""
        return self.words[self._position(number) + 1] >> 24 & 31 if number else 0

    def bare(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(DEEPEST):
            if self.kind(number) not in ALIASES:
                return number
            number = self.words[self._position(number) + 2]
        raise ValueError(f"type {number} has no end")

    def size(self, number: int) -> int:
        """Bytes of a value of this type; 0 for what has no size of its own."""
        kind = self.kind(number)
        if kind == PTR:
            return POINTER_SIZE
        return self.words[self._position(number) + 2] if kind in SIZED else 0

    def member(self, number: int, name: str, depth: int = 0) -> tuple[int, Place] | None:
        """Type and place of a member, looked for in anonymous members too."""
        if self.kind(number) not in COMPOUND or depth > DEEPEST:
            return None
        for called, kind, offset, bits in self._members(number):
            if called == name.encode():
                return kind, self._place(kind, offset, bits)
            if not called and (inner := self.member(kind, name, depth + 1)):
                return inner[0], replace(inner[1], offset=inner[1].offset + offset // 8)
        return None

    def _members(self, number: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, type, offset in bits, and bits of a bit field (0: it is none)."""
        at = self._position(number)
        info = self.words[at + 1]
        in_fields = bool(info >> 31)  # kind_flag: the upper byte of an offset is the width of a bit field
        for i in range(info & 0xFFFF):
            name, kind, offset = self.words[at + HEAD_WORDS + 3 * i : at + HEAD_WORDS + 3 * i + 3]
            bits = offset >> 24 if in_fields else 0
            yield self._name(name), self.bare(kind), offset & 0xFFFFFF if in_fields else offset, bits

    def _place(self, kind: int, offset: int, bits: int) -> Place:
        if not bits:
            return Place(offset // 8, self.size(kind))
        return Place(offset // 8, (offset % 8 + bits + 7) // 8, _mask(offset % 8, bits))


def _mask(first: int, bits: int) -> int:
    """The bits of a byte: counted from the lowest, or on a big-endian machine from the highest."""
    if sys.byteorder == "little":
        return ((1 << bits) - 1) << first & 0xFF
    return ((1 << bits) - 1) << max(0, 8 - first - bits) & 0xFF
