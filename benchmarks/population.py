"""A machine full of sockets, to measure on: processes and sockets in namespaces of their own, gone when it ends.

    python benchmarks/population.py medium -- ss -s       run a command among 5,000 sockets (root)
    python benchmarks/population.py large -- bash         look around

The mix is the same at every size: about four fifths established TCP connections over loopback (both ends count), one
fifth UDP, and for each process two listeners (IPv4 and IPv6) and up to one TCP socket that is bound and does
nothing. Half of everything is IPv6. A quarter as many addresses as connections, because real peers differ.

Two populations are less kind. ``busy`` is a server: connections in TIME_WAIT, which have no process, and processes
without sockets. ``node`` runs containers: a socket that the kernel itself holds (vxlan), and a network namespace with
one process and one listener for each container.

The network namespace keeps the machine's sockets out of the count, the pid namespace its processes: every tool sees
this population and itself. When its first process ends, however that happens, the kernel ends the others.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple


class Size(NamedTuple):
    """A population. Everything but the first is for each process."""

    processes: int
    pairs: int  # established connections to itself, two sockets each
    udp: int
    bound_every: int  # one process in so many has a socket that is bound and does not listen
    plain: int = 0  # descriptors that are no sockets
    privileged: bool = True  # False: they and the command have no capabilities, as an ordinary user's processes
    time_wait: int = 0  # connections in TIME_WAIT, in all
    idle: int = 0  # processes without sockets, in all
    containers: int = 0  # processes in network namespaces of their own, with one listener each
    vxlan: bool = False  # whether the kernel holds a socket too

    @property
    def bound(self) -> int:
        return len(range(0, self.processes, self.bound_every))

    @property
    def sockets(self) -> int:
        """What processes hold in the population's own network namespace."""
        return self.processes * (2 + 2 * self.pairs + self.udp) + self.bound


SIZES = {
    "small": Size(processes=10, pairs=4, udp=2, bound_every=2),  # 125 sockets
    "medium": Size(processes=50, pairs=39, udp=19, bound_every=1),  # 5,000
    "fds": Size(processes=50, pairs=39, udp=19, bound_every=1, plain=4_000),  # 5,000, and 200,000 descriptors
    "fds-user": Size(processes=50, pairs=39, udp=19, bound_every=1, plain=4_000, privileged=False),
    "large": Size(processes=25, pairs=1_598, udp=801, bound_every=1),  # 100,000
    "busy": Size(processes=50, pairs=39, udp=19, bound_every=1, time_wait=20_000, idle=300),  # 5,000 and 20,000
    "node": Size(processes=40, pairs=399, udp=199, bound_every=1, containers=110, vxlan=True),  # 40,000
}

HELD = 2_000  # the first process listens here, the second one above it, and so on
FREE = 1_999  # nobody holds this one
EPHEMERAL = "10000 65000"  # what the kernel may choose from: above the listeners
PREFIX = "fd00:706f:7274::"  # /64, made local as a whole, as 127.0.0.0/8 is
READY_WITHIN_S = 180.0
CLOSING = 1_900  # the connections in TIME_WAIT were made to this port
CONTAINER_PORT = 8_080  # what a container's process listens on
VXLAN, VXLAN_PORT = "vx0", 4_789  # RFC 7348 section 5
KEPT_EVERY_S = 0.05
PR_SET_PDEATHSIG = 1
CLONE_NEWNET = 0x40000000


# --- one process of the population ---------------------------------------------------------------------------------


def _occupy(number: int, size: Size) -> list[object]:
    """Open what one process of the population holds."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    listeners = [_listener(family, number) for family in (socket.AF_INET, socket.AF_INET6)]
    held: list[object] = list(listeners)
    for i in range(size.pairs):
        held += _pair(listeners[i % 2], number, number * size.pairs + i)
    held += [_udp(i) for i in range(size.udp)]
    if number % size.bound_every == 0:
        held.append(_bound(number))
    held += _plain(size.plain)
    if not size.privileged:
        drop_capabilities()
    return held


def _contain() -> list[object]:
    """Be a container: a network namespace with one listener."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    listener = _socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("", CONTAINER_PORT))
    listener.listen(128)
    return [listener]


