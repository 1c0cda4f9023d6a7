"""Every platform: read the sockets that wait for peers again and again, and compare.

On Linux the kernel's own dump is compared row by row (``rows``); elsewhere, and with another source, records are.
Owners are looked up for new sockets only.
"""

from __future__ import annotations

from fractions import Fraction
from time import monotonic_ns, process_time_ns, sleep

from msgspec import Struct

from portbook import inventory, sources
from portbook.errors import SourceError
from portbook.query import Query, term
from portbook.records import Socket
from portbook.watching.feeds import completion, rows
from portbook.watching.feeds.base import Change, Feed, FeedKind, FeedSettings, SocketKey, key_of

SECOND_NS = 1_000_000_000
LEAST_PAUSE_NS = 50_000_000  # between the beginnings of readings that something made urgent
BUSY = 0.02
REMIND_S = 3600.0  # of a source that fails again and again
EXAMPLE = Fraction(1, 5)  # of the interval: a listener of this length is the example of what is missed


class Comparison(Struct):
    """What changed since the last reading."""

    ended: list[SocketKey]
    connected: list[SocketKey]
    appeared: list[Socket]  # without owners, unless the source reports them
    problems: tuple[str, ...] = ()  # what could not be read


class RowReader:
    """Linux: compares the rows of sock_diag."""

    all_known = False

    def __init__(self) -> None:
        self._lookout = rows.Lookout()

    def compare(self) -> Comparison:
        """Read and compare; raise SourceError."""
        found = self._lookout.look()
        return Comparison([*found.ended], [*found.connected], found.appeared, found.problems)

    def forget(self, cookie: int, port: int) -> bool:
        """See ``Lookout.forget``."""
        return self._lookout.forget(cookie, port)


class RecordReader:
    """Any platform: compares the records of a data source.

    :param source: its name; None: the best one that works
    """

    def __init__(self, source: str | None) -> None:
        self._source = source
        self._request = Query((term("state", ["listening"]),))
        self._known: dict[SocketKey, Socket] = {}
        self.all_known = False

    def compare(self) -> Comparison:
        """Read and compare; raise SourceError."""
        name, sockets, _ = inventory.select(self._request, self._source, all_namespaces=True)
        self.all_known = "holders" in sources.load(name).capabilities
        now = {key_of(s): s for s in sockets}
        before = self._known
        self._known = now
        appeared = [s for key, s in now.items() if key not in before or before[key].state != s.state]
        return Comparison([key for key in before if key not in now], [], appeared)


class Poll:
    """A subscription that reads at intervals.

    :param reader: what compares
    :param interval_s: between the beginnings of two readings, in seconds
    :param shortest_s: the interval as long as readings take less than BUSY of a processor's time
    :raises SourceError: the first reading failed
    """

    def __init__(self, reader: RowReader | RecordReader, interval_s: float, shortest_s: float | None = None) -> None:
        self._reader = reader
        self._interval_ns = int(interval_s * SECOND_NS)
        self._shortest_ns = self._interval_ns if shortest_s is None else int(shortest_s * SECOND_NS)
        self._failure = Failure()
        self.read_at_ns, began_cpu_ns = monotonic_ns(), process_time_ns()
        reader.compare()
        self.due_ns = self._next_due(began_cpu_ns)

    def fileno(self) -> int:
        """None: ``read`` waits."""
        return -1

    def read(self, timeout_s: float) -> list[Change]:
        """Wait for the next reading, at most this long, and return what changed."""
        now_ns = monotonic_ns()
        wait_ns = min(self.due_ns - now_ns, int(timeout_s * SECOND_NS))
        if wait_ns > 0:
            sleep(wait_ns / SECOND_NS)
        if monotonic_ns() < self.due_ns:
            return []
        return self.read_now()

    def read_now(self) -> list[Change]:
        """Read at once and return what changed: what ended, and then what is new."""
        self.read_at_ns, began_cpu_ns = monotonic_ns(), process_time_ns()
        try:
            found = self._reader.compare()
        except SourceError as error:
            self.due_ns = self._next_due(began_cpu_ns)
            return self._failure.report(str(error))
        at_ns = monotonic_ns()
        changes = [Change("ended", at_ns, key, exact=False) for key in found.ended]
        changes += [Change("connected", at_ns, key, exact=False) for key in found.connected]
        changes += completion.complete(found.appeared, at_ns, all_known=self._reader.all_known)
        changes += self._failure.report("; ".join(found.problems))
        self.due_ns = self._next_due(began_cpu_ns)
        return changes

    def hasten(self) -> None:
        """Read soon, whatever the interval is."""
        self.due_ns = min(self.due_ns, self.read_at_ns + LEAST_PAUSE_NS)

    def close(self) -> None:
        """Nothing is open between two readings."""

    def _next_due(self, began_cpu_ns: int) -> int:
        """When to read next: a source that is slow gets as much time between two readings as it took for one."""
        ended_ns = monotonic_ns()
        took_ns = ended_ns - self.read_at_ns
        used_ns = process_time_ns() - began_cpu_ns
        interval_ns = min(max(self._shortest_ns, int(used_ns / BUSY)), self._interval_ns)
        return max(self.read_at_ns + interval_ns, ended_ns + min(took_ns, 10 * SECOND_NS))


