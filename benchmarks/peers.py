"""The peers that the scanners probe, and a contestant that is not a command.

python benchmarks/peers.py serve tcp 80,443      take connections and hang up; with udp, answer datagrams
python benchmarks/peers.py pool 127.0.0.1 1-65535 100   connect from a pool of so many threads, blocking
python benchmarks/peers.py hosts 10.79.0.0/24 80,1000-1098 off   portbook's engine, its breaker on or off
"""

from __future__ import annotations

import selectors
import socket
import sys

KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
POOL_TIMEOUT_S = 1.0


def numbers(text: str) -> list[int]:
    """``80,1000-1098``."""
    ranges = [part.partition("-") for part in text.split(",")]
    return [port for first, _, last in ranges for port in range(int(first), int(last or first) + 1)]


def serve(protocol: str, ports: str) -> None:
    selector = selectors.DefaultSelector()
    for port in numbers(ports):
        one = socket.socket(socket.AF_INET, KINDS[protocol])
        one.bind(("", port))
        one.setblocking(False)
        if protocol == "tcp":
            one.listen(256)
        selector.register(one, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            one = key.fileobj  # type: ignore[assignment]
            if protocol == "tcp":
                one.accept()[0].close()
            else:
                _, sender = one.recvfrom(4096)
                one.sendto(b"hello", sender)


def pool(address: str, ports: str, threads: str) -> None:
    """What is often written in Python for this."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(port: int) -> tuple[int, int]:
        with socket.socket() as sock:
            sock.settimeout(POOL_TIMEOUT_S)
            return port, sock.connect_ex((address, port))

    with ThreadPoolExecutor(int(threads)) as workers:
        for port, error in workers.map(ask, numbers(ports)):
            if not error:
                print(f"{port}/tcp open")


if __name__ == "__main__":
    {"serve": serve, "pool": pool}[sys.argv[1]](*sys.argv[2:])
