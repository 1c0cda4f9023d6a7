"""Run by ``init`` inside the guest, as its only program: use portbook, print what came out, reboot.

Each check is a line of JSON behind a mark, because the kernel writes to the same serial console. Whether a check
came out right is judged by test_kernels.py, except for what only the guest knows: which sockets it opened.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress

MARK = "portbook-guest "
CLONE_NEWNET = 0x40000000
NOBODY = 65534
REBOOT = 0x01234567  # LINUX_REBOOT_CMD_RESTART of reboot(2)
FEED_LIMIT_S = 20  # of what a feed reports after a fraction of a second
COMMAND_LIMIT_S = 240  # a command takes about ten seconds in a guest without acceleration
LIBC = ctypes.CDLL(None, use_errno=True)


def kernel() -> dict:
    return {"release": os.uname().release, "machine": os.uname().machine, "python": sys.version.split()[0]}


def sources() -> dict:
    """Why each source cannot be used; None if it can."""
    from portbook import sources

    return {name: sources.missing(name) for name in sources.names()}


def zoo() -> dict:
    """What each usable source shows of every kind of socket, and whether the owners are those that have it open."""
    from portbook import sources, take
    from portbook.testing import KINDS, absent, identity
    from portbook.testing import zoo as open_zoo

    absents = {kind: absent(kind) for kind in KINDS if absent(kind)}
    answers = {}
    with open_zoo() as animals:
        for name in [name for name in sources.names() if sources.missing(name) is None]:
            listing = take(source=name)
            capabilities = sources.load(name).capabilities
            rows = {}
            for row in listing.sockets:
                rows.setdefault(identity(row), []).append(row)
            missing, wrong, compared = [], [], 0
            for kind, members in animals.items():
                for expected in members:
                    if not expected.needs <= capabilities:
                        continue
                    compared += 1
                    same = [row for row in rows.get(expected.identity, []) if row.inode in (None, expected.inode)]
                    if not same:
                        missing.append(kind)
                    elif {owner.pid for row in same for owner in row.owners} != set(expected.pids):
                        wrong.append(kind)
            answers[name] = {"compared": compared, "missing": missing, "wrong_owners": wrong, "gaps": gaps_of(listing)}
        best = take()
        ports = {row.local_port for row in best.sockets}
        answers["default"] = {"source": best.source, "gaps": gaps_of(best), "ports": sorted(ports)}
        answers["ss"] = sorted({int(port) for port in re.findall(r":(\d+) +\S+ *$", run("ss", "-tunaH"), re.MULTILINE)})
    return answers | {"absent": absents}


def gaps_of(listing) -> list[str]:
    return [f"{gap.why}; {gap.hint}" for gap in listing.gaps]


def bound_only() -> dict:
    """A socket that is bound and does not listen: whether it is listed, and what why and a bind say of its port."""
    from portbook import take, who, why

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]
        listing = take(f"port:{port}")
        verdict = why(port)
        return {
            "rows": [[row.state, [owner.pid for owner in row.owners]] for row in listing.sockets],
            "pid": os.getpid(),
            "held": who(port).held,
            "gaps": gaps_of(listing),
            "can_have": verdict.can_have,
            "findings": [finding.code for finding in verdict.findings],
        }


def namespaces() -> dict:
    """A listener in another network namespace."""
    from portbook import take

    with process(other_namespace) as (pid, port):
        found = take(f"netns:all port:{port}")
        return {
            "rows": [[row.state, [owner.pid for owner in row.owners]] for row in found.sockets],
            "pid": pid,
            "here": len(take(f"port:{port}").sockets),
            "gaps": gaps_of(found),
        }


def other_namespace() -> int:
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    run("ip", "link", "set", "lo", "up")
    listener = socket.create_server(("127.0.0.1", 4242))
    os.set_inheritable(listener.fileno(), True)
    kept.append(listener)
    return 4242


kept: list[socket.socket] = []


class process:  # noqa: N801  # used as a function
    """A child that runs ``begin``, gives its result, and lives until the block ends."""

    def __init__(self, begin: Callable[[], int]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with suppress(BaseException):
                os.write(writing, b"%d" % begin())
                os.close(writing)
                signal.pause()
            os._exit(1)
        os.close(writing)
        with os.fdopen(reading) as answer:
            self.result = int(answer.read())

    def __enter__(self) -> tuple[int, int]:
        return self.pid, self.result

    def __exit__(self, *_: object) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def ordinary_user() -> dict:
    """What a user without privileges sees of their own socket and of root's."""
    with socket.create_server(("127.0.0.1", 0)) as of_root:
        port = of_root.getsockname()[1]
        text = run(
            sys.executable,
            "-c",
            f"""
import os, socket, json
os.setgid({NOBODY}); os.setuid({NOBODY})
from portbook import take, sources
own = socket.create_server(("127.0.0.1", 0))
listing = take(f"port:{{own.getsockname()[1]}},{port}")
print(json.dumps({{
    "sources": {{name: sources.missing(name) for name in sources.names()}},
    "source": listing.source,
    "rows": sorted([row.local_port != {port}, row.uid, len(row.owners)] for row in listing.sockets),
    "gaps": [f"{{gap.why}}; {{gap.hint}}" for gap in listing.gaps],
}}))
""",
        )
    return json.loads(text.splitlines()[-1])


