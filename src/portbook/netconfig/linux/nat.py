"""Linux: NAT rules by which packets to a port never reach a socket here. Two halves: read, parse.

A redirection needs a base chain of type nat. One request to the kernel shows whether there is one; only then are nft
and iptables-save run, which take longer than everything else in a verdict.

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
from portbook.records import Family, Gap, Protocol

NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN = 4
NFGENMSG = struct.Struct("=BBH")  # family, version, resource
NFTA_CHAIN_TYPE = 7
# The answers of a kernel without netlink for netfilter, or without nf_tables behind it (nfnetlink_rcv_msg).
ABSENT = frozenset((errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT))
# The older iptables: the file of /proc/net that names its tables, and the program that prints them.
LEGACY: dict[Family, tuple[str, str]] = {
    "ipv4": ("ip_tables_names", "iptables-legacy-save"),
    "ipv6": ("ip6_tables_names", "ip6tables-legacy-save"),
}
TIME_LIMIT_S = 3.0
MOST_BYTES = 16 << 20
# Interfaces of container runtimes and hypervisors: without them nothing is missing for an ordinary user.
BRIDGES = ("docker", "br-", "cni", "podman", "nerdctl", "virbr", "lxcbr", "lxdbr", "incusbr", "cbr", "flannel", "cali")


class NatOutput(NamedTuple):
    """What the tools printed."""

    nft: bytes = b""
    saved: tuple[tuple[Family, bytes], ...] = ()  # family, and what iptables-save printed for it
    gaps: tuple[Gap, ...] = ()


def take(port: int, protocol: Protocol, *, may_read: bool) -> tuple[tuple[NatRule, ...], list[Gap]]:
    """The rules that redirect packets to the port. Where nothing does NAT, this is one request to the kernel."""
    if not may_read:
        return (), _denied()
    try:
        output = read()
    except PermissionError:  # the capability is one of another user namespace
        return (), _denied()
    except OSError as error:
        return (), [Gap("nat", None, f"whether NAT rules redirect packets is not known: nf_tables: {error}")]
    if not output.nft and not output.saved:
        return (), list(output.gaps)
    rules, gaps = parse(output, port, protocol)
    return rules, [*output.gaps, *gaps]


def _denied() -> list[Gap]:
    """A gap, where something probably does NAT."""
    if not _has_bridge():
        return []
    why = f"whether NAT rules (published container ports) redirect packets is not visible to uid {os.geteuid()}"
    return [Gap("nat", None, why, "run with sudo")]


def _has_bridge() -> bool:
    from socket import if_nameindex

    try:
        return any(name.startswith(BRIDGES) for _, name in if_nameindex())
    except OSError:
        return False


# --- read ----------------------------------------------------------------------------------------------------------


def read() -> NatOutput:
    """Run the tools, if the kernel has anything that they could print; raises OSError."""
    gaps: list[Gap] = []
    nft = b""
    saved: list[tuple[Family, bytes]] = []
    if has_nat_chains():
        nft = _output(("nft", "-j", "list", "ruleset"), gaps)
    if b'"xt"' in nft:  # rules of iptables on top of nf_tables, which nft cannot print
        saved.append(("ipv4", _output(("iptables-nft-save", "-t", "nat"), gaps)))
        saved.append(("ipv6", _output(("ip6tables-nft-save", "-t", "nat"), gaps)))
    for family, (name, command) in LEGACY.items():
        if b"nat" in _legacy_tables(name, gaps):
            saved.append((family, _output((command, "-t", "nat"), gaps)))
    return NatOutput(nft, tuple(saved), tuple(gaps))


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
    """Whether a message describes a chain of type nat. Pure; raises OSError if the message is truncated."""
    from portbook.system import netlink

    return netlink.text(netlink.attributes(body[NFGENMSG.size :]).get(NFTA_CHAIN_TYPE)) == "nat"


def _legacy_tables(name: str, gaps: list[Gap]) -> list[bytes]:
    """The tables of the older iptables; only root can read the file, whatever capabilities a process has."""
    try:
        with open(f"/proc/thread-self/net/{name}", "rb") as file:
            return file.read(4096).split()
    except PermissionError:
        why = f"NAT rules of iptables-legacy are not visible to uid {os.geteuid()}"
        gaps.append(Gap("nat", None, why, "run as root"))
    except OSError:
        pass  # this kernel does not have them
    return []


def _output(command: Sequence[str], gaps: list[Gap]) -> bytes:
    """What a program of the system prints; nothing and a gap if it fails."""
    from portbook.system import program

    path = program.find(command[0])
    if path is None:
        why = f"{command[0]} is not installed: NAT rules made with it cannot be read"
        gaps.append(Gap("nat", None, why, "install nftables or iptables"))
        return b""
    try:
        return program.run((path, *command[1:]), TIME_LIMIT_S, most_bytes=MOST_BYTES).successful()
    except SourceError as error:
        gaps.append(Gap("nat", None, f"NAT rules could not be read: {error}"))
        return b""


# --- parse ---------------------------------------------------------------------------------------------------------


def parse(output: NatOutput, port: int, protocol: Protocol) -> tuple[tuple[NatRule, ...], list[Gap]]:
    """The rules that a packet to the port meets on its path through the chains."""
    from portbook.netconfig.linux import iptables, nftables
    from portbook.netconfig.linux.steps import MOST_VISITS, Step, follow_packet

    steps: list[Step] = []
    gaps: list[Gap] = []
    if output.nft:
        try:
            steps += nftables.parse(output.nft)
        except ValueError as error:
            gaps.append(Gap("nat", None, f"the output of nft could not be parsed: {error}"))
    for family, text in output.saved:
        steps += iptables.parse(text, family)
    walked = follow_packet(steps, port, protocol)
    if not walked.complete:
        gaps.append(Gap("nat", None, f"NAT rules after the first {MOST_VISITS:,} steps were not followed"))
    return walked.rules, gaps
