"""What Windows reserves, one kind at a time, where the first error is raised: tests want one answer or one error."""

from __future__ import annotations

from collections.abc import Iterable

from portbook.errors import SourceError
from portbook.netconfig.facts import DynamicRange, ExcludedRange, HttpQueue, PortProxy
from portbook.netconfig.windows import httpsys, netsh, portproxy
from portbook.netconfig.windows.netsh import Fact
from portbook.records import FAMILIES, PROTOCOLS, Family, Protocol


def complete(results: netsh.Results[Fact]) -> tuple[Fact, ...]:
    facts: list[Fact] = []
    for result in results:
        if isinstance(result, SourceError):
            raise result
        facts += result
    return tuple(facts)


def excluded_ranges(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES
) -> tuple[ExcludedRange, ...]:
    return complete(netsh.run_commands(netsh.excluded_commands(protocols, families)))


def dynamic_ranges(
    protocols: Iterable[Protocol] = PROTOCOLS, families: Iterable[Family] = FAMILIES
) -> tuple[DynamicRange, ...]:
    return complete(netsh.run_commands(netsh.dynamic_commands(protocols, families)))


def http_queues() -> tuple[HttpQueue, ...]:
    return complete(netsh.run_commands([httpsys.SHOW_QUEUES]))


def port_proxies() -> tuple[PortProxy, ...]:
    return complete(portproxy.take())