class _Closer:
    """Keeps as many connections in TIME_WAIT as are wanted: the kernel drops each after a minute (TCP_TIMEWAIT_LEN)."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.made = 0

    def fill(self) -> list[object]:
        """Make those that are missing. The side that closes first waits: in turns the server and the client."""
        missing = self.count - _time_wait_count()
        if missing <= 0:
            return []
        for family in (socket.AF_INET, socket.AF_INET6):
            with _socket(family, socket.SOCK_STREAM) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(("", CLOSING))
                listener.listen(128)
                for _ in range((missing + 1) // 2):
                    self._close_one(listener)
        return []

    def _close_one(self, listener: socket.socket) -> None:
        self.made += 1
        client = _socket(listener.family, socket.SOCK_STREAM)
        client.connect((_address(listener.family, self.made // 40), CLOSING))
        server = listener.accept()[0]
        first, second = (client, server) if self.made % 4 < 2 else (server, client)
        first.shutdown(socket.SHUT_WR)
        second.close()
        first.close()

    def keep(self) -> None:
        time.sleep(KEPT_EVERY_S)
        if _time_wait_count() < self.count * 0.99:
            self.fill()


def _time_wait_count() -> int:
    with open("/proc/net/sockstat") as file:
        words = next(line for line in file if line.startswith("TCP:")).split()
    return int(words[words.index("tw") + 1])


def _socket(family: int, kind: int) -> socket.socket:
    opened = socket.socket(family, kind)
    if family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return opened


def _listener(family: int, number: int) -> socket.socket:
    listener = _socket(family, socket.SOCK_STREAM)
    listener.bind(("", HELD + number))
    listener.listen(128)
    return listener


def _pair(listener: socket.socket, number: int, connection: int) -> list[socket.socket]:
    client = _socket(listener.family, socket.SOCK_STREAM)
    client.connect((_address(listener.family, connection // 4), HELD + number))
    return [client, listener.accept()[0]]


def _address(family: int, number: int) -> str:
    if family == socket.AF_INET:
        return f"127.{1 + number // 62_500}.{number // 250 % 250}.{1 + number % 250}"
    return f"{PREFIX}{1 + number:x}"


def _udp(number: int) -> socket.socket:
    """In turn: any address and a single one, both families; one in eight is connected."""
    family = (socket.AF_INET, socket.AF_INET6)[number % 2]
    alone = ("127.0.0.1", "::1")[number % 2]
    opened = _socket(family, socket.SOCK_DGRAM)
    opened.bind((alone if number % 4 > 1 else "", 0))
    if number % 8 == 3:
        opened.connect((alone, 53))
    return opened


def _bound(number: int) -> socket.socket:
    opened = _socket((socket.AF_INET, socket.AF_INET6)[number % 2], socket.SOCK_STREAM)
    opened.bind(("", HELD + 1_000 + number))
    return opened


def _plain(count: int) -> list[int]:
    """Half of them files, half of them pipes."""
    if not count:
        return []
    kinds = (os.open("/proc/self/stat", os.O_RDONLY), os.pipe()[0])
    return [os.dup(kinds[i % 2]) for i in range(count)]


def _live(occupy: Callable[[], list[object]], report: int, stay: Callable[[], object] = signal.pause) -> None:
    """The whole life of a process: open, report, wait for the end."""
    try:
        end_with_parent()
        held = occupy()
        os.write(report, json.dumps({"held": len(held)}).encode() + b"\n")
        while True:
            stay()
    except BaseException as error:
        os.write(report, json.dumps({"error": f"{occupy}: {error!r}"}).encode() + b"\n")
    finally:
        os._exit(1)


def end_with_parent() -> None:
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def drop_capabilities() -> None:
    """Give up all of them for good: capset(2). The user stays, so that files and processes of its own can be read."""
    version, effective_permitted_inheritable = 0x20080522, (0, 0, 0, 0, 0, 0)
    header = struct.pack("=Ii", version, 0)
    if ctypes.CDLL(None, use_errno=True).capset(header, struct.pack("=6I", *effective_permitted_inheritable)):
        raise OSError(ctypes.get_errno(), "capset")


# --- the population ------------------------------------------------------------------------------------------------


class Population:
    """Context manager: makes a population in the namespaces we are in, counts it, and ends it."""

    def __init__(self, name: str) -> None:
        self.size = SIZES[name]
        self.pids: list[int] = []
        self.waiting_for = 0  # processes that have not reported yet

    def __enter__(self) -> Population:
        _prepare_network()
        receiver, sender = os.pipe()
        try:
            for number in range(self.size.processes):
                self._start(receiver, sender, partial(_occupy, number, self.size))
            for _ in range(self.size.idle):
                self._start(receiver, sender, list)
            for _ in range(self.size.containers):
                self._start(receiver, sender, _contain)
            self._await(receiver)
            if self.size.time_wait:
                closer = _Closer(self.size.time_wait)
                self._start(receiver, sender, closer.fill, closer.keep)
                self._await(receiver)
            os.close(sender)
            self._count()
            if self.size.vxlan:
                _add_vxlan()
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(receiver)
        return self

    def _start(
        self, receiver: int, sender: int, occupy: Callable[[], list[object]], stay: Callable[[], object] = signal.pause
    ) -> None:
        pid = os.fork()
        if pid == 0:
            os.close(receiver)
            _live(occupy, sender, stay)
        self.pids.append(pid)
        self.waiting_for += 1

    def __exit__(self, *_: object) -> None:
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)  # not waited for yet: the pid is still theirs
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids.clear()

    def _await(self, receiver: int) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        text = b""
        while text.count(b"\n") < self.waiting_for:
            ready, _, _ = select.select([receiver], [], [], max(0.0, deadline - time.monotonic()))
            part = os.read(receiver, 1 << 16) if ready else b""
            if not part:
                raise RuntimeError(f"after {READY_WITHIN_S:g} s only {text.count(10)} processes are ready")
            text += part
            if b'"error"' in text:
                raise RuntimeError(text.decode())
        self.waiting_for = 0

    def _count(self) -> None:
        """Count with ss, as a second opinion. An ss older than 6.8 does not list bound-only sockets."""
        listed = _listed("all", "exclude", "time-wait")
        expected = self.size.sockets
        if listed not in (expected, expected - self.size.bound):
            raise RuntimeError(f"{expected} sockets should be there, {self.size.bound} bound-only; ss lists {listed}")
        waiting, wanted = _listed("time-wait"), self.size.time_wait
        if not wanted * 0.95 <= waiting <= wanted * 1.05:
            raise RuntimeError(f"{wanted} connections should be in TIME_WAIT; ss lists {waiting}")
        links = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.pids)
        least = self.size.sockets + self.size.processes * self.size.plain
        if not least <= links <= least + 16 * len(self.pids):
            raise RuntimeError(f"at least {least} descriptors should be open, there are {links}")


def _listed(*states: str) -> int:
    command = ["ss", "-tuanH", "state", *states]
    return subprocess.run(command, check=True, capture_output=True).stdout.count(b"\n")


def _prepare_network() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    subprocess.run(["ip", "-6", "route", "add", "local", f"{PREFIX}/64", "dev", "lo"], check=True)
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
        file.write(EPHEMERAL)


def _add_vxlan() -> None:
    """A device whose socket the kernel holds itself, and opens when the device is set up: no process has it."""
    add = ["ip", "link", "add", VXLAN, "type", "vxlan", "id", "42", "local", "127.0.0.1", "dstport", str(VXLAN_PORT)]
    subprocess.run(add, check=True)
    set_vxlan("up")


def set_vxlan(state: str) -> None:
    """Have the kernel open its socket ("up"), or close it ("down")."""
    subprocess.run(["ip", "link", "set", VXLAN, state], check=True)


# --- the command ---------------------------------------------------------------------------------------------------

UNPRIVILEGED = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")  # what is executed as root gets none back
UNSHARE = ("unshare", "--net", "--pid", "--mount-proc", "--fork", "--kill-child")


def command(name: str, then: Sequence[str]) -> list[str]:
    """The command line that runs ``then`` among a population of a size."""
    return [*UNSHARE, sys.executable, os.path.abspath(__file__), "--inside", name, "--", *then]


def main(arguments: list[str]) -> int:
    inside = arguments[:1] == ["--inside"]
    name, *rest = arguments[inside:] or [""]
    if name not in SIZES or rest[:1] != ["--"] or not rest[1:]:
        sys.stderr.write(f"usage: population.py {{{','.join(SIZES)}}} -- COMMAND…\n")
        return 2
    if not inside:
        os.execvp(UNSHARE[0], command(name, rest[1:]))
    with Population(name) as made:
        return subprocess.run([*([] if made.size.privileged else UNPRIVILEGED), *rest[1:]], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
