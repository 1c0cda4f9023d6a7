"""What Windows does with ports: exclusions, http.sys, portproxy.

Sources, learn.microsoft.com: "netsh interface portproxy commands", "netsh http commands", "The default dynamic port
range for TCP/IP has changed in Windows Vista and in Windows Server 2008", "Windows Sockets Error Codes" (WSAEACCES),
"Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE".
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.netconfig.facts import ExcludedRange, HttpQueue
from portbook.netconfig.windows.httpsys import SYSTEM_PID, url_prefix
from portbook.records import Confidence, Owner
from portbook.verdict import naming
from portbook.verdict.evidence import Evidence
from portbook.verdict.findings import Finding

DYNAMIC_START = 49152  # since Windows Vista; RFC 6335 section 6


def excluded(evidence: Evidence) -> Iterator[Finding]:
    """Ports that Windows gives to nobody who asks for them: 10013, and no socket to be seen."""
    for found in evidence.excluded:
        names = tuple(str(e) for e in evidence.endpoints if _family(e.address) == found.family or e.dual)
        if found.protocol == evidence.protocol and found.start <= evidence.port <= found.end and names:
            text = f"Windows excludes {found.start} to {found.end} ({found.family}, {found.protocol}), {_why(found)}"
            cause = _cause(evidence, found)
            facts = {"first": found.start, "last": found.end, "family": found.family, "protocol": found.protocol}
            facts |= {"administered": found.administered, **({"dynamic_start": cause} if cause else {})}
            if cause:
                text += f"; the dynamic range begins at {cause}, so that such reservations land among ordinary ports"
            # An administered one keeps automatic choice away, and mostly lets a server have what it asks for.
            sure: Confidence = "likely" if found.administered else "certain"
            yield Finding("excluded-range", "blocks", text, _remedy(evidence, found, cause), facts, names, sure)


def _family(address: str) -> str:
    return "ipv6" if ":" in address else "ipv4"


def _why(found: ExcludedRange) -> str:
    if found.administered:
        return "administered: somebody has reserved it with netsh"
    if found.start == found.end:
        return "a single port, as services that start with Windows register theirs"
    return "as Hyper-V, WSL and Docker do through WinNAT when they start"


def _cause(evidence: Evidence, found: ExcludedRange) -> int | None:
    """The start of the dynamic range if somebody has moved it down: reservations are taken from there."""
    if found.administered:
        return None
    starts = [d.start for d in evidence.dynamic if (d.family, d.protocol) == (found.family, found.protocol)]
    return next((start for start in starts if start < DYNAMIC_START and start <= found.start), None)


def _remedy(evidence: Evidence, found: ExcludedRange, cause: int | None) -> str:
    ip = f"netsh int {found.family}"
    if found.administered:
        count = found.end - found.start + 1
        return (
            f"take another port, or as administrator: {ip} delete excludedportrange protocol={found.protocol} "
            f"startport={found.start} numberofports={count}"
        )
    keep = f"{ip} add excludedportrange protocol={found.protocol} startport={evidence.port} numberofports=1"
    text = f"take another port, or as administrator: net stop winnat, then {keep}, then net start winnat"
    if cause:
        text += (
            f"; for good: {ip} set dynamicport {found.protocol} start={DYNAMIC_START} num=16384, and restart Windows"
        )
    return text


def http(evidence: Evidence) -> Iterator[Finding]:
    """http.sys listens in the kernel, as pid 4, for processes that have registered a URL."""
    queues = [(q, urls) for q in evidence.queues if (urls := _urls(q, evidence.port))]
    kernel = [s for s in evidence.sockets if any(o.pid == SYSTEM_PID for o in s.owners) and s.protocol == "tcp"]
    if evidence.protocol != "tcp" or not (queues or kernel):
        return
    names = tuple(map(str, evidence.endpoints))
    yield from (_queue(evidence, queue, urls, names) for queue, urls in queues)
    if not queues:
        text = f"pid {SYSTEM_PID} (System) listens: http.sys for a service, IIS or WinRM among them, or a kernel driver"
        remedy = "netsh http show servicestate view=requestq, as administrator, names the process and its URL"
        yield Finding("http-sys", "blocks", text, remedy, naming.told(evidence, kernel), names, "likely")


def _queue(evidence: Evidence, queue: HttpQueue, urls: tuple[str, ...], names: tuple[str, ...]) -> Finding:
    known = [evidence.behind.get(pid, Owner(pid)) for pid in queue.pids]
    who = ", ".join(f"{o.name or 'process'} (pid {o.pid})" for o in known) or "a process that is not told"
    label = f", of the queue {queue.name}" if queue.name else ""
    text = f"http.sys (pid {SYSTEM_PID}) listens for {who} on {', '.join(urls[:4])}{label}"
    services = [o.service for o in known if o.service]
    remedy = f"Stop-Service {services[0]}" if services else "stop the service of that process"
    facts = {"queue": queue.name, "urls": list(urls), "pids": list(queue.pids), "services": services}
    return Finding("http-sys", "blocks", text, f"{remedy}; netsh http show servicestate lists it", facts, names)


def _urls(queue: HttpQueue, port: int) -> tuple[str, ...]:
    return tuple(url for url in queue.urls if (prefix := url_prefix(url)) is not None and prefix.port == port)


def proxies(evidence: Evidence) -> Iterator[Finding]:
    """Ports that iphlpsvc listens on for netsh's portproxy; it relays TCP only."""
    for found in evidence.proxies:
        if found.listen_port == evidence.port and evidence.protocol == "tcp":
            listens = f"{found.listen_address}:{found.listen_port}"
            target = f"{found.connect_address}:{found.connect_port}"
            text = f"portproxy ({found.kind}) relays {listens} to {target}; the service iphlpsvc holds the port for it"
            remedy = (
                f"netsh interface portproxy delete {found.kind} listenport={found.listen_port} "
                f"listenaddress={found.listen_address}, as administrator"
            )
            facts = {"kind": found.kind, "listen": listens, "connect": target}
            yield Finding("portproxy", "shadows", text, remedy, facts)


def _reserve(evidence: Evidence) -> str:
    return (
        f"take a port outside of it, or reserve it: netsh int ipv4 add excludedportrange protocol={evidence.protocol} "
        f"startport={evidence.port} numberofports=1 store=persistent"
    )


def dynamic(evidence: Evidence) -> Iterator[Finding]:
    """The range from which outgoing connections and reservations are taken."""
    for found in evidence.dynamic:
        last = found.start + found.count - 1
        mine = found.protocol == evidence.protocol and any(
            _family(e.address) == found.family for e in evidence.endpoints
        )
        if mine and found.start <= evidence.port <= last:
            text = (
                f"{evidence.port} lies in {found.start} to {last}, the dynamic range of {found.family} {found.protocol}"
            )
            facts = {"first": found.start, "last": last, "family": found.family}
            yield Finding("ephemeral-port", "warns", text, _reserve(evidence), facts)
