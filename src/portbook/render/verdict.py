"""Whether a port can be bound, and what blocks the bind, in words and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from portbook.bind.attempt import BindAttempt
from portbook.escaping import safe
from portbook.render.machine import ENCODER
from portbook.render.text import DIM, RED, YELLOW, Style, bold, paint, wrap
from portbook.verdict.findings import Finding, Severity
from portbook.verdict.judge import Verdict

INDENT = 11  # the width of the column of severities
COLOURS: dict[Severity, str] = {"blocks": RED, "shadows": YELLOW, "warns": DIM}
# What an error of a bind means, by its name; of any other the name is shown.
MEANINGS = {
    "EADDRINUSE": "is in use",
    "WSAEADDRINUSE": "is in use",
    "EACCES": "cannot be bound (permission denied)",
    "WSAEACCES": "cannot be bound (access denied)",
    "EPERM": "cannot be bound (operation not permitted)",
    "EADDRNOTAVAIL": "cannot be bound (address not available)",
    "WSAEADDRNOTAVAIL": "cannot be bound (address not available)",
    "EAFNOSUPPORT": "cannot be bound (no IPv6)",
    "WSAEAFNOSUPPORT": "cannot be bound (no IPv6)",
    "EINVAL": "cannot be bound (invalid address)",
    "ENODEV": "cannot be bound (no such interface)",
    "ENXIO": "cannot be bound (no such interface)",
}


def json(verdict: Verdict) -> bytes:
    """One object, on one line."""
    return ENCODER.encode(verdict) + b"\n"


def lines(verdict: Verdict, style: Style) -> list[str]:
    """The answer, then each finding with its remedy, then the result of the real bind."""
    heading = safe(_heading(verdict))  # it contains names of interfaces
    parts = bold(_wrapped(heading, style, 0), style)
    for finding in verdict.findings:
        parts += ["", *_finding(finding, style)]
    return [*parts, "", *_attempts(verdict, style)]


def _heading(verdict: Verdict) -> str:
    port = f"port {verdict.port}/{verdict.protocol}"
    states = ", ".join(_states(verdict))
    if verdict.can_have is None:
        return f"cannot tell whether you can have {port}: {states}"
    if verdict.can_have:
        return f"you can have {port}: {states}"
    return f"you cannot have {port}: {states}"


def _states(verdict: Verdict) -> Iterator[str]:
    """``0.0.0.0:80 is in use``, ``[::]:80 is free``; endpoints with the same state together, free ones last."""
    endpoints_by_state: dict[str, list[str]] = {}
    for attempt in sorted(verdict.tried, key=lambda attempt: attempt.ok):
        endpoints_by_state.setdefault(_state(attempt), []).append(_format_place(attempt, verdict))
    for state, places in endpoints_by_state.items():
        if len(places) > 1 and state.startswith("is "):
            yield f"{' and '.join(places)} are {state.removeprefix('is ')}"
        else:
            yield f"{' and '.join(places)} {state}"


def _state(attempt: BindAttempt) -> str:
    if attempt.ok:
        return "is free"
    return MEANINGS.get(attempt.error_name or "", f"cannot be bound ({attempt.error_name})")


def _format_place(attempt: BindAttempt, verdict: Verdict) -> str:
    return f"{attempt.endpoint}:{verdict.port}"


def _finding(finding: Finding, style: Style) -> Iterator[str]:
    word = f"  {finding.severity:<{INDENT - 2}}"
    title: str = finding.code
    if finding.endpoints:
        title += f" for {safe(' and '.join(finding.endpoints))}"
    if finding.confidence == "likely":
        title += ", likely"
    first, *others = _wrapped(title, style)
    yield paint(word, COLOURS[finding.severity], style) + first[INDENT:]
    yield from others
    yield from _wrapped(safe(finding.text), style)
    if finding.remedy:
        yield from _wrapped(f"remedy: {safe(finding.remedy)}", style)


def _wrapped(text: str, style: Style, columns: int = INDENT) -> list[str]:
    """Indent and wrap a text, at spaces only: people copy commands, which may be longer than a line."""
    text = safe(text)
    indent = " " * columns
    return wrap(text, style, indent, indent)


def _attempts(verdict: Verdict, style: Style) -> Iterator[str]:
    options = " and ".join(_option_names(verdict))
    label = "tried"
    for attempt in verdict.tried:
        text = _format_place(attempt, verdict)
        if attempt.endpoint.dual:
            text += " (IPv6 and IPv4)"
        if options:
            text += f" with {options}"
        text += f": {_result(attempt, verdict)}"
        first, *others = _wrapped(safe(text), style)
        yield f"  {label:<{INDENT - 2}}{first[INDENT:]}"
        yield from others
        label = ""


def _option_names(verdict: Verdict) -> Iterator[str]:
    """The socket options of the bind, as portbook.bind.attempt sets them."""
    options = verdict.options
    windows = verdict.platform == "windows"
    reuses = options.reuse_address
    if reuses is None:
        reuses = verdict.protocol == "tcp" and not windows
    if reuses:
        yield "SO_REUSEADDR"
    elif windows:
        yield "SO_EXCLUSIVEADDRUSE"
    if options.reuse_port and not windows:
        yield "SO_REUSEPORT"


def _result(attempt: BindAttempt, verdict: Verdict) -> str:
    if not attempt.ok:
        return f"{attempt.step}() failed with {attempt.error_name} ({attempt.error})"
    if verdict.protocol == "tcp" and verdict.options.listens:
        return "bind() and listen() succeeded"
    return "bind() succeeded"
