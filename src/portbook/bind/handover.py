"""Sockets for another program, and how it learns which descriptors or handles it has inherited.

POSIX, as sd_listen_fds(3) describes it and many servers support it: descriptors from 3 on, ``LISTEN_FDS`` is their
number, ``LISTEN_PID`` the process they are for, ``LISTEN_FDNAMES`` what each is. Windows has no such convention: the
handles are inherited (sockets are handles that a child may inherit: SetHandleInformation on learn.microsoft.com), and
``PORTBOOK_HANDLES`` has the kind and number of each: ``tcp-ipv4=312,tcp-ipv6=316``. ``PORT`` is the port number on
both.

This file is also the program that ``Lease.start`` runs before the command, because only a process itself knows its pid:
so at the top it imports nothing but the standard library, and little of that.
"""

from __future__ import annotations

import os
import socket
import sys

if sys.platform != "win32":
    import fcntl  # not later: then there may be no descriptor left to read the module from

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Sequence
    from typing import Any

FIRST = 3  # SD_LISTEN_FDS_START of sd-daemon.h
HANDLES = "PORTBOOK_HANDLES"
LISTEN = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


def environment(port: int, sockets: Sequence[socket.socket], pid: int) -> dict[str, str]:
    """The variables for a program that inherits these sockets, in this order."""
    if sys.platform == "win32":
        return {"PORT": str(port), HANDLES: ",".join(f"{name(sock)}={sock.fileno()}" for sock in sockets)}
    names = ":".join(map(name, sockets))
    return {"PORT": str(port), "LISTEN_PID": str(pid), "LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": names}


def name(sock: socket.socket) -> str:
    """What a socket is, such as ``tcp-ipv6``; without a colon, which separates the names."""
    protocol = "udp" if sock.type == socket.SOCK_DGRAM else "tcp"
    return f"{protocol}-{'ipv6' if sock.family == socket.AF_INET6 else 'ipv4'}"


def place(descriptors: Sequence[int]) -> None:
    """Copy descriptors to 3, 4, …, where a program that replaces this one expects them. POSIX.

    :raises OSError: no descriptor is left
    """
    if sys.platform != "win32":
        # First copy them beyond the target numbers: one may be where another belongs. The kernel closes these on exec.
        beyond = FIRST + len(descriptors)
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, beyond) for descriptor in descriptors]
        for number, copy in enumerate(copies, FIRST):
            os.dup2(copy, number, inheritable=True)


def start(command: Sequence[str], sockets: Sequence[socket.socket], options: dict[str, Any]) -> subprocess.Popen[Any]:
    """Start a child that inherits the sockets, and no other descriptor of ours.

    On Windows a child that another thread starts at the same moment may inherit them as well, unless it names what it
    inherits (PROC_THREAD_ATTRIBUTE_HANDLE_LIST) or inherits nothing, which is what subprocess does.
    """
    import subprocess

    numbers = [sock.fileno() for sock in sockets]
    if sys.platform != "win32":
        front = [sys.executable, "-I", "-S", __file__, str(len(numbers)), *map(str, numbers)]
        kept = (*numbers, *options.pop("pass_fds", ()))
        return subprocess.Popen([*front, *command], pass_fds=kept, **options)
    startup = options.pop("startupinfo", None) or subprocess.STARTUPINFO()
    startup.lpAttributeList = {"handle_list": numbers}
    for number in numbers:
        os.set_handle_inheritable(number, True)
    try:
        return subprocess.Popen(command, startupinfo=startup, close_fds=True, **options)
    finally:
        for number in numbers:
            os.set_handle_inheritable(number, False)


def inherited() -> tuple[socket.socket, ...]:
    """Return the sockets that ``portbook lease``, ``Lease.start`` or systemd passed to this process; else none.

    The variables are removed from the environment, so a second call returns none, and a child does not mistake the
    sockets for its own. Close them like any socket.

    :raises OSError: an inherited descriptor is not a socket
    """
    if sys.platform == "win32":
        handles = os.environ.pop(HANDLES, "")
        return tuple(_of_handle(*part.split("=")) for part in handles.split(",") if part)
    numbers = _inherited_descriptors()
    for word in LISTEN:
        os.environ.pop(word, None)
    for number in numbers:
        os.set_inheritable(number, False)
    return tuple(socket.socket(fileno=number) for number in numbers)


def _inherited_descriptors() -> range:
    """The descriptors that the environment names for this process."""
    count = os.environ.get("LISTEN_FDS", "")
    is_count = count.isascii() and count.isdigit() and len(count) <= 5
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not is_count:
        return range(0)
    return range(FIRST, FIRST + int(count))


def _of_handle(kind: str, number: str) -> socket.socket:
    """Name the kind of socket explicitly: Wine cannot read it from an inherited socket (SO_PROTOCOL_INFO)."""
    protocol, family = kind.split("-")
    sock = socket.socket(
        socket.AF_INET6 if family == "ipv6" else socket.AF_INET,
        socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM,
        0,
        fileno=int(number),
    )
    sock.set_inheritable(False)
    return sock


def _become(count: str, *words: str) -> None:
    """Move ``count`` descriptors to their places, set LISTEN_PID, and replace this process by the command."""
    descriptors = [int(word) for word in words[: int(count)]]
    place(descriptors)
    for descriptor in descriptors:
        if descriptor >= FIRST + len(descriptors):
            os.close(descriptor)  # else the program would hold the port twice without knowing
    os.environ["LISTEN_PID"] = str(os.getpid())
    command = words[int(count) :]
    try:
        os.execvp(command[0], command)  # noqa: S606  the caller's command, and no shell
    except OSError as error:
        sys.stderr.write(f"portbook: {command[0]!r} cannot be run: {error.strerror}\n")
        sys.exit(127)  # as a shell does (POSIX.1-2024, Shell Command Language, 2.8.2)


if __name__ == "__main__":
    _become(*sys.argv[1:])
