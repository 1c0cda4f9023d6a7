"""Failed binds: which are repeats, and why they failed, as far as the register knows. Pure, and bounded."""

from __future__ import annotations

from collections.abc import Iterable

from portbook.addresses import unmapped
from portbook.records import Socket
from portbook.watching.identity import program_of

MOST_FAILURES = 2_048  # that are remembered
MOST_LOUD = 100  # different failures of one program within the time of repeats; further ones are quiet
FIRST_UNPRIVILEGED = 1024  # net.ipv4.ip_unprivileged_port_start, ip-sysctl.rst: the default
WILDCARDS = ("0.0.0.0", "::")  # noqa: S104  compared, not bound


class FailedBind:
    """The same bind, failed once or more."""

    __slots__ = ("count", "first_ns", "is_loud")

    def __init__(self, first_ns: int, is_loud: bool) -> None:
        self.first_ns = first_ns
        self.count = 0
        self.is_loud = is_loud


class FailedBinds:
    """Remembers failed binds for ``repeat_ns``."""

    def __init__(self, repeat_ns: int) -> None:
        self._repeat_ns = repeat_ns
        self._known: dict[tuple[object, ...], FailedBind] = {}
        self._by_program: dict[tuple[object, ...], tuple[int, int]] = {}  # since when, and how many different ones

    def add(self, socket: Socket, at_ns: int) -> FailedBind:
        """Count one. ``count`` is 1 for the first within the time."""
        program = (program_of(socket), socket.uid)
        key = (*program, socket.protocol, socket.local_address, socket.local_port, socket.netns)
        failure = self._known.get(key)
        if failure is None or at_ns - failure.first_ns > self._repeat_ns:
            self._known.pop(key, None)
            failure = FailedBind(at_ns, self._is_loud(program, at_ns))
            self._known[key] = failure
            if len(self._known) > MOST_FAILURES:
                del self._known[next(iter(self._known))]
        failure.count += 1
        return failure

    def _is_loud(self, program: tuple[object, ...], at_ns: int) -> bool:
        """Whether the program has not failed at very many ports: who looks for a free one tries them all."""
        since_ns, count = self._by_program.pop(program, (at_ns, 0))
        if at_ns - since_ns > self._repeat_ns:
            since_ns, count = at_ns, 0
        self._by_program[program] = (since_ns, count + 1)
        if len(self._by_program) > MOST_FAILURES:
            del self._by_program[next(iter(self._by_program))]
        return count < MOST_LOUD


def explain(failed: Socket, on_port: Iterable[Socket]) -> tuple[str | None, str | None]:
    """The likely error of a failed bind, and a sentence.

    :param on_port: the open sockets of the same protocol and port
    """
    for holder in on_port:
        if holder.netns == failed.netns and overlaps(holder, failed):
            return "EADDRINUSE", f"it is held by {_describe(holder)}"
    if failed.reach == "none":
        return "EADDRNOTAVAIL", "no interface has the address"
    if 0 < failed.local_port < FIRST_UNPRIVILEGED and failed.uid:
        return "EACCES", f"ports below {FIRST_UNPRIVILEGED} need a privilege"
    return None, None


def overlaps(one: Socket, other: Socket) -> bool:
    """Whether two sockets are in each other's way, as far as their addresses decide that."""
    if one.interface and other.interface and one.interface != other.interface:
        return False
    here, there = unmapped(one.local_address), unmapped(other.local_address)
    if here == there:
        return True
    if here not in WILDCARDS and there not in WILDCARDS:
        return False
    if (":" in here) == (":" in there):
        return True
    wildcard = one if here == "::" else other
    return unmapped(wildcard.local_address) == "::" and not wildcard.v6only


def _describe(holder: Socket) -> str:
    if not holder.owners:
        return holder.kernel or "an unknown process"
    owner = holder.owners[0]
    return f"{owner.name or 'a process'} (pid {owner.pid})"
