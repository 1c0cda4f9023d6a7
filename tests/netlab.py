"""Networks of the tests' own: Linux network namespaces joined by links, nothing outside them reachable.

    with netlab.pair() as lab:                       # client 10.77.0.1, fd77::1 ── target 10.77.0.2, fd77::2
        lab.target.start("dnsmasq", "-k", ...)       # a command that runs until the lab ends
        lab.target.wait_for(53, "udp")
        lab.target.nft("udp dport 2000-2099 reject with icmpx type port-unreachable")
        lab.target.sysctl("net.ipv4.icmp_ratelimit", 0)
        with lab.client:                             # this thread is in the namespace: sockets made here belong to it
            answers = list(scan_udp(...))
        lab.client.run("nmap", "-sU", ...)           # a command, run to its end
        lab.client.call(function, argument)          # a function in a forked child: for limits, memory, crashes

``pair(rtt_ms=20, loss=0.05)`` puts a relay between the two that delays each packet by half the round trip and loses
each with that probability (both directions; never ARP or neighbour discovery, whose retries take seconds). It works
without the kernel's netem, which many kernels lack: two TAP devices and a forked Python process that copies frames,
good for tens of thousands of packets a second. ``routed()`` puts a router between client and target, so that somebody
other than the target can answer. ``lab.target.add("10.77.0.3")`` gives a host more addresses; a neighbour that nobody
has does not answer ARP, as a dead host.

Nothing is named in ``/run/netns``: a namespace lives as long as somebody has a descriptor of it or runs in it, and
what is started in it dies with the thread that started it (PR_SET_PDEATHSIG; so start commands from the main thread):
a test that is killed leaves nothing behind. Root is needed; ``pair`` and ``routed`` skip without it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import pickle
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tests.components import need

CLIENT, TARGET, ROUTER = "10.77.0.1", "10.77.0.2", "10.77.0.254"
CLIENT6, TARGET6, ROUTER6 = "fd77::1", "fd77::2", "fd77::fe"
FAR_TARGET, FAR_TARGET6 = "10.78.0.2", "fd78::2"  # of routed(): in another network than the client
FAR_ROUTER, FAR_ROUTER6 = "10.78.0.254", "fd78::fe"

CLONE_NEWNET = 0x40000000  # sched.h
PR_SET_PDEATHSIG = 1  # prctl.h
TUNSETIFF = 0x400454CA  # if_tun.h
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
LIMIT_S = 60  # of everything that is waited for


def needed() -> None:
    """Skip, or fail where everything is required, on a machine that cannot make such networks."""
    need(sys.platform == "linux" and os.geteuid() == 0, "root on Linux, for network namespaces")
    need(shutil.which("ip") is not None, "ip (package iproute2)")


class Namespace:
    """A network namespace: a context manager that the current thread enters and leaves."""

    def __init__(self) -> None:
        self._outside: list[int] = []
        self._started: list[tuple[subprocess.Popen[bytes], str]] = []
        self._logs: str | None = None  # a directory, once something is started
        home = _own_namespace()
        try:
            _check(_libc().unshare(CLONE_NEWNET), "unshare")
            self.descriptor = _own_namespace()
            _check(_libc().setns(home, CLONE_NEWNET), "setns")
        finally:
            os.close(home)
        # Else an address of IPv6 may not be used for a second: duplicate address detection (RFC 4862 section 5.4).
        self.sysctl("net.ipv6.conf.default.accept_dad", 0)
        self.sysctl("net.ipv6.conf.all.accept_dad", 0)
        self.run("ip", "link", "set", "lo", "up")

    def __enter__(self) -> Namespace:
        self._outside.append(_own_namespace())
        _check(_libc().setns(self.descriptor, CLONE_NEWNET), "setns")
        return self

    def __exit__(self, *_: object) -> None:
        back = self._outside.pop()
        _check(_libc().setns(back, CLONE_NEWNET), "setns")
        os.close(back)

    @property
    def path(self) -> str:
        """A name of the namespace for commands, as long as this process lives."""
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, *command: str, text: str | None = None, check: bool = True) -> str:
        """Run a command to its end and return what it printed; its failure is an error that says why."""
        with self:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr or done.stdout}")
        return done.stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a command that ends with the namespace; its input is open and silent, what it says is in ``log``."""
        self._logs = self._logs or tempfile.mkdtemp(prefix="netlab-")
        name = os.path.join(self._logs, str(len(self._started)))
        with self, open(name, "wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.PIPE, stdout=log, stderr=log
            )  # fmt: skip
        self._started.append((process, name))
        return process

    def log(self, process: subprocess.Popen[bytes]) -> str:
        """What a started command has printed so far."""
        (name,) = [name for started, name in self._started if started is process]
        with open(name, encoding="utf-8", errors="replace") as file:
            return file.read()

    def call(self, function: Callable[..., Any], *arguments: Any, limit_s: float = LIMIT_S) -> Any:
        """Call a function in a forked child inside; return what it returned, fail with what it raised."""
        with self:
            return call(function, *arguments, limit_s=limit_s)

    def nft(self, *rules: str, hook: str = "input") -> None:
        """Add rules of nftables, such as ``tcp dport 81 drop``, to the chain of a hook; the first that fits counts."""
        need(shutil.which("nft") is not None, "nft (package nftables)")
        lines = [f"table inet netlab {{\nchain {hook} {{", f"type filter hook {hook} priority 0;", *rules, "}\n}\n"]
        self.run("nft", "-f", "-", text="\n".join(lines))

    def sysctl(self, name: str, value: object) -> None:
        """Set a variable of the network stack, of this namespace alone: sysctl net.ipv4.icmp_ratelimit."""
        path = "/proc/sys/" + name.replace(".", "/")
        with self:
            need(os.path.exists(path), f"the kernel's {name}")
            with open(path, "w", encoding="ascii") as file:
                file.write(str(value))

    def add(self, address: str, device: str = "link0") -> None:
        """Give a device one more address, in the network of its first."""
        length = "64" if ":" in address else "24"
        # With a broadcast address, as every network has one: without it getifaddrs(3) gives a host its own address as
        # that, and libcoap 4.3.4 takes each datagram for a multicast one, to which it does not answer.
        options = ["nodad"] if ":" in address else ["broadcast", "+"]
        self.run("ip", "address", "add", f"{address}/{length}", "dev", device, *options)

    def wait_for(self, port: int, protocol: str = "tcp") -> None:
        """Wait until somebody listens on a TCP port, or has a UDP port, in this namespace."""
        deadline = time.monotonic() + LIMIT_S / 2
        while not self._is_bound(port, protocol):
            for process, name in self._started:
                if process.poll() not in (None, 0):
                    with open(name, encoding="utf-8", errors="replace") as log:
                        raise AssertionError(f"{process.args} ended with {process.returncode}: {log.read()}")
            assert time.monotonic() < deadline, f"nobody has {port}/{protocol}"
            time.sleep(0.02)

    def _is_bound(self, port: int, protocol: str) -> bool:
        with self:
            for family in ("", "6"):
                with open(f"/proc/thread-self/net/{protocol}{family}", encoding="ascii") as file:
                    for line in file.readlines()[1:]:
                        fields = line.split()
                        if fields[1].endswith(f":{port:04X}") and fields[3] in ("0A", "07"):  # LISTEN, or UDP
                            return True
        return False

    def close(self) -> None:
        """End what was started here and let the namespace go."""
        for process, _ in self._started:
            process.terminate()
        for process, _ in self._started:
            _reap(process)
        os.close(self.descriptor)
        if self._logs is not None:
            shutil.rmtree(self._logs, ignore_errors=True)


