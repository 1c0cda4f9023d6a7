"""The result of dialing, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from portbook.addresses import split_zone
from portbook.dialing import Dial, DialedAddress, Timing
from portbook.probe.outcome import describe
from portbook.probe.tls import Tls
from portbook.render.machine import ENCODER
from portbook.render.text import Style, bold, safe, safe_endpoint

HEADINGS = {"timeout": "did not answer", "name-not-found": "has no address", "error": "could not be dialed"}


def json(dials: Iterable[Dial]) -> Iterator[bytes]:
    """Yield one object for each target, each on a line."""
    return (ENCODER.encode(dial) + b"\n" for dial in dials)


def lines(dial: Dial, style: Style) -> list[str]:
    """A heading for the target, then each address with its outcome, evidence and times."""
    outcome = _outcome(dial)
    heading = f"{safe(dial.target)} {HEADINGS.get(outcome, f'is {outcome}')}"
    if _was_looked_up(dial):
        heading += f" (name looked up in {dial.lookup_ms:.1f} ms)"
    parts = bold([heading], style)
    for answer in dial.addresses:
        parts.append("  " + ", ".join(part for part in _facts(answer) if part))
        parts += [f"    {name:<12}{text}" for name, text in _tls(answer.tls, answer.tls_ms) if text]
    return [*parts, *_timing(dial.timing)]


def _outcome(dial: Dial) -> str:
    if dial.open:
        return "open"
    if not dial.addresses:
        return "name-not-found"
    return dial.addresses[0].outcome


def _was_looked_up(dial: Dial) -> bool:
    return any(answer.address not in (None, split_zone(dial.host)[0]) for answer in dial.addresses)


def _facts(answer: DialedAddress) -> Iterator[str]:
    if answer.address is not None:
        yield f"{safe_endpoint(answer.address, None, answer.zone)} {answer.outcome}"
    yield safe(describe(answer.evidence))
    if answer.connect_ms is not None:
        yield f"{answer.connect_ms:.2f} ms"
    if answer.attempts > 1:
        yield f"{answer.attempts} attempts"


def _tls(tls: Tls | None, tls_ms: float | None) -> Iterator[tuple[str, str]]:
    if tls is None:
        return
    if tls.protocol is None:
        yield "TLS", f"no: {safe(tls.error or '')}"
        return
    parts = [tls.protocol]
    if tls.cipher:
        parts.append(tls.cipher)
    if tls_ms is not None:
        parts.append(f"{tls_ms:.1f} ms")
    yield "TLS", safe(", ".join(parts))
    if tls.trusted:
        yield "trusted", "yes"
    else:
        yield "trusted", f"no: {safe(tls.error or '')}"
    yield "subject", safe(tls.subject or "")
    yield "names", safe(", ".join(tls.names))
    yield "issuer", safe(tls.issuer or "")
    if tls.expires is not None and tls.days_left is not None:
        yield "expires", f"{tls.expires:%Y-%m-%d}, {_distance(tls.days_left)}"


def _distance(days: int) -> str:
    if days < 0:
        return f"{-days} days ago"
    return f"in {days} days"


def _timing(timing: Timing | None) -> list[str]:
    if timing is None:
        return []
    lost = f"{timing.lost} of {timing.count} lost"
    if timing.min_ms is None:
        return [f"  {lost}"]
    return [
        f"  {timing.count} times: min {timing.min_ms:.2f}, median {timing.median_ms:.2f}, "
        f"p95 {timing.p95_ms:.2f}, max {timing.max_ms:.2f} ms; {lost}"
    ]
