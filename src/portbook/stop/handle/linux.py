"""Linux: a pidfd, which always refers to the same process, even if its pid is reused.

Facts: pidfd_open(2) (Linux 5.3), pidfd_send_signal(2) (5.1); "a PID file descriptor can be monitored using poll(2)":
it is readable when the process terminates. On a kernel without pidfds the portable handle is used.
"""

from __future__ import annotations

import errno
import os
import select
import signal
from contextlib import suppress
from datetime import datetime

from portbook.enrich import process
from portbook.records import Owner
from portbook.stop.handle import Handle, portable

CHECK = 0  # sends no signal, but checks existence and permission: kill(2)
NO_PIDFD = (errno.ENOSYS, errno.EINVAL)  # an older kernel, gVisor, or a seccomp filter


def open_handle(pid: int) -> Handle:
    """Open a pidfd and check that a signal may be sent through it."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in NO_PIDFD:
            return portable.open_handle(pid)
        raise
    try:
        signal.pidfd_send_signal(descriptor, CHECK)
    except BaseException:
        os.close(descriptor)
        raise
    return PidfdHandle(pid, descriptor)


class PidfdHandle:
    """A process by its pidfd."""

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self.descriptor = descriptor

    def started(self) -> datetime | None:
        """Read from /proc by pid; if the process has not ended afterwards, the pid was still its own."""
        (owner,), _ = process.enrich([Owner(self.pid)])
        return None if self.ended() else owner.started

    def request_end(self) -> str | None:
        """SIGTERM, then SIGCONT, as systemd.kill(5) has it: a stopped process acts on no other signal but SIGKILL."""
        action = self._send(signal.SIGTERM)
        with suppress(ProcessLookupError):
            self._send(signal.SIGCONT)
        return action

    def force_end(self) -> str:
        """SIGKILL."""
        return self._send(signal.SIGKILL)

    def ended(self) -> bool:
        """True for a zombie too, which has no sockets any longer."""
        poll = select.poll()
        poll.register(self.descriptor, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)

    def _send(self, number: signal.Signals) -> str:
        signal.pidfd_send_signal(self.descriptor, number)
        return number.name