class Lab(NamedTuple):
    """Two hosts and what is between them."""

    client: Namespace
    target: Namespace
    router: Namespace | None = None


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """A namespace with nothing but its loopback device, which ends with the block; the thread is not in it yet."""
    needed()
    space = Namespace()
    try:
        yield space
    finally:
        space.close()


@contextlib.contextmanager
def pair(rtt_ms: float | None = None, loss: float = 0.0, seed: int = 1) -> Iterator[Lab]:
    """A client and a target in one network; with a round trip or a loss, a relay between them."""
    needed()
    with contextlib.ExitStack() as stack:
        client, target = _namespaces(stack, 2)
        if rtt_ms is None and not loss:
            join(client, target)
        else:
            stack.enter_context(relay(client, target, (rtt_ms or 0.0) / 2000, loss, seed))
        for host, addresses in ((client, (CLIENT, CLIENT6)), (target, (TARGET, TARGET6))):
            for address in addresses:
                host.add(address)
        yield Lab(client, target)


@contextlib.contextmanager
def routed() -> Iterator[Lab]:
    """A client and a target (FAR_TARGET, FAR_TARGET6) with a router between them, which may answer for itself."""
    needed()
    with contextlib.ExitStack() as stack:
        client, router, target = _namespaces(stack, 3)
        join(client, router)
        join(router, target, "link1", "link0")
        for host, device, addresses in (
            (client, "link0", (CLIENT, CLIENT6)),
            (router, "link0", (ROUTER, ROUTER6)),
            (router, "link1", (FAR_ROUTER, FAR_ROUTER6)),
            (target, "link0", (FAR_TARGET, FAR_TARGET6)),
        ):
            for address in addresses:
                host.add(address, device)
        router.sysctl("net.ipv4.ip_forward", 1)
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        for host, via in ((client, (ROUTER, ROUTER6)), (target, (FAR_ROUTER, FAR_ROUTER6))):
            for address in via:
                host.run("ip", "route", "add", "default", "via", address)
        yield Lab(client, target, router)


