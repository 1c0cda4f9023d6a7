"""What Windows does with ports: exclusions, http.sys, portproxy.

Sources, learn.microsoft.com: "netsh interface portproxy commands", "netsh http commands", "The default dynamic port
range for TCP/IP has changed in Windows Vista and in Windows Server 2008", "Windows Sockets Error Codes" (WSAEACCES),
"Using SO_REUSEADDR and SO_EXCLUSIVEADDRUSE".
"""

from __future__ import annotations

from collections.abc import Iterator

from portbook.addresses import Endpoint
from portbook.netconfig.facts import SYSTEM_PID, DynamicRange, ExcludedRange, HttpQueue
from portbook.numerals import join_words
from portbook.records import Confidence, Owner
from portbook.verdict import description
from portbook.verdict.findings import Finding
from portbook.verdict.situation import Situation

DYNAMIC_START = 49152  # since Windows Vista; RFC 6335 section 6
MOST_URLS = 4  # in words
FAMILY = {"ipv4": "IPv4", "ipv6": "IPv6"}


def _family(endpoint: Endpoint) -> str:
    return "ipv6" if ":" in endpoint.address else "ipv4"


# --- excluded ranges -----------------------------------------------------------------------------------------------


def excluded(situation: Situation) -> Iterator[Finding]:
    """Ports that no bind gets: it fails with 10013, and no socket is visible."""
    for reservation in situation.excluded:
        names = tuple(str(e) for e in situation.endpoints if _family(e) == reservation.family or e.dual)
        in_range = reservation.start <= situation.port <= reservation.end
        if names and in_range and reservation.protocol == situation.protocol:
            yield _excluded_range(situation, reservation, names)


def _excluded_range(situation: Situation, reservation: ExcludedRange, names: tuple[str, ...]) -> Finding:
    first, last, family, protocol = reservation.start, reservation.end, reservation.family, reservation.protocol
    ports = f"{protocol.upper()} port {first}" if first == last else f"{protocol.upper()} ports {first} to {last}"
    text = f"Windows excludes the {FAMILY[family]} {ports}: {_origin(reservation)}"
    evidence = {
        "first": first,
        "last": last,
        "family": family,
        "protocol": protocol,
        "administered": reservation.administered,
    }
    dynamic_start = _moved_dynamic_start(situation, reservation)
    if dynamic_start is not None:
        evidence["dynamic_start"] = dynamic_start
        text += f"; the dynamic range starts at {dynamic_start}, so such reservations take ports that servers use"
    # An administered range is excluded from automatic choice, and mostly does not block a bind that names the port.
    confidence: Confidence = "likely" if reservation.administered else "certain"
    remedy = _excluded_remedy(situation, reservation, dynamic_start)
    return Finding("excluded-range", "blocks", text, remedy, evidence, names, confidence)


def _origin(reservation: ExcludedRange) -> str:
    if reservation.administered:
        return "an administrator reserved it with netsh"
    if reservation.start == reservation.end:
        return "a service probably reserved it when Windows started"
    return "WinNAT makes such reservations for Hyper-V, WSL and Docker when they start"


def _moved_dynamic_start(situation: Situation, reservation: ExcludedRange) -> int | None:
    """The start of the dynamic range if an administrator moved it down: reservations are taken from this range."""
    if reservation.administered:
        return None
    for dynamic_range in situation.dynamic:
        same_list = (dynamic_range.family, dynamic_range.protocol) == (reservation.family, reservation.protocol)
        if same_list and dynamic_range.start < DYNAMIC_START and dynamic_range.start <= reservation.start:
            return dynamic_range.start
    return None


def _excluded_remedy(situation: Situation, reservation: ExcludedRange, dynamic_start: int | None) -> str:
    netsh = f"netsh int {reservation.family}"
    protocol = reservation.protocol
    if reservation.administered:
        count = reservation.end - reservation.start + 1
        return (
            f"use another port, or as administrator: {netsh} delete excludedportrange protocol={protocol} "
            f"startport={reservation.start} numberofports={count}"
        )
    reserve = f"{netsh} add excludedportrange protocol={protocol} startport={situation.port} numberofports=1"
    text = f"use another port, or as administrator: net stop winnat, then {reserve}, then net start winnat"
    if dynamic_start is not None:
        reset = f"{netsh} set dynamicport {protocol} start={DYNAMIC_START} num=16384"
        text += f"; permanently: {reset}, then restart Windows"
    return text


