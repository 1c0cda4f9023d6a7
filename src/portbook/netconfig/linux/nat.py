"""Linux: NAT rules by which packets to a port never reach a socket here. Two halves: read, parse.

A redirection needs a base chain of type nat. Whether there is one the kernel tells in a single answer; only then are
nft and iptables-save run, which cost more than everything else that is looked at.

Sources: nft(8), libnftables-json(5), iptables-save(8), iptables-extensions(8) (DNAT, REDIRECT, multiport, addrtype);
include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h. NAT happens in prerouting for what comes in, in output for what
this machine sends: nft(8), "CHAINS".
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

from portbook.errors import SourceError
from portbook.netconfig.facts import NatRule
from portbook.records import FAMILIES, Family, Gap, Protocol

NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN = 3, 4
NFGENMSG = struct.Struct("=BBH")  # family, version, resource
NFTA_CHAIN_TYPE = 7
# What the kernel answers that has no netlink for netfilter, or no nf_tables behind it (nfnetlink_rcv_msg).
ABSENT = frozenset((errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT))
LEGACY = ("ip_tables_names", "ip6_tables_names")  # of /proc/net: tables that the older iptables has made
TIME_LIMIT_S = 3.0
MOST_BYTES = 16 << 20
# Interfaces that container runtimes and hypervisors make: where there are none, an ordinary user misses nothing.
BRIDGES = ("docker", "br-", "cni", "podman", "nerdctl", "virbr", "lxcbr", "lxdbr", "incusbr", "cbr", "flannel", "cali")


class Raw(NamedTuple):
    """What the tools said."""

    nft: bytes = b""
    saved: tuple[tuple[Family, bytes], ...] = ()  # family, and what iptables-save printed of it
    gaps: tuple[Gap, ...] = ()


def take(port: int, protocol: Protocol, *, may_read: bool) -> tuple[tuple[NatRule, ...], list[Gap]]:
    """The rules that redirect packets to the port; none, in one question to the kernel, where nothing does NAT."""
    if not may_read:
        return (), [_denied()] if _has_bridge() else []
    try:
        raw = read()
    except PermissionError:  # a capability of another user namespace
        return (), [_denied()] if _has_bridge() else []
    except OSError as error:
        return (), [Gap("nat", None, f"whether NAT rules redirect packets is not known: nf_tables: {error}")]
    if not raw.nft and not raw.saved:
        return (), list(raw.gaps)
    rules, gaps = parse(raw, port, protocol)
    return tuple(rules), [*raw.gaps, *gaps]


def _denied() -> Gap:
    why = f"whether NAT rules (published container ports) redirect packets is not visible to uid {os.geteuid()}"
    return Gap("nat", None, why, "run with sudo")


def _has_bridge() -> bool:
    from socket import if_nameindex

    try:
        return any(name.startswith(BRIDGES) for _, name in if_nameindex())
    except OSError:
        return False


# --- read ----------------------------------------------------------------------------------------------------------


def read() -> Raw:
    """Ask the tools, if the kernel has anything that they could tell; raises OSError."""
    gaps: list[Gap] = []
    nft = _output(("nft", "-j", "list", "ruleset"), gaps) if has_nat_chains() else b""
    saved: list[tuple[Family, bytes]] = []
    if b'"xt"' in nft:  # rules of iptables on top of nf_tables: nft does not know what they do
        saved += [("ipv4", _output(("iptables-nft-save", "-t", "nat"), gaps))]
        saved += [("ipv6", _output(("ip6tables-nft-save", "-t", "nat"), gaps))]
    for family, name, command in zip(FAMILIES, LEGACY, ("iptables-legacy-save", "ip6tables-legacy-save"), strict=True):
        if b"nat" in _tables(name, gaps):
            saved.append((family, _output((command, "-t", "nat"), gaps)))
    return Raw(nft, tuple(saved), tuple(gaps))


def has_nat_chains() -> bool:
    """Whether nf_tables has a base chain of type nat; raises OSError, PermissionError without CAP_NET_ADMIN."""
    from portbook.system import netlink

    kind = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN
    try:
        answers = netlink.dump(netlink.NETFILTER, kind, NFGENMSG.pack(0, 0, 0))
    except OSError as error:
        if error.errno in ABSENT:
            return False
        raise
    return any(is_nat(body) for _, body in answers)


def is_nat(body: bytes) -> bool:
    """Whether a message about a chain says that its type is nat: pure."""
    from portbook.system import netlink

    return netlink.text(netlink.attributes(body[NFGENMSG.size :]).get(NFTA_CHAIN_TYPE)) == "nat"


def _tables(name: str, gaps: list[Gap]) -> list[bytes]:
    """The tables of the older iptables; the file is root's alone, whatever capabilities others have."""
    try:
        with open(f"/proc/thread-self/net/{name}", "rb") as file:
            return file.read(4096).split()
    except PermissionError:
        gaps.append(
            Gap("nat", None, f"NAT rules of iptables-legacy are not visible to uid {os.geteuid()}", "run as root")
        )
    except OSError:
        pass  # this kernel has none
    return []


def _output(command: Sequence[str], gaps: list[Gap]) -> bytes:
    """What a program of the system prints; nothing and a gap if it fails."""
    from portbook.system import program

    path = program.find(command[0])
    if path is None:
        why = f"{command[0]} is not installed, so that NAT rules made with it cannot be read"
        gaps.append(Gap("nat", None, why, "install nftables or iptables"))
        return b""
    try:
        return program.run((path, *command[1:]), TIME_LIMIT_S, most_bytes=MOST_BYTES).successful()
    except SourceError as error:
        gaps.append(Gap("nat", None, f"NAT rules could not be read: {error}"))
        return b""


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(raw: Raw, port: int, protocol: Protocol) -> tuple[list[NatRule], list[Gap]]:
    """The rules that a packet to the port meets on its way through the chains."""
    from portbook.netconfig.linux import iptables, nftables
    from portbook.netconfig.linux.steps import Step, walk

    steps: list[Step] = []
    gaps: list[Gap] = []
    if raw.nft:
        try:
            steps += nftables.parse(raw.nft)
        except ValueError as error:
            gaps.append(Gap("nat", None, f"what nft printed could not be understood: {error}"))
    for family, text in raw.saved:
        steps += iptables.parse(text, family)
    return list(dict.fromkeys(walk(steps, port, protocol))), gaps