def _namespaces(stack: contextlib.ExitStack, count: int) -> list[Namespace]:
    spaces = []
    for _ in range(count):
        spaces.append(Namespace())
        stack.callback(spaces[-1].close)
    return spaces


def join(one: Namespace, other: Namespace, device: str = "link0", peer: str = "link0") -> None:
    """Join two namespaces with a pair of virtual Ethernet devices (veth(4))."""
    one.run("ip", "link", "add", device, "type", "veth", "peer", "name", peer, "netns", other.path)
    one.run("ip", "link", "set", device, "up")
    other.run("ip", "link", "set", peer, "up")


# --- a slow and lossy link -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def relay(one: Namespace, other: Namespace, delay_s: float, loss: float, seed: int) -> Iterator[int]:
    """Join two namespaces with devices ``link0`` between which a forked process copies frames, late and not all."""
    devices = [_tap(one, "link0"), _tap(other, "link0")]
    parent = os.getpid()
    child = _fork()
    if child == 0:
        try:
            _die_with(parent)
            _copy(devices, delay_s, loss, random.Random(seed))
        finally:
            os._exit(0)
    for device in devices:
        os.close(device)
    try:
        for space in (one, other):
            # A full queue would lose what the relay has not read yet: a burst of probes is longer than 500 packets.
            space.run("ip", "link", "set", "link0", "txqueuelen", "100000", "up")
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _tap(space: Namespace, name: str) -> int:
    need(os.path.exists("/dev/net/tun"), "/dev/net/tun")
    with space:
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def _copy(devices: list[int], delay_s: float, loss: float, chance: random.Random) -> None:
    """Copy frames both ways until killed. The delay is the same for all, so what came first leaves first."""
    towards = {devices[0]: devices[1], devices[1]: devices[0]}
    waiting: deque[tuple[float, int, bytes]] = deque()
    poll = select.poll()
    for device in devices:
        poll.register(device, select.POLLIN)
    while True:
        wait_ms = max(0.0, (waiting[0][0] - time.monotonic()) * 1000) if waiting else None
        for device, _ in poll.poll(wait_ms):
            for frame in _frames(device):
                if not (loss and _may_be_lost(frame) and chance.random() < loss):
                    waiting.append((time.monotonic() + delay_s, towards[device], frame))
        while waiting and waiting[0][0] <= time.monotonic():
            _, device, frame = waiting.popleft()
            with contextlib.suppress(OSError):  # the device is down, or its queue is full: a packet is lost
                os.write(device, frame)


def _frames(device: int) -> Iterator[bytes]:
    for _ in range(256):  # then the other direction has its turn
        try:
            yield os.read(device, 65536)
        except OSError:  # nothing more, or the device is down
            return


def _may_be_lost(frame: bytes) -> bool:
    """IP packets, but no neighbour discovery (ICMPv6 133 to 137, RFC 4861 section 4)."""
    kind = frame[12:14]
    if kind == b"\x86\xdd":
        return not (frame[20:21] == b"\x3a" and frame[54:55] in b"\x85\x86\x87\x88\x89")
    return kind == b"\x08\x00"


# --- processes -----------------------------------------------------------------------------------------------------


def call(function: Callable[..., Any], *arguments: Any, limit_s: float = LIMIT_S) -> Any:
    """Call a function in a forked child; return what it returned, fail with the traceback of what it raised."""
    reader, writer = os.pipe()
    parent = os.getpid()
    child = _fork()
    if child == 0:
        os.close(reader)
        _die_with(parent)
        _answer(writer, function, arguments)
    os.close(writer)
    try:
        raw = _read_all(reader, limit_s)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)  # it is done, or it took too long; not reaped yet, so the pid is still its own
        _, status = os.waitpid(child, 0)
    assert raw, f"{function.__name__} gave no answer within {limit_s} s (wait status {status})"
    ok, value = pickle.loads(raw)
    if not ok:
        raise AssertionError(value)
    return value


def _fork() -> int:
    """Python 3.12 warns when there are threads; the child uses none of what they may hold."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _answer(writer: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        try:
            raw = pickle.dumps((True, function(*arguments)))
        except BaseException:
            raw = pickle.dumps((False, traceback.format_exc()))
        with open(writer, "wb") as pipe:
            pipe.write(raw)
    finally:
        os._exit(0)


def _read_all(reader: int, limit_s: float) -> bytes:
    """Until end of file; nothing when that takes too long."""
    deadline = time.monotonic() + limit_s
    parts = []
    while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
        parts.append(os.read(reader, 1 << 20))
        if not parts[-1]:
            return b"".join(parts)
    return b""


def _die_with(parent: int) -> None:
    """End this forked child when its parent ends (prctl(2)), also when that has happened already."""
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _reap(process: subprocess.Popen[bytes]) -> None:
    if process.stdin is not None:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(LIMIT_S)


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
