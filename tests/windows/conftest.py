"""The tests that run in Windows Python. Elsewhere tests/winlab runs them under Wine; they are not collected there."""

from __future__ import annotations

import ctypes
import sys

import pytest

collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]

# ntdll of Wine has this export, which is the documented way to tell (wiki.winehq.org, Developer FAQ).
WINE = sys.platform == "win32" and hasattr(ctypes.WinDLL("ntdll"), "wine_get_version")


def lacks(what: str) -> pytest.MarkDecorator:
    """Expect a failure under Wine and a success on Windows: what the laboratory cannot show."""
    return pytest.mark.xfail(WINE, strict=True, reason=f"Wine 8 {what}")
