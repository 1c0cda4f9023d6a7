"""The load of watch.py: sockets that open and close, and what is known of each, on standard output as JSON lines.

    python benchmarks/openings.py brief-tcp 1000 20000      1,000 listeners, closed at once, on port 20000 and up
    python benchmarks/openings.py hold 10000                10,000 listeners, until the input is closed
    python benchmarks/openings.py paced 5000 60             5,000 bind, listen, close a second, for 60 seconds

Each line has the protocol, the port, the pid, and what was done. Linux; for watch.py, which makes a namespace for it.
"""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
import time
from collections.abc import Callable

GROUP = 50  # sockets of one short-lived process
REPORT: list[str] = []


def note(protocol: str, port: int, kind: str = "opened") -> None:
    REPORT.append(json.dumps({"protocol": protocol, "port": port, "pid": os.getpid(), "kind": kind}))


def tcp(port: int, lasts_s: float = 0.0) -> None:
    """A listener, closed after a while."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        if lasts_s:
            time.sleep(lasts_s)
    note("tcp", port)


def udp(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", port))
    note("udp", port)


def refused(port: int) -> None:
    """A bind that fails: the port is held by ourselves."""
    with socket.socket() as holder, socket.socket() as sock:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            note("tcp", port, "failed")


def in_short_lived_processes(action: Callable[[int], None], count: int, first: int) -> None:
    """Each child has GROUP ports and ends at once."""
    for begin in range(first, first + count, GROUP):
        pid = os.fork()
        if pid == 0:
            for port in range(begin, min(begin + GROUP, first + count)):
                action(port)
            flush()
            os._exit(0)
        os.waitpid(pid, 0)


def flush() -> None:
    os.write(1, "".join(line + "\n" for line in REPORT).encode())
    REPORT.clear()


def each(action: Callable[[int], None], count: int, first: int) -> None:
    for port in range(first, first + count):
        action(port)


def hold(count: int) -> None:
    """Half TCP, half UDP; on several addresses of the loopback network, since there are not enough ports."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 100, count + 100))
    held = []
    for number in range(count // 2):
        listener = socket.socket()
        listener.bind(("127.0.0.2", 10_000 + number))
        listener.listen()
        bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bound.bind(("127.0.0.2", 10_000 + number))
        held += [listener, bound]
    print("ready", flush=True)
    sys.stdin.read()


def paced(rate: int, seconds: float) -> None:
    """As many listeners a second, in steps of 10 ms. Prints how many there were, and in which time."""
    began = time.monotonic()
    done, most = 0, int(rate * seconds)
    while done < most:
        due = min(most, int((time.monotonic() - began + 0.01) * rate))
        while done < due:
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", 10_000 + done % 20_000))
                sock.listen()
            done += 1
        time.sleep(max(0.0, began + done / rate - time.monotonic()))
    print(json.dumps({"count": done, "seconds": time.monotonic() - began}), flush=True)


def loop(count: int) -> None:
    """Bind, listen, close as fast as possible; prints nanoseconds each."""
    began = time.perf_counter_ns()
    for number in range(count):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 10_000 + number % 20_000))
            sock.listen()
    print(json.dumps({"ns": (time.perf_counter_ns() - began) / count}), flush=True)


def connections(count: int, rate: int) -> None:
    """Connections to a listener of ours, so many a second. Prints the seconds of processor time that they cost."""
    with socket.create_server(("127.0.0.1", 19_999), backlog=4096) as server:
        began = time.monotonic()
        for number in range(count):
            with socket.create_connection(server.getsockname()) as client:
                # RST instead of TIME_WAIT: the ports would run out
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                server.accept()[0].close()
            ahead = began + number / rate - time.monotonic()
            if ahead > 0.002:
                time.sleep(ahead)
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s = used.ru_utime + used.ru_stime
    print(json.dumps({"cpu_s": cpu_s, "seconds": time.monotonic() - began, "count": count}), flush=True)


KINDS: dict[str, Callable[[int, int], None]] = {
    "brief-tcp": lambda count, first: in_short_lived_processes(tcp, count, first),
    "brief-udp": lambda count, first: in_short_lived_processes(udp, count, first),
    "tcp-200ms": lambda count, first: each(lambda port: tcp(port, 0.2), count, first),
    "tcp-3s": lambda count, first: each(lambda port: tcp(port, 3.0), count, first),
    "refused": lambda count, first: each(refused, count, first),
    "hold": lambda count, _: hold(count),
    "paced": paced,
    "loop": lambda count, _: loop(count),
    "connections": connections,
}

if __name__ == "__main__":
    KINDS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    flush()
