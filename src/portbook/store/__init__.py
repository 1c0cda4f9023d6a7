"""The history: events, and the intervals in which ports were held."""

from __future__ import annotations

import os
import sys

NAME = "history.db"
SYSTEM = "/var/lib/portbook"


def path() -> str:
    """Where the history of the user who calls is kept, and of root that of the machine, whether it exists or not."""
    if sys.platform == "win32":
        return os.path.join(_windows_directory(), "portbook", NAME)
    if os.geteuid() == 0:
        return os.path.join(SYSTEM, NAME)
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # a relative path is invalid and ignored: XDG Base Directory Specification
        state = os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "portbook", NAME)


def find() -> str:
    """The history to read: that of ``path``, and where there is none, that of the machine."""
    own = path()
    system = _system_path()
    # Who may not search the directory does not see the file, and is to be told that they may not read it.
    if not os.path.exists(own) and os.path.isdir(os.path.dirname(system)):
        return system
    return own


def _system_path() -> str:
    if sys.platform == "win32":
        return os.path.join(os.environ.get("PROGRAMDATA", r"C:\ProgramData"), "portbook", NAME)
    return os.path.join(SYSTEM, NAME)


def _windows_directory() -> str:
    """For an administrator the directory of programs, for other users their own (Known Folders)."""
    import ctypes

    is_admin = sys.platform == "win32" and ctypes.windll.shell32.IsUserAnAdmin() != 0
    if is_admin:
        return os.environ.get("PROGRAMDATA", r"C:\ProgramData")
    return os.environ.get("LOCALAPPDATA") or os.path.join(os.path.expanduser("~"), "AppData", "Local")
