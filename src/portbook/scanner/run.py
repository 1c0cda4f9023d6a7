"""``scan``: targets and ports in, a stream of answers out, and a report."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from importlib import import_module
from itertools import islice
from math import inf
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Literal, NoReturn
from typing import Protocol as Interface

from msgspec.structs import replace

from portbook.errors import UsageError
from portbook.names import service_name
from portbook.numerals import MOST_SECONDS, is_within
from portbook.probe.outcome import WITHOUT_ADDRESS, Answer
from portbook.probe.request import EventCallback, Limits, Probe, ScanEvent, Tally
from portbook.records import Protocol
from portbook.scanner.canary import SelfWatch
from portbook.scanner.local import LocalHolders
from portbook.scanner.ports import parse_survey
from portbook.scanner.report import SCHEMA, Report
from portbook.scanner.targets import (
    VALID,
    Name,
    Span,
    disjoint,
    parse_targets,
    probes_of,
    refuse_public,
    span_of,
    weave,
)

if TYPE_CHECKING:
    from portbook.ports import PortsLike

ENGINES: dict[Protocol, tuple[str, str]] = {
    "tcp": ("portbook.scanner.tcp.engine", "scan_tcp"),
    "udp": ("portbook.scanner.udp.engine", "scan_udp"),
}
PROTOCOL: dict[bool, Protocol] = {False: "tcp", True: "udp"}
MOST_EVENTS = 10_000  # in the report; a breaker has a few for each dead host
ALWAYS_SHOWN = ("open", *WITHOUT_ADDRESS)  # also by a scan for open ports alone: a misspelt name must be seen
FROM_THE_HOST = ("open", "closed")  # outcomes that only the host itself causes, or something in its place
HELD = ("open", "open|filtered")  # outcomes of ports that a process may hold
MOST_ADDRESSES = 1 << 20  # that are counted apart
MANY_PORTS = 20  # of one address that are all open: hardly one of a thousand hosts has so many
MOST_NAMED = 100  # addresses in the report
MOST_RATE = 1_000_000_000  # probes a second: any
MOST_RETRIES = 1000
MOST_SHOWN = 40  # characters of an invalid value
NO_PORT = 0  # in the one answer for a name that has no address: RFC 6335 section 6 reserves it


class Engine(Interface):
    """Probes in, one answer for each out, in any order."""

    def __call__(  # noqa: D102  the class says it
        self,
        probes: Iterable[Probe],
        limits: Limits,
        *,
        tally: Tally | None = None,
        on_event: EventCallback | None = None,
    ) -> Iterator[Answer]: ...


def scan(
    targets: PortsLike,
    ports: PortsLike | None = None,
    *,
    udp: bool | None = None,
    limits: Limits | None = None,
    allow_public: bool = False,
    only_open: bool = False,
    banner: bool = False,
    on_event: EventCallback | None = None,
) -> Scan:
    """Probe every port of every target; iterate over the answers as they come.

    >>> import portbook
    >>> with portbook.scan("127.0.0.1", "22,8000-8100") as answers:     # doctest: +SKIP
    ...     for answer in answers:
    ...         print(answer.port, answer.outcome)
    >>> answers.report.outcomes                                         # doctest: +SKIP

    :param targets: names, addresses, ``10.0.0.0/24``, ``10.0.0.1-20``, ``fe80::1%eth0``, ``@file``; text is split. They
        may have ports, the same for all: ``localhost:8080``, URLs; a number is a port of localhost
    :param ports: numbers, or text such as ``"22,8000-8100,@web"``; None: those of the targets, else ``"@common"``
    :param udp: UDP ports, or False: TCP ports; None: what is written with the ports, else TCP
    :param limits: how hard to try; None: the defaults of Limits
    :param allow_public: probe globally routable addresses too
    :param only_open: yield open ports alone, and names that have no address; the report counts all
    :param banner: connect to open TCP ports once more and read what the service says first; nothing is sent
    :param on_event: called with each ScanEvent, from within the iteration
    :returns: an iterator of Answer, which is a context manager and has the report
    :raises UsageError: an argument is invalid, or a target is public and ``allow_public`` is not given; for the
        addresses of a name, when the iteration begins
    """
    survey = parse_survey(targets, ports, None if udp is None else PROTOCOL[udp])
    parsed = list(parse_targets(survey.targets))
    if not parsed:
        raise UsageError("no target to scan", VALID)
    if limits is None:
        limits = Limits()
    _check(limits)
    if not allow_public:
        refuse_public(item for item in parsed if isinstance(item, Span))
    return Scan(parsed, list(survey.ports), survey.protocol, limits, allow_public, only_open, on_event, banner=banner)


class Scan:
    """The answers of a running scan, and its report, which can be read at any time."""

    def __init__(
        self,
        targets: list[Span | Name],
        ports: list[int],
        protocol: Protocol,
        limits: Limits,
        allow_public: bool = True,
        only_open: bool = False,
        on_event: EventCallback | None = None,
        engine: Engine | None = None,
        banner: bool = False,
    ) -> None:
        self.ports = ports
        self.protocol = protocol
        self.tally = Tally()
        self.total: int | None = None  # how many answers there will be; None: names are still being resolved
        # The last answer yielded. When a signal handler raises after an answer was counted and before the caller has
        # it, the caller finds it here. Python runs signal handlers after calls and between iterations of a loop.
        self.latest: Answer | None = None
        self._targets = targets
        self._limits = limits
        self._allow_public = allow_public
        self._only_open = only_open
        self._on_event = on_event
        self._engine = engine
        self._banner = banner and protocol == "tcp"
        self._addresses = 0
        self._outcomes: dict[str, int] = {}
        self._silent = 0
        self._answered: set[str | None] = set()  # addresses; at most MOST_ADDRESSES
        self._open_counts: dict[str | None, int] = {}  # open ports of an address; for as many
        self._holders: LocalHolders | None = None
        self._events: list[ScanEvent] = []
        self._dropped = 0
        self._watch: SelfWatch | None = None
        self._started_at: datetime | None = None
        self._began = self._ended = 0.0
        self._finished = self._cancelled = False
        self._report: Report | None = None
        self._answers = self._run()

    def __iter__(self) -> Iterator[Answer]:
        return self

    def __next__(self) -> Answer:
        return next(self._answers)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a running scan cannot be pickled: pickle its answers, list(scan), and its report")

    def __enter__(self) -> Scan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel, and close every socket. From another thread: no further probe is started, and those in flight end."""
        self._cancelled = True
        try:
            self._answers.close()
        except ValueError:  # the generator is running, in the thread that iterates
            return

    @property
    def done(self) -> int:
        """How many of ``total`` are answered, or will not be probed."""
        return sum(self._outcomes.values()) + self.tally.skipped

    @property
    def found(self) -> int:
        """How many ports are open so far."""
        return self._outcomes.get("open", 0)

    @property
    def report(self) -> Report:
        """The report: final when the scan is over, so far while it runs."""
        return self._report or self._reported()

    # --- probing ---------------------------------------------------------------------------------------------------

    def _run(self) -> Generator[Answer, None, None]:
        self._started_at = datetime.now(UTC)
        self._began = monotonic()
        try:
            spans, failures = self._resolved()
            yield from self._counted(iter(failures))
            if spans:
                yield from self._watched(spans)
            self._finished = not self._cancelled
        finally:
            self._ended = monotonic()
            self._report = self._reported()

    def _resolved(self) -> tuple[list[Span], list[Answer]]:
        """Return the spans of all targets, and one answer for each name that has no address."""
        names = [item for item in self._targets if isinstance(item, Name)]
        spans_by_name, failures = self._looked_up(list(dict.fromkeys(names)))
        spans: list[Span] = []
        for item in self._targets:
            spans += [item] if isinstance(item, Span) else spans_by_name[item.target]
        if not self._allow_public:
            refuse_public(spans)
        spans = list(disjoint(spans))
        self._addresses = sum(span.size for span in spans)
        self.total = self._addresses * len(self.ports) + len(failures)
        return spans, failures

    def _looked_up(self, names: list[Name]) -> tuple[dict[str, list[Span]], list[Answer]]:
        """Return the spans of each name, and one answer for each that has none."""
        if not names:
            return {}, []
        from portbook.probe.resolve import LIMIT_S, lookup_outcome, resolve

        spans: dict[str, list[Span]] = {}
        failures: list[Answer] = []
        deadline_s = self._limits.deadline_s or inf
        resolved = resolve([name.lookup for name in names], min(LIMIT_S, deadline_s), total_s=deadline_s)
        for name, (_, addresses, failure) in zip((name.target for name in names), resolved, strict=True):
            spans[name] = [span_of(name, *address) for address in addresses]
            if failure is not None:
                outcome = lookup_outcome(failure)
                failures.append(Answer(name, None, None, NO_PORT, self.protocol, outcome, failure, attempts=0))
        return spans, failures

    def _watched(self, spans: list[Span]) -> Iterator[Answer]:
        """Yield all answers but those of canaries; the ports of canaries are probed again when these are closed."""
        with ExitStack() as stack:
            self._watch = watch = SelfWatch(self.protocol, spans, self.ports)
            stack.callback(watch.close)
            self._holders = LocalHolders(self.protocol, watch.addresses) if watch.addresses else None
            extras = watch.extras()
            every = max(1, (self.total or 0) // (len(extras) + 1))
            stream = weave(probes_of(spans, self.ports), extras, every)
            yield from self._counted(_without_canaries(watch, self._probed(stream)))
            watch.close()
            if (hidden := watch.hidden()) and not self._is_late:
                yield from self._counted(self._probed(hidden))

    def _probed(self, probes: Iterable[Probe]) -> Iterator[Answer]:
        limits = self._limits
        if limits.deadline_s is not None:
            limits = replace(limits, deadline_s=max(0.001, limits.deadline_s - (monotonic() - self._began)))
        engine = self._engine or _load(self.protocol)
        answers = engine(self._until_cancelled(probes), limits, tally=self.tally, on_event=self._keep)
        try:
            yield from answers
        finally:
            if isinstance(answers, Generator):
                answers.close()

    def _until_cancelled(self, probes: Iterable[Probe]) -> Iterator[Probe]:
        for probe in probes:
            if self._cancelled:
                return
            yield probe

    # --- counting --------------------------------------------------------------------------------------------------

    def _counted(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """Yield answers and count them. Between the count and ``latest`` nothing is called: see ``latest``."""
        outcomes, only_open = self._outcomes, self._only_open
        for answer in self._completed(answers):
            outcome, silent = answer.outcome, answer.evidence.kind == "silence"
            count = outcomes.get(outcome, 0)
            outcomes[outcome] = count + 1
            self._silent += silent
            if not only_open or outcome in ALWAYS_SHOWN:
                self.latest = answer
                yield answer

    def _completed(self, answers: Iterator[Answer]) -> Iterator[Answer]:
        """Yield the answers with banner, name of the service and process; count hosts."""
        if self._banner:
            from portbook.scanner.banner import with_banners

            answers = with_banners(answers, self._limits.timeout_s)
        protocol, answered = self.protocol, self._answered
        for answer in answers:
            outcome = answer.outcome
            if outcome in FROM_THE_HOST and len(answered) < MOST_ADDRESSES:
                answered.add(answer.address)
            if outcome in HELD:
                answer = self._described(answer)  # noqa: PLW2901  the same answer with more about it
            elif answer.service is None and (name := service_name(answer.port, protocol)) is not None:
                answer = replace(answer, service=name, service_origin="registered")  # noqa: PLW2901
            yield answer

    def _described(self, answer: Answer) -> Answer:
        """An answer of a port that is or may be open, with its service and the process of this machine behind it."""
        if answer.outcome == "open" and (
            answer.address in self._open_counts or len(self._open_counts) < MOST_ADDRESSES
        ):
            self._open_counts[answer.address] = self._open_counts.get(answer.address, 0) + 1
        if self._holders is not None:
            answer = self._holders.named(answer)
        if answer.service is None:
            name = service_name(answer.port, self.protocol)
            return answer if name is None else replace(answer, service=name, service_origin="registered")
        if answer.service_origin is None:
            return replace(answer, service_origin="reply")
        return answer

    def _all_open(self) -> tuple[str, ...]:
        """Addresses that answered as if every port were open: something in front of the host may do that."""
        if len(self.ports) < MANY_PORTS or self._watch is None:
            return ()
        ours = {address.address for address in self._watch.addresses}
        full = [address for address, count in self._open_counts.items() if count >= len(self.ports)]
        return tuple(islice((address for address in full if address and address not in ours), MOST_NAMED))

    def _keep(self, event: ScanEvent) -> None:
        if len(self._events) < MOST_EVENTS:
            self._events.append(event)
        else:
            self._dropped += 1
        if self._on_event is not None:
            self._on_event(event)

    def _reported(self) -> Report:
        answered = sum(self._outcomes.values())
        elapsed_s = 0.0
        if self._began:
            elapsed_s = (self._ended or monotonic()) - self._began
        partial = self._partial()
        self_check = self._watch.judge(partial is not None) if self._watch is not None else None
        return Report(
            schema=SCHEMA,
            protocol=self.protocol,
            started_at=self._started_at,
            elapsed_s=elapsed_s,
            addresses=self._addresses,
            ports=len(self.ports),
            asked=answered,
            outcomes=dict(self._outcomes),
            silent=self._silent,
            repeated=self.tally.repeated,
            skipped=max(0, (self.total or 0) - answered),
            rate=answered / elapsed_s if elapsed_s > 0 else None,
            partial=partial,
            events=tuple(self._events),
            events_dropped=self._dropped,
            self_check=self_check,
            hosts_answered=len(self._answered),
            all_open=self._all_open(),
        )

    @property
    def _is_late(self) -> bool:
        """Whether the time was up before everything was probed."""
        return any(event.kind == "deadline" for event in self._events)

    def _partial(self) -> Literal["cancelled", "deadline"] | None:
        if not self._finished:
            return "cancelled"
        return "deadline" if self._is_late else None


def _check(limits: Limits) -> None:
    if not isinstance(limits, Limits):
        raise UsageError(f"limits cannot be of the type {type(limits).__name__}", "give portbook.Limits(...)")
    times = ("timeout", limits.timeout_s), ("deadline", limits.deadline_s)
    for name, value, most in (*((*each, MOST_SECONDS) for each in times), ("rate", limits.rate, MOST_RATE)):
        if value is not None and not (is_within(value, most) and value > 0):
            shown = str(value)[:MOST_SHOWN].removesuffix(".0")
            raise UsageError(f"{name} {shown} is invalid", f"give a number above 0, at most {most:,}")
    if not is_within(limits.retries, MOST_RETRIES):
        raise UsageError(f"retries {limits.retries!s:.40} is invalid", f"give 0 to {MOST_RETRIES}")
    concurrency = limits.concurrency
    if concurrency is not None and not (is_within(concurrency, inf) and concurrency >= 1):
        raise UsageError(f"concurrency {limits.concurrency!s:.40} is invalid", "give 1 or more")


def _load(protocol: Protocol) -> Engine:
    module, name = ENGINES[protocol]
    engine: Engine = getattr(import_module(module), name)
    return engine


def _without_canaries(watch: SelfWatch, answers: Iterator[Answer]) -> Iterator[Answer]:
    """Yield the answers but those of canaries."""
    watched = watch.watched
    for answer in answers:
        if (answer.address, answer.port) not in watched or not watch.takes(answer):
            yield answer
