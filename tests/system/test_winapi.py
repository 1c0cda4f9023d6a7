"""Functions of Windows elsewhere, and its clock."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from portbook.system import winapi


@pytest.mark.parametrize(
    ("filetime", "expected"),
    [(0, None), (-5, None), (2**63 - 1, None), (116_444_736_000_000_000, datetime(1970, 1, 1, tzinfo=UTC))],
)
def test_filetime(filetime, expected):
    assert winapi.filetime_to_datetime(filetime) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has it")
def test_elsewhere_a_library_of_windows_is_an_oserror():
    call = winapi.Functions((("kernel32", "GetTickCount", None, ()),))
    with pytest.raises(OSError, match=r"kernel32\.dll is part of Windows"):
        call.GetTickCount()