class Failure:
    """What cannot be read is said once, and again after a while; then it counts for how many readings it stands."""

    def __init__(self) -> None:
        self._reason = ""
        self._said_ns = 0
        self._count = 0

    def report(self, reason: str) -> list[Change]:
        """The change to report after a reading.

        :param reason: why it, or a part of it, failed; empty: it did not
        """
        now_ns = monotonic_ns()
        self._count += bool(reason)
        is_said = reason == self._reason and now_ns < self._said_ns + REMIND_S * SECOND_NS
        if not reason or is_said:
            if not reason:
                self._reason, self._count = "", 0
            return []
        change = Change("lost", now_ns, exact=False, count=self._count, reason=reason)
        self._reason, self._said_ns, self._count = reason, now_ns, 0
        return [change]


def blind_spot(interval_s: float, lifetime_s: float | None = None, what: str = "a listener") -> str:
    """What an interval misses, as a sentence: "at 1 s, a listener of 200 ms is missed 4 times in 5".

    A reading falls into the life of a socket with the probability of lifetime to interval.

    :param interval_s: between two readings, in seconds
    :param lifetime_s: of a listener, in seconds; None: a fifth of the interval
    """
    lifetime = Fraction(lifetime_s or interval_s * EXAMPLE).limit_denominator(1_000_000)
    interval = Fraction(interval_s).limit_denominator(1_000_000)
    missed = max(1 - lifetime / interval, Fraction(0)).limit_denominator(100)
    if not missed:
        return f"at {_duration(interval)}, {what} of {_duration(lifetime)} is never missed"
    times = f"{missed.numerator} times in {missed.denominator}"
    return f"at {_duration(interval)}, {what} of {_duration(lifetime)} is missed {times}"


def _duration(seconds: Fraction) -> str:
    if seconds >= 1:
        return f"{float(seconds):g} s"
    return f"{float(seconds * 1000):g} ms"


def missing() -> str | None:
    """Why no source of this platform works; None if one does."""
    reasons: list[str] = []
    for name in sources.names():
        if not sources.load(name).optional:
            why = sources.missing(name)
            if why is None:
                return None
            reasons.append(f"{name}: {why}")
    return "; ".join(reasons)


def open_poll(settings: FeedSettings) -> Feed:
    """Read once, and then at intervals; raise SourceError, and UsageError for a source that there is not."""
    return Poll(_reader(settings.source), settings.interval_s)


def _reader(source: str | None) -> RowReader | RecordReader:
    if source is not None:
        sources.load(source)
    if sources.PLATFORM == "linux" and source in (None, "sockdiag"):
        from portbook.sources import sockdiag

        if source or sockdiag.missing() is None:
            return RowReader()
    return RecordReader(source)


FEED = FeedKind(
    name="poll",
    sees=(
        "every TCP listener and bound UDP socket that is there when the sockets are read",
        "TCP sockets that are bound and do not listen, where the source shows them (Linux 6.8 and later, Windows)",
        "as root on Linux, the same in other network namespaces",
    ),
    misses=(
        "binds that fail",
        "who it was, if the process has ended before the sockets are read",
        f"in another network namespace, for up to {rows.WHOLE_EVERY_S:g} s, a socket that replaces another one",
        "network namespaces that neither a process nor a name leads into, and never did while it watched",
    ),
    needs="nothing; for the owners of other users' sockets, and for other network namespaces, root",
    sees_udp=True,
    sees_failed=False,
    sees_other_namespaces=True,
    sees_processes=False,
    missing=missing,
    open=open_poll,
    between_readings=lambda interval_s: f"what begins and ends between two readings: {blind_spot(interval_s)}",
)
