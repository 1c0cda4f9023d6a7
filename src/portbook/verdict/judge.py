"""From evidence and a real bind to a verdict. Pure.

The bind always wins. Where the rules foresaw something else, that is said, with the error number: a verdict that hides
it would send people the wrong way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from portbook.bind.attempt import Options, Tried
from portbook.records import SCHEMA, Gap, Platform, Protocol
from portbook.resilience import SCARCE
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import SEVERITIES, Finding, Severity
from portbook.verdict.rules import findings as apply_rules
from portbook.verdict.rules.linux import privilege_remedy

SHARED = "both sides let the port be shared"
BESIDE = {"windows": "a more specific address could be bound beside it"}
ALLOWED = "who asks for it by number gets it"
HELD = frozenset(("EADDRINUSE", "EACCES"))  # Windows says WSAEACCES (10013) for an exclusive holder
# Which errors of a bind each code accounts for, in POSIX's spelling.
EXPLAINS: dict[str, frozenset[str]] = {
    "privileged-port": frozenset(("EACCES",)),
    "excluded-range": frozenset(("EACCES",)),
    "address-not-local": frozenset(("EADDRNOTAVAIL", "EINVAL")),  # EINVAL: link-local, and no interface
    "address-tentative": frozenset(("EADDRNOTAVAIL",)),
    "ipv6-disabled": frozenset(("EAFNOSUPPORT", "EADDRNOTAVAIL")),
}
IN_USE = frozenset(("EADDRINUSE",))


class Verdict(Struct, frozen=True):
    """The answer to "can I have this port, and if not, why not?"."""

    schema: int
    platform: Platform
    port: int
    protocol: Protocol
    options: Options
    can_have: bool | None  # None: could not be found out
    free: tuple[str, ...]  # of what was asked: "[::]"
    taken: tuple[str, ...]
    findings: tuple[Finding, ...]  # what blocks comes first
    tried: tuple[Tried, ...]  # the real bind
    foreseen: bool | None = None  # what the findings alone would have said; None: they could not tell
    gaps: tuple[Gap, ...] = ()


def judge(evidence: Evidence, tried: Sequence[Tried]) -> Verdict:
    """Weigh what was found against what a real bind was told."""
    found = list(apply_rules(evidence))
    settled = [_settled(finding, evidence, tried) for finding in found]
    settled += _readings(evidence, tried, settled)
    settled += _unexplained(evidence, found, settled, tried)
    return Verdict(
        SCHEMA,
        evidence.platform,
        evidence.port,
        evidence.protocol,
        evidence.options,
        outcome(tried),
        tuple(str(t.endpoint) for t in tried if t.ok),
        tuple(str(t.endpoint) for t in tried if not t.ok),
        tuple(sorted(settled, key=lambda f: SEVERITIES.index(f.severity))),
        tuple(tried),
        foresee(found),
        evidence.gaps,
    )


def outcome(tried: Sequence[Tried]) -> bool | None:
    """Yes if everything could be had, no if something was refused; else this machine was short of something."""
    if all(t.ok for t in tried):
        return True
    return None if all(t.ok or posix(t) in SCARCE for t in tried) else False


def foresee(findings: Iterable[Finding]) -> bool | None:
    """What the rules say without the bind."""
    blocking = [f.confidence for f in findings if f.severity == "blocks"]
    if not blocking:
        return True
    return False if "certain" in blocking else None


def agrees(verdict: Verdict) -> bool:
    """Whether the bind left nothing unexplained."""
    return all(f.code != "unexplained" for f in verdict.findings)


def posix(tried: Tried) -> str:
    """The error in POSIX's spelling."""
    return (tried.error_name or "").removeprefix("WSA")


def _explains(finding: Finding, tried: Tried, evidence: Evidence) -> bool:
    """Whether a finding is about this endpoint, and about this error."""
    held = HELD if evidence.platform == "windows" else IN_USE
    errors = EXPLAINS.get(finding.code, held)
    concerned = str(tried.endpoint) in (*finding.endpoints, *finding.perhaps)
    return finding.severity == "blocks" and concerned and posix(tried) in errors


def _settled(finding: Finding, evidence: Evidence, tried: Sequence[Tried]) -> Finding:
    """What might have been in the way is now known to be, or not to be."""
    if finding.severity != "blocks":
        return finding
    if finding.perhaps:
        failed = {str(t.endpoint) for t in tried if not t.ok}
        also = tuple(name for name in finding.perhaps if name in failed)
        finding = replace(finding, endpoints=(*finding.endpoints, *also), perhaps=())
    mine = [t for t in tried if str(t.endpoint) in finding.endpoints]
    if mine and all(t.ok for t in mine):
        if finding.confidence == "certain":
            return replace(finding, severity="warns")  # and _unexplained says what is wrong
        beside = BESIDE.get(evidence.platform, SHARED)
        text = f"{finding.text}; not in the way: {ALLOWED if finding.code in EXPLAINS else beside}"
        return replace(finding, severity="warns", text=text, remedy=None, confidence="certain")
    alone = not any(t.ok for t in mine) and any(_explains(finding, t, evidence) for t in mine)
    return replace(finding, confidence="certain") if alone and finding.confidence == "likely" else finding