def tunnel() -> dict:
    """The UDP port of a vxlan device, which no process has."""
    from portbook import take, who

    run("ip", "link", "add", "vx0", "type", "vxlan", "id", "7", "dstport", "4789", "local", "127.0.0.1")
    run("ip", "link", "set", "vx0", "up")
    return {
        "held": who(4789, protocol="udp").held,
        "kernel": [row.kernel for row in take("port:4789/udp family:ipv4").sockets],
        "free": who(4790, protocol="udp").held,
    }


def ports() -> dict:
    """Fifty ports that are held and fifty that are not, each asked by itself."""
    from portbook import who

    with ExitStack() as hold:
        held = []
        for number in range(50):
            kind = (socket.SOCK_STREAM, socket.SOCK_DGRAM)[number % 2]
            opened = hold.enter_context(socket.socket(socket.AF_INET, kind))
            opened.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                opened.listen()
            held.append((opened.getsockname()[1], ("tcp", "udp")[number % 2]))
        missed = [port for port, protocol in held if not who(port, protocol=protocol).held]
        numbers = {port for port, _ in held}
        invented = [port for port in range(2001, 2051) if port not in numbers and who(port).held]
    return {"missed": missed, "invented": invented}


def reach() -> dict:
    """Connections to open, closed and unanswered ports, over TCP and UDP, and a scan."""
    from portbook import dial, scan

    with ExitStack() as hold:
        listener = hold.enter_context(socket.create_server(("127.0.0.1", 0)))
        bound = hold.enter_context(socket.socket())
        bound.bind(("127.0.0.1", 0))
        udp = hold.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        udp.bind(("127.0.0.1", 0))
        open_port, closed_port, udp_port = (each.getsockname()[1] for each in (listener, bound, udp))
        run_of_ports = scan("127.0.0.1", f"{open_port},{closed_port}")
        udp_closed = unused_udp_port()
        udp_answers = scan("127.0.0.1", f"{udp_port},{udp_closed}", udp=True)
        return {
            "open": dial(f"127.0.0.1:{open_port}").addresses[0].outcome,
            "closed": dial(f"127.0.0.1:{closed_port}").addresses[0].outcome,
            "scan": {str(answer.port == open_port): answer.outcome for answer in run_of_ports},
            "udp": {str(answer.port == udp_port): answer.outcome for answer in udp_answers},
        }


