"""An open subscription: turns of listeners from the trace buffer, joined with the rows of sock_diag.

After a turn the tables are read at once, and the buffer once more; see ``joining``.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress
from time import monotonic, monotonic_ns, process_time_ns

from msgspec.structs import replace

from portbook.addresses import reach_of
from portbook.enrich import owners, process
from portbook.errors import SourceError, SourceMissing
from portbook.numerals import counted
from portbook.records import Owner, Socket
from portbook.system import namespaces
from portbook.watching.feeds import completion, poll
from portbook.watching.feeds.base import Change
from portbook.watching.feeds.bpf.timer import Timer
from portbook.watching.feeds.rows import Difference, Lookout
from portbook.watching.feeds.tracefs import buffer
from portbook.watching.feeds.tracefs.buffer import Turn
from portbook.watching.feeds.tracefs.instance import Instance
from portbook.watching.feeds.tracefs.joining import Begun, Joined, Joiner

SECOND_NS = 1_000_000_000
GATHER_NS = 10_000_000  # turns of so long, at least, are joined with one reading of the tables
BUSY = 0.1  # of a processor, that joining may take
MOST_TURNS = 200_000  # that wait
MOST_PAGES = 4096  # of one call and processor


class Tracing:
    """A feed (see watching/feeds/base.py); raises SourceError."""

    def __init__(self, interval_s: float, buffer_bytes: int) -> None:
        self._interval_ns = int(interval_s * SECOND_NS)
        self._sees_pids = namespaces.sees_every_process()
        self._joiner = Joiner()
        self._failure = poll.Failure()
        self._lost: dict[str, int] = {}
        self._buffers: dict[str, int] = {}
        self._timer: Timer | None = None
        self._waiting = select.epoll()
        self._turns: list[Turn] = []  # that are not joined yet
        self._join_ns: int | None = None  # when they will be
        self._free_ns = 0  # not before: what joining may take of a processor is used up
        self._processes: dict[int, tuple[int, bool]] = {}  # of threads of turns, see _process_of
        self._instance = Instance(buffer_bytes)
        try:
            self._layouts = (
                buffer.parse_page_layout(self._instance.page_format),
                buffer.parse_event_layout(self._instance.event_format),
            )
            self._open_buffers()
            self._timer = Timer()
            self._waiting.register(self._timer.descriptor, select.EPOLLIN)
            self._lookout = Lookout()
            self._due_ns = monotonic_ns() + self._interval_ns
            self._joiner.join((), self._lookout.look(), monotonic_ns())
            self._count_losses()
        except (OSError, ValueError) as error:
            self.close()
            raise SourceMissing(f"tracefs: {error}") from error
        except BaseException:
            self.close()
            raise
        self._timer.set(self._due_ns)

    def fileno(self) -> int:
        """A descriptor that is readable when a listener has turned, or the next reading is due."""
        return self._waiting.fileno()

    def read(self, timeout_s: float) -> list[Change]:
        """Wait for changes, at most this long, and return them."""
        until = monotonic() + timeout_s
        while True:
            changes = self._take()
            left_s = until - monotonic()
            if changes or left_s <= 0:
                return changes
            self._waiting.poll(left_s)

    def close(self) -> None:
        """Stop tracing, and remove the instance."""
        for descriptor in self._buffers.values():
            os.close(descriptor)
        self._buffers = {}
        if self._timer is not None:
            self._timer.close()
            self._timer = None
        self._waiting.close()
        self._instance.close()

    # --- the buffer ------------------------------------------------------------------------------------------------

    def _open_buffers(self) -> None:
        """Open the buffer of each processor; one may have come since."""
        for processor in self._instance.processors():
            if processor not in self._buffers:
                descriptor = self._instance.open_buffer(processor)
                self._buffers[processor] = descriptor
                self._waiting.register(descriptor, select.EPOLLIN)

    def _drain(self) -> list[Turn]:
        """What is in the buffers, in the order in which it happened."""
        pages, events = self._layouts
        turns: list[Turn] = []
        for descriptor in self._buffers.values():
            for _ in range(MOST_PAGES):
                try:
                    page = os.read(descriptor, pages.size)
                except BlockingIOError:
                    break
                if not page:
                    break
                turns += buffer.parse_page(page, pages, events)
        turns.sort(key=lambda turn: turn.at_ns)
        for tid in {turn.tid for turn in turns if turn.listens}.difference(self._processes):
            self._processes[tid] = _process_of(tid)  # at once: a thread may end soon
        return turns

    def _count_losses(self) -> list[Change]:
        counts: dict[str, int] = {}
        for processor in self._buffers:
            with suppress(OSError):
                counts[processor] = buffer.parse_losses(self._instance.read(f"per_cpu/{processor}/stats"))
        lost = buffer.lost_since(self._lost, counts)
        self._lost = counts
        if not lost:
            return []
        self._due_ns = 0  # the tables show what is open
        reason = f"the trace buffer was full: {counted(lost, 'event')} of listeners were overwritten"
        return [Change("lost", monotonic_ns(), count=lost, reason=reason)]

    # --- joining ---------------------------------------------------------------------------------------------------

    def _take(self) -> list[Change]:
        changes: list[Change] = []
        self._turns += self._drain()
        now_ns = monotonic_ns()
        if len(self._turns) > MOST_TURNS:  # the tables could not be read for long
            reason = "the socket tables could not be read: events of listeners were given up"
            changes.append(Change("lost", now_ns, exact=False, count=len(self._turns), reason=reason))
            self._turns = []
        if self._turns and self._join_ns is None:
            self._join_ns = max(now_ns + GATHER_NS, self._free_ns)
        is_due = now_ns >= self._due_ns
        if is_due or (self._join_ns is not None and now_ns >= self._join_ns):
            changes += self._join(is_due)
        if self._timer is not None:
            self._timer.set(self._due_ns if self._join_ns is None else min(self._join_ns, self._due_ns))
        return changes

    def _join(self, is_due: bool) -> list[Change]:
        """Join the turns with what the tables show now."""
        changes: list[Change] = []
        began_ns, began_cpu_ns = monotonic_ns(), process_time_ns()
        if is_due:
            self._due_ns = began_ns + self._interval_ns
            self._open_buffers()
            changes += self._count_losses()
        only = None if is_due else self._namespaces_of(self._turns)
        ports = {turn.port for turn in self._turns} | self._joiner.ports_waiting()
        tcp_ports = None if is_due or 0 in ports else ports
        try:
            found = self._lookout.look(only, tcp_ports)
        except SourceError as error:
            self._join_ns = began_ns + self._interval_ns  # the turns wait
            return changes + self._failure.report(str(error))
        changes += self._failure.report("; ".join(found.problems))
        turns = sorted(self._turns + self._drain(), key=lambda turn: turn.at_ns)
        joined = self._joiner.join(turns, found, began_ns)
        self._turns = joined.later
        ended_ns = monotonic_ns()
        self._free_ns = ended_ns + min(int((process_time_ns() - began_cpu_ns) / BUSY), self._interval_ns)
        is_waiting = joined.later or self._joiner.is_waiting
        self._join_ns = max(ended_ns + GATHER_NS, self._free_ns) if is_waiting else None
        changes += self._changes_of(joined, found)
        self._processes = {}
        return sorted(changes, key=lambda change: change.at_ns)

    def _namespaces_of(self, turns: list[Turn]) -> set[int]:
        """The network namespaces of the threads that did it, as far as they are still there, and of the sockets."""
        found = self._joiner.namespaces_of(turns)
        for tid in {turn.tid for turn in turns} if self._sees_pids else ():
            with suppress(OSError):
                found.add(os.stat(f"/proc/{tid}/ns/net").st_ino)
        return found

    def _changes_of(self, joined: Joined, found: Difference) -> list[Change]:
        now_ns = monotonic_ns()
        changes = self._beginnings(joined.begun)
        changes += [Change("ended", ended.at_ns, ended.key) for ended in joined.ended]
        changes += [Change("ended", now_ns, cookie, exact=False) for cookie in joined.gone]
        changes += [Change("connected", now_ns, cookie, exact=False) for cookie in found.connected]
        polled = [s for s in found.appeared if s.state != "LISTEN"]
        return changes + completion.complete(joined.unexplained + polled, now_ns)

    # --- who did it ------------------------------------------------------------------------------------------------

    def _beginnings(self, begun: list[Begun]) -> list[Change]:
        """The changes of listeners that have begun."""
        is_by_thread = [self._sees_pids and (each.is_certain or each.socket is None) for each in begun]
        changes = self._by_thread([each for each, is_so in zip(begun, is_by_thread, strict=True) if is_so])
        for each in [each for each, is_so in zip(begun, is_by_thread, strict=True) if not is_so]:
            if each.socket is None:
                changes.append(_change(each, _socket_of(each.turn, sees_pids=False), (), is_gone=True))
            else:
                (change,) = completion.complete([each.socket], each.turn.at_ns)
                changes.append(replace(change, exact=True))
        return changes

    def _by_thread(self, begun: list[Begun]) -> list[Change]:
        """Those whose process is that of the thread; without a row the socket is what the turn says."""
        if not begun:
            return []
        pids = {tid: self._processes.get(tid) or _process_of(tid) for tid in {each.turn.tid for each in begun}}
        sockets: list[Socket] = []
        for each in begun:
            s = each.socket or _socket_of(each.turn)
            sockets.append(replace(s, owners=(Owner(pids[each.turn.tid][0], how="fd"),)))
        completed, _ = owners.complete(sockets)
        known: dict[int, Owner] = {}
        changes: list[Change] = []
        for each, s in zip(begun, completed, strict=True):
            pid, is_gone = pids[each.turn.tid]
            parents = () if is_gone else process.parents(pid, known)
            changes.append(_change(each, s, parents, is_gone))
        return changes


def _change(begun: Begun, s: Socket, parents: tuple[Owner, ...], is_gone: bool) -> Change:
    return Change("listening", begun.turn.at_ns, begun.key or 0, s, parents, process_gone=is_gone)


def _socket_of(turn: Turn, sees_pids: bool = True) -> Socket:
    """What a turn says of the socket. Its network namespace is that of the thread, if that is still there."""
    netns = None
    if sees_pids:
        with suppress(OSError):
            netns = os.stat(f"/proc/{turn.tid}/ns/net").st_ino
    reach = reach_of(turn.address)
    return Socket("tcp", turn.family, turn.address, turn.port, state="LISTEN", reach=reach, netns=netns)


def _process_of(tid: int) -> tuple[int, bool]:
    """The process of a thread, and whether it is gone: then the number is that of the thread."""
    try:
        with open(f"/proc/{tid}/status", "rb") as file:
            for line in file.read(1 << 12).splitlines():
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1]), False
    except (OSError, ValueError, IndexError):
        pass
    return tid, True
