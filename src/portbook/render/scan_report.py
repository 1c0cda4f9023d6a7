"""The report of a scan for people: the summary below the answers, and what limits how far they can be trusted."""

from __future__ import annotations

from portbook.numerals import counted
from portbook.render.scan import ORDER
from portbook.scanner.report import Report, SelfCheck

MOST_EVENTS = 5  # in the notes
MOST_HOSTS = 3  # that are named in one note
WHY_PARTIAL = {"cancelled": "interrupted", "deadline": "the time was up"}


def summary(report: Report) -> list[str]:
    """What was done, what was not, and the result of the self-check."""
    counts = ", ".join(f"{report.outcomes[outcome]:,} {outcome}" for outcome in ORDER if outcome in report.outcomes)
    scanned = f"{counted(report.ports, 'port')} of {counted(report.addresses, 'address', 'addresses')}"
    rate = ""
    if report.rate and report.elapsed_s >= 0.001:
        rate = f" ({report.rate:,.0f} a second)"
    lines = [*partial(report), f"{counts or 'no answer'}: {scanned} in {_duration(report.elapsed_s)}{rate}"]
    if report.addresses > 1:
        lines.append(f"{report.hosts_answered:,} of {report.addresses:,} hosts answered")
    if report.silent or report.repeated:
        lines.append(f"{report.silent:,} silent, {counted(report.repeated, 'attempt')} repeated")
    if report.self_check is not None:
        lines.append(_self_check(report.self_check))
    return lines


def partial(report: Report) -> list[str]:
    """Why not every port was probed; empty when all were."""
    ports = counted(report.skipped, "port")
    if report.partial is None and report.skipped:
        return [f"{ports} not probed"]
    if report.partial is None:
        return []
    line = f"partial: {WHY_PARTIAL[report.partial]}"
    if report.skipped:
        line += f"; {ports} left"
    return [line]


def notes(report: Report) -> list[str]:
    """What makes the answers less than expected: ports that were missed, hosts that were given up, other events."""
    lines = []
    if report.self_check is not None and report.self_check.missed:
        lines.append(f"missed on this machine itself: {', '.join(report.self_check.missed)}")
    lines += _silent_hosts(report)
    lines += _all_open(report)
    others = [event for event in report.events if event.kind != "breaker"]
    lines += map(str, others[:MOST_EVENTS])
    if len(others) > MOST_EVENTS:
        lines.append(f"and {counted(len(others) - MOST_EVENTS, 'event')} more; --json has them")
    return lines


def _silent_hosts(report: Report) -> list[str]:
    """How many hosts had fewer probes because they were silent to the end."""
    last_change = {event.address: event.text for event in report.events if event.kind == "breaker"}
    silent = [address for address, text in last_change.items() if " to closed:" not in text]
    if not silent:
        return []
    line = f"probed less, because no answer came: {counted(len(silent), 'address', 'addresses')}"
    if report.skipped and report.partial is None:
        line += "; --no-breaker probes all their ports"
    return [line]


def _all_open(report: Report) -> list[str]:
    """A warning that open ports may say nothing about services."""
    if not report.all_open:
        return []
    hosts = ", ".join(report.all_open[:MOST_HOSTS])
    if len(report.all_open) > MOST_HOSTS:
        hosts += f" and {len(report.all_open) - MOST_HOSTS} more"
    return [
        f"every port is open at {hosts}: a firewall or proxy in front may accept for the host (SYN cookies, SYN proxy);"
        " --banner shows where a service answers"
    ]


def _self_check(check: SelfCheck) -> str:
    found = f"{check.canaries - check.canaries_missed} of {counted(check.canaries, 'canary', 'canaries')}"
    if check.known and check.known_missed is not None:
        found += f", {check.known - check.known_missed} of {counted(check.known, 'listening port')}"
    return f"self-check: found {found}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    from portbook.render.holding import format_age

    return format_age(seconds)