def unused_udp_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def commands() -> dict:
    """The commands as a user types them, with a listener to be asked about: exit code and output."""
    with socket.create_server(("127.0.0.1", 4243)):
        typed = {
            "sources": ["sources"],
            "list": ["list", "--json"],
            "who": ["who", "4243"],
            "why": ["why", "4243"],
            "stop": ["stop", "4243", "--dry-run"],
        }
        answers = {}
        for name, arguments in typed.items():
            done = subprocess.run(
                [sys.executable, "-m", "portbook", *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_LIMIT_S,
                check=False,
            )
            answers[name] = [done.returncode, done.stdout, done.stderr]
    return answers | {"pid": os.getpid()}


def feeds() -> dict:
    """What each feed of the watch reports of a hundred listeners that close at once, and of two sockets that stay."""
    from portbook.watching import feeds

    answers = {"best": feeds.best()[0].name}
    for name in feeds.FEEDS:
        kind = feeds.load(name)
        answers[name] = {"missing": kind.missing()}
        if answers[name]["missing"] is None:
            answers[name] |= use_feed(kind)
    return answers


def use_feed(kind) -> dict:
    from portbook.watching.feeds.base import FeedSettings

    feed = kind.open(FeedSettings(interval_s=0.2))
    try:
        short = []
        for number in range(100):
            with socket.create_server(("127.0.0.1", 0)) if number % 2 else six() as listener:
                short.append(listener.getsockname()[:2])
        with socket.create_server(("127.0.0.2", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.3", 0))
            places = [tcp.getsockname(), udp.getsockname()]
            changes = read_feed(feed, lambda changes: len(keys_of(changes, places)) == 2)
        changes += read_feed(feed, lambda more: keys_of(changes, places) <= {c.key for c in more if c.kind == "ended"})
        keys = keys_of(changes, short)
        begun = [c for c in changes if c.key in keys and c.socket is not None]
        ended = {c.key: c.exact for c in changes if c.kind == "ended"}
        return {
            "short": len({c.key for c in begun if c.key in ended}),
            "short_right_pid": len({c.key for c in begun if os.getpid() in [o.pid for o in c.socket.owners]}),
            "long": len(keys_of(changes, places)),
            "long_ended": [ended.get(key) for key in sorted(keys_of(changes, places), key=str)],
            "lost": [c.reason for c in changes if c.kind == "lost"],
        }
    finally:
        feed.close()


def six() -> socket.socket:
    return socket.create_server(("::1", 0), family=socket.AF_INET6)


def keys_of(changes, places) -> set:
    begun = [c for c in changes if c.kind in ("listening", "bound")]
    return {c.key for c in begun if (c.socket.local_address, c.socket.local_port) in places}


def read_feed(feed, enough) -> list:
    changes = []
    until = time.monotonic() + FEED_LIMIT_S
    while not enough(changes) and time.monotonic() < until:
        changes += feed.read(0.2)
    return changes


def bpf_feed() -> dict:
    """What the feed bpf reports of sockets of every kind, of another namespace, and where no cgroup2 is mounted."""
    from portbook.watching.feeds import bpf
    from portbook.watching.feeds.base import FeedSettings

    if bpf.FEED.missing() is not None:
        return {"missing": bpf.FEED.missing()}
    run("/bin/busybox", "umount", "/sys/fs/cgroup")
    feed = bpf.FEED.open(FeedSettings())
    run("/bin/busybox", "mount", "-t", "cgroup2", "cg", "/sys/fs/cgroup")
    kinds = {}
    try:
        for name, use in USES.items():
            use()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.bind(("127.0.0.1", 0))
                end = last.getsockname()[1]
                changes = read_feed(
                    feed, lambda more, end=end: any(c.socket and c.socket.local_port == end for c in more)
                )
            kinds[name] = [c.kind for c in changes][:-1]
            pids = {owner.pid for c in changes if c.socket for owner in c.socket.owners}
            kinds[name] += ["wrong pid"] if pids != {os.getpid()} else []
            read_feed(feed, lambda more: any(c.kind == "ended" for c in more))
        with process(other_namespace) as (pid, port):
            found = read_feed(feed, lambda more: any(c.kind == "listening" for c in more))
            elsewhere = [c.socket for c in found if c.kind == "listening" and c.socket.local_port == port]
            namespace = os.stat(f"/proc/{pid}/ns/net").st_ino
    finally:
        feed.close()
    return {
        "missing": None,
        "kinds": kinds,
        "elsewhere": [[s.netns == namespace, s.owners[0].pid == pid] for s in elsewhere],
        "programs_left": programs_left(),
    }


def use_listener() -> None:
    socket.create_server(("127.0.0.1", 0)).close()


def use_automatic() -> None:
    with socket.socket() as listener:
        listener.listen()


def use_six() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.bind(("::", 0))


def use_wildcard() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("", 0))
        server.connect(("127.0.0.1", 9))


def use_mptcp() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()


def use_client() -> None:
    """A bind without a port, which gets one by the connection: no record of it, and no failure."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
        client.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())


def use_bound_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.bind(("127.0.0.1", 0))
        client.connect(server.getsockname())


def use_failing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as second, suppress(OSError):
        second.bind(server.getsockname())


USES = {
    "listener": use_listener,
    "automatic": use_automatic,
    "ipv6": use_six,
    "wildcard": use_wildcard,
    "mptcp": use_mptcp,
    "client": use_client,
    "bound client": use_bound_client,
    "failing": use_failing,
}


def programs_left() -> int:
    """How many programs with our name the kernel has, a moment after the feed was closed: BPF_PROG_GET_NEXT_ID."""
    from portbook.system import bpf

    time.sleep(1)
    found = number = 0
    with suppress(FileNotFoundError):
        while True:
            request = bytearray(struct.pack("=III", number, 0, 0))
            bpf.call(11, request)
            number = struct.unpack_from("=II", request)[1]
            program = bpf.call(13, bytearray(struct.pack("=III", number, 0, 0)))
            information = bytearray(128)
            bpf.call(15, bytearray(struct.pack("=IIQ", program, len(information), bpf.address_of(information))))
            found += information[64:80].rstrip(b"\0") == b"portbook"
            os.close(program)
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
    return done.stdout


def main() -> None:
    for module in ("tcp_diag", "udp_diag", "veth", "vxlan"):
        subprocess.run(["modprobe", "-q", module], check=False, timeout=60)
    for check in (
        kernel,
        sources,
        zoo,
        bound_only,
        namespaces,
        ordinary_user,
        tunnel,
        ports,
        reach,
        feeds,
        bpf_feed,
        commands,
    ):
        try:
            answer = {"answer": check()}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(MARK + json.dumps({"check": check.__name__} | answer), flush=True)


if __name__ == "__main__":
    try:
        main()
    finally:
        sys.stdout.flush()
        os.sync()
        LIBC.reboot(REBOOT)
