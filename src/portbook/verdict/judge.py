"""From a situation and a real bind to a verdict. Pure.

The bind is always right. Where the rules predicted something else, the verdict reports it with the error number:
hiding it would mislead.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from msgspec import Struct
from msgspec.structs import replace

from portbook.bind.attempt import BindAttempt, Options
from portbook.records import SCHEMA, Gap, Platform, Protocol
from portbook.resilience import SCARCE
from portbook.verdict.findings import SEVERITIES, Finding, FindingCode, Severity
from portbook.verdict.rules import apply_rules
from portbook.verdict.rules.linux import privilege_remedy
from portbook.verdict.situation import Situation

# Which errors of a bind each code explains, by their POSIX names.
EXPLAINS: dict[FindingCode, frozenset[str]] = {
    "privileged-port": frozenset(("EACCES",)),
    "excluded-range": frozenset(("EACCES",)),
    "address-not-local": frozenset(("EADDRNOTAVAIL", "EINVAL")),  # EINVAL: link-local, and no interface
    "not-unicast": frozenset(("EINVAL",)),
    "address-tentative": frozenset(("EADDRNOTAVAIL",)),
    "ipv6-disabled": frozenset(("EAFNOSUPPORT", "EADDRNOTAVAIL")),
}
IN_USE = frozenset(("EADDRINUSE",))  # explained by every other code
IN_USE_ON_WINDOWS = frozenset(("EADDRINUSE", "EACCES"))  # WSAEACCES (10013): an exclusive holder
HOLDERS = frozenset(("listener", "udp-socket", "bound-only"))

# Why a bind succeeded beside something that might have blocked it.
BOTH_SHARE = "both sockets allow sharing"
SPECIFIC_ADDRESS = "Windows lets a more specific address bind beside it"
EXPLICIT_BIND = "a bind that names the port is allowed"


class Verdict(Struct, frozen=True):
    """Whether a server can bind the port, and the findings that explain why not."""

    schema: int
    platform: Platform
    port: int
    protocol: Protocol
    options: Options
    can_have: bool | None  # None: could not be determined
    free: tuple[str, ...]  # requested endpoints that were bound: "[::]"
    taken: tuple[str, ...]  # requested endpoints that were not
    findings: tuple[Finding, ...]  # those that block come first
    tried: tuple[BindAttempt, ...]  # the real bind
    foreseen: bool | None = None  # what the rules predict without the bind; None: they cannot
    gaps: tuple[Gap, ...] = ()


def judge(situation: Situation, attempts: Sequence[BindAttempt]) -> Verdict:
    """Combine what the rules find with the result of the real bind."""
    predicted = list(apply_rules(situation))
    findings = [_settle(finding, situation, attempts) for finding in predicted]
    findings += _from_errors(situation, attempts, findings)
    findings += _unexplained(situation, attempts, predicted, findings)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Verdict(
        SCHEMA,
        situation.platform,
        situation.port,
        situation.protocol,
        situation.options,
        can_have=bound_all(attempts),
        free=tuple(str(attempt.endpoint) for attempt in attempts if attempt.ok),
        taken=tuple(str(attempt.endpoint) for attempt in attempts if not attempt.ok),
        findings=tuple(findings),
        tried=tuple(attempts),
        foreseen=predict(predicted),
        gaps=situation.gaps,
    )


def bound_all(attempts: Sequence[BindAttempt]) -> bool | None:
    """Whether every bind succeeded; None if this machine only lacked descriptors or memory."""
    failed = [attempt for attempt in attempts if not attempt.ok]
    if not failed:
        return True
    if all(attempt.posix_error in SCARCE for attempt in failed):
        return None
    return False


def predict(findings: Iterable[Finding]) -> bool | None:
    """Whether the bind should succeed according to the rules; None if they do not decide it."""
    blocking = [finding.confidence for finding in findings if finding.severity == "blocks"]
    if not blocking:
        return True
    if "certain" in blocking:
        return False
    return None


def is_explained(verdict: Verdict) -> bool:
    """Whether the bind left nothing unexplained."""
    return all(finding.code != "unexplained" for finding in verdict.findings)


def _explains(finding: Finding, attempt: BindAttempt, situation: Situation) -> bool:
    """Whether a finding explains the error of this attempt."""
    if finding.severity != "blocks":
        return False
    if str(attempt.endpoint) not in (*finding.endpoints, *finding.perhaps):
        return False
    in_use = IN_USE_ON_WINDOWS if situation.platform == "windows" else IN_USE
    return attempt.posix_error in EXPLAINS.get(finding.code, in_use)


# --- what the bind decides about a finding -------------------------------------------------------------------------


def _settle(finding: Finding, situation: Situation, attempts: Sequence[BindAttempt]) -> Finding:
    """Replace what a finding could only suppose by what the bind has shown."""
    if finding.severity != "blocks":
        return finding
    finding = _settle_endpoints(finding, attempts)
    concerned = [attempt for attempt in attempts if str(attempt.endpoint) in finding.endpoints]
    succeeded = [attempt for attempt in concerned if attempt.ok]
    if concerned and len(succeeded) == len(concerned):
        return _not_blocking(finding, situation)
    if finding.confidence == "certain" or succeeded:
        return finding
    if any(_explains(finding, attempt, situation) for attempt in concerned):
        return replace(finding, confidence="certain")
    return finding


def _settle_endpoints(finding: Finding, attempts: Sequence[BindAttempt]) -> Finding:
    """Count those of the supposed endpoints as concerned that could not be bound."""
    if not finding.perhaps:
        return finding
    failed = {str(attempt.endpoint) for attempt in attempts if not attempt.ok}
    confirmed = tuple(name for name in finding.perhaps if name in failed)
    return replace(finding, endpoints=(*finding.endpoints, *confirmed), perhaps=())


def _not_blocking(finding: Finding, situation: Situation) -> Finding:
    """The finding of a bind that succeeded nevertheless."""
    if finding.confidence == "certain":
        return replace(finding, severity="warns")  # _unexplained reports the contradiction
    if finding.code in EXPLAINS:
        reason = EXPLICIT_BIND
    elif situation.platform == "windows":
        reason = SPECIFIC_ADDRESS
    else:
        reason = BOTH_SHARE
    text = f"{finding.text}; this does not block the bind: {reason}"
    return replace(finding, severity="warns", text=text, remedy=None, confidence="certain")


# --- errors that show more than the tables -------------------------------------------------------------------------


def _from_errors(
    situation: Situation, attempts: Sequence[BindAttempt], findings: Sequence[Finding]
) -> Iterator[Finding]:
    """What the error numbers of the bind add."""
    codes = {finding.code for finding in findings}
    yield from _other_user_namespace(situation, attempts, codes)
    yield from _exclusive_holder(attempts, codes)
    yield from _no_address_family(attempts, codes)


def _other_user_namespace(
    situation: Situation, attempts: Sequence[BindAttempt], codes: set[FindingCode]
) -> Iterator[Finding]:
    """CAP_NET_BIND_SERVICE counts in the user namespace that owns the network namespace (user_namespaces(7))."""
    denied = tuple(str(attempt.endpoint) for attempt in attempts if attempt.posix_error == "EACCES")
    limit = situation.privileged_below
    is_privileged = limit is not None and situation.port < limit
    if not denied or not is_privileged or "privileged-port" in codes:
        return
    text = (
        f"ports below {limit} need CAP_NET_BIND_SERVICE in the user namespace that owns this network namespace; "
        "this process has the capability in another user namespace"
    )
    may_bind_low = situation.caller.may_bind_low
    evidence = {"net.ipv4.ip_unprivileged_port_start": limit, "CAP_NET_BIND_SERVICE": may_bind_low}
    yield Finding("privileged-port", "blocks", text, privilege_remedy(situation), evidence, denied)


def _exclusive_holder(attempts: Sequence[BindAttempt], codes: set[FindingCode]) -> Iterator[Finding]:
    """Windows distinguishes an exclusive holder (10013) from an ordinary one (10048)."""
    denied = [attempt for attempt in attempts if attempt.error_name == "WSAEACCES"]
    if not denied or not codes & HOLDERS or codes & {"excluded-range", "http-sys"}:
        return
    number = denied[0].error
    text = (
        f"the error is {number} (WSAEACCES) and not 10048 (WSAEADDRINUSE): the holder has set SO_EXCLUSIVEADDRUSE or "
        "belongs to another user"
    )
    names = tuple(str(attempt.endpoint) for attempt in denied)
    yield Finding("exclusive-holder", "blocks", text, None, {"error": number}, names)


def _no_address_family(attempts: Sequence[BindAttempt], codes: set[FindingCode]) -> Iterator[Finding]:
    """A family that the kernel does not have."""
    names = tuple(str(attempt.endpoint) for attempt in attempts if attempt.posix_error == "EAFNOSUPPORT")
    if names and "ipv6-disabled" not in codes:
        text = "the kernel of this machine has no IPv6"
        yield Finding("ipv6-disabled", "blocks", text, "use an IPv4 address", {"ipv6": "absent"}, names)


# --- where the bind and the findings do not agree ------------------------------------------------------------------

# What to look at, by the POSIX name of the error; what is not the same everywhere, by system.
HINTS = {
    "EMFILE": "raise this process's limit on open files (ulimit -n), or close some",
    "ENFILE": "this machine has no open file left: raise its limit, or end what holds many",
    "ENOMEM": "this machine has no memory left for sockets",
    "ENOBUFS": "this machine has no memory left for sockets",
}
HINTS_BY_SYSTEM: dict[Platform, dict[str, str]] = {
    "linux": {
        "EACCES": "check security modules: SELinux (semanage port -l), AppArmor, Landlock, seccomp, "
        "cgroup BPF programs",
        "EPERM": "check security modules and BPF programs of the cgroup",
        "EADDRINUSE": "the holder may have just ended, be a kernel service, or run in another PID namespace",
        "EADDRNOTAVAIL": "ip address shows the addresses of this machine",
        "ENODEV": "the interface does not exist: ip link lists the interfaces",
    },
    "windows": {
        "EACCES": "check excluded port ranges: netsh int ipv4 show excludedportrange protocol=tcp (also ipv6, udp)",
        "EADDRINUSE": "as administrator: netstat -aon",
        "EADDRNOTAVAIL": "ipconfig shows the addresses of this machine",
    },
    "macos": {
        "EACCES": "a port below 1024 needs root on a single address",
        "EADDRINUSE": "the holder may have just ended, or belong to another user: sudo portbook why shows it",
        "EADDRNOTAVAIL": "ifconfig shows the addresses of this machine",
        "ENXIO": "the interface does not exist: ifconfig lists the interfaces",
    },
}


def _unexplained(
    situation: Situation, attempts: Sequence[BindAttempt], predicted: Sequence[Finding], findings: Sequence[Finding]
) -> Iterator[Finding]:
    for attempt in attempts:
        if attempt.ok:
            yield from _unexpected_success(attempt, predicted)
        elif not any(_explains(finding, attempt, situation) for finding in findings):
            yield _unexplained_error(situation, attempt)


def _unexplained_error(situation: Situation, attempt: BindAttempt) -> Finding:
    name = str(attempt.endpoint)
    text = f"{attempt.step}() on {name} failed with {attempt.error_name} ({attempt.error}), and no finding explains it"
    severity: Severity = "warns" if attempt.posix_error in SCARCE else "blocks"
    hints = HINTS_BY_SYSTEM[situation.platform] | HINTS
    evidence = {"error": attempt.error, "error_name": attempt.error_name, "step": attempt.step}
    return Finding("unexplained", severity, text, hints.get(attempt.posix_error), evidence, (name,))


def _unexpected_success(attempt: BindAttempt, predicted: Sequence[Finding]) -> Iterator[Finding]:
    name = str(attempt.endpoint)
    against = [
        finding.code
        for finding in predicted
        if finding.severity == "blocks" and finding.confidence == "certain" and name in finding.endpoints
    ]
    if against:
        text = f"the bind of {name} succeeded despite the finding {', '.join(against)}, which may have just ended"
        yield Finding("unexplained", "warns", text, None, {"error": None, "against": against}, (name,))
