"""Linux: messages to the service manager that started this process: ready, reloading, status, still alive.

The manager names a datagram socket in the environment, and how often it wants to hear that the process is alive. Where
it does not, every method does nothing: the same program runs in a terminal, in cron and elsewhere.

Facts: sd_notify(3), sd_watchdog_enabled(3); systemd.service(5), Type=notify and notify-reload; unix(7), abstract names.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from time import monotonic, monotonic_ns

from portbook.numerals import number_or_none

SOCKET, WATCHDOG, WATCHDOG_PID = "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"
LIMIT_S = 1.0  # a manager that does not read does not hold up the process for longer
ALIVE_SHARE = 3  # messages in each period of the watchdog: two may be late
MOST_STATUS = 500  # characters
MOST_US = (1 << 63) - 1


class ServiceManager:
    """What is told to the service manager. A message that cannot be sent is dropped: the work goes on."""

    def __init__(self, address: str | None = None, alive_every_s: float | None = None) -> None:
        """Use ``of_environment``.

        :param address: a path, or ``@`` and the name of an abstract socket; None: there is no manager
        :param alive_every_s: how often ``alive`` sends a message; None: the manager does not wait for any
        """
        self._address = address
        self.alive_every_s = alive_every_s
        self._alive_at = float("-inf")
        self._status = ""

    @property
    def listens(self) -> bool:
        """Whether there is a manager that wants messages."""
        return self._address is not None

    def ready(self, status: str) -> None:
        """Say that the start, or a reload, is complete."""
        self._status = status
        self._send(f"READY=1\nSTATUS={_line(status)}")

    def reloading(self) -> None:
        """Say that a reload began: ``ready`` says that it is complete (Type=notify-reload)."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def status(self, text: str) -> None:
        """Say what the process does, in one line that ``systemctl status`` shows."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={_line(text)}")

    def alive(self) -> None:
        """Say that the process is alive, if the manager wants to hear it and it is time; called often."""
        if self.alive_every_s is None or monotonic() < self._alive_at + self.alive_every_s:
            return
        self._alive_at = monotonic()
        self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """Say that the process is about to end."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        import socket

        address = self._address
        if address.startswith("@"):
            address = f"\0{address[1:]}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(LIMIT_S)
                sender.connect(address)
                sender.sendall(message.encode("utf-8", "replace"))
        except OSError:
            return


def of_environment(environment: MutableMapping[str, str] = os.environ) -> ServiceManager:
    """The manager that started this process. Its names are removed: a command that we start is no service of it."""
    address = environment.pop(SOCKET, None)
    period_us = number_or_none(environment.pop(WATCHDOG, ""), MOST_US, 1)
    watched = environment.pop(WATCHDOG_PID, str(os.getpid()))
    if address is None or address[:1] not in ("/", "@") or len(address) < 2:
        return ServiceManager()  # none, or one of another kind: AF_VSOCK is for whole virtual machines
    if period_us is None or watched != str(os.getpid()):
        return ServiceManager(address)
    return ServiceManager(address, period_us / 1e6 / ALIVE_SHARE)


def _line(text: str) -> str:
    """The text in one line: another line would be another message."""
    return "".join(c if c.isprintable() else " " for c in text[:MOST_STATUS])
