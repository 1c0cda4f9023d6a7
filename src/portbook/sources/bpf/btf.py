"""Linux: the offsets of the members of the kernel's structures, from its own type information, BTF.

A kernel's structures change from version to version and from configuration to configuration. The running kernel
describes them in /sys/kernel/btf/vmlinux: 100,000 types in 5 MB. This reader goes from header to header, stops when it
has found every structure that is wanted, and reads the members of these only.

Facts: Documentation/bpf/btf.rst ("2. BTF Type and String Encoding"), include/uapi/linux/btf.h. A path such as
``sock.__sk_common.skc_num`` names a structure and one member after the other; members of anonymous structures and
unions count as members of what contains them, as in C.
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
PAGE = 4096  # sysfs returns no more at once: kernfs_file_read_iter
MOST_PAGES = 1 << 14  # 64 MB, ten times what a kernel has

MAGIC = 0xEB9F
# magic, version, flags, header length, offset and length of the types, offset and length of the strings
HEADER = struct.Struct("=HBBIIIII")
WORD = 4

# BTF_KIND_*
INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, VOLATILE, CONST = 1, 2, 3, 4, 5, 6, 8, 9, 10
RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC, DECL_TAG, TYPE_TAG, ENUM64 = 11, 12, 13, 14, 15, 17, 18, 19
# Every type begins with three words: name, info (kind, number of parts), size or type. Further words follow: those that
# a kind always has, and those that it has for each part.
HEAD_WORDS = 3
MORE_WORDS = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
PART_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3}
STEP = [HEAD_WORDS + MORE_WORDS.get(kind, 0) for kind in range(32)]
PARTS = [PART_WORDS.get(kind, 0) for kind in range(32)]
BATCH = 4096  # headers that are read before checking whether everything is found
ALIASES = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
COMPOUND = frozenset((STRUCT, UNION))
SIZED = frozenset((INT, ENUM, ENUM64, STRUCT, UNION))
POINTER_SIZE = 8
TRACE_POINT = "btf_trace_"  # what the names of the typedefs begin with that programs attach to trace points by
MOST_SIZE = 16  # of a member that is read as a number, or that holds two pointers
DEEPEST = 32  # of aliases, and of anonymous structures in one another


class Place(Struct, frozen=True, array_like=True):
    """The position of a member in its structure."""

    offset: int  # bytes
    size: int  # bytes; 0: an array, a function, or a structure of more than MOST_SIZE
    mask: int = 0  # of a bit field inside one byte; 0: not a bit field


def read() -> bytes:
    """The running kernel's BTF; raise SourceMissing."""
    return b"".join(_parts())


def fingerprint() -> tuple[int, int]:
    """The size of the running kernel's BTF, and a CRC-32 that identifies the kernel; raise SourceMissing.

    The checksum is that of the kernel's ELF notes if they have a build id: ld(1), --build-id, hashes the whole
    kernel, BTF included. Otherwise it is that of BTF itself, which takes 4 ms to read.
    """
    notes = _notes()
    if BUILD_ID in notes:
        with suppress(OSError):  # then _parts() reports it
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
    """The wanted members and functions of a kernel; None for one that it lacks."""

    places: dict[str, Place | None]
    functions: dict[str, int | None]  # and trace points: type numbers, which programs are attached by


def layout(data: bytes, paths: Iterable[str], functions: Iterable[str] = ()) -> Layout:
    """Look up members by their paths, functions and trace points by their names; raise SourceGarbled."""
    structure_by_path = {path: path.partition(".")[0] for path in paths}
    names = tuple(functions)
    try:
        types = Types(data)
        attachable = {name: TYPEDEF if name.startswith(TRACE_POINT) else FUNC for name in names}
        numbers = types.find({**dict.fromkeys(structure_by_path.values(), STRUCT), **attachable})
        places = {path: _resolve(types, numbers.get(name), path) for path, name in structure_by_path.items()}
    except (struct.error, IndexError, ValueError, TypeError) as error:
        raise SourceGarbled(f"BTF of {len(data)} bytes cannot be read: {error}") from error
    return Layout(places, {name: numbers.get(name) for name in names})


def _resolve(types: Types, number: int | None, path: str) -> Place | None:
    place = Place(0, 0)
    for name in path.split(".")[1:]:
        member = None if number is None else types.member(number, name)
        if member is None:
            return None
        number, inner = member
        place = Place(place.offset + inner.offset, inner.size, inner.mask)
    return place


