"""Linux: everything the rules may look at, read within bounds; what cannot be read is a gap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from portbook.addresses import Endpoint, unmapped
from portbook.netconfig import ephemeral
from portbook.netconfig.facts import Caller, Link, LocalAddress, NatRule, Publication
from portbook.netconfig.linux import sysctl
from portbook.records import Gap, Socket
from portbook.verdict import occupants
from portbook.verdict.evidence import Asked, Evidence

WILDCARDS = frozenset(("0.0.0.0", "::"))  # noqa: S104  compared


def gather(asked: Asked) -> Evidence:
    """Fill the evidence. A free port costs one question about its sockets and a handful of small files."""
    found = occupants.evidence(asked)
    sockets, gaps = found.sockets, list(found.gaps)
    caller = sysctl.read_caller()
    settings = sysctl.parse(sysctl.read())
    automatic = ephemeral.take()
    specific = [e for e in asked.endpoints if e.address not in WILDCARDS]
    addresses = _addresses(gaps) if sockets or specific else None
    nat, publications = _nat(asked, caller, gaps)
    return replace(
        found,
        caller=caller,
        activated=_activated(sockets),
        privileged_below=settings.privileged_below,
        ephemeral=(automatic.low, automatic.high),
        reserved=automatic.reserved,
        nonlocal_bind=settings.nonlocal_bind,
        ipv6=settings.ipv6,
        vrf_accepts_all=settings.vrf_accepts_all,
        addresses=addresses,
        foreign=tuple(_foreign(specific, addresses, gaps)) if specific else (),
        links=_links(asked, sockets, gaps),
        publications=(*publications, *_published(sockets, gaps)),
        nat=nat,
        gaps=(*gaps, *automatic.gaps, *automatic.reserved_gaps),
    )


def _activated(sockets: Iterable[Socket]) -> dict[int, str]:
    """The units of sockets that systemd has: it makes each in the unit's own cgroup (systemd.socket(5))."""
    held = [s for s in sockets if s.inode and s.cgroup_id and any(o.name == "systemd" for o in s.owners)]
    if not held:
        return {}
    from portbook.enrich import cgroup
    from portbook.managers.supervisor import UNIT
    from portbook.managers.systemd import exact_unit_of

    paths = cgroup.paths_by_id({s.cgroup_id for s in held if s.cgroup_id})
    units = {number: exact_unit_of(path) or "" for number, path in paths.items()}  # as systemctl has to be told
    return {s.inode or 0: unit for s in held if UNIT.fullmatch(unit := units.get(s.cgroup_id or 0, ""))}


# --- addresses -----------------------------------------------------------------------------------------------------


def _addresses(gaps: list[Gap]) -> tuple[LocalAddress, ...] | None:
    from portbook.netconfig.linux import interfaces

    try:
        return interfaces.read_addresses()
    except OSError as error:
        gaps.append(Gap("address", None, f"the addresses of this machine are not known: {error}"))
        return None


def _foreign(
    specific: Iterable[Endpoint], addresses: tuple[LocalAddress, ...] | None, gaps: list[Gap]
) -> Iterator[str]:
    """IPv6 addresses have to be an interface's; for IPv4 the routing table decides."""
    from portbook.netconfig.linux import interfaces

    for endpoint in specific:
        v4 = unmapped(endpoint.address)
        if ":" not in v4:
            try:
                local = interfaces.is_local(v4)
            except OSError as error:
                gaps.append(Gap("address", None, f"whether {v4} is an address of this machine is not known: {error}"))
                continue
        elif addresses is None or endpoint.address.startswith("ff"):  # multicast: RFC 4291 section 2.7
            continue
        else:
            local = any(a.address == endpoint.address and endpoint.zone in (None, a.interface) for a in addresses)
        if not local:
            yield endpoint.address


def _links(asked: Asked, sockets: Iterable[Socket], gaps: list[Gap]) -> tuple[Link, ...]:
    devices = {s.interface or s.zone for s in sockets} | {e.zone for e in asked.endpoints}
    names = {device for device in devices if device}
    if not names:
        return ()
    from portbook.netconfig.linux import interfaces

    try:
        return interfaces.read_links(names)
    except OSError as error:
        gaps.append(Gap("interface", None, f"the interfaces of this machine are not known: {error}"))
        return ()


# --- containers ----------------------------------------------------------------------------------------------------


def _nat(asked: Asked, caller: Caller, gaps: list[Gap]) -> tuple[tuple[NatRule, ...], tuple[Publication, ...]]:
    from portbook.netconfig.linux import nat

    rules, more = nat.take(asked.port, asked.protocol, may_read=caller.may_read_nat is not False)
    gaps += more
    if not rules:
        return (), ()
    from portbook.netconfig.linux.steps import concerning

    rules = concerning(rules, [e.address for e in asked.endpoints], _addresses(gaps) or ())
    return rules, _publications(gaps) if any(rule.to_address for rule in rules) else ()


def _published(sockets: Iterable[Socket], gaps: list[Gap]) -> tuple[Publication, ...]:
    """Asked for only when docker-proxy has the port."""
    if any(o.name == "docker-proxy" for s in sockets for o in s.owners):
        return _publications(gaps)
    return ()


def _publications(gaps: list[Gap]) -> tuple[Publication, ...]:
    from portbook.managers import publications

    found, more = publications.take()
    gaps += more
    return found
