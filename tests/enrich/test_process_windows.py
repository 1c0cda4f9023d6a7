"""The pure part of Windows processes: the list as the kernel writes it, and who is whose parent."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portbook.enrich.process import windows
from portbook.enrich.process.windows import Process, ancestry, parse_processes
from portbook.records import Owner

BASE = 0x7FF0_0000


def encode(processes: dict[int, Process], pointer: int = 8) -> bytes:
    """A SYSTEM_PROCESS_INFORMATION buffer at BASE, each row followed by its name, by the documented offsets."""
    offsets = {8: (56, 64, 80, 88, 256), 4: (56, 60, 68, 72, 184)}[pointer]
    length_at, buffer_at, pid_at, ppid_at, size = offsets
    data = b""
    for index, (pid, (name, ppid, created)) in enumerate(processes.items()):
        text = name.encode("utf-16-le")
        row = bytearray(size) + text + bytes(-len(text) % 8)
        row[0:4] = (0 if index == len(processes) - 1 else len(row)).to_bytes(4, "little")
        row[32:40] = created.to_bytes(8, "little")
        row[length_at : length_at + 2] = len(text).to_bytes(2, "little")
        address = BASE + len(data) + size if text else 0
        row[buffer_at : buffer_at + pointer] = address.to_bytes(pointer, "little")
        row[pid_at : pid_at + pointer] = pid.to_bytes(pointer, "little")
        row[ppid_at : ppid_at + pointer] = ppid.to_bytes(pointer, "little")
        data += bytes(row)
    return data


LISTED = {
    0: Process("", 0, 0),
    4: Process("System", 0, 5),
    700: Process("svchost.exe", 4, 10),
    4242: Process("müller \U0001f600.exe", 700, 20),
}


@pytest.mark.parametrize("pointer", [8, 4])
def test_a_list_of_processes(pointer):
    expected = LISTED | {0: Process("System Idle Process", 0, 0)}
    assert parse_processes(encode(LISTED, pointer), BASE, pointer) == expected


def test_a_list_that_is_cut_ends_there():
    data = encode(LISTED)
    for end in range(0, len(data), 7):
        assert parse_processes(data[:end], BASE).keys() <= LISTED.keys()


@given(st.binary(max_size=600), st.integers(0, 2**64 - 1), st.sampled_from([4, 8]))
def test_any_bytes_are_read(data, base, pointer):
    parse_processes(data, base, pointer)


def test_offsets_that_form_a_circle_end():
    step = struct.pack("<I", 0xFFFF_FFFF)
    assert parse_processes(step + bytes(252), BASE) == {0: Process("System Idle Process", 0, 0)}


@pytest.mark.parametrize(
    ("processes", "chain"),
    [
        ({1: (2, 9), 2: (3, 8), 3: (0, 7)}, [2, 3]),
        ({1: (2, 9), 2: (3, 8)}, [2]),  # 3 has ended
        ({1: (2, 9), 2: (1, 8)}, [2]),  # in circles
        ({1: (1, 9)}, []),
        ({1: (2, 9), 2: (3, 10), 3: (0, 1)}, []),  # 2 started later: another process with the parent's pid
        ({1: (2, 9), 2: (3, 9)}, [2]),
        ({1: (2, 0), 2: (3, 9), 3: (0, 1)}, [2, 3]),  # start times are not known everywhere
        ({}, []),
    ],
)
def test_parents(processes, chain):
    assert ancestry(1, {pid: Process("", ppid, created) for pid, (ppid, created) in processes.items()}) == chain


def test_parents_are_bounded():
    endless = {pid: Process("", pid + 4, 10**9 - pid) for pid in range(4, 4000, 4)}
    assert len(ancestry(4, endless)) == windows.MOST_PARENTS


@pytest.mark.skipif(sys.platform == "win32", reason="here it can be read")
def test_elsewhere_owners_stay_as_they_were():
    owners, (gap,) = windows.enrich([Owner(1), Owner(2)])
    assert owners == [Owner(1), Owner(2)]
    assert (gap.what, gap.count) == ("process", 2)
    assert windows.parents(1) == ()
