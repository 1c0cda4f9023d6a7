"""How often a free port is lost before it is bound, and what choosing and holding cost.

    python benchmarks/lease.py                      everything (Linux, root for a network of its own; two minutes)
    python benchmarks/lease.py --rounds 100         a look

Race: eight processes at once get a number, take 50 ms as a server does that starts, and bind it the way servers do
(SO_REUSEADDR, listen, on 0.0.0.0 and ::). Meanwhile another process opens and closes outgoing connections, as the
clients of any machine do. A round is lost when the bind fails. A lease is the same, but the sockets are there already.

Unfair: eight at once is much for most machines, and little for a test farm; nobody else has a port in that network.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

WORKERS = 8
START_S = 0.05  # from the number to the bind
RANGE = range(8000, 8100)
# A new network as it is, and one whose clients use a third of few ephemeral ports: (limits, connections at any moment)
NETWORKS = {
    "32768 to 60999 ephemeral, 2,000 connections": ("32768 60999", 2000),
    "40000 to 40999 ephemeral, 300 connections": ("40000 40999", 300),
}


def asked_of_the_system() -> int:
    """What most helpers do: bind port 0, look, close."""
    with socket.socket() as sock:
        sock.bind(("", 0))
        return int(sock.getsockname()[1])


def first_of_the_range() -> int:
    """What many scripts do: from the first number on, until a bind works."""
    for port in RANGE:
        with socket.socket() as sock:
            try:
                sock.bind(("", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no port of the range is free")


def _free(**options: object) -> Callable[[], int]:
    from portbook.bind.free import free

    return lambda: free(**options).ports[0]  # type: ignore[arg-type]


LOOK, FIRST = "bind port 0, look, close", "bind 8000, 8001, … until it works, close"
NUMBERS: dict[str, Callable[[], Callable[[], int]]] = {
    LOOK: lambda: asked_of_the_system,
    FIRST: lambda: first_of_the_range,
    "portbook.free()": _free,
    "portbook.free(avoid_ephemeral=True)": lambda: _free(avoid_ephemeral=True),
    "portbook.free(ports=range(8000, 8100))": lambda: _free(ports=RANGE),
}
LEASES = {"portbook.lease()": {}, "portbook.lease(ports=range(8000, 8100))": {"ports": RANGE}}


def number_round(way: str) -> Callable[[], bool]:
    choose = NUMBERS[way]()

    def play() -> bool:
        try:
            port = choose()
        except OSError:
            return False
        time.sleep(START_S)
        return served(port)

    return play


def served(port: int) -> bool:
    """Whether a server can have the port now; it then has it for as long as it took to start."""
    with socket.socket() as four, socket.socket(socket.AF_INET6) as six:
        six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            for sock, address in ((four, "0.0.0.0"), (six, "::")):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind((address, port))
                sock.listen()
        except OSError:
            return False
        time.sleep(START_S)
        return True


def lease_round(way: str) -> Callable[[], bool]:
    from portbook.bind.lease import lease
    from portbook.errors import LeaseError

    def play() -> bool:
        try:
            with lease(**LEASES[way]):  # type: ignore[arg-type]
                time.sleep(2 * START_S)
                return True
        except LeaseError:
            return False

    return play


def worker(way: str, rounds: int) -> None:
    """One of the eight: prints how many rounds it lost."""
    play = (number_round if way in NUMBERS else lease_round)(way)
    play()
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(not play() for _ in range(rounds)), flush=True)


def clients(count: int) -> None:
    """Outgoing connections, the oldest closed for each new one, until our input is closed."""
    with socket.create_server(("127.0.0.1", 9), backlog=4096) as server:
        held: list[tuple[socket.socket, socket.socket]] = []
        while not select.select([0], [], [], 0.001)[0]:
            client = socket.create_connection(server.getsockname())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
            held.append((client, server.accept()[0]))
            if len(held) > count:
                for sock in held.pop(
                    0
                ):  # the client first, with RST: else a minute of TIME_WAIT would use up all ports
                    sock.close()


def lost(way: str, rounds: int) -> int:
    """Rounds that were lost, of all workers."""
    me = [sys.executable, os.path.abspath(__file__), "--worker", way, "--rounds", str(rounds // WORKERS)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    workers = [subprocess.Popen(me, **pipes) for _ in range(WORKERS)]  # type: ignore[call-overload]
    for one in workers:
        one.stdout.readline()
    for one in workers:
        one.stdin.write("go\n")
        one.stdin.flush()
    told = [int(one.communicate()[0]) for one in workers]
    return sum(told)


def race(rounds: int) -> list[str]:
    rounds += -rounds % WORKERS
    tables = {name: _table(rounds, *network) for name, network in NETWORKS.items()}
    lines = [f"| eight processes at once, {rounds} rounds each way: lost | {' | '.join(tables)} |"]
    lines += ["|---|" + "--:|" * len(tables)]
    for way in (*NUMBERS, *LEASES):
        figures = [f"{table[way]} ({table[way] / rounds:.1%})" for table in tables.values()]
        lines.append(f"| {way if way in (LOOK, FIRST) else f'`{way}`'} | {' | '.join(figures)} |")
    return lines


def _table(rounds: int, limits: str, connections: int) -> dict[str, int]:
    with open("/proc/sys/net/ipv4/ip_local_port_range", "w") as file:
        file.write(limits)
    me = [sys.executable, os.path.abspath(__file__), "--clients", str(connections)]
    with subprocess.Popen(me, stdin=subprocess.PIPE) as load:
        time.sleep(1 + connections * 0.002)
        table = {way: lost(way, rounds) for way in (*NUMBERS, *LEASES)}
        load.stdin.close()  # type: ignore[union-attr]
        if load.wait(30):
            raise RuntimeError("the clients' connections ended early")
    return table


# --- what it costs -------------------------------------------------------------------------------------------------


def calls(repeat: int) -> list[str]:
    import portbook

    def held() -> None:
        portbook.lease().close()

    contestants = {
        "portbook.free(100)": (lambda: portbook.free(100), "≤ 50 ms"),
        "portbook.free()": (portbook.free, ""),
        "portbook.lease() and close": (held, ""),
        LOOK: (asked_of_the_system, ""),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, repeat):
        for name, (call, _) in contestants.items():
            began = time.perf_counter()
            call()
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    lines = ["| inside one process | runs | median | fastest | target |", "|---|--:|--:|--:|---|"]
    for name, (_, target) in contestants.items():
        lines.append(f"| `{name}` | {repeat} | {_ms(median(taken[name]))} | {_ms(min(taken[name]))} | {target} |")
    return lines


def commands(repeat: int) -> list[str]:
    beside = os.path.join(os.path.dirname(sys.executable), "portbook")
    contestants = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "portbook free -q": [beside, "free", "-q"],
        "portbook free -q -n 100": [beside, "free", "-q", "-n", "100"],
        "portbook lease -q -- true": [beside, "lease", "-q", "--", "true"],
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-1, repeat):
        for name, command in contestants.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    bare = median(taken["python -c pass"])
    lines = ["| whole process | runs | median | fastest | / bare Python |", "|---|--:|--:|--:|--:|"]
    for name, each in taken.items():
        lines.append(f"| `{name}` | {repeat} | {_ms(median(each))} | {_ms(min(each))} | {median(each) / bare:.1f} |")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=500, help="of each way (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=31, help="of each call and command (default: %(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # how this program calls itself
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.rounds)
    elif options.clients:
        clients(options.clients)
    elif options.inside:
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        print("\n".join([*race(options.rounds), "", *calls(options.repeat), "", *commands(options.repeat)]))
    else:
        me = ["unshare", "--net", sys.executable, os.path.abspath(__file__), "--inside", *sys.argv[1:]]
        return subprocess.run(me, check=False).returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
