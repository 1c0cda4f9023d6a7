"""The running kernel's offsets, looked up once and kept in a file: reading BTF takes 30 ms, reading the file 1.

The file belongs to one kernel: its release, the size of its BTF and the checksum of its build id have to match. It is
used only if this user owns it and its directory and no other user can write there, because a wrong offset makes wrong
answers. Where it cannot be written, the next call reads BTF again, which costs time and nothing else.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from zlib import crc32

import msgspec
from msgspec import Struct

from portbook.errors import StoreError
from portbook.sources.bpf import btf
from portbook.sources.bpf.btf import Layout, Place

SYSTEM_DIRECTORY = "/var/cache"  # Filesystem Hierarchy Standard, section 5.5
OWN, NAME = "portbook", "offsets.json"
MOST_BYTES = 1 << 16
FORBIDDEN = stat.S_IWGRP | stat.S_IWOTH
WIDTHS = frozenset((0, 1, 2, 4, 8, 16))
LARGEST = 4096  # of a member that is a structure or an array
FARTHEST = (1 << 15) - 1  # a load's offset is signed and has 16 bits


class Kernel(Struct, frozen=True, array_like=True):
    """Which kernel the offsets are of."""

    release: str
    size: int
    checksum: int


_known: dict[tuple[tuple[str, ...], tuple[str, ...]], Layout] = {}  # the kernel does not change while we run


def offsets(paths: Iterable[str], functions: Iterable[str]) -> Layout:
    """Members and functions of the running kernel: from memory, from the file, or from BTF.

    :raises SourceMissing: the kernel has no BTF
    :raises SourceGarbled: the BTF cannot be understood
    """
    wanted = tuple(paths), tuple(functions)
    if wanted not in _known:
        _known[wanted] = _look_up(*wanted)
    return _known[wanted]


def _look_up(paths: tuple[str, ...], functions: tuple[str, ...]) -> Layout:
    kernel = Kernel(os.uname().release, *btf.fingerprint())
    kept = load(kernel)
    if kept is not None and set(paths) <= kept.places.keys() and set(functions) <= kept.functions.keys():
        return kept
    if kept is not None:  # the file keeps what others have looked up too: they are not to replace it in turn
        paths, functions = (*dict.fromkeys((*paths, *kept.places)),), (*dict.fromkeys((*functions, *kept.functions)),)
    layout = btf.layout(btf.read(), paths, functions)
    keep(kernel, layout)
    return layout


def directory() -> str | None:
    """The parent of our directory. For root it is fixed, regardless of the environment; None without a home."""
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    cache = os.environ.get("XDG_CACHE_HOME", "")  # XDG Base Directory Specification
    if os.path.isabs(cache):
        return cache
    home = os.environ.get("HOME", "")
    return os.path.join(home, ".cache") if os.path.isabs(home) else None


# --- reading -------------------------------------------------------------------------------------------------------


def load(kernel: Kernel) -> Layout | None:
    """What was kept for this kernel; None if there is nothing, or nothing that can be trusted."""
    try:
        opened = _open()
        try:
            return parse(_read(opened), kernel)
        finally:
            os.close(opened)
    except (OSError, ValueError):
        return None  # not kept yet, not ours, or damaged: BTF is read again


def parse(text: bytes, kernel: Kernel) -> Layout:
    """Read the contents of the file; raise ValueError if they are of another kernel or damaged."""
    try:
        checksum, kept_kernel, places, functions = msgspec.json.decode(text)
        if Kernel(*kept_kernel) != kernel or checksum != _checksum(kept_kernel, places, functions):
            raise ValueError("of another kernel, or damaged")
        if not all(isinstance(number, int | None) for number in functions.values()):
            raise ValueError("damaged")
        layout = Layout({path: _place(each) for path, each in places.items()}, functions)
    except (msgspec.DecodeError, RecursionError, TypeError, AttributeError) as error:
        raise ValueError(f"damaged: {error}") from error
    return layout


def _place(numbers: object) -> Place | None:
    """The place of a member; raise ValueError for numbers that no structure has."""
    if numbers is None:
        return None
    place = Place(*numbers)  # type: ignore[misc]
    has_size = place.size in WIDTHS or (0 < place.size <= LARGEST and place.size % 4 == 0)
    if not (has_size and 0 <= place.offset <= FARTHEST and 0 <= place.mask <= 0xFF):
        raise ValueError(f"impossible place: {place}")
    return place


def _checksum(*parts: object) -> int:
    return crc32(msgspec.json.encode(parts))


def _open() -> int:
    """Open our directory; raise OSError if there is none, ValueError if other users can write there."""
    parent = directory()
    if parent is None:
        raise FileNotFoundError("no home")
    opened = os.open(os.path.join(parent, OWN), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not _is_ours(os.fstat(opened)):
        os.close(opened)
        raise ValueError(f"{parent}/{OWN} is not ours")
    return opened


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & FORBIDDEN


def _read(opened: int) -> bytes:
    file = os.open(NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=opened)
    try:
        status = os.fstat(file)
        if not _is_ours(status) or not stat.S_ISREG(status.st_mode):
            raise ValueError("not ours")
        return os.read(file, MOST_BYTES)
    finally:
        os.close(file)


# --- writing -------------------------------------------------------------------------------------------------------


def keep(kernel: Kernel, layout: Layout) -> None:
    """Write the file whole or not at all. Where it cannot be written, only time is lost."""
    from portbook.system.files import new_file

    parts = (kernel, layout.places, layout.functions)
    text = msgspec.json.encode((_checksum(*parts), *parts))
    with suppress(OSError, ValueError, StoreError):
        _make()
        opened = _open()
        try:
            with new_file(NAME, directory=opened, mode=0o644) as file:
                file.write(text)
        finally:
            os.close(opened)


def _make() -> None:
    if (parent := directory()) is None:
        return
    if os.geteuid() != 0:
        os.makedirs(parent, 0o700, exist_ok=True)
    with suppress(FileExistsError):
        os.mkdir(os.path.join(parent, OWN), 0o755)