class Types:
    """The type section as words, and the position of every type that has been read so far."""

    def __init__(self, data: bytes) -> None:
        magic, _, _, header, type_offset, type_length, string_offset, string_length = HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ValueError(f"it begins with {magic:#x}")
        types, strings = header + type_offset, header + string_offset
        if max(types + type_length, strings + string_length) > len(data):
            raise ValueError("it is truncated")
        self.words = memoryview(data)[types : types + type_length // WORD * WORD].cast("I")
        self.strings = data[strings : strings + string_length]
        self.positions = [0]  # of type 0, void, which is not in the data
        self._next = 0

    def _walk(self, names: frozenset[int] | dict[int, str] = frozenset()) -> list[int]:
        """Read a batch of headers and keep their positions; return the numbers of those with one of the names."""
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
        count = len(set(names.values()))
        numbers: dict[str, int] = {}
        while len(numbers) < count and self._next < len(self.words):
            for number in self._walk(names):
                name = names[self.words[self.positions[number]]]
                if self.kind(number) == wanted[name]:
                    numbers.setdefault(name, number)
        return numbers

    def _offsets(self, name: str) -> Iterator[int]:
        """The offsets of a name among the strings, each of which ends with a zero byte and follows one."""
        text = b"\0" + name.encode() + b"\0"
        at = self.strings.find(text)
        while at >= 0:
            yield at + 1
            at = self.strings.find(text, at + 1)

    def _position(self, number: int) -> int:
        while number >= len(self.positions):
            if self._next >= len(self.words):
                raise ValueError(f"there is no type {number}")
            self._walk()
        return self.positions[number]

    def _name(self, offset: int) -> bytes:
        return self.strings[offset : self.strings.index(b"\0", offset)]

    def kind(self, number: int) -> int:
        """The kind of a type, 0 for void."""
        if not number:
            return 0
        return self.words[self._position(number) + 1] >> 24 & 31

    def unaliased(self, number: int) -> int:
        """The type behind typedefs and qualifiers."""
        for _ in range(DEEPEST):
            if self.kind(number) not in ALIASES:
                return number
            number = self.words[self._position(number) + 2]
        raise ValueError(f"type {number} has no end")

    def size(self, number: int) -> int:
        """Bytes of a value of this type; 0 for a type without a size."""
        kind = self.kind(number)
        if kind == PTR:
            return POINTER_SIZE
        if kind not in SIZED:
            return 0
        return self.words[self._position(number) + 2]

    def member(self, number: int, name: str, depth: int = 0) -> tuple[int, Place] | None:
        """Type and place of a member, also of one inside anonymous members; None if there is none."""
        if self.kind(number) not in COMPOUND or depth > DEEPEST:
            return None
        for member_name, type_number, offset, bits in self._members(number):
            if member_name == name.encode():
                return type_number, self._place(type_number, offset, bits)
            if member_name:
                continue
            inner = self.member(type_number, name, depth + 1)
            if inner is not None:
                inner_type, place = inner
                return inner_type, replace(place, offset=place.offset + offset // 8)
        return None

    def _members(self, number: int) -> Iterator[tuple[bytes, int, int, int]]:
        """Name, type, offset in bits, and number of bits of a bit field (0: not a bit field)."""
        at = self._position(number)
        info = self.words[at + 1]
        has_bit_fields = bool(info >> 31)  # kind_flag: the upper byte of an offset is the width of a bit field
        for i in range(info & 0xFFFF):
            name, type_number, offset = self.words[at + HEAD_WORDS + 3 * i : at + HEAD_WORDS + 3 * i + 3]
            bits = 0
            if has_bit_fields:
                offset, bits = offset & 0xFFFFFF, offset >> 24
            yield self._name(name), self.unaliased(type_number), offset, bits

    def _place(self, kind: int, offset: int, bits: int) -> Place:
        if not bits:
            size = self.size(kind)
            return Place(offset // 8, size if size <= MOST_SIZE else 0)
        return Place(offset // 8, (offset % 8 + bits + 7) // 8, _mask(offset % 8, bits))


def _mask(first: int, bits: int) -> int:
    """The bits of a byte: counted from the lowest, or on a big-endian machine from the highest."""
    if sys.byteorder == "little":
        return ((1 << bits) - 1) << first & 0xFF
    return ((1 << bits) - 1) << max(0, 8 - first - bits) & 0xFF
