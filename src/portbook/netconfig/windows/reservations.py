"""All that Windows keeps back, in one look: the questions to netsh are asked at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeVar

from portbook.errors import SourceError
from portbook.netconfig.facts import DynamicRange, ExcludedRange, HttpQueue, PortProxy
from portbook.netconfig.windows import httpsys, netsh, portproxy
from portbook.records import FAMILIES, PROTOCOLS, Family, Gap, Protocol

Fact = TypeVar("Fact")


class Reservations(NamedTuple):
    """What was found. None: nothing of this could be had, which is not the same as that there is nothing."""

    excluded: tuple[ExcludedRange, ...] | None
    dynamic: tuple[DynamicRange, ...] | None
    proxies: tuple[PortProxy, ...] | None
    queues: tuple[HttpQueue, ...] | None
    gaps: tuple[Gap, ...]


def take(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES, *, queues: bool = True
) -> Reservations:
    """Look at what concerns these protocols and families; what could not be had is a gap.

    :param queues: also at the request queues of http.sys, which matter for ports that pid 4 holds
    :raises SourceMissing: this is not Windows
    """
    protocols, families = tuple(protocols), tuple(families)
    excluded = netsh.excluded_questions(protocols, families)
    dynamic = netsh.dynamic_questions(protocols, families)
    http = [httpsys.QUESTION] if queues and "tcp" in protocols else []
    questions: list[netsh.Question[Any]] = [*excluded, *dynamic, *http]
    answers = netsh.ask(questions)
    gaps: list[Gap] = []
    return Reservations(
        _known(answers[: len(excluded)], gaps),
        _known(answers[len(excluded) : len(excluded) + len(dynamic)], gaps),
        _known(_proxies() if "tcp" in protocols else [], gaps),
        _known(answers[len(excluded) + len(dynamic) :], gaps),
        tuple(gaps),
    )


def _proxies() -> netsh.Answers[PortProxy]:
    try:
        return portproxy.answers()
    except SourceError as error:
        return [error]


def _known(answers: netsh.Answers[Fact], gaps: list[Gap]) -> tuple[Fact, ...] | None:
    """What the answers say, together; None if every one is an error."""
    failures = [answer for answer in answers if isinstance(answer, SourceError)]
    gaps += [Gap("reservation", None, failure.args[0], failure.hint) for failure in failures]
    if failures and len(failures) == len(answers):
        return None
    return tuple(fact for answer in answers if not isinstance(answer, SourceError) for fact in answer)