# --- errors that say more than the tables --------------------------------------------------------------------------


def _readings(evidence: Evidence, tried: Sequence[Tried], found: Sequence[Finding]) -> Iterator[Finding]:
    """What an error number adds."""
    yield from _other_namespace(evidence, tried, found)
    yield from _exclusive(evidence, tried, found)
    yield from _no_family(tried, found)


def _other_namespace(evidence: Evidence, tried: Sequence[Tried], found: Sequence[Finding]) -> Iterator[Finding]:
    """CAP_NET_BIND_SERVICE counts in the user namespace that owns the network (user_namespaces(7))."""
    limit = evidence.privileged_below
    denied = tuple(str(t.endpoint) for t in tried if posix(t) == "EACCES")
    if denied and limit is not None and evidence.port < limit and all(f.code != "privileged-port" for f in found):
        text = (
            f"ports below {limit} need CAP_NET_BIND_SERVICE in the user namespace that owns this network; "
            "the capability that this process has counts in another one"
        )
        facts = {"net.ipv4.ip_unprivileged_port_start": limit, "CAP_NET_BIND_SERVICE": evidence.caller.may_bind_low}
        yield Finding("privileged-port", "blocks", text, privilege_remedy(evidence.port), facts, denied)


def _exclusive(evidence: Evidence, tried: Sequence[Tried], found: Sequence[Finding]) -> Iterator[Finding]:
    """Windows tells an exclusive holder (10013) from an ordinary one (10048)."""
    denied = [t for t in tried if t.error_name == "WSAEACCES"]
    excluded = any(f.code == "excluded-range" for f in found)
    holders = [f for f in found if f.code in ("listener", "udp-socket", "bound-only")]
    if denied and holders and not (excluded or any(f.code == "http-sys" for f in found)):
        number = denied[0].error
        text = f"error {number} instead of 10048: the holder has SO_EXCLUSIVEADDRUSE, or belongs to another user"
        names = tuple(str(t.endpoint) for t in denied)
        yield Finding("exclusive-holder", "blocks", text, None, {"error": number}, names)


def _no_family(tried: Sequence[Tried], found: Sequence[Finding]) -> Iterator[Finding]:
    refused = tuple(str(t.endpoint) for t in tried if posix(t) == "EAFNOSUPPORT")
    if refused and all(f.code != "ipv6-disabled" for f in found):
        text = "this machine does not speak the address family"
        yield Finding("ipv6-disabled", "blocks", text, "use an IPv4 address", {"ipv6": "absent"}, refused)


# --- where they do not agree ---------------------------------------------------------------------------------------

HINTS = {
    "EACCES": "a security module may forbid it: SELinux (semanage port -l), AppArmor, Landlock, seccomp, a BPF program",
    "EPERM": "a security module or a BPF program of the cgroup forbids it",
    "EADDRINUSE": "a holder that is not visible from here: another moment, a kernel service, another pid namespace",
    "EADDRNOTAVAIL": "ip address shows the addresses of this machine",
    "EINVAL": "a link-local address needs its interface: fe80::1%eth0",
    "ENODEV": "there is no such interface: ip link",
}
WINDOWS_HINTS = {
    "EACCES": "an excluded port range: netsh int ipv4 show excludedportrange protocol=tcp (and ipv6, udp)",
    "EADDRINUSE": "netstat -aon, as administrator",
}


def _unexplained(
    evidence: Evidence, found: Sequence[Finding], settled: Sequence[Finding], tried: Sequence[Tried]
) -> Iterator[Finding]:
    for t in tried:
        name = str(t.endpoint)
        if not t.ok and not any(_explains(f, t, evidence) for f in settled):
            hints = WINDOWS_HINTS if evidence.platform == "windows" else HINTS
            text = f"{t.step} of {name} failed with {t.error_name} ({t.error}), and nothing that was found explains it"
            severity: Severity = "warns" if posix(t) in SCARCE else "blocks"
            facts = {"error": t.error, "error_name": t.error_name, "step": t.step}
            yield Finding("unexplained", severity, text, hints.get(posix(t)), facts, (name,))
        sure = [f.code for f in found if f.severity == "blocks" and f.confidence == "certain" and name in f.endpoints]
        if t.ok and sure:
            text = (
                f"the bind of {name} succeeded, although {', '.join(sure)} spoke against it: it may have ended just now"
            )
            yield Finding("unexplained", "warns", text, None, {"error": None, "against": sure}, (name,))