def dynamic(situation: Situation) -> Iterator[Finding]:
    """The range from which outgoing connections and reservations are taken."""
    families = {_family(endpoint) for endpoint in situation.endpoints}
    for dynamic_range in situation.dynamic:
        concerns = dynamic_range.protocol == situation.protocol and dynamic_range.family in families
        last = dynamic_range.start + dynamic_range.count - 1
        if concerns and dynamic_range.start <= situation.port <= last:
            yield _dynamic_range(situation, dynamic_range, last)


def _dynamic_range(situation: Situation, dynamic_range: DynamicRange, last: int) -> Finding:
    first, family, protocol = dynamic_range.start, dynamic_range.family, situation.protocol
    text = (
        f"{situation.port} is in the dynamic range {first} to {last} ({FAMILY[family]}, {protocol.upper()}): "
        "any outgoing connection may get it"
    )
    remedy = (
        f"use a port outside this range, or reserve it: netsh int ipv4 add excludedportrange protocol={protocol} "
        f"startport={situation.port} numberofports=1 store=persistent"
    )
    return Finding("ephemeral-port", "warns", text, remedy, {"first": first, "last": last, "family": family})


# --- http.sys and portproxy ----------------------------------------------------------------------------------------


def http(situation: Situation) -> Iterator[Finding]:
    """http.sys listens in the kernel, as pid 4, for processes that have registered a URL."""
    if situation.protocol != "tcp":
        return
    names = tuple(map(str, situation.endpoints))
    has_queue = False
    for queue in situation.queues:
        urls = _urls(queue, situation.port)
        if urls:
            has_queue = True
            yield _request_queue(situation, queue, urls, names)
    kernel = [s for s in situation.sockets if s.protocol == "tcp" and any(o.pid == SYSTEM_PID for o in s.owners)]
    if kernel and not has_queue:
        text = (
            f"System (pid {SYSTEM_PID}) listens on {description.format_locals(kernel)}: "
            "http.sys for a service such as IIS or WinRM, or a kernel driver"
        )
        remedy = "to see the process and its URL, as administrator: netsh http show servicestate view=requestq"
        yield Finding("http-sys", "blocks", text, remedy, description.as_dict(situation, kernel), names, "likely")


def _request_queue(situation: Situation, queue: HttpQueue, urls: tuple[str, ...], names: tuple[str, ...]) -> Finding:
    owners = [situation.queue_owners.get(pid, Owner(pid)) for pid in queue.pids]
    servers = [f"{owner.name or 'process'} (pid {owner.pid})" for owner in owners]
    who = join_words(servers) or "an unknown process"
    text = f"http.sys (pid {SYSTEM_PID}) listens for {who} on {', '.join(urls[:MOST_URLS])}"
    if queue.name:
        text += f" (request queue {queue.name})"
    services = [owner.service for owner in owners if owner.service]
    remedy = f"Stop-Service {services[0]}" if services else "stop the service of that process"
    remedy += "; netsh http show servicestate lists the request queues"
    evidence = {"queue": queue.name, "urls": list(urls), "pids": list(queue.pids), "services": services}
    return Finding("http-sys", "blocks", text, remedy, evidence, names)


def _urls(queue: HttpQueue, port: int) -> tuple[str, ...]:
    """The URLs of a queue that have this port."""
    from portbook.netconfig.windows.httpsys import url_prefix  # rules of all systems are imported: this one rarely runs

    urls: list[str] = []
    for url in queue.urls:
        prefix = url_prefix(url)
        if prefix is not None and prefix.port == port:
            urls.append(url)
    return tuple(urls)


def proxies(situation: Situation) -> Iterator[Finding]:
    """Ports that the service iphlpsvc listens on for netsh portproxy, which forwards TCP only."""
    if situation.protocol != "tcp":
        return
    for proxy in situation.proxies:
        if proxy.listen_port == situation.port:
            listen = f"{proxy.listen_address}:{proxy.listen_port}"
            target = f"{proxy.connect_address}:{proxy.connect_port}"
            text = f"netsh portproxy ({proxy.kind}) forwards {listen} to {target} through the service iphlpsvc"
            remedy = (
                f"as administrator: netsh interface portproxy delete {proxy.kind} listenport={proxy.listen_port} "
                f"listenaddress={proxy.listen_address}"
            )
            evidence = {"kind": proxy.kind, "listen": listen, "connect": target}
            yield Finding("portproxy", "shadows", text, remedy, evidence)
