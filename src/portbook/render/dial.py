"""The result of dialing, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from portbook.addresses import split_zone
from portbook.dialing import Dial, DialedAddress, Timing
from portbook.escaping import safe
from portbook.numerals import counted
from portbook.probe.outcome import describe
from portbook.probe.tls.records import Certificate, Tls
from portbook.render.machine import ENCODER
from portbook.render.text import Style, bold, safe_endpoint, wrap

HEADINGS = {
    "name-not-found": "has no address",
    "lookup-failed": "could not be looked up",
    "error": "could not be dialed",
}
INDENT = " " * 16  # of the texts about TLS
MOST_NAMES = 12  # of a certificate; --json has them all


def json(dials: Iterable[Dial]) -> Iterator[bytes]:
    """Yield one object for each target, each on a line."""
    return (ENCODER.encode(dial) + b"\n" for dial in dials)


def lines(dial: Dial, style: Style) -> list[str]:
    """A heading for the target, then each address with its outcome, evidence and times."""
    heading = f"{safe(dial.target)} {_heading(dial)}"
    if _was_looked_up(dial):
        heading += f" (name looked up in {dial.lookup_ms:.1f} ms)"
    parts = bold([heading], style)
    for answer in dial.addresses:
        facts = ", ".join(part for part in _facts(answer) if part)
        parts += wrap(facts, style, "  ", INDENT)
        for name, text in _tls(answer.tls, answer.tls_ms):
            if text:
                parts += wrap(text, style, f"    {name:<12}", INDENT)
    return [*parts, *_timing(dial.timing)]


def _heading(dial: Dial) -> str:
    if dial.open:
        return "is open"
    clearest = min(dial.addresses, key=_clarity)
    if clearest.evidence.kind == "silence":
        return "did not answer"
    return HEADINGS.get(clearest.outcome, f"is {clearest.outcome}")


def _clarity(answer: DialedAddress) -> int:
    """Which of several addresses says most: a refusal, then a message, then silence, then what this machine lacks."""
    if answer.outcome == "error":
        return 3
    if answer.evidence.kind == "silence":
        return 2
    return 0 if answer.outcome == "closed" else 1


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
    yield "TLS", safe(", ".join(part for part in (tls.protocol, tls.cipher, _milliseconds(tls_ms)) if part))
    yield "trusted", "yes" if tls.trusted else f"no: {safe(tls.error or '')}"
    if tls.client_certificate is not None:
        yield "client", f"a client certificate is {tls.client_certificate}"
    if not tls.chain:
        yield "certificate", "none"
        return
    yield "subject", safe(tls.subject or "(empty)")
    yield "names", _names(tls.names)
    yield "issuer", safe(tls.issuer or "(empty)")
    yield "expires", describe_expiry(tls.chain[0])
    if tls.first_to_expire:
        issuer = tls.chain[tls.first_to_expire]
        yield "", f"before it, {safe(issuer.subject)}: {describe_expiry(issuer)}"


def _milliseconds(ms: float | None) -> str:
    return "" if ms is None else f"{ms:.1f} ms"


def _names(names: Sequence[str]) -> str:
    """A name with a comma in it must not look like two."""
    shown = [safe(name.replace(",", "\\,")) for name in names[:MOST_NAMES]]
    if len(names) > MOST_NAMES:
        shown.append(f"and {len(names) - MOST_NAMES:,} more")
    return ", ".join(shown)


def describe_expiry(certificate: Certificate) -> str:
    """When a certificate expires, and how far away that is: in days, or in hours when it is less than a day."""
    if certificate.expires is None:
        return "unknown"
    return f"{certificate.expires:%Y-%m-%d}, {_distance(certificate.expires - datetime.now(UTC))}"


def _distance(left: timedelta) -> str:
    ago = left < timedelta(0)
    hours = int(abs(left).total_seconds() / 3600)
    count = counted(hours // 24, "day") if hours >= 24 else counted(hours, "hour")
    if hours == 0:
        count = "less than an hour"
    return f"{count} ago" if ago else f"in {count}"


def _timing(timing: Timing | None) -> list[str]:
    if timing is None:
        return []
    lost = f"{timing.lost} of {timing.count} lost"
    if timing.shortage is not None:
        lost += f", {timing.not_sent} not sent ({safe(describe(timing.shortage))})"
    if timing.min_ms is None:
        return [f"  {lost}"]
    return [
        f"  {timing.count} times: min {timing.min_ms:.2f}, median {timing.median_ms:.2f}, "
        f"p95 {timing.p95_ms:.2f}, max {timing.max_ms:.2f} ms; {lost}"
    ]


# --- checks --------------------------------------------------------------------------------------------------------


def failures(dial: Dial, *, verify: bool, expires_within: int | None) -> Iterator[str]:
    """Yield what is wrong with the TLS of the open addresses of a target, one line each: for stderr."""
    for answer in dial.addresses:
        if answer.tls is None or answer.address is None:
            continue
        place = f"{dial.target} at {safe_endpoint(answer.address, None, answer.zone)}"
        for text in _failures(answer.tls, verify, expires_within):
            yield f"{place}: {text}"


def _failures(tls: Tls, verify: bool, expires_within: int | None) -> Iterator[str]:
    if tls.protocol is None:
        yield f"no TLS: {tls.error}"
        return
    if verify and not tls.trusted:
        yield f"not trusted: {tls.error}"
    if expires_within is None:
        return
    if tls.first_to_expire is None:
        yield "no certificate whose expiry could be read"
        return
    first = tls.chain[tls.first_to_expire]
    if first.expires is not None and first.expires <= datetime.now(UTC) + timedelta(days=expires_within):
        yield f"{first.subject or first.serial} expires {describe_expiry(first)}"
