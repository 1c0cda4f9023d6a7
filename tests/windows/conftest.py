"""The tests that run in Windows Python. Elsewhere tests/winlab runs them under Wine; they are not collected there."""

from __future__ import annotations

import ctypes
import sys

import pytest

collect_ignore_glob = [] if sys.platform == "win32" else ["test_*.py"]


def _wine_version() -> int | None:
    """The number before the dot; None on Windows. winehq.org, Developer FAQ: this export is how to tell."""
    if sys.platform != "win32":
        return None
    get_version = getattr(ctypes.WinDLL("ntdll"), "wine_get_version", None)
    if get_version is None:
        return None
    get_version.restype = ctypes.c_char_p
    return int(get_version().split(b".")[0])


WINE = _wine_version()


def lacks(what: str, *, since: int = 0, until: int | None = None) -> pytest.MarkDecorator:
    """Expect a failure under Wine and a success on Windows: what the laboratory cannot show.

    :param since: the first version of Wine that lacks it
    :param until: the first version of Wine that has it; None: no known version
    """
    is_lacking = WINE is not None and since <= WINE and (until is None or until > WINE)
    return pytest.mark.xfail(is_lacking, strict=True, reason=f"Wine {WINE} {what}")
