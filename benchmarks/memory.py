"""What a scan of millions of ports holds in memory, looked at from outside while it runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import contest
import networks

WHOLE = "scan all 16.7 million ports for the memory row, which takes minutes"
MOST_MB = 150
TARGETS = "127.0.1.0/24"
BOUND_S = 60
WHOLE_S = 1800
LOOKS = 10


class Look(NamedTuple):
    """A process at one moment, proc_pid_status(5)."""

    at_s: float
    now_mb: float
    peak_mb: float


class Watched(NamedTuple):
    looks: list[Look]
    said: str  # the last lines


def look(pid: int, at_s: float) -> Look | None:
    """None when it has ended."""
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        fields = dict(line.split(":", 1) for line in file)
    if "VmHWM" not in fields:
        return None
    return Look(at_s, *(int(fields[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))


def watch(command: Sequence[str], limit_s: float, every_s: float = 0.5) -> Watched:
    """Run a command and look at it until it ends."""
    began = time.monotonic()
    looks = []
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, env=contest.PLAIN, text=True
    ) as process:
        while process.poll() is None and time.monotonic() < began + limit_s:
            looked = look(process.pid, time.monotonic() - began)
            looks += [looked] if looked else []
            time.sleep(every_s)
        process.kill()
        said = process.stdout.read() if process.stdout else ""
    return Watched(looks, said)


def spread(looks: Sequence[Look]) -> list[Look]:
    """Some of them, evenly, the last among them."""
    step = max(1, len(looks) // LOOKS)
    return list(looks[::-step][:LOOKS][::-1])


def report(python: str, whole: bool) -> Iterator[str]:
    bound = [] if whole else ["--deadline", str(BOUND_S)]
    scan = ["portbook", "scan", TARGETS, "-p", "1-65535", "--open", *bound]
    yield "### Memory: 65,535 ports of 256 addresses" + (
        "" if whole else f", for {BOUND_S} s (`--whole-memory` does all of it)"
    )
    yield ""
    with networks.loopback([]) as load:
        yield from _section(load, python, scan, WHOLE_S)
    yield f"Hosts that drop every other port, for {BOUND_S} s: the most that can be under way."
    yield ""
    with networks.many_hosts(drop="tcp dport & 1 == 1", rtt_ms=None) as load:
        silent = ["portbook", "scan", networks.NETWORK, "-p", "1-65535", "--deadline", str(BOUND_S)]
        yield from _section(load, python, silent, 2 * BOUND_S)


def _section(load: networks.Load, python: str, command: Sequence[str], limit_s: float) -> Iterator[str]:
    arguments = contest.resolved(list(command), python)
    if arguments is None:
        raise SystemExit("no portbook in the environment")
    with load.space:
        looks, said = watch(arguments, limit_s)
    shown = spread(looks)
    yield f"| `{' '.join(command)}` |{' |'.join(f' {each.at_s:.0f} s' for each in shown)} |"
    yield f"|---|{'--:|' * len(shown)}"
    yield f"| resident | {' | '.join(f'{each.now_mb:.0f} MB' for each in shown)} |"
    yield f"| peak so far | {' | '.join(f'{each.peak_mb:.0f} MB' for each in shown)} |"
    peak = looks[-1].peak_mb
    yield ""
    yield f"Target: ≤ {MOST_MB} MB; {'met' if peak <= MOST_MB else '**not met**'} with {peak:.0f} MB. The scan says:"
    yield ""
    yield "```"
    yield from said.rstrip().splitlines()[-4:]
    yield "```"
    yield ""
