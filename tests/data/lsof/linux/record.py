"""Open sockets of every kind and write what lsof says of them to standard output.

    unshare --net python record.py > sockets.bin

As root, in a network namespace of its own: it makes a pair of veth interfaces and uses low ports.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from socket import (
    AF_INET,
    AF_INET6,
    IPPROTO_IPV6,
    IPV6_V6ONLY,
    SHUT_WR,
    SOCK_DGRAM,
    SOCK_STREAM,
    create_connection,
    if_nametoindex,
    socket,
)

from portbook.sources import lsof

PR_SET_NAME = 15
INTERFACES = """ip link set lo up
ip link add d0 type veth peer name d1
ip link set d1 up
ip link set d0 up
ip address add 192.0.2.1/24 dev d0
ip -6 address add fe80::5e:7/64 dev d0 nodad"""
NAMES = ((b"a b\\c^X\x01\n\xc3\xa9\xff", 0), (b"plain", 65534), (b"(sd-pam)", 1))


def name(text: bytes) -> None:
    ctypes.CDLL(None).prctl(PR_SET_NAME, text, 0, 0, 0)


def tcp(family: int, address: tuple, *, listen: bool = True, v6only: bool = False) -> socket:
    opened = socket(family, SOCK_STREAM)
    if family == AF_INET6:
        opened.setsockopt(IPPROTO_IPV6, IPV6_V6ONLY, v6only)
    opened.bind(address)
    if listen:
        opened.listen(7)
    return opened


def udp(family: int, local: tuple | None, remote: tuple | None = None) -> socket:
    opened = socket(family, SOCK_DGRAM)
    if local:
        opened.bind(local)
    if remote:
        opened.connect(remote)
    return opened


def open_all() -> list[socket]:
    dual = tcp(AF_INET6, ("::", 443))
    everywhere = tcp(AF_INET, ("0.0.0.0", 80))
    mapped = create_connection(("127.0.0.1", 443)), dual.accept()[0]
    mapped[1].send(b"unread....")
    half_closed = create_connection(("::1", 443)), dual.accept()[0]
    half_closed[0].shutdown(SHUT_WR)
    return [
        tcp(AF_INET, ("127.0.0.1", 8080)),
        everywhere,
        tcp(AF_INET, ("192.0.2.1", 22)),
        dual,
        tcp(AF_INET6, ("::1", 5432)),
        tcp(AF_INET6, ("::", 9443), v6only=True),
        tcp(AF_INET6, ("fe80::5e:7", 7001, 0, if_nametoindex("d0"))),
        tcp(AF_INET, ("127.0.0.1", 9999), listen=False),
        *mapped,
        *half_closed,
        create_connection(("127.0.0.1", 80)),  # not accepted
        udp(AF_INET, ("0.0.0.0", 53)),
        udp(AF_INET6, ("::", 5353)),
        udp(AF_INET6, ("::1", 123), ("::1", 5353)),
        udp(AF_INET, ("127.0.0.1", 1234), ("127.0.0.1", 53)),
        udp(AF_INET, None),
        socket(AF_INET, SOCK_STREAM),
    ]


def share(sockets: list[socket], text: bytes, uid: int) -> int:
    """A child that keeps the first socket and a duplicate of it."""
    pid = os.fork()
    if pid == 0:
        name(text)
        for other in sockets[1:]:
            other.close()
        os.dup(sockets[0].fileno())
        os.setuid(uid)
        time.sleep(60)
        os._exit(0)
    return pid


def main() -> None:
    for line in INTERFACES.splitlines():
        subprocess.run(line.split(), check=True)
    sockets = open_all()
    children = [share(sockets, text, uid) for text, uid in NAMES]
    name(b"zoo-keeper-long")
    time.sleep(0.5)
    try:
        command = [lsof._program(), *lsof.OPTIONS, "-iTCP", "-iUDP"]
        done = subprocess.run(command, capture_output=True, check=True, env=lsof.ENVIRONMENT)
        sys.stdout.buffer.write(done.stdout)
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
