"""All that Windows reserves, read at once: the commands of netsh run at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from portbook.errors import SourceError
from portbook.netconfig.facts import DynamicRange, ExcludedRange, HttpQueue, PortProxy
from portbook.netconfig.windows import httpsys, netsh, portproxy
from portbook.netconfig.windows.netsh import Fact
from portbook.records import FAMILIES, PROTOCOLS, Family, Gap, Protocol


class Reservations(NamedTuple):
    """What Windows reserves. None: this could not be read, which is not the same as that there is nothing."""

    excluded: tuple[ExcludedRange, ...] | None
    dynamic: tuple[DynamicRange, ...] | None
    proxies: tuple[PortProxy, ...] | None
    queues: tuple[HttpQueue, ...] | None
    gaps: tuple[Gap, ...]


def take(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES, *, queues: bool = True
) -> Reservations:
    """Read what concerns these protocols and families; what cannot be read is a gap.

    :param queues: read the request queues of http.sys too, which matter for ports that pid 4 holds
    :raises SourceMissing: this is not Windows
    """
    protocols = tuple(protocols)
    families = tuple(families)
    excluded = netsh.excluded_commands(protocols, families)
    dynamic = netsh.dynamic_commands(protocols, families)
    commands: list[netsh.NetshCommand[Any]] = [*excluded, *dynamic]
    proxies: netsh.Results[PortProxy] = []
    if "tcp" in protocols:
        proxies = _proxies()
        if queues:
            commands.append(httpsys.SHOW_QUEUES)
    results = netsh.run_commands(commands)
    at_dynamic = len(excluded)
    at_queues = at_dynamic + len(dynamic)
    gaps: list[Gap] = []
    return Reservations(
        _facts(results[:at_dynamic], gaps),
        _facts(results[at_dynamic:at_queues], gaps),
        _facts(proxies, gaps),
        _facts(results[at_queues:], gaps),
        tuple(gaps),
    )


def _proxies() -> netsh.Results[PortProxy]:
    try:
        return portproxy.take()
    except SourceError as error:
        return [error]


def _facts(results: netsh.Results[Fact], gaps: list[Gap]) -> tuple[Fact, ...] | None:
    """The facts of all results; a gap for each error; None if there are only errors."""
    facts: list[Fact] = []
    errors: list[SourceError] = []
    for result in results:
        if isinstance(result, SourceError):
            errors.append(result)
        else:
            facts += result
    gaps += [Gap("reservation", None, error.args[0], error.hint) for error in errors]
    if errors and len(errors) == len(results):
        return None
    return tuple(facts)
